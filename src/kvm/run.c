// SPDX-License-Identifier: MIT
// KVM_RUN: from the client's call to the exit it is told about, and the sleep of a halted vCPU.
// api.rst: KVM_RUN, "The kvm_run structure", KVM_SET_MP_STATE.
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <string.h>

#define LONG_SLEEP 1000000000ull // wakes now and then to look around; also what makes EINTR certain

static bool lapic_in_kernel(const struct vcpu *vcpu)
{
	return vcpu->lapic;
}

// ---- wake-ups, from any thread ----
static void notify(struct vcpu *vcpu)
{
	__atomic_fetch_add(&vcpu->events, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&vcpu->blocked, __ATOMIC_SEQ_CST))
		futex_wake(&vcpu->events, 1);
}

void vcpu_wake(void *opaque, unsigned what)
{
	struct vcpu *vcpu = opaque;
	u32 requests = 0, n;

	if (what & WAKE_IRQ)
		requests |= REQ_IRQ;
	if (what & WAKE_NMI) {
		n = __atomic_load_n(&vcpu->cpu->nmi_pending, __ATOMIC_RELAXED);
		while (n < NMIS_MAX && !__atomic_compare_exchange_n(&vcpu->cpu->nmi_pending, &n, n + 1, false,
							     __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			;
		requests |= REQ_NMI;
	}
	if (what & WAKE_INIT_SIPI)
		requests |= REQ_INIT_SIPI;
	if (what & WAKE_SMI) {
		__atomic_store_n(&vcpu->cpu->smi_pending, 1, __ATOMIC_SEQ_CST);
		requests |= REQ_SMI;
	}
	cpu_request(vcpu->cpu, requests);
	notify(vcpu);
}

void vcpu_kick(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->kicked, 1, __ATOMIC_SEQ_CST);
	cpu_request(vcpu->cpu, REQ_KICK);
	notify(vcpu);
}

static bool wants_out(struct vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->kicked, __ATOMIC_SEQ_CST) ||
	       __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST);
}

// ---- interrupts ----
static bool pic_in_kernel(const struct vcpu *vcpu)
{
	return vcpu->lapic && vcpu->vm->chip->pic_and_ioapic;
}

// Does what user space injects (KVM_INTERRUPT) reach the processor? It is the INTR pin's, which an
// in-kernel local APIC listens to as LINT0 says.
static bool hears_user_space(const struct vcpu *vcpu)
{
	return !vcpu->lapic || lapic_accepts_pic(vcpu->lapic);
}

// User space has an interrupt to inject and waits until the guest can take it.
static bool window_requested(const struct vcpu *vcpu)
{
	return vcpu->run->request_interrupt_window && vcpu->queued_interrupt < 0 && !pic_in_kernel(vcpu) &&
	       hears_user_space(vcpu);
}

static bool can_inject(const struct vcpu *vcpu)
{
	const struct cpu *cpu = vcpu->cpu;

	return vcpu->queued_interrupt < 0 && (cpu->rflags & FLAG_IF) && !cpu->interrupt_shadow &&
	       !cpu->event.valid && !cpu->external.valid && hears_user_space(vcpu);
}

static int waiting_interrupt(struct vcpu *vcpu, bool acknowledge)
{
	struct irqchip *chip = vcpu->vm->chip;
	int vector = vcpu->queued_interrupt;

	if (vector >= 0 && hears_user_space(vcpu)) { // KVM_INTERRUPT
		if (acknowledge)
			vcpu->queued_interrupt = -1;
		return vector;
	}
	if (window_requested(vcpu)) {
		// Asked with `acknowledge` the guest can take one now. Otherwise: look again when it can.
		if (!acknowledge)
			return 0;
		cpu_request(vcpu->cpu, REQ_KICK);
		return -1;
	}
	if (!lapic_in_kernel(vcpu))
		return -1;
	if (__atomic_load_n(&vcpu->lapic->deadline, __ATOMIC_RELAXED))
		lapic_timer_poll(vcpu->lapic, clock_now());
	if (chip->pic_and_ioapic && pic_pending(chip) && lapic_accepts_pic(vcpu->lapic))
		return acknowledge ? pic_acknowledge(chip) : 0;
	return lapic_interrupt(vcpu->lapic, acknowledge);
}

