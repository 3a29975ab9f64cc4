// SPDX-License-Identifier: MIT
// Single-step, debug registers, the interrupt shadow.
#include "kit.h"

static u64 variable __attribute__((aligned(8)));

CODE(step_nop, "pushfq; orl $0x100, (%rsp); popfq\n nop\n step_nop_after: nop; nop");
CODE(step_jump, "pushfq; orl $0x100, (%rsp); popfq\n jmp 1f; ud2\n 1: nop\n.globl step_jump_to\n step_jump_to = 1b");
CODE(step_load, "pushfq; orl $0x100, (%rsp); popfq\n mov (%rdi), %rax\n step_load_after: nop");
CODE(step_popf, "pushfq; pushfq; orl $0x100, (%rsp); popfq\n popfq\n step_popf_after: nop; nop");
CODE(step_int, "pushfq; orl $0x100, (%rsp); popfq\n int $0x20");
CODE(step_pushf, "pushfq; orl $0x100, (%rsp); popfq\n pushfq\n step_pushf_after: pop %rax");
CODE(step_rep, "cld; mov $3, %ecx; pushfq; orl $0x100, (%rsp); popfq\n step_rep_at: rep stosb\n nop");
CODE(step_mov_ss, "mov %ss, %eax; pushfq; orl $0x100, (%rsp); popfq\n mov %eax, %ss; mov $5, %ebx\n step_mov_ss_after: nop");
CODE(step_syscall, "pushfq; orl $0x100, (%rsp); popfq\n syscall");
CODE(step_fault, "pushfq; orl $0x100, (%rsp); popfq\n step_fault_at: mov (%rdi), %rax");
CODE(step_io, "pushfq; orl $0x100, (%rsp); popfq\n in $0x80, %al\n step_io_after: nop");
CODE(step_call, "pushfq; orl $0x100, (%rsp); popfq\n call 1f; nop\n 1: nop\n.globl step_call_to\n step_call_to = 1b");
CODE(step_sysret, "pushfq; orl $0x100, (%rsp); popfq\n syscall\n step_sysret_after: nop; nop");
CODE(syscall_entry, "nop");
CODE(sysret_entry, "sysretq");
CODE(sysret_tf, "pushfq; pop %r11; or $0x100, %r11; lea sysret_to(%rip), %rcx; sysretq\n sysret_to: nop; nop");
/* With IA32_DEBUGCTL.BTF: what is no branch, or none that is taken, and then one. */
CODE(btf_jump, "pushfq; orl $0x100, (%rsp); popfq\n nop; xor %eax, %eax; jnz 1f; mov $3, %ecx; cld; rep stosb; mov $1, %ebx;"
	" jmp 1f; nop\n 1: mov $2, %ebx\n.globl btf_jump_to\n btf_jump_to = 1b");
CODE(btf_call, "pushfq; orl $0x100, (%rsp); popfq\n nop; call 1f; nop\n 1: mov $2, %ebx\n.globl btf_call_to\n btf_call_to = 1b");
CODE(btf_loop, "mov $3, %ecx; pushfq; orl $0x100, (%rsp); popfq\n nop\n btf_loop_at: loop btf_loop_at");
CODE(write_variable, "mov %rax, (%rdi)\n write_variable_after: nop");
CODE(read_variable, "mov (%rdi), %rax\n read_variable_after: nop");
CODE(breakpoint, "nop; nop\n breakpoint_at: mov $7, %ebx; nop");
CODE(breakpoint_ss, "mov %ss, %eax; mov %eax, %ss\n breakpoint_ss_at: mov $7, %ebx; nop");
CODE(breakpoint_far, "mov $40, %ecx\n 1: call breakpoint_far_at; dec %ecx; jnz 1b; jmp 2f\n"
	" .balign 4096, 0x90\n breakpoint_far_at: inc %rbx; ret\n .balign 4096, 0x90\n 2: nop");
