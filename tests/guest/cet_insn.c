// SPDX-License-Identifier: MIT
// The shadow-stack instructions: RDSSP, INCSSP, WRSS, WRUSS, SETSSBSY, CLRSSBSY. Where they exist,
// what they do, how they fault. (RSTORSSP and SAVEPREVSSP: cet_switch.c)
#include "kit.h"

CODE(rdsspq, "rdsspq %rax");
CODE(rdsspd, "rdsspd %eax");
CODE(incsspq, "incsspq %rax; rdsspq %rbx");
CODE(incsspd, "incsspd %eax; rdsspq %rbx");
CODE(wrssq, "wrssq %rax, (%rdi)");
CODE(wrssd, "wrssd %eax, (%rdi)");
CODE(wrussq, "wrussq %rax, (%rdi)");
CODE(wrussd, "wrussd %eax, (%rdi)");
CODE(setssbsy, "setssbsy; rdsspq %rbx");
CODE(clrssbsy, "clrssbsy (%rdi); pushfq; pop %rcx; mov $1, %ebx; rdsspq %rbx");
CODE(endbrs, "endbr64; endbr32");

/* LOCK in front of each, and the forms with a register where only memory is defined. */
CODE(lock_rdssp, "mov $0, %eax; .byte 0xf0, 0xf3, 0x48, 0x0f, 0x1e, 0xc8");
CODE(lock_incssp, "xor %eax, %eax; .byte 0xf0, 0xf3, 0x48, 0x0f, 0xae, 0xe8");
CODE(lock_wrss, ".byte 0xf0, 0x48, 0x0f, 0x38, 0xf6, 0x07");
CODE(lock_wruss, ".byte 0xf0, 0x66, 0x48, 0x0f, 0x38, 0xf5, 0x07");
CODE(lock_setssbsy, ".byte 0xf0, 0xf3, 0x0f, 0x01, 0xe8");
CODE(lock_clrssbsy, ".byte 0xf0, 0xf3, 0x0f, 0xae, 0x37");
CODE(lock_rstorssp, ".byte 0xf0, 0xf3, 0x0f, 0x01, 0x2f");
CODE(lock_saveprevssp, ".byte 0xf0, 0xf3, 0x0f, 0x01, 0xea");
CODE(reg_wrss, ".byte 0x48, 0x0f, 0x38, 0xf6, 0xc7");
CODE(reg_wruss, ".byte 0x66, 0x48, 0x0f, 0x38, 0xf5, 0xc7");

#define USER_END (USS_BASE + SS_PAGES * 4096ull)

static void test_rdssp(void)
{
	struct run r = run_default(rdsspq);

	r.gpr[RAX] = 0x1234567890abcdef;
	run(&r);
	CHECK_DONE("RDSSPQ with CR4.CET=0 is a NOP");
	CHECK_EQ(outcome.gpr[RAX], 0x1234567890abcdef, "RDSSPQ with CR4.CET=0 leaves the register");
	r.cet = 1;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x1234567890abcdef, "RDSSPQ, S_CET.SHSTK_EN=0: register unchanged");
	r.u_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x1234567890abcdef, "RDSSPQ in ring 0 does not go by U_CET");

	r = run_default(rdsspd);
	r.gpr[RAX] = 0x1234567890abcdef;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x1234567890abcdef, "RDSSPD as a NOP leaves all 64 bits");

	r = run_ss0(rdsspq);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], SS_TOKEN, "RDSSPQ in ring 0 reads SSP");
	CHECK_EQ(outcome.ssp, SS_TOKEN, "the frame of an event holds the same SSP");
	r = run_ss0(rdsspd);
	r.gpr[RAX] = ~0ull;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], (u32)SS_TOKEN, "RDSSPD zero-extends");

	r = run_ss3(rdsspq);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], USS_TOP, "RDSSPQ in ring 3 reads SSP, loaded from PL3_SSP by IRET");
	r = run_user(rdsspq);
	r.cet = 1;
	r.s_cet = CET_SHSTK_EN;
	r.gpr[RAX] = 77;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 77, "RDSSPQ in ring 3 does not go by S_CET");
}

