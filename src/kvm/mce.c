// SPDX-License-Identifier: MIT
// KVM_X86_SET_MCE: user space reports a machine check to the guest. api.rst: KVM_X86_SET_MCE.
// SDM: "Machine-Check Architecture". An uncorrected error raises #MC, or shuts the processor down when one is
// being handled already or CR4.MCE is clear; others are recorded in the bank.
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/kvm.h"

#include <errno.h>

#define STATUS_VALID (1ull << 63)
#define STATUS_OVERFLOW (1ull << 62)
#define STATUS_UNCORRECTED (1ull << 61)
#define MCG_CTL_PRESENT (1ull << 8)
#define MCG_STATUS_IN_PROGRESS (1ull << 2)
#define ALL_ENABLED (~0ull)

static u64 read(struct vcpu *vcpu, u32 msr)
{
	u64 value = 0;

	return cpu_rdmsr(vcpu->cpu, msr, &value, BY_HOST) ? 0 : value;
}

static void record(struct vcpu *vcpu, u32 bank, const struct kvm_x86_mce *mce, u64 status)
{
	if (read(vcpu, bank + 1) & STATUS_VALID)
		status |= STATUS_OVERFLOW;
	cpu_wrmsr(vcpu->cpu, bank + 2, mce->addr, BY_HOST);
	cpu_wrmsr(vcpu->cpu, bank + 3, mce->misc, BY_HOST);
	cpu_wrmsr(vcpu->cpu, bank + 1, status, BY_HOST);
}

static void raise_machine_check(struct vcpu *vcpu, const struct kvm_x86_mce *mce)
{
	struct cpu *cpu = vcpu->cpu;

	cpu_wrmsr(cpu, MSR_MCG_STATUS, mce->mcg_status, BY_HOST);
	cpu->event = (struct pending_event){ .valid = true, .vector = VECTOR_MC };
	cpu_request(cpu, REQ_EVENT);
}

int mce_set(struct vcpu *vcpu, const struct kvm_x86_mce *mce)
{
	u64 cap = read(vcpu, MSR_MCG_CAP), status;
	u32 bank = MSR_MC0_CTL + 4u * mce->bank;

	if (mce->bank >= (cap & 0xff) || !(mce->status & STATUS_VALID))
		return -EINVAL;
	status = read(vcpu, bank + 1);
	if (!(mce->status & STATUS_UNCORRECTED)) {
		// It does not push out an uncorrected one.
		if ((status & STATUS_VALID) && (status & STATUS_UNCORRECTED))
			cpu_wrmsr(vcpu->cpu, bank + 1, status | STATUS_OVERFLOW, BY_HOST);
		else
			record(vcpu, bank, mce, mce->status);
		return 0;
	}
	// Reporting is off.
	if ((cap & MCG_CTL_PRESENT) && read(vcpu, MSR_MCG_CTL) != ALL_ENABLED)
		return 0;
	if (read(vcpu, bank) != ALL_ENABLED)
		return 0;
	if ((read(vcpu, MSR_MCG_STATUS) & MCG_STATUS_IN_PROGRESS) || !(vcpu->cpu->cr4 & CR4_MCE)) {
		vcpu->triple_fault = true;
		return 0;
	}
	record(vcpu, bank, mce, mce->status);
	raise_machine_check(vcpu, mce);
	return 0;
}
