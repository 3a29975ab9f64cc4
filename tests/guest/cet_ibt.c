// SPDX-License-Identifier: MIT
// Indirect branch tracking: what arms the tracker, what satisfies it, suppression, NOTRACK, the
// legacy bitmap, and where #CP(ENDBRANCH) stands among the other faults.
#include "kit.h"

/* Each piece branches to a place without ENDBR, called <name>_to, unless its name says else. */
#define BRANCH(name, ...) LABEL(name##_to); CODE(name, __VA_ARGS__)
#define BRANCH32(name, ...) LABEL(name##_to); CODE32(name, __VA_ARGS__)

BRANCH(jmp_reg, "lea jmp_reg_to(%rip), %rax; jmp *%rax; ud2\n jmp_reg_to: nop");
BRANCH(jmp_mem, "lea jmp_mem_to(%rip), %rax; mov %rax, (%rdi); jmp *(%rdi); ud2\n jmp_mem_to: nop");
BRANCH(call_reg, "lea call_reg_to(%rip), %rax; call *%rax; ud2\n call_reg_to: nop");
BRANCH(call_mem, "lea call_mem_to(%rip), %rax; mov %rax, (%rdi); call *(%rdi); ud2\n call_mem_to: nop");
BRANCH(far_jmp, "lea far_jmp_to(%rip), %rax; mov %eax, (%rdi); mov %cs, 4(%rdi); ljmpl *(%rdi); ud2\n far_jmp_to: nop");
BRANCH(far_call, "lea far_call_to(%rip), %rax; mov %eax, (%rdi); mov %cs, 4(%rdi); lcall *(%rdi); ud2\n far_call_to: nop");
CODE(good_jmp, "lea 1f(%rip), %rax; jmp *%rax; ud2\n 1: endbr64");
CODE(good_call, "lea 1f(%rip), %rax; call *%rax; jmp 2f\n 1: endbr64; ret\n 2: nop");
CODE(good_far, "lea 1f(%rip), %rax; mov %eax, (%rdi); mov %cs, 4(%rdi); ljmpl *(%rdi); ud2\n 1: endbr64");
BRANCH(endbr32_there, "lea endbr32_there_to(%rip), %rax; jmp *%rax; ud2\n endbr32_there_to: endbr32");
CODE(not_armed, "jmp 1f; ud2\n 1: nop; call 2f; ud2\n 2: pop %rax; xor %eax, %eax; jz 3f; ud2\n 3: mov $2, %ecx; loop 4f\n"
	"4: mov $0, %ecx; jrcxz 5f\n 5: lea 6f(%rip), %rax; push %rax; ret\n 6: nop");
CODE(retf_not_armed, "mov %cs, %eax; push %rax; lea 1f(%rip), %rax; push %rax; lretq\n 1: nop");
CODE(iret_not_armed, "mov %rsp, %rcx; mov %ss, %eax; push %rax; push %rcx; pushfq; mov %cs, %eax; push %rax;"
	"lea 1f(%rip), %rax; push %rax; iretq\n 1: nop");
BRANCH(notrack_jmp, "lea notrack_jmp_to(%rip), %rax; notrack jmp *%rax; ud2\n notrack_jmp_to: nop");
BRANCH(notrack_call, "lea notrack_call_to(%rip), %rax; notrack call *%rax; ud2\n notrack_call_to: nop");
BRANCH(notrack_mem, "lea notrack_mem_to(%rip), %rax; mov %rax, (%rdi); notrack jmp *(%rdi); ud2\n notrack_mem_to: nop");
BRANCH(notrack_far, "lea notrack_far_to(%rip), %rax; mov %eax, (%rdi); mov %cs, 4(%rdi); .byte 0x3e; ljmpl *(%rdi); ud2\n"
	"notrack_far_to: nop");
