// SPDX-License-Identifier: MIT
// The translator's private state. One struct jit per vCPU: its code cache is its own, so that no
// other thread ever changes code this one runs; what vCPUs must tell each other (a page that holds
// code was written) goes through struct vm_code.
#ifndef CETKVM_CPU_JIT_H
#define CETKVM_CPU_JIT_H

#include "cpu/debug.h"
#include "cpu/insn.h"
#include "cpu/jit_emit.h"

#include <pthread.h>

// Mode bits a translation depends on: part of a block's key.
enum mode {
	MODE_SIZE = 3,	       // 0: 16-bit, 1: 32-bit, 2: 64-bit code
	MODE_CPL = 3 << 2,
	MODE_SS32 = 1 << 4,    // SS.B: 32-bit stack pointer
	MODE_V86 = 1 << 5,
	MODE_PE = 1 << 6,
	MODE_FLAT_ES = 1 << 7, // base 0, limit 4 GiB, readable and writable: no check needed
	MODE_FLAT_SS = 1 << 8,
	MODE_FLAT_DS = 1 << 9,
	MODE_FLAT_FS = 1 << 10,
	MODE_FLAT_GS = 1 << 11,
	MODE_FLAT_CS = 1 << 12,
	MODE_EM = 1 << 13,
	MODE_TS = 1 << 14,
	MODE_MP = 1 << 15,
	MODE_OSFXSR = 1 << 16,
	MODE_AVX = 1 << 17,
	MODE_SMM = 1 << 18,    // guest-physical addresses are those of SMM
	MODE_SHSTK = 1 << 19,
	MODE_IBT = 1 << 20,
	MODE_WAIT = 1 << 21,
	MODE_SUPPRESS = 1 << 22,
	MODE_NOTRACK_EN = 1 << 23,
	MODE_SINGLE = 1 << 24, // one instruction
	MODE_SLOWMEM = 1 << 25, // one instruction, memory through C
	MODE_ALIGN = 1 << 26,	// alignment checks (#AC)
	MODE_LONG = 1 << 27,	// EFER.LMA
};
#define MODE_CPL_OF(mode) ((mode) >> 2 & 3)
#define MODE_64(mode) (((mode) & MODE_SIZE) == 2)

struct block {
	u64 gpa;       // of its first byte
	u64 gpa2;      // page of its last byte when it crosses a page, else 0
	u32 mode;
	u16 length;    // guest bytes
	u16 points;    // guest instructions
	u32 code;      // offset of its code in the cache
	u32 code_size;
	u32 first_point;
	u32 hash_next, page_next, cross_next; // block index + 1
	u16 endbr_entry; // offset from code of the entry behind a leading ENDBR, 0: there is none
	bool dead;
	bool branch;   // the first instruction is one, taken or not
};

// Where in the code cache a guest instruction begins.
struct point {
	u32 code;
	u16 page_offset; // of the guest instruction in its page
	u8 length;
	u8 flags;
	u32 recipe; // of the arithmetic flags, see jit_flags.c; 0: cpu->arith (or the host's) has them
};
#define POINT_FLAGS_IN_HOST 1 // arithmetic flags are in the host's when the instruction itself executes
#define POINT_SPILLED_SHIFT 4 // bits 7:4: host register lent to another guest register; its value is in temp[3]

// Where translated code keeps the guest's registers. H_NONE: in cpu->gpr[].
extern const u8 jit_home[16];

// A memory access of translated code, for its slow path.
struct mem_record {
	u16 page_offset;
	u8 length;
	u8 size;
	u16 access; // enum access
	u32 recipe; // of the arithmetic flags; 0: cpu->arith has them
	u8 ss;	    // #SS rather than #GP when not canonical
	bool locked;
	bool x87;   // a waiting x87 or MMX instruction: a pending #MF comes before its memory operand
	u8 align;   // #GP unless the address is a multiple of it; 0: it may be any
	u8 seg;
};

struct call_record {
	insn_handler *handler;
	u16 page_offset;
	u8 length;
	bool end, unload;
	u32 recipe;
	struct insn insn;
};

// How to make arithmetic flags again that were not saved: see jit_flags.c.
struct flags_recipe {
	u16 mnemonic;
	u8 size;
	u8 result, source; // guest registers
	s64 immediate;
};

