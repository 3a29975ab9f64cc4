/* SPDX-License-Identifier: MIT */
/*
 * What every benchmark program shares: main, which times work() and prints "name seconds". Where
 * the kernel offers user shadow stacks they are turned on first, so that a guest with CET pays for
 * it here; elsewhere that is one failing system call.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void work(void);

/* Keeps the compiler from leaving out what nobody looks at. */
#define USE(value) __asm__ volatile("" : : "g"(value) : "memory")

static inline uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static inline double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

#define ARCH_SHSTK_ENABLE 0x5001
#define ARCH_SHSTK_SHSTK 1

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	double begin;
	long status;

	/* In line, and main never returns: this frame's return address is not on the shadow stack. */
	__asm__ volatile("syscall" : "=a"(status)
		: "a"((long)SYS_arch_prctl), "D"((long)ARCH_SHSTK_ENABLE), "S"((long)ARCH_SHSTK_SHSTK)
		: "rcx", "r11", "memory");
	begin = seconds_now();
	work();
	printf("%s %.6f\n", name ? name + 1 : argv[0], seconds_now() - begin);
	fflush(stdout);
	_exit(0);
}

#endif
