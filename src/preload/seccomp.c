// SPDX-License-Identifier: MIT
// Clients that limit their own system calls. The engine makes system calls that the client's authors
// did not think of (futex, memfd_create, mremap, process_vm_readv, clone...), and a filter may end the
// process for them. All we can do is to say so. A filter that was there before, as in a container, is
// somebody else's and known to leave room.
#include "preload/preload.h"

#include <linux/seccomp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

void seccomp_seen(const void *filter)
{
	static const char line[] =
		"cetkvm: this program limits its own system calls (seccomp), which may end it where KVM needs others; "
		"if it dies of SIGSYS, turn its sandbox off\n";
	static bool said;

	// Without a filter it only asks whether the kernel knows the call.
	if (filter && !__atomic_exchange_n(&said, true, __ATOMIC_RELAXED) && write(STDERR_FILENO, line, strlen(line)) < 0)
		return; // nobody listens
}

EXPORT int prctl(int option, ...)
{
	unsigned long argument[4];
	va_list args;

	va_start(args, option);
	for (unsigned i = 0; i < 4; i++)
		argument[i] = va_arg(args, unsigned long);
	va_end(args);
	if (option == PR_SET_SECCOMP && argument[0] == SECCOMP_MODE_FILTER && !thread.inside)
		seccomp_seen((const void *)argument[1]);
	return REAL(prctl)(option, argument[0], argument[1], argument[2], argument[3]);
}
