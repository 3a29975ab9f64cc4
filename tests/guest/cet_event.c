// SPDX-License-Identifier: MIT
// Event delivery and IRET with shadow stacks: same ring, inner ring, interrupt shadow stack table,
// frames, tokens.
#include "kit.h"

#define VEC 0x30
#define IST3_TOKEN (SS_BASE + 0x4000 + 0x5f8)
#define FRAME(n) (*ss_mem(SS_TOKEN - 24 + 8 * (n)))

/* Interrupted code: SSP before in RBX, after in RBP. What the handler saw: SSP in RCX. */
CODE(int30, "rdsspq %rbx; int $0x30\n int30_after: rdsspq %rbp");
CODE(inc_int30, "incsspd %eax; rdsspq %rbx; int $0x30; rdsspq %rbp");
CODE(handler_iret, "rdsspq %rcx; iretq");
CODE(handler_stop, "rdsspq %rcx");
CODE(handler_change_rip, "rdsspq %rcx; addq $5, (%rsp)\n handler_change_rip_at: iretq");
CODE(handler_change_cs, "mov %rax, 8(%rsp); iretq");
CODE(handler_write, "mov %rax, (%rdi); iretq");
CODE(handler_inc, "incsspd %esi; iretq");
CODE(handler_wrmsr, "push %rcx; push %rax; push %rdx; mov $0x6a7, %ecx; mov %r8d, %eax; mov %r8, %rdx; shr $32, %rdx;"
	"wrmsr; pop %rdx; pop %rax; pop %rcx; iretq");
CODE(user_ud, "rdsspq %rbx\n user_ud_at: ud2");
CODE(kernel_ud, "ud2");
/* CLRSSBSY leaves SSP 0: the next push goes to the last page, which is not there. */
CODE(no_ssp_int30, "clrssbsy (%r9)\n no_ssp_int30_at: int $0x30");
CODE(no_ssp_pf, "clrssbsy (%r9); mov (%rdi), %rax");
LABEL(no_ssp_int30_at);
CODE32(int30_32, "rdsspd %ebx; int $0x30; rdsspd %ebp");
LABEL(int30_after);
LABEL(handler_change_rip_at);
LABEL(user_ud_at);

static struct run kernel(const void *code)
{
	return run_ss0(code);
}

static struct run user(const void *code)
{
	struct run r = run_ss3(code);

	r.s_cet = CET_SHSTK_EN;
	return r;
}

