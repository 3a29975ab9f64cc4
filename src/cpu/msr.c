// SPDX-License-Identifier: MIT
// Model-specific registers: one table, a row each, with RDMSR, WRMSR and the ioctls on top.
// SDM: Vol. 4 "Model-Specific Registers (MSRs)"; Vol. 3 "Memory Type Range Registers",
// "Machine-Check Architecture"; Vol. 1 "Control-flow Enforcement Technology" for its MSRs.
//
// - A row exists for the guest if its processor has one of the row's features. The host may read an
//   MSR of the save list without them (as 0), and write 0 (api.rst: KVM_SET_MSRS).
// - What has no row is the surroundings' (cpu_ops): APIC, TSC deadline, paravirtual clock.
// - All checks come before anything changes.
#include "cpu/msr.h"
#include "cpu/far.h"
#include "cpu/features.h"
#include "cpu/mem.h"
#include "cpu/system.h"
#include "cpu/transfer.h"
#include "xstate/xstate.h"

#include <errno.h>
#include <string.h>

enum row_flags {
	LISTED = 1,	  // in KVM_GET_MSR_INDEX_LIST
	READ_ONLY = 2,	  // the guest's writes raise #GP; the host may write
	IGNORE_WRITE = 4, // the guest's writes do nothing
	HOST_ONLY = 8,	  // not there for the guest
	DESCRIBES = 16, // describes the processor; the default is what this product offers
};

struct msr_row {
	u32 index;
	u16 count;	  // consecutive MSRs in consecutive u64s
	u8 flags;
	u16 feature[2];   // any of them; both 0: always there
	u32 home;	  // offset in struct cpu
	u64 reserved;	  // bits that must be 0 in what is written
	bool (*valid)(const struct cpu *cpu, u32 index, u64 value, enum who who);
	// Instead of loading from and storing to `home`.
	u64 (*read)(struct cpu *cpu, u32 index);
	int (*write)(struct cpu *cpu, u32 index, u64 value, enum who who);
};

enum slot {
	SLOT_FEATURE_CONTROL,
	SLOT_SPEC_CTRL,
	SLOT_UCODE_REV,
	SLOT_PLATFORM_INFO,
	SLOT_ARCH_CAPABILITIES,
	SLOT_MISC_FEATURES,
	SLOT_MCG_CAP,
	SLOT_MCG_STATUS,
	SLOT_MCG_CTL,
	SLOT_MTRR_DEF_TYPE,
	SLOT_MTRR_VARIABLE,
	SLOT_MTRR_FIX_64K = SLOT_MTRR_VARIABLE + 2 * MTRR_VARIABLE,
	SLOT_MTRR_FIX_16K,
	SLOT_MTRR_FIX_4K = SLOT_MTRR_FIX_16K + 2,
	SLOT_HWCR = SLOT_MTRR_FIX_4K + 8,
	SLOT_DE_CFG,
	SLOT_POWER_CTL,
	SLOT_MCE_BANK, // CTL, STATUS, ADDR, MISC of each
	SLOT_COUNT = SLOT_MCE_BANK + 4 * MCE_BANKS,
};
_Static_assert(SLOT_COUNT <= sizeof(((struct cpu *)0)->msr_values) / sizeof(u64), "msr_values");

#define FIELD(name) offsetof(struct cpu, name)
#define SLOT(name) (offsetof(struct cpu, msr_values) + SLOT_##name * sizeof(u64))
#define HIGH32 0xffffffff00000000ull
#define ALL 0xffffffffffffffffull