int ops_interrupt(void *opaque, bool acknowledge)
{
	struct vcpu *vcpu = opaque;
	int vector = waiting_interrupt(vcpu, acknowledge);

	vcpu->counters->irq_injections += acknowledge && vector >= 0;
	return vector;
}

static u64 ops_get_cr8(void *opaque)
{
	struct vcpu *vcpu = opaque;

	return lapic_in_kernel(vcpu) ? lapic_cr8(vcpu->lapic) : vcpu->cr8;
}

static void ops_set_cr8(void *opaque, u64 tpr)
{
	struct vcpu *vcpu = opaque;

	if (lapic_in_kernel(vcpu)) {
		lapic_set_cr8(vcpu->lapic, tpr);
		return;
	}
	// User space has the APIC and wants to know about every lower priority.
	if (tpr < vcpu->cr8) {
		vcpu->tpr_exit = true;
		cpu_request(vcpu->cpu, REQ_KICK);
	}
	vcpu->cr8 = tpr;
}

// ---- INIT and SIPI ----
static bool is_boot_cpu(const struct vcpu *vcpu)
{
	return vcpu->id == vcpu->vm->boot_cpu_id;
}

static void accept_events(struct vcpu *vcpu)
{
	struct lapic *lapic = vcpu->lapic;
	u32 pending;

	if (!lapic || !(pending = __atomic_load_n(&lapic->pending, __ATOMIC_SEQ_CST)))
		return;
	if (vcpu->cpu->smm) { // an INIT waits for RSM; nobody waits for a SIPI
		__atomic_fetch_and(&lapic->pending, ~(u32)LAPIC_PENDING_SIPI, __ATOMIC_SEQ_CST);
		return;
	}
	if (pending & LAPIC_PENDING_INIT) {
		__atomic_fetch_and(&lapic->pending, ~(u32)LAPIC_PENDING_INIT, __ATOMIC_SEQ_CST);
		cpu_reset(vcpu->cpu, true);
		lapic_reset(lapic, true);
		vcpu->completion = COMPLETE_NONE;
		vcpu->mp_state = is_boot_cpu(vcpu) ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
	}
	if (__atomic_fetch_and(&lapic->pending, ~(u32)LAPIC_PENDING_SIPI, __ATOMIC_SEQ_CST) &
	    LAPIC_PENDING_SIPI) {
		// One that comes while the processor runs is ignored.
		if (vcpu->mp_state == KVM_MP_STATE_INIT_RECEIVED) {
			cpu_sipi(vcpu->cpu, lapic->sipi_vector);
			vcpu->mp_state = KVM_MP_STATE_RUNNABLE;
		}
	}
}

// What has arrived counts before the answer, as if the vCPU were about to run.
u32 mp_state_get(struct vcpu *vcpu)
{
	guest_fpu_load(vcpu);
	accept_events(vcpu);
	if (vcpu->mp_state == KVM_MP_STATE_HALTED && __atomic_load_n(&vcpu->pv_unhalted, __ATOMIC_SEQ_CST))
		return KVM_MP_STATE_RUNNABLE;
	return vcpu->mp_state;
}

static bool ops_init_sipi(void *opaque)
{
	struct vcpu *vcpu = opaque;

	accept_events(vcpu);
	return vcpu->mp_state == KVM_MP_STATE_RUNNABLE;
}

static void ops_timer(void *opaque)
{
	struct vcpu *vcpu = opaque;

	vcpu_synchronize(vcpu);
	clock_update(vcpu);
	steal_time_update(vcpu);
	cpu_client_ran(vcpu->cpu, true);
}

