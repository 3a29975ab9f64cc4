// SPDX-License-Identifier: MIT
// RDMSR and WRMSR of the guest before and after the processor sees them: the filter that user space
// may lay over them, and the exits with which user space takes over what was denied or failed.
// api.rst: KVM_X86_SET_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_MSR_PLATFORM_INFO.
//
// A filter never changes: a new one takes its place, and the old one goes when no vCPU can be
// looking at it (vm_synchronize()).
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct msr_filter {
	bool default_allow;
	unsigned count;
	struct {
		u32 base, nmsrs, flags;
		u8 *bitmap;
	} ranges[KVM_MSR_FILTER_MAX_RANGES];
};

void msr_filter_destroy(struct msr_filter *filter)
{
	if (!filter)
		return;
	for (unsigned i = 0; i < filter->count; i++)
		free(filter->ranges[i].bitmap);
	free(filter);
}

static int add_range(struct msr_filter *filter, const struct kvm_msr_filter_range *range)
{
	size_t size = (range->nmsrs + 63ull) / 64 * 8;
	u8 *bitmap;
	int result;

	if (!range->nmsrs)
		return 0;
	if (!range->flags || (range->flags & ~(u32)(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)) ||
	    size > KVM_MSR_FILTER_MAX_BITMAP_SIZE)
		return -EINVAL;
	bitmap = malloc(size);
	if (!bitmap)
		return -ENOMEM;
	result = copy_from_client(bitmap, range->bitmap, size);
	if (result) {
		free(bitmap);
		return result;
	}
	filter->ranges[filter->count].base = range->base;
	filter->ranges[filter->count].nmsrs = range->nmsrs;
	filter->ranges[filter->count].flags = range->flags;
	filter->ranges[filter->count++].bitmap = bitmap;
	return 0;
}

int msr_filter_set(struct vm *vm, const struct kvm_msr_filter *args)
{
	struct msr_filter *filter;
	bool deny = args->flags & KVM_MSR_FILTER_DEFAULT_DENY;
	int result = 0;

	if (args->flags & ~(u32)KVM_MSR_FILTER_DEFAULT_DENY)
		return -EINVAL;
	filter = calloc(1, sizeof(*filter));
	if (!filter)
		return -ENOMEM;
	filter->default_allow = !deny;
	for (unsigned i = 0; !result && i < KVM_MSR_FILTER_MAX_RANGES; i++)
		result = add_range(filter, &args->ranges[i]);
	// Deny without any range would lock the guest out of every MSR: not a filter but a mistake.
	if (!result && deny && !filter->count)
		result = -EINVAL;
	if (result) {
		msr_filter_destroy(filter);
		return result;
	}
	lock_take(&vm->slots_lock);
	filter = __atomic_exchange_n(&vm->msr_filter, filter, __ATOMIC_SEQ_CST);
	vm_synchronize(vm);
	lock_release(&vm->slots_lock);
	msr_filter_destroy(filter);
	return 0;
}

static bool allowed(const struct vm *vm, u32 index, bool write)
{
	const struct msr_filter *filter = __atomic_load_n(&vm->msr_filter, __ATOMIC_ACQUIRE);
	u32 type = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;

	// x2APIC accesses cannot be filtered.
	if (!filter || (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST))
		return true;
	for (unsigned i = 0; i < filter->count; i++) {
		u32 n = index - filter->ranges[i].base;

		if (n < filter->ranges[i].nmsrs && (filter->ranges[i].flags & type))
			return filter->ranges[i].bitmap[n / 8] >> n % 8 & 1;
	}
	return filter->default_allow;
}

// Lets user space answer if it asked to. Else the guest gets #GP.
static int leave(struct vcpu *vcpu, u32 index, u64 value, bool write, u32 reason)
{
	struct kvm_run *run = vcpu->run;

	if (!(vcpu->vm->msr_exits & reason))
		return -EINVAL;
	run->exit_reason = write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
	run->msr.error = 0;
	memset(run->msr.pad, 0, sizeof(run->msr.pad));
	run->msr.reason = reason;
	run->msr.index = index;
	run->msr.data = write ? value : 0;
	vcpu->msr.index = index;
	vcpu->msr.write = write;
	io_leave(vcpu, write ? COMPLETE_WRMSR : COMPLETE_RDMSR);
	return -EAGAIN;
}

int ops_guest_msr(void *opaque, u32 index, u64 *value, bool write)
{
	struct vcpu *vcpu = opaque;
	int result;

	if (vcpu->cpu->replay && vcpu->msr.valid && vcpu->msr.index == index && vcpu->msr.write == write) {
		vcpu->msr.valid = false;
		if (vcpu->msr.error)
			return -EINVAL;
		if (!write)
			*value = vcpu->msr.value;
		return 0;
	}
	if (!allowed(vcpu->vm, index, write))
		return leave(vcpu, index, *value, write, KVM_MSR_EXIT_REASON_FILTER);
	vcpu->msr_unknown = false;
	if (index == MSR_PLATFORM_INFO && !write && vcpu->vm->platform_info_denied)
		result = -EINVAL;
	else
		result = write ? cpu_wrmsr(vcpu->cpu, index, *value, BY_GUEST) :
				 cpu_rdmsr(vcpu->cpu, index, value, BY_GUEST);
	if (result != -EINVAL)
		return result;
	return leave(vcpu, index, *value, write,
		     vcpu->msr_unknown ? KVM_MSR_EXIT_REASON_UNKNOWN : KVM_MSR_EXIT_REASON_INVAL);
}
