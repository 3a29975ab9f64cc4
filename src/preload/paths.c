// SPDX-License-Identifier: MIT
// Paths that mean something else under `cetkvm exec`: the device, and the kernel modules' parameters
// by which clients and tests find out what KVM is set to.
#include "preload/preload.h"

#include "cetkvm/cetkvm.h"

#include <cpuid.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct parameter {
	const char *path, *content;
	const char *vendor; // exists on hosts of this vendor only
} parameters[] = {
	{ "/sys/module/kvm/parameters/force_emulation_prefix", "0\n", NULL },
	{ "/sys/module/kvm/parameters/enable_pmu", "N\n", NULL },
	{ "/sys/module/kvm/parameters/ignore_msrs", "N\n", NULL },
	{ "/sys/module/kvm/parameters/eager_page_split", "N\n", NULL },
	{ "/sys/module/kvm/parameters/tdp_mmu", "N\n", NULL },
	{ "/sys/module/kvm_intel/parameters/ept", "Y\n", "GenuineIntel" },
	{ "/sys/module/kvm_intel/parameters/unrestricted_guest", "Y\n", "GenuineIntel" },
	{ "/sys/module/kvm_intel/parameters/nested", "N\n", "GenuineIntel" },
	{ "/sys/module/kvm_amd/parameters/npt", "Y\n", "AuthenticAMD" },
	{ "/sys/module/kvm_amd/parameters/avic", "N\n", "AuthenticAMD" },
	{ "/sys/module/kvm_amd/parameters/lbrv", "0\n", "AuthenticAMD" },
	{ "/sys/module/kvm_amd/parameters/nested", "0\n", "AuthenticAMD" },
};

static bool host_is(const char *vendor)
{
	unsigned eax, name[3];

	__cpuid(0, eax, name[0], name[2], name[1]);
	return !memcmp(name, vendor, 12);
}

// The absolute path without links, if the file could be one of ours: that is, if its last component
// says so.
static bool absolute(int directory, const char *path, char result[PATH_MAX])
{
	char joined[PATH_MAX + 32], parent[PATH_MAX];
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	size_t length = slash ? (size_t)(slash - path) : 0;

	if (*path == '/')
		snprintf(joined, sizeof(joined), "%.*s/", (int)length, path);
	else if (directory == AT_FDCWD)
		snprintf(joined, sizeof(joined), "./%.*s", (int)length, path);
	else
		snprintf(joined, sizeof(joined), "/proc/self/fd/%d/%.*s", directory, (int)length, path);
	if (!realpath(joined, parent))
		return false;
	return snprintf(result, PATH_MAX, "%s/%s", parent, name) < PATH_MAX;
}

enum path_kind path_classify(int directory, const char *path, const char **content)
{
	char resolved[PATH_MAX];
	const char *name;
	int saved = errno;
	enum path_kind kind = PATH_OTHER;

	if (!path || !*path)
		return PATH_OTHER;
	name = strrchr(path, '/');
	name = name ? name + 1 : path;
	if (!strncmp(path, "/proc/", 6) || !strncmp(path, "/dev/fd/", 8)) {
		// A descriptor opened anew.
		ssize_t length = strstr(path, "/fd/") ? readlink(path, resolved, sizeof(resolved) - 1) : -1;

		resolved[length < 0 ? 0 : length] = 0;
		if (!strcmp(resolved, "/dev/kvm") || !strcmp(resolved, "/memfd:kvm (deleted)"))
			kind = PATH_KVM;
	} else if (!strcmp(name, "kvm")) {
		if (!strcmp(path, "/dev/kvm") || (absolute(directory, path, resolved) && !strcmp(resolved, "/dev/kvm")))
			kind = PATH_KVM;
	} else if (!strncmp(path, "/sys/module/kvm", 15)) {
		for (unsigned i = 0; i < sizeof(parameters) / sizeof(parameters[0]); i++)
			if (!strcmp(path, parameters[i].path) &&
			    (!parameters[i].vendor || host_is(parameters[i].vendor))) {
				kind = PATH_PARAMETER;
				*content = parameters[i].content;
			}
	}
	errno = saved;
	return kind;
}

static int open_content(const char *content, int flags)
{
	int fd;

	if ((flags & O_ACCMODE) != O_RDONLY) {
		errno = EACCES;
		return -1;
	}
	fd = memfd_create("kvm-parameter", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
	if (fd < 0)
		return -1;
	if (pwrite(fd, content, strlen(content), 0) < 0) {
		int error = errno;

		REAL(close)(fd);
		errno = error;
		return -1;
	}
	return fd;
}

int path_open(enum path_kind kind, const char *content, int flags)
{
	int fd;

	if (flags & O_DIRECTORY) {
		errno = ENOTDIR;
		return -1;
	}
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
		errno = EEXIST;
		return -1;
	}
	if (kind == PATH_PARAMETER)
		return open_content(content, flags);
	if (flags & O_PATH)
		return memfd_create("kvm", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
	signals_start();
	cancel_enter(-1);
	thread.inside++;
	fd = cetkvm_open();
	thread.inside--;
	cancel_leave();
	if (fd >= 0 && !(flags & O_CLOEXEC))
		REAL(fcntl)(fd, F_SETFD, 0);
	return fd;
}

void path_stat(enum path_kind kind, const char *content, struct statx *status)
{
	memset(status, 0, sizeof(*status));
	status->stx_mask = STATX_BASIC_STATS;
	status->stx_blksize = 4096;
	status->stx_nlink = 1;
	status->stx_ino = kind == PATH_KVM ? 1 : 2;
	if (kind == PATH_KVM) {
		status->stx_mode = S_IFCHR | 0666;
		status->stx_rdev_major = 10; // miscellaneous devices
		status->stx_rdev_minor = 232;
	} else {
		status->stx_mode = S_IFREG | 0444;
		status->stx_size = strlen(content);
	}
}
