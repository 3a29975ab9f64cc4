// SPDX-License-Identifier: MIT
// MSRs that are not the processor's own: APIC, TSC deadline, KVM's paravirtual ones.
// msr.rst: "KVM-specific MSRs".
#include "cpu/features.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/kvm.h"

#include <errno.h>

u64 lapic_base_get(const struct vcpu *vcpu)
{
	return vcpu->lapic ? vcpu->lapic->base : vcpu->apic_base;
}

int lapic_base_set(struct vcpu *vcpu, u64 value, bool host)
{
	if (vcpu->lapic) {
		if (!lapic_set_base(vcpu->lapic, value, host))
			return -EINVAL;
	} else {
		u64 reserved = ~((1ull << vcpu->cpu->phys_bits) - 1);

		if (!vcpu->cpu->cpuid_count || !guest_has(vcpu->cpu, FEATURE_X2APIC))
			reserved |= APIC_BASE_X2APIC;
		if (!apic_base_valid(vcpu->apic_base, value, reserved, host))
			return -EINVAL;
		vcpu->apic_base = value;
	}
	cpuid_refresh(vcpu->cpu);
	return 0;
}

// KVM's own MSRs, by the bit of CPUID 0x40000001.EAX that announces them to the guest.
static const struct pv_msr {
	u32 index, feature;
} pv_msrs[] = {
	{ MSR_KVM_WALL_CLOCK_OLD, PV_CLOCKSOURCE },
	{ MSR_KVM_SYSTEM_TIME_OLD, PV_CLOCKSOURCE },
	{ MSR_KVM_WALL_CLOCK, PV_CLOCKSOURCE2 },
	{ MSR_KVM_SYSTEM_TIME, PV_CLOCKSOURCE2 },
	{ MSR_KVM_ASYNC_PF, PV_ASYNC_PF },
	{ MSR_KVM_ASYNC_PF_INTERRUPT, PV_ASYNC_PF_INT },
	{ MSR_KVM_ASYNC_PF_ACKNOWLEDGE, PV_ASYNC_PF_INT },
	{ MSR_KVM_STEAL, PV_STEAL_TIME },
	{ MSR_KVM_EOI, PV_EOI },
	{ MSR_KVM_POLL, PV_POLL_CONTROL },
};

static bool pv_msr_exists(const struct vcpu *vcpu, u32 index, enum who who)
{
	for (unsigned i = 0; i < sizeof(pv_msrs) / sizeof(*pv_msrs); i++)
		if (pv_msrs[i].index == index)
			return who == BY_HOST || !vcpu->enforce_pv_features ||
			       (vcpu->pv_features & pv_msrs[i].feature);
	return false;
}

static u64 *pv_msr_home(struct vcpu *vcpu, u32 index)
{
	switch (index) {
	case MSR_KVM_WALL_CLOCK_OLD:
	case MSR_KVM_WALL_CLOCK:
		return &vcpu->wall_clock_msr;
	case MSR_KVM_SYSTEM_TIME_OLD:
	case MSR_KVM_SYSTEM_TIME:
		return &vcpu->system_time_msr;
	case MSR_KVM_ASYNC_PF:
	case MSR_KVM_ASYNC_PF_ACKNOWLEDGE:
		return &vcpu->async_pf_msr; // 0
	case MSR_KVM_ASYNC_PF_INTERRUPT:
		return &vcpu->async_pf_int_msr;
	case MSR_KVM_STEAL:
		return &vcpu->steal_time_msr;
	case MSR_KVM_EOI:
		return &vcpu->pv_eoi_msr;
	}
	return &vcpu->poll_control;
}

