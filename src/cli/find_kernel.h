// SPDX-License-Identifier: MIT
// Kernels installed on this host that know shadow stacks.
#ifndef CETKVM_CLI_FIND_KERNEL_H
#define CETKVM_CLI_FIND_KERNEL_H

#include <stdbool.h>
#include <stddef.h>

struct found_kernel {
	char path[512];
	bool shadow_stack; // its configuration has CONFIG_X86_USER_SHADOW_STACK
	bool readable;
};

// Kernels in /boot, newest version first. Returns how many were stored.
size_t find_kernels(struct found_kernel *kernels, size_t room);

// The one to use when --kernel is not given: $CETKVM_KERNEL, or the newest fit one in /boot. NULL
// after one line that says what to do.
const char *find_default_kernel(void);

#endif
