// SPDX-License-Identifier: MIT
// Scalar double precision, operations that do not wait for one another.
#include "bench.h"

static void work(void)
{
	static volatile double seed = 1.5;
	double a = seed, b = seed + 1, c = seed + 2, d = seed + 3;

	for (int i = 0; i < 80000000; i++) {
		a = a * 0.9999 + 0.1;
		b = b * 0.9998 + 0.2;
		c = c * 0.9997 + 0.3;
		d = d * 0.9996 + 0.4;
		__asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));
	}
	USE(a + b + c + d);
}
