// SPDX-License-Identifier: MIT
// Control-flow Enforcement Technology: every rule, once. Control transfers elsewhere call in here.
//
// Invariants: a primitive raises before it changes struct cpu. Memory is another matter: a token
// taken stays busy when a later shadow-stack push faults, as on silicon.
// Each piece of state has one home: U_CET, S_CET (trackers included), PLx_SSP, INT_SSP_TAB, SSP.
// SDM: "Control-flow Enforcement Technology (CET)": "Shadow Stacks", "Supervisor Shadow Stack
// Token", "Indirect Branch Tracking", "Legacy Code Page Bitmap"; instruction pages of the CET
// instructions and of CALL, RET, INT n, IRET, SYSCALL, SYSENTER, SYSRET, SYSEXIT.
// Known deviation: the 4 bytes of zero written below a misaligned SSP before a far frame are not
// written separately when SSP is aligned, for then the frame covers them.
#include "cpu/cet.h"

#include "cpu/mem.h"
#include "cpu/segment.h"

#define TOKEN_BUSY 1ull // supervisor shadow stack token
#define TOKEN_MODE_64 1ull // shadow-stack-restore and previous-SSP tokens
#define TOKEN_PREVIOUS 2ull // previous-SSP token

bool cet_shadow_stack_enabled(const struct cpu *cpu, unsigned cpl)
{
	return cet_shadow_stack_at(cpu, cpl) && !cpu_v86(cpu);
}

static bool endbranch_at(const struct cpu *cpu, unsigned cpl)
{
	return cpu->cr4 & CR4_CET && cpu->cr0 & CR0_PE &&
	       (cpl == 3 ? cpu->u_cet : cpu->s_cet) & CET_ENDBR_EN;
}

bool cet_endbranch_enabled(const struct cpu *cpu, unsigned cpl)
{
	return endbranch_at(cpu, cpl) && !cpu_v86(cpu);
}

void cet_cp(struct cpu *cpu, unsigned code, u64 found, u64 wanted)
{
	trace_cp(cpu, code, found, wanted);
	cpu_raise_error(cpu, VECTOR_CP, code);
}

// ---- indirect branch tracking ----

bool cet_waiting(const struct cpu *cpu)
{
	return cet_endbranch_enabled(cpu, cpu->cpl) &&
	       (cpu->cpl == 3 ? cpu->u_cet : cpu->s_cet) & CET_WAIT;
}

void cet_track_indirect(struct cpu *cpu, unsigned cpl, bool near_indirect, bool notrack)
{
	u64 *msr = cet_msr(cpu, cpl);

	if (!cet_endbranch_enabled(cpu, cpl))
		return;
	if (near_indirect) {
		if (*msr & CET_SUPPRESS || (notrack && *msr & CET_NO_TRACK_EN))
			return;
	} else {
		*msr &= ~(u64)CET_SUPPRESS;
	}
	*msr |= CET_WAIT;
	cpu->last_branch_from = cpu->rip;
}

void cet_endbranch(struct cpu *cpu, bool endbr64)
{
	if (cet_endbranch_enabled(cpu, cpu->cpl) && endbr64 == cpu_64bit(cpu))
		*cet_msr(cpu, cpu->cpl) &= ~(u64)(CET_WAIT | CET_SUPPRESS);
}

// Legacy code page bitmap: one bit a 4-KiB page of linear addresses.
static bool legacy_page(struct cpu *cpu, u64 msr)
{
	u64 linear = cpu_64bit(cpu) ? cpu->rip : (u32)(cpu->seg[SEG_CS].base + cpu->rip);
	u64 index = (linear & (~0ull >> (64 - cpu->linear_bits))) >> 15;
	u64 address = (msr & ~0xfffull) + index;

	if (cpu_long_mode(cpu) && !cpu_canonical(cpu, address))
		cpu_gp0(cpu);
	return mem_read_n(cpu, system_linear(cpu, address), 1, ACCESS_READ | cpu_access_of_cpl(cpu)) >>
		       (linear >> 12 & 7) & 1;
}

