// SPDX-License-Identifier: MIT
// Recursive calls: nothing but CALL, RET and a little stack.
#include "bench.h"

static __attribute__((noinline)) unsigned fib(unsigned n)
{
	unsigned result = n < 2 ? n : fib(n - 1) + fib(n - 2);

	/* Neither a loop nor a tail call may take the place of the calls. */
	__asm__ volatile("" : "+r"(result));
	return result;
}

static void work(void)
{
	USE(fib(38));
}
