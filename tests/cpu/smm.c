// SPDX-License-Identifier: MIT
// System-management mode by itself: what SMI saves where and what it sets, what RSM restores, and
// which images it refuses. The entry point and the code in SMM are left out: tests/kvm/smm.c.
#include "fixture.h"

#include "cpu/debug.h"
#include "cpu/handlers.h"
#include "cpu/transfer.h"

#define SMBASE 0x300000ull
#define SAVE (SMBASE + FIXTURE_SMRAM_SHIFT + 0xfe00) // in ram[]: SMM's space has other memory there
#define CR3 0x5000ull
#define SHSTK_SSP 0x7f0000001008ull

static u8 *saved(unsigned offset) { return ram + SAVE + offset - 0xfe00; }
static u64 saved64(unsigned offset) { u64 v; memcpy(&v, saved(offset), 8); return v; }
static u32 saved32(unsigned offset) { u32 v; memcpy(&v, saved(offset), 4); return v; }
static u16 saved16(unsigned offset) { u16 v; memcpy(&v, saved(offset), 2); return v; }

static void smi(void) { TRY(smm_enter(cpu)); }

static void rsm(void)
{
	struct insn insn = { .mnemonic = ZYDIS_MNEMONIC_RSM, .length = 2 };

	TRY(rsm_handler(cpu, &insn); cpu->rip = cpu->next_rip);
}

// 64-bit mode with something in every field that is saved.
static void busy(unsigned cpl)
{
	fixture_reset();
	fixture_long_mode(CR3, cpl);
	cpu_set_cr4(cpu, cpu->cr4 | CR4_PCIDE | CR4_CET | CR4_SMEP, BY_HOST);
	cpu_set_cr3(cpu, CR3 | 0x123, BY_HOST);
	cpu->smbase = SMBASE;
	for (unsigned i = 0; i < 16; i++)
		cpu->gpr[i] = 0x1111111111111111ull * i + 7;
	cpu->rip = 0xffffffff81234567ull;
	cpu_set_rflags(cpu, 0x2 | FLAG_IF | FLAG_CF | FLAG_OF | FLAG_AC);
	cpu->dr6 = DR6_FIXED | 5;
	cpu->dr7 = DR7_FIXED | 0x55;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		cpu->seg[i] = (struct segment){ .selector = 0x10 * i + cpl, .base = 0x1000ull * i, .limit = 0xfffff + i,
						.attributes = SEG_P | SEG_S | SEG_G | 3 | cpl << SEG_DPL_SHIFT };
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_L | SEG_G | 0xb | cpl << SEG_DPL_SHIFT;
	cpu->seg[SEG_FS].base = 0x7fff12345678ull;
	cpu->seg[SEG_ES].attributes = SEG_UNUSABLE | 3;
	cpu->seg[SEG_TR].attributes = SEG_P | 0xb;
	cpu->seg[SEG_LDTR].attributes = SEG_P | 2;
	cpu->gdtr = (struct table_register){ 0xffffc90000001000ull, 0x7f };
	cpu->idtr = (struct table_register){ 0xfffffe0000000000ull, 0xfff };
	cpu->ssp = SHSTK_SSP;
	cpu->u_cet = CET_SHSTK_EN;
	cpu->s_cet = CET_ENDBR_EN | CET_WAIT;
	cpu->pl_ssp[3] = 0x1000;
}

