// SPDX-License-Identifier: MIT
// A KVM client that checks what signals do to KVM_RUN, and KVM to signals.
#include "guest.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static struct guest guest;
static volatile int handled, handled_value, handled_error, handled_code;
static volatile bool in_run;
static volatile uint64_t handled_rip;

// As a client's handler might, this asks for the registers of the vCPU that was running.
static void asking_handler(int signal, siginfo_t *info, void *context)
{
	struct kvm_regs regs;

	handled_error = ioctl(guest.vcpu, KVM_GET_REGS, &regs) < 0 ? errno : 0;
	handled_rip = regs.rip;
	handled_value = info->si_value.sival_int;
	handled_code = info->si_code;
	handled++;
}

static void empty_handler(int signal)
{
	handled++;
}

static void exit_handler(int signal)
{
	guest.run->immediate_exit = 1;
}

static void install(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigaction(signal, &action, NULL);
}

// ---- ways to signal a thread that is in KVM_RUN ----
static pthread_t runner;
static pid_t runner_tid;

static void by_pthread_kill(void) { pthread_kill(runner, SIGUSR1); }
static void by_tgkill(void) { syscall(SYS_tgkill, getpid(), runner_tid, SIGUSR1); }
static void by_pthread_sigqueue(void) { pthread_sigqueue(runner, SIGUSR1, (union sigval){ .sival_int = 4711 }); }
static void by_kill(void) { kill(getpid(), SIGUSR1); }

static void by_another_process(void)
{
	int status;

	IN_CHILD(status, kill(getppid(), SIGUSR1));
}

static void *signal_later(void *way)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	usleep(30000);
	((void (*)(void))way)();
	return NULL;
}

static int run_with(void (*way)(void))
{
	pthread_t thread;
	int result;

	handled = 0;
	handled_value = handled_error = handled_code = -1;
	runner = pthread_self();
	runner_tid = (pid_t)syscall(SYS_gettid);
	if (way)
		pthread_create(&thread, NULL, signal_later, (void *)way);
	result = guest_run(&guest);
	if (way)
		pthread_join(thread, NULL);
	return result;
}

static void test_ways(bool halted)
{
	static const struct {
		const char *name;
		void (*way)(void);
	} ways[] = {
		{ "pthread_kill()", by_pthread_kill }, { "tgkill", by_tgkill },
		{ "pthread_sigqueue()", by_pthread_sigqueue }, { "kill()", by_kill },
		{ "another process", by_another_process },
	};
	const char *where = halted ? "halted" : "running";
	struct itimerval soon = { .it_value.tv_usec = 30000 };
	int result;

	if (halted) // sti; hlt; jmp .
		GUEST_START(&guest, true, 0xfb, 0xf4, SPIN);
	else
		GUEST_START(&guest, false, SPIN);
	for (unsigned restart = 0; restart < 2; restart++) {
		install(SIGUSR1, asking_handler, restart ? SA_RESTART : 0);
		for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
			result = run_with(ways[i].way);
			is(result, EINTR, "%s: %s%s ends KVM_RUN with EINTR", where, ways[i].name,
			   restart ? " and SA_RESTART" : "");
			is(guest.run->exit_reason, KVM_EXIT_INTR, "the exit reason");
			is(handled, 1, "the handler has run once");
			is(handled_error, 0, "and could ask for the vCPU's registers");
			is(handled_rip, halted ? 0x1002 : 0x1000, "RIP is as it should be");
			if (ways[i].way == by_pthread_sigqueue)
				ok(handled_value == 4711 && handled_code == SI_QUEUE, "the handler gets what was sent along");
		}
	}
	install(SIGALRM, asking_handler, 0);
	handled = 0;
	setitimer(ITIMER_REAL, &soon, NULL);
	is(guest_run(&guest), EINTR, "%s: setitimer()", where);
	is(handled, 1, "the handler has run");
	guest_end(&guest);
}

static void by_usr1_and_usr2(void)
{
	pthread_kill(runner, SIGUSR1);
	pthread_kill(runner, SIGUSR2);
}