CODE(breakpoint_turned_on, "mov $40, %ecx\n 1: call breakpoint_far_at; cmp $20, %ecx; jne 2f; mov %rax, %dr7\n"
	" 2: dec %ecx; jnz 1b");
CODE(icebp, ".byte 0xf1\n icebp_after: nop");
CODE(int3, "int3\n int3_after: nop");
CODE(rep_movs, "cld\n rep_movs_at: rep movsb\n rep_movs_after: nop");
CODE(lods, "cld; lodsq\n lods_after: nop");
CODE(xlat, "xlatb\n xlat_after: nop");
CODE(fxsave, "fxsave64 (%rdi)\n fxsave_after: nop");
CODE(cmpxchg16, "lock cmpxchg16b (%rdi)\n cmpxchg16_after: nop");
CODE(out_port, "mov $0x80, %dx; out %al, %dx\n out_port_after: nop");
CODE(read_dr, "mov %dr6, %rax; mov %dr7, %rbx");
CODE(write_dr7, "mov %rax, %dr7");
CODE(read_dr4, "mov %dr4, %rax");
CODE(gd, "mov %dr0, %rax");

LABEL(step_nop_after);
LABEL(step_jump_to);
LABEL(step_load_after);
LABEL(step_popf_after);
LABEL(step_pushf_after);
LABEL(step_rep_at);
LABEL(step_mov_ss_after);
LABEL(step_fault_at);
LABEL(step_io_after);
LABEL(step_call_to);
LABEL(step_sysret_after);
LABEL(sysret_to);
LABEL(btf_jump_to);
LABEL(btf_call_to);
LABEL(btf_loop_at);
LABEL(write_variable_after);
LABEL(read_variable_after);
LABEL(breakpoint_at);
LABEL(breakpoint_ss_at);
LABEL(breakpoint_far_at);
LABEL(icebp_after);
LABEL(int3_after);

#define BS 0x4000
#define BD 0x2000

static void set_dr6(u64 v) { __asm__ volatile("mov %0, %%dr6" : : "r"(v)); }
static void set_dr7(u64 v) { __asm__ volatile("mov %0, %%dr7" : : "r"(v)); }
static void set_dr0(u64 v) { __asm__ volatile("mov %0, %%dr0" : : "r"(v)); }
static u64 get_dr6(void)
{
	u64 v;

	__asm__ volatile("mov %%dr6, %0" : "=r"(v));
	return v;
}

static int amd(void)
{
	u32 leaf[4];

	cpuid(0, 0, leaf);
	return leaf[1] == 0x68747541; /* "Auth" */
}

static void step(const u8 *code, u64 rip, const char *name)
{
	struct run r = run_default(code);

	r.gpr[RDI] = ADDR(&variable);
	set_dr6(0xffff0ff0);
	run(&r);
	if (CHECK_VECTOR(DB, name)) {
		CHECK_EQ(outcome.rip, rip, "RIP is the next instruction");
		CHECK_EQ(outcome.dr6 & (BS | 15), BS, "DR6.BS");
		CHECK_EQ(outcome.rflags & FL_TF, FL_TF, "the saved TF is set");
	}
}