/* 64-bit mode: 3E counts wherever it stands among the prefixes, unless FS or GS is there too. */
BRANCH(notrack_cs, "lea notrack_cs_to(%rip), %rax; .byte 0x3e, 0x2e; jmp *%rax; ud2\n notrack_cs_to: nop");
BRANCH(notrack_fs, "lea notrack_fs_to(%rip), %rax; .byte 0x3e, 0x64; jmp *%rax; ud2\n notrack_fs_to: nop");
BRANCH(notrack_gs, "lea notrack_gs_to(%rip), %rax; .byte 0x65, 0x3e; jmp *%rax; ud2\n notrack_gs_to: nop");
BRANCH(to_int3, "lea to_int3_to(%rip), %rax; jmp *%rax\n to_int3_to: int3");
BRANCH(to_int1, "lea to_int1_to(%rip), %rax; jmp *%rax\n to_int1_to: .byte 0xf1");
BRANCH(to_ud2, "lea to_ud2_to(%rip), %rax; jmp *%rax\n to_ud2_to: ud2");
BRANCH(to_hlt, "lea to_hlt_to(%rip), %rax; jmp *%rax\n to_hlt_to: hlt");
BRANCH(to_fpu, "lea to_fpu_to(%rip), %rax; jmp *%rax\n to_fpu_to: fnop");
BRANCH(to_bad_load, "lea to_bad_load_to(%rip), %rax; jmp *%rax\n to_bad_load_to: mov (%rdi), %rax");
CODE(jmp_rdi, "jmp *%rdi");
CODE_BARE(bare, "bare_at: nop");
CODE_BARE(bare_endbr, "endbr64");
CODE_BARE(bare_endbr_wrong, "endbr32");
CODE(suppressed_jmp, "lea 1f(%rip), %rax; jmp *%rax; ud2\n 1: nop; nop");
BRANCH(endbr_unsuppresses, "endbr64; lea endbr_unsuppresses_to(%rip), %rax; jmp *%rax\n endbr_unsuppresses_to: nop");
CODE(int30, "int $0x30");
CODE(user_ud, "ud2");
CODE_BARE(handler_bare, "handler_bare_at: nop");
CODE(handler_iret, "iretq");
CODE(handler_rdmsr, "mov $0x6a2, %ecx; rdmsr; mov %eax, %esi");
LABEL(bare_at);
LABEL(handler_bare_at);

BRANCH32(jmp_reg32, "lea jmp_reg32_to, %eax; jmp *%eax; ud2\n jmp_reg32_to: nop");
BRANCH32(wrong32, "lea wrong32_to, %eax; jmp *%eax; ud2\n wrong32_to: endbr64");
CODE32(good32, "lea 1f, %eax; jmp *%eax; ud2\n 1: endbr32");
BRANCH32(notrack32, "lea notrack32_to, %eax; .byte 0x2e, 0x3e; jmp *%eax; ud2\n notrack32_to: nop");
BRANCH32(notrack32_not_last, "lea notrack32_not_last_to, %eax; .byte 0x3e, 0x2e; jmp *%eax; ud2\n notrack32_not_last_to: nop");

#define SCRATCH (stack_top(5) - 64)

/* Runs a piece in ring 0 and in ring 3 with these bits besides ENDBR_EN; true if both agree. */
static void both(const void *code, u64 bits, u64 vector, const u8 *at, const char *name)
{
	struct run r0 = run_ibt0(code), r3 = run_ibt3(code);
	bool good;

	r0.s_cet |= bits;
	r3.u_cet |= bits;
	r0.gpr[RDI] = r3.gpr[RDI] = SCRATCH;
	run(&r3);
	good = outcome.vector == vector && (vector != CP || outcome.error == CP_ENDBRANCH) &&
		(!at || outcome.rip == ADDR(at));
	if (!good)
		kit_note("  in ring 3:");
	else {
		run(&r0);
		good = outcome.vector == vector && (vector != CP || outcome.error == CP_ENDBRANCH) &&
			(!at || outcome.rip == ADDR(at));
	}
	CHECK(good, name);
}

#define MISSES(code, bits, name) both(code, bits, CP, code##_to, name)

static void test_arming(void)
{
	MISSES(jmp_reg, 0, "JMP through a register to no ENDBR64: #CP(ENDBRANCH) at the target");
	MISSES(jmp_mem, 0, "JMP through memory to no ENDBR64");
	MISSES(call_reg, 0, "CALL through a register to no ENDBR64");
	MISSES(call_mem, 0, "CALL through memory to no ENDBR64");
	MISSES(far_jmp, 0, "far JMP to no ENDBR64");
	MISSES(far_call, 0, "far CALL to no ENDBR64");
	both(good_jmp, 0, DONE, NULL, "indirect JMP to ENDBR64");
	both(good_call, 0, DONE, NULL, "indirect CALL to ENDBR64 and RET to none");
	both(good_far, 0, DONE, NULL, "far JMP to ENDBR64");
	MISSES(endbr32_there, 0, "ENDBR32 in 64-bit code does not count");
	both(not_armed, 0, DONE, NULL, "JMP rel, CALL rel, Jcc, LOOP, JRCXZ, RET do not arm");
	both(retf_not_armed, 0, DONE, NULL, "far RET does not arm");
	both(iret_not_armed, 0, DONE, NULL, "IRET does not arm");
	struct run r = run_default(jmp_reg);
	r.cet = 1;
	r.u_cet = CET_ENDBR_EN;
	run(&r);
	CHECK_DONE("ring 0 does not go by U_CET.ENDBR_EN");
	r = run_user(jmp_reg);
	r.cet = 1;
	r.s_cet = CET_ENDBR_EN;
	run(&r);
	CHECK_DONE("ring 3 does not go by S_CET.ENDBR_EN");
	r = run_user(jmp_reg);
	r.u_cet = CET_ENDBR_EN;
	run(&r);
	CHECK_DONE("with CR4.CET=0 nothing is tracked");

	static const struct {
		const u8 *code, *to;
		u64 vector;
		const char *name;
	} rows[] = {
		{jmp_reg32, jmp_reg32_to, CP, "32-bit code: indirect JMP to no ENDBR32"},
		{wrong32, wrong32_to, CP, "32-bit code: ENDBR64 does not count"},
		{good32, NULL, DONE, "32-bit code: indirect JMP to ENDBR32"},
	};
	for (int i = 0; i < 3; i++) {
		r = run_ibt3(rows[i].code);
		r.cs = UCS32;
		run(&r);
		CHECK(outcome.vector == rows[i].vector && (!rows[i].to || outcome.rip == ADDR(rows[i].to)), rows[i].name);
	}
}

