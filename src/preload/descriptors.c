// SPDX-License-Identifier: MIT
// Descriptors of KVM objects: ioctl() and mmap() on them, their copies, and their ends.
#include "preload/preload.h"

#include "cetkvm/cetkvm.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

bool ours(int fd)
{
	return !thread.inside && cetkvm_known(fd);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *argument;
	int result;

	va_start(args, request);
	argument = va_arg(args, void *);
	va_end(args);
	if (!ours(fd))
		return REAL(ioctl)(fd, request, argument);
	thread.inside++;
	result = cetkvm_ioctl(fd, request, argument);
	thread.inside--;
	return result;
}

static void *map_ours(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	void *area;

	thread.inside++;
	area = cetkvm_mmap(address, length, protection, flags, fd, offset);
	thread.inside--;
	return area;
}

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	if ((flags & MAP_ANONYMOUS) || !ours(fd))
		return REAL(mmap)(address, length, protection, flags, fd, offset);
	return map_ours(address, length, protection, flags, fd, offset);
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
	if ((flags & MAP_ANONYMOUS) || !ours(fd))
		return REAL(mmap64)(address, length, protection, flags, fd, offset);
	return map_ours(address, length, protection, flags, fd, offset);
}

EXPORT int close(int fd)
{
	int result;

	if (!ours(fd))
		return REAL(close)(fd);
	thread.inside++;
	result = cetkvm_close(fd);
	thread.inside--;
	return result;
}

static void forget(int fd)
{
	thread.inside++;
	cetkvm_forget(fd);
	thread.inside--;
}

// `copy` has been made of `fd`, or is -1.
static int copied(int fd, int copy)
{
	int result = copy;

	if (copy < 0 || copy == fd)
		return copy;
	thread.inside++;
	if (cetkvm_known(fd)) {
		if (cetkvm_alias(fd, copy) < 0) {
			REAL(close)(copy);
			errno = EMFILE;
			result = -1;
		}
	} else {
		cetkvm_forget(copy);
	}
	thread.inside--;
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

EXPORT int fcntl(int fd, int command, ...)
{
	va_list args;
	void *argument;
	int result;

	va_start(args, command);
	argument = va_arg(args, void *);
	va_end(args);
	result = REAL(fcntl)(fd, command, argument);
	return copies(command) ? copied(fd, result) : result;
}

EXPORT int fcntl64(int fd, int command, ...)
{
	va_list args;
	void *argument;
	int result;

	va_start(args, command);
	argument = va_arg(args, void *);
	va_end(args);
	result = REAL(fcntl64)(fd, command, argument);
	return copies(command) ? copied(fd, result) : result;
}

static void forget_range(unsigned first, unsigned last)
{
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