const struct cpu_ops vcpu_ops = {
	.map = memory_ops_map,
	.mark_dirty = memory_ops_mark_dirty,
	.mmio = ops_mmio,
	.pio = ops_pio,
	.rdmsr = ops_rdmsr,
	.wrmsr = ops_wrmsr,
	.guest_msr = ops_guest_msr,
	.interrupt = ops_interrupt,
	.get_cr8 = ops_get_cr8,
	.set_cr8 = ops_set_cr8,
	.tsc = clock_ops_tsc,
	.init_sipi = ops_init_sipi,
	.timer = ops_timer,
	.hypercall = ops_hypercall,
};

// ---- sleeping ----
static bool runnable(struct vcpu *vcpu)
{
	struct cpu *cpu = vcpu->cpu;
	u32 pending = vcpu->lapic ? __atomic_load_n(&vcpu->lapic->pending, __ATOMIC_SEQ_CST) : 0;

	switch (vcpu->mp_state) {
	case KVM_MP_STATE_RUNNABLE:
		return true;
	case KVM_MP_STATE_UNINITIALIZED:
		return pending;
	case KVM_MP_STATE_INIT_RECEIVED:
		return pending;
	}
	if ((pending & LAPIC_PENDING_INIT) && !cpu->smm)
		return true;
	if (__atomic_load_n(&cpu->nmi_pending, __ATOMIC_SEQ_CST) && !cpu->nmi_masked)
		return true;
	if (__atomic_exchange_n(&vcpu->pv_unhalted, 0, __ATOMIC_SEQ_CST))
		return true;
	if (__atomic_load_n(&cpu->smi_pending, __ATOMIC_SEQ_CST) && !cpu->smm)
		return true;
	if (cpu->event.valid || cpu->external.valid)
		return true;
	// Ask even with interrupts disabled: it makes an expired timer pending.
	return ops_interrupt(vcpu, false) >= 0 && (cpu->rflags & FLAG_IF);
}

// Sleeps until the vCPU has something to do. false: the client wants KVM_RUN to return.
static bool block(struct vcpu *vcpu)
{
	bool result = true;

	for (;;) {
		u32 events = __atomic_load_n(&vcpu->events, __ATOMIC_SEQ_CST);
		u64 sleep = LONG_SLEEP, deadline, now;

		if (wants_out(vcpu)) {
			result = false;
			break;
		}
		if (runnable(vcpu))
			break;
		deadline = vcpu->lapic ? vcpu->lapic->deadline : 0;
		now = clock_now();
		if (deadline)
			sleep = deadline <= now ? 0 : deadline - now < sleep ? deadline - now : sleep;
		__atomic_store_n(&vcpu->blocked, 1, __ATOMIC_SEQ_CST);
		if (sleep && futex_wait(&vcpu->events, events, sleep) == -EINTR)
			result = false;
		__atomic_store_n(&vcpu->blocked, 0, __ATOMIC_SEQ_CST);
		if (!result)
			break;
	}
	return result;
}

// ---- exits ----
static void fill_debug(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct cpu *cpu = vcpu->cpu;

	run->exit_reason = KVM_EXIT_DEBUG;
	run->debug.arch.exception = cpu->debug_exit.exception;
	run->debug.arch.pc = cpu->debug_exit.pc;
	run->debug.arch.dr6 = cpu->debug_exit.dr6;
	run->debug.arch.dr7 = cpu->debug_exit.dr7;
}

// A client that only wants pending I/O completed sets immediate_exit beforehand, and reads on in the
// exit it has: that one stays.
static long interrupted(struct vcpu *vcpu)
{
	if (!vcpu->immediate_exit) {
		vcpu->run->exit_reason = KVM_EXIT_INTR;
		vcpu->counters->signal_exits++;
	}
	return -EINTR;
}

// Exits that an instruction asked for which has completed, or user space itself (a triple fault). They wait
// while user space completes another one.
static bool owes_exit(const struct vcpu *vcpu)
{
	return vcpu->triple_fault || vcpu->tpr_exit || vcpu->eoi_exits[0] || vcpu->eoi_exits[1] ||
	       vcpu->eoi_exits[2] || vcpu->eoi_exits[3];
}

