// SPDX-License-Identifier: MIT
// KVM's hypercalls. hypercalls.rst: "Linux KVM Hypercall"; api.rst: KVM_CAP_DISABLE_QUIRKS2
// (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
//
// Deviation: "the right instruction" goes by the vendor in the guest's CPUID, not by the host's, for
// which is which means nothing to this processor.
#include "cpu/mem.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <linux/kvm_para.h>

#define ICR_MODE_SHIFT 8
#define ICR_SHORTHAND (3u << 18)
#define ICR_LOGICAL (1u << 11)

static bool has(const struct vcpu *vcpu, u32 feature)
{
	return !vcpu->enforce_pv_features || (vcpu->pv_features & feature);
}

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

// Bit n of the map, whose halves are one word each, is the APIC with the id minimum + n.
static u64 send_ipi(struct vcpu *vcpu, const u64 halves[2], u32 minimum, u64 icr, unsigned word_bits)
{
	struct apic_message message = { .vector = icr & 0xff, .mode = icr >> ICR_MODE_SHIFT & 7, .assert = true };
	u64 reached = 0;

	if ((icr & (ICR_LOGICAL | ICR_SHORTHAND)) || !vcpu->lapic)
		return (u64)-KVM_EINVAL;
	for (unsigned i = 0; i < 2 * word_bits; i++) {
		if (!(halves[i / word_bits] >> i % word_bits & 1))
			continue;
		message.destination = minimum + i;
		reached += apic_send(vcpu->vm->chip, vcpu->lapic, &message) > 0;
	}
	return reached;
}

// Puts the instruction of the guest's vendor in the place of the other one. A page that may not be
// written stays as it is: both work.
static void fix_instruction(struct cpu *cpu, bool vmmcall)
{
	static const u8 right[2][3] = { { 0x0f, 0x01, 0xd9 }, { 0x0f, 0x01, 0xc1 } };
	u64 linear = cpu->rip + (cpu_64bit(cpu) ? 0 : cpu->seg[SEG_CS].base);
	struct walk walk;

	if (paging_walk(cpu, linear, ACCESS_WRITE, &walk) && paging_walk(cpu, linear + 2, ACCESS_WRITE, &walk))
		mem_write(cpu, linear, right[vmmcall], 3, 0);
}

static bool guest_is_amd(struct cpu *cpu)
{
	for (unsigned i = 0; i < cpu->cpuid_count; i++)
		if (cpu->cpuid[i].function == 0)
			return cpu->cpuid[i].ebx == 0x68747541 || cpu->cpuid[i].ebx == 0x6f677948; // "Auth", "Hygo"
	return false;
}

enum cpu_ops_result ops_hypercall(void *opaque, bool vmmcall)
{
	struct vcpu *vcpu = opaque;
	struct cpu *cpu = vcpu->cpu;
	bool wide = cpu_64bit(cpu);
	u64 mask = wide ? ~0ull : 0xffffffffull, number = cpu->gpr[RAX] & mask, result = (u64)-KVM_ENOSYS;
	u64 halves[2] = { cpu->gpr[RBX] & mask, cpu->gpr[RCX] & mask };

	vcpu->counters->hypercalls++;
	if (cpu->cpuid_count && vmmcall != guest_is_amd(cpu)) {
		if (vcpu->vm->disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
			cpu_raise(cpu, VECTOR_UD);
		fix_instruction(cpu, vmmcall);
	}
	if (cpu->cpl) {
		result = (u64)-KVM_EPERM;
	} else {
		switch (number) {
		case KVM_HC_VAPIC_POLL_IRQ:
			result = 0;
			break;
		case KVM_HC_KICK_CPU:
			if (has(vcpu, PV_UNHALT))
				result = kick_cpu(vcpu->vm, (u32)cpu->gpr[RCX]);
			break;
		case KVM_HC_SEND_IPI:
			if (has(vcpu, PV_SEND_IPI))
				result = send_ipi(vcpu, halves, (u32)cpu->gpr[RDX], cpu->gpr[RSI] & mask, wide ? 64 : 32);
			break;
		case KVM_HC_SCHED_YIELD:
			if (has(vcpu, PV_SCHED_YIELD)) {
				raw_syscall6(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
				result = 0;
			}
			break;
		}
	}
	cpu->gpr[RAX] = result & mask;
	return CPU_OPS_DONE;
}