// IA32_ARCH_CAPABILITIES: translated code has none of these side channels towards the guest's
// other contexts that a guest could do anything about.
#define ARCH_CAP_RDCL_NO (1ull << 0)
#define ARCH_CAP_IBRS_ALL (1ull << 1)
#define ARCH_CAP_SKIP_L1DFL (1ull << 3)
#define ARCH_CAP_SSB_NO (1ull << 4)
#define ARCH_CAP_MDS_NO (1ull << 5)
#define ARCH_CAP_PSCHANGE_MC_NO (1ull << 6)
#define ARCH_CAP_TAA_NO (1ull << 8)
#define ARCH_CAP_SBDR_SSDP_NO (1ull << 13)
#define ARCH_CAP_FBSDP_NO (1ull << 14)
#define ARCH_CAP_PSDP_NO (1ull << 15)
#define ARCH_CAP_BHI_NO (1ull << 20)
#define ARCH_CAP_PBRSB_NO (1ull << 24)
#define ARCH_CAP_GDS_NO (1ull << 26)
#define ARCH_CAP_RFDS_NO (1ull << 27)
#define ARCH_CAP_ITS_NO (1ull << 62)
#define ARCH_CAPABILITIES \
	(ARCH_CAP_RDCL_NO | ARCH_CAP_IBRS_ALL | ARCH_CAP_SKIP_L1DFL | ARCH_CAP_SSB_NO | \
	 ARCH_CAP_MDS_NO | ARCH_CAP_PSCHANGE_MC_NO | ARCH_CAP_TAA_NO | ARCH_CAP_SBDR_SSDP_NO | \
	 ARCH_CAP_FBSDP_NO | ARCH_CAP_PSDP_NO | ARCH_CAP_BHI_NO | ARCH_CAP_PBRSB_NO | \
	 ARCH_CAP_GDS_NO | ARCH_CAP_RFDS_NO | ARCH_CAP_ITS_NO)

#define SPEC_CTRL_BHI_DIS_S (1ull << 10)
#define PLATFORM_INFO_CPUID_FAULTING (1ull << 31)
#define MISC_FEATURES_CPUID_FAULTING (1ull << 0)
// What KVM gives a new vCPU: on Intel's processors revision 1, which is in the upper half.
#define UCODE_REV_INTEL (1ull << 32)
#define UCODE_REV_AMD 0x01000065
#define MTRR_CAP_VALUE (MTRR_VARIABLE | 1u << 8 /* fixed */ | 1u << 10 /* WC */)
#define MCG_CTL_P (1ull << 8)
#define HWCR_TSC_FREQ_SEL (1ull << 24) // the TSC counts at the nominal frequency
#define HWCR_STORED (HWCR_TSC_FREQ_SEL | 1ull << 18 /* McStatusWrEn */)
#define HWCR_IGNORED (1ull << 3 /* TlbCacheDis */ | 1ull << 6 /* FFDis */ | 1ull << 8 /* IgnneEm */)
#define DE_CFG_LFENCE_SERIALIZE (1ull << 1)

// ---- values ----

static bool canonical57(u64 value)
{
	return (u64)((s64)(value << 7) >> 7) == value;
}

bool cpu_canonical_base(const struct cpu *cpu, u64 address)
{
	return cpu_canonical(cpu, address) || (guest_has(cpu, FEATURE_LA57) && canonical57(address));
}

// The host may restore an address before CR4.LA57: any that a guest here can have.
static bool canonical(const struct cpu *cpu, u64 value, enum who who)
{
	if (who == BY_HOST && cpuid_offers(FEATURE_LA57))
		return canonical57(value);
	return cpu_canonical_base(cpu, value);
}

static bool valid_canonical(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return canonical(cpu, value, who);
}

bool msr_cet_valid(const struct cpu *cpu, u64 value, enum who who)
{
	bool shstk = guest_has(cpu, FEATURE_SHSTK), ibt = guest_has(cpu, FEATURE_IBT);

	if (value & CET_RESERVED)
		return false;
	if ((value & CET_SUPPRESS) && (value & CET_WAIT))
		return false;
	if (!shstk && (value & (CET_SHSTK_EN | CET_WRSS_EN)))
		return false;
	if (!ibt && (value & ~(u64)(CET_SHSTK_EN | CET_WRSS_EN)))
		return false;
	if (who == BY_HOST)
		// The host's rule has no canonical test, and wants bits 13:12 to be 0.
		return (value >> 12) % 4 == 0;
	return cpu_canonical_base(cpu, value & ~0xfffull);
}