void cet_missing_endbranch(struct cpu *cpu)
{
	u64 *msr = cet_msr(cpu, cpu->cpl);

	if (!(*msr & CET_LEG_IW_EN) || !legacy_page(cpu, *msr))
		cet_cp(cpu, CP_ENDBRANCH, 0, 0);
	*msr &= ~(u64)CET_WAIT;
	if (!(*msr & CET_SUPPRESS_DIS))
		*msr |= CET_SUPPRESS;
}

// ---- shadow-stack accesses ----

static unsigned ss_access(unsigned cpl)
{
	return ACCESS_SS | (cpl == 3 ? ACCESS_USER : 0);
}

// SSP may have been moved out of the canonical range; nothing but the access itself checks.
static void check_canonical(struct cpu *cpu, u64 address)
{
	if (__builtin_expect(!cpu_canonical(cpu, address), 0))
		cpu_gp0(cpu);
}

static u64 ss_load(struct cpu *cpu, u64 address, unsigned size, unsigned access)
{
	check_canonical(cpu, address);
	return mem_read_n(cpu, address, size, ACCESS_READ | access);
}

static u64 ss_load8(struct cpu *cpu, u64 address, unsigned access)
{
	return ss_load(cpu, address, 8, access);
}

static void ss_store(struct cpu *cpu, u64 address, u64 value, unsigned size, unsigned access)
{
	check_canonical(cpu, address);
	mem_write_n(cpu, address, value, size, ACCESS_WRITE | access);
}

// Locked exchange of a token; always a write access. true: the expected value was there.
static bool ss_exchange(struct cpu *cpu, u64 address, u64 expected, u64 desired, unsigned access,
			u64 *found)
{
	u64 old;

	check_canonical(cpu, address);
	old = mem_cmpxchg64(cpu, address, expected, desired, ACCESS_WRITE | access);

	if (found)
		*found = old;
	return old == expected;
}

// Frees the supervisor token at `address` if it is a busy one; anything else is left alone.
static void free_token(struct cpu *cpu, u64 address, unsigned access)
{
	ss_exchange(cpu, address, address | TOKEN_BUSY, address, access, NULL);
}

// An address of the shadow stack, which outside 64-bit mode has 32 bits.
static u64 ss_address(const struct cpu *cpu, u64 address)
{
	return cpu_64bit(cpu) ? address : (u32)address;
}

void cet_push(struct cpu *cpu, u64 value, unsigned size)
{
	u64 ssp = ss_address(cpu, cpu->ssp - size);

	ss_store(cpu, ssp, value, size, ss_access(cpu->cpl));
	cpu->ssp = ssp;
}

u64 cet_pop_check(struct cpu *cpu, u64 expected, unsigned size)
{
	u64 ssp = ss_address(cpu, cpu->ssp), found;

	found = ss_load(cpu, ssp, size, ss_access(cpu->cpl));
	if (found != expected)
		cet_cp(cpu, CP_NEAR_RET, found, expected);
	return ss_address(cpu, ssp + size);
}

// ---- far frames ----

// The three slots of a far frame, below `ssp` aligned down to 8. Returns the new SSP.
static u64 push_far_frame(struct cpu *cpu, u64 ssp, u16 cs, u64 lip, u64 old_ssp, unsigned access)
{
	const u64 slots[] = { cs, lip, old_ssp };

	if (ssp & 7)
		ss_store(cpu, ssp - 4, 0, 4, access);
	ssp &= ~7ull;
	for (unsigned i = 0; i < 3; i++) {
		ssp = cpu_long_mode(cpu) ? ssp - 8 : (u32)(ssp - 8);
		ss_store(cpu, ssp, slots[i], 8, access);
	}
	return ssp;
}

// Reads and compares the far frame at cpu->ssp, which must be aligned. Returns the previous SSP.
static u64 check_far_frame(struct cpu *cpu, u16 cs, u64 lip)
{
	unsigned access = ss_access(cpu->cpl);
	u64 ssp = cpu->ssp, found_cs, found_lip, previous;

	found_cs = ss_load8(cpu, ssp + 16, access);
	found_lip = ss_load8(cpu, ssp + 8, access);
	previous = ss_load8(cpu, ssp, access);
	if (found_cs != cs)
		cet_cp(cpu, CP_FAR_RET, found_cs, cs);
	if (found_lip != lip)
		cet_cp(cpu, CP_FAR_RET, found_lip, lip);
	if (previous & 3)
		cet_cp(cpu, CP_FAR_RET, previous, previous & ~3ull);
	return previous;
}

