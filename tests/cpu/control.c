// SPDX-License-Identifier: MIT
// CR0, CR3, CR4, CR8, EFER and XCR0: what may be written when, and RESET and INIT.
#include "fixture.h"

#define PML4 0x1000
#define BAD ((u64)-EINVAL)

static void cr0(void)
{
	fixture_reset();
	is(cpu->cr0, CR0_ET | CR0_CD | CR0_NW, "CR0 behind RESET");
	is(cpu_set_cr0(cpu, 1ull << 32, BY_GUEST), BAD, "upper half");
	is(cpu_set_cr0(cpu, CR0_NW, BY_GUEST), BAD, "NW without CD");
	is(cpu_set_cr0(cpu, CR0_PG, BY_GUEST), BAD, "PG without PE");
	is(cpu_set_cr0(cpu, CR0_PE | 0x0ff0, BY_GUEST), 0, "reserved bits of the lower half are ignored");
	is(cpu->cr0, CR0_PE | CR0_ET | CR0_NE, "and do not stick, ET does");

	cpu_set_efer(cpu, EFER_LME, BY_GUEST);
	is(cpu->efer, EFER_LME, "EFER.LME alone does not activate");
	is(cpu_set_cr0(cpu, CR0_PE | CR0_PG, BY_GUEST), BAD, "paging with LME needs PAE");
	cpu_set_cr4(cpu, CR4_PAE, BY_GUEST);
	cpu->seg[SEG_CS].attributes |= SEG_L;
	is(cpu_set_cr0(cpu, CR0_PE | CR0_PG, BY_GUEST), BAD, "not from a code segment with L");
	cpu->seg[SEG_CS].attributes &= ~SEG_L;
	cpu->seg[SEG_TR].attributes = SEG_P | 3;
	is(cpu_set_cr0(cpu, CR0_PE | CR0_PG, BY_GUEST), BAD, "not with a 16-bit TSS");
	cpu->seg[SEG_TR].attributes = SEG_P | 0xb;
	is(cpu_set_cr0(cpu, CR0_PE | CR0_PG | CR0_WP, BY_GUEST), 0, "activation of long mode");
	ok(cpu_long_mode(cpu), "EFER.LMA is set");
	is(cpu_set_efer(cpu, 0, BY_GUEST), BAD, "LME cannot change with paging on");
	is(cpu_set_cr4(cpu, 0, BY_GUEST), BAD, "PAE cannot be cleared in long mode");
	cpu->seg[SEG_CS].attributes |= SEG_L;
	is(cpu_set_cr0(cpu, CR0_PE, BY_GUEST), BAD, "paging cannot be disabled from 64-bit code");
	cpu->seg[SEG_CS].attributes &= ~SEG_L;
	cpu_set_cr4(cpu, CR4_PAE | CR4_PCIDE, BY_GUEST);
	is(cpu_set_cr0(cpu, CR0_PE, BY_GUEST), BAD, "nor with PCIDE");
	cpu_set_cr4(cpu, CR4_PAE, BY_GUEST);
	is(cpu_set_cr0(cpu, CR0_PE, BY_GUEST), 0, "from compatibility mode it can");
	is(cpu->efer, EFER_LME, "which clears LMA");
}

static void cet_and_wp(void)
{
	fixture_reset();
	fixture_long_mode(PML4, 0);
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_GUEST), 0, "CR4.CET with WP");
	is(cpu_set_cr0(cpu, cpu->cr0 & ~(u64)CR0_WP, BY_GUEST), BAD, "WP cannot be cleared then");
	is(cpu_set_cr0(cpu, cpu->cr0 & ~(u64)CR0_WP, BY_HOST), 0, "the host can");
	cpu->cr4 &= ~(u64)CR4_CET;
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_GUEST), BAD, "CR4.CET without WP");
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_HOST), 0, "the host can");
	cpu->cr4 &= ~(u64)CR4_CET;
	cpu->cr0 |= CR0_WP;
	fixture_without(FEATURE_SHSTK);
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_GUEST), 0, "IBT alone is enough for CR4.CET");
	cpu->cr4 &= ~(u64)CR4_CET;
	fixture_without(FEATURE_IBT);
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_GUEST), BAD, "without both it is reserved");
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_CET, BY_HOST), BAD, "for the host as well");
}

