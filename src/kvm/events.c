// SPDX-License-Identifier: MIT
// Events under way, for user space: KVM_{GET,SET}_VCPU_EVENTS.
#include "cpu/mem.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <string.h>

// With the local APIC in user space, KVM_INTERRUPT injects.
int injected_interrupt(const struct vcpu *vcpu)
{
	if (vcpu->cpu->external.valid && !vcpu->cpu->external.nmi)
		return vcpu->cpu->external.vector;
	return vcpu->lapic ? -1 : vcpu->queued_interrupt;
}

void inject_interrupt(struct vcpu *vcpu, u8 vector)
{
	struct cpu *cpu = vcpu->cpu;

	if (!vcpu->lapic || cpu->external.valid) {
		vcpu->queued_interrupt = vector;
	} else {
		cpu->external.vector = vector;
		cpu->external.nmi = false;
		cpu->external.valid = true;
	}
	cpu_request(cpu, REQ_EVENT | REQ_IRQ);
}

void events_get(struct vcpu *vcpu, struct kvm_vcpu_events *e)
{
	struct cpu *cpu = vcpu->cpu;
	bool payload = vcpu->vm->exception_payload;
	int vector = injected_interrupt(vcpu);

	memset(e, 0, sizeof(*e));
	if (cpu->event.valid) {
		// Without the payload capability a pending exception looks injected.
		e->exception.injected = cpu->event.injected || !payload;
		e->exception.pending = !e->exception.injected || !payload;
		e->exception.nr = cpu->event.vector;
		e->exception.has_error_code = cpu->event.has_error;
		e->exception.error_code = cpu->event.error;
		if (payload && !cpu->event.injected) {
			e->exception_has_payload = cpu->event.vector == VECTOR_PF || cpu->event.vector == VECTOR_DB;
			e->exception_payload = cpu->event.payload;
		}
	}
	e->interrupt.injected = vector >= 0;
	e->interrupt.nr = vector >= 0 ? vector : 0;
	e->interrupt.shadow = !cpu->interrupt_shadow ? 0 :
			      cpu->mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
	e->nmi.injected = cpu->external.valid && cpu->external.nmi;
	e->nmi.pending = cpu->nmi_pending;
	e->nmi.masked = cpu->nmi_masked;
	e->smi.smm = cpu->smm;
	e->smi.pending = cpu->smi_pending;
	e->smi.smm_inside_nmi = cpu->smm_inside_nmi;
	if (vcpu->lapic)
		e->smi.latched_init = !!(vcpu->lapic->pending & LAPIC_PENDING_INIT);
	e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
	if (payload)
		e->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	if (vcpu->vm->triple_fault_event) {
		e->triple_fault.pending = vcpu->triple_fault;
		e->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	}
}

static bool is_pending(const struct kvm_vcpu_events *e)
{
	return (e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) && e->exception.pending;
}

static int check(const struct vcpu *vcpu, const struct kvm_vcpu_events *e)
{
	const u32 valid = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
			  KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM |
			  KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

	if (e->flags & ~valid)
		return -EINVAL;
	if ((e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) && !vcpu->vm->exception_payload)
		return -EINVAL;
	if ((e->exception.injected || is_pending(e)) && (e->exception.nr > 31 || e->exception.nr == VECTOR_NMI))
		return -EINVAL;
	// SMM, about to begin or there, holds INIT back: so nobody is waiting for a SIPI.
	if ((e->flags & KVM_VCPUEVENT_VALID_SMM) && (e->smi.smm || e->smi.pending) &&
	    vcpu->mp_state == KVM_MP_STATE_INIT_RECEIVED)
		return -EINVAL;
	if ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && !vcpu->vm->triple_fault_event)
		return -EINVAL;
	return 0;
}

static void set_smi(struct vcpu *vcpu, const struct kvm_vcpu_events *e)
{
	struct cpu *cpu = vcpu->cpu;

	if (cpu->smm != !!e->smi.smm) {
		cpu->smm = e->smi.smm;
		cpu->smm_inside_nmi = false;
		tlb_flush_all(cpu); // the other physical address space
	}
	if (cpu->smm)
		cpu->smm_inside_nmi = e->smi.smm_inside_nmi;
	__atomic_store_n(&cpu->smi_pending, !!e->smi.pending, __ATOMIC_SEQ_CST);
	cpu_request(cpu, REQ_SMI | REQ_INIT_SIPI);
	if (!vcpu->lapic)
		return;
	if (e->smi.latched_init)
		__atomic_fetch_or(&vcpu->lapic->pending, LAPIC_PENDING_INIT, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(&vcpu->lapic->pending, ~(u32)LAPIC_PENDING_INIT, __ATOMIC_SEQ_CST);
}

int events_set(struct vcpu *vcpu, const struct kvm_vcpu_events *e)
{
	struct cpu *cpu = vcpu->cpu;
	u32 nmis = e->nmi.pending < NMIS_MAX ? e->nmi.pending : NMIS_MAX;
	int result = check(vcpu, e);

	if (result)
		return result;
	memset(&cpu->event, 0, sizeof(cpu->event));
	if (e->exception.injected || is_pending(e)) {
		cpu->event.valid = cpu->event.for_guest = true;
		cpu->event.injected = !is_pending(e); // said to be both it is pending
		// INT3 and INTO, which a debugger found not to be its own: RIP is still at the instruction.
		cpu->event.soft = e->exception.nr == VECTOR_BP || e->exception.nr == VECTOR_OF;
		cpu->event.vector = e->exception.nr;
		cpu->event.has_error = e->exception.has_error_code;
		cpu->event.error = e->exception.error_code;
		// What user space injects has left its mark already: CR2 as it is, no DR6 bits.
		cpu->event.payload = e->exception.nr == VECTOR_PF ? cpu->cr2 : 0;
		if (is_pending(e) && e->exception_has_payload)
			cpu->event.payload = e->exception_payload;
	}
	cpu->external.valid = cpu->external.nmi = e->nmi.injected;
	cpu->external.vector = VECTOR_NMI;
	cpu->external.underway = false;
	if (!vcpu->lapic)
		vcpu->queued_interrupt = -1;
	if (e->interrupt.injected)
		inject_interrupt(vcpu, e->interrupt.nr);
	if (e->flags & KVM_VCPUEVENT_VALID_SHADOW) {
		cpu->interrupt_shadow = e->interrupt.shadow;
		cpu->mov_ss_shadow = e->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS;
	}
	cpu->nmi_masked = e->nmi.masked;
	if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING)
		__atomic_store_n(&cpu->nmi_pending, nmis, __ATOMIC_SEQ_CST);
	if ((e->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) && vcpu->lapic)
		vcpu->lapic->sipi_vector = e->sipi_vector;
	if (e->flags & KVM_VCPUEVENT_VALID_SMM)
		set_smi(vcpu, e);
	if (e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
		vcpu->triple_fault = e->triple_fault.pending;
	cpu_mode_changed(cpu);
	cpu_request(cpu, REQ_EVENT | REQ_NMI | REQ_IRQ);
	return 0;
}
