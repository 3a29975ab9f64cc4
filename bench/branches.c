// SPDX-License-Identifier: MIT
// Branches that no predictor learns, some of them through a table.
#include "bench.h"

static uint64_t count[8];

static __attribute__((noinline)) void step(unsigned kind, uint64_t x)
{
	switch (kind) {
	case 0: count[0] += x; break;
	case 1: count[1] ^= x; break;
	case 2: count[2] += x >> 3; break;
	case 3: count[3] -= x; break;
	case 4: count[4] |= x & 0xff; break;
	case 5: count[5] += count[0]; break;
	case 6: count[6] ^= count[1] + 1; break;
	default: count[7]++; break;
	}
}

static void work(void)
{
	uint64_t state = 123456789;

	for (int i = 0; i < 20000000; i++) {
		uint64_t x = random_next(&state);

		if (x & 1)
			count[x >> 1 & 7]++;
		else if (x & 16)
			count[0] -= x;
		step(x >> 5 & 7, x);
	}
	USE(count[0] + count[7]);
}
