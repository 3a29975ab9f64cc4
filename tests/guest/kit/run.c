// SPDX-License-Identifier: MIT
// run(): enters a piece of code in a chosen state, comes back at its first exception.
#include "kit.h"

struct outcome outcome;
u64 kit_cr4;
u64 *kit_frame_alias;
bool kit_cet_present;
u64 kit_ssp_table[8];
bool has_shstk, has_ibt;

extern void kit_enter(struct run *r);

_Static_assert(offsetof(struct run, rip) == 128 && offsetof(struct run, s_cet) == 160 &&
	offsetof(struct run, cr4) == 216 && offsetof(struct run, cet) == 224 &&
	offsetof(struct run, outer_ssp) == 232 && offsetof(struct run, no_setssbsy) == 240 &&
	offsetof(struct run, late_pl0_ssp) == 248,
	"start.S knows these");
_Static_assert(offsetof(struct outcome, vector) == 128 && offsetof(struct outcome, cr2) == 184 &&
	offsetof(struct outcome, s_cet) == 192 && offsetof(struct outcome, cr4) == 256 &&
	offsetof(struct outcome, dr6) == 264 && offsetof(struct outcome, ds) == 272,
	"start.S knows these");

struct run run_default(const void *code)
{
	struct run r;

	memset(&r, 0, sizeof(r));
	r.rip = ADDR(code);
	r.rflags = FL_FIXED;
	r.cs = CS64;
	r.ss = DS0;
	r.gpr[RSP] = stack_top(0);
	r.pl0_ssp = SS_TOKEN;
	r.pl3_ssp = USS_TOP;
	r.int_ssp_tab = ADDR(kit_ssp_table);
	r.outer_ssp = SS_BASE + 0x1ff8;
	return r;
}

struct run run_user(const void *code)
{
	struct run r = run_default(code);

	r.cs = UCS64;
	r.ss = UDS;
	return r;
}

struct run run_ss0(const void *code)
{
	struct run r = run_default(code);

	r.cet = 1;
	r.s_cet = CET_SHSTK_EN;
	return r;
}

struct run run_ss3(const void *code)
{
	struct run r = run_user(code);

	r.cet = 1;
	r.u_cet = CET_SHSTK_EN;
	return r;
}

struct run run_ibt0(const void *code)
{
	struct run r = run_default(code);

	r.cet = 1;
	r.s_cet = CET_ENDBR_EN;
	return r;
}

struct run run_ibt3(const void *code)
{
	struct run r = run_user(code);

	r.cet = 1;
	r.u_cet = CET_ENDBR_EN;
	return r;
}

struct outcome *run(struct run *r)
{
	u64 *frame = ss_mem(IST_TOKEN);

	/* The interrupt shadow stacks: free tokens, nothing below. */
	memset(&outcome, 0, sizeof(outcome));
	*frame = IST_TOKEN;
	frame[-1] = frame[-2] = frame[-3] = 0;
	*ss_mem(IST2_TOKEN) = IST2_TOKEN;
	if (r->int_ssp_tab == ADDR(kit_ssp_table)) {
		kit_ssp_table[1] = IST_TOKEN;
		kit_ssp_table[2] = IST2_TOKEN;
	}
	if (r->pl0_ssp == SS_TOKEN)
		*ss_mem(SS_TOKEN) = SS_TOKEN;
	kit_frame_alias = ss_mem(SS_TOKEN - 24);
	if (kit_cet_present) {
		wrmsr(MSR_U_CET, r->u_cet);
		if (has_shstk) {
			wrmsr(MSR_PL0_SSP, r->pl0_ssp);
			wrmsr(MSR_PL1_SSP, r->pl1_ssp);
			wrmsr(MSR_PL2_SSP, r->pl2_ssp);
			wrmsr(MSR_PL3_SSP, r->pl3_ssp);
			wrmsr(MSR_INT_SSP_TAB, r->int_ssp_tab);
		}
	}
	kit_enter(r);
	if (kit_cet_present) {
		outcome.u_cet = rdmsr(MSR_U_CET);
		wrmsr(MSR_U_CET, 0);
		if (has_shstk)
			outcome.pl3_ssp = rdmsr(MSR_PL3_SSP);
	}
	if (outcome.vector == DF)
		frame = ss_mem(IST2_TOKEN);
	for (int i = 0; i < 4; i++)
		outcome.frame[i] = frame[i - 3];
	outcome.ssp = (outcome.cs & 3) == 3 ? outcome.pl3_ssp : outcome.frame[0];
	return &outcome;
}

CODE(code_wrmsr, "wrmsr");
CODE(code_rdmsr, "rdmsr");
CODE(code_cr0, "mov %rax, %cr0");
CODE(code_cr4, "mov %rax, %cr4");

bool wrmsr_safe(u32 msr, u64 value)
{
	struct run r = run_default(code_wrmsr);

	r.gpr[RCX] = msr;
	r.gpr[RAX] = (u32)value;
	r.gpr[RDX] = value >> 32;
	/* run() itself writes these: take it that the test does not want its value back. */
	return run(&r)->vector == DONE;
}

bool rdmsr_safe(u32 msr, u64 *value)
{
	struct run r = run_default(code_rdmsr);

	r.gpr[RCX] = msr;
	if (run(&r)->vector != DONE)
		return false;
	*value = (u32)outcome.gpr[RAX] | outcome.gpr[RDX] << 32;
	return true;
}

bool write_cr0_safe(u64 value)
{
	struct run r = run_default(code_cr0);

	r.gpr[RAX] = value;
	return run(&r)->vector == DONE;
}

bool write_cr4_safe(u64 value)
{
	struct run r = run_default(code_cr4);

	r.gpr[RAX] = value;
	return run(&r)->vector == DONE;
}
