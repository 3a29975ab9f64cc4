// SPDX-License-Identifier: MIT
// Handlers of the client's signals. While a thread is in a call of libcetkvm its handlers have to wait
// for the end of it: see cetkvm_signal(). So, from the moment the client opens /dev/kvm on, the kernel
// knows trampoline() as the handler of every signal that the client handles, and the client's own actions
// are kept here. Clients that never open /dev/kvm are left alone.
//
// - SIGSEGV, SIGBUS, SIGILL and SIGFPE are the engine's own: its handler calls ours for what it does
//   not know. They are never blocked for real; thread.blocked_faults is what the client thinks.
// - With KVM_SET_SIGNAL_MASK a client waits for signals which it otherwise keeps blocked, and may have no
//   handler for. They get the trampoline too, which then does what the kernel would have done.
#include "preload/preload.h"

#include "base/futex.h"
#include "cetkvm/cetkvm.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define SIGNALS 64
#define BIT(signal) (1ull << ((signal) - 1))
#define FAULTS (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGILL) | BIT(SIGFPE))

static struct action {
	void *handler; // or SIG_DFL, SIG_IGN
	unsigned long mask;
	int flags;
	bool trampoline; // known to the kernel
} actions[SIGNALS + 1];
static struct lock actions_lock; // signals are blocked while it is held
static bool active;

static bool is_fault(int signal)
{
	return signal >= 1 && signal <= SIGNALS && (FAULTS & BIT(signal));
}

static bool is_handler(const void *handler)
{
	return handler != (void *)SIG_DFL && handler != (void *)SIG_IGN && handler != (void *)SIG_ERR;
}

static void raw_mask(int how, unsigned long mask, unsigned long *old)
{
	raw_syscall6(SYS_rt_sigprocmask, how, (long)&mask, (long)old, 8, 0, 0);
}

static unsigned long lock_actions(void)
{
	unsigned long old;

	raw_mask(SIG_BLOCK, ~FAULTS, &old);
	lock_take(&actions_lock);
	return old;
}

static void unlock_actions(unsigned long old)
{
	lock_release(&actions_lock);
	raw_mask(SIG_SETMASK, old, NULL);
}

static void send_to_self(int signal, const siginfo_t *info)
{
	raw_syscall6(SYS_rt_tgsigqueueinfo, raw_syscall6(SYS_getpid, 0, 0, 0, 0, 0, 0),
		     raw_syscall6(SYS_gettid, 0, 0, 0, 0, 0, 0), signal, (long)info, 0, 0);
}

// The default action, or none: a fault faults again when the handler returns.
static void do_default(int signal, const siginfo_t *info, bool ignore)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	bool exception = is_fault(signal) && info->si_code > 0;

	if (ignore && !exception)
		return;
	REAL(sigaction)(signal, &action, NULL);
	if (!exception)
		send_to_self(signal, info);
}

static struct action take_action(int signal)
{
	unsigned long old = lock_actions();
	struct action action = actions[signal];

	if (is_handler(action.handler) && (action.flags & SA_RESETHAND)) {
		actions[signal].handler = (void *)SIG_DFL;
		actions[signal].flags = 0;
		if (!is_fault(signal)) {
			struct sigaction reset = { .sa_handler = SIG_DFL };

			REAL(sigaction)(signal, &reset, NULL);
			actions[signal].trampoline = false;
		}
	}
	unlock_actions(old);
	return action;
}

