// SPDX-License-Identifier: MIT
// Guest memory for C code: linear and physical accesses, page walks, the software TLB.
// SDM: "Paging", "Shadow Stacks" (page attributes), "Page-Fault Exceptions".
#ifndef CETKVM_CPU_MEM_H
#define CETKVM_CPU_MEM_H

#include "cpu/cpu.h"

struct walk {
	u64 gpa;	// of the byte asked for
	u64 page_size;	// 4096, 2 MiB, 4 MiB, 1 GiB; 4096 with paging off
	bool global, user, writable /* as this kind of accessor may write without another walk: R/W
		and CR0.WP considered, D already set */, shadow_stack;
	u8 protection_key; // of a user page where CR4.PKE says it matters, else 0
	u32 error;	// #PF error code when the walk failed
};

// Walks the paging structures for one access (enum access bits), sets A and D bits as the processor
// does (locked), and says whether the access is allowed. Raises nothing; true: allowed.
bool paging_walk(struct cpu *cpu, u64 linear, unsigned access, struct walk *walk);
// The same without setting A/D bits and without permission checks (KVM_TRANSLATE, debuggers).
bool paging_translate(struct cpu *cpu, u64 linear, struct walk *walk);

// Linear accesses. `linear` is not yet checked for being canonical (segmentation did that);
// accesses may cross pages, hit memory I/O, or raise #PF. In 32-bit addressing the caller has
// truncated `linear`; a crossing at 4 GiB wraps when not in 64-bit mode.
// All bytes of a write are checked before the first is written.
void mem_read(struct cpu *cpu, u64 linear, void *data, unsigned size, unsigned access);
void mem_write(struct cpu *cpu, u64 linear, const void *data, unsigned size, unsigned access);
// Raises what a write of that range would raise, writes nothing.
void mem_probe_write(struct cpu *cpu, u64 linear, unsigned size, unsigned access);
u64 mem_read_n(struct cpu *cpu, u64 linear, unsigned size, unsigned access); // size 1,2,4,8
void mem_write_n(struct cpu *cpu, u64 linear, u64 value, unsigned size, unsigned access);
// Locked 8-byte compare-exchange, naturally aligned; always counts as a write. Returns the old value.
u64 mem_cmpxchg64(struct cpu *cpu, u64 linear, u64 expected, u64 desired, unsigned access);

// Host address of `size` bytes at `linear` within one page of RAM, checked and ready for this kind
// of access, or NULL when it crosses a page, is memory I/O or needs a write trap (code page): then
// use mem_read/mem_write. Raises #PF. Fast when the TLB has it.
void *mem_host(struct cpu *cpu, u64 linear, unsigned size, unsigned access);

// Host address of the page that holds `linear`, for instruction fetch at the current CPL; *gpa: its
// guest-physical address. NULL: memory I/O. Raises #PF (I/D set as the SDM says). Cached in tlb_code.
void *mem_code_page(struct cpu *cpu, u64 linear, u64 *gpa);

// Where a page of guest-physical memory is, NULL for memory I/O: ops->map behind a small cache.
u8 *phys_page(struct cpu *cpu, u64 gpa, unsigned *flags);
// Before a write to that page by C code that did not go through the TLB.
void phys_mark_dirty(struct cpu *cpu, u64 gpa);
// Any length, page by page. false: not RAM (or read-only); bytes up to there are transferred.
bool phys_read(struct cpu *cpu, u64 gpa, void *data, unsigned size);
bool phys_write(struct cpu *cpu, u64 gpa, const void *data, unsigned size);

// PKRU changed hands: WRPKRU, XRSTOR. The one way to set it.
void cpu_set_pkru(struct cpu *cpu, u32 value);

// Physical accesses by the page walker and friends, within one page. false: not RAM.
bool phys_read64(struct cpu *cpu, u64 gpa, u64 *value);
bool phys_read32(struct cpu *cpu, u64 gpa, u32 *value);
bool phys_cmpxchg(struct cpu *cpu, u64 gpa, u64 expected, u64 desired, unsigned size);