static void entry(void)
{
	static const struct { unsigned seg, offset; } places[] = {
		{ SEG_ES, 0xfe00 }, { SEG_CS, 0xfe10 }, { SEG_SS, 0xfe20 }, { SEG_DS, 0xfe30 },
		{ SEG_FS, 0xfe40 }, { SEG_GS, 0xfe50 }, { SEG_LDTR, 0xfe70 }, { SEG_TR, 0xfe90 },
	};
	struct segment before[SEG_COUNT];
	u64 cr0, cr4;

	busy(3);
	memcpy(before, cpu->seg, sizeof(before));
	cr0 = cpu->cr0 | CR0_TS | CR0_EM | CR0_MP;
	cpu_set_cr0(cpu, cr0, BY_HOST);
	cr4 = cpu->cr4;
	cpu->smi_pending = 1;
	smi();
	is(outcome.vector, (u64)NO_EXCEPTION, "SMI is taken");
	is(saved32(0xfefc), 0x20064, "revision");
	is(saved32(0xff00), SMBASE, "SMBASE");
	for (unsigned i = 0; i < 16; i++)
		is(saved64(0xff80 + 8 * (15 - i)), 0x1111111111111111ull * i + 7, "GPR %u", i);
	is(saved64(0xff78), 0xffffffff81234567ull, "RIP");
	is(saved64(0xff70), 0x2 | FLAG_IF | FLAG_CF | FLAG_OF | FLAG_AC, "RFLAGS");
	is(saved64(0xff68), DR6_FIXED | 5, "DR6");
	is(saved64(0xff60), DR7_FIXED | 0x55, "DR7");
	is(saved64(0xff58), cr0, "CR0");
	is(saved64(0xff50), CR3 | 0x123, "CR3");
	is(saved64(0xff48), cr4, "CR4");
	is(saved64(0xfed0), EFER_LME | EFER_LMA | EFER_NX | EFER_SCE, "EFER");
	is(saved64(0xff18), SHSTK_SSP, "SSP");
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		const struct segment *s = &before[places[i].seg];

		is(saved16(places[i].offset), s->selector, "selector of segment %u", i);
		is(saved16(places[i].offset + 2), s->attributes & 0xffff, "its attributes");
		is(saved32(places[i].offset + 4), s->limit, "its limit");
		is(saved64(places[i].offset + 8), s->base, "its base");
	}
	is(saved64(0xfe68), 0xffffc90000001000ull, "GDT base");
	is(saved32(0xfe64), 0x7f, "GDT limit");
	is(saved64(0xfe88), 0xfffffe0000000000ull, "IDT base");
	is(saved32(0xfe84), 0xfff, "IDT limit");
	is(*saved(0xfec9), 0, "not from HLT");
	is(*qword(SMBASE + 0xff78), 0, "the other address space has not been touched");

	ok(cpu->smm && cpu->nmi_masked && !cpu->smm_inside_nmi, "in SMM, NMIs masked");
	is(cpu->smi_pending, 0, "no longer pending");
	is(cpu->smi_count, 1, "SMI count");
	is(cpu_rflags(cpu), 2, "RFLAGS");
	is(cpu->rip, 0x8000, "RIP");
	is(cpu->cr0, cr0 & ~(u64)(CR0_PE | CR0_PG | CR0_TS | CR0_EM), "CR0: WP stays");
	is(cpu->cr4, 0, "CR4");
	is(cpu->efer, 0, "EFER");
	is(cpu->dr7, 0x400, "DR7");
	is(cpu->dr6, DR6_FIXED | 5, "DR6 stays");
	ok(!cpu->idtr.base && !cpu->idtr.limit, "IDT");
	ok(cpu->gdtr.limit == 0x7f && cpu->seg[SEG_TR].limit == before[SEG_TR].limit, "GDT and TR stay");
	is(cpu->cpl, 0, "CPL");
	is(cpu->seg[SEG_CS].base, SMBASE, "CS base");
	is(cpu->seg[SEG_CS].selector, (u16)(SMBASE >> 4), "CS selector");
	for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
		is(cpu->seg[seg].limit, 0xffffffff, "limit of segment %u", seg);
		is(cpu->seg[seg].attributes, SEG_P | SEG_S | SEG_G | 3, "its attributes");
		if (seg != SEG_CS)
			ok(!cpu->seg[seg].base && !cpu->seg[seg].selector, "its base and selector");
	}
	ok(cpu->ssp == SHSTK_SSP && cpu->u_cet == CET_SHSTK_EN && cpu->s_cet == (CET_ENDBR_EN | CET_WAIT) &&
	   cpu->pl_ssp[3] == 0x1000, "SSP and the CET MSRs are not changed by the SMI");
}

