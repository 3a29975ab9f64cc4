// SPDX-License-Identifier: MIT
// Integer arithmetic: shifts, adds, multiplications, a division now and then.
#include "bench.h"

static void work(void)
{
	uint64_t state = 88172645463325252ull, sum = 0;

	for (int i = 0; i < 60000000; i++) {
		uint64_t x = random_next(&state);

		sum += (x * 0x9e3779b97f4a7c15ull) >> 17 ^ (sum << 3 | sum >> 61);
		if ((i & 15) == 0)
			sum += x / (sum | 1);
	}
	USE(sum);
}
