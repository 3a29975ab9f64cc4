// SPDX-License-Identifier: MIT
// System-management mode while a shadow stack is live: a real SMI, by the local APIC, into a handler
// at the default SMBASE.
#include "kit.h"

#define SMBASE 0x30000u
#define IMAGE(offset) (*(volatile u64 *)(u64)(SMBASE + (offset)))
#define SCRATCH(n) (*(volatile u32 *)(u64)(SMBASE + 0x100 + 4 * (n)))

/* Sends itself an SMI from within a function, whose return address is on both stacks. */
CODE(smi_in_call, "rdsspq %rbx; call 1f; jmp 2f\n 1: rdsspq %rsi; mov $0x830, %ecx; mov $0x44200, %eax;"
		  "xor %edx, %edx; wrmsr\n smi_after: rdsspq %rdi; ret\n 2: rdsspq %rbp");
CODE(smi_plain, "mov $0x830, %ecx; mov $0x44200, %eax; xor %edx, %edx; wrmsr\n smi_plain_after: rdsspq %rdi");
CODE(rsm_ring0, "rsm");
LABEL(smi_after);
LABEL(smi_plain_after);

/* In real mode, CS = SMBASE: counts, notes control registers, and stores R9's new SSP if it is one. */
CODE16(handler, "incl %cs:0x100; mov %cr0, %eax; mov %eax, %cs:0x104; mov %cr4, %eax; mov %eax, %cs:0x108;"
		"mov $0xc0000080, %ecx; rdmsr; mov %eax, %cs:0x10c; mov $0x6a2, %ecx; rdmsr; mov %eax, %cs:0x110;"
		"mov %cs:0x114, %eax; test %eax, %eax; jz 1f; mov %eax, %cs:0xff18\n 1: mov %esp, %cs:0x118; rsm");

static void test_live(void)
{
	struct run r = run_ss0(smi_in_call);

	run(&r);
	CHECK_DONE("SMI within a function, with a shadow stack");
	CHECK_EQ(SCRATCH(0), 1, "the handler ran once");
	CHECK_EQ(outcome.gpr[RSI], outcome.gpr[RBX] - 8, "CALL has pushed");
	CHECK_EQ(outcome.gpr[RDI], outcome.gpr[RSI], "RSM restores SSP");
	CHECK_EQ(outcome.gpr[RBP], outcome.gpr[RBX], "RET finds its address");
	CHECK_EQ(IMAGE(0xff18), outcome.gpr[RSI], "SSP is in the save area");
	CHECK_EQ(IMAGE(0xff78), ADDR(smi_after), "RIP too");
	CHECK_EQ(IMAGE(0xff48) & CR4_CET, CR4_CET, "the CR4 saved has CET");
	CHECK_EQ(SCRATCH(1) & (CR0_PE | CR0_PG | CR0_WP), CR0_WP, "in SMM: no protection, no paging, WP as it was");
	CHECK_EQ(SCRATCH(2), 0, "CR4 is 0");
	CHECK_EQ(SCRATCH(3), 0, "EFER is 0");
	CHECK_EQ(SCRATCH(4), CET_SHSTK_EN, "IA32_S_CET is not touched");
	CHECK_EQ(outcome.s_cet, CET_SHSTK_EN, "nor by RSM");
}

static void test_changed(void)
{
	struct run r = run_ss0(smi_plain);

	SCRATCH(5) = SS_BASE + 0x2ff0;
	run(&r);
	CHECK_DONE("the handler changes SSP in the save area");
	CHECK_EQ(outcome.gpr[RDI], SS_BASE + 0x2ff0, "RSM loads it");
	SCRATCH(5) = SS_BASE + 0x2ff0;
	r = run_ss0(smi_in_call);
	*ss_mem(SS_BASE + 0x2ff0) = 0x1234;
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "a RET then compares with what is there");
	SCRATCH(5) = 0;
	r = run_default(smi_plain);
	run(&r);
	CHECK_DONE("without shadow stacks");
	CHECK_EQ(IMAGE(0xff48) & CR4_CET, 0, "CET is off in the save area");
	CHECK_EQ(outcome.cr4 & CR4_CET, 0, "and stays off");
}

static void test_ibt(void)
{
	struct run r = run_ibt0(smi_plain);

	if (!has_ibt)
		return;
	run(&r);
	CHECK_DONE("SMI with indirect branch tracking");
	CHECK_EQ(outcome.s_cet & CET_TRACKER, 0, "the tracker is idle as before");
	r = run_default(rsm_ring0);
	run(&r);
	CHECK_VECTOR(UD, "RSM outside SMM");
}

void test_main(void)
{
	u64 base;

	if (!has_shstk)
		return;
	base = rdmsr(0x1b);
	wrmsr(0x1b, base | 1 << 10); /* x2APIC */
	memset((void *)(u64)SMBASE, 0, 0x10000);
	memcpy((void *)(u64)(SMBASE + 0x8000), handler, handler_end - handler);
	test_live();
	test_changed();
	test_ibt();
}