static void by_ignored_then_alarm(void)
{
	pthread_kill(runner, SIGUSR2);
	pthread_kill(runner, SIGCHLD);
	handled_value = handled; // still in KVM_RUN?
	usleep(30000);
	pthread_kill(runner, SIGUSR1);
}

static sigjmp_buf jump;
static void jumping_handler(int signal)
{
	siglongjmp(jump, 1);
}

static void test_handlers(void)
{
	struct sigaction action = { .sa_handler = empty_handler }, old;
	struct timespec begin, end;
	sigset_t mask;

	GUEST_START(&guest, false, SPIN);
	signal(SIGUSR1, empty_handler);
	is(run_with(by_pthread_kill), EINTR, "an empty handler installed by signal()");
	is(handled, 1, "runs");
	signal(SIGUSR2, empty_handler);
	is(run_with(by_usr1_and_usr2), EINTR, "two signals at once");
	is(handled, 2, "both handlers run");
	is(sigaction(SIGUSR1, NULL, &old), 0, "sigaction() tells");
	ok(old.sa_handler == empty_handler && (old.sa_flags & SA_RESTART), "the client's handler and flags");
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGUSR2);
	action.sa_flags = SA_RESETHAND;
	sigaction(SIGUSR1, &action, &old);
	ok(old.sa_handler == empty_handler, "and the one before");
	is(run_with(by_pthread_kill), EINTR, "SA_RESETHAND");
	sigaction(SIGUSR1, NULL, &old);
	ok(handled == 1 && old.sa_handler == SIG_DFL, "the handler runs once and is gone");

	signal(SIGUSR2, SIG_IGN);
	signal(SIGUSR1, empty_handler);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	is(run_with(by_ignored_then_alarm), EINTR, "signals that nobody handles");
	clock_gettime(CLOCK_MONOTONIC, &end);
	ok((end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000 >= 55, "do not end KVM_RUN");

	signal(SIGUSR1, exit_handler);
	is(run_with(by_pthread_kill), EINTR, "a handler that sets immediate_exit");
	is(guest_run(&guest), EINTR, "which stays set");
	guest.run->immediate_exit = 0;

	signal(SIGUSR1, jumping_handler);
	if (!sigsetjmp(jump, 1)) {
		run_with(by_pthread_kill);
		ok(false, "a handler that does not return");
	} else {
		ok(true, "a handler that does not return");
	}
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	ok(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGALRM), "leaves nothing blocked");
	signal(SIGUSR1, empty_handler);
	is(run_with(by_pthread_kill), EINTR, "and KVM_RUN works afterwards");
	guest_end(&guest);
}

// ---- KVM_SET_SIGNAL_MASK ----
static int set_mask(const sigset_t *set)
{
	struct {
		struct kvm_signal_mask mask;
		sigset_t set;
	} argument = { .mask.len = 8 };

	if (!set)
		return ioctl(guest.vcpu, KVM_SET_SIGNAL_MASK, NULL);
	memcpy(argument.mask.sigset, set, sizeof(*set));
	return ioctl(guest.vcpu, KVM_SET_SIGNAL_MASK, &argument);
}

static bool blocked(int signal)
{
	sigset_t now;

	pthread_sigmask(SIG_SETMASK, NULL, &now);
	return sigismember(&now, signal);
}

