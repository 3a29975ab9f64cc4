// SPDX-License-Identifier: MIT
// KVM as the kernel serves it: plain system calls on a device file.
#include "vmm/backend.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *device_path;

static int device_open(void)
{
	return open(device_path, O_RDWR | O_CLOEXEC);
}

static int device_ioctl(int fd, unsigned long request, void *argument)
{
	return ioctl(fd, request, argument);
}

static int device_permit(unsigned component)
{
	return (int)syscall(SYS_arch_prctl, REQUEST_GUEST_PERMISSION, component);
}

const struct kvm_backend *kvm_backend_device(const char *path)
{
	static struct kvm_backend backend = {
		.open = device_open,
		.ioctl = device_ioctl,
		.mmap = mmap,
		.close = close,
		.permit = device_permit,
	};

	device_path = path;
	backend.name = path;
	return &backend;
}
