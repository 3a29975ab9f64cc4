// SPDX-License-Identifier: MIT
// One virtual processor: its KVM file descriptor, its thread, and what its exits ask for.
#ifndef CETKVM_VMM_VCPU_H
#define CETKVM_VMM_VCPU_H

#include <stdbool.h>

struct machine;
struct vcpu;

// Writes one line and returns -1 on failure.
int vcpu_create(struct machine *machine, unsigned index);
int vcpu_start(struct vcpu *vcpu);
// Gets the thread out of KVM_RUN and waits for it. The machine must have been stopped. False if the
// thread does not come: nothing that it uses may be freed then.
bool vcpu_join(struct vcpu *vcpu);
void vcpu_destroy(struct vcpu *vcpu);

// In crash.c: all registers, on standard error.
void vcpu_report_registers(struct vcpu *vcpu);

#endif
