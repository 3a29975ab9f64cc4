// SPDX-License-Identifier: MIT
// memset and memcpy of the C library, in and out of the caches.
#include "bench.h"

#define BIG (16 << 20)

static char a[BIG], b[BIG];

static void work(void)
{
	for (int i = 0; i < 30; i++) {
		memset(a, i, BIG);
		memcpy(b, a, BIG);
		USE(b[i]);
	}
	for (int i = 0; i < 300000; i++) {
		memset(a, i, 4096);
		memcpy(b, a, 4096);
		USE(b[i & 4095]);
	}
}
