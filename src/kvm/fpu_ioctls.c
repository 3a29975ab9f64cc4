// SPDX-License-Identifier: MIT
// Extended state for user space: KVM_{GET,SET}_FPU, XSAVE, XSAVE2, XCRS.
#include "cpu/fpu.h"
#include "cpu/system.h"
#include "kvm/kvm.h"
#include "xstate/xstate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void fpu_ioctl_get(struct vcpu *vcpu, struct kvm_fpu *fpu)
{
	struct cpu *cpu = vcpu->cpu;

	cpu_fpu_unload(cpu);
	memset(fpu, 0, sizeof(*fpu));
	memcpy(fpu->fpr, cpu->fpstate + FX_ST, sizeof(fpu->fpr));
	fpu->fcw = fpu_get16(cpu, FX_FCW);
	fpu->fsw = fpu_get16(cpu, FX_FSW);
	fpu->ftwx = cpu->fpstate[FX_FTW];
	fpu->last_opcode = fpu_get16(cpu, FX_FOP);
	memcpy(&fpu->last_ip, cpu->fpstate + FX_FIP, 8);
	memcpy(&fpu->last_dp, cpu->fpstate + FX_FDP, 8);
	memcpy(fpu->xmm, cpu->fpstate + FX_XMM, sizeof(fpu->xmm));
	fpu->mxcsr = fpu_get32(cpu, FX_MXCSR);
}

int fpu_ioctl_set(struct vcpu *vcpu, const struct kvm_fpu *fpu)
{
	struct cpu *cpu = vcpu->cpu;

	if (fpu->mxcsr & ~GUEST_MXCSR_MASK)
		return -EINVAL;
	cpu_fpu_unload(cpu);
	memcpy(cpu->fpstate + FX_ST, fpu->fpr, sizeof(fpu->fpr));
	fpu_set16(cpu, FX_FCW, fpu->fcw);
	fpu_set16(cpu, FX_FSW, fpu->fsw);
	fpu_set16(cpu, FX_FTW, fpu->ftwx);
	fpu_set16(cpu, FX_FOP, fpu->last_opcode & 0x7ff);
	memcpy(cpu->fpstate + FX_FIP, &fpu->last_ip, 8);
	memcpy(cpu->fpstate + FX_FDP, &fpu->last_dp, 8);
	memcpy(cpu->fpstate + FX_XMM, fpu->xmm, sizeof(fpu->xmm));
	fpu_set32(cpu, FX_MXCSR, fpu->mxcsr);
	fpu_dirty(cpu, XSTATE_MASK_FPSSE);
	return 0;
}

// All that this host can offer a guest, and so what an image may hold.
static u64 supported_xcr0(void)
{
	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	unsigned count = cpuid_supported(entries, CPU_MAX_CPUID);

	for (unsigned i = 0; i < count; i++)
		if (entries[i].function == 0xd && entries[i].index == 0)
			return (u64)entries[i].edx << 32 | entries[i].eax;
	return XSTATE_MASK_FPSSE;
}

static u64 image_mask(void)
{
	static u64 mask;

	if (!mask)
		mask = supported_xcr0() | XSTATE_MASK_FPSSE;
	return mask;
}

unsigned xsave_size(void)
{
	unsigned size = xstate_standard_size(image_mask());

	return size < sizeof(struct kvm_xsave) ? sizeof(struct kvm_xsave) : size;
}

int xsave_get(struct vcpu *vcpu, void *client, size_t size)
{
	void *image;
	int result = -EINVAL;

	if (size < xsave_size())
		return -EINVAL;
	size = xsave_size();
	image = calloc(1, size);
	if (!image)
		return -ENOMEM;
	cpu_fpu_unload(vcpu->cpu);
	if (fpu_get_image(vcpu->cpu, image, size,
			  (vcpu->cpu->xcr0_supported & image_mask()) | XSTATE_MASK_FPSSE))
		result = copy_to_client(client, image, size);
	free(image);
	return result;
}

int xsave_set(struct vcpu *vcpu, const void *client)
{
	size_t size = xsave_size();
	void *image = calloc(1, size);
	int result;

	if (!image)
		return -ENOMEM;
	result = copy_from_client(image, client, size);
	if (!result) {
		cpu_fpu_unload(vcpu->cpu);
		result = fpu_set_image(vcpu->cpu, image, size, image_mask());
	}
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
