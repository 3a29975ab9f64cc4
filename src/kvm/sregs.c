// SPDX-License-Identifier: MIT
// Segments, descriptor tables, control registers: KVM_{GET,SET}_SREGS and SREGS2.
// Everything is checked before anything is changed.
#include "cpu/fpu.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <string.h>

static void segment_get(const struct segment *s, struct kvm_segment *k)
{
	u32 a = s->attributes;

	*k = (struct kvm_segment){
		.base = s->base, .limit = s->limit, .selector = s->selector, .type = a & SEG_TYPE,
		.s = !!(a & SEG_S), .dpl = a >> SEG_DPL_SHIFT & 3, .present = !!(a & SEG_P) && !(a & SEG_UNUSABLE),
		.avl = !!(a & SEG_AVL), .l = !!(a & SEG_L), .db = !!(a & SEG_DB), .g = !!(a & SEG_G),
		.unusable = !!(a & SEG_UNUSABLE),
	};
}

static void segment_set(struct segment *s, const struct kvm_segment *k)
{
	s->base = k->base;
	s->limit = k->limit;
	s->selector = k->selector;
	s->attributes = (k->type & SEG_TYPE) | (k->s ? SEG_S : 0) | (u32)(k->dpl & 3) << SEG_DPL_SHIFT |
			(k->present ? SEG_P : 0) | (k->avl ? SEG_AVL : 0) | (k->l ? SEG_L : 0) |
			(k->db ? SEG_DB : 0) | (k->g ? SEG_G : 0) |
			(k->unusable || !k->present ? SEG_UNUSABLE : 0);
}

// The fields that kvm_sregs and kvm_sregs2 have in common lie at the same places.
_Static_assert(offsetof(struct kvm_sregs, apic_base) == offsetof(struct kvm_sregs2, apic_base), "KVM ABI");

static void common_get(struct vcpu *vcpu, struct kvm_sregs *s)
{
	struct cpu *cpu = vcpu->cpu;

	segment_get(&cpu->seg[SEG_CS], &s->cs);
	segment_get(&cpu->seg[SEG_DS], &s->ds);
	segment_get(&cpu->seg[SEG_ES], &s->es);
	segment_get(&cpu->seg[SEG_FS], &s->fs);
	segment_get(&cpu->seg[SEG_GS], &s->gs);
	segment_get(&cpu->seg[SEG_SS], &s->ss);
	segment_get(&cpu->seg[SEG_TR], &s->tr);
	segment_get(&cpu->seg[SEG_LDTR], &s->ldt);
	// CPL is seen in SS, whatever a conforming or null segment says.
	s->ss.dpl = cpu->cpl;
	s->gdt = (struct kvm_dtable){ .base = cpu->gdtr.base, .limit = cpu->gdtr.limit };
	s->idt = (struct kvm_dtable){ .base = cpu->idtr.base, .limit = cpu->idtr.limit };
	s->cr0 = cpu->cr0;
	s->cr2 = cpu->cr2;
	s->cr3 = cpu->cr3;
	s->cr4 = cpu->cr4;
	s->cr8 = cpu->ops->get_cr8(vcpu);
	s->efer = cpu->efer;
	s->apic_base = lapic_base_get(vcpu);
}

void sregs_get(struct vcpu *vcpu, struct kvm_sregs *sregs)
{
	int vector = injected_interrupt(vcpu);

	memset(sregs, 0, sizeof(*sregs));
	common_get(vcpu, sregs);
	if (vector >= 0)
		sregs->interrupt_bitmap[vector / 64] |= 1ull << vector % 64;
}

void sregs2_get(struct vcpu *vcpu, struct kvm_sregs2 *sregs)
{
	struct kvm_sregs common;

	memset(sregs, 0, sizeof(*sregs));
	common_get(vcpu, &common);
	memcpy(sregs, &common, offsetof(struct kvm_sregs2, flags));
	if (cpu_pae_paging(vcpu->cpu)) {
		memcpy(sregs->pdptrs, vcpu->cpu->pdptr, sizeof(sregs->pdptrs));
		sregs->flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	}
}

static void set_tables_and_segments(struct cpu *cpu, const struct kvm_sregs *s)
{
	segment_set(&cpu->seg[SEG_CS], &s->cs);
	segment_set(&cpu->seg[SEG_DS], &s->ds);
	segment_set(&cpu->seg[SEG_ES], &s->es);
	segment_set(&cpu->seg[SEG_FS], &s->fs);
	segment_set(&cpu->seg[SEG_GS], &s->gs);
	segment_set(&cpu->seg[SEG_SS], &s->ss);
	segment_set(&cpu->seg[SEG_TR], &s->tr);
	segment_set(&cpu->seg[SEG_LDTR], &s->ldt);
	cpu->gdtr = (struct table_register){ s->gdt.base, s->gdt.limit };
	cpu->idtr = (struct table_register){ s->idt.base, s->idt.limit };
	cpu->cpl = !(cpu->cr0 & CR0_PE) ? 0 : cpu->rflags & FLAG_VM ? 3 : s->ss.dpl & 3;
}