static void check_ssp_for_target(struct cpu *cpu, u64 ssp, bool wide)
{
	if (wide ? !cpu_canonical(cpu, ssp) : ssp >> 32)
		cpu_gp0(cpu);
}

void cet_check_width(struct cpu *cpu, bool wide)
{
	if (!wide && cpu->ssp >> 32 && cet_shadow_stack_enabled(cpu, cpu->cpl))
		cpu_gp0(cpu);
}

// What PL3_SSP becomes: SSP made canonical where linear addresses have more than 32 bits.
static u64 ssp_to_save(const struct cpu *cpu)
{
	unsigned shift = 64 - cpu->linear_bits;

	return cpu_long_mode(cpu) ? (u64)((s64)(cpu->ssp << shift) >> shift) : cpu->ssp;
}

// Switches to the supervisor shadow stack whose token is at `ssp`. `frame`: a far frame follows, and
// may not be torn from the token: both are in one aligned block of 32 bytes. (The pseudocode of the
// instruction pages has no such condition, the chapter on tokens has.)
static void acquire_token(struct cpu *cpu, u64 ssp, bool wide, bool frame, unsigned access, u32 ext)
{
	if (ssp & 7 || (!wide && ssp >> 32))
		cpu_raise_error(cpu, VECTOR_GP, ext);
	if (frame && (ssp & ~0x1full) != ((ssp - 24) & ~0x1full))
		cpu_raise_error(cpu, VECTOR_GP, ext);
	if (!ss_exchange(cpu, ssp, ssp, ssp | TOKEN_BUSY, access, NULL))
		cpu_raise_error(cpu, VECTOR_GP, ext);
}

void cet_enter(struct cpu *cpu, unsigned new_cpl, unsigned ist, bool wide, u16 cs, u64 lip, u32 ext)
{
	bool save, same = new_cpl == cpu->cpl;
	// User code has its own shadow stack, whose pointer is in PL3_SSP: no frame.
	bool frame = same || cpu->cpl != 3;
	unsigned access;
	u64 ssp;

	if (!(cpu->cr4 & CR4_CET))
		return;
	save = cpu->cpl == 3 && !same && cet_shadow_stack_enabled(cpu, 3);
	if (!cet_shadow_stack_at(cpu, new_cpl)) {
		if (save)
			cpu->pl_ssp[3] = ssp_to_save(cpu);
		return;
	}
	access = ss_access(new_cpl);
	if (same && !ist) {
		if (!wide && cpu->ssp >> 32)
			cpu_raise_error(cpu, VECTOR_GP, ext);
		cpu->ssp = push_far_frame(cpu, cpu->ssp, cs, lip, cpu->ssp, access);
		return;
	}
	if (ist) {
		u64 entry = cpu->int_ssp_tab + 8 * ist;

		if (!cpu_canonical(cpu, entry))
			cpu_raise_error(cpu, VECTOR_GP, ext);
		ssp = system_read8(cpu, entry);
	} else {
		ssp = cpu->pl_ssp[new_cpl];
	}
	if (wide && !cpu_canonical(cpu, ssp))
		cpu_raise_error(cpu, VECTOR_GP, ext);
	acquire_token(cpu, ssp, wide, frame, access, ext);
	if (frame)
		ssp = push_far_frame(cpu, ssp, cs, lip, cpu->ssp, access);
	if (save)
		cpu->pl_ssp[3] = ssp_to_save(cpu);
	cpu->ssp = ssp;
}