static void cr4(void)
{
	static const struct { enum cpu_feature feature; u64 bits; const char *name; } rows[] = {
		{ FEATURE_VME, CR4_VME | CR4_PVI, "VME" },  { FEATURE_DE, CR4_DE, "DE" },
		{ FEATURE_PSE, CR4_PSE, "PSE" },	    { FEATURE_PGE, CR4_PGE, "PGE" },
		{ FEATURE_UMIP, CR4_UMIP, "UMIP" },	    { FEATURE_SMEP, CR4_SMEP, "SMEP" },
		{ FEATURE_SMAP, CR4_SMAP, "SMAP" },	    { FEATURE_PKU, CR4_PKE, "PKE" },
		{ FEATURE_XSAVE, CR4_OSXSAVE, "OSXSAVE" },  { FEATURE_FSGSBASE, CR4_FSGSBASE, "FSGSBASE" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		fixture_reset();
		is(cpu_set_cr4(cpu, rows[i].bits, BY_GUEST), 0, "CR4.%s", rows[i].name);
		fixture_reset();
		fixture_without(rows[i].feature);
		is(cpu_set_cr4(cpu, rows[i].bits, BY_GUEST), BAD, "CR4.%s without the feature", rows[i].name);
	}
	fixture_reset();
	is(cpu_set_cr4(cpu, CR4_VMXE, BY_GUEST), BAD, "CR4.VMXE");
	is(cpu_set_cr4(cpu, CR4_PKS, BY_GUEST), BAD, "CR4.PKS");
	is(cpu_set_cr4(cpu, 1ull << 32, BY_GUEST), BAD, "CR4 bit 32");
	is(cpu_set_cr4(cpu, CR4_PCIDE, BY_GUEST), BAD, "PCIDE outside long mode");
	fixture_long_mode(PML4 | 5, 0);
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_PCIDE, BY_GUEST), BAD, "PCIDE with a PCID in CR3");
	cpu_set_cr3(cpu, PML4, BY_GUEST);
	is(cpu_set_cr4(cpu, cpu->cr4 | CR4_PCIDE, BY_GUEST), 0, "PCIDE");
	is(cpu_set_cr3(cpu, PML4 | 1ull << 63 | 5, BY_GUEST), 0, "MOV CR3 that keeps translations");
	is(cpu->cr3, PML4 | 5, "bit 63 is not kept");
	is(cpu_set_cr3(cpu, PML4 | 1ull << 62, BY_GUEST), BAD, "reserved bit of CR3");
	is(cpu_set_cr3(cpu, PML4 | 1ull << cpu->phys_bits, BY_GUEST), BAD, "CR3 beyond the physical address");
	cpu_set_cr4(cpu, cpu->cr4 & ~(u64)CR4_PCIDE, BY_GUEST);
	is(cpu_set_cr3(cpu, PML4 | 1ull << 63, BY_GUEST), BAD, "bit 63 without PCIDE");
	is(cpu_set_cr4(cpu, cpu->cr4 ^ CR4_LA57, BY_GUEST), BAD, "LA57 cannot change in long mode");
	fixture_reset();
	is(cpu_set_cr4(cpu, CR4_LA57, BY_GUEST), 0, "outside it can");
	is(cpu->linear_bits, 57, "and addresses have 57 bits");
	fixture_without(FEATURE_LA57);
	is(cpu_set_cr4(cpu, CR4_LA57, BY_GUEST), BAD, "without the feature it cannot");
}

static void efer(void)
{
	fixture_reset();
	is(cpu_set_efer(cpu, EFER_SCE | EFER_NX | EFER_LME, BY_GUEST), 0, "EFER");
	is(cpu_set_efer(cpu, EFER_LMA, BY_GUEST), 0, "LMA written by the guest");
	is(cpu->efer, 0, "is ignored");
	is(cpu_set_efer(cpu, 1 << 12, BY_GUEST), BAD, "SVME");
	is(cpu_set_efer(cpu, 1 << 1, BY_GUEST), BAD, "reserved bit");
	fixture_without(FEATURE_NX);
	is(cpu_set_efer(cpu, EFER_NX, BY_GUEST), BAD, "NXE without the feature");
}

