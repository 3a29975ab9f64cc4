// SPDX-License-Identifier: MIT
// A vCPU's state as a VMM moves it: read through the ioctls, and loaded through them.
#ifndef CETKVM_FLEET_STATE_H
#define CETKVM_FLEET_STATE_H

#include "fleet/fleet.h"
#include "vmm/backend.h"

#include <linux/kvm.h>

#define STATE_XSAVE_MAX 16384
#define STATE_MSRS_MAX  256

struct vcpu_state {
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint8_t xsave[STATE_XSAVE_MAX];
	struct kvm_xcrs xcrs;
	uint32_t msr_count;
	struct kvm_msr_entry msrs[STATE_MSRS_MAX];
	uint64_t ssp;
	bool has_ssp;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_debugregs debugregs;
};

struct vcpu_handle {
	const struct kvm_backend *kvm;
	int kvm_fd, vm_fd, fd;
	struct kvm_run *run;
};

// What this KVM has of the vCPU. 0, or -1 after one line has been written.
int state_read(const struct vcpu_handle *vcpu, struct vcpu_state *state);
// Loads one piece, but for PIECE_CPUID: 0 or the errno. *msr: the MSR that was refused.
int state_load(const struct vcpu_handle *vcpu, const struct vcpu_state *state, enum fleet_piece piece, uint32_t *msr);
// The components of the extended state that the image holds.
uint64_t state_image(const struct vcpu_state *state);

// Is the component the same in both?
bool state_same(const struct vcpu_state *a, const struct vcpu_state *b, enum fleet_component component);
// The component that an MSR belongs to.
enum fleet_component state_msr_component(uint32_t msr);

#endif
