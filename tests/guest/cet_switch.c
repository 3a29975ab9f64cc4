// SPDX-License-Identifier: MIT
// Switching shadow stacks: RSTORSSP and SAVEPREVSSP, their tokens, in 64-bit and 32-bit code.
#include "kit.h"

CODE(rstorssp, "rstorssp (%rdi); pushfq; pop %rcx; rdsspq %rbx");
CODE(rstor_save, "rstorssp (%rdi); saveprevssp; rdsspq %rbx");
CODE(inc_rstor_save, "incsspd %eax; rstorssp (%rdi); saveprevssp; rdsspq %rbx");
CODE(inc_rstor, "incsspd %eax; rstorssp (%rdi); pushfq; pop %rcx; rdsspq %rbx");
CODE(save, "saveprevssp; rdsspq %rbx");
CODE(stc_save, "stc; saveprevssp; rdsspq %rbx");
CODE(there_and_back, "rstorssp (%rdi); saveprevssp; rstorssp (%rsi); saveprevssp; rdsspq %rbx");
CODE32(rstorssp32, "rstorssp (%edi); pushf; pop %ecx; rdsspd %ebx");
CODE32(rstor_save32, "rstorssp (%edi); saveprevssp; rdsspd %ebx");
CODE32(stc_save32, "stc; saveprevssp; rdsspd %ebx");
CODE32(save32, "clc; saveprevssp; rdsspd %ebx");

#define OTHER (USS_BASE + 0x2ff8)

static struct run with_token(const void *code, u64 token)
{
	struct run r = run_ss3(code);

	*ss_mem(OTHER) = token;
	r.gpr[RDI] = OTHER;
	return r;
}

static void test_rstorssp(void)
{
	struct run r = with_token(rstorssp, (OTHER + 8) | 1);

	r.rflags |= FL_ARITH;
	run(&r);
	CHECK_DONE("RSTORSSP with a restore token");
	CHECK_EQ(outcome.gpr[RBX], OTHER, "RSTORSSP: SSP is the token's address");
	CHECK_EQ(*ss_mem(OTHER), USS_TOP | 3, "RSTORSSP leaves a previous-SSP token: old SSP, mode 1, bit 1");
	CHECK_EQ(outcome.gpr[RCX] & FL_ARITH, 0, "RSTORSSP: CF is token bit 2, the others 0");

	/* A token that goes to an address with bit 2: there is a four-byte hole. */
	r = with_token(rstorssp, (OTHER + 12) | 1);
	run(&r);
	CHECK_DONE("RSTORSSP with a token that goes to a 4-aligned address");
	CHECK_EQ(outcome.gpr[RCX] & FL_ARITH, FL_CF, "RSTORSSP: CF=1 for the hole");

	static const struct {
		u64 token;
		const char *name;
	} rows[] = {
		{OTHER + 8, "RSTORSSP in 64-bit mode, token's mode bit 0: #CP(RSTORSSP)"},
		{(OTHER + 8) | 3, "RSTORSSP of a previous-SSP token"},
		{(OTHER + 8) | 2, "RSTORSSP, token bit 1 set"},
		{(OTHER + 16) | 1, "RSTORSSP, token of another place (above)"},
		{OTHER | 1, "RSTORSSP, token of another place (below)"},
		{((OTHER + 8) | 1) ^ 1ull << 40, "RSTORSSP, upper half differs"},
		{0, "RSTORSSP, no token"},
	};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = with_token(rstorssp, rows[i].token);
		run(&r);
		if (CHECK_FAULT(CP, CP_RSTORSSP, rows[i].name))
			CHECK(*ss_mem(OTHER) == rows[i].token && outcome.pl3_ssp == USS_TOP,
				"it leaves the token and SSP");
	}

	r = with_token(rstorssp, (OTHER + 8) | 1);
	r.gpr[RDI] = OTHER + 4;
	run(&r);
	CHECK_FAULT(GP, 0, "RSTORSSP of an address that is not 8-aligned");
	r.gpr[RDI] = 0x8000000000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "RSTORSSP of a non-canonical address");
	r = with_token(rstorssp, 0);
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "RSTORSSP of a page that is not there: a write");
	r.gpr[RDI] = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "RSTORSSP of an ordinary page");
	r.gpr[RDI] = SS_BASE + 0x2ff8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "RSTORSSP in ring 3 of a supervisor shadow stack");
	r.cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "RSTORSSP with CR4.CET=0 is #UD");
	r.cet = 1;
	r.u_cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "RSTORSSP with SHSTK_EN=0 is #UD");
	r.gpr[RDI]++;
	run(&r);
	CHECK_FAULT(UD, 0, "RSTORSSP: #UD goes before #GP");

	r = run_ss0(rstorssp);
	r.gpr[RDI] = SS_BASE + 0x2ff8;
	*ss_mem(SS_BASE + 0x2ff8) = (SS_BASE + 0x3000) | 1;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], SS_BASE + 0x2ff8, "RSTORSSP in ring 0");
	CHECK_EQ(*ss_mem(SS_BASE + 0x2ff8), SS_TOKEN | 3, "its previous-SSP token");
}

