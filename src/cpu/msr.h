// SPDX-License-Identifier: MIT
// Model-specific registers: numbers, and what msr.c shares with the rest of the processor.
#ifndef CETKVM_CPU_MSR_H
#define CETKVM_CPU_MSR_H

#include "cpu/cpu.h"

enum msr {
	MSR_TSC = 0x10,
	MSR_PLATFORM_ID = 0x17,
	MSR_APIC_BASE = 0x1b,
	MSR_SMI_COUNT = 0x34,
	MSR_FEATURE_CONTROL = 0x3a,
	MSR_TSC_ADJUST = 0x3b,
	MSR_SPEC_CTRL = 0x48,
	MSR_PRED_CMD = 0x49,
	MSR_UCODE_WRITE = 0x79,
	MSR_UCODE_REV = 0x8b,
	MSR_SMBASE = 0x9e,
	MSR_PLATFORM_INFO = 0xce,
	MSR_MTRR_CAP = 0xfe,
	MSR_ARCH_CAPABILITIES = 0x10a,
	MSR_FLUSH_CMD = 0x10b,
	MSR_MISC_FEATURES_ENABLES = 0x140,
	MSR_SYSENTER_CS = 0x174,
	MSR_SYSENTER_ESP = 0x175,
	MSR_SYSENTER_EIP = 0x176,
	MSR_MCG_CAP = 0x179,
	MSR_MCG_STATUS = 0x17a,
	MSR_MCG_CTL = 0x17b,
	MSR_MISC_ENABLE = 0x1a0,
	MSR_XFD = 0x1c4,
	MSR_XFD_ERR = 0x1c5,
	MSR_DEBUGCTL = 0x1d9,
	MSR_POWER_CTL = 0x1fc,
	MSR_LAST_BRANCH_FROM = 0x1db,
	MSR_LAST_BRANCH_TO = 0x1dc,
	MSR_LAST_INT_FROM = 0x1dd,
	MSR_LAST_INT_TO = 0x1de,
	MSR_MTRR_PHYSBASE0 = 0x200,
	MSR_MTRR_FIX_64K = 0x250,
	MSR_PAT = 0x277,
	MSR_MTRR_DEF_TYPE = 0x2ff,
	MSR_MC0_CTL = 0x400,
	MSR_U_CET = 0x6a0,
	MSR_S_CET = 0x6a2,
	MSR_PL0_SSP = 0x6a4,
	MSR_PL3_SSP = 0x6a7,
	MSR_INT_SSP_TAB = 0x6a8,
	MSR_TSC_DEADLINE = 0x6e0,
	MSR_X2APIC_FIRST = 0x800,
	MSR_X2APIC_LAST = 0x8ff,
	MSR_XSS = 0xda0,
	// The shadow-stack pointer for KVM_{GET,SET}_ONE_REG: no MSR, and none of the guest's.
	MSR_KVM_INTERNAL_GUEST_SSP = 0x4b564dff,
	MSR_EFER = 0xc0000080,
	MSR_STAR,
	MSR_LSTAR,
	MSR_CSTAR,
	MSR_SFMASK,
	MSR_FS_BASE = 0xc0000100,
	MSR_GS_BASE,
	MSR_KERNEL_GS_BASE,
	MSR_TSC_AUX,
};

#define DEBUGCTL_LBR (1u << 0) // stored, but nothing is recorded
#define DEBUGCTL_BTF (1u << 1)

enum { MCE_BANKS = 32, MTRR_VARIABLE = 8 };

#define MCE_CAP_SUPPORTED (1ull << 8 | 1ull << 24) // MCG_CTL_P, MCG_SER_P
#define PAT_RESET 0x0007040600070406ull
// Performance monitoring is there in no form: PEBS and branch trace storage are unavailable.
#define MISC_ENABLE_PERFMON (1u << 7)
#define MISC_ENABLE_BTS_UNAVAILABLE (1u << 11)
#define MISC_ENABLE_PEBS_UNAVAILABLE (1u << 12)
#define MISC_ENABLE_MWAIT (1u << 18)

// CPUID above ring 0 raises #GP (MISC_FEATURES_ENABLES).
bool msr_cpuid_faulting(const struct cpu *cpu);
// Values after RESET.
void msr_reset(struct cpu *cpu);
// Is `value` one that U_CET and S_CET may hold (WRMSR, XRSTORS)? For the guest's own writes.
bool msr_cet_valid(const struct cpu *cpu, u64 value, enum who who);
// The same for IA32_PLx_SSP.
bool msr_ssp_valid(const struct cpu *cpu, u64 value, enum who who);

#endif
