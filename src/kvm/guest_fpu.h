// SPDX-License-Identifier: MIT
// A vCPU's extended state: configurations, the image in memory, and where the state is just now.
#ifndef CETKVM_KVM_GUEST_FPU_H
#define CETKVM_KVM_GUEST_FPU_H

#include "kvm/kvm.h"
#include "xstate/fpstate.h"

// When a host without shadow stacks keeps IA32_U_CET for its guests, for machines' host from now on: see
// xstate/config.h. To be set before anything else is asked.
extern enum xstate_cet_u_rule option_cet_u_rule;
// What this host can keep for guests. The same for all.
const struct xstate_configs *guest_fpu_configs(void);
// User components that this process may give guests; and asking for one more: 0, or -EINVAL, -EOPNOTSUPP,
// -EBUSY as arch_prctl() says it (see xstate_permission_request()).
u64 guest_fpu_permitted(void);
int guest_fpu_request(unsigned bit);
// The guest's CPUID has these components: makes room for those that are dynamic. -EPERM, -ENOMEM.
int guest_fpu_enable(struct vcpu *vcpu, u64 components);
void guest_fpu_forget_configs(void); // the host is another: before there are guests
bool guest_fpu_create(struct vcpu *vcpu); // false: no memory
void guest_fpu_load(struct vcpu *vcpu);	  // the registers hold the state after this
void guest_fpu_put(struct vcpu *vcpu);	  // the image does
// Is the MSR a part of the state?
bool guest_fpu_holds_msr(u32 index);
// KVM_SET_XSAVE with a copy of the client's image: 0 or -EINVAL.
int guest_fpu_set_uabi(struct vcpu *vcpu, const void *image, size_t size);
// XCR0 bits that this host can offer any guest.
u64 xsave_supported(void);

#endif
