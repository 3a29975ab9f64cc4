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

// 0, -EINVAL (#GP), or -EAGAIN (cpu_ops wants an exit to user space).
int cpu_rdmsr(struct cpu *cpu, u32 index, u64 *value, enum who who);
int cpu_wrmsr(struct cpu *cpu, u32 index, u64 value, enum who who);
// MSRs that KVM_GET_MSR_INDEX_LIST names, of those the processor keeps. Returns the count.
unsigned cpu_msr_list(u32 *list, unsigned max);

// What this host and this code can offer (KVM_GET_SUPPORTED_CPUID). Returns the number of entries.
unsigned cpuid_supported(struct cpu_cpuid_entry *entries, unsigned max);
// Takes a guest's CPUID (KVM_SET_CPUID2): 0, or -EINVAL/-E2BIG. Recomputes features, masks.
int cpuid_set(struct cpu *cpu, const struct cpu_cpuid_entry *entries, unsigned count);
// Refreshes bits that follow the state (OSXSAVE, OSPKE, leaf 0xD sizes, APIC). Called by setters.
void cpuid_refresh(struct cpu *cpu);
// The guest executes CPUID: Intel/AMD out-of-range rules.
void cpuid_query(struct cpu *cpu, u32 function, u32 index, u32 out[4]);
// NULL when this host can run the processor; else one line which says what is missing.
const char *cpu_host_problem(void);

#endif
