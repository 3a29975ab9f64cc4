// SPDX-License-Identifier: MIT
// KVM_IRQFD: an eventfd whose signal is an interrupt. Not there yet: KVM_CAP_IRQFD is 0.
#include "kvm/kvm.h"

#include <errno.h>

int irqfd_set(struct vm *vm, const struct kvm_irqfd *args)
{
	return -ENOTTY;
}

void irqfd_acked(struct vm *vm, unsigned chip, unsigned pin)
{
}

void irqfd_destroy(struct vm *vm)
{
}
