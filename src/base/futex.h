// SPDX-License-Identifier: MIT
// Sleeping and waking by futex, and a small lock built on it. System calls are made in line: unlike
// libc's wrappers these can be used while the guest's vector state is in the host's registers.
#ifndef CETKVM_BASE_FUTEX_H
#define CETKVM_BASE_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

static inline long raw_syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static inline long raw_write(int fd, const void *data, unsigned long size)
{
	return raw_syscall6(SYS_write, fd, (long)data, (long)size, 0, 0, 0);
}

// Sleeps while *word == value. Returns 0 or a negative errno: -EAGAIN, -EINTR, -ETIMEDOUT.
// `ns` is relative. There always is a timeout, so that a handled signal means -EINTR even when its
// handler was installed with SA_RESTART.
static inline long futex_wait(const volatile uint32_t *word, uint32_t value, uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u) };

	return raw_syscall6(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, value, (long)&t, 0, 0);
}

static inline void futex_wake(const volatile uint32_t *word, int waiters)
{
	raw_syscall6(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, waiters, 0, 0, 0);
}

// 0 free, 1 taken, 2 taken and somebody may be asleep.
struct lock {
	uint32_t state;
};

static inline void lock_take(struct lock *lock)
{
	uint32_t old = 0;

	if (__atomic_compare_exchange_n(&lock->state, &old, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	for (int i = 0; i < 100; i++) {
		old = 0;
		if (__atomic_load_n(&lock->state, __ATOMIC_RELAXED) == 0 &&
		    __atomic_compare_exchange_n(&lock->state, &old, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return;
		__builtin_ia32_pause();
	}
	while (__atomic_exchange_n(&lock->state, 2, __ATOMIC_ACQUIRE) != 0)
		futex_wait(&lock->state, 2, 1000000000);
}

static inline void lock_release(struct lock *lock)
{
	if (__atomic_exchange_n(&lock->state, 0, __ATOMIC_RELEASE) == 2)
		futex_wake(&lock->state, 1);
}

#endif
