// SPDX-License-Identifier: MIT
// The run loop: requests, pending events, choosing the next block; and what translated code calls.
//
// cpu_run() lives on the thread's stack. Exceptions raised anywhere below it come back to its
// sigsetjmp(); translated code is entered through jit->enter and comes back when it needs the loop.
#include "base/log.h"
#include "cpu/debug.h"
#include "cpu/fpu.h"
#include "cpu/guest_access.h"
#include "cpu/jit_translate.h"
#include "cpu/mem.h"
#include "cpu/system.h"
#include "cpu/transfer.h"

#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SIGNAL_STACK (256u << 10) // below struct cpu: for signals that arrive in translated code

#ifdef CETKVM_SANITIZED
// The sanitizers' runtimes use vector registers wherever they like: put the guest's away at once.
#define FROM_TRANSLATED __attribute__((no_sanitize("address", "undefined", "thread"), target("general-regs-only")))
#define ENTER_C(cpu) cpu_fpu_unload(cpu)
#else
#define FROM_TRANSLATED
#define ENTER_C(cpu) ((void)0)
#endif
#define LEAVE_C(cpu) do { if (!(cpu)->fpu_loaded) cpu_fpu_load(cpu); } while (0)

struct cpu *cpu_create(const struct cpu_ops *ops, void *opaque, struct vm_code *vm)
{
	size_t size = (sizeof(struct cpu) + 4095) & ~(size_t)4095;
	u8 *area = mmap(NULL, SIGNAL_STACK + size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct cpu *cpu;

	if (area == MAP_FAILED)
		return NULL;
	mprotect(area, 4096, PROT_NONE);
	cpu = (struct cpu *)(area + SIGNAL_STACK);
	cpu->ops = ops;
	cpu->opaque = opaque;
	if (jit_create(cpu, vm) < 0) {
		jit_destroy(cpu);
		munmap(area, SIGNAL_STACK + size);
		errno = ENOMEM;
		return NULL;
	}
	jit_install_signal_handlers();
	cpu->linear_bits = 48;
	tlb_init(cpu);
	cpu_reset(cpu, false);
	tlb_flush_all(cpu);
	cpu->jit->mode_stale = true;
	return cpu;
}

void cpu_destroy(struct cpu *cpu)
{
	size_t size = (sizeof(struct cpu) + 4095) & ~(size_t)4095;

	jit_destroy(cpu);
	munmap((u8 *)cpu - SIGNAL_STACK, SIGNAL_STACK + size);
}

// ---- leaving the current instruction ----

static void unwind(struct cpu *cpu) __attribute__((noreturn));
static void unwind(struct cpu *cpu)
{
	BUG_ON(!cpu->unwind);
	siglongjmp(*cpu->unwind, 1);
}

void cpu_abort(struct cpu *cpu, enum cpu_exit exit)
{
	cpu->exit = exit;
	unwind(cpu);
}

static void raise_event(struct cpu *cpu, enum vector vector, bool has_error, u32 error, u64 payload)
{
	cpu->event = (struct pending_event){ .valid = true, .vector = vector, .has_error = has_error,
					     .error = error, .payload = payload };
	unwind(cpu);
}

void cpu_raise(struct cpu *cpu, enum vector vector)
{
	raise_event(cpu, vector, false, 0, 0);
	__builtin_unreachable();
}

void cpu_raise_error(struct cpu *cpu, enum vector vector, u32 error)
{
	raise_event(cpu, vector, true, error, 0);
	__builtin_unreachable();
}

void cpu_raise_pf(struct cpu *cpu, u64 linear, u32 error)
{
	raise_event(cpu, VECTOR_PF, true, error, linear);
	__builtin_unreachable();
}

void cpu_check_ops(struct cpu *cpu, enum cpu_ops_result result)
{
	if (result == CPU_OPS_GP)
		cpu_gp0(cpu);
	if (result == CPU_OPS_EXIT)
		cpu_abort(cpu, CPU_EXIT_OPS);
}

static u64 linear_rip(const struct cpu *cpu)
{
	return cpu_64bit(cpu) ? cpu->rip : (u32)(cpu->seg[SEG_CS].base + cpu->rip);
}

// Breakpoints or a debugger's step: is the next instruction to run alone, looked at before and behind?
// Code breakpoints want that in their pages; no jump into those is cached. Translated code asks here
// whenever it comes to C for where to go on.
static bool debug_alone(struct cpu *cpu)
{
	bool on = debug_enabled(cpu);

	if (on != cpu->jit->debugging)
		return true;
	return on && (!debug_same(cpu, &cpu->jit->debug_seen) || debug_wants_each(cpu, linear_rip(cpu)));
}

// In the loop: takes note of breakpoints that are new. True if the next instruction runs alone.
static bool debug_begin(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	bool on = debug_enabled(cpu);

	if (on && !(jit->debugging && debug_same(cpu, &jit->debug_seen))) {
		debug_get(cpu, &jit->debug_seen);
		jit_clear_jumps(cpu);
	}
	jit->debugging = on;
	return on && debug_wants_each(cpu, linear_rip(cpu));
}

// ---- mode ----

void cpu_mode_changed(struct cpu *cpu)
{
	if (cpu->jit)
		cpu->jit->mode_stale = true;
}

static bool flat(const struct segment *s)
{
	// Readable and writable data, expand-up, 4 GiB.
	return s->base == 0 && s->limit == 0xffffffff && !(s->attributes & SEG_UNUSABLE) &&
	       (s->attributes & (SEG_P | SEG_S)) == (SEG_P | SEG_S) && (s->attributes & 0xe) == 2;
}

static u32 compute_mode(struct cpu *cpu)
{
	u32 cs = cpu->seg[SEG_CS].attributes, mode = cpu->cpl << 2;
	bool pe = cpu->cr0 & CR0_PE, v86 = cpu->rflags & FLAG_VM;

	if (cpu->efer & EFER_LMA)
		mode |= MODE_LONG;
	if ((mode & MODE_LONG) && (cs & SEG_L))
		mode |= 2;
	else if (cs & SEG_DB)
		mode |= 1;
	// SS.B has no meaning in 64-bit mode, and differs between ways into the kernel.
	if (!MODE_64(mode) && (cpu->seg[SEG_SS].attributes & SEG_DB))
		mode |= MODE_SS32;
	if (pe)
		mode |= MODE_PE;
	if (v86)
		mode |= MODE_V86;
	if (!MODE_64(mode)) {
		static const struct { u8 seg; u32 bit; } segs[] = {
			{ SEG_ES, MODE_FLAT_ES }, { SEG_SS, MODE_FLAT_SS }, { SEG_DS, MODE_FLAT_DS },
			{ SEG_FS, MODE_FLAT_FS }, { SEG_GS, MODE_FLAT_GS },
		};

		for (unsigned i = 0; i < 5; i++)
			if (flat(&cpu->seg[segs[i].seg]))
				mode |= segs[i].bit;
		if (cpu->seg[SEG_CS].base == 0 && cpu->seg[SEG_CS].limit == 0xffffffff)
			mode |= MODE_FLAT_CS;
	}
	mode |= (cpu->cr0 & CR0_EM ? MODE_EM : 0) | (cpu->cr0 & CR0_TS ? MODE_TS : 0) |
		(cpu->cr0 & CR0_MP ? MODE_MP : 0) | (cpu->cr4 & CR4_OSFXSR ? MODE_OSFXSR : 0);
	if ((cpu->cr4 & CR4_OSXSAVE) && (cpu->xcr0 & 6) == 6)
		mode |= MODE_AVX;
	if (cpu->smm)
		mode |= MODE_SMM;
	if (cpu->cr4 & CR4_CET) {
		u64 cet = cpu->cpl == 3 ? cpu->u_cet : cpu->s_cet;

		if (cet_shadow_stack_enabled(cpu, cpu->cpl))
			mode |= MODE_SHSTK;
		if (cet_endbranch_enabled(cpu, cpu->cpl)) {
			mode |= MODE_IBT;
			if (cet & CET_WAIT)
				mode |= MODE_WAIT;
			if (cet & CET_SUPPRESS)
				mode |= MODE_SUPPRESS;
			if (cet & CET_NO_TRACK_EN)
				mode |= MODE_NOTRACK_EN;
		}
	}
	if (cpu->cpl == 3 && (cpu->cr0 & CR0_AM) && (cpu->rflags & FLAG_AC))
		mode |= MODE_ALIGN | MODE_SINGLE | MODE_SLOWMEM;
	return mode;
}

u32 jit_mode(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;

	if (jit->mode_stale) {
		if (cpu->tlb_ac_count && (cpu->cpl == 3 || !(cpu->rflags & FLAG_AC)))
			tlb_drop_ac(cpu);
		jit->mode = compute_mode(cpu);
		jit->mode_stale = false;
	}
	return jit->mode;
}

// ---- finding blocks ----

struct block *jit_get_block(struct cpu *cpu, u32 mode)
{
	struct jit *jit = cpu->jit;
	u64 linear = cpu->rip, gpa, gpa2;
	struct block *b;
	u8 *page;

