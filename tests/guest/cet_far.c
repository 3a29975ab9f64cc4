// SPDX-License-Identifier: MIT
// Far CALL, far RET, far JMP and call gates with shadow stacks.
#include "kit.h"

#define FRAME(at, n) (*ss_mem((at) - 24 + 8 * (n)))
#define HIGH_SS (FREE_VA_HIGH + 0x1000)
#define GATE FREE_SEL /* 16 bytes: GATE and GATE + 8 */
#define ALIAS_CS (FREE_SEL + 0x18) /* like UCS64 */
#define ALIAS_CS0 (FREE_SEL + 0x20) /* like CS64 */

/* The far pointer for lcall is at (%rdi). SSP before in RBX, inside in RCX, after in RBP. */
CODE(far_call, "rdsspq %rbx; rex.w lcall *(%rdi)\n far_call_after: rdsspq %rbp");
CODE(inc_far_call, "incsspd %eax; rdsspq %rbx; rex.w lcall *(%rdi); rdsspq %rbp");
CODE(far_jmp, "rdsspq %rbx; ljmpl *(%rdi)");
CODE(target_ret, "rdsspq %rcx; lretq");
CODE(target_stop, "rdsspq %rcx");
CODE(target_change_rip, "rdsspq %rcx; addq $5, (%rsp)\n target_change_rip_at: lretq");
CODE(target_change_cs, "mov %rax, 8(%rsp); lretq");
CODE(target_write, "mov %rax, (%rsi); lretq");
CODE(target_inc, "mov $1, %eax; incsspd %eax; lretq");
CODE(target_wrmsr, "mov $0x6a7, %ecx; mov %r8d, %eax; mov %r8, %rdx; shr $32, %rdx; wrmsr; lretq");
CODE(target_rdmsr, "mov $0x6a7, %ecx; rdmsr; shl $32, %rdx; or %rdx, %rax; mov %rax, %r9; rdsspq %rcx; lretq");
CODE32(target32_stop, "rdsspd %ecx");
CODE32(target32_ret, "rdsspd %ecx; lret");
CODE(far_call32, "rdsspq %rbx; lcall *(%rdi)\n far_call32_after: rdsspq %rbp");
/* Leaves 64-bit code by RETF: CS and EIP are put on the stack by hand, with a matching frame. */
LABEL(far_call_after);
LABEL(target_change_rip_at);

static struct {
	u64 offset;
	u16 selector;
} __attribute__((packed)) pointer __attribute__((aligned(16)));
static struct {
	u32 offset;
	u16 selector;
} __attribute__((packed)) pointer32 __attribute__((aligned(16)));

static void aim(struct run *r, const void *target, u16 selector)
{
	pointer.offset = ADDR(target);
	pointer.selector = selector;
	pointer32.offset = ADDR(target);
	pointer32.selector = selector;
	r->gpr[RDI] = r->rip == ADDR(far_jmp) || r->rip == ADDR(far_call32) ? ADDR(&pointer32) : ADDR(&pointer);
}

