// SPDX-License-Identifier: MIT
// Takes over what `cetkvm exec` was told: see src/cli/exec.c.
#include "preload/preload.h"

#include "cetkvm/cetkvm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool patch_cpuid;

static void set(const char *name, const char *value)
{
	if (!strcmp(name, "client-cpuid"))
		patch_cpuid = !strcmp(value, "on");
	else if (cetkvm_set_option(name, value) < 0)
		fprintf(stderr, "cetkvm: option %s: %s\n", name, strerror(errno));
}

__attribute__((constructor)) static void start(void)
{
	const char *text = getenv("CETKVM_OPTIONS");
	char *copy = text ? strdup(text) : NULL, *line, *next, *value;

	thread.inside++;
	for (line = copy; line && *line; line = next) {
		next = line + strcspn(line, "\n");
		if (*next)
			*next++ = 0;
		value = strchr(line, '=');
		if (value) {
			*value++ = 0;
			set(line, value);
		}
	}
	free(copy);
	thread.inside--;
	if (patch_cpuid)
		client_cpuid_start();
}
