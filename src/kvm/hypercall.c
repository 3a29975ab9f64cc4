// SPDX-License-Identifier: MIT
// KVM's hypercalls. hypercalls.rst: "Linux KVM Hypercall".
#include "kvm/kvm.h"

#include <errno.h>
#include <linux/kvm_para.h>

static u64 kick_cpu(struct vm *vm, u32 apic_id)
{
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		struct vcpu *target = vm_vcpu(vm, i);

		if (target->id != apic_id)
			continue;
		__atomic_store_n(&target->pv_unhalted, 1, __ATOMIC_SEQ_CST);
		vcpu_wake(target, WAKE_IRQ);
		return 0;
	}
	return 0;
}

enum cpu_ops_result ops_hypercall(void *opaque)
{
	struct vcpu *vcpu = opaque;
	struct cpu *cpu = vcpu->cpu;
	bool wide = cpu_64bit(cpu);
	u64 number = wide ? cpu->gpr[RAX] : (u32)cpu->gpr[RAX];
	u64 result = (u64)-KVM_ENOSYS;

	if (cpu->cpl) {
		result = (u64)-KVM_EPERM;
	} else {
		switch (number) {
		case KVM_HC_VAPIC_POLL_IRQ:
			result = 0;
			break;
		case KVM_HC_KICK_CPU:
			if (!vcpu->enforce_pv_features || (vcpu->pv_features & PV_UNHALT))
				result = kick_cpu(vcpu->vm, (u32)cpu->gpr[RCX]);
			break;
		}
	}
	cpu->gpr[RAX] = wide ? result : (u32)result;
	return CPU_OPS_DONE;
}