// SMI, everything is scrambled, RSM: the state of before.
static void round_trip(void)
{
	static struct cpu before;

	for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
		busy(cpl);
		memcpy(&before, cpu, sizeof(before));
		smi();
		memset(cpu->gpr, 0x55, sizeof(cpu->gpr));
		cpu_set_cr4(cpu, CR4_PAE | CR4_OSFXSR, BY_HOST);
		cpu->ssp = 0x40;
		cpu->dr6 = DR6_FIXED;
		for (unsigned seg = SEG_ES; seg <= SEG_TR; seg++)
			cpu->seg[seg] = (struct segment){ .attributes = SEG_P | SEG_S | 3 };
		cpu->gdtr = cpu->idtr = (struct table_register){ 5, 5 };
		rsm();
		is(outcome.vector, (u64)NO_EXCEPTION, "RSM at CPL %u", cpl);
		ok(!cpu->smm && !cpu->nmi_masked, "SMM is over");
		ok(!memcmp(cpu->gpr, before.gpr, sizeof(cpu->gpr)), "GPRs");
		is(cpu->rip, before.rip, "RIP");
		is(cpu_rflags(cpu), cpu_rflags(&before), "RFLAGS");
		ok(cpu->cr0 == before.cr0 && cpu->cr3 == before.cr3 && cpu->cr4 == before.cr4 &&
		   cpu->efer == before.efer, "control registers, PCID and CET among them");
		ok(cpu->dr6 == before.dr6 && cpu->dr7 == before.dr7, "DR6, DR7");
		ok(!memcmp(cpu->seg, before.seg, sizeof(cpu->seg)), "segments");
		ok(!memcmp(&cpu->gdtr, &before.gdtr, sizeof(cpu->gdtr)) &&
		   !memcmp(&cpu->idtr, &before.idtr, sizeof(cpu->idtr)), "tables");
		is(cpu->cpl, cpl, "CPL comes from SS");
		is(cpu->ssp, SHSTK_SSP, "SSP");
		ok(cpu->u_cet == before.u_cet && cpu->s_cet == before.s_cet, "CET MSRs");
		ok(cpu->request & REQ_SMI && cpu->request & REQ_NMI && cpu->request & REQ_INIT_SIPI,
		   "what was latched is looked at");
	}
}

static void states(void)
{
	busy(0);
	cpu->nmi_masked = true;
	smi();
	ok(cpu->smm_inside_nmi, "SMI in an NMI handler");
	rsm();
	ok(cpu->nmi_masked && !cpu->smm_inside_nmi, "goes back into it");

	busy(0);
	cpu->interrupt_shadow = true;
	smi();
	is(*saved(0xfecb), 2, "STI's shadow");
	ok(!cpu->interrupt_shadow, "is not there in SMM");
	rsm();
	ok(cpu->interrupt_shadow && !cpu->mov_ss_shadow, "and comes back");
	busy(0);
	cpu->interrupt_shadow = cpu->mov_ss_shadow = true;
	smi();
	is(*saved(0xfecb), 1, "MOV SS's shadow");
	rsm();
	ok(cpu->interrupt_shadow && cpu->mov_ss_shadow, "comes back");

	busy(0);
	cpu->halted = true;
	smi();
	is(*saved(0xfec9), 1, "auto HALT restart is set");
	ok(!cpu->halted, "awake in SMM");
	rsm();
	ok(cpu->halted, "asleep again");
	busy(0);
	cpu->halted = true;
	smi();
	*saved(0xfec9) = 0;
	rsm();
	ok(!cpu->halted, "unless the handler says no");

	busy(0);
	smi();
	dword(SAVE)[0x100 / 4] = 0x380000;
	rsm();
	is(cpu->smbase, 0x380000, "SMBASE from the image");

	busy(0);
	rsm();
	is(outcome.vector, VECTOR_UD, "RSM outside SMM");

	busy(0);
	cpu->smbase = RAM_SIZE;
	smi();
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_SHUTDOWN, "no memory for the save area");

	busy(0);
	fixture_without(FEATURE_SHSTK);
	smi();
	is(saved64(0xff18), 0, "without shadow stacks SSP is not saved");
	*(u64 *)saved(0xff18) = 0x8;
	rsm();
	is(cpu->ssp, SHSTK_SSP, "nor restored");
	busy(0);
	smi();
	*(u64 *)saved(0xff18) = 0x1234560;
	rsm();
	is(cpu->ssp, 0x1234560, "SSP as the handler has left it in the image");
}

