// SPDX-License-Identifier: MIT
// The only door from the VMM to a KVM implementation: four calls with the errno conventions of the
// system calls. Behind it is either the library of this project or a kernel's /dev/kvm.
#ifndef CETKVM_VMM_BACKEND_H
#define CETKVM_VMM_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define REQUEST_GUEST_PERMISSION 0x1025 // ARCH_REQ_XCOMP_GUEST_PERM

struct kvm_backend {
	const char *name; // for messages
	bool any_vendor;  // serves processors of any vendor, whatever the host's
	// After open() failed: why this host cannot do it, or NULL if errno says it all. May be NULL.
	const char *(*problem)(void);
	int (*open)(void);
	int (*ioctl)(int fd, unsigned long request, void *argument);
	void *(*mmap)(void *address, size_t length, int protection, int flags, int fd, off_t offset);
	int (*close)(int fd);
	// Ends KVM_RUN on a vCPU whose thread has been sent a signal. NULL: the signal does it alone.
	void (*kick)(int vcpu_fd);
	// Asks for permission to give guests the state component (arch_prctl(2)). 0, or -1: there is none.
	int (*permit)(unsigned component);
	// What no kernel has: "trace-cp", "symbols", "grain", "kvm-abi", "host-cpuid". Before open(). NULL for a device.
	int (*set_option)(const char *name, const char *value);
};

// The library, and a device file served by a kernel (one path per process).
const struct kvm_backend *kvm_backend_library(void);
const struct kvm_backend *kvm_backend_device(const char *path);

#endif
