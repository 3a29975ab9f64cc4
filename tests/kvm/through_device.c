// SPDX-License-Identifier: MIT
// The library's calls as a client of /dev/kvm makes them: linked in the library's place, so that a test
// can be run by `cetkvm exec` (or on a kernel's KVM).
#include "cetkvm/cetkvm.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

int cetkvm_open(void)
{
	return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

int cetkvm_ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *argument;

	va_start(args, request);
	argument = va_arg(args, void *);
	va_end(args);
	return ioctl(fd, request, argument);
}

void *cetkvm_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return mmap(address, length, protection, flags, fd, offset);
}

int cetkvm_close(int fd)
{
	return close(fd);
}

// The signal does it.
int cetkvm_kick(int fd)
{
	return 0;
}
