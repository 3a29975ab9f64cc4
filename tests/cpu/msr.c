// SPDX-License-Identifier: MIT
// MSRs: classes of values that are accepted and refused, for the guest and the host, with and
// without the feature; time-stamp counter; the lists.
#include "fixture.h"

#include "cpu/transfer.h"

#define BAD ((u64)-EINVAL)
#define ONLY57 0x0000800000000000ull // canonical only where linear addresses have 57 bits
#define NONCANONICAL 0x0100000000000000ull
#define HIGH 0xffff800000000000ull

static const struct row {
	u32 msr;
	const char *name;
	u64 good[4], bad[5]; // 0 ends bad; good are all tried
} rows[] = {
	{ MSR_U_CET, "U_CET", { 0, 1, 0x3f, HIGH | 0x3f }, { 1 << 6, 1 << 9, 0xc00, NONCANONICAL } },
	{ MSR_S_CET, "S_CET", { 0, 4, 0x800, 0x1000 | 0x400 }, { 1 << 7, 1 << 8, 0xc00, NONCANONICAL | 1 } },
	{ MSR_PL0_SSP, "PL0_SSP", { 0, 4, HIGH, 0x7ffffffffffc }, { 1, 2, 3, NONCANONICAL } },
	{ MSR_PL0_SSP + 1, "PL1_SSP", { 0, 8, HIGH, 0x1000 }, { 1, NONCANONICAL } },
	{ MSR_PL0_SSP + 2, "PL2_SSP", { 0, 8, HIGH, 0x1000 }, { 2, NONCANONICAL } },
	{ MSR_PL3_SSP, "PL3_SSP", { 0, 4, HIGH, 0x7ffffffffffc }, { 1, 2, NONCANONICAL } },
	{ MSR_INT_SSP_TAB, "INT_SSP_TAB", { 0, 1, 7, HIGH }, { NONCANONICAL } },
	{ MSR_XSS, "XSS", { 0, 1 << 11, 1 << 12, 3 << 11 }, { 1, 1 << 8, 1 << 9, 1 << 15, 1ull << 63 } },
	{ MSR_SYSENTER_CS, "SYSENTER_CS", { 0, 8, 0xffff, 0xffffffff }, { 1ull << 32 } },
	{ MSR_SYSENTER_ESP, "SYSENTER_ESP", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_SYSENTER_EIP, "SYSENTER_EIP", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_STAR, "STAR", { 0, ~0ull, 1, HIGH }, { 0 } },
	{ MSR_LSTAR, "LSTAR", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_CSTAR, "CSTAR", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_SFMASK, "SFMASK", { 0, 1, 0xffffffff, 0x47700 }, { 1ull << 32 } },
	{ MSR_FS_BASE, "FS_BASE", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_GS_BASE, "GS_BASE", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_KERNEL_GS_BASE, "KERNEL_GS_BASE", { 0, 1, HIGH, 0x1000 }, { NONCANONICAL } },
	{ MSR_TSC_AUX, "TSC_AUX", { 0, 1, 0xffffffff, 7 }, { 1ull << 32 } },
	{ MSR_PAT, "PAT", { 0, 0x0007040600070406, 0x0707070707070707, 0x0606060606060606 },
	  { 2, 3, 8, 0x0200000000000000 } },
	{ MSR_MTRR_DEF_TYPE, "MTRRdefType", { 0, 6, 0xc06, 0x800 }, { 2, 7, 0x100, 0x1000 } },
	{ MSR_MTRR_PHYSBASE0, "MTRRphysBase0", { 0, 6, 0x80000006, 0x1000 }, { 2, 0x106, 1ull << 50 } },
	{ MSR_MTRR_PHYSBASE0 + 15, "MTRRphysMask7", { 0, 0x800, 0xfff800, 0x1000 }, { 1, 0x400, 1ull << 50 } },
	{ MSR_MTRR_FIX_64K, "MTRRfix64K", { 0, 0x0606060606060606, 1, 0x0505050505050505 }, { 2, 0x700, 0x0300000000000000 } },
	{ 0x26f, "MTRRfix4K_F8000", { 0, 0x0606060606060606, 1, 4 }, { 2 } },
	{ MSR_SPEC_CTRL, "SPEC_CTRL", { 0, 1, 4, 7 }, { 8, 1ull << 32 } },
	{ MSR_DEBUGCTL, "DEBUGCTL", { 0, 1, 2, 3 }, { 4, 1 << 6, 1 << 15 } },
	{ MSR_MC0_CTL, "MC0_CTL", { 0, ~0ull, ~0ull & ~(1ull << 10), 0 }, { 1, 0xff } },
	{ MSR_MC0_CTL + 4 * 5 + 2, "MC5_ADDR", { 0, 1, ~0ull, 7 }, { 0 } },
};