static void trampoline(int signal, siginfo_t *info, void *context)
{
	unsigned inside = thread.inside;
	int saved = errno;
	struct action action;

	if (signal == SIGILL && info->si_code > 0 && client_cpuid_fault(context))
		return;
	if (!(is_fault(signal) && info->si_code > 0) && cetkvm_signal(signal, info, context)) {
		errno = saved;
		return;
	}
	action = take_action(signal);
	if (!is_handler(action.handler)) {
		do_default(signal, info, action.handler == (void *)SIG_IGN);
		errno = saved;
		return;
	}
	// The kernel knows the engine's handler for these, which blocks nothing.
	if (is_fault(signal))
		raw_mask(SIG_BLOCK, (action.mask | (action.flags & SA_NODEFER ? 0 : BIT(signal))) & ~FAULTS, NULL);
	errno = saved;
	thread.inside = 0; // the handler is the client's, and may leave by longjmp()
	if (action.flags & SA_SIGINFO)
		((void (*)(int, siginfo_t *, void *))action.handler)(signal, info, context);
	else
		((void (*)(int))action.handler)(signal);
	thread.inside = inside;
}

static struct action from_sigaction(const struct sigaction *from)
{
	struct action action = { .handler = (void *)from->sa_sigaction, .flags = from->sa_flags };

	memcpy(&action.mask, &from->sa_mask, sizeof(action.mask));
	return action;
}

static void to_sigaction(const struct action *from, struct sigaction *to)
{
	memset(to, 0, sizeof(*to));
	to->sa_sigaction = (void (*)(int, siginfo_t *, void *))from->handler;
	to->sa_flags = from->flags;
	memcpy(&to->sa_mask, &from->mask, sizeof(from->mask));
}

// Tells the kernel, with the lock held.
static int apply(int signal, bool need_trampoline)
{
	struct action *action = &actions[signal];
	struct sigaction kernel;
	int result;

	to_sigaction(action, &kernel);
	if (is_handler(action->handler) || need_trampoline) {
		unsigned long mask = action->mask & ~FAULTS;

		kernel.sa_sigaction = trampoline;
		kernel.sa_flags = (kernel.sa_flags & ~SA_RESETHAND) | SA_SIGINFO;
		memcpy(&kernel.sa_mask, &mask, sizeof(mask));
	}
	result = REAL(sigaction)(signal, &kernel, NULL);
	if (!result)
		action->trampoline = kernel.sa_sigaction == trampoline;
	return result;
}

static void after_fork_in_child(void)
{
	actions_lock.state = 0;
}

// The client is about to open /dev/kvm. The engine installs its handlers for faults later, over ours.
void signals_start(void)
{
	unsigned long old;

	if (__atomic_load_n(&active, __ATOMIC_ACQUIRE))
		return;
	old = lock_actions();
	if (!active) {
		for (int signal = 1; signal <= SIGNALS; signal++) {
			struct sigaction now;

			if (signal == SIGKILL || signal == SIGSTOP || REAL(sigaction)(signal, NULL, &now) < 0)
				continue;
			actions[signal] = from_sigaction(&now);
			if (is_handler(actions[signal].handler) || is_fault(signal))
				apply(signal, is_fault(signal));
		}
		pthread_atfork(NULL, NULL, after_fork_in_child);
		__atomic_store_n(&active, true, __ATOMIC_RELEASE);
	}
	unlock_actions(old);
}

static bool passes(int signal)
{
	return !active || thread.inside || signal < 1 || signal > SIGNALS || foreign_process();
}

EXPORT int sigaction(int signal, const struct sigaction *new, struct sigaction *old_action)
{
	struct action before;
	unsigned long old;
	int result = 0;

	if (passes(signal) || signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33)
		return REAL(sigaction)(signal, new, old_action);
	old = lock_actions();
	before = actions[signal];
	if (new) {
		actions[signal] = from_sigaction(new);
		actions[signal].trampoline = before.trampoline;
		// Faults stay the engine's.
		if (!is_fault(signal))
			result = apply(signal, false);
		if (result < 0)
			actions[signal] = before;
	}
	unlock_actions(old);
	if (old_action && !result)
		to_sigaction(&before, old_action);
	return result;
}

