// SPDX-License-Identifier: MIT
// Near CALL and RET with shadow stacks: what is pushed, what is compared, how it faults.
#include "kit.h"

CODE(call_rel, "call 1f\n call_rel_after: nop\n 1: rdsspq %rbx");
CODE(call_zero, "call 1f\n 1: rdsspq %rbx");
CODE(call_reg, "lea 1f(%rip), %rax; call *%rax\n call_reg_after: nop\n 1: rdsspq %rbx");
CODE(call_reg_next, "lea 1f(%rip), %rax; call *%rax\n 1: rdsspq %rbx");
CODE(call_mem, "lea 1f(%rip), %rax; mov %rax, (%rdi); call *(%rdi)\n call_mem_after: nop\n 1: rdsspq %rbx");
CODE(call_ret, "call 1f; rdsspq %rbx; jmp 2f\n 1: rdsspq %rcx; ret\n 2: nop");
CODE(call_ret_imm, "push $0; push $0; mov %rsp, %rsi; add $16, %rsi; call 1f; rdsspq %rbx; jmp 2f\n 1: ret $16\n 2: nop");
CODE(ret_changed, "call 1f\n nop; jmp 2f\n 1: lea 2f(%rip), %rax; mov %rax, (%rsp)\n ret_changed_at: ret\n 2: nop");
CODE(ret_low_bits, "call 1f\n nop; nop; jmp 2f\n 1: incq (%rsp)\n ret_low_bits_at: ret\n 2: nop");
CODE(ret_plain, "lea 1f(%rip), %rax; push %rax\n ret_plain_at: ret\n 1: nop");
CODE(ret_imm_changed, "call 1f\n nop; jmp 2f\n 1: lea 2f(%rip), %rax; mov %rax, (%rsp)\n ret $64\n 2: nop");
CODE(jumps, "jmp 1f\n 1: lea 2f(%rip), %rax; jmp *%rax\n 2: xor %eax, %eax; jz 3f\n 3: mov $3, %ecx\n"
	"4: loop 4b\n jrcxz 5f\n 5: rdsspq %rbx");
CODE(recursion, "mov $200, %ecx; call 1f; rdsspq %rbx; jmp 2f\n 1: dec %ecx; jz 3f; call 1b\n 3: ret\n 2: nop");
CODE(just_call, "call 1f\n 1: nop; call 2f; nop\n 2: nop");
CODE(push_mem_call, "call *(%rdi)");
CODE(two_rets, "call 1f\n 1: nop; call 2f; nop\n 2: ret");
CODE(unwritten, "call 1f; nop\n 1: mov %rsp, %rsi; rdsspq %rbx; ret");

CODE32(call32, "call 1f\n call32_after: nop\n 1: rdsspd %ebx");
CODE32(call32_ret, "call 1f; rdsspd %ebx; jmp 2f\n 1: rdsspd %ecx; ret\n 2: nop");
CODE32(ret32_changed, "call 1f\n jmp 2f\n 1: movl $2f, (%esp)\n ret\n 2: nop");
CODE32(call32_zero, "call 1f\n 1: rdsspd %ebx");
CODE32(call32_far_up, "call 1f\n nop\n 1: nop");
/* With a 16-bit operand the target is 16 bits: the code must lie in the low 64 KiB. */
CODE32_BARE(call16_copy, "endbr32; .byte 0x66, 0xe8, 0x06, 0x00; rdsspd %ecx; int $0x20; rdsspd %ebx; .byte 0x66, 0xc3");