// A new processor has the host's vendor.
static void set_vendor(const char *begin)
{
	for (unsigned i = 0; i < cpu->cpuid_count; i++)
		if (cpu->cpuid[i].function == 0)
			memcpy(&cpu->cpuid[i].ebx, begin, 4);
}

static void values(void)
{
	fixture_reset();
	fixture_long_mode(0x1000, 0);
	set_vendor("Genu");
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct row *r = &rows[i];
		u64 got;

		for (unsigned n = 0; n < 4; n++) {
			is(cpu_wrmsr(cpu, r->msr, r->good[n], BY_GUEST), 0, "%s takes %#llx", r->name,
			   (unsigned long long)r->good[n]);
			cpu_rdmsr(cpu, r->msr, &got, BY_GUEST);
			is(got, r->good[n], "%s gives it back", r->name);
		}
		for (unsigned n = 0; n < 5 && r->bad[n]; n++) {
			is(cpu_wrmsr(cpu, r->msr, r->bad[n], BY_GUEST), BAD, "%s refuses %#llx", r->name,
			   (unsigned long long)r->bad[n]);
			cpu_rdmsr(cpu, r->msr, &got, BY_GUEST);
			is(got, r->good[3], "%s is as before", r->name);
		}
	}
}

// The width the processor can have counts, not the one CR4.LA57 selects.
static void widths(void)
{
	static const u32 msrs[] = { MSR_U_CET, MSR_S_CET, MSR_PL0_SSP, MSR_PL3_SSP, MSR_INT_SSP_TAB, MSR_SYSENTER_ESP,
				    MSR_SYSENTER_EIP, MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE, MSR_GS_BASE,
				    MSR_KERNEL_GS_BASE };
	u64 got;

	for (unsigned i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++) {
		fixture_reset();
		fixture_long_mode(0x1000, 0);
		set_vendor("Genu");
		is(cpu->linear_bits, 48, "four levels of paging");
		is(cpu_wrmsr(cpu, msrs[i], ONLY57, BY_GUEST), 0, "MSR %#x takes 57 bits", msrs[i]);
		cpu_rdmsr(cpu, msrs[i], &got, BY_GUEST);
		is(got, ONLY57, "and gives them back");
		fixture_without(FEATURE_LA57);
		set_vendor("Genu");
		is(cpu_wrmsr(cpu, msrs[i], ONLY57, BY_GUEST), BAD, "without the feature it does not");
		is(cpu_wrmsr(cpu, msrs[i], HIGH, BY_GUEST), 0, "48 it does");
	}
}

// Where AMD's processors drop bits, Intel's refuse them or need them.
static void vendors(void)
{
	u64 got;

	fixture_reset();
	fixture_long_mode(0x1000, 0);
	set_vendor("Auth");
	for (u32 msr = MSR_SYSENTER_ESP; msr <= MSR_SYSENTER_EIP; msr++) {
		is(cpu_wrmsr(cpu, msr, 0x123456789000, BY_GUEST), 0, "AMD: MSR %#x takes an address", msr);
		cpu_rdmsr(cpu, msr, &got, BY_GUEST);
		is(got, 0x56789000, "of 32 bits");
		is(cpu_wrmsr(cpu, msr, NONCANONICAL | 5, BY_HOST), 0, "what is above does not matter");
		cpu_rdmsr(cpu, msr, &got, BY_HOST);
		is(got, 5, "nor does it to the host");
	}
	is(cpu_wrmsr(cpu, MSR_TSC_AUX, 0xaaaa5555aaaa5555, BY_GUEST), 0, "AMD: TSC_AUX takes 64 bits");
	cpu_rdmsr(cpu, MSR_TSC_AUX, &got, BY_GUEST);
	is(got, 0xaaaa5555, "and keeps 32");
}