static void test_notrack(void)
{
	MISSES(notrack_jmp, 0, "NOTRACK with NO_TRACK_EN=0 is no help");
	both(notrack_jmp, CET_NO_TRACK_EN, DONE, NULL, "NOTRACK JMP with NO_TRACK_EN=1 does not arm");
	both(notrack_call, CET_NO_TRACK_EN, DONE, NULL, "NOTRACK CALL with NO_TRACK_EN=1 does not arm");
	both(notrack_mem, CET_NO_TRACK_EN, DONE, NULL, "NOTRACK JMP through memory");
	MISSES(jmp_reg, CET_NO_TRACK_EN, "NO_TRACK_EN=1 without the prefix: armed");
	MISSES(notrack_far, CET_NO_TRACK_EN, "far transfers ignore NOTRACK");
	both(notrack_cs, CET_NO_TRACK_EN, DONE, NULL, "64-bit mode: 3E before 2E counts");
	MISSES(notrack_fs, CET_NO_TRACK_EN, "64-bit mode: 3E with 64 does not");
	MISSES(notrack_gs, CET_NO_TRACK_EN, "64-bit mode: 3E with 65 does not");
	struct run r = run_ibt3(notrack32);
	r.cs = UCS32;
	r.u_cet |= CET_NO_TRACK_EN;
	run(&r);
	CHECK_DONE("32-bit code: 3E as the last segment prefix counts");
	r.rip = ADDR(notrack32_not_last);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "32-bit code: 3E that is not the last does not");
}

static void test_states(void)
{
	struct run r = run_ibt3(bare);

	/* The tracker is in the MSR: entering ring 3 with it set is as if a branch had come. */
	r.u_cet |= CET_TRACKER;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "U_CET.TRACKER=1 on IRET to ring 3 and no ENDBR64");
	CHECK_EQ(outcome.rip, ADDR(bare_at), "#CP at the first instruction");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, CET_TRACKER, "TRACKER stays WAIT across the #CP from ring 3");
	r.rip = ADDR(bare_endbr);
	run(&r);
	CHECK(outcome.vector == DONE && !(outcome.u_cet & CET_TRACKER), "ENDBR64 makes it IDLE");
	r.rip = ADDR(bare_endbr_wrong);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "ENDBR32 in 64-bit code leaves it");
	r.u_cet = CET_TRACKER;
	r.rip = ADDR(bare);
	run(&r);
	CHECK(outcome.vector == DONE && (outcome.u_cet & CET_TRACKER), "ENDBR_EN=0 freezes TRACKER");

	/* Suppression. */
	r = run_ibt3(endbr_unsuppresses);
	r.u_cet |= CET_SUPPRESS;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "ENDBR64 when IDLE ends suppression");
}

CODE_BARE(bare_suppressed, "lea 1f(%rip), %rax; jmp *%rax; ud2\n 1: nop");
CODE_BARE(bare_far, "lea bare_far_to(%rip), %rax; mov %eax, (%rdi); mov %cs, 4(%rdi); ljmpl *(%rdi); ud2\n bare_far_to: nop");
LABEL(bare_far_to);

