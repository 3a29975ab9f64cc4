// SPDX-License-Identifier: MIT
// Page faults: memory mapped, touched page by page, unmapped.
#include "bench.h"
#include <sys/mman.h>

#define SIZE (32 << 20)

static void work(void)
{
	for (int round = 0; round < 12; round++) {
		char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			exit(1);
		/* Small pages everywhere, so that every run takes the same number of faults. */
		madvise(p, SIZE, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < SIZE; i += 4096)
			p[i] = 1;
		munmap(p, SIZE);
	}
}
