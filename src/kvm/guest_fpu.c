// SPDX-License-Identifier: MIT
// A vCPU's extended state between its registers and its image in memory (struct fpstate), which is what
// user space gets and sets.
//
// The registers are the processor's and hold the state from KVM_RUN on (in_use); the image holds it
// when an ioctl has asked for it, and then the registers are stale. Whoever needs the registers of
// a component (KVM_RUN, MSRs that XSAVE manages) loads; whoever needs the image puts.
#include "cetkvm/cetkvm.h"
#include "cpu/features.h"
#include "cpu/fpu.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>

enum xstate_cet_u_rule option_cet_u_rule = CET_U_WITH_SHSTK;

struct offered {
	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	unsigned count;
};

static const struct cpu_cpuid_entry *offered_leaf(const struct offered *o, u32 function, u32 index)
{
	for (unsigned i = 0; i < o->count; i++)
		if (o->entries[i].function == function && o->entries[i].index == index)
			return &o->entries[i];
	return NULL;
}

static bool offered_bit(const struct xstate_cpuid_bit *bit, const void *opaque)
{
	const struct cpu_cpuid_entry *leaf = offered_leaf(opaque, bit->leaf, bit->subleaf);
	const u32 *regs = leaf ? &leaf->eax : NULL;

	return leaf && (regs[bit->reg] >> bit->bit & 1);
}

static struct xstate_configs compute_configs(void)
{
	struct offered o;
	struct xstate_configs configs;
	struct xstate_processor processor = { .has = offered_bit, .opaque = &o };
	const struct cpu_cpuid_entry *main, *extended;

	o.count = cpuid_supported_with(o.entries, CPU_MAX_CPUID, XSTATE_MASK_USER_DYNAMIC);
	main = offered_leaf(&o, 0xd, 0);
	extended = offered_leaf(&o, 0xd, 1);
	processor.xsave = main;
	processor.xsaves = extended && (extended->eax >> 3 & 1);
	if (main)
		processor.xcr0 = (u64)main->edx << 32 | main->eax;
	if (extended)
		processor.xss = (u64)extended->edx << 32 | extended->ecx;
	xstate_configure(&configs, &processor, option_cet_u_rule);
	return configs;
}

static struct {
	struct lock lock;
	bool known;
	struct xstate_configs configs;
	struct xstate_permission permission; // of this process, under the lock
} host;

const struct xstate_configs *guest_fpu_configs(void)
{
	if (!__atomic_load_n(&host.known, __ATOMIC_ACQUIRE)) {
		lock_take(&host.lock);
		if (!host.known) {
			host.configs = compute_configs();
			xstate_permission_init(&host.permission, &host.configs, true);
		}
		__atomic_store_n(&host.known, true, __ATOMIC_RELEASE);
		lock_release(&host.lock);
	}
	return &host.configs;
}

u64 guest_fpu_permitted(void)
{
	const struct xstate_configs *configs = guest_fpu_configs();
	u64 features;

	lock_take(&host.lock);
	features = xstate_permission_visible(&host.permission, configs);
	lock_release(&host.lock);
	return features;
}

int guest_fpu_request(unsigned bit)
{
	const struct xstate_configs *configs = guest_fpu_configs();
	int result;

	lock_take(&host.lock);
	result = xstate_permission_request(&host.permission, configs, bit);
	lock_release(&host.lock);
	return result;
}

void guest_fpu_forget_configs(void)
{
	__atomic_store_n(&host.known, false, __ATOMIC_RELEASE);
}

bool guest_fpu_create(struct vcpu *vcpu)
{
	const struct xstate_configs *configs = guest_fpu_configs();

	lock_take(&host.lock);
	vcpu->fpu = fpstate_alloc_guest(configs, &host.permission);
	lock_release(&host.lock);
	return vcpu->fpu;
}

int guest_fpu_enable(struct vcpu *vcpu, u64 components)
{
	const struct xstate_configs *configs = guest_fpu_configs();
	int result;

	guest_fpu_put(vcpu);
	lock_take(&host.lock);
	result = fpstate_enable_dynamic(vcpu->fpu, &host.permission, configs, components & XSTATE_MASK_USER_DYNAMIC);
	lock_release(&host.lock);
	return result;
}

void guest_fpu_load(struct vcpu *vcpu)
{
	if (vcpu->fpu->in_use)
		return;
	fpstate_set_xfd(vcpu->fpu, vcpu->cpu->xfd);
	cpu_fpstate_load(vcpu->cpu, vcpu->fpu);
	vcpu->fpu->in_use = true;
}

void guest_fpu_put(struct vcpu *vcpu)
{
	if (vcpu->fpu->in_use)
		vcpu->fpu->in_use = !cpu_fpstate_save(vcpu->cpu, vcpu->fpu);
	// What the guest's IA32_XFD disables is lost from an image in memory.
	fpstate_set_xfd(vcpu->fpu, vcpu->cpu->xfd);
}

bool guest_fpu_holds_msr(u32 index)
{
	return index == MSR_U_CET || (index >= MSR_PL0_SSP && index <= MSR_PL3_SSP);
}

int guest_fpu_set_uabi(struct vcpu *vcpu, const void *image, size_t size)
{
	u32 pkru = vcpu->cpu->pkru;
	int result;

	guest_fpu_put(vcpu);
	result = fpstate_copy_from_uabi(vcpu->fpu, image, size, xsave_supported(), &pkru);
	if (!result && pkru != vcpu->cpu->pkru)
		cpu_set_pkru(vcpu->cpu, pkru);
	return result;
}

__attribute__((visibility("default"))) long cetkvm_arch_prctl(int operation, unsigned long argument)
{
	u64 permitted;
	long result = -ENOSYS;

	switch (operation) {
	case ARCH_GET_XCOMP_GUEST_PERM:
		permitted = guest_fpu_permitted();
		result = copy_to_client((void *)argument, &permitted, sizeof(permitted));
		break;
	case ARCH_REQ_XCOMP_GUEST_PERM:
		result = argument > 0xffffffffu ? -EINVAL : guest_fpu_request((unsigned)argument);
		break;
	}
	if (!result)
		return 0;
	errno = (int)-result;
	return -1;
}