static void test_same_ring(void)
{
	struct run r = kernel(int30);

	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n in ring 0, IST 0, and IRET");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN - 24, "delivery in the same ring pushes 24 bytes");
	CHECK_EQ(FRAME(0), SS_TOKEN, "frame: the old SSP at the bottom");
	CHECK_EQ(FRAME(1), ADDR(int30_after), "frame: LIP");
	CHECK_EQ(FRAME(2), CS64, "frame: CS on top");
	CHECK_EQ(outcome.gpr[RBP], SS_TOKEN, "IRET in the same ring pops the frame");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN | 1, "IRET from IST 0 frees no token, though one lies above the frame");

	r = kernel(inc_int30);
	r.gpr[RAX] = 1;
	r.pl0_ssp = SS_BASE + 0x17f8;
	*ss_mem(r.pl0_ssp) = r.pl0_ssp;
	run(&r);
	CHECK_DONE("INT n with SSP 4-aligned");
	CHECK_EQ(outcome.gpr[RCX], SS_BASE + 0x17f8 - 24, "SSP is aligned down to 8 first");
	CHECK_EQ(*ss_mem(SS_BASE + 0x17f8), SS_BASE >> 32 << 32, "with four bytes of 0 in the hole");
	CHECK_EQ(*ss_mem(SS_BASE + 0x17f8 - 24), SS_BASE + 0x17fc, "the frame has the unaligned SSP");
	CHECK_EQ(outcome.gpr[RBP], SS_BASE + 0x17fc, "IRET goes back to it");

	r = kernel(int30);
	set_gate(VEC, handler_change_rip, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET to a changed RIP is #CP(FAR-RET/IRET)");
	CHECK_EQ(outcome.rip, ADDR(handler_change_rip_at), "a fault at the IRET");
	CHECK_EQ(outcome.ssp, SS_TOKEN - 24, "it leaves SSP");
	set_gate(VEC, handler_change_cs, CS64, 0, 3, GATE_INT);
	set_descriptor(FREE_SEL, gdt[CS64 / 8]);
	r.gpr[RAX] = FREE_SEL;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET to a changed CS");
	set_gate(VEC, handler_inc, CS64, 0, 3, GATE_INT);
	r.gpr[RSI] = 1;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET with SSP not 8-aligned");
	set_gate(VEC, handler_write, CS64, 0, 3, GATE_INT);
	r.gpr[RDI] = ADDR(ss_mem(SS_TOKEN - 24));
	r.gpr[RAX] = SS_TOKEN + 2;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET, popped SSP not 4-aligned");
	r.gpr[RAX] = 0x8000000000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "IRET, popped SSP not canonical: #GP(0)");
	r.gpr[RAX] = SS_TOKEN + 4;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBP] == SS_TOKEN + 4, "IRET takes the popped SSP as it is");

	/* Delivery that cannot push. */
	r = kernel(int30);
	r.pl0_ssp = SS_BASE + 0x18;
	*ss_mem(r.pl0_ssp) = r.pl0_ssp;
	unmap_page(SS_BASE - 4096);
	set_gate(VEC, handler_stop, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("the frame may reach the start of a page");
	r = kernel(no_ssp_int30);
	r.gpr[R9] = SS_TOKEN;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_SS, "INT n that cannot push on the shadow stack: #PF");
	CHECK_EQ(outcome.cr2, -8ull, "CR2 of that push");
	CHECK_EQ(outcome.rip, ADDR(no_ssp_int30_at), "at the INT");
	r = kernel(no_ssp_pf);
	r.gpr[R9] = SS_TOKEN;
	r.gpr[RDI] = FREE_VA;
	set_gate(PF, handler_stop, CS64, 0, 0, GATE_INT);
	run(&r);
	CHECK_FAULT(DF, 0, "#PF whose delivery takes a shadow-stack #PF is #DF");
	reset_gate(PF);
}