static bool valid_cet(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return msr_cet_valid(cpu, value, who);
}

bool msr_ssp_valid(const struct cpu *cpu, u64 value, enum who who)
{
	return !(value & 3) && canonical(cpu, value, who);
}

static bool valid_ssp(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return msr_ssp_valid(cpu, value, who);
}

static bool valid_int_ssp_tab(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return guest_has(cpu, FEATURE_LM) && canonical(cpu, value, who);
}

static bool valid_xfd(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	for (unsigned i = 0; i < 64; i++)
		if ((value >> i & 1) && (!(cpu->xcr0_supported >> i & 1) || !xstate_component(i) ||
					 !xstate_component(i)->xfd))
			return false;
	return true;
}

static bool valid_pat(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	for (unsigned i = 0; i < 64; i += 8) {
		u8 type = value >> i;

		if (type == 2 || type == 3 || type > 7)
			return false;
	}
	return true;
}

static bool mtrr_type(u8 type)
{
	return type == 0 || type == 1 || type == 4 || type == 5 || type == 6;
}

static u64 mtrr_reserved(const struct cpu *cpu)
{
	return ~((1ull << cpu->phys_bits) - 1);
}

static bool valid_mtrr_variable(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	if (value & mtrr_reserved(cpu))
		return false;
	return index & 1 ? !(value & 0x7ff) : !(value & 0xf00) && mtrr_type(value);
}

static bool valid_mtrr_fixed(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	for (unsigned i = 0; i < 64; i += 8)
		if (!mtrr_type(value >> i))
			return false;
	return true;
}

static bool valid_mtrr_def_type(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return !(value & ~0xcffull) && mtrr_type(value);
}

static bool valid_feature_control(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	// Only the lock bit has a meaning without VMX, SMX and SGX. Locked is for good.
	return who == BY_HOST || (!(value & ~1ull) && !(cpu->msr_values[SLOT_FEATURE_CONTROL] & 1));
}

static bool valid_misc_features(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	if (value & ~MISC_FEATURES_CPUID_FAULTING)
		return false;
	return !value || (cpu->msr_values[SLOT_PLATFORM_INFO] & PLATFORM_INFO_CPUID_FAULTING);
}

static bool valid_spec_ctrl(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	u64 bits = 7 | (guest_has(cpu, FEATURE_BHI_CTRL) ? SPEC_CTRL_BHI_DIS_S : 0);

	return !(value & ~bits);
}

static bool valid_mcg_ctl(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	// Without the register the host may still restore its 0.
	if (!(cpu->msr_values[SLOT_MCG_CAP] & MCG_CTL_P))
		return who == BY_HOST && value == 0;
	return value == 0 || value == ALL;
}

static bool valid_mce_bank(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	unsigned n = index - MSR_MC0_CTL;

	if (n / 4 >= (cpu->msr_values[SLOT_MCG_CAP] & 0xff))
		return false;
	switch (n % 4) {
	case 0:
		// Some systems leave bit 10 of bank 0 clear on purpose.
		return value == 0 || (value | 1 << 10) == ALL;
	case 1:
		return who == BY_HOST || value == 0;
	default:
		return true;
	}
}

// ---- reads and writes with effects ----

static u64 read_tsc(struct cpu *cpu, u32 index)
{
	return cpu_tsc(cpu);
}

static int from_ops(enum cpu_ops_result result)
{
	return result == CPU_OPS_DONE ? 0 : result == CPU_OPS_EXIT ? -EAGAIN : -EINVAL;
}

static int write_tsc(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	// The guest's write shows in IA32_TSC_ADJUST.
	if (who == BY_GUEST)
		cpu->tsc_adjust += value - cpu_tsc(cpu);
	return from_ops(cpu->ops->wrmsr(cpu->opaque, MSR_TSC, value, who));
}

static int write_tsc_adjust(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	u64 change = value - cpu->tsc_adjust;

	cpu->tsc_adjust = value;
	// The host restores the register beside the counter, which must not move.
	return who == BY_HOST ? 0 : from_ops(cpu->ops->wrmsr(cpu->opaque, MSR_TSC, cpu_tsc(cpu) + change, who));
}