static void misc_enable(void)
{
	u64 got;

	fixture_reset();
	cpu_rdmsr(cpu, MSR_MISC_ENABLE, &got, BY_GUEST);
	is(got, 0x1800, "after RESET: no BTS, no PEBS");
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, 0x1801, BY_GUEST), 0, "fast strings");
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, 1, BY_GUEST), BAD, "the guest cannot turn BTS and PEBS on");
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, 0x1881, BY_GUEST), 0, "performance monitoring");
	cpu_rdmsr(cpu, MSR_MISC_ENABLE, &got, BY_GUEST);
	is(got, 0x1801, "stays as it is");
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, 1, BY_HOST), 0, "the host says what there is");
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, 0x801, BY_GUEST), BAD, "nor can the guest turn it off then");
}

static void cet_features(void)
{
	u64 got;

	fixture_reset();
	fixture_long_mode(0x1000, 0);
	is(cpu_wrmsr(cpu, MSR_U_CET, 0x2000, BY_HOST), BAD, "the host may not set bit 13 of U_CET");
	is(cpu_wrmsr(cpu, MSR_U_CET, NONCANONICAL | 1, BY_HOST), 0, "its bitmap base is not checked");
	is(cpu_wrmsr(cpu, MSR_KVM_INTERNAL_GUEST_SSP, 0x1000, BY_HOST), 0, "the host sets SSP");
	is(cpu->ssp, 0x1000, "SSP");
	is(cpu_wrmsr(cpu, MSR_KVM_INTERNAL_GUEST_SSP, 0x1001, BY_HOST), BAD, "aligned");
	seen.msr_result = CPU_OPS_GP;
	is(cpu_rdmsr(cpu, MSR_KVM_INTERNAL_GUEST_SSP, &got, BY_GUEST), BAD, "the guest knows no such MSR");

	fixture_without(FEATURE_IBT);
	is(cpu_wrmsr(cpu, MSR_U_CET, CET_SHSTK_EN | CET_WRSS_EN, BY_GUEST), 0, "shadow stacks without IBT");
	is(cpu_wrmsr(cpu, MSR_U_CET, CET_ENDBR_EN, BY_GUEST), BAD, "IBT's bits without IBT");
	is(cpu_wrmsr(cpu, MSR_U_CET, HIGH, BY_GUEST), BAD, "its bitmap without IBT");
	fixture_reset();
	seen.msr_result = CPU_OPS_GP;
	fixture_without(FEATURE_SHSTK);
	is(cpu_wrmsr(cpu, MSR_S_CET, CET_SHSTK_EN, BY_GUEST), BAD, "shadow-stack bits without shadow stacks");
	is(cpu_wrmsr(cpu, MSR_S_CET, CET_ENDBR_EN, BY_GUEST), 0, "IBT without shadow stacks");
	is(cpu_rdmsr(cpu, MSR_PL0_SSP, &got, BY_GUEST), BAD, "PL0_SSP without shadow stacks");
	is(cpu_rdmsr(cpu, MSR_PL0_SSP, &got, BY_HOST), 0, "the host reads it");
	is(got, 0, "as 0");
	is(cpu_wrmsr(cpu, MSR_PL0_SSP, 0, BY_HOST), 0, "and writes 0");
	is(cpu_wrmsr(cpu, MSR_PL0_SSP, 8, BY_HOST), BAD, "and nothing else");
	is(cpu_wrmsr(cpu, MSR_KVM_INTERNAL_GUEST_SSP, 0, BY_HOST), BAD, "SSP not even 0");
	fixture_without(FEATURE_IBT);
	is(cpu_rdmsr(cpu, MSR_U_CET, &got, BY_GUEST), BAD, "U_CET without both");
}