static bool pv_msr_write(struct vcpu *vcpu, u32 index, u64 value, enum who who)
{
	switch (index) {
	case MSR_KVM_WALL_CLOCK_OLD:
	case MSR_KVM_WALL_CLOCK:
		vcpu->wall_clock_msr = value;
		// The host restores the number; the page has been written when the guest asked.
		if (who == BY_GUEST)
			clock_write_wall(vcpu, value);
		return true;
	case MSR_KVM_SYSTEM_TIME_OLD:
	case MSR_KVM_SYSTEM_TIME:
		vcpu->system_time_msr = value;
		clock_request_update(vcpu);
		if (who == BY_GUEST)
			clock_update(vcpu);
		return true;
	case MSR_KVM_POLL:
		if (value & ~1ull)
			return false;
		vcpu->poll_control = value;
		return true;
	case MSR_KVM_EOI:
		// Not offered: only off is a legal value.
		if (value)
			return false;
		return true;
	case MSR_KVM_STEAL:
		if (value & 0x3e)
			return false;
		vcpu->steal_time_msr = value;
		steal_time_request(vcpu);
		return true;
	case MSR_KVM_ASYNC_PF:
	case MSR_KVM_ASYNC_PF_INTERRUPT:
	case MSR_KVM_ASYNC_PF_ACKNOWLEDGE:
		// Not offered either; what is restored must be off.
		return !value;
	}
	return false;
}

// Nobody knows it: user space may want to hear of that (msr_filter.c).
static enum cpu_ops_result unknown(struct vcpu *vcpu)
{
	vcpu->msr_unknown = true;
	return CPU_OPS_GP;
}

enum cpu_ops_result ops_rdmsr(void *opaque, u32 index, u64 *value, enum who who)
{
	struct vcpu *vcpu = opaque;

	switch (index) {
	case MSR_APIC_BASE:
		*value = lapic_base_get(vcpu);
		return CPU_OPS_DONE;
	case MSR_TSC:
		*value = clock_guest_tsc(vcpu);
		return CPU_OPS_DONE;
	case MSR_TSC_DEADLINE:
		*value = vcpu->lapic ? lapic_tsc_deadline(vcpu->lapic) : 0;
		return CPU_OPS_DONE;
	}
	if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return vcpu->lapic && lapic_msr_read(vcpu->lapic, index, value) ? CPU_OPS_DONE : CPU_OPS_GP;
	if (pv_msr_exists(vcpu, index, who)) {
		*value = *pv_msr_home(vcpu, index);
		return CPU_OPS_DONE;
	}
	return unknown(vcpu);
}

enum cpu_ops_result ops_wrmsr(void *opaque, u32 index, u64 value, enum who who)
{
	struct vcpu *vcpu = opaque;

	switch (index) {
	case MSR_APIC_BASE:
		return lapic_base_set(vcpu, value, who == BY_HOST) ? CPU_OPS_GP : CPU_OPS_DONE;
	case MSR_TSC:
		clock_set_tsc(vcpu, value, who);
		return CPU_OPS_DONE;
	case MSR_TSC_DEADLINE:
		if (vcpu->lapic)
			lapic_set_tsc_deadline(vcpu->lapic, value);
		return CPU_OPS_DONE;
	}
	if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return vcpu->lapic && lapic_msr_write(vcpu->lapic, index, value) ? CPU_OPS_DONE : CPU_OPS_GP;
	if (pv_msr_exists(vcpu, index, who))
		return pv_msr_write(vcpu, index, value, who) ? CPU_OPS_DONE : CPU_OPS_GP;
	return unknown(vcpu);
}

// ---- lists ----
unsigned msr_index_list(u32 *list, unsigned max)
{
	static const u32 ours[] = {
		MSR_TSC_DEADLINE, MSR_KVM_WALL_CLOCK_OLD, MSR_KVM_SYSTEM_TIME_OLD, MSR_KVM_WALL_CLOCK,
		MSR_KVM_SYSTEM_TIME, MSR_KVM_ASYNC_PF, MSR_KVM_STEAL, MSR_KVM_EOI, MSR_KVM_POLL,
		MSR_KVM_ASYNC_PF_INTERRUPT,
	};
	unsigned count = cpu_msr_list(list, max);

	for (unsigned i = 0; i < sizeof(ours) / sizeof(*ours); i++, count++)
		if (count < max)
			list[count] = ours[i];
	return count;
}