static void test_saveprevssp(void)
{
	struct run r = with_token(rstor_save, (OTHER + 8) | 1);

	*ss_mem(USS_TOP - 8) = ~0ull;
	run(&r);
	CHECK_DONE("RSTORSSP, SAVEPREVSSP");
	CHECK_EQ(outcome.gpr[RBX], OTHER + 8, "SAVEPREVSSP pops the previous-SSP token");
	CHECK_EQ(*ss_mem(USS_TOP - 8), USS_TOP | 1, "SAVEPREVSSP leaves a restore token on the old stack");

	/* The old SSP is 4-aligned only. */
	r = with_token(inc_rstor_save, (OTHER + 8) | 1);
	r.pl3_ssp = USS_BASE + 0x1800;
	r.gpr[RAX] = 1;
	*ss_mem(USS_BASE + 0x17f8) = *ss_mem(USS_BASE + 0x1800) = ~0ull;
	run(&r);
	CHECK_DONE("RSTORSSP, SAVEPREVSSP from a 4-aligned SSP");
	CHECK_EQ(*ss_mem(USS_BASE + 0x1800), 0xffffffff00000000, "SAVEPREVSSP fills the hole with 0");
	CHECK_EQ(*ss_mem(USS_BASE + 0x17f8), (USS_BASE + 0x1804) | 1, "the token lies 8-aligned below it");

	r = with_token(there_and_back, (OTHER + 8) | 1);
	r.gpr[RSI] = USS_TOP - 8;
	run(&r);
	CHECK_DONE("to another shadow stack and back");
	CHECK_EQ(outcome.gpr[RBX], USS_TOP, "back to the old SSP");
	CHECK_EQ(*ss_mem(OTHER), (OTHER + 8) | 1, "and a restore token on the other");

	r = run_ss3(save);
	r.pl3_ssp = USS_BASE + 0x1800;
	*ss_mem(USS_BASE + 0x1800) = (USS_BASE + 0x900) | 1;
	run(&r);
	CHECK_FAULT(GP, 0, "SAVEPREVSSP without a previous-SSP token (bit 1 clear)");
	CHECK_EQ(outcome.pl3_ssp, USS_BASE + 0x1800, "it leaves SSP");
	*ss_mem(USS_BASE + 0x1800) = (USS_BASE + 0x900) | 3;
	run(&r);
	CHECK_DONE("SAVEPREVSSP with one");
	r.rip = ADDR(stc_save);
	run(&r);
	CHECK_FAULT(GP, 0, "SAVEPREVSSP with CF=1 in 64-bit mode");
	r.rip = ADDR(save);
	r.pl3_ssp = USS_BASE + 0x1804;
	run(&r);
	CHECK_FAULT(GP, 0, "SAVEPREVSSP with SSP not 8-aligned");
	r.pl3_ssp = USS_BASE + SS_PAGES * 4096;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "SAVEPREVSSP with SSP on a page that is not there");
	r.pl3_ssp = USS_BASE + 0x1800;
	*ss_mem(USS_BASE + 0x1800) = FREE_VA | 3;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "SAVEPREVSSP, the old stack is not there");
	CHECK_EQ(outcome.pl3_ssp, USS_BASE + 0x1800, "it leaves SSP");
	r.cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "SAVEPREVSSP with CR4.CET=0 is #UD");
	r.cet = 1;
	r.u_cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "SAVEPREVSSP with SHSTK_EN=0 is #UD");
}

static void test_compat(void)
{
	struct run r = with_token(rstorssp32, OTHER + 8);

	r.cs = UCS32;
	run(&r);
	CHECK_DONE("RSTORSSP in 32-bit code, mode bit 0");
	CHECK_EQ(outcome.gpr[RBX], OTHER, "SSP");
	CHECK_EQ(*ss_mem(OTHER), USS_TOP | 2, "its previous-SSP token has mode 0");
	*ss_mem(OTHER) = (OTHER + 8) | 1;
	run(&r);
	CHECK_FAULT(CP, CP_RSTORSSP, "RSTORSSP in 32-bit code, mode bit 1");
	*ss_mem(OTHER) = (OTHER + 8) | 1ull << 32;
	run(&r);
	CHECK_FAULT(CP, CP_RSTORSSP, "RSTORSSP in 32-bit code, token above 4 GiB");
	*ss_mem(OTHER) = OTHER + 12;
	run(&r);
	CHECK(outcome.vector == DONE && (outcome.gpr[RCX] & FL_CF), "RSTORSSP in 32-bit code, hole: CF=1");

	r = with_token(rstor_save32, OTHER + 8);
	r.cs = UCS32;
	run(&r);
	CHECK_DONE("RSTORSSP, SAVEPREVSSP in 32-bit code");
	CHECK_EQ(*ss_mem(USS_TOP - 8), USS_TOP, "the restore token has mode 0");
	/* The token goes to OTHER + 12: four bytes of 0 lie above it, which SAVEPREVSSP pops too. */
	*ss_mem(OTHER) = OTHER + 12;
	*ss_mem(OTHER + 8) = 0;
	run(&r);
	CHECK_DONE("SAVEPREVSSP in 32-bit code with CF=1 pops the hole");
	CHECK_EQ(outcome.gpr[RBX], OTHER + 12, "SSP above the hole");
	*ss_mem(OTHER) = OTHER + 12;
	*ss_mem(OTHER + 8) = 5;
	run(&r);
	CHECK_FAULT(GP, 0, "SAVEPREVSSP in 32-bit code, hole not 0");
	r = run_ss3(save32);
	r.cs = UCS32;
	r.pl3_ssp = USS_BASE + 0x1800;
	*ss_mem(USS_BASE + 0x1800) = (USS_BASE + 0x900) | 2 | 1ull << 32;
	run(&r);
	CHECK_FAULT(GP, 0, "SAVEPREVSSP in 32-bit code, token above 4 GiB");
}

void test_main(void)
{
	if (!has_shstk)
		return;
	test_rstorssp();
	test_saveprevssp();
	test_compat();
}