static long exit_owed(struct vcpu *vcpu)
{
	if (vcpu->triple_fault) {
		vcpu->triple_fault = false;
		vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	}
	if (vcpu->tpr_exit) {
		vcpu->tpr_exit = false;
		vcpu->run->exit_reason = KVM_EXIT_SET_TPR;
		return 0;
	}
	vcpu->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
	for (unsigned i = 0; i < 4; i++) {
		if (!vcpu->eoi_exits[i])
			continue;
		vcpu->run->eoi.vector = (u8)(i * 64 + (unsigned)__builtin_ctzll(vcpu->eoi_exits[i]));
		vcpu->eoi_exits[i] &= vcpu->eoi_exits[i] - 1;
		break;
	}
	return 0;
}

#define STAY 1

// What the processor left for. STAY: go on; else what KVM_RUN returns.
static long handle(struct vcpu *vcpu, enum cpu_exit exit)
{
	struct kvm_run *run = vcpu->run;

	switch (exit) {
	case CPU_EXIT_KICK:
		if (vcpu->exit_to_user)
			return 0;
		if (wants_out(vcpu))
			return interrupted(vcpu);
		return STAY;
	case CPU_EXIT_OPS:
		return vcpu->exit_to_user ? 0 : STAY;
	case CPU_EXIT_HLT:
		vcpu->counters->halt_exits++;
		if (lapic_in_kernel(vcpu) || vcpu->vm->hlt_in_guest) {
			vcpu->mp_state = KVM_MP_STATE_HALTED;
			return STAY;
		}
		run->exit_reason = KVM_EXIT_HLT;
		vcpu->cpu->halted = false;
		return 0;
	case CPU_EXIT_SHUTDOWN:
		run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	case CPU_EXIT_FAULT:
		run->exit_reason = KVM_EXIT_UNKNOWN;
		if (vcpu->cpu->replay)
			vcpu->completion = COMPLETE_AGAIN;
		return -EFAULT;
	case CPU_EXIT_DEBUG:
		fill_debug(vcpu);
		return 0;
	case CPU_EXIT_EMULATION:
		vcpu_enter_guest(vcpu); // to look at its memory
		io_emulation_failed(vcpu);
		vcpu_leave_guest(vcpu);
		return 0;
	}
	return -EIO;
}

static long run_loop(struct vcpu *vcpu)
{
	struct cpu *cpu = vcpu->cpu;
	enum cpu_exit exit;
	long result;

	for (;;) {
		if (owes_exit(vcpu) && !cpu->replay)
			return exit_owed(vcpu);
		if (vcpu->mp_state != KVM_MP_STATE_RUNNABLE) {
			if (!block(vcpu))
				return interrupted(vcpu);
			accept_events(vcpu);
			if (vcpu->mp_state == KVM_MP_STATE_HALTED) {
				vcpu->mp_state = KVM_MP_STATE_RUNNABLE;
				vcpu->counters->halt_wakeup++;
				// SMM's save area tells of the HLT, and RSM may go back to it.
				cpu->halted = cpu->smi_pending && !cpu->smm;
			}
			if (vcpu->mp_state != KVM_MP_STATE_RUNNABLE)
				continue;
		}
		// A pending completion is finished even when the client wants out.
		if (wants_out(vcpu)) {
			if (!cpu->replay)
				return interrupted(vcpu);
			cpu_request(cpu, REQ_KICK);
		}
		if (owes_exit(vcpu))
			cpu_request(cpu, REQ_KICK);
		if (dirty_ring_soft_full(vcpu)) {
			if (!cpu->replay) {
				vcpu->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
				return 0;
			}
			cpu_request(cpu, REQ_KICK);
		}
		vcpu->exit_to_user = false;
		vcpu_enter_guest(vcpu);
		clock_update(vcpu);
		steal_time_update(vcpu);
		cpu_request(cpu, REQ_IRQ);
		exit = cpu_run(cpu);
		vcpu_leave_guest(vcpu);
		vcpu->counters->exits++;
		__atomic_fetch_and(&cpu->request, ~(u32)REQ_KICK, __ATOMIC_SEQ_CST);
		result = handle(vcpu, exit);
		if (result != STAY)
			return result;
		if (window_requested(vcpu) && can_inject(vcpu)) {
			vcpu->run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
			vcpu->counters->irq_window_exits++;
			return 0;
		}
	}
}