static void read_only(void)
{
	u64 got;

	fixture_reset();
	cpu_rdmsr(cpu, MSR_ARCH_CAPABILITIES, &got, BY_GUEST);
	ok(got & 1, "RDCL_NO");
	is(cpu_wrmsr(cpu, MSR_ARCH_CAPABILITIES, 0, BY_GUEST), BAD, "ARCH_CAPABILITIES is read-only");
	is(cpu_wrmsr(cpu, MSR_ARCH_CAPABILITIES, 1, BY_HOST), 0, "the host may take from it");
	is(cpu_wrmsr(cpu, MSR_ARCH_CAPABILITIES, 1 << 9, BY_HOST), BAD, "and not add to it");
	is(cpu_wrmsr(cpu, MSR_MTRR_CAP, 0, BY_GUEST), BAD, "MTRRcap is read-only");
	cpu_rdmsr(cpu, MSR_MTRR_CAP, &got, BY_GUEST);
	is(got & 0xff, 8, "with 8 variable ranges");
	is(cpu_wrmsr(cpu, MSR_UCODE_REV, 0, BY_GUEST), 0, "Linux clears the microcode revision");
	cpu_rdmsr(cpu, MSR_UCODE_REV, &got, BY_GUEST);
	is(got, cpuid_host_is_amd() ? 0x01000065 : 1ull << 32, "and reads it");
	for (u32 msr = 0xc0010000; msr < 0xc0010008; msr++) {
		is(cpu_wrmsr(cpu, msr, 0x430076, BY_GUEST), 0, "AMD's performance MSR %#x is there", msr);
		is(cpu_rdmsr(cpu, msr, &got, BY_GUEST), 0, "and can be read");
		is(got, 0, "though nothing counts");
	}
	is(cpu_rdmsr(cpu, MSR_PRED_CMD, &got, BY_GUEST), BAD, "PRED_CMD is write-only");
	is(cpu_wrmsr(cpu, MSR_PRED_CMD, 1, BY_GUEST), 0, "PRED_CMD");
	is(cpu_wrmsr(cpu, MSR_FEATURE_CONTROL, 1, BY_GUEST), 0, "FEATURE_CONTROL may be locked");
	is(cpu_wrmsr(cpu, MSR_FEATURE_CONTROL, 1, BY_GUEST), BAD, "once");
	is(cpu_wrmsr(cpu, MSR_MC0_CTL + 1, 1, BY_GUEST), BAD, "MC0_STATUS takes only 0 of the guest");
	is(cpu_wrmsr(cpu, MSR_MC0_CTL + 1, 1, BY_HOST), 0, "anything of the host");
	is(cpu_setup_mce(cpu, 10 | 1 << 8), 0, "10 banks");
	seen.msr_result = CPU_OPS_GP;
	is(cpu_wrmsr(cpu, MSR_MC0_CTL + 40, 0, BY_GUEST), BAD, "there is no bank 10");
	is(cpu_setup_mce(cpu, 33), BAD, "33 banks");
	is(cpu_setup_mce(cpu, 1 | 1 << 9), BAD, "unknown capability");
}

// Nothing is counted, but guests and clients find the registers of processors since the P6 and the K7.
static void counters(void)
{
	static const u32 first[] = { 0xc1, 0x186, 0xc0010000, 0xc0010004 };
	u64 got;

	fixture_reset();
	seen.msr_result = CPU_OPS_GP;
	for (unsigned i = 0; i < sizeof(first) / sizeof(first[0]); i++)
		for (u32 index = first[i]; index < first[i] + (i < 2 ? 2 : 4); index++) {
			is(cpu_wrmsr(cpu, index, 0, BY_HOST), 0, "the host clears MSR 0x%x", index);
			is(cpu_wrmsr(cpu, index, 0xabcd, BY_GUEST), 0, "the guest writes MSR 0x%x", index);
			is(cpu_rdmsr(cpu, index, &got, BY_GUEST), 0, "and reads it");
			is(got, 0, "as 0");
		}
	is(cpu_wrmsr(cpu, 0xc3, 0, BY_GUEST), BAD, "there is no PERFCTR2");
	is(cpu_wrmsr(cpu, 0xc0010008, 0, BY_HOST), BAD, "nor one behind K7_PERFCTR3");
}

