// SPDX-License-Identifier: MIT
// PUSHF and POPF by mode, CPL, IOPL and VME; segment checks of memory operands; checks of a few
// instructions that user code cannot make. What user code can, lockstep compares with the host.
#include "insn.h"

#define STACK 0x4000u

static void flat_segments(void)
{
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		cpu->seg[i] = (struct segment){ .limit = 0xffffffff, .selector = 8,
						.attributes = SEG_P | SEG_S | SEG_DB | SEG_G | 3 };
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_DB | SEG_G | 0xb;
}

static void protected_mode(unsigned cpl, unsigned iopl)
{
	fixture_reset();
	cpu->cr0 |= CR0_PE;
	flat_segments();
	cpu->cpl = cpl;
	cpu_set_rflags(cpu, (u64)iopl << 12 | FLAG_IF);
	cpu->gpr[RSP] = STACK;
}

static void v86_mode(unsigned iopl, bool vme)
{
	fixture_reset();
	cpu->cr0 |= CR0_PE;
	if (vme)
		cpu->cr4 |= CR4_VME;
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		cpu->seg[i] = (struct segment){ .limit = 0xffff, .attributes = SEG_P | SEG_S | 3 | 3 << SEG_DPL_SHIFT };
	cpu->cpl = 3;
	cpu_set_rflags(cpu, FLAG_VM | (u64)iopl << 12 | FLAG_IF);
	cpu->gpr[RSP] = STACK;
}

#define CHANGEABLE_32 (FLAGS_ARITH | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_AC | FLAG_ID)

static void popfd(u32 value)
{
	cpu->gpr[RSP] = STACK;
	*dword(STACK) = value;
	EXECUTE(0x9d);
}

static void privilege(void)
{
	const u32 all = 0xffffffff;

	protected_mode(0, 0);
	popfd(all);
	is(cpu_rflags(cpu), CHANGEABLE_32 | FLAG_IF | FLAG_IOPL | 2, "POPFD at CPL 0 changes IF and IOPL, not RF, VM, VIF, VIP");
	is(cpu->gpr[RSP], STACK + 4, "ESP");
	popfd(0);
	is(cpu_rflags(cpu), 2, "and clears them");
	protected_mode(3, 3);
	popfd(0);
	is(cpu_rflags(cpu), FLAG_IOPL | 2, "CPL 3 with IOPL 3 changes IF, not IOPL");
	protected_mode(3, 0);
	popfd(FLAG_IOPL);
	is(cpu_rflags(cpu), FLAG_IF | 2, "CPL 3 with IOPL 0 changes neither");
	protected_mode(1, 1);
	popfd(0);
	is(cpu_rflags(cpu), FLAG_IOPL / 3 | 2, "CPL 1 with IOPL 1 changes IF");
	protected_mode(0, 0);
	cpu->rflags |= FLAG_AC | FLAG_ID;
	*dword(STACK) = 0;
	EXECUTE(0x66, 0x9d);
	is(cpu_rflags(cpu), FLAG_AC | FLAG_ID | 2, "16-bit POPF leaves the upper half alone");
	is(cpu->gpr[RSP], STACK + 2, "and pops 2 bytes");
	protected_mode(0, 0);
	cpu->rflags |= FLAG_RF | FLAG_AC;
	EXECUTE(0x9c);
	is(*dword(STACK - 4), FLAG_AC | FLAG_IF | 2, "PUSHFD does not push RF");
	cpu->irq_wait = 1;
	cpu->request = 0;
	popfd(FLAG_IF);
	ok(cpu->request & REQ_IRQ, "an interrupt that waits is looked at when POPF sets IF");
	cpu->irq_wait = 0;
	cpu->request = 0;
}