static void test_mask(void)
{
	struct timespec no_time = { 0 };
	siginfo_t info;
	sigset_t one, in_run_mask, pending;

	GUEST_START(&guest, false, SPIN);
	sigemptyset(&one);
	sigaddset(&one, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &one, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &in_run_mask);
	sigdelset(&in_run_mask, SIGUSR1);
	for (unsigned with_handler = 0; with_handler < 2; with_handler++) {
		signal(SIGUSR1, with_handler ? empty_handler : SIG_DFL);
		is(set_mask(&in_run_mask), 0, "KVM_SET_SIGNAL_MASK lets through a signal %s handler",
		   with_handler ? "with a" : "without");
		is(run_with(by_pthread_kill), EINTR, "it ends KVM_RUN");
		is(handled, 0, "no handler runs");
		ok(blocked(SIGUSR1), "it is blocked again");
		sigpending(&pending);
		ok(sigismember(&pending, SIGUSR1), "and pending");
		is(guest_run(&guest), EINTR, "so KVM_RUN ends again");
		is(sigtimedwait(&one, &info, &no_time), SIGUSR1, "sigtimedwait() takes it");
		ok(info.si_signo == SIGUSR1 && info.si_pid == getpid(), "and knows who sent it");
		is(sigtimedwait(&one, NULL, &no_time), -1, "it was there once");
		is(set_mask(NULL), 0, "no mask any more");
		signal(SIGALRM, empty_handler);
		alarm(1);
		is(run_with(by_pthread_kill), EINTR, "a blocked signal");
		is(handled, 1, "does not end KVM_RUN, the alarm does");
		is(sigtimedwait(&one, NULL, &no_time), SIGUSR1, "it waits");
	}
	pthread_sigmask(SIG_UNBLOCK, &one, NULL);
	signal(SIGUSR1, SIG_DFL);
	guest_end(&guest);
}

static void die_of_masked_signal(void)
{
	sigset_t one;

	GUEST_START(&guest, false, SPIN);
	sigemptyset(&one);
	sigaddset(&one, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &one, NULL);
	sigemptyset(&one);
	set_mask(&one);
	sigaddset(&one, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &one, NULL);
	raise(SIGUSR1);
}

// ---- faults ----
static volatile uintptr_t fault_address;
static void fault_handler(int signal, siginfo_t *info, void *context)
{
	handled = signal;
	fault_address = (uintptr_t)info->si_addr;
	siglongjmp(jump, 1);
}

static bool catches(uintptr_t address)
{
	handled = 0;
	if (!sigsetjmp(jump, 1))
		*(volatile char *)address = 1;
	return handled == SIGSEGV && fault_address == address;
}

static void test_faults(bool before)
{
	// In real mode a vector of 0:0 leads to memory full of zeros: add %al, (%bx, %si).
	static const uint8_t divide[] = { 0x31, 0xc9, 0xf7, 0xf1 }; // xor %cx, %cx; div %cx
	struct sigaction old;
	int status;

	if (before) {
		install(SIGSEGV, fault_handler, 0);
		ok(catches(0x10), "before KVM is there, the client's SIGSEGV handler gets its faults");
	}
	GUEST_START(&guest, true, SPIN);
	if (!before)
		install(SIGSEGV, fault_handler, 0);
	sigaction(SIGSEGV, NULL, &old);
	ok(old.sa_sigaction == fault_handler, "the handler is told as the client's own");
	ok(catches(0x20), "with a machine, the handler gets its faults");
	ok(catches(0x30), "again");
	signal(SIGUSR1, empty_handler);
	is(run_with(by_pthread_kill), EINTR, "KVM_RUN");
	ok(catches(0x40), "and again");
	install(SIGSEGV, asking_handler, 0);
	handled = 0;
	kill(getpid(), SIGSEGV);
	is(handled, 1, "a SIGSEGV that somebody sent is one too");
	is(run_with(by_pthread_kill), EINTR, "KVM_RUN");
	signal(SIGSEGV, SIG_DFL);
	IN_CHILD(status, catches(0x50));
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "without a handler a fault is deadly");
	IN_CHILD(status, kill(getpid(), SIGSEGV); usleep(100000));
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "a sent one too");
	IN_CHILD(status, abort());
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "abort() aborts");
	guest_end(&guest);

	if (!before) {
		sigset_t all, old_mask;

		guest_start(&guest, false, divide, sizeof(divide));
		guest.memory[0] = 0x00; // the vector for #DE: 0x2000
		guest.memory[1] = 0x20;
		guest.memory[2] = guest.memory[3] = 0;
		memcpy(guest.memory + 0x2000, (const uint8_t[]){ 0xe6, 0x42 }, 2);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old_mask);
		is(guest_run(&guest), 0, "with all signals blocked, a guest may divide by zero");
		ok(guest.run->exit_reason == KVM_EXIT_IO && guest.run->io.port == 0x42, "and gets the exception");
		ok(blocked(SIGSEGV) && blocked(SIGUSR1), "all signals stay blocked for the client");
		pthread_sigmask(SIG_SETMASK, &old_mask, NULL);
		ok(!blocked(SIGSEGV) && !blocked(SIGUSR1), "until they are not");
		guest_end(&guest);
	}
}