static u64 read_fs_base(struct cpu *cpu, u32 index)
{
	return cpu->seg[index == MSR_FS_BASE ? SEG_FS : SEG_GS].base;
}

static int write_fs_base(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	cpu->seg[index == MSR_FS_BASE ? SEG_FS : SEG_GS].base = value;
	cpu_mode_changed(cpu);
	return 0;
}

static u64 read_efer(struct cpu *cpu, u32 index)
{
	return cpu->efer;
}

static int write_efer(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	if (who == BY_HOST)
		// KVM_SET_MSRS leaves LMA as it is; KVM_SET_SREGS sets it.
		value = (value & ~(u64)EFER_LMA) | (cpu->efer & EFER_LMA);
	return cpu_set_efer(cpu, value, who);
}

static int write_cet(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	*(index == MSR_U_CET ? &cpu->u_cet : &cpu->s_cet) = value;
	cpu_mode_changed(cpu);
	return 0;
}

static int write_xss(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	if (value & ~cpu->xss_supported)
		return -EINVAL;
	cpu->xss = value;
	cpuid_refresh(cpu);
	return 0;
}

static int write_xfd(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	cpu->xfd = value;
	cpu_mode_changed(cpu);
	return 0;
}

static int write_misc_enable(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	u64 change = cpu->misc_enable ^ value;

	if (who == BY_GUEST) {
		// As KVM has the two read-only kinds: one faults, the other does nothing.
		if (change & (MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE))
			return -EINVAL;
		value ^= change & MISC_ENABLE_PERFMON;
	}
	// Without SSE3 there is no such bit to change.
	if (cpu->monitor_by_msr && ((cpu->misc_enable ^ value) & MISC_ENABLE_MWAIT) && !guest_has(cpu, FEATURE_SSE3))
		return -EINVAL;
	cpu->misc_enable = value;
	cpuid_refresh(cpu);
	return 0;
}

// AMD's processors drop bits 63:32 of these; on Intel's they are an address's, or reserved.
static bool valid_sysenter(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return vendor_is_amd(cpu) || canonical(cpu, value, who);
}

static int write_sysenter(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	*(index == MSR_SYSENTER_ESP ? &cpu->sysenter_esp : &cpu->sysenter_eip) = vendor_is_amd(cpu) ? (u32)value : value;
	return 0;
}

static bool valid_tsc_aux(const struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return vendor_is_amd(cpu) || !(value & HIGH32);
}

static int write_tsc_aux(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	cpu->tsc_aux = (u32)value;
	return 0;
}

static u64 read_mtrr_cap(struct cpu *cpu, u32 index)
{
	return MTRR_CAP_VALUE;
}

static u64 read_zero(struct cpu *cpu, u32 index)
{
	return 0;
}

static int write_nothing(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	return 0;
}

static u64 read_guest_ssp(struct cpu *cpu, u32 index)
{
	return cpu->ssp;
}

static int write_guest_ssp(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	cpu->ssp = value;
	return 0;
}

static int write_hwcr(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	cpu->msr_values[SLOT_HWCR] = value & HWCR_STORED;
	return 0;
}

// ---- the table, sorted by number ----

#define F(a) { FEATURE_##a, 0 }
#define F2(a, b) { FEATURE_##a, FEATURE_##b }
#define ZERO(index, count) \
	{ index, count, IGNORE_WRITE, { 0 }, 0, 0, NULL, read_zero, write_nothing }

