// SPDX-License-Identifier: MIT
// Event delivery and IRET in 64-bit mode: the frame, flags, stacks and segments. Shadow stacks where
// cet_event.c leaves a gap.
#include "kit.h"

#define VEC 0x30
#define FL_IOPL 0x3000

CODE(int30, "mov %rsp, %rbx; int $0x30; mov %rsp, %rbp");
CODE(misaligned_int30, "sub $4, %rsp; mov %rsp, %rbx; int $0x30; mov %rsp, %rbp; add $4, %rsp");
CODE(nt_int30, "pushfq; orq $0x4000, (%rsp); popfq; int $0x30; pushfq; popq %rbp; pushq $2; popfq");
CODE(handler_frame, "mov %rsp, %rcx; mov 24(%rsp), %rdx; mov %ss, %esi; iretq");
CODE(handler_flags, "pushfq; popq %rcx; mov 16(%rsp), %rdx; iretq");
/* IRETQ with the flags in RDI and the stack in RSI; afterwards they are in RBP and RSP. */
CODE(iret_flags, "mov %ss, %eax; push %rax; push %rsi; push %rdi; mov %cs, %eax; push %rax; lea 1f(%rip), %rax;"
	"push %rax; iretq; 1: pushfq; popq %rbp; mov %rsp, %rbx; pushq $2; popfq");
/* IRETQ to a frame out of registers: SS, RSP, RFLAGS, CS, RIP. */
CODE(iret_to, "push %r8; push %r9; push %r10; push %r11; push %r12\n iret_to_at: iretq");
CODE(iret_to_with_ds, "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; xor %eax, %eax; mov %eax, %fs;"
	"push %r8; push %r9; push %r10; push %r11; push %r12; iretq");
CODE(target, "mov %ds, %ecx; mov %es, %edx; mov %ss, %ebp; mov %rsp, %rbx");
LABEL(iret_to_at);