static void test_suppress(void)
{
	struct run r = run_ibt3(bare_suppressed);

	r.u_cet |= CET_SUPPRESS;
	run(&r);
	CHECK_DONE("SUPPRESS=1: a near indirect JMP does not arm");
	CHECK_EQ(outcome.u_cet & (CET_SUPPRESS | CET_TRACKER), CET_SUPPRESS, "SUPPRESS stays");
	r.rip = ADDR(bare_far);
	r.gpr[RDI] = SCRATCH;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "SUPPRESS=1: a far JMP arms all the same");
	CHECK_EQ(outcome.u_cet & (CET_SUPPRESS | CET_TRACKER), CET_TRACKER, "and clears SUPPRESS");
}

static void test_priority(void)
{
	struct run r;
	u64 page = FREE_VA + 0x20000;

	both(to_int3, 0, BP, NULL, "INT3 at the target is no violation: #BP");
	r = run_ibt3(to_int3);
	run(&r);
	CHECK_EQ(outcome.u_cet & CET_TRACKER, CET_TRACKER, "and leaves WAIT");
	both(to_int1, 0, DB, NULL, "INT1 at the target is no violation: #DB");
	MISSES(to_ud2, 0, "#CP(ENDBRANCH) goes before #UD");
	MISSES(to_hlt, 0, "#CP(ENDBRANCH) goes before #GP for privilege");
	MISSES(to_bad_load, 0, "#CP(ENDBRANCH) goes before the target's own memory access");
	write_cr0(read_cr0() | CR0_TS);
	MISSES(to_fpu, 0, "#CP(ENDBRANCH) goes before #NM");
	write_cr0(read_cr0() & ~(u64)CR0_TS);

	r = run_ibt3(jmp_rdi);
	r.gpr[RDI] = page;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_I, "#PF of the fetch goes before #CP(ENDBRANCH)");
	CHECK_EQ(outcome.rip, page, "at the target");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, CET_TRACKER, "TRACKER is WAIT across the #PF");
	map_page(page, ADDR(alloc_page()), PT_P | PT_U | PT_NX);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U | PF_I, "#PF of a fetch from an NX page goes before it too");
	unmap_page(page);
	r.gpr[RDI] = 0x800000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "a non-canonical target is #GP at the branch");
	CHECK(outcome.rip >= ADDR(jmp_rdi) && outcome.rip < ADDR(jmp_rdi_end), "with RIP at the JMP");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, 0, "and does not arm");
}

static void test_events(void)
{
	struct run r = run_ibt3(int30);

	r.s_cet = CET_ENDBR_EN;
	set_gate(0x30, handler_bare, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "INT n arms the supervisor tracker: handler without ENDBR64");
	CHECK(outcome.rip == ADDR(handler_bare_at) && outcome.cs == CS64, "#CP at the handler");
	r.s_cet |= CET_SUPPRESS;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "an event clears SUPPRESS");
	r.s_cet = 0;
	run(&r);
	CHECK_DONE("S_CET.ENDBR_EN=0: nothing is armed");
	set_gate(UD, handler_bare, CS64, 0, 0, GATE_INT);
	r = run_ibt3(user_ud);
	r.s_cet = CET_ENDBR_EN;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "an exception arms the supervisor tracker");
	r = run_ibt0(user_ud);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "in the same ring too");
	reset_gate(UD);

	set_gate(0x30, handler_iret, CS64, 0, 3, GATE_INT);
	r = run_ibt0(int30);
	run(&r);
	CHECK_DONE("handler with ENDBR64, IRET to no ENDBR64");
	set_gate(0x30, handler_rdmsr, CS64, 0, 3, GATE_INT);
	run(&r);
	CHECK_EQ(outcome.gpr[RSI], CET_ENDBR_EN, "the tracker is IDLE behind the handler's ENDBR64");

	/* WAIT of ring 3 survives a trip through ring 0. */
	LABEL(fix_page);
	u64 page = FREE_VA + 0x20000;
	set_gate(PF, fix_page, CS64, 0, 0, GATE_INT);
	map_page(page, ADDR(alloc_page()), PT_U);
	u8 *code = (u8 *)(*pte_of(page, 1) & ~0xfffull);
	r = run_ibt3(jmp_rdi);
	r.gpr[RDI] = page;
	r.gpr[RSI] = ADDR(pte_of(page, 1));
	code[0] = 0x90;
	code[1] = 0xcd;
	code[2] = 0x20;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "WAIT of ring 3 survives #PF and IRET: no ENDBR64 there");
	CHECK_EQ(outcome.rip, page, "#CP at the target");
	*pte_of(page, 1) &= ~PT_P;
	invlpg(page);
	memcpy(code, "\xf3\x0f\x1e\xfa\xcd\x20", 6);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.rip == page + 6, "and with ENDBR64 there");
	reset_gate(PF);
	unmap_page(page);

	/* A call gate. */
	static struct {
		u32 offset;
		u16 selector;
	} __attribute__((packed)) pointer = {0, FREE_SEL | 3};
	LABEL(via_gate);
	set_call_gate(FREE_SEL, handler_bare, CS64, 3);
	r = run_ibt3(via_gate);
	r.s_cet = CET_ENDBR_EN;
	r.gpr[RDI] = ADDR(&pointer);
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "a call gate arms the supervisor tracker");
	CHECK_EQ(outcome.cs, CS64, "in ring 0");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, 0, "and not the user's");
}
/* Makes the page at (%rsi) present and goes back. */
__asm__(".pushsection .code, \"ax\"\n.balign 16\n fix_page: endbr64; orq $1, (%rsi); add $8, %rsp; iretq\n"
	"via_gate: endbr64; lcall *(%rdi); int $0x20\n.popsection");

