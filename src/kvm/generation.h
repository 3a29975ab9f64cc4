// SPDX-License-Identifier: MIT
// Three generations of the contract of KVM_GET_XSAVE and KVM_SET_XSAVE: see generation.c.
#ifndef CETKVM_KVM_GENERATION_H
#define CETKVM_KVM_GENERATION_H

#include "kvm/kvm.h"

extern enum generation option_generation; // of machines created from now on

// By name: "over-saving", "strict" or "constrained". false: none of them.
bool generation_by_name(const char *name, enum generation *generation);
// KVM_SET_CPUID2 has told what the guest may have.
void generation_after_cpuid(struct vcpu *vcpu);
// Components that KVM_GET_XSAVE may show.
u64 generation_get_mask(const struct vcpu *vcpu);

#endif