static const struct msr_row rows[] = {
	{ MSR_TSC, 1, LISTED, { 0 }, 0, 0, NULL, read_tsc, write_tsc },
	ZERO(MSR_PLATFORM_ID, 1),
	ZERO(0x2a, 1), // EBL_CR_POWERON
	{ MSR_SMI_COUNT, 1, LISTED | READ_ONLY, { 0 }, FIELD(smi_count), HIGH32, 0, 0, 0 },
	{ MSR_FEATURE_CONTROL, 1, LISTED, { 0 }, SLOT(FEATURE_CONTROL), 0, valid_feature_control, 0, 0 },
	{ MSR_TSC_ADJUST, 1, LISTED, F(TSC_ADJUST), FIELD(tsc_adjust), 0, NULL, NULL, write_tsc_adjust },
	{ MSR_SPEC_CTRL, 1, LISTED, F2(SPEC_CTRL, SSBD), SLOT(SPEC_CTRL), 0, valid_spec_ctrl, 0, 0 },
	{ MSR_PRED_CMD, 1, 0, F(SPEC_CTRL), 0, ~1ull, NULL, NULL, write_nothing },
	ZERO(MSR_UCODE_WRITE, 1),
	{ MSR_UCODE_REV, 1, IGNORE_WRITE | DESCRIBES, { 0 }, SLOT(UCODE_REV), 0, 0, 0, 0 },
	{ MSR_SMBASE, 1, LISTED | HOST_ONLY, { 0 }, FIELD(smbase), HIGH32, 0, 0, 0 },
	ZERO(0xc1, 2), // PERFCTR0, 1: no counters, but clients clear them (QEMU)
	{ MSR_PLATFORM_INFO, 1, LISTED | READ_ONLY | DESCRIBES, { 0 }, SLOT(PLATFORM_INFO), 0, 0, 0, 0 },
	{ MSR_MTRR_CAP, 1, READ_ONLY, F(MTRR), 0, ALL, NULL, read_mtrr_cap, write_nothing },
	{ MSR_ARCH_CAPABILITIES, 1, LISTED | READ_ONLY | DESCRIBES, F(ARCH_CAPABILITIES),
	  SLOT(ARCH_CAPABILITIES), ~ARCH_CAPABILITIES, 0, 0, 0 },
	{ MSR_FLUSH_CMD, 1, 0, F(L1D_FLUSH), 0, ~1ull, NULL, NULL, write_nothing },
	{ MSR_MISC_FEATURES_ENABLES, 1, LISTED, { 0 }, SLOT(MISC_FEATURES), 0, valid_misc_features, 0, 0 },
	{ MSR_SYSENTER_CS, 1, LISTED, F(SEP), FIELD(sysenter_cs), HIGH32, 0, 0, 0 },
	{ MSR_SYSENTER_ESP, 1, LISTED, F(SEP), FIELD(sysenter_esp), 0, valid_sysenter, NULL, write_sysenter },
	{ MSR_SYSENTER_EIP, 1, LISTED, F(SEP), FIELD(sysenter_eip), 0, valid_sysenter, NULL, write_sysenter },
	{ MSR_MCG_CAP, 1, READ_ONLY, F2(MCA, MCE), SLOT(MCG_CAP), ALL, 0, 0, 0 },
	{ MSR_MCG_STATUS, 1, LISTED, F2(MCA, MCE), SLOT(MCG_STATUS), 0, 0, 0, 0 },
	{ MSR_MCG_CTL, 1, LISTED, F2(MCA, MCE), SLOT(MCG_CTL), 0, valid_mcg_ctl, 0, 0 },
	ZERO(0x186, 2), // EVNTSEL0, 1
	ZERO(0x198, 2), // PERF_STATUS, PERF_CTL
	{ MSR_MISC_ENABLE, 1, LISTED, { 0 }, FIELD(misc_enable), 0, NULL, NULL, write_misc_enable },
	{ MSR_XFD, 1, LISTED, F(XFD), FIELD(xfd), 0, valid_xfd, NULL, write_xfd },
	{ MSR_XFD_ERR, 1, LISTED, F(XFD), FIELD(xfd_err), 0, valid_xfd, 0, 0 },
	{ MSR_DEBUGCTL, 1, 0, { 0 }, FIELD(debugctl), ~(u64)(DEBUGCTL_LBR | DEBUGCTL_BTF), 0, 0, 0 },
	ZERO(MSR_LAST_BRANCH_FROM, 4),
	{ MSR_POWER_CTL, 1, LISTED, { 0 }, SLOT(POWER_CTL), 0, 0, 0, 0 },
	{ MSR_MTRR_PHYSBASE0, 2 * MTRR_VARIABLE, 0, F(MTRR), SLOT(MTRR_VARIABLE), 0, valid_mtrr_variable, 0, 0 },
	{ MSR_MTRR_FIX_64K, 1, 0, F(MTRR), SLOT(MTRR_FIX_64K), 0, valid_mtrr_fixed, 0, 0 },
	{ 0x258, 2, 0, F(MTRR), SLOT(MTRR_FIX_16K), 0, valid_mtrr_fixed, 0, 0 },
	{ 0x268, 8, 0, F(MTRR), SLOT(MTRR_FIX_4K), 0, valid_mtrr_fixed, 0, 0 },
	{ MSR_PAT, 1, LISTED, F(PAT), FIELD(pat), 0, valid_pat, 0, 0 },
	{ MSR_MTRR_DEF_TYPE, 1, 0, F(MTRR), SLOT(MTRR_DEF_TYPE), 0, valid_mtrr_def_type, 0, 0 },
	{ MSR_MC0_CTL, 4 * MCE_BANKS, 0, F2(MCA, MCE), SLOT(MCE_BANK), 0, valid_mce_bank, 0, 0 },
	ZERO(0x606, 1), // RAPL_POWER_UNIT
	ZERO(0x611, 1), // PKG_ENERGY_STATUS
	ZERO(0x619, 1), // DRAM_ENERGY_STATUS
	ZERO(0x639, 1), // PP0_ENERGY_STATUS
	ZERO(0x641, 1), // PP1_ENERGY_STATUS
	{ MSR_U_CET, 1, LISTED, F2(SHSTK, IBT), FIELD(u_cet), 0, valid_cet, NULL, write_cet },
	{ MSR_S_CET, 1, LISTED, F2(SHSTK, IBT), FIELD(s_cet), 0, valid_cet, NULL, write_cet },
	// IA32_PL0_SSP is IA32_FRED_SSP0 as well: it is there with either feature.
	{ MSR_PL0_SSP, 1, LISTED, F2(SHSTK, FRED), FIELD(pl_ssp), 0, valid_ssp, 0, 0 },
	{ MSR_PL0_SSP + 1, 3, LISTED, F(SHSTK), FIELD(pl_ssp[1]), 0, valid_ssp, 0, 0 },
	{ MSR_INT_SSP_TAB, 1, LISTED, F(SHSTK), FIELD(int_ssp_tab), 0, valid_int_ssp_tab, 0, 0 },
	{ MSR_XSS, 1, LISTED, F(XSAVES), FIELD(xss), 0, NULL, NULL, write_xss },
	{ MSR_KVM_INTERNAL_GUEST_SSP, 1, HOST_ONLY, F(SHSTK), 0, 0, valid_ssp, read_guest_ssp, write_guest_ssp },
	{ MSR_EFER, 1, 0, { 0 }, 0, 0, NULL, read_efer, write_efer },
	{ MSR_STAR, 1, LISTED, F2(SYSCALL, LM), FIELD(star), 0, 0, 0, 0 },
	{ MSR_LSTAR, 1, LISTED, F(LM), FIELD(lstar), 0, valid_canonical, 0, 0 },
	{ MSR_CSTAR, 1, LISTED, F(LM), FIELD(cstar), 0, valid_canonical, 0, 0 },
	{ MSR_SFMASK, 1, LISTED, F(LM), FIELD(sfmask), HIGH32, 0, 0, 0 },
	{ MSR_FS_BASE, 2, 0, F(LM), 0, 0, valid_canonical, read_fs_base, write_fs_base },
	{ MSR_KERNEL_GS_BASE, 1, LISTED, F(LM), FIELD(kernel_gs_base), 0, valid_canonical, 0, 0 },
	{ MSR_TSC_AUX, 1, LISTED, F2(RDTSCP, RDPID), FIELD(tsc_aux), 0, valid_tsc_aux, NULL, write_tsc_aux },
	// PerfEvtSel0-3 and PerfCtr0-3 are there on every AMD64 processor, without a bit of CPUID: they
	// count nothing. PERFCTR_CORE's and the architectural ones are not offered.
	ZERO(0xc0010000, 8),
	ZERO(0xc0010010, 1), // SYSCFG
	{ 0xc0010015, 1, LISTED, { 0 }, SLOT(HWCR), ~(HWCR_STORED | HWCR_IGNORED), 0, 0, write_hwcr },
	ZERO(0xc001001f, 2), // NB_CFG, PATCH_LOADER
	ZERO(0xc0010055, 1), // INT_PENDING_MSG
	ZERO(0xc0010058, 1), // MMIO_CONF_BASE
	ZERO(0xc0010112, 2), // SMM_ADDR, SMM_MASK
	ZERO(0xc0010140, 2), // OSVW_ID_LENGTH, OSVW_STATUS
	ZERO(0xc0011020, 1), // LS_CFG
	ZERO(0xc0011022, 2), // DC_CFG, TW_CFG
	{ 0xc0011029, 1, DESCRIBES, { 0 }, SLOT(DE_CFG), ~DE_CFG_LFENCE_SERIALIZE, 0, 0, 0 },
	ZERO(0xc001102a, 1), // BU_CFG2
};

enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

static const struct msr_row *find(u32 index)
{
	unsigned low = 0, high = ROWS;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (index < rows[middle].index)
			high = middle;
		else if (index >= rows[middle].index + rows[middle].count)
			low = middle + 1;
		else
			return &rows[middle];
	}
	return NULL;
}

static bool exists(const struct cpu *cpu, const struct msr_row *row, enum who who)
{
	if ((row->flags & HOST_ONLY) && who == BY_GUEST)
		return false;
	if (!row->feature[0])
		return true;
	return guest_has(cpu, row->feature[0]) || (row->feature[1] && guest_has(cpu, row->feature[1]));
}

static u64 *home(struct cpu *cpu, const struct msr_row *row, u32 index)
{
	return (u64 *)((u8 *)cpu + row->home) + (index - row->index);
}

static int read_row(struct cpu *cpu, const struct msr_row *row, u32 index, u64 *value, enum who who)
{
	// Without a home and a reader: write-only.
	if (!row->read && !row->home)
		return -EINVAL;
	if (index == MSR_MCG_CTL && !(cpu->msr_values[SLOT_MCG_CAP] & MCG_CTL_P) && who == BY_GUEST)
		return -EINVAL;
	if (row->index == MSR_MC0_CTL && (index - MSR_MC0_CTL) / 4 >= (cpu->msr_values[SLOT_MCG_CAP] & 0xff))
		return -EINVAL;
	*value = row->read ? row->read(cpu, index) : *home(cpu, row, index);
	return 0;
}