// A client resets a guest that has run by writing every register it knows of. One that has never heard of
// CET writes none of CET's, and the next boot must not find the last one's: what RESET does to
// them goes with the special registers. (KVM leaves them to the client. A client that restores a machine has
// a new one, or restores these registers after this.)
static bool is_client_reset(const struct vcpu *vcpu, const struct kvm_sregs *s)
{
	return vcpu->has_run && s->cs.selector == 0xf000 && s->cs.base == 0xffff0000 && !(s->cr0 & (CR0_PE | CR0_PG)) &&
	       !s->cr4 && !s->efer;
}

static void reset_cet(struct vcpu *vcpu)
{
	struct cpu *cpu = vcpu->cpu;

	guest_fpu_load(vcpu);
	fpu_receive_init(cpu);
	cpu->ssp = cpu->s_cet = cpu->int_ssp_tab = 0;
	cpu->xss = 0;
}

// Each was found good by cpu_sregs_valid(); the order keeps every step good too. PAE paging's page-directory
// pointers are read from memory.
static int set_control_registers(struct vcpu *vcpu, const struct kvm_sregs *s)
{
	struct cpu *cpu = vcpu->cpu;
	int result;

	vcpu_enter_guest(vcpu);
	result = cpu_set_cr4(cpu, s->cr4, BY_HOST);
	if (!result)
		result = cpu_set_cr0(cpu, s->cr0, BY_HOST);
	if (!result)
		result = cpu_set_cr3(cpu, s->cr3, BY_HOST);
	vcpu_leave_guest(vcpu);
	return result;
}

// Not by the guest: user space, which may have the APIC, does not hear of it.
static void set_cr8(struct vcpu *vcpu, u64 tpr)
{
	if (vcpu->lapic)
		lapic_set_cr8(vcpu->lapic, tpr);
	else
		vcpu->cr8 = tpr;
}

// Does everything but what the two structures do not share.
static int common_set(struct vcpu *vcpu, const struct kvm_sregs *s)
{
	struct cpu *cpu = vcpu->cpu;
	u64 old_efer = cpu->efer;

	if (!cpu_sregs_valid(cpu, s->cr0, s->cr3, s->cr4, s->efer, s->cs.l))
		return -EINVAL;
	if (cpu_set_efer(cpu, s->efer, BY_HOST))
		return -EINVAL;
	if (lapic_base_set(vcpu, s->apic_base, true)) {
		cpu_set_efer(cpu, old_efer, BY_HOST);
		return -EINVAL;
	}
	cpu->cr2 = s->cr2;
	if (set_control_registers(vcpu, s))
		return -EINVAL;
	set_tables_and_segments(cpu, s);
	if (is_client_reset(vcpu, s))
		reset_cet(vcpu);
	set_cr8(vcpu, s->cr8 & 15);
	vcpu->exit_to_user = false;
	// A boot processor that user space has put to its reset vector is to run.
	if (vcpu->id == vcpu->vm->boot_cpu_id && cpu->rip == 0xfff0 && s->cs.selector == 0xf000 &&
	    s->cs.base == 0xffff0000 && !(s->cr0 & CR0_PE))
		vcpu->mp_state = KVM_MP_STATE_RUNNABLE;
	cpuid_refresh(cpu);
	cpu_mode_changed(cpu);
	cpu_request(cpu, REQ_EVENT | REQ_IRQ);
	return 0;
}

int sregs_set(struct vcpu *vcpu, const struct kvm_sregs *sregs)
{
	int result = common_set(vcpu, sregs);

	if (result)
		return result;
	for (unsigned i = 0; i < 256; i++) {
		if (sregs->interrupt_bitmap[i / 64] >> i % 64 & 1) {
			inject_interrupt(vcpu, (u8)i);
			break;
		}
	}
	return 0;
}

int sregs2_set(struct vcpu *vcpu, const struct kvm_sregs2 *sregs)
{
	struct kvm_sregs common = { 0 };
	bool valid = sregs->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
	bool pae = (sregs->cr0 & CR0_PG) && (sregs->cr4 & CR4_PAE) && !(sregs->efer & EFER_LMA);
	int result;

	if (sregs->flags & ~(__u64)KVM_SREGS2_FLAGS_PDPTRS_VALID)
		return -EINVAL;
	if (valid && !pae)
		return -EINVAL;
	memcpy(&common, sregs, offsetof(struct kvm_sregs2, flags));
	result = common_set(vcpu, &common);
	if (!result && valid)
		memcpy(vcpu->cpu->pdptr, sregs->pdptrs, sizeof(sregs->pdptrs));
	return result;
}
