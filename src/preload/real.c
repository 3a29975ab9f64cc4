// SPDX-License-Identifier: MIT
// The C library behind us.
#include "preload/preload.h"

#include <stdio.h>
#include <stdlib.h>

__thread struct thread thread;

void *real_symbol(const char *name)
{
	void *symbol = dlsym(RTLD_NEXT, name);

	if (!symbol) {
		fprintf(stderr, "cetkvm: the C library of this program has no %s\n", name);
		abort();
	}
	return symbol;
}