static void test_same_ring(void)
{
	struct run r = run_ss3(far_call);
	u64 *alias = ss_mem(USS_TOP - 24);

	aim(&r, target_ret, UCS64);
	run(&r);
	CHECK_DONE("far CALL and RET in the same ring");
	CHECK_EQ(outcome.gpr[RCX], USS_TOP - 24, "far CALL pushes 24 bytes on the shadow stack");
	CHECK_EQ(alias[0], USS_TOP, "frame: the old SSP at the bottom");
	CHECK_EQ(alias[1], ADDR(far_call_after), "frame: LIP");
	CHECK_EQ(alias[2], UCS64, "frame: CS on top");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "far RET pops them");

	r = run_ss3(inc_far_call);
	r.pl3_ssp = USS_BASE + 0x1800;
	r.gpr[RAX] = 1;
	*ss_mem(USS_BASE + 0x1800) = ~0ull;
	aim(&r, target_ret, UCS64);
	run(&r);
	CHECK_DONE("far CALL with SSP 4-aligned, and RET");
	CHECK_EQ(outcome.gpr[RCX], USS_BASE + 0x1800 - 24, "SSP is aligned down to 8 first");
	CHECK_EQ(*ss_mem(USS_BASE + 0x1800), 0xffffffff00000000, "four bytes of 0 in the hole");
	CHECK_EQ(FRAME(USS_BASE + 0x1800, 0), USS_BASE + 0x1804, "the frame has the unaligned SSP");
	CHECK_EQ(outcome.gpr[RBP], USS_BASE + 0x1804, "far RET goes back to it");

	r = run_ss3(far_call);
	aim(&r, target_change_rip, UCS64);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET to a changed RIP is #CP(FAR-RET/IRET)");
	CHECK_EQ(outcome.rip, ADDR(target_change_rip_at), "a fault at the RET");
	CHECK_EQ(outcome.pl3_ssp, USS_TOP - 24, "it leaves SSP");
	CHECK_EQ(outcome.rsp, stack_top(0) - 16, "and RSP");
	aim(&r, target_change_cs, UCS64);
	r.gpr[RAX] = ALIAS_CS | 3;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET to a changed CS");
	aim(&r, target_inc, UCS64);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET with SSP not 8-aligned");
	aim(&r, target_write, UCS64);
	r.gpr[RSI] = ADDR(&alias[0]);
	r.gpr[RAX] = USS_TOP + 2;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET, popped SSP not 4-aligned");
	r.gpr[RAX] = 0x8000000000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "far RET, popped SSP not canonical: #GP(0)");
	r.gpr[RAX] = USS_BASE + 0x100;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBP] == USS_BASE + 0x100, "far RET takes the popped SSP as it is");
	r.gpr[RSI] = ADDR(&alias[2]);
	r.gpr[RAX] = UCS64 | 0x10000;
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET compares all 64 bits of the CS slot");

	/* No token is freed in the same ring. */
	r = run_ss0(far_call);
	aim(&r, target_ret, CS64);
	run(&r);
	CHECK(outcome.vector == DONE && *ss_mem(SS_TOKEN) == (SS_TOKEN | 1), "far RET in the same ring frees no token");
	CHECK_EQ(FRAME(SS_TOKEN, 2), CS64, "far CALL in ring 0: CS");

	/* Faults of the push. */
	r = run_ss3(far_call);
	aim(&r, target_ret, UCS64);
	r.pl3_ssp = USS_BASE + 8;
	run(&r);
	CHECK_FAULT(PF, PF_W | PF_U | PF_SS, "far CALL that overflows the shadow stack");
	CHECK(outcome.pl3_ssp == USS_BASE + 8 && outcome.rsp == stack_top(0) &&
		outcome.rip == ADDR(far_call_after) - 3, "leaves SSP, RSP, RIP");

	r = run_ss3(far_jmp);
	aim(&r, target_stop, UCS64);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RCX] == USS_TOP, "far JMP leaves the shadow stack alone");
}

static void test_sizes(void)
{
	struct run r = run_ss3(far_call32);

	aim(&r, target32_ret, UCS32);
	run(&r);
	CHECK_DONE("far CALL from 64-bit to 32-bit code, and RET");
	CHECK_EQ(outcome.gpr[RCX], USS_TOP - 24, "it pushes the same frame");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "and pops it");

	map_page(HIGH_SS, ADDR(ss_mem(USS_BASE + 0x3000)), PT_SS | PT_U);
	r = run_ss3(far_call32);
	r.pl3_ssp = HIGH_SS + 0xff8;
	aim(&r, target32_ret, UCS32);
	run(&r);
	CHECK_FAULT(GP, 0, "far CALL to 32-bit code with SSP above 4 GiB: #GP(0)");
	CHECK_EQ(outcome.pl3_ssp, HIGH_SS + 0xff8, "it leaves SSP");
	r = run_ss3(far_jmp);
	r.pl3_ssp = HIGH_SS + 0xff8;
	aim(&r, target32_stop, UCS32);
	run(&r);
	CHECK_FAULT(GP, 0, "far JMP to 32-bit code with SSP above 4 GiB: #GP(0)");
	r.pl3_ssp = USS_TOP;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.cs == UCS32, "far JMP to 32-bit code with SSP below");
	r = run_ss3(far_call);
	r.pl3_ssp = HIGH_SS + 0xff8;
	aim(&r, target_ret, UCS64);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RCX] == HIGH_SS + 0xff8 - 24, "far CALL to 64-bit code with SSP above 4 GiB");

	/* The popped SSP when RETF goes back to 32-bit code. */
	LABEL(far32_frame);
	r = run_ss3(far_jmp);
	aim(&r, far32_frame, UCS32);
	pointer.offset = 0;
	r.gpr[RSI] = ADDR(ss_mem(USS_TOP - 24));
	r.gpr[RAX] = 1;
	run(&r);
	CHECK_FAULT(GP, 0, "far RET to 32-bit code, popped SSP above 4 GiB: #GP(0)");
	CHECK_EQ(outcome.cs, UCS64, "in the 64-bit code");
	r.gpr[RAX] = 0;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.cs == UCS32, "far RET to 32-bit code, popped SSP below 4 GiB");
}