// TLB. A tag is the linear address of the page (bits 11:0 zero). Translated code compares by XOR and one
// unsigned comparison with the page size, so no constant would match nothing: an unused entry holds a
// tag that belongs to its neighbour, which no address that selects this entry can equal.
#define TLB_NONE(number) ((u64)(~(number) & 1) << 12)
void tlb_init(struct cpu *cpu); // for a new vCPU, zeroed memory: every entry unused
// Bits 11:0 of tlb_entry.gpa: the rest is the page's address.
#define TLB_GLOBAL 1ull	     // global page
#define TLB_LARGE_2M 2ull    // cut from a 2-MiB page
#define TLB_LARGE_1G 4ull    // cut from a 4-MiB or 1-GiB page
#define TLB_PROTECTION_KEY 8ull // what it allows depends on PKRU
#define TLB_AC 16ull // in the supervisor table because EFLAGS.AC is set
#define TLB_GPA(entry) ((entry)->gpa & ~0xfffull)
static inline void tlb_forget_stack(struct cpu *cpu)
{
	// Only an address that is not canonical can match: it then faults on the host's page 0, and
	// jit_c_host_fault() knows what that means.
	cpu->stack_page[0].tag = cpu->stack_page[1].tag = 1ull << 62;
	cpu->stack_page[0].host = cpu->stack_page[1].host = 0;
	for (unsigned user = 0; user < 2; user++)
		for (unsigned write = 0; write < 2; write++)
			for (unsigned i = 0; i < SITE_PAGES; i++) {
				cpu->site_page[user][write][i].tag = 1ull << 62;
				cpu->site_page[user][write][i].host = 0;
			}
}
void tlb_flush_all(struct cpu *cpu);	    // everything, also code translations by address
void tlb_flush_nonglobal(struct cpu *cpu);  // MOV CR3, INVPCID all but globals
void tlb_flush_page(struct cpu *cpu, u64 linear); // INVLPG (global pages too)
// EFLAGS.AC was cleared, or CPL became 3: drops what only AC allowed. Needed if tlb_ac_count != 0.
void tlb_drop_ac(struct cpu *cpu);
// Stores to that guest-physical page have to come to tlb_fill() again.
void tlb_drop_writable(struct cpu *cpu, u64 gpa);
// Fetches have to come to mem_code_page() again.
void tlb_drop_code(struct cpu *cpu);
// Called by the flushes for the translator's caches keyed by linear address. In jit.
void jit_tlb_flushed(struct cpu *cpu, bool global);
void jit_tlb_flushed_page(struct cpu *cpu, u64 linear);

// Which TLB serves an access with these bits (and EFLAGS.AC), and its number of entries (a power of 2).
struct tlb_entry *tlb_select(struct cpu *cpu, unsigned access, unsigned *entries);
// Walks and fills the entry of `linear` for this access. Raises #PF. NULL: C has to make the access
// itself, at *gpa (memory I/O; for a write also read-only memory and pages with code).
struct tlb_entry *tlb_fill(struct cpu *cpu, u64 linear, unsigned access, u64 *gpa);

// A page that holds translated code of some vCPU must not be in a TLB as writable. These are
// called by the slow paths: (jit_code.c)
// May `gpa`'s page get a writable TLB entry on this vCPU now? If it holds code the answer is no.
// Registers this vCPU as a writer of the page otherwise.
bool jit_page_writable(struct cpu *cpu, u64 gpa, void *host_page);
// Somebody on this vCPU is about to write [gpa, gpa+size): drop translations made from it.
void jit_page_written(struct cpu *cpu, u64 gpa, unsigned size);
// Code is about to be fetched from that page for the first time since a flush: drops what was
// translated from it if the client has changed it since. (jit_stale.c)
void jit_check_code_page(struct cpu *cpu, u64 gpa, const u8 *host);

#endif