static void test_call(void)
{
	struct run r = run_ss3(call_rel);
	u64 below = USS_TOP - 8;
	LABEL(call_rel_after);
	LABEL(call_reg_after);
	LABEL(call_mem_after);

	run(&r);
	CHECK_EQ(outcome.gpr[RBX], below, "near CALL rel pushes 8 bytes on the shadow stack");
	CHECK_EQ(*ss_mem(below), ADDR(call_rel_after), "near CALL rel pushes the return address");
	CHECK_EQ(outcome.rsp, stack_top(0) - 8, "near CALL rel pushes on the stack too");
	r.rip = ADDR(call_zero);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_TOP, "CALL rel to the next instruction pushes nothing there");
	CHECK_EQ(outcome.rsp, stack_top(0) - 8, "but on the stack it does");
	r.rip = ADDR(call_reg);
	run(&r);
	CHECK_EQ(*ss_mem(below), ADDR(call_reg_after), "near CALL through a register pushes");
	r.rip = ADDR(call_reg_next);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], below, "near indirect CALL to the next instruction pushes");
	r.rip = ADDR(call_mem);
	r.gpr[RDI] = stack_top(5) - 64;
	run(&r);
	CHECK_EQ(*ss_mem(below), ADDR(call_mem_after), "near CALL through memory pushes");
	r.rip = ADDR(jumps);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_TOP, "JMP, Jcc, LOOP, JRCXZ leave the shadow stack alone");
	CHECK_EQ(outcome.rsp, stack_top(0), "and the stack");

	r = run_ss0(call_rel);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], SS_TOKEN - 8, "near CALL in ring 0 pushes");
	CHECK_EQ(*ss_mem(SS_TOKEN - 8), ADDR(call_rel_after), "the return address, in ring 0");
	r = run_user(call_rel);
	r.cet = 1;
	*ss_mem(below) = 0x77;
	run(&r);
	CHECK_EQ(*ss_mem(below), 0x77, "near CALL with U_CET.SHSTK_EN=0 pushes nothing");
}

static void test_ret(void)
{
	struct run r = run_ss3(call_ret);
	LABEL(ret_changed_at);
	LABEL(ret_plain_at);
	LABEL(ret_low_bits_at);

	run(&r);
	CHECK_DONE("near CALL and RET");
	CHECK_EQ(outcome.gpr[RCX], USS_TOP - 8, "SSP in the function");
	CHECK_EQ(outcome.gpr[RBX], USS_TOP, "near RET pops the shadow stack");
	r.rip = ADDR(call_ret_imm);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == USS_TOP && outcome.rsp == outcome.gpr[RSI],
		"RET imm16 pops one element of the shadow stack");
	r.rip = ADDR(recursion);
	r.pl3_ssp = USS_BASE + 0x3ff8;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == USS_BASE + 0x3ff8, "200 calls deep and back");

	r = run_ss3(ret_changed);
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "near RET to a changed address is #CP(NEAR-RET)");
	CHECK_EQ(outcome.rip, ADDR(ret_changed_at), "#CP(NEAR-RET) is a fault at the RET");
	CHECK_EQ(outcome.rsp, stack_top(0) - 8, "#CP(NEAR-RET) leaves RSP");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP - 8, "#CP(NEAR-RET) leaves SSP");
	r.rip = ADDR(ret_low_bits);
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "near RET one byte off");
	CHECK_EQ(outcome.rip, ADDR(ret_low_bits_at), "at the RET");
	r.rip = ADDR(ret_plain);
	*ss_mem(USS_TOP) = 0;
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "near RET to a pushed address without a CALL");
	CHECK_EQ(outcome.rip, ADDR(ret_plain_at), "at the RET");
	r.rip = ADDR(ret_imm_changed);
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "RET imm16 to a changed address");
	CHECK_EQ(outcome.rsp, stack_top(0) - 8, "RET imm16 that faults leaves RSP");

	r = run_ss0(ret_changed);
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "near RET to a changed address in ring 0");
	CHECK_EQ(outcome.ssp, SS_TOKEN - 8, "it leaves SSP, in ring 0");
	r = run_user(ret_changed);
	r.cet = 1;
	r.s_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_DONE("near RET in ring 3 does not go by S_CET");
	r = run_default(ret_changed);
	r.cet = 1;
	r.u_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_DONE("near RET in ring 0 does not go by U_CET");
	r = run_user(ret_changed);
	r.u_cet = CET_SHSTK_EN;
	run(&r);
	CHECK_DONE("near RET with CR4.CET=0 compares nothing");
}

