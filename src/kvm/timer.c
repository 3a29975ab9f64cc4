// SPDX-License-Identifier: MIT
// One thread per virtual machine that sleeps until the next deadline of any vCPU's APIC timer or of
// the 8254, and then sets the vCPU's request word. A vCPU never waits for it.
//
// It also looks, some times a second, whether somebody set kvm_run.immediate_exit of a vCPU that
// executes guest code: a signal handler that only does that cannot reach translated code otherwise.
// And it has running vCPUs look now and then whether the client has changed code they run.
#include "kvm/kvm.h"

#include <signal.h>
#include <sys/prctl.h>

#define NEVER (~0ull)
#define LOOK_NS 4000000ull
#define STALE_NS 20000000ull

static u64 earliest(struct vm *vm)
{
	u64 next = NEVER, d = __atomic_load_n(&vm->pit_deadline, __ATOMIC_SEQ_CST);

	if (d)
		next = d;
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		d = __atomic_load_n(&vm_vcpu(vm, i)->timer_deadline, __ATOMIC_SEQ_CST);
		if (d && d < next)
			next = d;
	}
	return next;
}

static void expire(struct vm *vm, u64 now)
{
	u64 d = __atomic_load_n(&vm->pit_deadline, __ATOMIC_SEQ_CST);

	if (d && d <= now && __atomic_compare_exchange_n(&vm->pit_deadline, &d, 0, false,
							 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		pit_timer(vm->chip, now);
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		struct vcpu *vcpu = vm_vcpu(vm, i);

		d = __atomic_load_n(&vcpu->timer_deadline, __ATOMIC_SEQ_CST);
		// Its thread asks the APIC; a new deadline set meanwhile stays.
		if (d && d <= now && __atomic_compare_exchange_n(&vcpu->timer_deadline, &d, 0, false,
								 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			vcpu_wake(vcpu, WAKE_IRQ);
	}
}

static bool look_at_running(struct vm *vm, bool stale)
{
	bool running = false;

	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		struct vcpu *vcpu = vm_vcpu(vm, i);

		if (!__atomic_load_n(&vcpu->in_run, __ATOMIC_RELAXED))
			continue;
		running = true;
		if (__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED))
			vcpu_kick(vcpu);
		else if (stale)
			cpu_request(vcpu->cpu, REQ_TIMER);
	}
	return running;
}

static void *timer_main(void *opaque)
{
	struct vm *vm = opaque;
	u64 stale_next = 0;

	prctl(PR_SET_TIMERSLACK, 1);
	prctl(PR_SET_NAME, "cetkvm-timer");
	while (!__atomic_load_n(&vm->timer_stop, __ATOMIC_SEQ_CST)) {
		u32 word = __atomic_load_n(&vm->timer_word, __ATOMIC_SEQ_CST);
		u64 next, now;
		bool running;

		__atomic_store_n(&vm->timer_next, 0, __ATOMIC_SEQ_CST);
		now = clock_now();
		expire(vm, now);
		running = look_at_running(vm, now >= stale_next);
		if (now >= stale_next)
			stale_next = now + STALE_NS;
		next = earliest(vm);
		// Who sets a deadline compares it with timer_next after storing it; we look at the
		// deadlines again after storing timer_next. One of us sees the other.
		__atomic_store_n(&vm->timer_next, next, __ATOMIC_SEQ_CST);
		if (earliest(vm) < next)
			continue;
		now = clock_now();
		if (next <= now)
			continue;
		next = next == NEVER ? 1000000000ull : next - now;
		if (running && next > LOOK_NS)
			next = LOOK_NS;
		futex_wait(&vm->timer_word, word, next);
	}
	return NULL;
}

static void poke(struct vm *vm)
{
	__atomic_fetch_add(&vm->timer_word, 1, __ATOMIC_SEQ_CST);
	futex_wake(&vm->timer_word, 1);
}

void timer_set_vcpu(void *opaque, u64 deadline)
{
	struct vcpu *vcpu = opaque;

	__atomic_store_n(&vcpu->timer_deadline, deadline, __ATOMIC_SEQ_CST);
	if (deadline && deadline < __atomic_load_n(&vcpu->vm->timer_next, __ATOMIC_SEQ_CST))
		poke(vcpu->vm);
}

void timer_set_pit(void *opaque, u64 deadline)
{
	struct vm *vm = opaque;

	__atomic_store_n(&vm->pit_deadline, deadline, __ATOMIC_SEQ_CST);
	if (deadline && deadline < __atomic_load_n(&vm->timer_next, __ATOMIC_SEQ_CST))
		poke(vm);
}

void timer_start(struct vm *vm)
{
	sigset_t all, old;

	if (__atomic_load_n(&vm->timer_running, __ATOMIC_ACQUIRE))
		return;
	lock_take(&vm->lock);
	if (!vm->timer_running) {
		// Signals are the client's: none of its handlers runs on our thread.
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		if (pthread_create(&vm->timer_thread, NULL, timer_main, vm) == 0)
			__atomic_store_n(&vm->timer_running, true, __ATOMIC_RELEASE);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	lock_release(&vm->lock);
}

void timer_stop(struct vm *vm)
{
	if (!vm->timer_running)
		return;
	__atomic_store_n(&vm->timer_stop, 1, __ATOMIC_SEQ_CST);
	poke(vm);
	pthread_join(vm->timer_thread, NULL);
	vm->timer_running = false;
}