void cet_return(struct cpu *cpu, unsigned new_cpl, bool wide, u16 cs, u64 lip, bool iret)
{
	u64 position = cpu->ssp, next;
	bool on;

	if (!(cpu->cr4 & CR4_CET))
		return;
	on = cet_shadow_stack_enabled(cpu, cpu->cpl);
	if (on && position & 7)
		cet_cp(cpu, CP_FAR_RET, position, position & ~7ull);
	if (new_cpl == cpu->cpl) {
		if (!on)
			return;
		next = check_far_frame(cpu, cs, lip);
		check_ssp_for_target(cpu, next, wide);
		position += 24;
		// An event through an IST entry switched stacks on the same level and took a token.
		if (iret && cpu_long_mode(cpu) && next != position)
			free_token(cpu, position, ss_access(cpu->cpl));
		cpu->ssp = next;
		return;
	}
	next = cpu->pl_ssp[3];
	if (on && new_cpl != 3) {
		next = check_far_frame(cpu, cs, lip);
		position += 24;
	}
	if (cet_shadow_stack_at(cpu, new_cpl))
		check_ssp_for_target(cpu, next, wide);
	else
		next = cpu->ssp;
	if (on)
		free_token(cpu, position, ACCESS_SS);
	cpu->ssp = next;
}

void cet_return_v86(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_CET))
		return;
	if (cpu->u_cet & (CET_SHSTK_EN | CET_ENDBR_EN))
		cpu_gp0(cpu);
	if (!cet_shadow_stack_enabled(cpu, cpu->cpl))
		return;
	if (cpu->ssp & 7)
		cet_cp(cpu, CP_FAR_RET, cpu->ssp, cpu->ssp & ~7ull);
	free_token(cpu, cpu->ssp, ACCESS_SS);
}

void cet_syscall(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_CET))
		return;
	if (cet_shadow_stack_enabled(cpu, cpu->cpl))
		cpu->pl_ssp[3] = ssp_to_save(cpu);
	if (cet_shadow_stack_at(cpu, 0))
		cpu->ssp = 0;
	if (endbranch_at(cpu, 0)) {
		cpu->s_cet = (cpu->s_cet & ~(u64)CET_SUPPRESS) | CET_WAIT;
		cpu->last_branch_from = cpu->rip;
	}
}

void cet_sysret(struct cpu *cpu)
{
	if (cet_shadow_stack_at(cpu, 3))
		cpu->ssp = cpu->pl_ssp[3];
}

// ---- task switches ----

void cet_task_check(struct cpu *cpu, enum task_cause cause, u32 error)
{
	if (cause == TASK_IRET && cet_shadow_stack_enabled(cpu, cpu->cpl) && cpu->ssp & 7)
		cpu_raise_error(cpu, VECTOR_TS, error);
}

void cet_task_leave(struct cpu *cpu, enum task_cause cause, unsigned new_cpl, u16 cs, u64 lip,
		    struct cet_task *task)
{
	unsigned access = ss_access(cpu->cpl);
	u64 position = cpu->ssp;

	*task = (struct cet_task){ .cause = cause, .previous = cpu->pl_ssp[3] };
	if (!cet_shadow_stack_enabled(cpu, cpu->cpl) || cause == TASK_JMP)
		return;
	if (cause != TASK_IRET) {
		// As for other transfers inwards: the user's SSP goes to PL3_SSP, not into a frame.
		if (cpu->cpl == 3 && new_cpl < 3) {
			cpu->pl_ssp[3] = cpu->ssp;
			return;
		}
		task->frame = true;
		task->cs = cs;
		task->lip = lip;
		task->previous = cpu->ssp;
		return;
	}
	if (new_cpl == cpu->cpl || new_cpl < 3) {
		task->frame = true;
		task->cs = ss_load8(cpu, position + 16, access);
		task->lip = ss_load8(cpu, position + 8, access);
		task->previous = ss_load8(cpu, position, access);
		position += 24;
	}
	free_token(cpu, position, access);
	cpu->ssp = 0;
}

void cet_task_enter(struct cpu *cpu, const struct cet_task *task, u64 ssp, u32 error)
{
	unsigned access = ss_access(cpu->cpl);
	bool on = cet_shadow_stack_at(cpu, cpu->cpl);

	if (task->cause == TASK_IRET) {
		u64 lip = (u32)(cpu->seg[SEG_CS].base + cpu->rip);

		if (task->frame && task->cs != cpu->seg[SEG_CS].selector)
			cet_cp(cpu, CP_FAR_RET, task->cs, cpu->seg[SEG_CS].selector);
		if (task->frame && task->lip != lip)
			cet_cp(cpu, CP_FAR_RET, task->lip, lip);
		if (on && (task->previous & 3 || task->previous >> 32))
			cet_cp(cpu, CP_FAR_RET, task->previous, (u32)task->previous & ~3u);
		if (on)
			cpu->ssp = task->previous;
		return;
	}
	if (!on)
		return;
	if (ssp & 7 || !ss_exchange(cpu, ssp, ssp, ssp | TOKEN_BUSY, access, NULL))
		cpu_raise_error(cpu, VECTOR_TS, error);
	cpu->ssp = ssp;
	if (task->frame)
		cpu->ssp = push_far_frame(cpu, ssp, task->cs, task->lip, task->previous, access);
}