// ---- the client's page ----
static int load_run(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 dirty = __atomic_load_n(&run->kvm_dirty_regs, __ATOMIC_RELAXED);
	u64 valid = __atomic_load_n(&run->kvm_valid_regs, __ATOMIC_RELAXED);
	// Copied before they are checked: other threads can write the page.
	struct kvm_sync_regs copy;

	if ((valid | dirty) & ~(u64)KVM_SYNC_X86_VALID_FIELDS)
		return -EINVAL;
	if (dirty) {
		memcpy(&copy, &run->s.regs, sizeof(copy));
		// What has been taken is not dirty any more, whatever becomes of the rest.
		if (dirty & KVM_SYNC_X86_REGS)
			regs_set(vcpu, &copy.regs);
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_REGS;
		if ((dirty & KVM_SYNC_X86_SREGS) && sregs_set(vcpu, &copy.sregs))
			return -EINVAL;
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_SREGS;
		if ((dirty & KVM_SYNC_X86_EVENTS) && events_set(vcpu, &copy.events))
			return -EINVAL;
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_EVENTS;
	}
	if (!lapic_in_kernel(vcpu)) {
		u64 cr8 = __atomic_load_n(&run->cr8, __ATOMIC_RELAXED);

		if (cr8 & ~15ull)
			return -EINVAL;
		vcpu->cr8 = cr8;
	}
	run->flags = 0;
	return 0;
}

static void store_run(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct cpu *cpu = vcpu->cpu;
	u64 valid = run->kvm_valid_regs;

	run->if_flag = !!(cpu->rflags & FLAG_IF);
	run->flags = cpu->smm ? KVM_RUN_X86_SMM : 0;
	run->cr8 = ops_get_cr8(vcpu);
	run->apic_base = lapic_base_get(vcpu);
	run->ready_for_interrupt_injection = pic_in_kernel(vcpu) || can_inject(vcpu);
	if (valid & KVM_SYNC_X86_REGS)
		regs_get(vcpu, &run->s.regs.regs);
	if (valid & KVM_SYNC_X86_SREGS)
		sregs_get(vcpu, &run->s.regs.sregs);
	if (valid & KVM_SYNC_X86_EVENTS)
		events_get(vcpu, &run->s.regs.events);
}

static long run_uninitialized(struct vcpu *vcpu)
{
	if (!block(vcpu))
		return interrupted(vcpu);
	accept_events(vcpu);
	return -EAGAIN;
}

long vcpu_run(struct vcpu *vcpu)
{
	long result = load_run(vcpu);
	bool masked = false;
	u64 old_mask = 0;

	if (result)
		return result;
	__atomic_store_n(&vcpu->kicked, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&vcpu->in_run, 1, __ATOMIC_SEQ_CST);
	timer_start(vcpu->vm);
	if (vcpu->signal_mask_set)
		masked = signals_swap_mask(vcpu->signal_mask_value, &old_mask);
	if (signals_pending()) // since before `kicked` was cleared
		vcpu_kick(vcpu);
	vcpu->has_run = true;
	vcpu->immediate_exit = __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST);
	cpu_client_ran(vcpu->cpu, vcpu->completion != COMPLETE_NONE && !vcpu->client_had_control);
	vcpu->client_had_control = false;
	guest_fpu_load(vcpu);
	io_complete(vcpu);
	if (vcpu->mp_state == KVM_MP_STATE_UNINITIALIZED)
		result = run_uninitialized(vcpu);
	else
		result = run_loop(vcpu);
	if (result || vcpu->completion == COMPLETE_NONE)
		vcpu->client_had_control = true; // for anything, not just to complete an access
	store_run(vcpu);
	if (masked)
		signals_restore_mask(old_mask);
	__atomic_store_n(&vcpu->in_run, 0, __ATOMIC_SEQ_CST);
	return result;
}
