// SPDX-License-Identifier: MIT
// CPUID of the guest: what KVM supports, cut to a model, with this board's topology.
#ifndef CETKVM_VMM_CPUID_H
#define CETKVM_VMM_CPUID_H

#include "vmm/cpu_features.h"

#include <linux/kvm.h>

struct kvm_backend;

#define CPUID_ENTRIES_MAX 128

#define COMPONENT_TILEDATA 18 // of extended state: AMX

// What KVM supports. The caller frees it. NULL after one line has been written.
struct kvm_cpuid2 *cpuid_supported(const struct kvm_backend *kvm, int kvm_fd);

// What KVM can do besides, at a price, for those who ask for it; possibly nothing. The caller frees it.
struct kvm_cpuid2 *cpuid_emulated(const struct kvm_backend *kvm, int kvm_fd);

// Cuts the supported leaves to the choice, in place. any_vendor: the model may name another vendor
// than the host's. Writes one line and returns -1 if a demanded feature is neither supported nor
// emulated.
int cpuid_apply_choice(struct kvm_cpuid2 *cpuid, const struct kvm_cpuid2 *emulated, const struct cpu_choice *choice,
		       bool any_vendor);

// Sets what depends on the number of vCPUs and on which one asks. APIC id = index.
void cpuid_set_topology(struct kvm_cpuid2 *cpuid, unsigned index, unsigned count);

// The list as the options "supported-cpuid" and "host-cpuid" take it. The caller frees it; NULL: no memory.
char *cpuid_to_text(const struct kvm_cpuid2 *cpuid);

bool cpuid_has_feature(const struct kvm_cpuid2 *cpuid, const struct cpu_feature *feature);

#endif
