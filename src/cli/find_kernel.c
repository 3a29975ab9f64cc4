// SPDX-License-Identifier: MIT
// Kernels installed on this host.
#include "cli/find_kernel.h"

#include "vmm/message.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BOOT_FOLDER     "/boot"
#define KERNEL_PREFIX   "vmlinuz-"
#define KERNELS_MAX     32
#define WANTED_OPTION   "CONFIG_X86_USER_SHADOW_STACK=y"

static bool config_has_shadow_stack(const char *version)
{
	char path[512], line[256];
	bool found = false;
	FILE *config;

	snprintf(path, sizeof(path), BOOT_FOLDER "/config-%s", version);
	config = fopen(path, "re");
	if (!config)
		return false;
	while (!found && fgets(line, sizeof(line), config))
		found = !strncmp(line, WANTED_OPTION, strlen(WANTED_OPTION));
	fclose(config);
	return found;
}

static int newest_first(const void *a, const void *b)
{
	return strverscmp(((const struct found_kernel *)b)->path, ((const struct found_kernel *)a)->path);
}

size_t find_kernels(struct found_kernel *kernels, size_t room)
{
	DIR *folder = opendir(BOOT_FOLDER);
	struct dirent *entry;
	size_t count = 0;

	while (folder && count < room && (entry = readdir(folder))) {
		struct found_kernel *kernel = &kernels[count];

		if (strncmp(entry->d_name, KERNEL_PREFIX, strlen(KERNEL_PREFIX)))
			continue;
		snprintf(kernel->path, sizeof(kernel->path), BOOT_FOLDER "/%s", entry->d_name);
		kernel->shadow_stack = config_has_shadow_stack(entry->d_name + strlen(KERNEL_PREFIX));
		kernel->readable = !access(kernel->path, R_OK);
		count++;
	}
	if (folder)
		closedir(folder);
	qsort(kernels, count, sizeof(*kernels), newest_first);
	return count;
}

const char *find_default_kernel(void)
{
	static struct found_kernel kernels[KERNELS_MAX];
	const char *named = getenv("CETKVM_KERNEL");
	size_t count, i;

	if (named && *named)
		return named;
	count = find_kernels(kernels, KERNELS_MAX);
	for (i = 0; i < count; i++)
		if (kernels[i].shadow_stack && kernels[i].readable)
			return kernels[i].path;
	for (i = 0; i < count; i++)
		if (kernels[i].shadow_stack) {
			vmm_message("%s has shadow stacks but cannot be read by you; name a kernel with --kernel",
				    kernels[i].path);
			return NULL;
		}
	vmm_message("no kernel with shadow stacks in " BOOT_FOLDER " (Linux 6.6 or later with " WANTED_OPTION
		    "); name one with --kernel");
	return NULL;
}