// ---- cancellation ----
static void *cancelled(void *asynchronous)
{
	if (asynchronous)
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	in_run = true;
	for (;;) {
		guest_run(&guest);
		pthread_testcancel();
	}
	return NULL;
}

static void test_cancel(void)
{
	struct guest second;
	pthread_t thread;
	void *result;

	for (unsigned i = 0; i < 40; i++) {
		bool asynchronous = i & 1, halted = i & 2;
		bool good;

		if (halted)
			GUEST_START(&guest, true, 0xfb, 0xf4, SPIN);
		else
			GUEST_START(&guest, false, SPIN);
		in_run = false;
		pthread_create(&thread, NULL, cancelled, asynchronous ? &guest : NULL);
		while (!in_run)
			;
		usleep(i < 8 ? 20000 : i * 20);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		good = result == PTHREAD_CANCELED;
		// Its vCPU is left in order.
		signal(SIGALRM, empty_handler);
		if (i < 8)
			good = run_with(by_kill) == EINTR && good;
		if (i < 8 || !good)
			ok(good, "a thread in KVM_RUN is cancelled, %s, %s", asynchronous ? "at once" : "when it says so",
			   halted ? "halted" : "running");
		guest_end(&guest);
	}
	ok(GUEST_START(&second, false, 0xe6, 0x42) && guest_run(&second) == 0, "another machine is not disturbed");
	guest_end(&second);
}

// ---- many signals ----
static volatile bool storm_over;
static void *storm(void *count)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (int i = 0; i < *(int *)count; i++) {
		pthread_sigqueue(runner, SIGRTMIN + 1, (union sigval){ .sival_int = i });
		if (i % 3 == 0)
			pthread_kill(runner, SIGUSR1);
	}
	storm_over = true;
	pthread_kill(runner, SIGUSR1);
	return NULL;
}

// Which values have come. One that arrives in KVM_RUN may come behind those that followed it closely.
static volatile uint8_t came[20000];
static void storm_handler(int signal, siginfo_t *info, void *context)
{
	struct kvm_regs regs;

	came[info->si_value.sival_int]++;
	handled++;
	if (ioctl(guest.vcpu, KVM_GET_REGS, &regs) < 0)
		handled_error = errno;
}

static void test_storm(void)
{
	int count = sizeof(came), other = 0, once = 0;
	pthread_t thread;

	GUEST_START(&guest, false, 0xe6, 0x42, 0xeb, 0xfc);
	install(SIGRTMIN + 1, storm_handler, 0);
	signal(SIGUSR1, exit_handler);
	handled = handled_error = 0;
	runner = pthread_self();
	pthread_create(&thread, NULL, storm, &count);
	while (!storm_over || handled < count) {
		int result = guest_run(&guest);

		if (result && result != EINTR)
			other = result;
		guest.run->immediate_exit = 0;
		if (storm_over && handled < count && result != EINTR && ++other > 1000)
			break;
	}
	pthread_join(thread, NULL);
	is(handled, count, "no queued signal is lost");
	for (int i = 0; i < count; i++)
		once += came[i] == 1;
	is(once, count, "and each comes once");
	is(handled_error, 0, "every handler could use the vCPU");
	guest_end(&guest);
}

int main(void)
{
	int status;

	test_faults(true);
	test_ways(false);
	test_ways(true);
	test_handlers();
	test_mask();
	IN_CHILD(status, die_of_masked_signal());
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "outside KVM_RUN such a signal does what it always did");
	test_faults(false);
	test_cancel();
	test_storm();
	return done_testing();
}
