// SPDX-License-Identifier: MIT
// Host signals that mean something to the guest: exceptions in translated code, and accesses of C
// code to guest memory that the client has taken away. Everything else goes to whoever handled the
// signal before.
#include "base/log.h"
#include "cpu/guest_access.h"
#include "cpu/jit.h"

#include <signal.h>
#include <string.h>
#include <ucontext.h>

__thread struct cpu *jit_running __attribute__((tls_model("initial-exec")));

static struct sigaction previous[65];

static void chain(int signal, siginfo_t *info, void *context)
{
	struct sigaction *old = &previous[signal];

	if (old->sa_flags & SA_SIGINFO) {
		old->sa_sigaction(signal, info, context);
	} else if (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN) {
		// As if nobody had handled it: the instruction faults again with the default action.
		struct sigaction reset = { .sa_handler = SIG_DFL };

		sigaction(signal, &reset, NULL);
	} else {
		old->sa_handler(signal);
	}
}

static u64 guest_access_fixup(u64 pc)
{
	for (const struct exception_entry *e = __start_cet_extable; e < __stop_cet_extable; e++)
		if (e->ip == pc)
			return e->fixup;
	return 0;
}

static void handler(int signal, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	struct cpu *cpu = jit_running;
	u64 pc = regs[REG_RIP];

	if (cpu && info->si_code > 0) {
		struct jit *jit = cpu->jit;

		if (pc - (u64)jit->rx < jit->size) {
			jit->fault_pc = pc;
			jit->fault_signal = signal;
			jit->fault_trap = regs[REG_TRAPNO];
			jit->fault_address = (u64)info->si_addr;
			jit->fault_flags = regs[REG_EFL];
			regs[REG_RIP] = (greg_t)jit->host_fault;
			return;
		}
	}
	u64 fixup = guest_access_fixup(pc);

	if (fixup && info->si_code > 0) {
		if (cpu)
			cpu->fault_hva = (u64)info->si_addr;
		regs[REG_RIP] = fixup;
		return;
	}
	chain(signal, info, context);
}

// Once per process.
void jit_install_signal_handlers(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static bool installed;
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	pthread_mutex_lock(&lock);
	if (!installed)
		for (unsigned i = 0; i < 4; i++)
			sigaction(signals[i], &action, &previous[signals[i]]);
	installed = true;
	pthread_mutex_unlock(&lock);
}