static void test_ist(void)
{
	struct run r = kernel(int30);
	u64 *token = ss_mem(IST3_TOKEN);
	u64 *table = alloc_page();

	set_gate(VEC, handler_iret, CS64, 3, 3, GATE_INT);
	tss.ist[2] = stack_top(4);
	kit_ssp_table[3] = IST3_TOKEN;
	*token = IST3_TOKEN;
	run(&r);
	CHECK_DONE("INT n with IST, same ring, and IRET");
	CHECK_EQ(outcome.gpr[RCX], IST3_TOKEN - 24, "SSP comes from the table, a frame is pushed");
	CHECK_EQ(token[-3], SS_TOKEN, "frame: the old SSP");
	CHECK_EQ(token[-2], ADDR(int30_after), "frame: LIP");
	CHECK_EQ(token[-1], CS64, "frame: CS");
	CHECK_EQ(outcome.gpr[RBP], SS_TOKEN, "IRET goes back to the old shadow stack");
	CHECK_EQ(*token, IST3_TOKEN, "IRET frees the token right above the frame");

	set_gate(VEC, handler_stop, CS64, 3, 3, GATE_INT);
	run(&r);
	CHECK_EQ(*token, IST3_TOKEN | 1, "delivery made the token busy");
	run(&r);
	CHECK_FAULT(GP, 0, "delivery with a busy token is #GP(0), not #CP");
	CHECK_EQ(outcome.ssp, SS_TOKEN, "it leaves SSP");
	CHECK_EQ(*token, IST3_TOKEN | 1, "and the token");
	*token = IST3_TOKEN + 8;
	run(&r);
	CHECK_FAULT(GP, 0, "delivery with a token of another place");
	*token = IST3_TOKEN;
	kit_ssp_table[3] = IST3_TOKEN + 4;
	run(&r);
	CHECK_FAULT(GP, 0, "delivery, table entry not 8-aligned");
	kit_ssp_table[3] = FREE_VA + 0x5f8;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_SS, "delivery, token page not there: #PF, a shadow-stack write");
	kit_ssp_table[3] = USS_BASE + 0x5f8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "delivery, token on a user shadow-stack page");
	kit_ssp_table[3] = stack_top(5) - 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_SS, "delivery, token on an ordinary page");
	kit_ssp_table[3] = IST3_TOKEN - 8;
	*ss_mem(IST3_TOKEN - 8) = IST3_TOKEN - 8;
	run(&r);
	CHECK_FAULT(GP, 0, "32-byte rule: token and frame must share an aligned block");
	CHECK_EQ(*ss_mem(IST3_TOKEN - 8), IST3_TOKEN - 8, "32-byte rule: the token stays free");
	kit_ssp_table[3] = IST3_TOKEN;
	*token = IST3_TOKEN;

	/* A token that is no longer what it was does not disturb IRET. */
	set_gate(VEC, handler_write, CS64, 3, 3, GATE_INT);
	r.gpr[RDI] = ADDR(token);
	r.gpr[RAX] = 0x1234;
	run(&r);
	CHECK(outcome.vector == DONE && *token == 0x1234, "IRET: a mismatch of the token to free is ignored");

	/* The table itself is read as ordinary supervisor data. The kit's own entries come along. */
	u64 far_table = FREE_VA + 0x10000;
	map_page(far_table, ADDR(table), PT_P | PT_W);
	memcpy(table, kit_ssp_table, 64);
	table[1] = IST_TOKEN;
	table[2] = IST2_TOKEN;
	*token = IST3_TOKEN;
	r.int_ssp_tab = far_table;
	set_gate(VEC, handler_iret, CS64, 3, 3, GATE_INT);
	run(&r);
	CHECK_DONE("the table may lie on a supervisor data page");
	map_page(far_table, ADDR(table), PT_P | PT_W | PT_U);
	run(&r);
	CHECK_DONE("or on a user page");
	r.int_ssp_tab = far_table + 0x1000 - 3 * 8;
	memcpy((u8 *)table + 0x1000 - 24, kit_ssp_table, 24);
	((u64 *)((u8 *)table + 0x1000 - 24))[1] = IST_TOKEN;
	((u64 *)((u8 *)table + 0x1000 - 24))[2] = IST2_TOKEN;
	run(&r);
	CHECK_FAULT(PF, 0, "table entry 3 on a page that is not there: #PF, an ordinary supervisor read");
	CHECK_EQ(outcome.cr2, far_table + 0x1000, "CR2 is the entry");
	unmap_page(far_table);

	/* From ring 3 the table counts too; nothing is pushed. */
	r = user(int30);
	set_gate(VEC, handler_iret, CS64, 3, 3, GATE_INT);
	*token = IST3_TOKEN;
	token[-1] = token[-2] = token[-3] = 0x5a;
	run(&r);
	CHECK_DONE("INT n with IST from ring 3, and IRET");
	CHECK_EQ(outcome.gpr[RCX], IST3_TOKEN, "from ring 3 no frame is pushed");
	CHECK_EQ(token[-1], 0x5a, "nothing below the token");
	CHECK_EQ(*token, IST3_TOKEN, "IRET to ring 3 frees the token at SSP");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "and SSP is the user's");
}