// ---- instructions ----

static void require_shadow_stack(struct cpu *cpu)
{
	if (!cet_shadow_stack_enabled(cpu, cpu->cpl))
		cpu_ud(cpu);
}

static u64 mode_bit(const struct cpu *cpu)
{
	return cpu_64bit(cpu) ? TOKEN_MODE_64 : 0;
}

static void set_arith_cf(struct cpu *cpu, bool cf)
{
	cpu_set_arith(cpu, cf ? FLAG_CF : 0);
}

static void cet_rdssp(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->mnemonic == ZYDIS_MNEMONIC_RDSSPQ ? 8 : 4;

	if (cet_shadow_stack_enabled(cpu, cpu->cpl))
		gpr_write(cpu, insn->op[0].reg, size, cpu->ssp);
}

static void cet_incssp(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->mnemonic == ZYDIS_MNEMONIC_INCSSPQ ? 8 : 4;
	unsigned count = gpr_read(cpu, insn->op[0].reg, 1), access = ss_access(cpu->cpl);
	u64 ssp;

	require_shadow_stack(cpu);
	ssp = ss_address(cpu, cpu->ssp);
	// Touching both ends keeps SSP from jumping over a page which is no shadow stack.
	ss_load(cpu, ssp, size, access);
	if (count > 1)
		ss_load(cpu, ss_address(cpu, ssp + (u64)size * (count - 1)), size, access);
	cpu->ssp = ss_address(cpu, ssp + (u64)size * count);
}

static void cet_saveprevssp(struct cpu *cpu, const struct insn *insn)
{
	unsigned access = ss_access(cpu->cpl);
	u64 ssp, token, old;
	bool hole = cpu->arith >> 8 & FLAG_CF;

	require_shadow_stack(cpu);
	ssp = cpu->ssp;
	if (ssp & 7)
		cpu_gp0(cpu);
	token = ss_load8(cpu, ssp, access);
	ssp += 8;
	// RSTORSSP left CF set when the shadow stack had been padded: never in 64-bit mode.
	if (hole) {
		if (cpu_64bit(cpu))
			cpu_gp0(cpu);
		if (ss_load(cpu, ss_address(cpu, ssp), 4, access))
			cpu_gp0(cpu);
		ssp += 4;
	}
	if (!(token & TOKEN_PREVIOUS) || (!cpu_64bit(cpu) && token >> 32))
		cpu_gp0(cpu);
	old = token & ~3ull;
	ss_store(cpu, ss_address(cpu, old - 4), 0, 4, access);
	ss_store(cpu, ss_address(cpu, (old & ~7ull) - 8), old | mode_bit(cpu), 8, access);
	cpu->ssp = ss_address(cpu, ssp);
}

static void cet_rstorssp(struct cpu *cpu, const struct insn *insn)
{
	unsigned access = ss_access(cpu->cpl);
	u64 address, token, old;
	bool valid;

	require_shadow_stack(cpu);
	address = insn_linear(cpu, insn, 8, true);
	if (address & 7)
		cpu_gp0(cpu);
	// The checks depend on the token's value, which another processor may change: try until the
	// value judged is the value exchanged. The first look is a write access already.
	token = mem_cmpxchg64(cpu, address, 0, 0, ACCESS_WRITE | access);
	for (;;) {
		valid = (token & 3) == mode_bit(cpu) && (cpu_64bit(cpu) || !(token >> 32)) &&
			(((token & ~1ull) - 8) & ~7ull) == address;
		old = mem_cmpxchg64(cpu, address, token,
				    valid ? cpu->ssp | mode_bit(cpu) | TOKEN_PREVIOUS : token,
				    ACCESS_WRITE | access);
		if (old == token)
			break;
		token = old;
	}
	if (!valid)
		cet_cp(cpu, CP_RSTORSSP, token, (address + 8) | mode_bit(cpu));
	cpu->ssp = address;
	set_arith_cf(cpu, token >> 2 & 1);
}

