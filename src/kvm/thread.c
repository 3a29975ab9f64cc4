// SPDX-License-Identifier: MIT
// Threads of our own in the client's process: the one for timers and the one for irqfds.
#include "kvm/kvm.h"

#include <signal.h>

int thread_start(void *(*main)(void *), void *argument)
{
	pthread_attr_t attributes;
	sigset_t all, old;
	pthread_t thread;
	int result;

	// Signals are the client's: none of its handlers runs on our thread.
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	result = pthread_create(&thread, &attributes, main, argument);
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -result;
}
