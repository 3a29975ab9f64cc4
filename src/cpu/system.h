// SPDX-License-Identifier: MIT
// System state with rules: control registers, MSRs, CPUID, extended state control.
#ifndef CETKVM_CPU_SYSTEM_H
#define CETKVM_CPU_SYSTEM_H

#include "cpu/insn.h"

// 0, or -EINVAL where the guest gets #GP(0) (the host its errno). They do the side effects:
// TLB flushes, EFER.LMA, PDPTEs, cpu_mode_changed(), CPUID refresh.
int cpu_set_cr0(struct cpu *cpu, u64 value, enum who who);
int cpu_set_cr3(struct cpu *cpu, u64 value, enum who who);
int cpu_set_cr4(struct cpu *cpu, u64 value, enum who who);
int cpu_set_efer(struct cpu *cpu, u64 value, enum who who);
int cpu_set_xcr0(struct cpu *cpu, u64 value, enum who who);
// BY_HOST the registers are set as a group (KVM_SET_SREGS): each setter checks reserved bits only,
// EFER comes with LMA, and this says whether what would result goes together.
bool cpu_sregs_valid(const struct cpu *cpu, u64 cr0, u64 cr3, u64 cr4, u64 efer, bool cs_l);
// PAE paging: loads cpu->pdptr from CR3. -EINVAL: reserved bits, nothing changed.
bool cpu_pae_paging(const struct cpu *cpu);
int cpu_load_pdptrs(struct cpu *cpu);
// The guest's time-stamp counter as RDTSC reads it.
static inline u64 cpu_tsc(struct cpu *cpu)
{
	return cpu->ops->tsc(cpu->opaque);
}

// 0, -EINVAL (#GP), or -EAGAIN (cpu_ops wants an exit to user space).
int cpu_rdmsr(struct cpu *cpu, u32 index, u64 *value, enum who who);
int cpu_wrmsr(struct cpu *cpu, u32 index, u64 value, enum who who);
// MSRs that KVM_GET_MSR_INDEX_LIST names, of those the processor keeps. Returns the count.
unsigned cpu_msr_list(u32 *list, unsigned max);
// KVM_GET_MSR_FEATURE_INDEX_LIST and the system's KVM_GET_MSRS: what a new vCPU has. 0 or -EINVAL.
unsigned cpu_feature_msr_list(u32 *list, unsigned max);
int cpu_feature_msr(u32 index, u64 *value);
// KVM_X86_SETUP_MCE: IA32_MCG_CAP. 0 or -EINVAL.
int cpu_setup_mce(struct cpu *cpu, u64 cap);

// What this host and this code can offer (KVM_GET_SUPPORTED_CPUID). Returns the number of entries.
unsigned cpuid_supported(struct cpu_cpuid_entry *entries, unsigned max);
// The same with the components of `dynamic` (XCR0 bits) that a process has to have permission for, and
// the features that need them.
unsigned cpuid_supported_with(struct cpu_cpuid_entry *entries, unsigned max, u64 dynamic);
// KVM_GET_EMULATED_CPUID: features that guests may have, but are better off without.
unsigned cpuid_emulated(struct cpu_cpuid_entry *entries, unsigned max);
// From now on the host is one that has no more than these entries say. Before there are guests.
void cpuid_limit_host(const struct cpu_cpuid_entry *entries, unsigned count);
// May a guest on this host have the feature (an enum cpu_feature)?
bool cpuid_offers(unsigned feature);
// Supervisor components that a guest on this host may enable in IA32_XSS.
u64 cpuid_offered_xss(void);
bool cpuid_host_is_amd(void); // or Hygon
// Takes a guest's CPUID (KVM_SET_CPUID2): 0, or -EINVAL/-E2BIG. Recomputes features, masks.
int cpuid_set(struct cpu *cpu, const struct cpu_cpuid_entry *entries, unsigned count);
// Before it is given a CPUID, a processor has all this host and code can do: but no more than this.
void cpuid_limit(struct cpu *cpu, const struct cpu_cpuid_entry *entries, unsigned count);
// Refreshes bits that follow the state (OSXSAVE, OSPKE, leaf 0xD sizes, APIC). Called by setters.
void cpuid_refresh(struct cpu *cpu);
// The guest executes CPUID: Intel/AMD out-of-range rules.
void cpuid_query(struct cpu *cpu, u32 function, u32 index, u32 out[4]);
// NULL when this host can run the processor; else one line which says what is missing.
const char *cpu_host_problem(void);

// An SMI is taken, at an instruction boundary outside SMM (smm.c). Leaves cpu_run() with
// CPU_EXIT_SHUTDOWN when there is no memory for the save area.
void smm_enter(struct cpu *cpu);

#endif