/* 32-bit code calls 64-bit code, which puts EAX into the upper half of the saved SSP. */
__asm__(".pushsection .code, \"ax\"\n.code32\n.balign 16\n far32_frame: endbr32; lcall $0x33, $far64_part\n"
	"far32_back: int $0x20\n.code64\n.balign 16\n far64_part: endbr64; mov %eax, 4(%rsi); lretl\n.popsection");

static void test_gate(void)
{
	struct run r = run_ss3(far_call);

	r.s_cet = CET_SHSTK_EN;
	set_call_gate(GATE, target_rdmsr, CS64, 3);
	aim(&r, NULL, GATE | 3);
	run(&r);
	CHECK_DONE("call gate from ring 3 to ring 0, and RET");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN, "SSP is PL0_SSP, no frame is pushed");
	CHECK_EQ(outcome.gpr[R9], USS_TOP, "the user's SSP is in PL3_SSP");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "far RET to ring 3 frees the token");
	CHECK_EQ(outcome.gpr[RBP], USS_TOP, "and goes back to PL3_SSP");

	set_call_gate(GATE, target_stop, CS64, 3);
	run(&r);
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN | 1, "the gate made the token busy");
	set_call_gate(GATE, target_change_rip, CS64, 3);
	run(&r);
	CHECK_DONE("far RET to ring 3 compares no frame");
	set_call_gate(GATE, target_write, CS64, 3);
	r.gpr[RSI] = ADDR(ss_mem(SS_TOKEN));
	r.gpr[RAX] = 0x777;
	run(&r);
	CHECK(outcome.vector == DONE && *ss_mem(SS_TOKEN) == 0x777, "far RET to ring 3: a mismatch of the token is ignored");
	set_call_gate(GATE, target_wrmsr, CS64, 3);
	r.gpr[R8] = USS_BASE + 0x400;
	run(&r);
	CHECK_EQ(outcome.gpr[RBP], USS_BASE + 0x400, "far RET to ring 3 takes PL3_SSP as it is then");

	r = run_ss3(far_call);
	aim(&r, NULL, GATE | 3);
	set_call_gate(GATE, target_rdmsr, CS64, 3);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[R9] == USS_TOP && outcome.gpr[RBP] == USS_TOP,
		"call gate with S_CET.SHSTK_EN=0: PL3_SSP is saved and restored");

	static const struct {
		u64 pl0_ssp, token, vector, error;
		const char *name;
	} rows[] = {
		{SS_BASE + 0x2ff8, (SS_BASE + 0x2ff8) | 1, GP, 0, "call gate, busy token: #GP(0), not #CP"},
		{SS_BASE + 0x2ff8, SS_BASE + 0x1ff8, GP, 0, "call gate, token of another place"},
		{SS_BASE + 0x2ffc, 0, GP, 0, "call gate, PL0_SSP not 8-aligned"},
		{FREE_VA + 0x18, 0, PF, PF_W | PF_SS, "call gate, token page not there: a supervisor access"},
		{USS_BASE + 0x2ff8, 0, PF, PF_P | PF_W | PF_SS, "call gate, token on a user page"},
	};
	set_call_gate(GATE, target_stop, CS64, 3);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		r = run_ss3(far_call);
		aim(&r, NULL, GATE | 3);
		r.s_cet = CET_SHSTK_EN;
		r.late_pl0_ssp = rows[i].pl0_ssp;
		if (rows[i].token)
			*ss_mem(rows[i].pl0_ssp) = rows[i].token;
		run(&r);
		CHECK_FAULT(rows[i].vector, rows[i].error, rows[i].name);
		CHECK(outcome.cs == UCS64 && outcome.pl3_ssp == USS_TOP && outcome.rsp == stack_top(0),
			"it leaves ring 3 as it was");
	}
	/* To ring 3 in 32-bit code with a PL3_SSP it cannot have. */
	set_call_gate(GATE, target_wrmsr, CS64, 3);
	r = run_ss3(far_jmp);
	LABEL(gate32);
	r.rip = ADDR(gate32);
	r.cs = UCS32;
	r.s_cet = CET_SHSTK_EN;
	r.gpr[R8] = USS_BASE + 0x400;
	r.gpr[RDI] = ADDR(&pointer32);
	pointer32.selector = GATE | 3;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.cs == UCS32, "call gate from 32-bit code and back");
	LABEL(gate32_high);
	set_call_gate(GATE, gate32_high, CS64, 3);
	run(&r);
	CHECK_FAULT(GP, 0, "far RET to 32-bit code in ring 3 with PL3_SSP above 4 GiB: #GP(0)");
	CHECK_EQ(outcome.cs, CS64, "in ring 0");
}