static void test_frame(void)
{
	struct run r = run_default(misaligned_int30);

	set_gate(VEC, handler_frame, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n with RSP not aligned, and IRETQ");
	CHECK_EQ(outcome.gpr[RCX], (outcome.gpr[RBX] & ~15ull) - 40, "delivery aligns RSP to 16, then pushes five slots");
	CHECK_EQ(outcome.gpr[RDX], outcome.gpr[RBX], "the frame has RSP as it was");
	CHECK_EQ(outcome.gpr[RBP], outcome.gpr[RBX], "IRETQ to the same ring pops RSP");
	CHECK_EQ(outcome.gpr[RSI], DS0, "SS stays in the same ring");

	r = run_user(int30);
	run(&r);
	CHECK_DONE("INT n from ring 3, and IRETQ");
	CHECK_EQ(outcome.gpr[RCX] & 15, 8, "the stack of the TSS, aligned");
	CHECK_EQ(outcome.gpr[RSI], 0, "SS is null in the inner ring");
	CHECK_EQ(outcome.gpr[RBP], outcome.gpr[RBX], "RSP comes back");
}

static void test_flags(void)
{
	struct run r = run_default(nt_int30);

	set_gate(VEC, handler_flags, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n with NT set");
	CHECK_EQ(outcome.gpr[RCX] & FL_NT, 0, "delivery clears NT");
	CHECK_EQ(outcome.gpr[RDX] & FL_NT, FL_NT, "the frame has it");
	CHECK_EQ(outcome.gpr[RBP] & FL_NT, FL_NT, "IRETQ brings it back");

	r = run_default(int30);
	r.rflags |= FL_IF;
	run(&r);
	CHECK_EQ(outcome.gpr[RCX] & FL_IF, 0, "an interrupt gate clears IF");
	set_gate(VEC, handler_flags, CS64, 0, 3, GATE_TRAP);
	run(&r);
	CHECK_EQ(outcome.gpr[RCX] & FL_IF, FL_IF, "a trap gate does not");

	r = run_default(iret_flags);
	r.gpr[RSI] = stack_top(5) - 0x80;
	r.gpr[RDI] = FL_FIXED | FL_IOPL | FL_CF | FL_DF;
	run(&r);
	CHECK_DONE("IRETQ in ring 0");
	CHECK_EQ(outcome.gpr[RBP], FL_FIXED | FL_IOPL | FL_CF | FL_DF, "sets IOPL");
	CHECK_EQ(outcome.gpr[RBX], stack_top(5) - 0x80, "and RSP");
	r = run_user(iret_flags);
	r.gpr[RSI] = stack_top(5) - 0x80;
	r.gpr[RDI] = FL_FIXED | FL_IOPL | FL_IF | FL_CF | FL_DF;
	r.rflags = FL_FIXED;
	run(&r);
	CHECK_DONE("IRETQ in ring 3");
	CHECK_EQ(outcome.gpr[RBP], FL_FIXED | FL_CF | FL_DF, "changes neither IF nor IOPL");
	r = run_default(iret_flags);
	r.rflags |= FL_NT;
	r.gpr[RSI] = stack_top(5) - 0x80;
	run(&r);
	CHECK_FAULT(GP, 0, "IRETQ with NT set in long mode");
}

static struct run return_to(const void *code, u64 cs, u64 ss)
{
	struct run r = run_default(code);

	r.gpr[R8] = ss;
	r.gpr[R9] = stack_top(5) - 0x80;
	r.gpr[R10] = FL_FIXED;
	r.gpr[R11] = cs;
	r.gpr[R12] = ADDR(target);
	return r;
}

static void test_return(void)
{
	struct run r = return_to(iret_to_with_ds, UCS64, UDS);

	run(&r);
	CHECK_DONE("IRETQ to ring 3");
	CHECK_EQ(outcome.cs, UCS64, "runs there");
	CHECK_EQ(outcome.gpr[RBP], UDS, "SS");
	CHECK_EQ(outcome.gpr[RBX], stack_top(5) - 0x80, "RSP");
	CHECK_EQ(outcome.gpr[RCX], 0, "DS of ring 0 becomes null");
	CHECK_EQ(outcome.gpr[RDX], 0, "so does ES");

	r = return_to(iret_to, CS64, 0);
	run(&r);
	CHECK_DONE("IRETQ to ring 0 with a null SS");
	r = return_to(iret_to, UCS64, 0);
	run(&r);
	CHECK_FAULT(GP, 0, "IRETQ to ring 3 with a null SS");
	r = return_to(iret_to, UCS64, DS0);
	run(&r);
	CHECK_FAULT(GP, DS0, "IRETQ to ring 3 with SS of ring 0");
	r = return_to(iret_to, UCS64 & ~3, UDS);
	run(&r);
	CHECK_FAULT(GP, UCS64 & ~3, "IRETQ, RPL of CS is not its DPL");
	r = return_to(iret_to, 0, UDS);
	run(&r);
	CHECK_FAULT(GP, 0, "IRETQ with a null CS");
	r = return_to(iret_to, UDS, UDS);
	run(&r);
	CHECK_FAULT(GP, UDS & ~3, "IRETQ with data in CS");
	r = return_to(iret_to, UCS64, UDS);
	r.gpr[R12] = 0x800000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "IRETQ to an address that is not canonical");
	CHECK_EQ(outcome.rip, ADDR(iret_to_at), "at the IRETQ");
	r = run_user(iret_to);
	r.gpr[R8] = DS0;
	r.gpr[R9] = stack_top(5) - 0x80;
	r.gpr[R10] = FL_FIXED;
	r.gpr[R11] = CS64;
	r.gpr[R12] = ADDR(target);
	run(&r);
	CHECK_FAULT(GP, CS64, "IRETQ does not return inwards");
}

/* ---- with shadow stacks ---- */

CODE(call_int30, "call 1f; nop; 1: rdsspq %rbx; int $0x30\n call_int30_after: rdsspq %rbp");
CODE(ss_int30, "int $0x30\n ss_int30_after: nop");
CODE(handler_pl3, "mov $0x6a7, %ecx; rdmsr; shl $32, %rdx; or %rdx, %rax; mov %rax, %r8; iretq");
CODE(handler_iret, "iretq");
CODE(handler_inc, "incsspd %esi; iretq");
CODE(handler_write, "mov %rax, (%rdi); iretq");
CODE(wrong_ret, "lea 1f(%rip), %rax; push %rax; ret; 1: nop");
LABEL(ss_int30_after);

static void test_shadow_stack(void)
{
	struct run r = run_ss3(call_int30);

	r.s_cet = CET_SHSTK_EN;
	set_gate(VEC, handler_pl3, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n from ring 3 behind a CALL");
	CHECK_EQ(outcome.gpr[RBX], USS_TOP - 8, "the CALL has pushed");
	CHECK_EQ(outcome.gpr[R8], USS_TOP - 8, "PL3_SSP is SSP as it was at the INT");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP - 8, "and SSP is that again");

	r = run_ss3(ss_int30);
	r.s_cet = CET_SHSTK_EN;
	r.gpr[RSI] = 1;
	set_gate(VEC, handler_inc, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET to ring 3 with SSP not 8-aligned");

	/* The 32-byte rule is for frames, and none is pushed here. */
	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
	r.late_pl0_ssp = SS_BASE + 0x2010;
	*ss_mem(r.late_pl0_ssp) = r.late_pl0_ssp;
	run(&r);
	CHECK_DONE("from ring 3 the token may lie anywhere");

	r = run_ss0(ss_int30);
	set_gate(VEC, handler_write, CS64, 0, 3, GATE_INT);
	r.gpr[RDI] = ADDR(ss_mem(SS_TOKEN - 16));
	r.gpr[RAX] = ADDR(ss_int30_after) | 1ull << 40;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET compares all 64 bits of LIP");

	/* A gate which leads to a data segment: #GP while #CP is delivered. */
	r = run_ss0(wrong_ret);
	set_gate(CP, handler_iret, DS0, 0, 0, GATE_INT);
	run(&r);
	CHECK_FAULT(DF, 0, "#CP is contributory: #GP in its delivery makes #DF");
	reset_gate(CP);
}

void test_main(void)
{
	test_frame();
	test_flags();
	test_return();
	if (has_shstk)
		test_shadow_stack();
	reset_gate(VEC);
}
