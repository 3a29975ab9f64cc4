// SPDX-License-Identifier: MIT
// Where to go on: what the current state makes of code (the mode), the block at an address, and the caches
// of jumps that lead there without a look-up.
//
// A cached jump is good for one linear address in one mode per privilege class; jit_code.c forgets them
// when blocks or translations of addresses go.
#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/fpu.h"
#include "cpu/jit.h"
#include "cpu/mem.h"
#include "cpu/system.h"

#include <linux/kvm.h>

// ---- breakpoints ----

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
bool jit_debug_begin(struct cpu *cpu)
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

// The code page behind the one that holds `linear`, where the instruction at cpu->rip goes on. The limit of
// CS comes before the page's own faults.
u8 *jit_next_code_page(struct cpu *cpu, u64 linear, u64 *gpa)
{
	u64 next = (linear & ~0xfffull) + 4096;
	u8 *page;

	if (!cpu_64bit(cpu)) {
		if (cpu->rip + (4096 - (linear & 0xfff)) > cpu->seg[SEG_CS].limit)
			cpu_gp0(cpu);
		next = (u32)next;
	}
	page = mem_code_page(cpu, next, gpa);
	if (!page)
		cpu_abort(cpu, CPU_EXIT_EMULATION);
	*gpa &= ~0xfffull;
	return page;
}

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
		jit_next_code_page(cpu, linear, &gpa2);
		if (b->dead || gpa2 != b->gpa2)
			b->dead = true, b = NULL;
	}
	if (!b) {
		cpu_fpu_unload(cpu);
		b = jit_translate(cpu, page, gpa, mode);
	}
	// The limit of CS is no part of a block's key, and no jump leads to such a block but by here: where it
	// would go too far, one instruction at a time.
	if (!MODE_64(mode) && !(mode & MODE_FLAT_CS) && cpu->rip + b->length - 1 > cpu->seg[SEG_CS].limit) {
		if (mode & MODE_SINGLE)
			cpu_gp0(cpu);
		return jit_get_block(cpu, mode | MODE_SINGLE);
	}
	return b;
}

// Jumps by address are cached for one mode per privilege class.
void jit_enter_mode(struct cpu *cpu, u32 mode)
{
	struct jit *jit = cpu->jit;
	unsigned class = MODE_CPL_OF(mode) == 3;

	if (jit->jump_mode[class] == mode || (mode & (MODE_WAIT | MODE_SINGLE | MODE_SLOWMEM)))
		return;
	jit_empty_jumps(cpu, class);
	jit->jump_mode[class] = mode;
}

u64 jit_block_entry(struct jit *jit, const struct block *b)
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

bool jit_must_leave(struct cpu *cpu)
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
	jit_enter_mode(cpu, mode);
	if (slot->rip == cpu->rip && jit->jump_mode[class] == mode) {
		cpu->rip_base = cpu->rip & ~0xfffull;
		entry = slot->entry;
	} else {
		struct block *b = jit_get_block(cpu, mode);

		if (!b->endbr_entry)
			return 0;
		entry = jit_block_entry(jit, b) + b->endbr_entry;
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
u64 jit_go_on(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	unsigned class = cpu->cpl == 3;
	u32 mode;
	struct block *b;
	struct jump_entry *slot;

	if (jit_must_leave(cpu))
		return 0;
	mode = jit_mode(cpu);
	if ((mode & (MODE_SINGLE | MODE_SLOWMEM)) || debug_alone(cpu))
		return 0;
	if (mode & MODE_WAIT) {
		u64 entry = go_on_behind_endbr(cpu, mode);

		if (entry)
			return entry;
	}
	jit_enter_mode(cpu, mode);
	slot = jump_slot(cpu, class, cpu->rip);
	if (jit->jump_mode[class] == mode && (slot->rip == cpu->rip || swap_victim(cpu, slot, class))) {
		cpu->rip_base = cpu->rip & ~0xfffull;
		LEAVE_C(cpu);
		return slot->entry;
	}
	b = jit_get_block(cpu, mode);
	if (may_cache_jump(cpu, b, mode))
		cache_jump(cpu, slot, class, jit_block_entry(jit, b));
	LEAVE_C(cpu);
	return jit_block_entry(jit, b);
}