	if (MODE_64(mode)) {
		if (!cpu_canonical(cpu, linear))
			cpu_gp0(cpu);
	} else {
		if (linear > cpu->seg[SEG_CS].limit)
			cpu_gp0(cpu);
		linear = (u32)(linear + cpu->seg[SEG_CS].base);
	}
	page = mem_code_page(cpu, linear, &gpa);
	if (!page)
		cpu_abort(cpu, CPU_EXIT_EMULATION);
	gpa = (gpa & ~0xfffull) | (linear & 0xfff);
	cpu->rip_base = cpu->rip - (linear & 0xfff);
	jit->stat_lookups++;
	b = jit_find(jit, gpa, mode);
	if (b && b->gpa2) {
		u64 next = (linear & ~0xfffull) + 4096;

		if (!mem_code_page(cpu, MODE_64(mode) ? next : (u32)next, &gpa2))
			cpu_abort(cpu, CPU_EXIT_EMULATION);
		if (b->dead || (gpa2 & ~0xfffull) != b->gpa2)
			b->dead = true, b = NULL;
	}
	if (!b) {
		cpu_fpu_unload(cpu);
		b = jit_translate(cpu, page, gpa, mode);
	}
	return b;
}

// Jumps by address are cached for one mode per privilege class.
static void enter_mode(struct cpu *cpu, u32 mode)
{
	struct jit *jit = cpu->jit;
	unsigned class = MODE_CPL_OF(mode) == 3;

	if (jit->jump_mode[class] == mode || (mode & (MODE_WAIT | MODE_SINGLE | MODE_SLOWMEM)))
		return;
	jit_empty_jumps(cpu, class);
	jit->jump_mode[class] = mode;
}

static u64 block_entry(struct jit *jit, const struct block *b)
{
	return (u64)jit->rx + b->code;
}

static struct jump_entry *jump_slot(struct cpu *cpu, unsigned class, u64 rip)
{
	return &cpu->jump[class][(u32)((u32)rip * 0x9e3779b1u) >> (32 - JUMP_BITS)];
}

// Jumps whose places collide push each other out at every turn of a loop: keep what was pushed out
// where it is found faster than its block.
static struct jump_entry *victim_slot(struct cpu *cpu, unsigned class, u64 rip)
{
	return &cpu->jit->victim[class][(rip * 0xd6e8feb86659fd93ull) >> (64 - VICTIM_BITS)];
}

// Emptied, or never filled since its memory was made.
static bool jump_free(const struct jump_entry *slot)
{
	return slot->entry == ~0ull || !slot->entry;
}

static bool swap_victim(struct cpu *cpu, struct jump_entry *slot, unsigned class)
{
	struct jump_entry *victim = victim_slot(cpu, class, cpu->rip), old = *slot;

	if (victim->rip != cpu->rip || !victim->entry)
		return false;
	*slot = *victim;
	if (!jump_free(&old))
		*victim = old;
	else
		jit_log_jump(cpu->jit, class, slot);
	return true;
}

static void cache_jump(struct cpu *cpu, struct jump_entry *slot, unsigned class, u64 entry)
{
	if (!jump_free(slot)) {
		struct jump_entry *victim = victim_slot(cpu, class, slot->rip);

		*victim = *slot;
		jit_log_jump(cpu->jit, class, victim);
	} else {
		jit_log_jump(cpu->jit, class, slot);
	}
	*slot = (struct jump_entry){ cpu->rip, entry };
}

static bool code_page_global(const struct cpu *cpu, u64 linear)
{
	return cpu->tlb_code[0][linear >> 12 & ((1 << TLB_CODE_BITS) - 1)].gpa & TLB_GLOBAL;
}

// A block that goes on in the next page depends on where both pages are.
static bool may_cache_jump(struct cpu *cpu, const struct block *b, u32 mode)
{
	u64 last = b->gpa2 ? cpu->rip + 4096 : cpu->rip;

	if (mode & (MODE_WAIT | MODE_SINGLE | MODE_SLOWMEM))
		return false;
	if (!MODE_64(mode) && !((mode & MODE_SIZE) == 1 && (mode & MODE_FLAT_CS)))
		return false;
	// A CR3 switch empties the user's table; the supervisor's only when it has to.
	if (MODE_CPL_OF(mode) != 3 && !(code_page_global(cpu, cpu->rip) && code_page_global(cpu, last)))
		cpu->jit->kernel_jump_local = true;
	jit_note_jump(cpu->jit, MODE_CPL_OF(mode) == 3, cpu->rip);
	jit_note_jump(cpu->jit, MODE_CPL_OF(mode) == 3, last);
	return true;
}

static bool must_leave(struct cpu *cpu)
{
	return __atomic_load_n(&cpu->request, __ATOMIC_RELAXED) || cpu->jit->single_running;
}

static struct jump_entry *jump_ibt_slot(struct cpu *cpu, unsigned class, u64 rip)
{
	return &cpu->jump_ibt[class][(u32)((u32)rip * 0x9e3779b1u) >> (32 - JUMP_IBT_BITS)];
}

// The tracker waits at cpu->rip (behind SYSCALL, an event, a far branch) and nothing else does: when
// the block there begins with the right ENDBR, go on behind it. 0: look at it closely.
static u64 go_on_behind_endbr(struct cpu *cpu, u32 mode)
{
	struct jit *jit = cpu->jit;
	unsigned class = cpu->cpl == 3;
	struct jump_entry *slot = jump_ibt_slot(cpu, class, cpu->rip);
	u64 entry;

	mode &= ~(u32)MODE_WAIT;
	enter_mode(cpu, mode);
	if (slot->rip == cpu->rip && jit->jump_mode[class] == mode) {
		cpu->rip_base = cpu->rip & ~0xfffull;
		entry = slot->entry;
	} else {
		struct block *b = jit_get_block(cpu, mode);

		if (!b->endbr_entry)
			return 0;
		entry = block_entry(jit, b) + b->endbr_entry;
		if (may_cache_jump(cpu, b, mode)) {
			*slot = (struct jump_entry){ cpu->rip, entry };
			jit_log_jump(jit, class, slot);
		}
	}
	cet_endbranch(cpu, MODE_64(mode));
	cpu_mode_changed(cpu);
	LEAVE_C(cpu);
	return entry;
}

// Where to go on in translated code at cpu->rip; 0: back to the run loop.
static u64 go_on(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	unsigned class = cpu->cpl == 3;
	u32 mode;
	struct block *b;
	struct jump_entry *slot;

	if (must_leave(cpu))
		return 0;
	mode = jit_mode(cpu);
	if ((mode & (MODE_SINGLE | MODE_SLOWMEM)) || debug_alone(cpu))
		return 0;
	if (mode & MODE_WAIT) {
		u64 entry = go_on_behind_endbr(cpu, mode);

		if (entry)
			return entry;
	}
	enter_mode(cpu, mode);
	slot = jump_slot(cpu, class, cpu->rip);
	if (jit->jump_mode[class] == mode && (slot->rip == cpu->rip || swap_victim(cpu, slot, class))) {
		cpu->rip_base = cpu->rip & ~0xfffull;
		LEAVE_C(cpu);
		return slot->entry;
	}
	b = jit_get_block(cpu, mode);
	if (may_cache_jump(cpu, b, mode))
		cache_jump(cpu, slot, class, block_entry(jit, b));
	LEAVE_C(cpu);
	return block_entry(jit, b);
}

// ---- called from translated code ----

static void locate(struct cpu *cpu, unsigned page_offset, unsigned length)
{
	cpu->rip = cpu->rip_base + page_offset;
	cpu->next_rip = cpu->rip + length;
	if (!cpu_64bit(cpu)) {
		cpu->rip = (u32)cpu->rip;
		cpu->next_rip = (u32)cpu->next_rip;
		// IP wraps around. Firmware in SMM runs 16-bit code beyond it, in a segment of 4 GiB: EIP goes on.
		if (!(cpu->seg[SEG_CS].attributes & SEG_DB) && cpu->rip <= 0xffff)
			cpu->next_rip = (u16)cpu->next_rip;
	}
}

static void call_handler(struct cpu *cpu, const struct call_record *r)
{
	locate(cpu, r->page_offset, r->length);
	if (r->unload)
		cpu_fpu_unload(cpu);
	cpu->jit->slow_active = 0;
	jit_cook_flags(cpu, r->recipe);
	r->handler(cpu, &r->insn);
}

FROM_TRANSLATED u64 jit_c_call(struct cpu *cpu, u64 record)
{
	ENTER_C(cpu);
	call_handler(cpu, &cpu->jit->calls[record]);
	LEAVE_C(cpu);
	return 0;
}

FROM_TRANSLATED u64 jit_c_call_end(struct cpu *cpu, u64 record)
{
	ENTER_C(cpu);
	call_handler(cpu, &cpu->jit->calls[record]);
	cpu->rip = cpu->next_rip;
	if ((cpu->rflags & FLAG_RF) && !debug_enabled(cpu))
		cpu->rflags &= ~(u64)FLAG_RF;
	if (cpu->irq_wait && (cpu->rflags & FLAG_IF))
		cpu_request(cpu, REQ_IRQ);
	if (cpu->rflags & FLAG_TF || cpu->interrupt_shadow || cpu->halted)
		cpu_request(cpu, REQ_EVENT);
	return go_on(cpu);
}

FROM_TRANSLATED u64 jit_c_link(struct cpu *cpu, u64 page_offset, u64 hole)
{
	struct jit *jit = cpu->jit;
	u32 flushes = jit->stat_flushes, mode;
	struct block *b;

	ENTER_C(cpu);
	locate(cpu, page_offset, 0);
	if (must_leave(cpu))
		return 0;
	mode = jit_mode(cpu);
	b = jit_get_block(cpu, mode);
	// The jump may be patched if the block it is in is still there.
	if (jit->stat_flushes == flushes && !b->gpa2)
		e_fill_hole(jit->rw + hole, jit->rw + b->code);
	LEAVE_C(cpu);
	return block_entry(jit, b);
}

// The target of a near branch is no address: the fault is the branch's, undone.
static void check_target(struct cpu *cpu, u64 site, u64 rip)
{
	unsigned kind = site >> 12 & 15, pops = site >> 16, slot = cpu_64bit(cpu) ? 8 : 4;
	bool bad = cpu_64bit(cpu) ? !cpu_canonical(cpu, rip) : rip > cpu->seg[SEG_CS].limit;
	u64 delta = kind == SITE_RET ? -(u64)pops : kind == SITE_JMP ? 0 : pops;

	if (!bad)
		return;
	locate(cpu, site & 0xfff, 0);
	if (cpu_64bit(cpu))
		cpu->gpr[RSP] += delta;
	else if (cpu->seg[SEG_SS].attributes & SEG_DB)
		cpu->gpr[RSP] = (u32)(cpu->gpr[RSP] + delta);
	else
		*(u16 *)&cpu->gpr[RSP] += delta;
	if (kind == SITE_CALL)
		cpu->ssp += slot;
	else if (kind == SITE_RET && cet_shadow_stack_enabled(cpu, cpu->cpl))
		cpu->ssp -= slot;
	cpu_gp0(cpu);
}

FROM_TRANSLATED u64 jit_c_lookup(struct cpu *cpu, u64 site, u64 rip)
{
	ENTER_C(cpu);
	check_target(cpu, site, rip);
	cpu->rip = rip;
	return go_on(cpu);
}

FROM_TRANSLATED u64 jit_c_lookup_indirect(struct cpu *cpu, u64 site, u64 rip)
{
	ENTER_C(cpu);
	check_target(cpu, site, rip);
	locate(cpu, site & 0xfff, 0);
	cpu->last_branch_from = cpu->rip;
	cet_track_indirect(cpu, cpu->cpl, true, false);
	cpu_mode_changed(cpu);
	cpu->rip = rip;
	return go_on(cpu);
}

// What comes before any fault of the memory operand: an x87 exception that is pending.
static void check_x87_pending(struct cpu *cpu, const struct mem_record *r)
{
	u16 status;

	if (!r->x87 || !(cpu->cr0 & CR0_NE))
		return;
	if (cpu->fpu_loaded)
		__asm__ volatile("fnstsw %0" : "=m"(status));
	else
		status = fpu_get16(cpu, FX_FSW);
	if (status & 0x80) {
		cpu_fpu_unload(cpu); // as in jit_c_host_fault()
		cpu_raise(cpu, VECTOR_MF);
	}
}

FROM_TRANSLATED u64 jit_c_seg_linear(struct cpu *cpu, u64 record, u64 offset)
{
	const struct mem_record *r = &cpu->jit->mems[record];
	struct insn insn = { .mem_seg = r->seg, .mem_base = 0xff, .mem_index = 0xff, .mem_disp = offset,
			     .address_size = 4, .length = r->length };
	u64 linear;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	check_x87_pending(cpu, r);
	linear = insn_linear(cpu, &insn, r->size, r->access & ACCESS_WRITE);
	LEAVE_C(cpu);
	return linear;
}

static void check_canonical(struct cpu *cpu, const struct mem_record *r, u64 linear)
{
	if (!cpu_64bit(cpu)) {
		// A flat segment ends at 4 GiB: nothing wraps around there. Others were checked before.
		const struct segment *s = &cpu->seg[r->seg];

		if (linear + r->size - 1 <= 0xffffffff || (r->access & ACCESS_SS) || s->base || s->limit != 0xffffffff)
			return;
	} else if (cpu_canonical(cpu, linear) && cpu_canonical(cpu, linear + r->size - 1)) {
		return;
	}
	if (r->ss)
		cpu_raise_error(cpu, VECTOR_SS, 0);
	cpu_gp0(cpu);
}

// Alignment comes before paging, and before a stack address that is not canonical.
static void check_alignment(struct cpu *cpu, const struct mem_record *r, u64 linear)
{
	if (r->align && (linear & (r->align - 1u)))
		cpu_gp0(cpu);
}

FROM_TRANSLATED u64 jit_c_mem_slow(struct cpu *cpu, u64 record, u64 linear)
{
	const struct mem_record *r = &cpu->jit->mems[record];
	void *host;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	cpu->jit->stat_mem_slow++;
	jit_cook_flags(cpu, r->recipe);
	check_x87_pending(cpu, r);
	check_alignment(cpu, r, linear);
	check_canonical(cpu, r, linear);
	host = mem_host(cpu, linear, r->size, r->access & 0xff);
	if (!host) {
		cpu->jit->slow_once = true;
		unwind(cpu);
	}
	LEAVE_C(cpu);
	return (u64)host;
}

FROM_TRANSLATED u64 jit_c_slow_begin(struct cpu *cpu, u64 record, u64 linear)
{
	struct jit *jit = cpu->jit;
	const struct mem_record *r = &jit->mems[record];
	unsigned access = r->access & 0xff;
	struct slow_access *s;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	check_x87_pending(cpu, r);
	check_alignment(cpu, r, linear);
	check_canonical(cpu, r, linear);
	BUG_ON(jit->slow_active == 4);
	s = &jit->slow[jit->slow_active++];
	s->linear = linear;
	s->record = record;
	if ((jit_mode(cpu) & MODE_ALIGN) && !(access & ACCESS_SS) && r->size <= 8 && (linear & (r->size - 1)) &&
	    (r->size & (r->size - 1)) == 0)
		cpu_raise_error(cpu, VECTOR_AC, 0);
	u8 *buffer = s->buffer + (linear & 63);
	if (jit->debugging && !(access & ACCESS_SS))
		jit->debug_bits |= debug_data_match(cpu, linear, r->size, access & ACCESS_WRITE ? DEBUG_WRITE : DEBUG_READ);
	if (access & ACCESS_WRITE)
		mem_probe_write(cpu, linear, r->size, access);
	if (r->locked && (linear & 0xfff) + r->size > 4096)
		jit_split_lock(jit);
	// An x87 store that raises an unmasked exception writes nothing: let it leave what is there.
	if (!(access & ACCESS_WRITE) || (r->access & 0x100) || r->x87)
		mem_read(cpu, linear, buffer, r->size, access & ~(unsigned)ACCESS_WRITE);
	if (!jit->saved_valid) {
		memcpy(jit->saved_gpr, cpu->gpr, sizeof(jit->saved_gpr));
		jit->saved_arith = cpu->arith;
		jit->saved_valid = true;
	}
	LEAVE_C(cpu);
	return (u64)buffer;
}

FROM_TRANSLATED u64 jit_c_slow_end(struct cpu *cpu, u64 record)
{
	struct jit *jit = cpu->jit;
	const struct mem_record *r = &jit->mems[record];
	struct slow_access *s = NULL;
	u64 gpr[16];
	u32 arith;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	for (unsigned i = 0; i < jit->slow_active; i++)
		if (jit->slow[i].record == record)
			s = &jit->slow[i];
	BUG_ON(!s);
	// The write may leave for user space: then the instruction has not happened yet.
	memcpy(gpr, cpu->gpr, sizeof(gpr));
	arith = cpu->arith;
	memcpy(cpu->gpr, jit->saved_gpr, sizeof(gpr));
	cpu->arith = jit->saved_arith;
	mem_write(cpu, s->linear, s->buffer + (s->linear & 63), r->size, r->access & 0xff);
	jit_split_unlock(jit);
	memcpy(cpu->gpr, gpr, sizeof(gpr));
	cpu->arith = arith;
	LEAVE_C(cpu);
	return 0;
}

// A signal in translated code, as the guest's or the client's fault. Never returns.
FROM_TRANSLATED u64 jit_c_host_fault(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	struct block *b = jit_block_of_pc(jit, jit->fault_pc);
	struct point *p = b ? jit_point_of_pc(jit, b, jit->fault_pc) : NULL;

	ENTER_C(cpu);
	BUG_ON(!p);
	locate(cpu, p->page_offset, p->length);
	if (p->flags >> POINT_SPILLED_SHIFT)
		for (unsigned g = 0; g < 16; g++)
			if (jit_home[g] == p->flags >> POINT_SPILLED_SHIFT)
				cpu->gpr[g] = cpu->temp[3];
	jit_cook_flags(cpu, p->recipe);
	if (p->flags & POINT_FLAGS_IN_HOST)
		cpu_set_arith(cpu, jit->fault_flags);
	switch (jit->fault_trap) {
	case VECTOR_DE:
		cpu_raise(cpu, VECTOR_DE);
		break;
	case VECTOR_UD:
		cpu_ud(cpu);
		break;
	case VECTOR_GP:
		cpu_gp0(cpu);
		break;
	case VECTOR_MF:
		cpu_fpu_unload(cpu); // now, while FIP's host address can be told to be which guest address
		cpu_raise(cpu, VECTOR_MF);
		break;
	case VECTOR_XM:
		cpu_raise(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? VECTOR_XM : VECTOR_UD);
		break;
	default:
		if (jit->fault_address < 4096) { // see tlb_forget_stack(): the slow path says which fault
			jit->slow_once = true;
			unwind(cpu);
		}
		cpu->fault_hva = jit->fault_address;
		cpu_abort(cpu, CPU_EXIT_FAULT);
	}
	return 0;
}

u64 jit_guest_rip_of_host(struct cpu *cpu, u64 host_pc)
{
	struct block *b = jit_block_of_pc(cpu->jit, host_pc);
	struct point *p = b ? jit_point_of_pc(cpu->jit, b, host_pc) : NULL;

	return p ? cpu->rip_base + p->page_offset : 0;
}

// ---- the loop ----

static void accept_external(struct cpu *cpu, bool nmi, u8 vector)
{
	cpu->external.nmi = nmi;
	cpu->external.vector = vector;
	cpu->external.valid = true;
}

static void deliver_external(struct cpu *cpu)
{
	cpu->delivering = 0;
	cpu->halted = false;
	cpu->external.underway = true;
	event_deliver(cpu, cpu->external.vector, cpu->external.nmi ? EVENT_NMI : EVENT_EXTERNAL, false, 0);
	cpu->external.valid = cpu->external.underway = false;
}

// Handles requests. False: leave cpu_run() with cpu->exit.
static bool serve_requests(struct cpu *cpu)
{
	u32 request = __atomic_exchange_n(&cpu->request, 0, __ATOMIC_SEQ_CST);
	bool shadow = cpu->interrupt_shadow;

	if (request & REQ_CODE)
		jit_handle_code_requests(cpu);
	if (request & REQ_TLB_FLUSH)
		cpu_memory_map_changed(cpu);
	if (request & REQ_KICK) {
		cpu_request(cpu, request & ~(u32)(REQ_KICK | REQ_CODE | REQ_TLB_FLUSH));
		cpu->exit = CPU_EXIT_KICK;
		return false;
	}
	if ((request & REQ_TIMER) && cpu->ops->timer)
		cpu->ops->timer(cpu->opaque);
	if (request & REQ_INIT_SIPI) {
		// It may have been nothing: the others are looked at next.
		cpu_request(cpu, request & (REQ_IRQ | REQ_NMI | REQ_SMI));
		if (!cpu->ops->init_sipi(cpu->opaque)) {
			cpu->exit = CPU_EXIT_OPS;
			return false;
		}
		return true;
	}
	// Whoever takes the block away asks for all of them.
	if (cpu->guest_debug & KVM_GUESTDBG_BLOCKIRQ)
		return true;
	// Nothing but SMM itself holds an SMI back.
	if (cpu->smi_pending && !cpu->smm) {
		cpu_request(cpu, request & REQ_IRQ);
		smm_enter(cpu);
		return true;
	}
	if (cpu->nmi_pending && !cpu->nmi_masked && !shadow) {
		cpu->nmi_masked = true;
		if (__atomic_sub_fetch(&cpu->nmi_pending, 1, __ATOMIC_SEQ_CST) || (request & REQ_IRQ))
			cpu_request(cpu, REQ_IRQ);
		accept_external(cpu, true, VECTOR_NMI);
		return true;
	}
	if ((request & REQ_IRQ) || cpu->irq_wait) {
		if ((cpu->rflags & FLAG_IF) && !shadow) {
			int vector = cpu->ops->interrupt(cpu->opaque, true);

			cpu->irq_wait = 0;
			if (vector >= 0) {
				cpu_request(cpu, REQ_IRQ); // there may be another one
				accept_external(cpu, false, vector);
			}
		} else {
			cpu->irq_wait = cpu->ops->interrupt(cpu->opaque, false) >= 0;
		}
	}
	return true;
}

static void debug_trace(struct cpu *cpu)
{
	ZydisDisassembledInstruction d;
	char text[128] = "?";
	u8 bytes[15] = { 0 };
	u64 linear = cpu->rip + (cpu_64bit(cpu) ? 0 : cpu->seg[SEG_CS].base), gpa;
	u8 *page = mem_code_page(cpu, linear, &gpa);

	cpu_fpu_unload(cpu);
	if (page)
		memcpy(bytes, page + (linear & 0xfff), 4096 - (linear & 0xfff) < 15 ? 4096 - (linear & 0xfff) : 15);
	if (ZYAN_SUCCESS(ZydisDisassembleIntel(cpu_64bit(cpu) ? ZYDIS_MACHINE_MODE_LONG_64 :
		cpu->seg[SEG_CS].attributes & SEG_DB ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16,
		cpu->rip, bytes, 15, &d)))
		snprintf(text, sizeof(text), "%s", d.text);
	fprintf(stderr, "%016lx %-40s a=%lx c=%lx d=%lx b=%lx sp=%lx bp=%lx si=%lx di=%lx 8=%lx 9=%lx 10=%lx 11=%lx 12=%lx 13=%lx 14=%lx 15=%lx f=%lx ssp=%lx\n",
		cpu->rip, text, cpu->gpr[0], cpu->gpr[1], cpu->gpr[2], cpu->gpr[3], cpu->gpr[4], cpu->gpr[5],
		cpu->gpr[6], cpu->gpr[7], cpu->gpr[8], cpu->gpr[9], cpu->gpr[10], cpu->gpr[11], cpu->gpr[12],
		cpu->gpr[13], cpu->gpr[14], cpu->gpr[15], cpu_rflags(cpu), cpu->ssp);
}

static bool debug_tracing;

__attribute__((constructor)) static void look_for_tracing(void)
{
	debug_tracing = getenv("CETKVM_DEBUG_TRACE");
}

typedef u64 enter_function(struct cpu *cpu, const u8 *entry);

// Behind an instruction: what of #DB has come together. MOV SS and POP SS hold data breakpoints back
// for one instruction, and there is no single-step trap behind them.
static void debug_boundary(struct cpu *cpu, bool step)
{
	struct jit *jit = cpu->jit;

	if (cpu->mov_ss_shadow)
		return;
	if (step)
		jit->debug_bits |= DR6_BS;
	if (jit->debug_bits)
		debug_trap(cpu, jit->debug_bits);
	jit->debug_bits = 0;
}

// Runs blocks until something needs the loop.
static void run_blocks(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	u32 mode = jit_mode(cpu);
	bool step = (cpu->rflags & FLAG_TF) || (cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
	bool shadow = cpu->interrupt_shadow || cpu->mov_ss_shadow, debug = debug_begin(cpu);
	bool single = cpu->single_grain || step || shadow || debug || jit->slow_once || cpu->replay ||
		      (mode & (MODE_SINGLE | MODE_SLOWMEM));
	struct block *b;

	if (debug_tracing) {
		single = true;
		debug_trace(cpu);
	}
	if (debug) {
		debug_check_code(cpu);
		if (debug_wants_data(cpu))
			mode |= MODE_SLOWMEM;
	}
	if (jit->slow_once)
		mode |= MODE_SLOWMEM;
	if (single)
		mode |= MODE_SINGLE;
	jit->slow_once = false;
	jit->single_running = single;
	jit->slow_active = 0;
	jit->saved_valid = false;
	cpu->watch_bits = 0;
	b = jit_get_block(cpu, mode);
	enter_mode(cpu, mode);
	cpu->interrupt_shadow = cpu->mov_ss_shadow = cpu->step_canceled = false;
	if (single)
		cpu->rflags &= ~(u64)FLAG_RF;
	if (!cpu->fpu_loaded)
		cpu_fpu_load(cpu);
	cpu->watch_data = debug && debug_wants_data(cpu);
	((enter_function *)jit->enter)(cpu, jit->rx + b->code);
	ENTER_C(cpu);
	jit->debug_bits |= cpu->watch_bits;
	if (cpu->debug_taken) {
		// One #DB for both: a second one would find the handler's stack in use.
		cpu->debug_taken = false;
		if (jit->debug_bits)
			debug_deliver(cpu, jit->debug_bits);
		jit->debug_bits = 0;
	}
	cpu->watch_data = false;
	jit->single_running = false;
	cpu->replay = false;
	if (!cpu_64bit(cpu))
		cpu->rip = (u32)cpu->rip;
	if (step || jit->debug_bits)
		debug_boundary(cpu, step && !cpu->step_canceled);
}

enum cpu_exit cpu_run(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	sigjmp_buf buf;

	cpu->exit = 0;
	cpu->unwind = &buf;
	jit_running = cpu;
	__atomic_store_n(&jit->in_guest, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&jit->flush_requested, __ATOMIC_SEQ_CST))
		cpu_request(cpu, REQ_CODE);
	cpu_fpu_enter(cpu);
	if (sigsetjmp(buf, 0)) {
		ENTER_C(cpu);
		jit->single_running = cpu->watch_data = false;
		if (cpu->event.valid) {
			jit->debug_bits = 0;
			// An exception in an interrupt's delivery takes its place: the two are handled serially.
			if (cpu->external.underway)
				cpu->external.valid = cpu->external.underway = false;
		}
	}
	while (!cpu->exit) {
		if (cpu->event.valid) {
			cpu->halted = false;
			cpu->replay = false;
			if (!event_deliver_pending(cpu)) {
				cpu->exit = CPU_EXIT_SHUTDOWN;
				break;
			}
			continue;
		}
		if (cpu->external.valid && (cpu->external.underway || (!jit->slow_once && !cpu->replay))) {
			deliver_external(cpu);
			cpu->replay = false;
			continue;
		}
		if ((__atomic_load_n(&cpu->request, __ATOMIC_RELAXED) || (cpu->irq_wait && (cpu->rflags & FLAG_IF))) && !jit->slow_once &&
		    !cpu->replay) {
			cpu->delivering = 0;
			if (!serve_requests(cpu))
				break;
			if (cpu->event.valid || cpu->external.valid)
				continue;
		}
		if (cpu->halted) {
			cpu->exit = CPU_EXIT_HLT;
			break;
		}
		cpu->delivering = 0;
		run_blocks(cpu);
	}
	jit->stat_exits++;
	cpu_fpu_leave(cpu);
	__atomic_store_n(&jit->in_guest, 0, __ATOMIC_SEQ_CST);
	jit_running = NULL;
	cpu->unwind = NULL;
	return cpu->exit;
}