static void test_incssp(void)
{
	struct run r = run_default(incsspq);

	run(&r);
	CHECK_FAULT(UD, 0, "INCSSP with CR4.CET=0 is #UD");
	r.cet = 1;
	run(&r);
	CHECK_FAULT(UD, 0, "INCSSP with S_CET.SHSTK_EN=0 is #UD");
	r = run_user(incsspq);
	r.cet = 1;
	r.s_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_FAULT(UD, 0, "INCSSP in ring 3 does not go by S_CET");

	static const struct {
		u64 n;
		bool quad;
		u64 delta;
		const char *name;
	} rows[] = {
		{1, true, 8, "INCSSPQ 1 adds 8"},
		{3, true, 24, "INCSSPQ 3 adds 24"},
		{0, true, 0, "INCSSPQ 0 adds nothing"},
		{255, true, 255 * 8, "INCSSPQ 255"},
		{0x100, true, 0, "INCSSPQ uses bits 7:0: 0x100 adds nothing"},
		{0xffffffffffffff02, true, 16, "INCSSPQ uses bits 7:0: ...02 adds 16"},
		{1, false, 4, "INCSSPD 1 adds 4"},
		{255, false, 255 * 4, "INCSSPD 255"},
		{0x200, false, 0, "INCSSPD uses bits 7:0"},
	};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = run_ss3(rows[i].quad ? incsspq : incsspd);
		r.gpr[RAX] = rows[i].n;
		run(&r);
		CHECK(outcome.vector == DONE && outcome.gpr[RBX] == USS_TOP + rows[i].delta, rows[i].name);
	}
	r = run_ss0(incsspq);
	r.gpr[RAX] = 1;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], SS_TOKEN + 8, "INCSSPQ in ring 0");
	r = run_ss3(incsspq);
	r.gpr[RAX] = 1;
	r.rflags |= FL_ARITH;
	run(&r);
	CHECK_EQ(outcome.rflags & FL_ARITH, FL_ARITH, "INCSSP leaves the flags");

	r = run_ss3(incsspq);
	r.pl3_ssp = USER_END - 8;
	r.gpr[RAX] = 1;
	run(&r);
	CHECK_DONE("INCSSPQ 1 may reach the end of a page");
	r.gpr[RAX] = 2;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "INCSSPQ 2 reads its last element: #PF");
	CHECK_EQ(outcome.cr2, USER_END, "INCSSPQ 2: CR2 is the last element");
	CHECK_EQ(outcome.pl3_ssp, USER_END - 8, "INCSSPQ that faults leaves SSP");
	r.pl3_ssp = USER_END;
	r.gpr[RAX] = 0;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "INCSSPQ 0 reads at SSP all the same: #PF");
	CHECK_EQ(outcome.cr2, USER_END, "INCSSPQ 0: CR2 is SSP");
	r = run_ss3(incsspd);
	r.pl3_ssp = USER_END - 8;
	r.gpr[RAX] = 2;
	run(&r);
	CHECK_DONE("INCSSPD 2 reads four bytes twice");
	r.gpr[RAX] = 3;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "INCSSPD 3 reads its last element: #PF");
}

static void test_wrss(void)
{
	struct run r = run_default(wrssq);
	u64 at = USS_BASE + 0x2100;

	r.gpr[RDI] = SS_BASE + 0x2100;
	run(&r);
	CHECK_FAULT(UD, 0, "WRSS with CR4.CET=0 is #UD");
	r = run_ss0(wrssq);
	r.gpr[RDI] = SS_BASE + 0x2100;
	run(&r);
	CHECK_FAULT(UD, 0, "WRSS with WRSS_EN=0 is #UD");
	r.s_cet = CET_WRSS_EN;
	run(&r);
	CHECK_FAULT(UD, 0, "WRSS with SHSTK_EN=0 is #UD");
	r.gpr[RDI]++;
	run(&r);
	CHECK_FAULT(UD, 0, "WRSS: #UD goes before #GP for alignment");

	r = run_ss0(wrssq);
	r.s_cet |= CET_WRSS_EN;
	r.gpr[RDI] = SS_BASE + 0x2100;
	r.gpr[RAX] = 0x1122334455667788;
	r.rflags |= FL_ARITH;
	run(&r);
	CHECK_DONE("WRSSQ in ring 0 to a supervisor shadow-stack page");
	CHECK_EQ(*ss_mem(SS_BASE + 0x2100), 0x1122334455667788, "WRSSQ stores eight bytes");
	r.gpr[RDI] = at;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "WRSSQ in ring 0 to a user shadow-stack page");

	r = run_ss3(wrssq);
	r.gpr[RDI] = at;
	run(&r);
	CHECK_FAULT(UD, 0, "WRSS in ring 3 with U_CET.WRSS_EN=0 is #UD");
	r.u_cet |= CET_WRSS_EN;
	r.gpr[RAX] = 0xabcdef;
	run(&r);
	CHECK_DONE("WRSSQ in ring 3");
	CHECK_EQ(*ss_mem(at), 0xabcdef, "WRSSQ in ring 3 stores");
	r.gpr[RDI] = at + 4;
	run(&r);
	CHECK_FAULT(GP, 0, "WRSSQ to an address that is not 8-aligned");
	r.rip = ADDR(wrssd);
	*ss_mem(at) = ~0ull;
	r.gpr[RAX] = 0x9900000000;
	run(&r);
	CHECK_DONE("WRSSD to a 4-aligned address");
	CHECK_EQ(*ss_mem(at), 0x00000000ffffffff, "WRSSD stores four bytes");
	r.gpr[RDI] = at + 2;
	run(&r);
	CHECK_FAULT(GP, 0, "WRSSD to an address that is not 4-aligned");
	r.gpr[RDI] = SS_BASE + 0x2100;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRSS in ring 3 to a supervisor shadow-stack page");
	r.gpr[RDI] = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRSS to an ordinary writable page");
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "WRSS to a page that is not there");
	CHECK_EQ(outcome.cr2, FREE_VA, "WRSS: CR2");
	r.gpr[RDI] = 0x8000000000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "WRSS to a non-canonical address");
}

