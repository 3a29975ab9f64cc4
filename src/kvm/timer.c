// SPDX-License-Identifier: MIT
// One thread of the process that sleeps until the next deadline of any machine's APIC timers or 8254,
// and then sets the vCPU's request word. A vCPU never waits for it.
//
// It also looks, some times a second, whether somebody set kvm_run.immediate_exit of a vCPU that
// executes guest code: a signal handler that only does that cannot reach translated code otherwise. When
// no vCPU has been in KVM_RUN for a while it stops doing so, until the next KVM_RUN wakes it. At a slower
// pace it has running vCPUs look whether the client has changed code that they run (cpu_client_ran()).
//
// It starts with the first KVM_RUN of the process and stays. A machine is known to it from its own first
// KVM_RUN to its end; timers.lock is held while its deadlines are looked at, and is taken before
// irqchip->lock.
#include "kvm/kvm.h"

#include <sys/prctl.h>

#define NEVER (~0ull)
#define LOOK_NS 4000000ull
#define STALE_NS 20000000ull
#define IDLE_LOOKS 250 // without a vCPU in KVM_RUN

static struct {
	struct lock lock;
	bool started;
	struct vm *first;
	u32 watching;	    // it looks at immediate_exit
	volatile u32 word;  // the futex it sleeps on
	u64 next;	    // when it will look again; 0: it is awake
	u64 stale_next;	    // when vCPUs will next look at their code
} timers;

void timer_after_fork_in_child(void)
{
	timers.lock.state = 0;
	timers.started = false;
	timers.first = NULL;
	timers.watching = 0;
	timers.next = 0;
}

static u64 earliest(void)
{
	u64 next = NEVER, d;

	for (struct vm *vm = timers.first; vm; vm = vm->timer_link) {
		d = __atomic_load_n(&vm->pit_deadline, __ATOMIC_SEQ_CST);
		if (d && d < next)
			next = d;
		for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
			d = __atomic_load_n(&vm_vcpu(vm, i)->timer_deadline, __ATOMIC_SEQ_CST);
			if (d && d < next)
				next = d;
		}
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

// Is a vCPU in KVM_RUN?
static bool look_at_running(struct vm *vm, bool stale)
{
	bool running = false;

	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		struct vcpu *vcpu = vm_vcpu(vm, i);

		if (!__atomic_load_n(&vcpu->in_run, __ATOMIC_SEQ_CST))
			continue;
		running = true;
		if (__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED))
			vcpu_kick(vcpu);
		else if (stale)
			cpu_request(vcpu->cpu, REQ_TIMER);
	}
	return running;
}

// What is due, and when to look again.
static u64 look(unsigned *idle)
{
	u64 next, begin = clock_now();
	bool running = false, stale = begin >= timers.stale_next;

	if (stale)
		timers.stale_next = begin + STALE_NS;
	__atomic_store_n(&timers.next, 0, __ATOMIC_SEQ_CST);
	lock_take(&timers.lock);
	for (struct vm *vm = timers.first; vm; vm = vm->timer_link) {
		expire(vm, clock_now());
		running |= look_at_running(vm, stale);
	}
	*idle = running ? 0 : *idle + 1;
	if (*idle > IDLE_LOOKS) {
		__atomic_store_n(&timers.watching, 0, __ATOMIC_SEQ_CST);
		for (struct vm *vm = timers.first; vm; vm = vm->timer_link)
			running |= look_at_running(vm, false);
		if (running)
			__atomic_store_n(&timers.watching, 1, __ATOMIC_SEQ_CST);
	}
	next = earliest();
	// Who sets a deadline compares it with timers.next after storing it; we look at the deadlines again
	// after storing timers.next. One of us sees the other.
	__atomic_store_n(&timers.next, next, __ATOMIC_SEQ_CST);
	if (earliest() < next)
		next = 0;
	lock_release(&timers.lock);
	return next;
}

static void *timer_main(void *opaque)
{
	unsigned idle = 0;

	prctl(PR_SET_TIMERSLACK, 1);
	prctl(PR_SET_NAME, "cetkvm-timer");
	for (;;) {
		u32 word = __atomic_load_n(&timers.word, __ATOMIC_SEQ_CST);
		u64 next = look(&idle), now = clock_now();

		if (next <= now)
			continue;
		next = next == NEVER ? 1000000000ull : next - now;
		if (__atomic_load_n(&timers.watching, __ATOMIC_SEQ_CST) && next > LOOK_NS)
			next = LOOK_NS;
		futex_wait(&timers.word, word, next);
	}
	return NULL;
}

static void poke(void)
{
	__atomic_fetch_add(&timers.word, 1, __ATOMIC_SEQ_CST);
	futex_wake(&timers.word, 1);
}

static void set(u64 *where, u64 deadline)
{
	__atomic_store_n(where, deadline, __ATOMIC_SEQ_CST);
	if (deadline && deadline < __atomic_load_n(&timers.next, __ATOMIC_SEQ_CST))
		poke();
}

void timer_set_vcpu(void *opaque, u64 deadline)
{
	set(&((struct vcpu *)opaque)->timer_deadline, deadline);
}

void timer_set_pit(void *opaque, u64 deadline)
{
	set(&((struct vm *)opaque)->pit_deadline, deadline);
}

static void add(struct vm *vm)
{
	lock_take(&timers.lock);
	if (!timers.started)
		timers.started = !thread_start(timer_main, NULL);
	if (timers.started && !vm->timer_known) {
		vm->timer_link = timers.first;
		timers.first = vm;
		__atomic_store_n(&vm->timer_known, true, __ATOMIC_RELEASE);
	}
	lock_release(&timers.lock);
	poke(); // it may have deadlines already
}

void timer_start(struct vm *vm)
{
	if (!__atomic_load_n(&vm->timer_known, __ATOMIC_ACQUIRE))
		add(vm);
	if (!__atomic_load_n(&timers.watching, __ATOMIC_SEQ_CST)) {
		__atomic_store_n(&timers.watching, 1, __ATOMIC_SEQ_CST);
		poke();
	}
}

void timer_stop(struct vm *vm)
{
	struct vm **link = &timers.first;

	if (!vm->timer_known)
		return;
	lock_take(&timers.lock);
	while (*link != vm)
		link = &(*link)->timer_link;
	*link = vm->timer_link;
	lock_release(&timers.lock);
}