struct code_page {
	u64 gpa;
	u32 first_block; // index + 1
	u32 first_cross; // blocks of the page before that end in this one
	u32 next;	 // hash chain, index + 1
	u32 slow_writes;
	u64 chunks;	 // 64-byte pieces of the page that some block was made from
	u64 hash;	 // of those, when they were; see jit_stale.c
	u64 checked;	 // epoch in which memory was last seen to agree with it
};

#define VICTIM_BITS 10
#define JUMP_LOG 192 // cached jumps that are forgotten one by one; more: the whole table
#define JIT_DECODED_SIZE (256u << 10)
#define JIT_HASH_BITS 16
#define JIT_PAGE_HASH_BITS 12

struct jit {
	u8 *rw, *rx;
	size_t size;
	u8 *next;     // in rw
	u8 *first;    // behind the thunks
	struct block *blocks;
	u32 block_count, block_max;
	struct point *points;
	u32 point_count, point_max;
	struct mem_record *mems;
	u32 mem_count, mem_max;
	struct call_record *calls;
	u32 call_count, call_max;
	struct flags_recipe *recipes;
	u32 recipe_count, recipe_max;
	void *decoded; // struct decoded[], for the block being made
	unsigned next_site;
	struct code_page *pages;
	u32 page_count, page_max;
	u32 hash[1 << JIT_HASH_BITS];
	u32 page_hash[1 << JIT_PAGE_HASH_BITS];

	u32 mode;	 // of the current state; see jit_mode()
	bool mode_stale;
	// Jumps that another one with the same place in cpu->jump pushed out; entry 0: none.
	struct jump_entry victim[2][1 << VICTIM_BITS];
	u32 jump_mode[2]; // mode for which cpu->jump[class] holds entries
	struct jump_entry *jump_log[2][JUMP_LOG]; // of all three tables: entries that were filled
	u32 jump_logged[2];
	u64 jump_pages[2][64]; // filter of linear pages that cached jumps lead to
	bool kernel_jump_local; // cpu->jump[0] holds entries for pages that are not global

	// Thunks (executable addresses)
	const u8 *enter, *exit, *call_c, *call_c_end, *link, *lookup, *lookup_indirect, *mem_slow,
		*slow_begin, *slow_end, *seg_linear, *host_fault;

	// Slow-memory grain
	bool split_locked; // this vCPU holds the lock of accesses across pages
	bool slow_once;	  // run the next instruction in MODE_SLOWMEM
	bool single_running; // the block being run is one instruction: come back to the loop behind it
	u32 slow_active;  // nested begin
	struct slow_access {
		u64 linear;
		u32 record;
		bool active;
		u8 buffer[192] __attribute__((aligned(64)));
	} slow[4];
	// No jump is cached that leads to these breakpoints; debugging: they are in force.
	struct debug_setting debug_seen;
	bool debugging;
	u32 debug_bits; // DR6 bits of data breakpoints that the instruction has met
	u64 saved_gpr[16];
	u32 saved_arith;
	bool saved_valid;

	// A fault of the host in translated code
	u64 fault_pc, fault_address, fault_flags;
	int fault_signal, fault_trap;

	// Other vCPUs
	u32 bit; // in the masks of struct page_users
	bool bit_shared;
	volatile u32 in_guest;
	volatile u32 flush_requested;
	u64 own_epoch; // see jit_stale.c
	u64 stale_since; // TSC
	u64 stale_pages[32]; // what it is about, under vm->lock; more than fit: everything
	u32 stale_count;
	struct cpu *cpu;
	struct vm_code *vm;
	struct jit *vm_next;
	u64 stat_blocks, stat_insns, stat_flushes, stat_lookups, stat_slow, stat_mem_slow, stat_exits;
};

