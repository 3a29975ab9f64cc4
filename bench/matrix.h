/* SPDX-License-Identifier: MIT */
/* The product of two single-precision matrices with vectors of WIDTH floats. */
#include "bench.h"

#define N 320

typedef float vector __attribute__((vector_size(WIDTH * 4)));
static float a[N][N], b[N][N] __attribute__((aligned(64))), c[N][N] __attribute__((aligned(64)));

static void work(void)
{
	uint64_t state = 5;

	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = random_next(&state) % 1000 / 1000.0f;
			b[i][j] = random_next(&state) % 1000 / 1000.0f;
		}
	for (int round = 0; round < ROUNDS; round++)
		for (int i = 0; i < N; i++) {
			for (int j = 0; j < N; j += WIDTH) {
				vector sum = {0};

				for (int k = 0; k < N; k++)
					sum += a[i][k] * *(vector *)&b[k][j];
				*(vector *)&c[i][j] = sum;
			}
		}
	USE(c[1][1]);
}
