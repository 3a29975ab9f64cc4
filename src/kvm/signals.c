// SPDX-License-Identifier: MIT
// Signals of the client while its thread is in a call of ours.
//
// The kernel runs handlers when an ioctl returns. Ours would run in the middle of one: in translated
// code, or with locks held, where a handler that makes KVM calls itself or leaves by siglongjmp() would
// do harm. So a handler calls cetkvm_signal() first. If its thread is in a call, the signal is sent to
// the thread once more and all signals are blocked as soon as the handler returns: it stays pending in
// the kernel, KVM_RUN is told to end, and when the call is over the old mask comes back and the signal
// with it. api.rst: KVM_RUN (EINTR), KVM_SET_SIGNAL_MASK.
//
// A queued real-time signal that is sent once more comes behind those of its number that were queued
// meanwhile.
//
// Several handlers may be stacked up on each other when they get here. The outermost of them stores the
// mask to come back to, last.
#include "cetkvm/cetkvm.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#define BIT(signal) (1ull << ((signal) - 1))
// Never blocked: exceptions of this thread's own code, and what the C library uses inside.
#define NEVER_BLOCKED (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGILL) | BIT(SIGFPE) | BIT(SIGTRAP) | BIT(SIGSYS) | \
		       BIT(32) | BIT(33))
#define FAULTS (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGILL) | BIT(SIGFPE))

static __thread struct {
	volatile unsigned depth;    // calls of the API in progress
	volatile unsigned handlers; // that are in cetkvm_signal()
	volatile bool taken;	    // there are signals for the end of the call
	bool faults_come;	    // the faults are known not to be blocked
	volatile u64 mask;	    // for the end of the call
	struct vcpu *volatile vcpu; // in KVM_RUN
	volatile unsigned stop;	    // cetkvm_stop_word()
} me __attribute__((tls_model("initial-exec")));

static long set_mask(int how, u64 mask, u64 *old)
{
	return raw_syscall6(SYS_rt_sigprocmask, how, (long)&mask, (long)old, 8, 0, 0);
}

void signals_enter(void)
{
	me.depth++;
}

void signals_leave(void)
{
	if (--me.depth || !me.taken)
		return;
	me.taken = false;
	set_mask(SIG_SETMASK, me.mask, NULL); // handlers run here, and may not come back
}

// Translated code is told by these signals what its guest may not do, and accesses to guest memory that the
// client has taken it away.
void signals_let_faults_come(void)
{
	if (!me.faults_come)
		set_mask(SIG_UNBLOCK, FAULTS, NULL);
	me.faults_come = true;
}

void signals_enter_run(struct vcpu *vcpu)
{
	me.vcpu = vcpu;
}

void signals_leave_run(void)
{
	me.vcpu = NULL;
}

bool signals_pending(void)
{
	return me.taken || me.stop;
}

// KVM_SET_SIGNAL_MASK: the mask for KVM_RUN, and back. What arrives in between is pending under the
// old mask afterwards. Returns false, and changes nothing, if there are signals already.
bool signals_swap_mask(u64 mask, u64 *old)
{
	set_mask(SIG_SETMASK, ~NEVER_BLOCKED, old);
	if (me.taken) // stays so until signals_leave()
		return false;
	set_mask(SIG_SETMASK, mask & ~NEVER_BLOCKED, NULL);
	return true;
}

void signals_restore_mask(u64 old)
{
	set_mask(SIG_SETMASK, ~NEVER_BLOCKED, NULL);
	me.mask = old;
	me.taken = true;
}

__attribute__((visibility("default"))) int cetkvm_signal(int signal, void *info, void *context)
{
	ucontext_t *uc = context;
	siginfo_t copy;
	struct vcpu *vcpu;
	u64 mask, all = ~NEVER_BLOCKED;
	bool outermost;

	if (!me.depth)
		return 0;
	outermost = !me.handlers++;
	memcpy(&copy, info, sizeof(copy));
	// Blocked until the call ends; where it is blocked now, that is while its handler runs, if the
	// handler does not let itself be interrupted by its own signal.
	set_mask(SIG_BLOCK, all, NULL);
	raw_syscall6(SYS_rt_tgsigqueueinfo, raw_syscall6(SYS_getpid, 0, 0, 0, 0, 0, 0),
		     raw_syscall6(SYS_gettid, 0, 0, 0, 0, 0, 0), signal, (long)&copy, 0, 0);
	memcpy(&mask, &uc->uc_sigmask, sizeof(mask));
	if (outermost)
		me.mask = mask;
	memcpy(&uc->uc_sigmask, &all, sizeof(all));
	me.taken = true;
	vcpu = me.vcpu;
	if (vcpu)
		vcpu_kick(vcpu);
	me.handlers--;
	return 1;
}

__attribute__((visibility("default"))) volatile unsigned *cetkvm_stop_word(void)
{
	return &me.stop;
}
