// SPDX-License-Identifier: MIT
// Instructions at their edges: string instructions and faults in their midst, LOCK and #UD, #DE, #AC,
// #NM, #GP for privilege, canonical and alignment checks of vector operands, the interrupt flag.
#include "kit.h"

#define AT FREE_VA

CODE(movsb_back, "std; rep movsb; cld");
CODE(movsb, "cld; rep movsb");
CODE(movsq, "cld; movs_at: rep movsq");
CODE(stosq, "cld; stos_at: rep stosq");
CODE(lodsb, "cld; rep lodsb");
CODE(cmpsb, "cld; repe cmpsb");
CODE(scasb, "cld; repne scasb");
CODE(movsb_addr32, "cld; addr32 rep movsb");
CODE(outsb, "cld; outs_at: rep outsb");
CODE(lock_add_reg, ".byte 0xf0, 0x48, 0x01, 0xc0");
CODE(lock_mov, ".byte 0xf0, 0x48, 0x89, 0x07");
CODE(lock_cmp, ".byte 0xf0, 0x48, 0x39, 0x07");
CODE(lock_nop, ".byte 0xf0, 0x90");
CODE(lock_jmp, ".byte 0xf0, 0xeb, 0x00");
CODE(lock_xchg, "lock xchg %rax, (%rdi)");
CODE(ud2, "ud2");
CODE(ud0, ".byte 0x0f, 0xff, 0xc0");
CODE(ud1, ".byte 0x0f, 0xb9, 0xc0");
CODE(bad_64, ".byte 0x06"); /* PUSH ES */
CODE(bad_daa, ".byte 0x27");
CODE(bad_grp, ".byte 0xff, 0xf8"); /* FF /7 */
CODE(bad_lea, ".byte 0x48, 0x8d, 0xc0"); /* LEA of a register */
CODE(bad_mov_cs, ".byte 0x8e, 0xc8"); /* MOV to CS */
CODE(bad_vex, ".byte 0x66, 0xc5, 0xf8, 0x28, 0xc0"); /* VEX behind 66 */
CODE(too_long, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66, 0x89, 0xc0");
CODE(longest, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66, 0x89, 0xc0");
CODE(div_zero, "xor %edx, %edx; xor %ecx, %ecx; div %rcx");
CODE(div_overflow, "mov $2, %edx; mov $2, %ecx; div %ecx");
CODE(idiv_overflow, "mov $0x8000000000000000, %rax; cqo; mov $-1, %rcx; idiv %rcx");
CODE(load_ac, "pushfq; orl $0x40000, (%rsp); popfq; mov 1(%rdi), %rax");
CODE(load2_ac, "pushfq; orl $0x40000, (%rsp); popfq; mov 1(%rdi), %al");
CODE(fpu, "fld1");
CODE(sse, "addps %xmm0, %xmm0");
CODE(movaps, "movaps (%rdi), %xmm0");
CODE(movups, "movups (%rdi), %xmm0");
CODE(addps_mem, "addps (%rdi), %xmm0");
CODE(cli, "cli");
CODE(hlt, "hlt");
CODE(in_port, "in $0x80, %al");
CODE(mov_cr, "mov %cr0, %rax");
CODE(wbinvd, "wbinvd");
CODE(lgdt, "lgdt (%rdi)");
CODE(rdmsr_user, "rdmsr");
CODE(swapgs, "swapgs");
CODE(sgdt, "sgdt (%rdi)");
CODE(smsw, "smsw %eax");
CODE(popf_user, "pushq $0x3202; popfq; pushfq; pop %rbx");
CODE(popf_fixed, "pushq $0; popfq; pushfq; pop %rbx; pushq $0x3f7fd7; popfq; pushfq; pop %rcx");
CODE(sahf_lahf, "mov $0xff, %ah; sahf; lahf");
CODE(enter, "mov %rsp, %rax; enter $16, $2; mov %rbp, %rbx; leave");
CODE(rip_relative, "mov rip_data(%rip), %rax; jmp 1f\n rip_data: .quad 0x1122334455667788\n 1: nop");
CODE(partial, "mov $-1, %rax; mov $1, %eax; mov $-1, %rbx; mov $1, %bx; mov $-1, %rcx; mov $1, %ch");
CODE(shifts, "mov $1, %eax; mov $33, %ecx; shl %cl, %eax; mov $1, %ebx; mov $65, %ecx; shl %cl, %rbx; mov $0, %cl; stc; shl %cl, %edx; setc %sil");
CODE(cmov_fault, "xor %eax, %eax; cmovnz (%rdi), %rbx");
CODE(cmov_zero, "mov $-1, %rbx; cmp $1, %eax; cmovz %eax, %ebx");
CODE(bt_far, "bts %rax, (%rdi)");
CODE(push_rsp, "push %rsp; pop %rax; push %rsp; mov (%rsp), %rbx; pop %rcx; push %rdi; pop %rsp");
CODE(pop_mem_rsp, "push %rax; pop 8(%rsp)");
CODE(jrcx, "mov $0x100000000, %rcx; jrcxz 1f; mov $1, %eax; addr32 jrcxz 1f; mov $2, %eax\n 1: nop");
CODE(call_far_absolute, "lcall *far_pointer; jmp 2f\n 1: mov $5, %ebx; lretl\n"
	" far_pointer: .long 1b, 0x08; .quad 0\n 2: pushq far_pointer; pop %rcx"); /* CS64 */
LABEL(movs_at);
LABEL(stos_at);
LABEL(outs_at);

/* An unmasked division by zero: the environment that FNSTENV and FXSAVE show. */
CODE(x87_div, "fninit; fldcw (%rsi); fld1\n x87_div_at: fdivl 8(%rdi); fnstenv (%rdx); fxsave64 (%rbx); fnclex");
CODE(x87_div_fs, "fninit; fldcw (%rsi); fld1\n x87_div_fs_at: fdivs %fs:4; fnstenv (%rdx); fxsave64 (%rbx); fnclex");
CODE(x87_div_st, "fninit; fldcw (%rsi); fldz; fld1\n x87_div_st_at: fdivp; fnstenv (%rdx); fxsave64 (%rbx); fnclex");
CODE(x87_masked, "fninit; fld1; faddl 16(%rdi); fnstenv (%rdx); fxsave64 (%rbx)");
CODE(x87_mf, "fninit; fldcw (%rsi); fld1; fdivl 8(%rdi)\n x87_mf_at: fwait");
LABEL(x87_div_at);
LABEL(x87_div_fs_at);
LABEL(x87_div_st_at);
LABEL(x87_mf_at);

static void test_x87_pointers(void)
{
	static double zeros[4];
	static u16 control = 0x37f & ~4; /* ZM */
	static u32 environment[7];
	static struct { u16 control, status; u8 tags, reserved; u16 opcode; u64 ip, dp; } fx[512 / 24 + 1]
		__attribute__((aligned(16)));
	static const struct { const u8 *code, *at; u16 opcode; bool memory; const char *name; } rows[] = {
		{ x87_div, x87_div_at, 0x477, true, "FDIV m64" }, /* DC /6 [rdi+8] */
		{ x87_div_fs, x87_div_fs_at, 0x034, true, "FDIV m32, FS" }, /* D8 /6 [disp32] */
		{ x87_div_st, x87_div_st_at, 0x6f1, false, "FDIVP" /* as the assembler spells DE F1 */ },
	};

	for (unsigned i = 0; i < 3; i++) {
		struct run r = run_default(rows[i].code);

		r.gpr[RDI] = ADDR(zeros);
		r.gpr[RSI] = ADDR(&control);
		r.gpr[RDX] = ADDR(environment);
		r.gpr[RBX] = ADDR(fx);
		wrmsr(MSR_FS_BASE, ADDR(zeros));
		run(&r);
		CHECK_DONE(rows[i].name);
		CHECK_EQ(environment[3], (u32)ADDR(rows[i].at), "FIP is the guest's");
		CHECK_EQ(environment[4] >> 16, rows[i].opcode, "FOP");
		CHECK_EQ(fx[0].ip, ADDR(rows[i].at), "FIP in FXSAVE");
		CHECK_EQ(fx[0].opcode, rows[i].opcode, "FOP in FXSAVE");
		if (!rows[i].memory)
			continue;
		CHECK_EQ(fx[0].dp, i == 1 ? 4 : ADDR(zeros) + 8, "FDP: the operand's offset");
		CHECK_EQ(environment[5], (u32)fx[0].dp, "the same in FNSTENV");
	}
	struct run r = run_default(x87_masked);
	r.gpr[RDI] = ADDR(zeros);
	r.gpr[RDX] = ADDR(environment);
	r.gpr[RBX] = ADDR(fx);
	run(&r);
	CHECK(fx[0].dp != ADDR(zeros) + 16 && fx[0].opcode != 0x447, "without an unmasked exception FDP and FOP stay");
	r = run_default(x87_mf);
	r.gpr[RDI] = ADDR(zeros);
	r.gpr[RSI] = ADDR(&control);
	run(&r);
	CHECK(outcome.vector == MF && outcome.rip == ADDR(x87_mf_at), "#MF at the next waiting instruction");
	__asm__ volatile("fnclex");
}

static u8 from[64], to[64];

static void test_strings(void)
{
	struct run r = run_default(movsb_back);

	for (int i = 0; i < 64; i++) {
		from[i] = i;
		to[i] = 0;
	}
	r.gpr[RSI] = ADDR(from) + 15;
	r.gpr[RDI] = ADDR(to) + 15;
	r.gpr[RCX] = 8;
	run(&r);
	CHECK(to[15] == 15 && to[8] == 8 && to[7] == 0, "REP MOVSB with DF=1");
	CHECK(outcome.gpr[RSI] == ADDR(from) + 7 && outcome.gpr[RCX] == 0, "ends below");
	r = run_default(movsb);
	r.gpr[RSI] = ADDR(from);
	r.gpr[RDI] = ADDR(from) + 1;
	r.gpr[RCX] = 8;
	run(&r);
	CHECK(from[8] == 0 && from[4] == 0 && from[9] == 9, "REP MOVSB that overlaps copies byte by byte");
	r.gpr[RCX] = 0;
	r.gpr[RSI] = FREE_VA;
	run(&r);
	CHECK_DONE("REP with RCX=0 touches nothing");
	r = run_default(movsb_addr32);
	r.gpr[RSI] = ADDR(to) | 0xff00000000;
	r.gpr[RDI] = ADDR(from) | 0xff00000000;
	r.gpr[RCX] = 0x100000002;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RCX] == 0 && outcome.gpr[RSI] == ADDR(to) + 2,
		"REP MOVSB with 32-bit addresses: ESI, EDI, ECX");

	map_page(AT, ADDR(alloc_page()), PT_P | PT_U | PT_W);
	r = run_user(movsq);
	r.gpr[RSI] = AT;
	r.gpr[RDI] = AT + 4096 - 24;
	r.gpr[RCX] = 8;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U, "REP MOVSQ into a page that is not there");
	CHECK(outcome.rip == ADDR(movs_at) && outcome.gpr[RCX] == 5 && outcome.gpr[RDI] == AT + 4096 &&
		outcome.gpr[RSI] == AT + 24 && outcome.cr2 == AT + 4096, "RIP at it, three done");
	r.gpr[RSI] = AT + 4096 - 16;
	r.gpr[RDI] = AT;
	run(&r);
	CHECK_FAULT(PF, PF_U, "REP MOVSQ out of a page that is not there");
	CHECK(outcome.gpr[RCX] == 6 && outcome.gpr[RSI] == AT + 4096, "two done");
	r = run_user(stosq);
	r.gpr[RDI] = AT + 4096 - 12;
	r.gpr[RCX] = 3;
	run(&r);
	CHECK(outcome.vector == PF && outcome.rip == ADDR(stos_at) && outcome.gpr[RCX] == 2 &&
		outcome.gpr[RDI] == AT + 4096 - 4, "REP STOSQ: the element across the edge is not stored");
	r = run_default(cmpsb);
	memcpy(to, "abcdefgh", 8);
	memcpy(from, "abcdxfgh", 8);
	r.gpr[RSI] = ADDR(from);
	r.gpr[RDI] = ADDR(to);
	r.gpr[RCX] = 8;
	run(&r);
	CHECK(outcome.gpr[RCX] == 3 && !(outcome.rflags & FL_ZF), "REPE CMPSB stops behind the difference");
	r = run_default(scasb);
	r.gpr[RDI] = ADDR(to);
	r.gpr[RCX] = 8;
	r.gpr[RAX] = 'c';
	run(&r);
	CHECK(outcome.gpr[RCX] == 5 && (outcome.rflags & FL_ZF), "REPNE SCASB stops behind the match");
	r = run_default(lodsb);
	r.gpr[RSI] = ADDR(to);
	r.gpr[RCX] = 3;
	run(&r);
	CHECK_EQ((u8)outcome.gpr[RAX], 'c', "REP LODSB");
	r = run_default(outsb);
	r.gpr[RSI] = AT + 4094;
	r.gpr[RCX] = 4;
	r.gpr[RDX] = 0x80;
	run(&r);
	CHECK(outcome.vector == PF && outcome.gpr[RCX] == 2 && outcome.rip == ADDR(outs_at), "REP OUTSB up to a page that is not there");
	unmap_page(AT);
}

