// SPDX-License-Identifier: MIT
// Descriptors of KVM objects: ioctl() and mmap() on them, their copies, and their ends.
#include "preload/preload.h"

#include "cetkvm/cetkvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

bool ours(int fd)
{
	return !thread.inside && cetkvm_known(fd);
}

static void enter(int run_fd)
{
	cancel_enter(run_fd);
	thread.inside++;
}

static void leave(void)
{
	thread.inside--;
	cancel_leave();
}

// Descriptors of KVM that came to this process from another one, by exec or through a socket: the
// device can be used, a machine cannot.
static bool adopt(int fd)
{
	char path[32], target[32] = "";
	int new;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof(target) - 1) < 0)
		return false;
	if (!strncmp(target, "/memfd:kvm-", 11)) {
		errno = EIO;
		return false;
	}
	if (strncmp(target, "/memfd:kvm ", 11))
		return false;
	signals_start();
	enter(-1);
	new = cetkvm_open();
	if (new >= 0) {
		cetkvm_alias(new, fd);
		cetkvm_close(new);
	}
	leave();
	return new >= 0;
}

static int ioctl_ours(int fd, unsigned long request, void *argument)
{
	int result;

	enter((uint32_t)request == KVM_RUN ? fd : -1);
	result = cetkvm_ioctl(fd, request, argument);
	leave();
	if (!result && (uint32_t)request == KVM_SET_SIGNAL_MASK && argument) {
		unsigned long mask;

		memcpy(&mask, ((struct kvm_signal_mask *)argument)->sigset, sizeof(mask));
		signals_run_mask(mask);
	}
	return result;
}

static void forget(int fd)
{
	enter(-1);
	cetkvm_forget(fd);
	leave();
}

// For calls that are seldom and would do harm: is the file behind the number what we think? The C library
// may have closed it without us, and the number be used again.
static bool still_ours(int fd)
{
	char path[32], target[16] = "";
	ssize_t length;

	if (!ours(fd))
		return false;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, target, sizeof(target) - 1);
	if (length < 0 || !strncmp(target, "/memfd:kvm", 10))
		return true;
	forget(fd);
	return false;
}

// What the kernel does for every descriptor, whatever file it stands for.
static bool of_any_file(unsigned long request)
{
	return request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC;
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *argument;
	int result;

	va_start(args, request);
	argument = va_arg(args, void *);
	va_end(args);
	if (_IOC_TYPE(request) == KVMIO ? ours(fd) : !of_any_file(request) && still_ours(fd))
		return ioctl_ours(fd, request, argument);
	result = REAL(ioctl)(fd, request, argument);
	if (result < 0 && errno == ENOTTY && !thread.inside && _IOC_TYPE(request) == KVMIO && adopt(fd))
		return ioctl_ours(fd, request, argument);
	return result;
}

static void *map_ours(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	void *area;

	enter(-1);
	area = cetkvm_mmap(address, length, protection, flags, fd, offset);
	leave();
	return area;
}

#define MMAP_FUNCTION(name) \
	EXPORT void *name(void *address, size_t length, int protection, int flags, int fd, off_t offset) \
	{ \
		if ((flags & MAP_ANONYMOUS) || !still_ours(fd)) \
			return REAL(name)(address, length, protection, flags, fd, offset); \
		return map_ours(address, length, protection, flags, fd, offset); \
	}
MMAP_FUNCTION(mmap)
MMAP_FUNCTION(mmap64)

EXPORT int close(int fd)
{
	int result;

	if (!ours(fd) || foreign_process())
		return REAL(close)(fd);
	enter(-1);
	result = cetkvm_close(fd);
	leave();
	return result;
}

// `copy` has been made of `fd`, or is -1.
static int copied(int fd, int copy)
{
	bool known = still_ours(fd);
	int result = copy;

	if (copy < 0 || copy == fd || (!known && !cetkvm_known(copy)) || foreign_process())
		return copy;
	enter(-1);
	if (known) {
		if (cetkvm_alias(fd, copy) < 0) {
			REAL(close)(copy);
			errno = EMFILE;
			result = -1;
		}
	} else {
		cetkvm_forget(copy);
	}
	leave();
	return result;
}

EXPORT int dup(int fd)
{
	int copy = REAL(dup)(fd);

	return thread.inside ? copy : copied(fd, copy);
}

EXPORT int dup2(int fd, int wanted)
{
	int copy = REAL(dup2)(fd, wanted);

	return thread.inside ? copy : copied(fd, copy);
}

EXPORT int dup3(int fd, int wanted, int flags)
{
	int copy = REAL(dup3)(fd, wanted, flags);

	return thread.inside ? copy : copied(fd, copy);
}

static bool copies(int command)
{
	return !thread.inside && (command == F_DUPFD || command == F_DUPFD_CLOEXEC);
}

// The two are the same here: file offsets have 64 bits.
#define FCNTL_FUNCTION(name) \
	EXPORT int name(int fd, int command, ...) \
	{ \
		va_list args; \
		void *argument; \
		int result; \
\
		va_start(args, command); \
		argument = va_arg(args, void *); \
		va_end(args); \
		result = REAL(name)(fd, command, argument); \
		return copies(command) ? copied(fd, result) : result; \
	}
FCNTL_FUNCTION(fcntl)
FCNTL_FUNCTION(fcntl64)

static void forget_range(unsigned first, unsigned last)
{
	if (foreign_process())
		return;
	// cetkvm_known() is cheap, and is false beyond what the table can hold.
	for (unsigned fd = first; fd <= last && fd < 1u << 20; fd++)
		if (cetkvm_known((int)fd))
			forget((int)fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	int result = REAL(close_range)(first, last, flags);

	if (!result && !thread.inside && !(flags & CLOSE_RANGE_CLOEXEC))
		forget_range(first, last);
	return result;
}

EXPORT void closefrom(int first)
{
	REAL(closefrom)(first);
	if (!thread.inside)
		forget_range(first < 0 ? 0 : (unsigned)first, ~0u);
}
