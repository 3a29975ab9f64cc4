// SPDX-License-Identifier: MIT
// The kit tested by itself: entering code of every size and ring, and coming back with the truth.
#include "kit.h"

CODE(nothing, "nop");
CODE(registers, "xchg %rax, %rbx; lea 5(%r15), %r14");
CODE(divide, "xor %edx, %edx; xor %ecx, %ecx; divide_at: div %ecx");
CODE(user_hlt, "hlt");
CODE(read_far, "mov 0x12345678(%rdi), %rax");
CODE32(compat, "mov $0x11223344, %eax; dec %eax");
CODE16(sixteen, "mov $0x1122, %ax; dec %ax");
CODE(with_flags, "stc; std");
CODE(write_rdi, "mov %eax, (%rdi)");
LABEL(divide_at);

void test_main(void)
{
	struct run r = run_default(nothing);

	run(&r);
	CHECK_DONE("ring 0 code ends by INT 0x20");
	CHECK_EQ(outcome.rip, ADDR(nothing_end) + 2, "the saved RIP is behind the INT");
	CHECK_EQ(outcome.rsp, stack_top(0), "RSP is as given");
	CHECK_EQ(outcome.cs, CS64, "CS is as given");

	r = run_default(registers);
	for (int i = 0; i < 16; i++)
		if (i != RSP)
			r.gpr[i] = 0x1111111111111111ull * i;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x3333333333333333ull, "RAX");
	CHECK_EQ(outcome.gpr[RBX], 0, "RBX");
	CHECK_EQ(outcome.gpr[R14], 0xffffffffffffffffull + 5, "R14");
	CHECK_EQ(outcome.gpr[R8], 0x8888888888888888ull, "R8");

	r = run_default(divide);
	run(&r);
	CHECK_FAULT(DE, 0, "#DE is caught");
	CHECK_EQ(outcome.rip, ADDR(divide_at), "#DE is a fault");

	r = run_user(user_hlt);
	run(&r);
	CHECK_FAULT(GP, 0, "HLT in ring 3 is #GP(0)");
	CHECK_EQ(outcome.cs, UCS64, "CS of ring 3");

	r = run_default(read_far);
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, 0, "a read of a page that is not there");
	CHECK_EQ(outcome.cr2, FREE_VA + 0x12345678, "CR2");

	r = run_user(compat);
	r.cs = UCS32;
	run(&r);
	CHECK_DONE("32-bit code in ring 3");
	CHECK_EQ(outcome.gpr[RAX], 0x11223343, "its EAX");
	r = run_default(compat);
	r.cs = CS32;
	run(&r);
	CHECK_DONE("32-bit code in ring 0");
	CHECK_EQ(outcome.gpr[RAX], 0x11223343, "its EAX");

	r = run_default(with_flags);
	run(&r);
	CHECK_EQ(outcome.rflags, FL_FIXED | FL_CF | FL_DF, "flags are recorded");

	static const struct {
		u16 cs, ss;
		const char *name;
	} rings[] = {
		{CS64_R1, DS_R1, "64-bit code in ring 1"},
		{CS64_R2, DS_R2, "64-bit code in ring 2"},
		{UCS64, UDS, "64-bit code in ring 3"},
	};
	for (int i = 0; i < 3; i++) {
		r = run_default(nothing);
		r.cs = rings[i].cs;
		r.ss = rings[i].ss;
		run(&r);
		CHECK(outcome.vector == DONE && outcome.cs == rings[i].cs, rings[i].name);
	}

	map_page(FREE_VA, ADDR(alloc_page()), PT_P | PT_U);
	r = run_user(write_rdi);
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "map_page: not writable");
	map_page(FREE_VA, ADDR(alloc_page()), PT_P | PT_U | PT_W);
	run(&r);
	CHECK_DONE("map_page: writable");
	r = run_default(sixteen);
	r.gpr[RAX] = 0xaaaaaaaaaaaaaaaa;
	r.cs = CS16;
	run(&r);
	CHECK_DONE("16-bit code in ring 0");
	CHECK_EQ((u16)outcome.gpr[RAX], 0x1121, "its AX");
}