static u8 bitmap[0x20000] __attribute__((aligned(4096)));

/* The bitmap covers the guest's low addresses: byte LA >> 15, bit (LA >> 12) & 7. */
static void mark_legacy(u64 address, bool legacy)
{
	u64 page = address >> 12;

	if (legacy)
		bitmap[page >> 3] |= 1 << (page & 7);
	else
		bitmap[page >> 3] &= ~(1 << (page & 7));
}

static void test_bitmap(void)
{
	struct run r = run_ibt3(bare);
	u64 base = ADDR(bitmap) | CET_ENDBR_EN | CET_LEG_IW_EN;

	mark_legacy(ADDR(bare), true);
	r.u_cet = base | CET_TRACKER;
	run(&r);
	CHECK_DONE("legacy bitmap: a marked page may lack ENDBR64");
	CHECK_EQ(outcome.u_cet & (CET_TRACKER | CET_SUPPRESS), CET_SUPPRESS, "TRACKER=IDLE, SUPPRESS=1");
	r.u_cet |= CET_SUPPRESS_DIS;
	run(&r);
	CHECK_EQ(outcome.u_cet & (CET_TRACKER | CET_SUPPRESS), 0, "with SUPPRESS_DIS=1: SUPPRESS=0");
	r.u_cet = (base & ~(u64)CET_LEG_IW_EN) | CET_TRACKER;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "LEG_IW_EN=0: the bitmap is not looked at");
	mark_legacy(ADDR(bare), false);
	mark_legacy(ADDR(bare) + 4096, true);
	mark_legacy(ADDR(bare) - 4096, true);
	r.u_cet = base | CET_TRACKER;
	run(&r);
	CHECK_FAULT(CP, CP_ENDBRANCH, "legacy bitmap: a page that is not marked");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, CET_TRACKER, "TRACKER stays WAIT");
	r.rip = ADDR(bare_endbr);
	run(&r);
	CHECK(outcome.vector == DONE && !(outcome.u_cet & CET_SUPPRESS), "ENDBR64: the bitmap is not asked");

	/* The bitmap is read with the rights of the current ring. */
	u64 far_map = FREE_VA + 0x40000;
	u64 byte = far_map + (ADDR(bare) >> 15);
	u64 frame = ADDR(bitmap) + (ADDR(bare) >> 15);
	mark_legacy(ADDR(bare), true);
	r = run_ibt3(bare);
	r.u_cet = far_map | CET_ENDBR_EN | CET_LEG_IW_EN | CET_TRACKER;
	run(&r);
	CHECK_FAULT(PF, PF_U, "bitmap page not there: #PF, an ordinary read");
	CHECK_EQ(outcome.cr2, byte, "CR2 is the bitmap's byte");
	CHECK_EQ(outcome.rip, ADDR(bare_at), "RIP is the target");
	CHECK_EQ(outcome.u_cet & CET_TRACKER, CET_TRACKER, "TRACKER stays WAIT across it");
	map_page(byte & ~0xfffull, frame & ~0xfffull, PT_P);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U, "bitmap on a supervisor page: #PF in ring 3");
	map_page(byte & ~0xfffull, frame & ~0xfffull, PT_P | PT_U);
	run(&r);
	CHECK_DONE("bitmap on a read-only user page");
	/* Supervisor: the one in S_CET. */
	r = run_ibt0(suppressed_jmp);
	r.s_cet = base;
	mark_legacy(ADDR(suppressed_jmp), true);
	run(&r);
	CHECK_DONE("legacy bitmap in ring 0");
	CHECK_EQ(outcome.vector, DONE, "an indirect JMP within a legacy page");
}

void test_main(void)
{
	if (!has_ibt)
		return;
	test_arming();
	test_notrack();
	test_states();
	test_suppress();
	test_priority();
	test_events();
	test_bitmap();
}