static void test_single_step(void)
{
	step(step_nop, ADDR(step_nop_after), "TF: #DB after the instruction behind POPF");
	step(step_jump, ADDR(step_jump_to), "TF and JMP");
	step(step_load, ADDR(step_load_after), "TF and a load");
	step(step_call, ADDR(step_call_to), "TF and CALL");
	step(step_io, ADDR(step_io_after), "TF and IN");
	step(step_pushf, ADDR(step_pushf_after), "TF and PUSHF");
	CHECK_EQ(*(u64 *)(outcome.rsp) & FL_TF, FL_TF, "PUSHF under TF pushes TF");
	step(step_rep, ADDR(step_rep_at), "TF and REP: #DB after each iteration");
	CHECK_EQ(outcome.gpr[RCX], 2, "one was done");
	step(step_mov_ss, ADDR(step_mov_ss_after), "TF and MOV SS: #DB only after the next instruction");
	CHECK_EQ(outcome.gpr[RBX], 5, "which was done");

	struct run r = run_default(step_popf);
	run(&r);
	CHECK_VECTOR(DB, "TF and a POPF that clears it: #DB all the same");
	CHECK_EQ(outcome.rip, ADDR(step_popf_after), "after that POPF");
	CHECK_EQ(outcome.rflags & FL_TF, 0, "the saved TF is clear");
	r = run_default(step_int);
	run(&r);
	CHECK_DONE("TF and INT n: no #DB, TF is clear in the handler");
	r = run_default(step_fault);
	r.gpr[RDI] = FREE_VA;
	run(&r);
	CHECK_VECTOR(PF, "TF and an instruction that faults: the fault comes");
	CHECK(outcome.rip == ADDR(step_fault_at) && (outcome.rflags & FL_TF), "with TF saved");
	CHECK_EQ(outcome.rflags & FL_RF, FL_RF, "RF is set in the flags saved by a fault");
	r = run_user(step_syscall);
	wrmsr(MSR_STAR, (u64)CS64 << 32 | (u64)(UCS32 & ~3) << 48);
	wrmsr(MSR_LSTAR, ADDR(syscall_entry));
	wrmsr(MSR_FMASK, FL_TF);
	run(&r);
	CHECK_DONE("TF and SYSCALL with TF in FMASK: no #DB");
	r = run_user(step_sysret);
	wrmsr(MSR_LSTAR, ADDR(sysret_entry));
	set_dr6(0xffff0ff0);
	run(&r);
	if (CHECK_VECTOR(DB, "SYSRET to flags with TF: #DB")) {
		CHECK_EQ(outcome.rip, ADDR(step_sysret_after), "behind SYSRET: the stepped SYSCALL's trap");
		CHECK_EQ(outcome.cs & 3, 3, "in ring 3");
		CHECK_EQ(outcome.dr6 & BS, BS, "DR6.BS");
	}
}

// TF counts for SYSRET as SYSRET has loaded it: the trap comes before anything is executed in ring 3.
static void test_sysret(void)
{
	struct run r = run_default(sysret_tf);

	wrmsr(MSR_STAR, (u64)CS64 << 32 | (u64)(UCS32 & ~3) << 48);
	run(&r);
	CHECK_VECTOR(DB, "SYSRET that sets TF");
	CHECK(outcome.rip == ADDR(sysret_to) && (outcome.cs & 3) == 3, "traps at its target");
}

#define MSR_DEBUGCTL 0x1d9
#define BTF 2