// Images that RSM must refuse, one wrong field each: shutdown.
static void refusals(void)
{
	static const struct { const char *what; unsigned offset; u64 clear, set; bool good; } rows[] = {
		{ "as it is", 0xff58, 0, 0, true },
		{ "CR0.PG without PE", 0xff58, CR0_PE, 0, false },
		{ "CR0.NW without CD", 0xff58, 0, CR0_NW, false },
		{ "CR0 bit 32", 0xff58, 0, 1ull << 32, false },
		{ "CR0.WP clear under CR4.CET", 0xff58, CR0_WP, 0, false },
		{ "CR4 reserved bit", 0xff48, 0, 1ull << 31, false },
		{ "CR4.VMXE", 0xff48, 0, CR4_VMXE, false },
		{ "long mode without PAE", 0xff48, CR4_PAE, 0, false },
		{ "CR3 above the physical address width", 0xff50, 0, 1ull << 51, false },
		{ "EFER reserved bit", 0xfed0, 0, 1 << 20, false },
		{ "EFER.LMA does not matter", 0xfed0, EFER_LMA, 0, true },
		{ "RFLAGS.VM in long mode", 0xff70, 0, FLAG_VM, false },
		{ "DR6 bit 32", 0xff68, 0, 1ull << 32, false },
		{ "DR7 bit 40", 0xff60, 0, 1ull << 40, false },
		{ "a 16-bit TSS", 0xfe90, 0xf0000, 0x30000, false },
		{ "SSP not aligned", 0xff18, 0, 2, false },
		{ "SSP not canonical", 0xff18, 0, 1ull << 62, false },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		u64 *field = (u64 *)saved(rows[i].offset);

		busy(0);
		smi();
		*field = (*field & ~rows[i].clear) | rows[i].set;
		rsm();
		if (rows[i].good)
			is(outcome.vector, (u64)NO_EXCEPTION, "RSM: %s", rows[i].what);
		else
			ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_SHUTDOWN, "RSM: %s: shutdown", rows[i].what);
	}
	busy(0);
	smi();
	*(u64 *)saved(0xff70) |= 0xffffffffffc0802aull;
	rsm();
	is(cpu_rflags(cpu), 0x2 | FLAG_IF | FLAG_CF | FLAG_OF | FLAG_AC, "RSM: reserved bits of RFLAGS are not there");
	busy(0);
	smi();
	*(u64 *)saved(0xff70) |= FLAG_VM;
	*(u64 *)saved(0xff58) &= ~(u64)(CR0_PE | CR0_PG);
	*(u64 *)saved(0xff48) = 0;
	*(u64 *)saved(0xfed0) = 0;
	rsm();
	ok(outcome.exit == CPU_EXIT_SHUTDOWN, "RSM: RFLAGS.VM in real mode: shutdown");
	busy(0);
	cpu_set_cr4(cpu, cpu->cr4 & ~(u64)CR4_PCIDE, BY_HOST);
	cpu_set_cr3(cpu, CR3, BY_HOST);
	smi();
	*(u64 *)saved(0xff50) |= 1ull << 51;
	rsm();
	ok(outcome.exit == CPU_EXIT_SHUTDOWN, "RSM: the same CR3 without PCIDs");
	busy(0);
	smi();
	cpu_set_cr0(cpu, cpu->cr0 & ~(u64)CR0_WP, BY_HOST);
	rsm();
	ok(outcome.exit == CPU_EXIT_SHUTDOWN, "CR0.WP cleared in SMM and CR4.CET in the image");
}

