// SPDX-License-Identifier: MIT
// The C library's qsort on random numbers: an indirect call for every comparison.
#include "bench.h"

#define N 1500000

static int numbers[N];

static int compare(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return x < y ? -1 : x > y;
}

static void work(void)
{
	uint64_t state = 7;

	for (int i = 0; i < N; i++)
		numbers[i] = random_next(&state);
	qsort(numbers, N, sizeof(numbers[0]), compare);
	USE(numbers[N / 2]);
}