static void test_wruss(void)
{
	struct run r = run_default(wrussq);
	u64 at = USS_BASE + 0x2200;

	r.gpr[RDI] = at;
	run(&r);
	CHECK_FAULT(UD, 0, "WRUSS with CR4.CET=0 is #UD");
	r.cet = 1;
	r.gpr[RAX] = 0x55aa;
	run(&r);
	CHECK_DONE("WRUSS needs only CR4.CET");
	CHECK_EQ(*ss_mem(at), 0x55aa, "WRUSSQ stores");
	r.gpr[RDI] = SS_BASE + 0x2200;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS,
		"WRUSS to a supervisor shadow-stack page faults as a user access");
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "WRUSS to a page that is not there");
	r.gpr[RDI] = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRUSS to an ordinary page");
	r.gpr[RDI] = at + 4;
	run(&r);
	CHECK_FAULT(GP, 0, "WRUSSQ to an address that is not 8-aligned");
	r.rip = ADDR(wrussd);
	*ss_mem(at) = 0;
	r.gpr[RAX] = 0x1ffffffff;
	run(&r);
	CHECK_EQ(*ss_mem(at), 0xffffffff00000000, "WRUSSD stores four bytes at a 4-aligned address");
	r.gpr[RDI] = at + 1;
	run(&r);
	CHECK_FAULT(GP, 0, "WRUSSD to an address that is not 4-aligned");
	r = run_ss3(wrussq);
	r.u_cet |= CET_WRSS_EN;
	r.gpr[RDI] = at;
	run(&r);
	CHECK_FAULT(GP, 0, "WRUSS in ring 3 is #GP(0)");
	r.cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "WRUSS in ring 3 with CR4.CET=0: #UD goes before #GP");
}

static void test_setssbsy(void)
{
	struct run r = run_ss0(setssbsy);
	u64 *token = ss_mem(SS_BASE + 0x3ff8);

	r.no_setssbsy = 1;
	r.pl0_ssp = SS_BASE + 0x3ff8;
	*token = r.pl0_ssp;
	r.rflags |= FL_ARITH;
	run(&r);
	CHECK_DONE("SETSSBSY with a free token");
	CHECK_EQ(outcome.gpr[RBX], SS_BASE + 0x3ff8, "SETSSBSY loads SSP from PL0_SSP");
	CHECK_EQ(*token, (SS_BASE + 0x3ff8) | 1, "SETSSBSY makes the token busy");
	run(&r);
	CHECK_FAULT(CP, CP_SETSSBSY, "SETSSBSY with a busy token is #CP(SETSSBSY)");
	CHECK_EQ(*token, (SS_BASE + 0x3ff8) | 1, "SETSSBSY that fails leaves the token");
	*token = SS_BASE + 0x2ff8;
	run(&r);
	CHECK_FAULT(CP, CP_SETSSBSY, "SETSSBSY with a token of another place");
	CHECK_EQ(*token, SS_BASE + 0x2ff8, "SETSSBSY that fails leaves memory");
	*token = (SS_BASE + 0x3ff8) | 2;
	run(&r);
	CHECK_FAULT(CP, CP_SETSSBSY, "SETSSBSY with a reserved token bit");
	*token = (SS_BASE + 0x3ff8) | 1ull << 63;
	run(&r);
	CHECK_FAULT(CP, CP_SETSSBSY, "SETSSBSY compares all 64 bits");
	r.pl0_ssp = SS_BASE + 0x3ffc;
	run(&r);
	CHECK_FAULT(GP, 0, "SETSSBSY with PL0_SSP not 8-aligned");
	r.pl0_ssp = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_SS, "SETSSBSY, token page not there: a shadow-stack write");
	CHECK_EQ(outcome.cr2, FREE_VA, "SETSSBSY: CR2");
	r.pl0_ssp = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "SETSSBSY, token on an ordinary page");
	r.pl0_ssp = USS_BASE + 0x3ff8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "SETSSBSY, token on a user shadow-stack page");

	r.pl0_ssp = SS_BASE + 0x3ff8;
	*token = r.pl0_ssp;
	r.s_cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "SETSSBSY with S_CET.SHSTK_EN=0 is #UD");
	r.s_cet = CET_SHSTK_EN;
	r.cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "SETSSBSY with CR4.CET=0 is #UD");
	r = run_ss3(setssbsy);
	run(&r);
	CHECK_FAULT(UD, 0, "SETSSBSY in ring 3 with S_CET.SHSTK_EN=0: #UD goes before #GP");
	r.s_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_FAULT(GP, 0, "SETSSBSY in ring 3 is #GP(0)");
}