static void test_branch_step(void)
{
	static const struct { const u8 *code, *to; const char *name; } rows[] = {
		{ btf_jump, btf_jump_to, "JMP" }, { btf_call, btf_call_to, "CALL" }, { btf_loop, btf_loop_at, "LOOP to itself" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct run r = run_default(rows[i].code);

		r.gpr[RDI] = ADDR(&variable);
		set_dr6(0xffff0ff0);
		wrmsr(MSR_DEBUGCTL, BTF);
		run(&r);
		if (CHECK_VECTOR(DB, rows[i].name)) {
			CHECK_EQ(outcome.rip, ADDR(rows[i].to), "TF with DEBUGCTL.BTF traps behind the branch");
			CHECK_EQ(outcome.dr6 & (BS | 15), BS, "DR6.BS");
		}
		CHECK_EQ(rdmsr(MSR_DEBUGCTL), 0, "#DB has cleared BTF");
	}
}

static void test_breakpoints(void)
{
	struct run r = run_default(write_variable);

	r.gpr[RDI] = ADDR(&variable);
	set_dr0(ADDR(&variable));
	set_dr7(0x400 | 3 | 1 << 16 | 3 << 18); /* write, 4 bytes */
	set_dr6(0xffff0ff0);
	run(&r);
	if (CHECK_VECTOR(DB, "data breakpoint on a write")) {
		CHECK_EQ(outcome.rip, ADDR(write_variable_after), "a trap: RIP is behind the store");
		CHECK_EQ(outcome.dr6 & 15, 1, "DR6.B0");
	}
	r.rip = ADDR(read_variable);
	run(&r);
	CHECK_DONE("a write breakpoint does not take a read");
	set_dr7(0x400 | 3 | 3 << 16 | 3 << 18); /* read or write */
	run(&r);
	CHECK_VECTOR(DB, "a read-write breakpoint does");
	r.gpr[RDI] = ADDR(&variable) + 4;
	run(&r);
	CHECK_DONE("four bytes on are outside");
	r.gpr[RDI] = ADDR(&variable) - 4;
	run(&r);
	CHECK_VECTOR(DB, "an access that ends inside takes it");
	set_dr7(0x400);
	r.gpr[RDI] = ADDR(&variable);
	run(&r);
	CHECK_DONE("a breakpoint that is not enabled");

	r = run_default(breakpoint);
	set_dr0(ADDR(breakpoint_at));
	set_dr7(0x400 | 3);
	set_dr6(0xffff0ff0);
	run(&r);
	if (CHECK_VECTOR(DB, "instruction breakpoint")) {
		CHECK_EQ(outcome.rip, ADDR(breakpoint_at), "a fault: RIP is the instruction");
		CHECK_EQ(outcome.gpr[RBX], 0, "which is not done");
		CHECK_EQ(outcome.rflags & FL_RF, 0, "RF is clear in the flags saved by an instruction breakpoint");
	}
	/* IRET with RF goes over it: enter ring 3 right there. */
	r = run_user(breakpoint_at);
	r.rflags |= FL_RF;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 7, "IRET with RF=1 goes over an instruction breakpoint");
	r.rflags &= ~(u64)FL_RF;
	run(&r);
	CHECK_VECTOR(DB, "IRET with RF=0 does not");
	r = run_default(breakpoint_ss);
	set_dr0(ADDR(breakpoint_ss_at));
	run(&r);
	if (amd())
		CHECK(outcome.vector == DB && outcome.rip == ADDR(breakpoint_ss_at), "AMD: one behind MOV SS counts");
	else
		CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 7, "Intel: one behind MOV SS does not");
	set_dr7(0x400);

	/* Behind jumps that were taken many times before there was a breakpoint. */
	r = run_default(breakpoint_far);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 40, "a function in another page is called 40 times");
	set_dr0(ADDR(breakpoint_far_at));
	set_dr7(0x400 | 3);
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(breakpoint_far_at) && outcome.gpr[RCX] == 40,
		"with a breakpoint there, not once");
	set_dr7(0x400);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 40, "and again without");
	r = run_default(breakpoint_turned_on);
	r.gpr[RAX] = 0x400 | 3;
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(breakpoint_far_at) && outcome.gpr[RCX] == 19,
		"a breakpoint that is enabled between two calls");
	set_dr7(0x400);

	r = run_default(icebp);
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(icebp_after), "INT1 is a trap #DB");
	r = run_default(int3);
	run(&r);
	CHECK(outcome.vector == BP && outcome.rip == ADDR(int3_after), "INT3 is a trap #BP");
}

LABEL(rep_movs_at);
LABEL(rep_movs_after);
LABEL(lods_after);
LABEL(xlat_after);
LABEL(fxsave_after);
LABEL(cmpxchg16_after);
LABEL(out_port_after);
extern u64 kit_cr4; /* what run() goes back to */
static u8 source[64], area[1024] __attribute__((aligned(64)));