// The functions of old are sigaction() with fixed flags; inside the C library they do not come by here.
static sighandler_t install(int signal, sighandler_t handler, int flags)
{
	struct sigaction new = { .sa_handler = handler, .sa_flags = flags }, old;

	if (handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	if (!(flags & SA_NODEFER) && signal >= 1 && signal <= SIGNALS)
		sigaddset(&new.sa_mask, signal);
	return sigaction(signal, &new, &old) < 0 ? SIG_ERR : old.sa_handler;
}

EXPORT sighandler_t signal(int number, sighandler_t handler)
{
	if (passes(number))
		return REAL(signal)(number, handler);
	return install(number, handler, SA_RESTART);
}

sighandler_t bsd_signal(int number, sighandler_t handler);
EXPORT sighandler_t bsd_signal(int number, sighandler_t handler)
{
	return signal(number, handler);
}

EXPORT sighandler_t ssignal(int number, sighandler_t handler)
{
	return signal(number, handler);
}

EXPORT sighandler_t sysv_signal(int signal, sighandler_t handler)
{
	if (passes(signal))
		return REAL(sysv_signal)(signal, handler);
	return install(signal, handler, SA_RESETHAND | SA_NODEFER);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" // called by old programs only
EXPORT sighandler_t sigset(int signal, sighandler_t disposition)
{
	struct sigaction now;
	sigset_t set, before;
	sighandler_t old;

	if (passes(signal))
		return REAL(sigset)(signal, disposition);
	sigemptyset(&set);
	sigaddset(&set, signal);
	if (disposition == SIG_HOLD) {
		if (sigaction(signal, NULL, &now) < 0 || sigprocmask(SIG_BLOCK, &set, &before) < 0)
			return SIG_ERR;
		old = now.sa_handler;
	} else {
		old = install(signal, disposition, SA_NODEFER);
		if (old == SIG_ERR || sigprocmask(SIG_UNBLOCK, &set, &before) < 0)
			return SIG_ERR;
	}
	return sigismember(&before, signal) ? SIG_HOLD : old;
}
#pragma GCC diagnostic pop

EXPORT sighandler_t __sysv_signal(int signal, sighandler_t handler)
{
	return sysv_signal(signal, handler);
}

// ---- masks ----
static int change_mask(int (*real)(int, const sigset_t *, sigset_t *), int how, const sigset_t *set, sigset_t *old)
{
	unsigned long wanted = 0, blocked = thread.blocked_faults;
	sigset_t allowed;
	int result;

	if (!active || thread.inside)
		return real(how, set, old);
	if (set) {
		memcpy(&wanted, set, sizeof(wanted));
		allowed = *set;
		// Asked to be unblocked they may be, for they could have been blocked before.
		if (how != SIG_UNBLOCK)
			for (int signal = 1; signal <= SIGNALS; signal++)
				if (is_fault(signal))
					sigdelset(&allowed, signal);
	}
	result = real(how, set ? &allowed : NULL, old);
	if (result)
		return result;
	if (old)
		for (int signal = 1; signal <= SIGNALS; signal++)
			if (blocked & BIT(signal))
				sigaddset(old, signal);
	if (set)
		thread.blocked_faults = FAULTS & (how == SIG_BLOCK   ? blocked | wanted :
						  how == SIG_UNBLOCK ? blocked & ~wanted :
								       wanted);
	return result;
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	return change_mask(REAL(sigprocmask), how, set, old);
}

EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	return change_mask(REAL(pthread_sigmask), how, set, old);
}

// After KVM_SET_SIGNAL_MASK: what it lets through in KVM_RUN must not do its default action then, if the
// thread keeps it blocked otherwise.
void signals_run_mask(unsigned long run_mask)
{
	unsigned long blocked, old;

	raw_mask(SIG_BLOCK, 0, &blocked);
	old = lock_actions();
	for (int signal = 1; signal <= SIGNALS; signal++) {
		bool wanted = (blocked & BIT(signal)) && !(run_mask & BIT(signal));

		if (!wanted || is_fault(signal) || signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33)
			continue;
		if (actions[signal].handler == (void *)SIG_DFL && !actions[signal].trampoline)
			apply(signal, true);
	}
	unlock_actions(old);
}