static void virtual_8086(void)
{
	v86_mode(3, false);
	EXECUTE(0x9c);
	is(outcome.vector, NO_EXCEPTION, "PUSHF in virtual-8086 mode with IOPL 3");
	is(*(u16 *)(ram + STACK - 2), FLAG_IOPL | FLAG_IF | 2, "pushes IOPL and IF");
	v86_mode(0, false);
	EXECUTE(0x9c);
	is(outcome.vector, VECTOR_GP, "with IOPL 0");
	is(cpu->gpr[RSP], STACK, "SP stays");
	EXECUTE(0x9d);
	is(outcome.vector, VECTOR_GP, "POPF with IOPL 0");
	v86_mode(0, true);
	cpu->rflags |= FLAG_VIF;
	cpu->rflags &= ~(u64)FLAG_IF;
	EXECUTE(0x9c);
	is(outcome.vector, NO_EXCEPTION, "PUSHF with IOPL 0 and VME");
	is(*(u16 *)(ram + STACK - 2), FLAG_IOPL | FLAG_IF | 2, "pushes VIF for IF and IOPL 3");
	EXECUTE(0x66, 0x9c);
	is(outcome.vector, VECTOR_GP, "PUSHFD with VME");
	v86_mode(0, true);
	*(u16 *)(ram + STACK) = FLAG_IF | FLAG_CF;
	EXECUTE(0x9d);
	is(cpu_rflags(cpu), FLAG_VM | FLAG_VIF | FLAG_IF | FLAG_CF | 2, "POPF sets VIF and leaves IF");
	cpu->gpr[RSP] = STACK;
	*(u16 *)(ram + STACK) = 0;
	EXECUTE(0x9d);
	is(cpu_rflags(cpu), FLAG_VM | FLAG_IF | 2, "and clears it");
	cpu->rflags |= FLAG_VIP;
	cpu->gpr[RSP] = STACK;
	*(u16 *)(ram + STACK) = FLAG_IF;
	EXECUTE(0x9d);
	is(outcome.vector, VECTOR_GP, "#GP when it would be set with VIP");
	*(u16 *)(ram + STACK) = FLAG_TF;
	EXECUTE(0x9d);
	is(outcome.vector, VECTOR_GP, "#GP for TF");
}

// ---- segment checks, seen through XLAT (a load) and MOVSB ----

static void load(enum seg seg, u32 offset)
{
	cpu->gpr[RBX] = offset;
	cpu->gpr[RAX] = 0;
	switch (seg) {
	case SEG_SS: EXECUTE(0x36, 0xd7); break;
	case SEG_CS: EXECUTE(0x2e, 0xd7); break;
	default: EXECUTE(0xd7);
	}
}

static void store(u32 offset)
{
	cpu->gpr[RDI] = offset;
	EXECUTE(0xaa);
}

static void segments(void)
{
	protected_mode(0, 0);
	cpu->seg[SEG_DS].limit = 0xfff;
	load(SEG_DS, 0xfff);
	is(outcome.vector, NO_EXCEPTION, "a load at the limit");
	load(SEG_DS, 0x1000);
	is(outcome.vector, VECTOR_GP, "a load behind it");
	cpu->seg[SEG_DS].attributes = SEG_P | SEG_S | SEG_DB | 7;
	load(SEG_DS, 0xfff);
	is(outcome.vector, VECTOR_GP, "expand-down: at the limit");
	load(SEG_DS, 0x1000);
	is(outcome.vector, NO_EXCEPTION, "expand-down: above the limit");
	load(SEG_DS, 0x200000);
	is(outcome.vector, NO_EXCEPTION, "expand-down, 32-bit: above 64 KiB");
	cpu->seg[SEG_DS].attributes &= ~SEG_DB;
	load(SEG_DS, 0xffff);
	is(outcome.vector, NO_EXCEPTION, "expand-down, 16-bit: up to 64 KiB");
	load(SEG_DS, 0x10000);
	is(outcome.vector, VECTOR_GP, "expand-down, 16-bit: above");
	cpu->seg[SEG_DS].attributes = SEG_UNUSABLE;
	load(SEG_DS, 0);
	is(outcome.vector, VECTOR_GP, "a null segment");
	cpu->seg[SEG_SS].limit = 0xfff;
	load(SEG_SS, 0x1000);
	is(outcome.vector, VECTOR_SS, "the stack segment's limit raises #SS");
	load(SEG_CS, 0x1000);
	is(outcome.vector, NO_EXCEPTION, "readable code");
	cpu->seg[SEG_CS].attributes &= ~2u;
	load(SEG_CS, 0x1000);
	is(outcome.vector, VECTOR_GP, "execute-only code");
	cpu->seg[SEG_ES].attributes = SEG_P | SEG_S | SEG_DB | 0xb;
	store(0x1000);
	is(outcome.vector, VECTOR_GP, "a store to a code segment");
	cpu->seg[SEG_ES] = (struct segment){ .base = 0xfffff000, .limit = 0xffffffff, .attributes = SEG_P | SEG_S | SEG_DB | 3 };
	cpu->gpr[RAX] = 0x77;
	store(0x2000);
	is(ram[0x1000], 0x77, "base and offset wrap at 4 GiB");
	cpu->cr0 &= ~CR0_PE;
	cpu->seg[SEG_ES] = (struct segment){ .limit = 0xffff, .attributes = SEG_P | SEG_S | 0xb };
	store(0x1800);
	is(outcome.vector, NO_EXCEPTION, "real mode does not look at types");
	store(0x10000);
	is(outcome.vector, VECTOR_GP, "but at limits");
}

