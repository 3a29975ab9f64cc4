// SPDX-License-Identifier: MIT
// General registers, debug registers, debugging of the guest, address translation, MP state, ONE_REG.
// api.rst: KVM_GET_REGS, KVM_GET_DEBUGREGS, KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_GET_ONE_REG.
#include "cpu/debug.h"
#include "cpu/features.h"
#include "cpu/mem.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <string.h>

// kvm_regs has its own order: rax rbx rcx rdx rsi rdi rsp rbp r8..r15.
static const u8 order[16] = { RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10, R11, R12, R13, R14, R15 };

void regs_get(struct vcpu *vcpu, struct kvm_regs *regs)
{
	__u64 *to = &regs->rax;

	for (unsigned i = 0; i < 16; i++)
		to[i] = vcpu->cpu->gpr[order[i]];
	regs->rip = vcpu->cpu->rip;
	regs->rflags = cpu_rflags(vcpu->cpu);
}

void regs_set(struct vcpu *vcpu, const struct kvm_regs *regs)
{
	struct cpu *cpu = vcpu->cpu;
	const __u64 *from = &regs->rax;

	for (unsigned i = 0; i < 16; i++)
		cpu->gpr[order[i]] = from[i];
	cpu->rip = regs->rip;
	cpu_set_rflags(cpu, regs->rflags);
	// An exception that waited belongs to the state that is replaced.
	cpu->event.valid = false;
	cpu_mode_changed(cpu);
	cpu_request(cpu, REQ_EVENT | REQ_IRQ);
}

void debugregs_get(struct vcpu *vcpu, struct kvm_debugregs *regs)
{
	memset(regs, 0, sizeof(*regs));
	memcpy(regs->db, vcpu->cpu->dr, sizeof(regs->db));
	regs->dr6 = vcpu->cpu->dr6;
	regs->dr7 = vcpu->cpu->dr7;
}

int debugregs_set(struct vcpu *vcpu, const struct kvm_debugregs *regs)
{
	if (regs->flags || regs->dr6 >> 32 || regs->dr7 >> 32)
		return -EINVAL;
	memcpy(vcpu->cpu->dr, regs->db, sizeof(regs->db));
	vcpu->cpu->dr6 = regs->dr6;
	vcpu->cpu->dr7 = regs->dr7 | DR7_FIXED;
	cpu_mode_changed(vcpu->cpu);
	cpu_request(vcpu->cpu, REQ_EVENT);
	return 0;
}

#define GUESTDBG_VALID \
	(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP | \
	 KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ)

int guest_debug_set(struct vcpu *vcpu, const struct kvm_guest_debug *debug)
{
	struct cpu *cpu = vcpu->cpu;
	u32 inject = debug->control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP);

	if (debug->control & ~(u32)GUESTDBG_VALID)
		return -EINVAL;
	if (inject) {
		if (cpu->event.valid)
			return -EBUSY;
		// User space has set DR6 if it is to be another.
		cpu->event = (struct pending_event){ .valid = true, .injected = true, .for_guest = true,
			.vector = inject & KVM_GUESTDBG_INJECT_DB ? VECTOR_DB : VECTOR_BP };
	}
	cpu->guest_debug = debug->control & KVM_GUESTDBG_ENABLE ? debug->control & ~inject : 0;
	memset(cpu->guest_debug_dr, 0, sizeof(cpu->guest_debug_dr));
	cpu->guest_debug_dr7 = 0;
	if (cpu->guest_debug & KVM_GUESTDBG_USE_HW_BP) {
		memcpy(cpu->guest_debug_dr, debug->arch.debugreg, sizeof(cpu->guest_debug_dr));
		cpu->guest_debug_dr7 = debug->arch.debugreg[7];
	}
	cpu_mode_changed(cpu);
	// What KVM_GUESTDBG_BLOCKIRQ held back may come now.
	cpu_request(cpu, REQ_EVENT | REQ_IRQ | REQ_NMI | REQ_SMI | REQ_INIT_SIPI);
	return 0;
}

