// SPDX-License-Identifier: MIT
// KVM as this project's library serves it, in this process.
#include "vmm/backend.h"

#include "cetkvm/cetkvm.h"

static int library_open(void)
{
	return cetkvm_open();
}

static int library_ioctl(int fd, unsigned long request, void *argument)
{
	return cetkvm_ioctl(fd, request, argument);
}

static const char *library_problem(void)
{
	return cetkvm_host_problem();
}

static int library_set_option(const char *name, const char *value)
{
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

static void library_kick(int vcpu_fd)
{
	cetkvm_kick(vcpu_fd);
}

static int library_permit(unsigned component)
{
	return (int)cetkvm_arch_prctl(REQUEST_GUEST_PERMISSION, component);
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
		.kick = library_kick,
		.permit = library_permit,
		.set_option = library_set_option,
	};

	return &backend;
}
