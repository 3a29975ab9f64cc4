// SPDX-License-Identifier: MIT
// Extended state for user space: KVM_{GET,SET}_FPU, XSAVE, XSAVE2, XCRS.
#include "cpu/fpu.h"
#include "cpu/system.h"
#include "kvm/generation.h"
#include "kvm/guest_fpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// All that this host can offer a guest, and so what an image may hold.
u64 xsave_supported(void)
{
	return guest_fpu_configs()->user.max_features;
}

unsigned xsave_size(const struct vm *vm)
{
	unsigned size = xstate_standard_size(guest_fpu_permitted());

	return size < XSTATE_UABI_MIN_SIZE ? XSTATE_UABI_MIN_SIZE : size;
}

int fpu_ioctl_get(struct vcpu *vcpu, struct kvm_fpu *fpu)
{
	u8 image[XSTATE_UABI_MIN_SIZE] __attribute__((aligned(64)));
	u16 fields[4]; // FCW, FSW, abridged tags, FOP

	guest_fpu_put(vcpu);
	if (!fpstate_copy_to_uabi(vcpu->fpu, image, sizeof(image), XSTATE_MASK_FPSSE, 0))
		return -EINVAL;
	memset(fpu, 0, sizeof(*fpu));
	memcpy(fpu->fpr, image + FX_ST, sizeof(fpu->fpr));
	memcpy(fields, image, sizeof(fields));
	fpu->fcw = fields[0];
	fpu->fsw = fields[1];
	fpu->ftwx = (u8)fields[2];
	fpu->last_opcode = fields[3];
	memcpy(&fpu->last_ip, image + FX_FIP, 8);
	memcpy(&fpu->last_dp, image + FX_FDP, 8);
	memcpy(fpu->xmm, image + FX_XMM, sizeof(fpu->xmm));
	memcpy(&fpu->mxcsr, image + FX_MXCSR, sizeof(fpu->mxcsr));
	return 0;
}

int fpu_ioctl_set(struct vcpu *vcpu, const struct kvm_fpu *fpu)
{
	u16 fields[4] = { fpu->fcw, fpu->fsw, fpu->ftwx, fpu->last_opcode & 0x7ff };
	u8 *image = vcpu->fpu->image;

	if (fpu->mxcsr & ~GUEST_MXCSR_MASK)
		return -EINVAL;
	guest_fpu_put(vcpu);
	memcpy(image, fields, sizeof(fields));
	memcpy(image + FX_ST, fpu->fpr, sizeof(fpu->fpr));
	memcpy(image + FX_FIP, &fpu->last_ip, 8);
	memcpy(image + FX_FDP, &fpu->last_dp, 8);
	memcpy(image + FX_XMM, fpu->xmm, sizeof(fpu->xmm));
	memcpy(image + FX_MXCSR, &fpu->mxcsr, sizeof(fpu->mxcsr));
	fpstate_set_xstate_bv(vcpu->fpu, fpstate_xstate_bv(vcpu->fpu) | XSTATE_MASK_FPSSE);
	return 0;
}

int xsave_get(struct vcpu *vcpu, void *client, bool any_size)
{
	size_t size = vcpu->fpu->uabi_size;
	void *image;
	int result = -EINVAL;

	if (!any_size && size > sizeof(struct kvm_xsave))
		return -EINVAL;
	image = calloc(1, size);
	if (!image)
		return -ENOMEM;
	guest_fpu_put(vcpu);
	if (fpstate_copy_to_uabi(vcpu->fpu, image, size, generation_get_mask(vcpu), vcpu->cpu->pkru))
		result = copy_to_client(client, image, size);
	free(image);
	return result;
}

int xsave_set(struct vcpu *vcpu, const void *client)
{
	size_t size = vcpu->fpu->uabi_size;
	void *image = calloc(1, size);
	int result;

	if (!image)
		return -ENOMEM;
	result = copy_from_client(image, client, size);
	if (!result)
		result = guest_fpu_set_uabi(vcpu, image, size);
	free(image);
	return result;
}

void xcrs_get(struct vcpu *vcpu, struct kvm_xcrs *xcrs)
{
	memset(xcrs, 0, sizeof(*xcrs));
	xcrs->nr_xcrs = 1;
	xcrs->xcrs[0].value = vcpu->cpu->xcr0;
}

int xcrs_set(struct vcpu *vcpu, const struct kvm_xcrs *xcrs)
{
	if (xcrs->nr_xcrs > KVM_MAX_XCRS || xcrs->flags)
		return -EINVAL;
	for (unsigned i = 0; i < xcrs->nr_xcrs; i++)
		if (xcrs->xcrs[i].xcr == 0)
			return cpu_set_xcr0(vcpu->cpu, xcrs->xcrs[i].value, BY_HOST) ? -EINVAL : 0;
	return 0;
}
