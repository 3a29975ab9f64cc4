// SPDX-License-Identifier: MIT
// A vCPU's extended state between its registers and its image in memory (struct fpstate), which is what
// user space gets and sets.
//
// The registers are the processor's and hold the state from KVM_RUN on (in_use); the image holds it
// when an ioctl has asked for it, and then the registers are stale. Whoever needs the registers of
// a component (KVM_RUN, MSRs that XSAVE manages) loads; whoever needs the image puts.
#include "cpu/features.h"
#include "cpu/fpu.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

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

	o.count = cpuid_supported(o.entries, CPU_MAX_CPUID);
	main = offered_leaf(&o, 0xd, 0);
	extended = offered_leaf(&o, 0xd, 1);
	processor.xsave = main;
	processor.xsaves = extended && (extended->eax >> 3 & 1);
	if (main)
		processor.xcr0 = (u64)main->edx << 32 | main->eax;
	if (extended)
		processor.xss = (u64)extended->edx << 32 | extended->ecx;
	xstate_configure(&configs, &processor, CET_U_WITH_SHSTK);
	return configs;
}

static struct {
	struct lock lock;
	bool known;
	struct xstate_configs configs;
} host;

const struct xstate_configs *guest_fpu_configs(void)
{
	if (!__atomic_load_n(&host.known, __ATOMIC_ACQUIRE)) {
		lock_take(&host.lock);
		host.configs = compute_configs();
		__atomic_store_n(&host.known, true, __ATOMIC_RELEASE);
		lock_release(&host.lock);
	}
	return &host.configs;
}

bool guest_fpu_create(struct vcpu *vcpu)
{
	struct xstate_permission permission;

	xstate_permission_init(&permission, guest_fpu_configs(), true);
	vcpu->fpu = fpstate_alloc_guest(guest_fpu_configs(), &permission);
	return vcpu->fpu;
}

void guest_fpu_load(struct vcpu *vcpu)
{
	if (vcpu->fpu->in_use)
		return;
	cpu_fpstate_load(vcpu->cpu, vcpu->fpu);
	vcpu->fpu->in_use = true;
}

void guest_fpu_put(struct vcpu *vcpu)
{
	if (!vcpu->fpu->in_use)
		return;
	vcpu->fpu->in_use = !cpu_fpstate_save(vcpu->cpu, vcpu->fpu);
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