// Accesses of instructions that are not simple loads and stores.
static void test_watched(void)
{
	struct run r = run_default(rep_movs);

	r.gpr[RSI] = ADDR(source);
	r.gpr[RDI] = ADDR(area);
	r.gpr[RCX] = 32;
	set_dr0(ADDR(area + 9));
	set_dr6(0xffff0ff0);
	set_dr7(0x400 | 3 | 1 << 16); /* write, 1 byte */
	run(&r);
	CHECK_VECTOR(DB, "data breakpoint in the middle of REP MOVSB");
	CHECK(outcome.rip == ADDR(rep_movs_at) && outcome.gpr[RCX] == 22, "after the iteration that meets it");
	CHECK_EQ(outcome.dr6 & 0xf, 1, "DR6.B0");
	set_dr0(ADDR(area + 31));
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(rep_movs_after) && !outcome.gpr[RCX], "at its last iteration: behind it");
	set_dr0(ADDR(source + 4));
	run(&r);
	CHECK_DONE("a write breakpoint on what it reads");
	set_dr7(0x400 | 3 | 3 << 16);
	run(&r);
	CHECK(outcome.vector == DB && outcome.gpr[RCX] == 27, "a read-write breakpoint");
	r.rip = ADDR(lods);
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(lods_after), "LODSQ over it");
	r.rip = ADDR(xlat);
	r.gpr[RBX] = ADDR(source);
	r.gpr[RAX] = 4;
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(xlat_after), "XLAT");
	r.gpr[RAX] = 5;
	run(&r);
	CHECK_DONE("XLAT beside it");
	r.rip = ADDR(fxsave);
	set_dr0(ADDR(area + 200));
	set_dr7(0x400 | 3 | 1 << 16);
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(fxsave_after), "FXSAVE");
	r.rip = ADDR(cmpxchg16);
	set_dr0(ADDR(area + 12));
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(cmpxchg16_after), "CMPXCHG16B");
	r.rip = ADDR(out_port);
	set_dr0(0x80);
	set_dr7(0x400 | 3 | 2 << 16);
	kit_cr4 &= ~(u64)CR4_DE;
	run(&r);
	CHECK_DONE("an I/O breakpoint without CR4.DE");
	kit_cr4 |= CR4_DE;
	run(&r);
	CHECK(outcome.vector == DB && outcome.rip == ADDR(out_port_after), "with it");
	set_dr7(0x400);
}

static void test_registers(void)
{
	struct run r = run_user(read_dr);

	run(&r);
	CHECK_FAULT(GP, 0, "MOV from DR6 in ring 3");
	r = run_default(read_dr);
	set_dr6(0xffff0ff0);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX] & 0xfffffffffffef7ff, 0xfffe07f0 & 0xfffffffffffef7ff, "the fixed bits of DR6");
	CHECK_EQ(outcome.gpr[RBX], 0x400, "DR7 has bit 10 set");
	r = run_default(write_dr7);
	r.gpr[RAX] = 0x100000400;
	run(&r);
	CHECK_FAULT(GP, 0, "the upper half of DR7 is reserved");
	r = run_default(read_dr4);
	run(&r);
	CHECK_FAULT(UD, 0, "DR4 with CR4.DE=1");
	set_dr6(0xffff0ff0);
	set_dr7(0x400 | 1 << 13); // from here on any access is #DB
	r = run_default(gd);
	run(&r);
	CHECK_VECTOR(DB, "DR7.GD: access to a debug register is #DB");
	CHECK_EQ(get_dr6() & BD, BD, "DR6.BD");
	u64 dr7;
	__asm__ volatile("mov %%dr7, %0" : "=r"(dr7));
	CHECK_EQ(dr7 & 1 << 13, 0, "GD is clear in the handler");
	set_dr7(0x400);
}

void test_main(void)
{
	test_single_step();
	test_sysret();
	test_branch_step();
	test_breakpoints();
	test_watched();
	test_registers();
}