static int write_row(struct cpu *cpu, const struct msr_row *row, u32 index, u64 value, enum who who)
{
	if (who == BY_GUEST) {
		if (row->flags & READ_ONLY)
			return -EINVAL;
		if (row->flags & IGNORE_WRITE)
			return 0;
	}
	if ((value & row->reserved) || (row->valid && !row->valid(cpu, index, value, who)))
		return -EINVAL;
	if (row->write)
		return row->write(cpu, index, value, who);
	*home(cpu, row, index) = value;
	return 0;
}

// May any guest on this host have the row's MSR?
static bool offered(const struct msr_row *row)
{
	if (row->index == MSR_XSS) // nothing to save where nothing can be enabled
		return cpuid_offered_xss();
	return !row->feature[0] || cpuid_offers(row->feature[0]) ||
	       (row->feature[1] && cpuid_offers(row->feature[1]));
}

// KVM_GET_MSR_INDEX_LIST names it: the host may ask for it even where the guest does not have it.
static bool advertised(const struct msr_row *row)
{
	return (row->flags & LISTED) && offered(row);
}

int cpu_rdmsr(struct cpu *cpu, u32 index, u64 *value, enum who who)
{
	const struct msr_row *row;

	if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return from_ops(cpu->ops->rdmsr(cpu->opaque, index, value, who));
	row = find(index);
	if (row && exists(cpu, row, who))
		return read_row(cpu, row, index, value, who);
	if (row && who == BY_HOST && advertised(row)) {
		*value = 0;
		return 0;
	}
	return from_ops(cpu->ops->rdmsr(cpu->opaque, index, value, who));
}