// jit_code.c: memory of the code cache, blocks by address, invalidation
int jit_create(struct cpu *cpu, struct vm_code *vm);
void jit_destroy(struct cpu *cpu);
void jit_flush(struct cpu *cpu); // forget every block
struct block *jit_find(struct jit *jit, u64 gpa, u32 mode);
void jit_make_room(struct cpu *cpu);
struct block *jit_new_block(struct cpu *cpu, u64 gpa, u32 mode);
// `page`, `second`: where the bytes of the block are; `second` NULL if it does not cross a page.
void jit_publish_block(struct jit *jit, struct block *block, const u8 *page, const u8 *second);
struct code_page *jit_find_page(struct jit *jit, u64 gpa);
void jit_drop_blocks(struct cpu *cpu, struct code_page *page);
struct block *jit_block_of_pc(struct jit *jit, u64 pc);
struct point *jit_point_of_pc(struct jit *jit, struct block *block, u64 pc);
void jit_page_gets_code(struct cpu *cpu, u64 gpa);
void jit_handle_code_requests(struct cpu *cpu);
void jit_invalidate_page(struct cpu *cpu, u64 gpa);
void jit_clear_jumps(struct cpu *cpu);
void jit_split_lock(struct jit *jit);
void jit_split_unlock(struct jit *jit);
void jit_empty_jumps(struct cpu *cpu, unsigned class);
void jit_note_jump(struct jit *jit, unsigned class, u64 rip);
void jit_log_jump(struct jit *jit, unsigned class, struct jump_entry *entry);

// jit_stale.c: writes of the client to pages that hold code
void jit_note_code(struct code_page *page, const u8 *host, unsigned offset, unsigned length);
u64 *vm_code_epoch(struct vm_code *vm);

// jit_thunk.c
void jit_make_thunks(struct jit *jit);

// jit_block.c
struct block *jit_translate(struct cpu *cpu, u8 *page, u64 gpa, u32 mode);

// cpu_run.c: back to the loop, with what was prepared in struct cpu
void cpu_unwind(struct cpu *cpu) __attribute__((noreturn));

// C called from translated code begins and ends with these.
#ifdef CETKVM_SANITIZED
// The sanitizers' runtimes use vector registers wherever they like: put the guest's away at once.
#define ENTER_C(cpu) cpu_fpu_unload(cpu)
#else
#define ENTER_C(cpu) ((void)0)
#endif
#define LEAVE_C(cpu) do { if (!(cpu)->fpu_loaded) cpu_fpu_load(cpu); } while (0)

// jit_lookup.c
u32 jit_mode(struct cpu *cpu); // of the current state
// The block at cpu->rip in a mode, translated if there is none. Raises what the fetch raises.
struct block *jit_get_block(struct cpu *cpu, u32 mode);
u8 *jit_next_code_page(struct cpu *cpu, u64 linear, u64 *gpa);
u64 jit_block_entry(struct jit *jit, const struct block *b);
// Jumps by address are cached for one mode per privilege class: now for this one.
void jit_enter_mode(struct cpu *cpu, u32 mode);
// Is there something for the loop to do?
bool jit_must_leave(struct cpu *cpu);
// Where to go on in translated code at cpu->rip; 0: back to the run loop.
u64 jit_go_on(struct cpu *cpu);
// In the loop: takes note of breakpoints that are new. True if the next instruction runs alone.
bool jit_debug_begin(struct cpu *cpu);

// jit_calls.c
u64 jit_c_call(struct cpu *cpu, u64 record);
u64 jit_c_call_end(struct cpu *cpu, u64 record);
u64 jit_c_link(struct cpu *cpu, u64 page_offset, u64 hole);
u64 jit_c_lookup(struct cpu *cpu, u64 site, u64 rip);
u64 jit_c_lookup_indirect(struct cpu *cpu, u64 site, u64 rip);
u64 jit_c_mem_slow(struct cpu *cpu, u64 record, u64 linear);
u64 jit_c_slow_begin(struct cpu *cpu, u64 record, u64 linear);
u64 jit_c_slow_end(struct cpu *cpu, u64 record);
u64 jit_c_seg_linear(struct cpu *cpu, u64 record, u64 offset);
u64 jit_c_host_fault(struct cpu *cpu);

// A jump site, as the look-up functions get it: where, and what of it to undo if the target is bad.
#define SITE(page_offset, kind, pops) ((u32)(page_offset) | (u32)(kind) << 12 | (u32)(pops) << 16)
// `pops`: bytes of the stack for CALL and RET; of the count register for LOOP.
enum site_kind {
	SITE_NEXT, // no branch: the instruction is complete
	SITE_JMP, SITE_RET, SITE_CALL, SITE_CALL_NO_SS, SITE_LOOP,
};

// jit_signal.c
void jit_install_signal_handlers(void);
extern __thread struct cpu *jit_running;

#endif