void translate(struct vcpu *vcpu, struct kvm_translation *t)
{
	struct walk walk = { 0 };

	vcpu_enter_guest(vcpu);
	t->valid = paging_translate(vcpu->cpu, t->linear_address, &walk);
	vcpu_leave_guest(vcpu);
	t->physical_address = t->valid ? walk.gpa : ~0ull;
	t->writeable = 1;
	t->usermode = 0;
}

int mp_state_set(struct vcpu *vcpu, u32 state)
{
	// INIT and SIPI wait while SMM is there or about to begin.
	if ((state == KVM_MP_STATE_INIT_RECEIVED || state == KVM_MP_STATE_SIPI_RECEIVED) &&
	    (vcpu->cpu->smm || vcpu->cpu->smi_pending))
		return -EINVAL;
	switch (state) {
	case KVM_MP_STATE_RUNNABLE:
		break;
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED:
	case KVM_MP_STATE_HALTED:
		if (!vcpu->lapic)
			return -EINVAL;
		break;
	case KVM_MP_STATE_SIPI_RECEIVED:
		if (!vcpu->lapic)
			return -EINVAL;
		__atomic_fetch_or(&vcpu->lapic->pending, LAPIC_PENDING_SIPI, __ATOMIC_SEQ_CST);
		state = KVM_MP_STATE_INIT_RECEIVED;
		break;
	default:
		return -EINVAL;
	}
	vcpu->mp_state = state;
	vcpu->cpu->halted = state == KVM_MP_STATE_HALTED;
	cpu_request(vcpu->cpu, REQ_IRQ);
	return 0;
}

// ---- ONE_REG ----
static int reg_to_msr(struct vcpu *vcpu, u64 id, u32 *msr)
{
	u32 type = id >> 32 & 0xff;

	if ((id & KVM_REG_ARCH_MASK) != KVM_REG_ARCH_X86 || (id >> 40 & 0xfff))
		return -EINVAL;
	*msr = (u32)id;
	if (type == KVM_REG_X86_TYPE_KVM) {
		if (*msr || !guest_has(vcpu->cpu, FEATURE_SHSTK))
			return -EINVAL;
		*msr = MSR_KVM_INTERNAL_GUEST_SSP;
		type = KVM_REG_X86_TYPE_MSR;
	}
	if (type != KVM_REG_X86_TYPE_MSR || (id & KVM_REG_SIZE_MASK) != KVM_REG_SIZE_U64)
		return -EINVAL;
	return 0;
}

int one_reg(struct vcpu *vcpu, const struct kvm_one_reg *reg, bool set)
{
	u32 msr;
	u64 value;
	int result = reg_to_msr(vcpu, reg->id, &msr);

	if (result)
		return result;
	if (guest_fpu_holds_msr(msr))
		guest_fpu_load(vcpu);
	if (!set) {
		if (cpu_rdmsr(vcpu->cpu, msr, &value, BY_HOST))
			return -EINVAL;
		return copy_to_client((void *)reg->addr, &value, sizeof(value));
	}
	result = copy_from_client(&value, (void *)reg->addr, sizeof(value));
	if (result)
		return result;
	return cpu_wrmsr(vcpu->cpu, msr, value, BY_HOST) ? -EINVAL : 0;
}

int reg_list(struct vcpu *vcpu, void *client)
{
	struct {
		u64 n, reg[1];
	} list = { guest_has(vcpu->cpu, FEATURE_SHSTK), { KVM_REG_X86_GUEST_SSP } };
	u64 room;
	int result = copy_from_client(&room, client, sizeof(room));

	if (!result)
		result = copy_to_client(client, &list.n, sizeof(list.n));
	if (result)
		return result;
	if (room < list.n)
		return -E2BIG;
	return copy_to_client(client_at(client, sizeof(list.n)), list.reg, list.n * sizeof(list.reg[0]));
}