int cpu_wrmsr(struct cpu *cpu, u32 index, u64 value, enum who who)
{
	const struct msr_row *row;

	if ((index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) || index == MSR_TSC_DEADLINE)
		return from_ops(cpu->ops->wrmsr(cpu->opaque, index, value, who));
	row = find(index);
	if (row && exists(cpu, row, who))
		return write_row(cpu, row, index, value, who);
	if (row && who == BY_HOST && advertised(row))
		return value ? -EINVAL : 0;
	return from_ops(cpu->ops->wrmsr(cpu->opaque, index, value, who));
}

// ---- lists ----

static unsigned list_rows(u32 *list, unsigned max, u8 flag)
{
	unsigned count = 0;

	for (unsigned i = 0; i < ROWS; i++) {
		if (!(rows[i].flags & flag) || !offered(&rows[i]))
			continue;
		for (unsigned n = 0; n < rows[i].count; n++, count++)
			if (count < max)
				list[count] = rows[i].index + n;
	}
	return count;
}

unsigned cpu_msr_list(u32 *list, unsigned max)
{
	return list_rows(list, max, LISTED);
}

unsigned cpu_feature_msr_list(u32 *list, unsigned max)
{
	return list_rows(list, max, DESCRIBES);
}

int cpu_feature_msr(u32 index, u64 *value)
{
	switch (index) {
	case MSR_UCODE_REV: *value = cpuid_host_is_amd() ? UCODE_REV_AMD : UCODE_REV_INTEL; return 0;
	case MSR_PLATFORM_INFO: *value = PLATFORM_INFO_CPUID_FAULTING; return 0;
	case MSR_ARCH_CAPABILITIES: *value = ARCH_CAPABILITIES; return 0;
	case 0xc0011029: *value = DE_CFG_LFENCE_SERIALIZE; return 0;
	default: return -EINVAL;
	}
}

bool msr_cpuid_faulting(const struct cpu *cpu)
{
	return cpu->msr_values[SLOT_MISC_FEATURES] & MISC_FEATURES_CPUID_FAULTING;
}

int cpu_setup_mce(struct cpu *cpu, u64 cap)
{
	unsigned banks = cap & 0xff;

	if (!banks || banks > MCE_BANKS || (cap & ~(0xffull | MCE_CAP_SUPPORTED)))
		return -EINVAL;
	cpu->msr_values[SLOT_MCG_CAP] = cap;
	if (cap & MCG_CTL_P)
		cpu->msr_values[SLOT_MCG_CTL] = ALL;
	for (unsigned i = 0; i < banks; i++)
		cpu->msr_values[SLOT_MCE_BANK + 4 * i] = ALL;
	return 0;
}

void msr_reset(struct cpu *cpu)
{
	// Not DE_CFG: the guest, or the client, is to set its bit.
	static const u32 features[] = { MSR_UCODE_REV, MSR_PLATFORM_INFO, MSR_ARCH_CAPABILITIES };

	memset(cpu->msr_values, 0, sizeof(cpu->msr_values));
	for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++)
		cpu_feature_msr(features[i], home(cpu, find(features[i]), features[i]));
	cpu->msr_values[SLOT_MCG_CAP] = MCE_BANKS;
	for (unsigned i = 0; i < MCE_BANKS; i++)
		cpu->msr_values[SLOT_MCE_BANK + 4 * i] = ALL;
	cpu->star = cpu->lstar = cpu->cstar = cpu->sfmask = cpu->kernel_gs_base = 0;
	cpu->sysenter_cs = cpu->sysenter_esp = cpu->sysenter_eip = 0;
	cpu->pat = PAT_RESET;
	cpu->misc_enable = MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE;
	cpu->debugctl = 0;
}