static void write_shadow_stack(struct cpu *cpu, const struct insn *insn, unsigned access)
{
	unsigned size = insn->op[1].size;
	u64 address = insn_linear(cpu, insn, size, true);

	if (address & (size - 1))
		cpu_gp0(cpu);
	ss_store(cpu, address, insn_read(cpu, insn, 1), size, access);
}

static void cet_wrss(struct cpu *cpu, const struct insn *insn)
{
	require_shadow_stack(cpu);
	if (!(*cet_msr(cpu, cpu->cpl) & CET_WRSS_EN))
		cpu_ud(cpu);
	write_shadow_stack(cpu, insn, ss_access(cpu->cpl));
}

static void cet_wruss(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu->cr4 & CR4_CET) || !cpu_protected(cpu) || cpu_v86(cpu))
		cpu_ud(cpu);
	if (cpu->cpl)
		cpu_gp0(cpu);
	write_shadow_stack(cpu, insn, ACCESS_SS | ACCESS_USER);
}

static void require_supervisor_shadow_stack(struct cpu *cpu)
{
	if (cpu_v86(cpu) || !cet_shadow_stack_at(cpu, 0))
		cpu_ud(cpu);
	if (cpu->cpl)
		cpu_gp0(cpu);
}

static void cet_setssbsy(struct cpu *cpu, const struct insn *insn)
{
	u64 ssp, found;

	require_supervisor_shadow_stack(cpu);
	ssp = cpu->pl_ssp[0];
	if (ssp & 7)
		cpu_gp0(cpu);
	if (!ss_exchange(cpu, ssp, ssp, ssp | TOKEN_BUSY, ACCESS_SS, &found))
		cet_cp(cpu, CP_SETSSBSY, found, ssp);
	cpu->ssp = ssp;
}

static void cet_clrssbsy(struct cpu *cpu, const struct insn *insn)
{
	bool valid;
	u64 address;

	require_supervisor_shadow_stack(cpu);
	address = insn_linear(cpu, insn, 8, true);
	if (address & 7)
		cpu_gp0(cpu);
	valid = ss_exchange(cpu, address, address | TOKEN_BUSY, address, ACCESS_SS, NULL);
	set_arith_cf(cpu, !valid);
	cpu->ssp = 0;
}

// RDSSP is one of the reserved NOPs where shadow stacks are unknown.
const struct insn_row rows_cet[] = {
	{ ZYDIS_MNEMONIC_RDSSPD, INSN_C, 0, 0, cet_rdssp },
	{ ZYDIS_MNEMONIC_RDSSPQ, INSN_C, 0, 0, cet_rdssp },
	{ ZYDIS_MNEMONIC_INCSSPD, INSN_C, 0, FEATURE_SHSTK, cet_incssp },
	{ ZYDIS_MNEMONIC_INCSSPQ, INSN_C, 0, FEATURE_SHSTK, cet_incssp },
	{ ZYDIS_MNEMONIC_SAVEPREVSSP, INSN_C, 0, FEATURE_SHSTK, cet_saveprevssp },
	{ ZYDIS_MNEMONIC_RSTORSSP, INSN_C, 0, FEATURE_SHSTK, cet_rstorssp },
	{ ZYDIS_MNEMONIC_WRSSD, INSN_C, 0, FEATURE_SHSTK, cet_wrss },
	{ ZYDIS_MNEMONIC_WRSSQ, INSN_C, 0, FEATURE_SHSTK, cet_wrss },
	{ ZYDIS_MNEMONIC_WRUSSD, INSN_C, 0, FEATURE_SHSTK, cet_wruss },
	{ ZYDIS_MNEMONIC_WRUSSQ, INSN_C, 0, FEATURE_SHSTK, cet_wruss },
	{ ZYDIS_MNEMONIC_SETSSBSY, INSN_C, 0, FEATURE_SHSTK, cet_setssbsy },
	{ ZYDIS_MNEMONIC_CLRSSBSY, INSN_C, 0, FEATURE_SHSTK, cet_clrssbsy },
	{ 0 },
};