static void test_clrssbsy(void)
{
	struct run r = run_ss0(clrssbsy);
	u64 at = SS_BASE + 0x3ff8;
	u64 *token = ss_mem(at);

	r.gpr[RDI] = at;
	*token = at | 1;
	r.rflags |= FL_ARITH;
	run(&r);
	CHECK_DONE("CLRSSBSY of a busy token");
	CHECK_EQ(*token, at, "CLRSSBSY frees the token");
	CHECK_EQ(outcome.gpr[RCX] & FL_ARITH, 0, "CLRSSBSY of a valid token: CF=0, other flags 0");
	CHECK_EQ(outcome.gpr[RBX], 0, "CLRSSBSY sets SSP to 0");
	run(&r);
	CHECK_DONE("CLRSSBSY of a free token does not fault");
	CHECK_EQ(outcome.gpr[RCX] & FL_ARITH, FL_CF, "CLRSSBSY of a token that is not busy: CF=1");
	CHECK_EQ(outcome.gpr[RBX], 0, "CLRSSBSY that fails sets SSP to 0 all the same");
	CHECK_EQ(*token, at, "CLRSSBSY that fails leaves memory");
	*token = (at - 8) | 1;
	run(&r);
	CHECK_EQ(outcome.gpr[RCX] & FL_CF, FL_CF, "CLRSSBSY of a token of another place: CF=1");
	r.gpr[RDI] = at + 4;
	run(&r);
	CHECK_FAULT(GP, 0, "CLRSSBSY of an address that is not 8-aligned");
	CHECK_EQ(outcome.ssp, SS_TOKEN, "CLRSSBSY that faults leaves SSP");
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_SS, "CLRSSBSY of a page that is not there");
	r.gpr[RDI] = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "CLRSSBSY of an ordinary page");
	r.gpr[RDI] = at;
	r.s_cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "CLRSSBSY with S_CET.SHSTK_EN=0 is #UD");
	r.cet = 0;
	run(&r);
	CHECK_FAULT(UD, 0, "CLRSSBSY with CR4.CET=0 is #UD");
	r = run_ss3(clrssbsy);
	r.s_cet = CET_SHSTK_EN;
	r.gpr[RDI] = at;
	run(&r);
	CHECK_FAULT(GP, 0, "CLRSSBSY in ring 3 is #GP(0)");
}

static void test_encodings(void)
{
	static const struct {
		const u8 *code;
		const char *name;
	} rows[] = {
		{lock_rdssp, "LOCK RDSSP is #UD"}, {lock_incssp, "LOCK INCSSP is #UD"},
		{lock_wrss, "LOCK WRSS is #UD"}, {lock_wruss, "LOCK WRUSS is #UD"},
		{lock_setssbsy, "LOCK SETSSBSY is #UD"}, {lock_clrssbsy, "LOCK CLRSSBSY is #UD"},
		{lock_rstorssp, "LOCK RSTORSSP is #UD"}, {lock_saveprevssp, "LOCK SAVEPREVSSP is #UD"},
		{reg_wrss, "WRSS with a register operand is #UD"},
		{reg_wruss, "WRUSS with a register operand is #UD"},
	};
	struct run r;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = run_ss0(rows[i].code);
		r.s_cet |= CET_WRSS_EN;
		r.gpr[RDI] = SS_BASE + 0x3000;
		run(&r);
		CHECK_FAULT(UD, 0, rows[i].name);
	}
	r = run_default(endbrs);
	run(&r);
	CHECK_DONE("ENDBR64 and ENDBR32 are NOPs with CR4.CET=0");
	r = run_ss0(endbrs);
	r.s_cet |= CET_ENDBR_EN;
	run(&r);
	CHECK_DONE("ENDBR64 and ENDBR32 are NOPs when the tracker is IDLE");
}

void test_main(void)
{
	if (!has_shstk)
		return;
	test_rdssp();
	test_incssp();
	test_wrss();
	test_wruss();
	test_setssbsy();
	test_clrssbsy();
	test_encodings();
}