static void map_32(void)
{
	static const struct { unsigned seg, place, selector; } places[] = {
		{ SEG_DS, 0xff2c, 0xffb4 }, { SEG_FS, 0xff38, 0xffb8 }, { SEG_GS, 0xff44, 0xffbc },
		{ SEG_TR, 0xff5c, 0xffc4 }, { SEG_LDTR, 0xff78, 0xffc0 }, { SEG_ES, 0xff84, 0xffa8 },
		{ SEG_CS, 0xff90, 0xffac }, { SEG_SS, 0xff9c, 0xffb0 },
	};
	static struct cpu before;

	fixture_reset();
	fixture_without(FEATURE_LM);
	cpu->smbase = SMBASE;
	for (unsigned i = 0; i < 8; i++)
		cpu->gpr[i] = 0x01010101u * i + 3;
	cpu->rip = 0xc0001234;
	cpu_set_rflags(cpu, 0x246);
	cpu_set_cr4(cpu, CR4_PSE, BY_HOST);
	cpu_set_cr0(cpu, CR0_PE | CR0_PG | CR0_NE, BY_HOST);
	cpu_set_cr3(cpu, CR3, BY_HOST);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		cpu->seg[i] = (struct segment){ .selector = 8 * i + 8, .base = 0x1000 * i, .limit = 0xfffff0 + i,
						.attributes = SEG_P | SEG_S | SEG_DB | SEG_G | 3 };
	cpu->seg[SEG_TR].attributes = SEG_P | 0xb;
	cpu->gdtr = (struct table_register){ 0xc0100000, 0xff };
	cpu->idtr = (struct table_register){ 0xc0200000, 0x7ff };
	cpu->ssp = 0x1000;
	memcpy(&before, cpu, sizeof(before));
	smi();
	is(saved32(0xfefc), 0x20000, "32-bit map: revision");
	is(saved32(0xfef8), SMBASE, "SMBASE");
	is(saved32(0xfffc), before.cr0, "CR0");
	is(saved32(0xfff8), CR3, "CR3");
	is(saved32(0xff14), CR4_PSE, "CR4");
	is(saved32(0xfff4), 0x246, "EFLAGS");
	is(saved32(0xfff0), 0xc0001234, "EIP");
	for (unsigned i = 0; i < 8; i++)
		is(saved32(0xffd0 + 4 * i), before.gpr[i], "GPR %u", i);
	is(saved32(0xffcc), before.dr6, "DR6");
	is(saved32(0xffc8), before.dr7, "DR7");
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		const struct segment *s = &before.seg[places[i].seg];

		is(saved32(places[i].place), (s->attributes & 0xffff) << 8, "attributes of segment %u", i);
		is(saved32(places[i].place + 4), s->limit, "its limit");
		is(saved32(places[i].place + 8), s->base, "its base");
		is(saved32(places[i].selector), s->selector, "its selector");
	}
	is(saved32(0xff70), 0xff, "GDT limit");
	is(saved32(0xff74), 0xc0100000, "GDT base");
	is(saved32(0xff54), 0x7ff, "IDT limit");
	is(saved32(0xff58), 0xc0200000, "IDT base");
	memset(cpu->gpr, 0, sizeof(cpu->gpr));
	cpu->seg[SEG_DS].base = 1;
	cpu->ssp = 0x2000;
	rsm();
	is(outcome.vector, (u64)NO_EXCEPTION, "RSM");
	ok(!memcmp(cpu->gpr, before.gpr, sizeof(cpu->gpr)) && cpu->rip == before.rip &&
	   cpu_rflags(cpu) == 0x246 && !memcmp(cpu->seg, before.seg, sizeof(cpu->seg)) &&
	   cpu->cr0 == before.cr0 && cpu->cr3 == before.cr3 && cpu->cr4 == before.cr4, "everything is back");
	is(cpu->ssp, 0x2000, "this map has no place for SSP");
	smi();
	*(u32 *)saved(0xff02) = 1;
	rsm();
	ok(cpu->halted, "auto HALT restart");
}

int main(void)
{
	entry();
	round_trip();
	states();
	refusals();
	map_32();
	return done_testing();
}
