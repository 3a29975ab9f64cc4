// SPDX-License-Identifier: MIT
// fork, exec of a small static program, and the wait for it.
#include "bench.h"
#include <sys/wait.h>

static void work(void)
{
	for (int i = 0; i < 200; i++) {
		pid_t child = fork();

		if (child == 0) {
			/* The static busybox is there in the guest and on the host. */
			execl("/bin/busybox", "true", (char *)NULL);
			_exit(127);
		}
		waitpid(child, NULL, 0);
	}
}
