// SPDX-License-Identifier: MIT
// pthread_cancel() of a thread that is in KVM_RUN. With asynchronous cancellation the C library would unwind the
// thread's stack from wherever it is, which may be translated code. So calls of libcetkvm are made with
// deferred cancellation, and pthread_cancel() ends KVM_RUN; the thread goes when its old type comes back.
#include "preload/preload.h"

#include "base/futex.h"
#include "cetkvm/cetkvm.h"

#include <pthread.h>
#include <sched.h>

static struct lock threads_lock;
static struct thread *threads; // that have called KVM_RUN
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void thread_ends(void *opaque)
{
	struct thread *t = opaque, **link;

	lock_take(&threads_lock);
	for (link = &threads; *link && *link != t; link = &(*link)->next)
		;
	if (*link)
		*link = t->next;
	lock_release(&threads_lock);
}

static void after_fork_in_child(void)
{
	threads_lock.state = 0;
	threads = NULL;
	thread.listed = false;
}

static void start(void)
{
	pthread_key_create(&key, thread_ends);
	pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void list_thread(void)
{
	if (thread.listed)
		return;
	pthread_once(&once, start);
	thread.self = pthread_self();
	thread.stop = cetkvm_stop_word();
	lock_take(&threads_lock);
	thread.next = threads;
	threads = &thread;
	lock_release(&threads_lock);
	thread.listed = true;
	pthread_setspecific(key, &thread);
}

void cancel_enter(int run_fd)
{
	int old;

	if (run_fd >= 0) {
		list_thread();
		// First, so that who comes from here on finds it; see pthread_cancel().
		__atomic_store_n(&thread.running, run_fd + 1, __ATOMIC_SEQ_CST);
	}
	if (thread.asynchronous)
		REAL(pthread_setcanceltype)(PTHREAD_CANCEL_DEFERRED, &old);
}

void cancel_leave(void)
{
	int old;

	if (thread.running) {
		__atomic_store_n(&thread.running, 0, __ATOMIC_SEQ_CST);
		*thread.stop = 0;
	}
	if (thread.asynchronous) // a cancelled thread does not come back from this
		REAL(pthread_setcanceltype)(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
}

EXPORT int pthread_setcanceltype(int type, int *old)
{
	int result = REAL(pthread_setcanceltype)(type, old);

	if (!result && !thread.inside)
		thread.asynchronous = type == PTHREAD_CANCEL_ASYNCHRONOUS;
	return result;
}

EXPORT int pthread_cancel(pthread_t target)
{
	int result = REAL(pthread_cancel)(target);

	if (result)
		return result;
	// A thread stays in the list, and its stop word in place, while we have the lock.
	lock_take(&threads_lock);
	for (struct thread *t = threads; t; t = t->next) {
		int running = pthread_equal(t->self, target) ? __atomic_load_n(&t->running, __ATOMIC_SEQ_CST) : 0;

		if (!running)
			continue;
		__atomic_store_n(t->stop, 1, __ATOMIC_SEQ_CST);
		thread.inside++;
		cetkvm_kick(running - 1);
		thread.inside--;
	}
	lock_release(&threads_lock);
	return 0;
}
