// SPDX-License-Identifier: MIT
// The C library behind us.
#include "preload/preload.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

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

static pid_t owner;

static void after_fork_in_child(void)
{
	owner = getpid();
}

bool foreign_process(void)
{
	return owner && getpid() != owner;
}

__attribute__((constructor)) static void start(void)
{
	owner = getpid();
	pthread_atfork(NULL, NULL, after_fork_in_child);
}
