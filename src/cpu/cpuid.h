// SPDX-License-Identifier: MIT
// CPUID entries of a guest, for the parts of the processor that need more than guest_has().
#ifndef CETKVM_CPU_CPUID_H
#define CETKVM_CPU_CPUID_H

#include "cpu/cpu.h"

#define CPUID_INDEX_SIGNIFICANT 1u // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
enum { CPUID_PHYS_BITS = 46 };	   // offered; guests may have 32 to 52

struct cpu_cpuid_entry *cpuid_find(struct cpu *cpu, u32 function, u32 index);

#endif