static void surroundings(void)
{
	u64 got;

	fixture_reset();
	is(cpu_rdmsr(cpu, 0x802, &got, BY_GUEST), 0, "x2APIC MSRs are the surroundings'");
	is(got, 0x1234, "value");
	is(cpu_wrmsr(cpu, MSR_TSC_DEADLINE, 99, BY_GUEST), 0, "so is TSC_DEADLINE");
	ok(seen.msr == MSR_TSC_DEADLINE && seen.msr_value == 99, "with its value");
	cpu_rdmsr(cpu, 0x4b564d00, &got, BY_GUEST);
	is(seen.msr, 0x4b564d00, "and what has no row");
	seen.msr_result = CPU_OPS_EXIT;
	is(cpu_rdmsr(cpu, 0x12345, &got, BY_GUEST), (u64)-EAGAIN, "which may want an exit");
	seen.msr_result = CPU_OPS_GP;
	is(cpu_wrmsr(cpu, 0x12345, 0, BY_GUEST), BAD, "or raises #GP");
}

static void tsc(void)
{
	u64 got;

	fixture_reset();
	is(cpu_tsc(cpu), 1000, "time");
	is(cpu_wrmsr(cpu, MSR_TSC, 5000, BY_GUEST), 0, "the guest sets its counter");
	is(cpu_tsc(cpu), 5000, "it is set");
	cpu_rdmsr(cpu, MSR_TSC_ADJUST, &got, BY_GUEST);
	is(got, 4000, "TSC_ADJUST says by how much");
	cpu_wrmsr(cpu, MSR_TSC_ADJUST, 0, BY_GUEST);
	is(cpu_tsc(cpu), 1000, "writing TSC_ADJUST moves the counter");
	cpu_wrmsr(cpu, MSR_TSC_ADJUST, 300, BY_HOST);
	is(cpu_tsc(cpu), 1000, "not when the host restores it");
	cpu_wrmsr(cpu, MSR_TSC, 7777, BY_HOST);
	is(cpu_tsc(cpu), 7777, "the host sets the counter");
	cpu_rdmsr(cpu, MSR_TSC_ADJUST, &got, BY_HOST);
	is(got, 300, "without touching TSC_ADJUST");
}

static void lists(void)
{
	u32 list[256];
	unsigned count = cpu_msr_list(list, 256), features;
	bool u_cet = false, ssp = false, internal = false;
	unsigned unreadable = 0;
	u64 got;

	fixture_reset();
	is(cpu_msr_list(list, 0), count, "the count does not depend on the room");
	for (unsigned i = 0; i < count; i++) {
		u_cet |= list[i] == MSR_U_CET;
		ssp |= list[i] == MSR_PL3_SSP;
		internal |= list[i] == MSR_KVM_INTERNAL_GUEST_SSP;
		if (list[i] != MSR_MCG_CTL && cpu_rdmsr(cpu, list[i], &got, BY_HOST)) {
			printf("#   %#x\n", list[i]);
			unreadable++;
		}
	}
	ok(u_cet && ssp, "CET MSRs are in the list to save");
	ok(!internal, "GUEST_SSP is not");
	is(unreadable, 0, "%u MSRs can all be read by the host", count);
	features = cpu_feature_msr_list(list, 256);
	ok(features != 0, "feature MSRs");
	for (unsigned i = 0; i < features; i++) {
		u64 offered = 0;

		is(cpu_feature_msr(list[i], &offered), 0, "feature MSR %#x", list[i]);
		cpu_rdmsr(cpu, list[i], &got, BY_HOST);
		is(got, list[i] == 0xc0011029 ? 0 : offered, "a new processor has what it says, DE_CFG apart");
	}
}

int main(void)
{
	values();
	widths();
	vendors();
	misc_enable();
	cet_features();
	read_only();
	counters();
	surroundings();
	tsc();
	lists();
	return done_testing();
}