static void sregs(void)
{
	u64 lme = EFER_LME | EFER_LMA, cr0 = CR0_PE | CR0_PG;

	fixture_reset();
	ok(cpu_sregs_valid(cpu, cr0, PML4, CR4_PAE, lme, true), "long mode as a whole");
	ok(!cpu_sregs_valid(cpu, cr0, PML4, 0, lme, true), "not without PAE");
	ok(!cpu_sregs_valid(cpu, cr0, PML4, CR4_PAE, EFER_LME, false), "not without LMA");
	ok(!cpu_sregs_valid(cpu, CR0_PE, PML4, CR4_PAE, lme, false), "LMA not without paging");
	ok(!cpu_sregs_valid(cpu, CR0_PE, PML4, 0, 0, true), "CS.L only in long mode");
	ok(!cpu_sregs_valid(cpu, cr0, 1ull << 60, CR4_PAE, lme, true), "CR3 within the physical address");
	ok(cpu_sregs_valid(cpu, CR0_PE, 0, CR4_CET, 0, false), "CET without WP is the host's affair");
}

static void xcr0(void)
{
	static const struct { u64 value; bool good; const char *name; } rows[] = {
		{ 1, true, "x87" },		 { 3, true, "x87, SSE" },
		{ 7, true, "with AVX" },	 { 0x207, true, "with PKRU" },
		{ 0x203, true, "PKRU without AVX" }, { 2, false, "without x87" },
		{ 5, false, "AVX without SSE" }, { 0, false, "nothing" },
		{ 0x803, false, "a supervisor component" }, { 1ull << 63 | 3, false, "bit 63" },
		{ 0x1b, false, "MPX" },		 { 0x60003, false, "AMX" },
	};
	u32 out[4];

	fixture_reset();
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		is(cpu_set_xcr0(cpu, rows[i].value, BY_GUEST), rows[i].good ? 0 : BAD, "XCR0: %s", rows[i].name);
	cpu_set_xcr0(cpu, 3, BY_GUEST);
	cpuid_query(cpu, 0xd, 0, out);
	is(out[1], 576, "CPUID follows XCR0: 576 bytes for x87 and SSE");
	cpu_set_xcr0(cpu, 0x207, BY_GUEST);
	cpuid_query(cpu, 0xd, 0, out);
	is(out[1], 2696, "2696 bytes with PKRU");
}

static void reset(void)
{
	fixture_reset();
	fixture_long_mode(PML4, 3);
	cpu->u_cet = 1;
	cpu->s_cet = 4;
	cpu->ssp = 0x1000;
	cpu->pl_ssp[0] = 0x2000;
	cpu->int_ssp_tab = 0x3000;
	cpu->xcr0 = 7;
	cpu->xss = 0x1800;
	cpu->pat = 6;
	cpu->gpr[RBX] = 1;
	cpu_reset(cpu, true);
	is(cpu->cr0, CR0_ET, "INIT keeps CD and NW as they were");
	is(cpu->cr4 | cpu->efer | cpu->cr3, 0, "CR3, CR4, EFER");
	is(cpu->rip, 0xfff0, "RIP");
	is(cpu->seg[SEG_CS].base, 0xffff0000, "CS base");
	is(cpu->seg[SEG_CS].selector, 0xf000, "CS selector");
	is(cpu_rflags(cpu), 2, "RFLAGS");
	is(cpu->gpr[RBX], 0, "RBX");
	ok(cpu->gpr[RDX] != 0, "RDX is the signature");
	is(cpu->dr6, 0xffff0ff0, "DR6");
	is(cpu->dr7, 0x400, "DR7");
	is(cpu->u_cet | cpu->s_cet | cpu->ssp | cpu->pl_ssp[0] | cpu->int_ssp_tab, 0, "CET state");
	is(cpu->cpl, 0, "CPL");
	ok(cpu->xcr0 == 7 && cpu->xss == 0x1800 && cpu->pat == 6, "XCR0, XSS and PAT survive INIT");
	cpu_reset(cpu, false);
	ok(cpu->xcr0 == 1 && cpu->xss == 0 && cpu->pat == 0x0007040600070406, "not RESET");
	cpu_sipi(cpu, 0x9a);
	ok(cpu->seg[SEG_CS].selector == 0x9a00 && cpu->seg[SEG_CS].base == 0x9a000 && cpu->rip == 0,
	   "start-up IPI");
}

int main(void)
{
	cr0();
	cet_and_wp();
	cr4();
	efer();
	sregs();
	xcr0();
	reset();
	return done_testing();
}
