// SPDX-License-Identifier: MIT
// Code that changes: in its own page and block, in another page, through another address, by string
// instructions, by the page tables.
#include "kit.h"

#define AT FREE_VA
#define ALIAS (FREE_VA + 0x100000)

/* Writes AL over the immediate of an instruction further on, in the same block. */
CODE(own_block, "mov %al, own_block_imm(%rip)\n .byte 0xbb\n own_block_imm: .byte 1, 0, 0, 0");
CODE(own_page, "mov %al, own_page_imm(%rip); jmp 1f\n 1: .byte 0xbb\n own_page_imm: .byte 1, 0, 0, 0");
/* A loop whose body changes itself each time round: EBX collects 0 + 1 + ... + 9. */
CODE(own_loop, "xor %ebx, %ebx; xor %eax, %eax\n 1: mov %al, own_loop_imm(%rip)\n .byte 0x81, 0xc3\n own_loop_imm: .byte 0xff, 0, 0, 0\n"
	"inc %eax; cmp $10, %eax; jne 1b");
/* REP MOVSB over what comes next. */
CODE(rep_next, "lea rep_next_new(%rip), %rsi; lea rep_next_old(%rip), %rdi; mov $5, %ecx; rep movsb\n"
	"rep_next_old: mov $1, %ebx; jmp 2f\n rep_next_new: mov $2, %ebx\n 2: nop");
/* Calls what RDI points at, writes AL to (RSI), calls it again. */
CODE(call_write_call, "call *%rdi; mov %ebx, %r12d; mov %al, (%rsi); call *%rdi; mov %ebx, %r13d");
CODE(call_only, "call *%rdi");
CODE(push_over, "lea push_over_end_imm(%rip), %rsp; push %rax; jmp 1f\n nop; nop; nop; nop; nop; nop; nop; nop\n"
	"1: .byte 0x48, 0xbb, 0, 0, 0, 0\n.byte 0, 0, 0, 0\n push_over_end_imm: mov %rdi, %rsp");
CODE(xadd_over, "mov $1, %eax; lock xadd %al, xadd_over_imm(%rip)\n .byte 0xbb\n xadd_over_imm: .byte 5, 0, 0, 0");
CODE(many, "mov $1000, %ecx\n 1: mov %cl, many_imm(%rip)\n .byte 0xb0\n many_imm: .byte 0\n cmp %cl, %al; jne 2f; loop 1b\n"
	"xor %ebx, %ebx; jmp 3f\n 2: mov $1, %ebx\n 3: nop");
LABEL(own_block_imm);

static const u8 returns_one[] = {0xbb, 1, 0, 0, 0, 0xc3}; /* mov $1, %ebx; ret */

void test_main(void)
{
	struct run r = run_default(own_block);

	for (int i = 7; i < 9; i++) {
		r.gpr[RAX] = i;
		run(&r);
		CHECK_EQ(outcome.gpr[RBX], i, "a store to the next instruction of the block");
		r.rip = ADDR(own_page);
		run(&r);
		CHECK_EQ(outcome.gpr[RBX], i, "a store to the same page, behind a jump");
		r.rip = ADDR(own_block);
	}
	r = run_default(own_loop);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 45, "a loop that changes itself");
	r = run_default(rep_next);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 2, "REP MOVSB over the next instruction");
	r = run_default(push_over);
	r.gpr[RAX] = 0x1234567812345678;
	r.gpr[RDI] = stack_top(0);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 0x1234567812345678, "PUSH over an immediate");
	r = run_default(xadd_over);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 6, "LOCK XADD over an immediate");
	r = run_default(many);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 0, "a thousand changes of one instruction");

	/* Code in a page of its own, written from another. */
	u8 *page = alloc_page(), *other = alloc_page();
	memcpy(page, returns_one, sizeof(returns_one));
	memcpy(other, returns_one, sizeof(returns_one));
	other[1] = 77;
	r = run_default(call_write_call);
	r.gpr[RDI] = ADDR(page);
	r.gpr[RSI] = ADDR(page) + 1;
	r.gpr[RAX] = 9;
	run(&r);
	CHECK(outcome.gpr[R12] == 1 && outcome.gpr[R13] == 9, "a store from another page");
	/* Through another linear address of the same frame. */
	map_page(ALIAS, ADDR(page), PT_P | PT_W | PT_U);
	r.gpr[RSI] = ALIAS + 1;
	r.gpr[RAX] = 10;
	run(&r);
	CHECK(outcome.gpr[R12] == 9 && outcome.gpr[R13] == 10, "a store through another address of the page");
	map_page(AT, ADDR(page), PT_P | PT_U);
	r.gpr[RDI] = AT;
	r.gpr[RAX] = 11;
	run(&r);
	CHECK(outcome.gpr[R12] == 10 && outcome.gpr[R13] == 11, "run at one address, changed through another");
	r.gpr[RDI] = ADDR(page);
	r.gpr[RSI] = ADDR(page) + 1;
	run(&r);
	CHECK_EQ(outcome.gpr[R12], 11, "and both addresses see it");

	/* The page table points to other code. */
	r = run_default(call_only);
	r.gpr[RDI] = AT;
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 11, "code at an address ...");
	map_page(AT, ADDR(other), PT_P | PT_U);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 77, "... of which the page was mapped anew");
	*pte_of(AT, 1) = ADDR(page) | PT_P | PT_U;
	write_cr3(read_cr3());
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 11, "... and back, by MOV to CR3");

	/* An instruction across two pages, the second half of which is changed. */
	u8 *two = (u8 *)alloc_pages(2);
	memcpy(two + 4094, returns_one, sizeof(returns_one)); /* immediate: bytes 4095 to 4098 */
	r = run_default(call_write_call);
	r.gpr[RDI] = ADDR(two) + 4094;
	r.gpr[RSI] = ADDR(two) + 4096;
	r.gpr[RAX] = 3;
	run(&r);
	CHECK(outcome.gpr[R12] == 1 && outcome.gpr[R13] == 0x301, "the second page of an instruction is changed");
	r.gpr[RSI] = ADDR(two) + 4095;
	run(&r);
	CHECK(outcome.gpr[R12] == 0x301 && outcome.gpr[R13] == 0x303, "the first page of an instruction is changed");
	(void)own_block_imm;
}