static void test_undefined(void)
{
	static const struct {
		const u8 *code;
		const char *name;
	} rows[] = {
		{lock_add_reg, "LOCK ADD to a register"}, {lock_mov, "LOCK MOV"}, {lock_cmp, "LOCK CMP"},
		{lock_nop, "LOCK NOP"}, {lock_jmp, "LOCK JMP"}, {ud2, "UD2"}, {ud0, "UD0"}, {ud1, "UD1"},
		{bad_64, "PUSH ES in 64-bit mode"}, {bad_daa, "DAA in 64-bit mode"}, {bad_grp, "FF /7"},
		{bad_lea, "LEA of a register"}, {bad_mov_cs, "MOV to CS"}, {bad_vex, "VEX behind a 66 prefix"},
	};
	struct run r;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = run_user(rows[i].code);
		r.gpr[RDI] = ADDR(to);
		run(&r);
		if (CHECK_FAULT(UD, 0, rows[i].name))
			CHECK(outcome.rip == ADDR(rows[i].code) + 4, "RIP at it");
	}
	r = run_user(too_long);
	run(&r);
	CHECK_FAULT(GP, 0, "an instruction of 16 bytes is #GP(0)");
	r = run_user(longest);
	run(&r);
	CHECK_DONE("one of 15 bytes is not");
	r = run_user(lock_xchg);
	r.gpr[RDI] = ADDR(to);
	run(&r);
	CHECK_DONE("LOCK XCHG");
}

