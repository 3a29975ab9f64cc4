// SPDX-License-Identifier: MIT
// Scalar double precision, each operation waiting for the one before.
#include "bench.h"

static void work(void)
{
	double x = 1.0, y = 0.5;

	for (int i = 0; i < 30000000; i++) {
		x = x * 0.999999 + y;
		y = y / 1.000001 + 1e-9;
	}
	USE(x + y);
}
