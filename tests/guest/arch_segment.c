// SPDX-License-Identifier: MIT
// Limits of code segments, and what EIP does at 64 KiB in 16-bit code. The expected values are those of
// silicon, where user code in segments of an LDT can see all of this.
#include "kit.h"

#define CODE_32 0x4098 /* access byte and flags: code, level 0, D */
#define CODE_16 0x0098
#define LOOP_32 0xe2

static u8 *code;

static struct run code_run(u32 limit, bool wide, u64 eip)
{
	struct run r = run_default(0);

	set_descriptor(FREE_SEL, make_descriptor(ADDR(code), limit, wide ? CODE_32 : CODE_16));
	r.cs = FREE_SEL;
	r.rip = eip;
	return r;
}

static void test_limit(void)
{
	struct run r = code_run(0x103, true, 0x100);

	memset(code, 0x40, 0x1000); /* INC EAX */
	run(&r);
	CHECK_FAULT(GP, 0, "execution runs into the limit of CS");
	CHECK(outcome.rip == 0x104 && outcome.gpr[RAX] == 4, "behind the last instruction within it");
	code[0x102] = 0xb9; /* MOV ECX, imm32 */
	run(&r);
	CHECK_FAULT(GP, 0, "an instruction goes on beyond the limit");
	CHECK(outcome.rip == 0x102 && outcome.gpr[RCX] == 0 && outcome.gpr[RAX] == 2, "it is not executed");
	code[0x102] = 0xeb; /* JMP, from the last two bytes */
	code[0x103] = -4;
	code[0x100] = 0xcd; /* INT 0x20 */
	code[0x101] = DONE;
	r.rip = 0x102;
	run(&r);
	CHECK_DONE("an instruction ends at the limit");
	code[0x103] = 0; /* JMP to the next */
	run(&r);
	CHECK_FAULT(GP, 0, "JMP to beyond the limit");
	CHECK_EQ(outcome.rip, 0x102, "is the fault of JMP");

	static const u8 jumps[] = { 0x40, 0x40, 0xe8, 0xf8, 0x0f, 0, 0 /* CALL 0x10ff */, 0x40 };
	memset(code + 0x100, 0x40, 0x20);
	memcpy(code + 0x100, jumps, sizeof(jumps));
	r = code_run(0x7ff, true, 0x100);
	run(&r);
	CHECK_FAULT(GP, 0, "CALL to beyond the limit");
	CHECK(outcome.rip == 0x102 && outcome.gpr[RAX] == 2, "is the fault of CALL");
	CHECK_EQ((u32)outcome.rsp, (u32)r.gpr[RSP], "which pushes nothing");
	if (has_shstk) {
		r = run_ss3((void *)0x100);
		r.cs = FREE_SEL | 3;
		set_descriptor(FREE_SEL, make_descriptor(ADDR(code), 0x7ff, CODE_32 | 0x60));
		run(&r);
		CHECK(outcome.vector == GP && outcome.rip == 0x102 && outcome.ssp == USS_TOP, "nor on the shadow stack");
	}
	code[0x102] = 0x0f; /* JNZ 0x10ff: taken, and not */
	code[0x103] = 0x85;
	memcpy(code + 0x104, (u32[]){ 0xff7 }, 4);
	code[0x110] = 0xcd;
	code[0x111] = DONE;
	r = code_run(0x7ff, true, 0x100);
	run(&r);
	CHECK(outcome.vector == GP && outcome.rip == 0x102, "JNZ to beyond the limit: its own fault");
	r.gpr[RAX] = -2;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RAX] == 8, "but not if it is not taken");
	code[0x102] = 0x48; /* DEC EAX; LOOP 0x184 */
	code[0x103] = LOOP_32;
	code[0x104] = 0x7f;
	r = code_run(0x17f, true, 0x100);
	r.gpr[RCX] = 2;
	run(&r);
	CHECK(outcome.vector == GP && outcome.rip == 0x103 && outcome.gpr[RCX] == 2, "LOOP to beyond the limit does not count");

	/* The same code, hot in a larger segment, and then in the smaller one. */
	memset(code + 0x100, 0x40, 8);
	code[0x108] = LOOP_32;
	code[0x109] = -10;
	code[0x10a] = 0xcd;
	code[0x10b] = DONE;
	r = code_run(0xfff, true, 0x100);
	r.gpr[RCX] = 100;
	run(&r);
	CHECK_DONE("a loop within the limit");
	CHECK_EQ(outcome.gpr[RAX], 800, "all of it");
	r = code_run(0x105, true, 0x100);
	r.gpr[RCX] = 100;
	run(&r);
	CHECK_FAULT(GP, 0, "the same code with a smaller limit");
	CHECK(outcome.rip == 0x106 && outcome.gpr[RAX] == 6, "goes as far as that");
	r = code_run(0xfff, true, 0x100);
	r.gpr[RCX] = 10;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RAX] == 80, "and with the larger one again");
}

static void test_64k(void)
{
	struct run r = code_run(0x1ffff, false, 0xfff0);

	memset(code, 0xf4, 0x100);
	memset(code + 0xff00, 0x40, 0x200); /* INC AX */
	code[0x10010] = 0xcd;
	code[0x10011] = DONE;
	run(&r);
	CHECK_DONE("16-bit code goes on above 64 KiB");
	CHECK(outcome.rip == 0x10012 && outcome.gpr[RAX] == 0x20, "EIP is not cut to 16 bits");
	code[0xfff8] = 0x9c; /* PUSHF and POPF: in C */
	memset(code + 0xfff9, 0x66, 6);
	code[0xffff] = 0x9d;
	r.rip = 0xfff8;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.rip == 0x10012, "nor behind an instruction that ends there");
	memset(code + 0xfff8, 0x40, 8);
	r = code_run(0xffff, false, 0xfff0);
	run(&r);
	CHECK_FAULT(GP, 0, "with a limit of 64 KiB - 1 that is #GP(0)");
	CHECK(outcome.rip == 0x10000 && outcome.gpr[RAX] == 0x10, "with EIP at 64 KiB");
	r = code_run(0x1ffff, false, 0xfff8);
	code[0xfff8] = 0xeb; /* JMP to 0x1001a: 16-bit operand size */
	code[0xfff9] = 0x20;
	code[0x1a] = 0xcd;
	code[0x1b] = DONE;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.rip == 0x1c, "a near branch of 16 bits cuts EIP");
}

void test_main(void)
{
	code = (u8 *)alloc_pages(0x20);
	test_limit();
	test_64k();
}