static void test_faults(void)
{
	static const struct {
		const u8 *code;
		u64 vector;
		const char *name;
	} rows[] = {
		{div_zero, DE, "DIV by 0"}, {div_overflow, DE, "DIV, quotient too large"},
		{idiv_overflow, DE, "IDIV, quotient too large"},
		{cli, GP, "CLI in ring 3, IOPL 0"}, {hlt, GP, "HLT in ring 3"}, {in_port, GP, "IN in ring 3"},
		{mov_cr, GP, "MOV from CR0 in ring 3"}, {wbinvd, GP, "WBINVD in ring 3"},
		{lgdt, GP, "LGDT in ring 3"}, {rdmsr_user, GP, "RDMSR in ring 3"}, {swapgs, GP, "SWAPGS in ring 3"},
	};
	struct run r;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = run_user(rows[i].code);
		r.gpr[RDI] = ADDR(to);
		run(&r);
		CHECK_FAULT(rows[i].vector, 0, rows[i].name);
	}
	u32 a[4];
	cpuid(7, 0, a);
	if (a[2] & 4) {
		r = run_user(sgdt);
		r.gpr[RDI] = ADDR(to);
		r.cr4 = CR4_UMIP;
		run(&r);
		CHECK_FAULT(GP, 0, "SGDT in ring 3 with UMIP");
		r.rip = ADDR(smsw);
		run(&r);
		CHECK_FAULT(GP, 0, "SMSW in ring 3 with UMIP");
		r.cr4 = 0;
		run(&r);
		CHECK_DONE("and without");
	}

	write_cr0(read_cr0() | CR0_AM);
	r = run_user(load_ac);
	r.gpr[RDI] = ADDR(from) & ~7ull;
	run(&r);
	CHECK_FAULT(AC, 0, "#AC: ring 3, AC=1, AM=1, an odd address");
	r.rip = ADDR(load2_ac);
	run(&r);
	CHECK_DONE("a byte is never misaligned");
	r = run_default(load_ac);
	r.gpr[RDI] = ADDR(from) & ~7ull;
	run(&r);
	CHECK_DONE("no #AC in ring 0");
	write_cr0(read_cr0() & ~(u64)CR0_AM);
	r = run_user(load_ac);
	r.gpr[RDI] = ADDR(from) & ~7ull;
	run(&r);
	CHECK_DONE("no #AC with AM=0");

	write_cr0(read_cr0() | CR0_TS);
	r = run_user(fpu);
	run(&r);
	CHECK_FAULT(NM, 0, "x87 with CR0.TS=1");
	r.rip = ADDR(sse);
	run(&r);
	CHECK_FAULT(NM, 0, "SSE with CR0.TS=1");
	write_cr0(read_cr0() & ~(u64)CR0_TS);
	write_cr0(read_cr0() | 4); /* EM */
	r.rip = ADDR(sse);
	run(&r);
	CHECK_FAULT(UD, 0, "SSE with CR0.EM=1");
	write_cr0(read_cr0() & ~4ull);
	r.rip = ADDR(movaps);
	r.gpr[RDI] = (ADDR(from) & ~15ull) + 8;
	run(&r);
	CHECK_FAULT(GP, 0, "MOVAPS of an address that is not 16-aligned");
	r.rip = ADDR(addps_mem);
	run(&r);
	CHECK_FAULT(GP, 0, "ADDPS of an operand that is not 16-aligned");
	r.rip = ADDR(movups);
	run(&r);
	CHECK_DONE("MOVUPS");
	r.rip = ADDR(movaps);
	r.gpr[RDI] = FREE_VA + 8;
	run(&r);
	CHECK_FAULT(GP, 0, "MOVAPS: #GP goes before #PF");
}

