// SPDX-License-Identifier: MIT
// KVM as this project's library serves it, in this process.
#include "vmm/backend.h"

#include <errno.h>
#include <stdarg.h>

// Weak until the library is part of every build.
int cetkvm_open(void) __attribute__((weak));
int cetkvm_ioctl(int fd, unsigned long request, ...) __attribute__((weak));
void *cetkvm_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) __attribute__((weak));
int cetkvm_close(int fd) __attribute__((weak));
int cetkvm_set_option(const char *name, const char *value) __attribute__((weak));
const char *cetkvm_host_problem(void) __attribute__((weak));

static int library_open(void)
{
	if (!cetkvm_open) {
		errno = ENOSYS;
		return -1;
	}
	return cetkvm_open();
}

static int library_ioctl(int fd, unsigned long request, void *argument)
{
	return cetkvm_ioctl(fd, request, argument);
}

static const char *library_problem(void)
{
	return cetkvm_host_problem ? cetkvm_host_problem() : NULL;
}

static int library_set_option(const char *name, const char *value)
{
	if (!cetkvm_set_option) {
		errno = ENOSYS;
		return -1;
	}
	return cetkvm_set_option(name, value);
}

static void *library_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return cetkvm_mmap(address, length, protection, flags, fd, offset);
}

static int library_close(int fd)
{
	return cetkvm_close(fd);
}

const struct kvm_backend *kvm_backend_library(void)
{
	static const struct kvm_backend backend = {
		.name = "built-in KVM",
		.any_vendor = true,
		.problem = library_problem,
		.open = library_open,
		.ioctl = library_ioctl,
		.mmap = library_mmap,
		.close = library_close,
		.set_option = library_set_option,
	};

	return &backend;
}