static void test_faults(void)
{
	struct run r = run_ss3(call_rel);
	LABEL(call_rel_after);

	r.pl3_ssp = USS_BASE;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "CALL that overflows the shadow stack: #PF");
	CHECK_EQ(outcome.cr2, USS_BASE - 8, "CR2 of the overflow");
	CHECK_EQ(outcome.rip, ADDR(call_rel_after) - 5, "RIP is the CALL");
	CHECK_EQ(outcome.rsp, stack_top(0), "a CALL that faults leaves RSP");
	CHECK_EQ(outcome.pl3_ssp, USS_BASE, "a CALL that faults leaves SSP");
	r.pl3_ssp = SS_BASE + 0x4000;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "CALL in ring 3 on a supervisor shadow stack: #PF");
	r.pl3_ssp = stack_top(5);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "CALL with SSP on an ordinary page: #PF");

	r = run_ss3(ret_plain);
	r.pl3_ssp = USS_BASE + SS_PAGES * 4096;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "RET that underflows the shadow stack: #PF, a read");
	CHECK_EQ(outcome.rsp, stack_top(0) - 8, "a RET that faults leaves RSP");
	r.pl3_ssp = SS_BASE + 0x4000;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U | PF_SS, "RET in ring 3 on a supervisor shadow stack: #PF, a read");
	r.pl3_ssp = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U | PF_SS, "RET with SSP on an ordinary page: #PF");

	/* The stack's own fault leaves SSP alone as well. */
	r = run_ss3(call_rel);
	r.gpr[RSP] = FREE_VA + 0x1000;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U, "CALL whose stack is not there");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP, "leaves SSP");

	/* Slots need not be aligned to 8, and may lie on two pages. */
	r = run_ss3(call_rel);
	r.pl3_ssp = USS_BASE + 0x2004;
	*ss_mem(USS_BASE + 0x1ff8) = *ss_mem(USS_BASE + 0x2000) = ~0ull;
	run(&r);
	CHECK_DONE("CALL with SSP 4-aligned, across two pages");
	CHECK_EQ(*ss_mem(USS_BASE + 0x1ff8), ADDR(call_rel_after) << 32 | 0xffffffff, "the lower half");
	CHECK_EQ(*ss_mem(USS_BASE + 0x2000), 0xffffffff00000000 | ADDR(call_rel_after) >> 32, "the upper half");
	r.rip = ADDR(call_ret);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_BASE + 0x2004, "CALL and RET across two pages");
}

static void test_compat(void)
{
	struct run r = run_ss3(call32);
	LABEL(call32_after);
	u8 *low = (u8 *)0x8000;

	r.cs = UCS32;
	*ss_mem(USS_TOP - 8) = ~0ull;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_TOP - 4, "near CALL in 32-bit code pushes 4 bytes");
	CHECK_EQ(*ss_mem(USS_TOP - 8), ADDR(call32_after) << 32 | 0xffffffff, "the return EIP, nothing else");
	r.rip = ADDR(call32_ret);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == USS_TOP && outcome.gpr[RCX] == USS_TOP - 4,
		"near CALL and RET in 32-bit code");
	r.rip = ADDR(ret32_changed);
	run(&r);
	CHECK_FAULT(CP, CP_NEAR_RET, "near RET to a changed address in 32-bit code");
	r.rip = ADDR(call32_zero);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_TOP, "CALL to the next instruction in 32-bit code pushes nothing there");

	memcpy(low, call16_copy, call16_copy_end - call16_copy + 2);
	r.rip = ADDR(low);
	*ss_mem(USS_TOP - 8) = ~0ull;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], USS_TOP - 4, "near CALL with a 16-bit operand uses a 4-byte slot");
	CHECK_EQ(*ss_mem(USS_TOP - 8), 0x8008ull << 32 | 0xffffffff, "and pushes the 16-bit IP zero-extended");
	CHECK_EQ(outcome.gpr[RCX], USS_TOP, "near RET with a 16-bit operand pops a 4-byte slot");
	CHECK_DONE("and finds what it wants there");

	r = run_ss0(call32);
	r.cs = CS32;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], SS_TOKEN - 4, "near CALL in 32-bit code of ring 0");
}

void test_main(void)
{
	if (!has_shstk)
		return;
	test_call();
	test_ret();
	test_faults();
	test_compat();
}