__asm__(".pushsection .code, \"ax\"\n.code32\n.balign 16\n gate32: endbr32; lcall *(%edi); int $0x20\n.code64\n"
	"gate32_high: endbr64; mov $0x6a7, %ecx; mov $0xa0000400, %eax; mov $1, %edx; wrmsr; lretq\n.popsection");

static void test_gate_ring1(void)
{
	struct run r = run_ss0(far_call);

	r.cs = CS64_R1;
	r.ss = DS_R1;
	r.outer_ssp = SS_BASE + 0x1ff8;
	set_call_gate(GATE, target_ret, CS64, 3);
	aim(&r, NULL, GATE | 1);
	run(&r);
	CHECK_DONE("call gate from ring 1 to ring 0, and RET");
	CHECK_EQ(outcome.gpr[RCX], SS_TOKEN - 24, "from ring 1 a frame is pushed");
	CHECK_EQ(FRAME(SS_TOKEN, 0), SS_BASE + 0x1ff8, "frame: SSP of ring 1");
	CHECK_EQ(FRAME(SS_TOKEN, 1), ADDR(far_call_after), "frame: LIP");
	CHECK_EQ(FRAME(SS_TOKEN, 2), CS64_R1, "frame: CS");
	CHECK_EQ(outcome.gpr[RBP], SS_BASE + 0x1ff8, "far RET to ring 1 pops SSP");
	CHECK_EQ(*ss_mem(SS_TOKEN), SS_TOKEN, "far RET to ring 1 frees the token above the frame");
	set_call_gate(GATE, target_change_rip, CS64, 3);
	run(&r);
	CHECK_FAULT(CP, CP_FAR_RET, "far RET to ring 1 with a changed RIP");
	set_call_gate(GATE, target_write, CS64, 3);
	r.gpr[RSI] = ADDR(ss_mem(SS_TOKEN));
	r.gpr[RAX] = 0x888;
	run(&r);
	CHECK(outcome.vector == DONE && *ss_mem(SS_TOKEN) == 0x888, "far RET to ring 1: a mismatch of the token is ignored");
	set_call_gate(GATE, target_ret, CS64, 3);
	r.late_pl0_ssp = SS_BASE + 0x2ff0;
	*ss_mem(SS_BASE + 0x2ff0) = SS_BASE + 0x2ff0;
	run(&r);
	CHECK_FAULT(GP, 0, "call gate from ring 1, 32-byte rule");
	CHECK_EQ(outcome.cs, CS64_R1, "it leaves ring 1");
}

void test_main(void)
{
	if (!has_shstk)
		return;
	set_descriptor(ALIAS_CS, gdt[UCS64 / 8]);
	set_descriptor(ALIAS_CS0, gdt[CS64 / 8]);
	test_same_ring();
	test_sizes();
	test_gate();
	test_gate_ring1();
}
