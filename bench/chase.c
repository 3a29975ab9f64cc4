// SPDX-License-Identifier: MIT
// A chain of pointers in random order through 8 MiB: latency of loads, and of address translation.
#include "bench.h"

#define N (1 << 20)

static void *cells[N];
static uint32_t order[N];

static void work(void)
{
	uint64_t state = 99;
	void **p = &cells[0];

	for (uint32_t i = 0; i < N; i++)
		order[i] = i;
	for (uint32_t i = N - 1; i > 0; i--) {
		uint32_t j = random_next(&state) % i, t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (uint32_t i = 0; i < N; i++)
		cells[order[i]] = &cells[order[(i + 1) % N]];
	for (int i = 0; i < 10000000; i++)
		p = *p;
	USE(p);
}