static void long_mode(void)
{
	fixture_reset();
	insn_long_mode(0);
	cpu->seg[SEG_DS].limit = 0;
	cpu->gpr[RBX] = 0x200000;
	cpu->gpr[RAX] = 0;
	ram[0x200010] = 0x99;
	cpu->seg[SEG_DS].base = 0x10;
	EXECUTE(0xd7);
	is(cpu->gpr[RAX], 0, "64-bit mode: neither base nor limit of DS count");
	cpu->seg[SEG_FS].base = 0x10;
	EXECUTE(0x64, 0xd7);
	is(cpu->gpr[RAX], 0x99, "the base of FS does");
	cpu->gpr[RBX] = 0x800000000000;
	EXECUTE(0xd7);
	is(outcome.vector, VECTOR_GP, "a non-canonical address");
	cpu->gpr[RBX] = 0xffff7fffffffffff;
	cpu->gpr[RAX] = 0;
	EXECUTE(0xd7);
	is(outcome.vector, VECTOR_GP, "below the upper half");
	cpu->cpl = 3;
	cpu->cr0 |= CR0_AM;
	cpu->rflags |= FLAG_AC;
	cpu->gpr[RSP] = 0x200004;
	EXECUTE(0x9c);
	is(outcome.vector, VECTOR_AC, "alignment check of PUSHF");
	cpu->cpl = 0;
	EXECUTE(0x9c);
	is(outcome.vector, NO_EXCEPTION, "not at CPL 0");
}

static void refusals(void)
{
	fixture_reset();
	insn_long_mode(0);
	EXECUTE(0x0f, 0x0b);
	is(outcome.vector, VECTOR_UD, "UD2");
	EXECUTE(0x0f, 0xff, 0xc0);
	is(outcome.vector, VECTOR_UD, "UD0");
	EXECUTE(0x0f, 0xb9, 0xc0);
	is(outcome.vector, VECTOR_UD, "UD1");
	cpu->gpr[RAX] = 0x300000;
	*pte(0x300000) = 0;
	tlb_flush_all(cpu);
	EXECUTE(0x0f, 0xae, 0x38);
	is(outcome.vector, VECTOR_PF, "CLFLUSH is checked as a load");
	cpu->gpr[RAX] = 0x200020;
	cpu->gpr[RBX] = 0x200040;
	EXECUTE(0x66, 0x0f, 0x38, 0xf8, 0x03);
	is(outcome.vector, VECTOR_GP, "MOVDIR64B to a misaligned address");
	cpu->gpr[RAX] = 0x200080;
	memset(ram + 0x200040, 0x5a, 64);
	EXECUTE(0x66, 0x0f, 0x38, 0xf8, 0x03);
	ok(!memcmp(ram + 0x200080, ram + 0x200040, 64), "MOVDIR64B");
	protected_mode(0, 0);
	*dword(0x5000) = -5;
	*dword(0x5004) = 10;
	cpu->gpr[RBX] = 0x5000;
	cpu->gpr[RAX] = 10;
	EXECUTE(0x62, 0x03);
	is(outcome.vector, NO_EXCEPTION, "BOUND at the upper bound");
	cpu->gpr[RAX] = (u32)-6;
	EXECUTE(0x62, 0x03);
	is(outcome.vector, VECTOR_BR, "BOUND below the lower");
}

int main(void)
{
	privilege();
	virtual_8086();
	segments();
	long_mode();
	refusals();
	return done_testing();
}