static void test_values(void)
{
	struct run r = run_user(popf_user);

	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 0x202 & ~0x200ull, "POPF in ring 3 changes neither IF nor IOPL");
	r = run_default(popf_fixed);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], FL_FIXED, "bit 1 of RFLAGS is always 1");
	CHECK_EQ(outcome.gpr[RCX] & 0x28, 0, "bits 3 and 5 are always 0");
	r = run_default(sahf_lahf);
	run(&r);
	CHECK_EQ((u8)(outcome.gpr[RAX] >> 8), 0xd7, "SAHF and LAHF");
	r = run_default(rip_relative);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x1122334455667788, "RIP-relative load");
	r = run_default(partial);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 1, "a 32-bit result clears the upper half");
	CHECK_EQ(outcome.gpr[RBX], 0xffffffffffff0001, "a 16-bit result leaves it");
	CHECK_EQ(outcome.gpr[RCX], 0xffffffffffff01ff, "CH");
	r = run_default(shifts);
	run(&r);
	CHECK(outcome.gpr[RAX] == 2 && outcome.gpr[RBX] == 2, "shift counts are taken modulo 32 and 64");
	CHECK_EQ((u8)outcome.gpr[RSI], 1, "a shift by 0 leaves the flags");
	r = run_user(cmov_fault);
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_FAULT(PF, PF_U, "CMOV reads memory though the condition is false");
	r = run_default(cmov_zero);
	run(&r);
	CHECK_EQ(outcome.gpr[RBX], 0xffffffff, "a 32-bit CMOV clears the upper half though the condition is false");
	r = run_default(bt_far);
	r.gpr[RDI] = ADDR(to) + 32;
	r.gpr[RAX] = -8 * 16ll;
	to[16] = 0;
	run(&r);
	CHECK_EQ(to[16], 1, "BTS of memory with a negative bit offset");
	r = run_default(push_rsp);
	r.gpr[RDI] = 0x7777;
	run(&r);
	CHECK(outcome.gpr[RAX] == stack_top(0) && outcome.gpr[RBX] == stack_top(0) && outcome.rsp == 0x7777,
		"PUSH RSP and POP RSP");
	r = run_default(pop_mem_rsp);
	r.gpr[RAX] = 0xfeed;
	r.gpr[RSP] = stack_top(0) - 64;
	run(&r);
	CHECK_EQ(*(u64 *)(stack_top(0) - 56), 0xfeed, "POP to memory addressed by RSP uses RSP after the pop");
	r = run_default(call_far_absolute);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 5 && outcome.gpr[RCX] >> 32 == CS64,
		"CALL FAR and PUSH with an operand that has neither base nor index");
	r = run_default(jrcx);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 1, "JRCXZ looks at 64 bits, JECXZ at 32");
	r = run_default(enter);
	r.gpr[RBP] = stack_top(1) - 64;
	run(&r);
	CHECK(outcome.gpr[RBX] == outcome.gpr[RAX] - 8 && outcome.rsp == outcome.gpr[RAX], "ENTER with a level, and LEAVE");
}

void test_main(void)
{
	test_x87_pointers();
	test_strings();
	test_undefined();
	test_faults();
	test_values();
}