static void test_from_user(void)
{
	struct run r = user(int30);

	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n from ring 3, IST 0, and IRET");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN, "SSP is PL0_SSP, no frame");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "IRET to ring 3 frees the token");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "SSP is PL3_SSP again");

	set_gate(VEC, handler_stop, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN | 1, "delivery from ring 3 makes the token busy");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP, "delivery from ring 3 saves SSP in PL3_SSP");

	r.rip = ADDR(inc_int30);
	r.gpr[RAX] = 2;
	run(&r);
	CHECK_EQ(outcome.pl3_ssp, USS_TOP + 8, "as it is then, not as PL3_SSP was");
	r.rip = ADDR(int30);

	r.u_cet = 0;
	r.pl3_ssp = USS_BASE + 0x100;
	run(&r);
	CHECK_EQ(outcome.pl3_ssp, USS_BASE + 0x100, "without a user shadow stack PL3_SSP is left");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN, "and PL0_SSP is taken all the same");

	r = run_ss3(int30);
	run(&r);
	CHECK_DONE("INT n from ring 3 with S_CET.SHSTK_EN=0");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP, "saves SSP in PL3_SSP");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "and takes no token");

	/* A handler that changes PL3_SSP changes where IRET goes. */
	r = user(int30);
	set_gate(VEC, handler_wrmsr, CS64, 0, 3, GATE_INT);
	r.gpr[R8] = USS_BASE + 0x800;
	run(&r);
	CHECK_EQ(outcome.gpr[RBP], USS_BASE + 0x800, "IRET to ring 3 loads SSP from PL3_SSP");
	set_gate(VEC, handler_change_rip, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("IRET to ring 3 may change RIP: no frame is compared");
	set_gate(VEC, handler_write, CS64, 0, 3, GATE_INT);
	r.gpr[RDI] = ADDR(ss_mem(SS_TOKEN));
	r.gpr[RAX] = 0x4242;
	run(&r);
	CHECK(outcome.vector == DONE && *ss_mem(SS_TOKEN) == 0x4242,
		"IRET to ring 3: a mismatch of the token is ignored");

	static const struct {
		u64 pl0_ssp, token, vector, error;
		const char *name;
	} rows[] = {
		{SS_BASE + 0x2ff8, (SS_BASE + 0x2ff8) | 1, GP, 0, "INT n from ring 3, busy token: #GP(0)"},
		{SS_BASE + 0x2ff8, SS_BASE + 0x2ff0, GP, 0, "INT n from ring 3, token of another place"},
		{SS_BASE + 0x2ffc, 0, GP, 0, "INT n from ring 3, PL0_SSP not 8-aligned"},
		{FREE_VA + 0x18, 0, PF, PF_W | PF_SS, "INT n from ring 3, token page not there: a supervisor access"},
		{USS_BASE + 0x2ff8, 0, PF, PF_P | PF_W | PF_SS, "INT n from ring 3, token on a user page"},
	};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = user(int30);
		r.late_pl0_ssp = rows[i].pl0_ssp;
		if (rows[i].token)
			*ss_mem(rows[i].pl0_ssp) = rows[i].token;
		run(&r);
		CHECK_FAULT(rows[i].vector, rows[i].error, rows[i].name);
		CHECK(outcome.cs == UCS64 && outcome.pl3_ssp == USS_TOP, "it leaves ring 3 as it was");
	}

	r = user(user_ud);
	set_gate(UD, handler_stop, CS64, 0, 0, GATE_INT);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RCX] == SS_TOKEN, "an exception in ring 3 switches as INT n does");
	r = kernel(kernel_ud);
	run(&r);
	CHECK_EQ(FRAME(1), ADDR(kernel_ud) + 4, "an exception in ring 0 pushes the LIP of the fault");
	reset_gate(UD);

	/* From 32-bit code. */
	r = user(int30_32);
	r.cs = UCS32;
	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBP] == USS_TOP && outcome.gpr[RCX] == SS_TOKEN,
		"INT n from 32-bit code in ring 3, and IRET to it");
	set_gate(VEC, handler_wrmsr, CS64, 0, 3, GATE_INT);
	r.gpr[R8] = 0x100000000 + USS_BASE;
	run(&r);
	CHECK_FAULT(GP, 0, "IRET to 32-bit code in ring 3 with PL3_SSP above 4 GiB: #GP(0)");
	CHECK_EQ(outcome.cs, CS64, "at the IRET, in ring 0");
}

static void test_ring1(void)
{
	struct run r = run_ss0(int30);

	r.cs = CS64_R1;
	r.ss = DS_R1;
	r.outer_ssp = SS_BASE + 0x1ff8;
	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_DONE("INT n from ring 1, and IRET to it");
	CHECK_EQ(outcome.gpr[RBX], SS_BASE + 0x1ff8, "IRET to ring 1 took SSP from the frame");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN - 24, "from ring 1 a frame is pushed");
	CHECK_EQ(FRAME(0), SS_BASE + 0x1ff8, "frame: SSP of ring 1");
	CHECK_EQ(FRAME(2), CS64_R1, "frame: CS of ring 1");
	CHECK_EQ(outcome.gpr[RBP], SS_BASE + 0x1ff8, "IRET to ring 1 pops it");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "IRET to ring 1 frees the token above the frame");
	set_gate(VEC, handler_change_rip, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET to ring 1 with a changed RIP");
	set_gate(VEC, handler_inc, CS64, 0, 3, GATE_INT);
	r.gpr[RSI] = 1;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "IRET to ring 1 with SSP not 8-aligned");
	set_gate(VEC, handler_iret, CS64, 0, 3, GATE_INT);
}

void test_main(void)
{
	if (!has_shstk)
		return;
	test_same_ring();
	test_ist();
	test_from_user();
	test_ring1();
}
