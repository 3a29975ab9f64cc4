// SPDX-License-Identifier: MIT
// SYSCALL, SYSRET, SYSENTER, SYSEXIT with shadow stacks and indirect branch tracking.
#include "kit.h"

/* The user's SSP before in RBX, after in RBP; the kernel's in RSI. */
CODE(user_syscall, "rdsspq %rbx; syscall; rdsspq %rbp");
CODE(user_sysenter, "rdsspq %rbx; lea 1f(%rip), %r8; sysenter\n 1: rdsspq %rbp");
CODE(entry_stop, "mov $0x55, %esi; rdsspq %rsi");
CODE(entry_sysret, "mov $0x55, %esi; rdsspq %rsi; sysretq");
CODE(entry_bare_stop, "nop");
CODE_BARE(entry_no_endbr, "nop; sysretq");
CODE(entry_busy_sysret, "setssbsy; rdsspq %rsi; clrssbsy (%r9); sysretq");
CODE(entry_wrmsr_sysret, "mov %rcx, %r10; mov $0x6a7, %ecx; mov %r8d, %eax; mov %r8, %rdx; shr $32, %rdx; wrmsr;"
	"mov %r10, %rcx; sysretq");
CODE(entry_sysexit, "mov $0x55, %esi; rdsspq %rsi; mov %r8, %rdx; mov %rsp, %rcx; sysexitq");
CODE_BARE(entry_sysenter_no_endbr, "nop");
CODE(ring0_syscall, "rdsspq %rbx; syscall");

static void program(const void *entry)
{
	wrmsr(MSR_STAR, (u64)CS64 << 32 | (u64)(UCS32 & ~3) << 48);
	wrmsr(MSR_LSTAR, ADDR(entry));
	wrmsr(MSR_FMASK, 0);
	wrmsr(MSR_SYSENTER_CS, CS64);
	wrmsr(MSR_SYSENTER_EIP, ADDR(entry));
	wrmsr(MSR_SYSENTER_ESP, stack_top(4));
}

static void test_shstk(void)
{
	struct run r = run_ss3(user_syscall);

	r.s_cet = CET_SHSTK_EN;
	program(entry_stop);
	run(&r);
	CHECK_DONE("SYSCALL with both shadow stacks");
	CHECK_EQ(outcome.gpr[RSI], 0, "SYSCALL sets SSP to 0");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP, "SYSCALL saves SSP in PL3_SSP");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "SYSCALL takes no token");
	program(entry_sysret);
	run(&r);
	CHECK_DONE("SYSCALL and SYSRET");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "SYSRET loads SSP from PL3_SSP");
	program(entry_busy_sysret);
	r.gpr[R9] = SS_TOKEN;
	run(&r);
	CHECK_DONE("SYSCALL, SETSSBSY, CLRSSBSY, SYSRET");
	CHECK_EQ(outcome.gpr[RSI], SS_TOKEN, "the kernel's SSP by SETSSBSY");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "the user's comes back");
	program(entry_wrmsr_sysret);
	r.gpr[R8] = USS_BASE + 0x200;
	run(&r);
	CHECK_EQ(outcome.gpr[RBP], USS_BASE + 0x200, "SYSRET takes PL3_SSP as it is then");

	r = run_ss3(user_syscall);
	program(entry_sysret);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RSI] == 0x55 && outcome.gpr[RBP] == USS_TOP,
		"SYSCALL and SYSRET, supervisor shadow stacks off");
	r = run_user(user_syscall);
	r.cet = 1;
	r.s_cet = CET_SHSTK_EN;
	r.pl3_ssp = USS_BASE + 0x300;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RSI] == 0, "SYSCALL, user shadow stacks off: SSP is 0 in ring 0");
	CHECK_EQ(outcome.pl3_ssp, USS_BASE + 0x300, "and PL3_SSP is left");

	/* SYSCALL is not conditional on CPL 3. */
	r = run_ss0(ring0_syscall);
	program(entry_stop);
	run(&r);
	CHECK_EQ(outcome.gpr[RSI], 0, "SYSCALL in ring 0 sets SSP to 0");
	CHECK_EQ(outcome.pl3_ssp, SS_TOKEN, "SYSCALL in ring 0 saves SSP in PL3_SSP");

	r = run_ss3(user_sysenter);
	r.s_cet = CET_SHSTK_EN;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RSI] == 0, "SYSENTER sets SSP to 0");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP, "SYSENTER saves SSP in PL3_SSP");
	program(entry_sysexit);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBP] == USS_TOP, "SYSEXIT loads SSP from PL3_SSP");
}

static void test_ibt(void)
{
	struct run r = run_ibt3(user_syscall);

	r.s_cet = CET_ENDBR_EN;
	program(entry_sysret);
	run(&r);
	CHECK_DONE("SYSCALL to ENDBR64, SYSRET to none: SYSRET does not arm the user's tracker");
	program(entry_no_endbr);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "SYSCALL arms the supervisor tracker: no ENDBR64, #CP(ENDBRANCH)");
	CHECK_EQ(outcome.rip, ADDR(entry_no_endbr), "at the entry");
	CHECK_EQ(outcome.cs, CS64, "in ring 0");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, 0, "the user's tracker is IDLE");
	r.s_cet = CET_ENDBR_EN | CET_SUPPRESS;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "SYSCALL clears SUPPRESS");
	r.s_cet = 0;
	program(entry_no_endbr);
	run(&r);
	CHECK_DONE("SYSCALL with S_CET.ENDBR_EN=0 arms nothing");

	r = run_ibt3(user_sysenter);
	r.s_cet = CET_ENDBR_EN;
	program(entry_sysenter_no_endbr);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "SYSENTER arms the supervisor tracker");
	program(entry_sysexit);
	run(&r);
	CHECK_DONE("SYSENTER to ENDBR64, SYSEXIT to none");
}

void test_main(void)
{
	if (has_shstk)
		test_shstk();
	if (has_ibt)
		test_ibt();
}
