// SPDX-License-Identifier: MIT
// What KVM_GET_XSAVE shows of a guest's state and KVM_SET_XSAVE takes, in three generations of KVM.
//
//   over-saving  before "x86/kvm/fpu: Limit guest user_xfeatures to supported bits of XCR0" (Linux
//                5.17): GET shows every component of the host that is in use, whether the guest has
//                it or not; SET takes all that the host has.
//   strict       with it: the vCPU's own set of components is narrowed to the guest's when its CPUID
//                is set, so that SET refuses what the guest has not: an image of the first
//                generation is EINVAL, and a VMM that does not look goes on with what was there.
//   constrained  since "KVM: x86: Constrain guest-supported xfeatures only at KVM_GET_XSAVE{2}" (6.6):
//                GET shows what the guest has, SET takes what the host has. The default.
//
// SET loads data, it never enables a feature; nothing drops a component silently.
#include "kvm/generation.h"
#include "kvm/guest_fpu.h"

#include <string.h>

enum generation option_generation = GENERATION_CONSTRAINED;

static const char *const names[] = {
	[GENERATION_OVER_SAVING] = "over-saving",
	[GENERATION_STRICT] = "strict",
	[GENERATION_CONSTRAINED] = "constrained",
};

bool generation_by_name(const char *name, enum generation *generation)
{
	for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (!strcmp(name, names[i])) {
			*generation = i;
			return true;
		}
	}
	return false;
}

// x87 and SSE are always there, XSAVE or not.
static u64 guest_components(const struct vcpu *vcpu)
{
	return vcpu->cpu->xcr0_supported | XSTATE_MASK_FPSSE;
}

void generation_after_cpuid(struct vcpu *vcpu)
{
	if (vcpu->vm->generation == GENERATION_STRICT)
		vcpu->fpu->user_xfeatures = guest_components(vcpu);
}

u64 generation_get_mask(const struct vcpu *vcpu)
{
	return vcpu->vm->generation == GENERATION_CONSTRAINED ? guest_components(vcpu) : ~0ull;
}
