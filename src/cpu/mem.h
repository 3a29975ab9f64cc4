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

// Physical accesses by the page walker and friends, within one page. false: not RAM.
bool phys_read64(struct cpu *cpu, u64 gpa, u64 *value);
bool phys_read32(struct cpu *cpu, u64 gpa, u32 *value);
bool phys_cmpxchg(struct cpu *cpu, u64 gpa, u64 expected, u64 desired, unsigned size);

// TLB. Tag TLB_NONE never matches. A tag is the linear address of the page (bits 11:0 zero).
#define TLB_NONE 1ull
#define TLB_GLOBAL 1ull // in gpa: global page
void tlb_flush_all(struct cpu *cpu);	    // everything, also code translations by address
void tlb_flush_nonglobal(struct cpu *cpu);  // MOV CR3, INVPCID all but globals
void tlb_flush_page(struct cpu *cpu, u64 linear); // INVLPG (global pages too)
// Called by the flushes for the translator's caches keyed by linear address. In jit.
void jit_tlb_flushed(struct cpu *cpu, bool global);
void jit_tlb_flushed_page(struct cpu *cpu, u64 linear);

// Which TLB serves an access with these bits (and EFLAGS.AC), and its number of entries (a power of 2).
struct tlb_entry *tlb_select(struct cpu *cpu, unsigned access, unsigned *entries);

// A page that holds translated code of some vCPU must not be in a TLB as writable. These are
// called by the slow paths: (jit_code.c)
// May `gpa`'s page get a writable TLB entry on this vCPU now? If it holds code the answer is no.
// Registers this vCPU as a writer of the page otherwise.
bool jit_page_writable(struct cpu *cpu, u64 gpa, void *host_page);
// Somebody on this vCPU is about to write [gpa, gpa+size): drop translations made from it.
void jit_page_written(struct cpu *cpu, u64 gpa, unsigned size);

#endif
