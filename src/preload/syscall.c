// SPDX-License-Identifier: MIT
// syscall(): system calls by number, for clients that do without the C library's functions. Numbers that
// mean something to us go to the function of that name. All others have to be made exactly as the C
// library would, with no stack frame of our own: a child made by clone() returns on another stack.
#include "preload/preload.h"

#include "base/futex.h"
#include "cetkvm/cetkvm.h"

#include <errno.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NUMBERS 448
// arch_prctl()'s operations on what a process may give guests: ARCH_{GET,REQ}_XCOMP_GUEST_PERM.
#define XCOMP_GET_GUEST 0x1024
#define XCOMP_REQUEST_GUEST 0x1025

// A bit for each number that syscall_ours() knows.
uint64_t syscall_numbers[NUMBERS / 64] __attribute__((visibility("hidden"))) = {
#define WORD(number, word) ((number) / 64 == (word) ? 1ull << (number) % 64 : 0)
#define WORDS(word) \
	WORD(SYS_open, word) | WORD(SYS_close, word) | WORD(SYS_stat, word) | WORD(SYS_lstat, word) | \
	WORD(SYS_mmap, word) | WORD(SYS_ioctl, word) | WORD(SYS_access, word) | WORD(SYS_dup, word) | \
	WORD(SYS_dup2, word) | WORD(SYS_fcntl, word) | WORD(SYS_prctl, word) | WORD(SYS_openat, word) | \
	WORD(SYS_newfstatat, word) | WORD(SYS_faccessat, word) | WORD(SYS_dup3, word) | \
	WORD(SYS_seccomp, word) | WORD(SYS_statx, word) | WORD(SYS_close_range, word) | \
	WORD(SYS_openat2, word) | WORD(SYS_faccessat2, word) | WORD(SYS_arch_prctl, word)
	WORDS(0), WORDS(1), WORDS(2), WORDS(3), WORDS(4), WORDS(5), WORDS(6),
};

static long as_libc(long result)
{
	if (result >= 0 || result < -4095)
		return result;
	errno = (int)-result;
	return -1;
}

long syscall_ours(long number, long a, long b, long c, long d, long e, long f)
	__attribute__((visibility("hidden")));
long syscall_ours(long number, long a, long b, long c, long d, long e, long f)
{
	switch (number) {
	case SYS_open:
		return open((const char *)a, (int)b, (mode_t)c);
	case SYS_openat:
		return openat((int)a, (const char *)b, (int)c, (mode_t)d);
	case SYS_close:
		return close((int)a);
	case SYS_close_range:
		return close_range((unsigned)a, (unsigned)b, (int)c);
	case SYS_ioctl:
		return ioctl((int)a, (unsigned long)b, c);
	case SYS_mmap:
		return (long)mmap((void *)a, (size_t)b, (int)c, (int)d, (int)e, f);
	case SYS_dup:
		return dup((int)a);
	case SYS_dup2:
		return dup2((int)a, (int)b);
	case SYS_dup3:
		return dup3((int)a, (int)b, (int)c);
	case SYS_fcntl:
		return fcntl((int)a, (int)b, c);
	case SYS_stat:
		return stat((const char *)a, (struct stat *)b);
	case SYS_lstat:
		return lstat((const char *)a, (struct stat *)b);
	case SYS_newfstatat:
		return fstatat((int)a, (const char *)b, (struct stat *)c, (int)d);
	case SYS_statx:
		return statx((int)a, (const char *)b, (int)c, (unsigned)d, (struct statx *)e);
	case SYS_access:
		return access((const char *)a, (int)b);
	case SYS_faccessat:
		return faccessat((int)a, (const char *)b, (int)c, 0);
	case SYS_faccessat2:
		return faccessat((int)a, (const char *)b, (int)c, (int)d);
	case SYS_openat2: {
		const struct open_how *how = (const struct open_how *)c;
		const char *content = NULL;
		enum path_kind kind = PATH_OTHER;

		if (how && (size_t)d >= sizeof(*how))
			kind = path_classify((int)a, (const char *)b, &content);
		if (kind != PATH_OTHER && !thread.inside)
			return path_open(kind, content, (int)how->flags);
		break;
	}
	case SYS_arch_prctl:
		// Guests' state is ours to permit, whatever the host's processor has.
		if ((a == XCOMP_GET_GUEST || a == XCOMP_REQUEST_GUEST) && !thread.inside)
			return cetkvm_arch_prctl((int)a, (unsigned long)b);
		break;
	case SYS_prctl:
		if (a == PR_SET_SECCOMP && b == SECCOMP_MODE_FILTER && !thread.inside)
			seccomp_seen((const void *)c);
		break;
	case SYS_seccomp:
		if (a == SECCOMP_SET_MODE_FILTER && !thread.inside)
			seccomp_seen((const void *)c);
		break;
	}
	return as_libc(raw_syscall6(number, a, b, c, d, e, f));
}

int arch_prctl(int operation, unsigned long argument); // which no header declares
EXPORT int arch_prctl(int operation, unsigned long argument)
{
	return (int)syscall_ours(SYS_arch_prctl, operation, (long)argument, 0, 0, 0, 0);
}

long syscall_failed(long result) __attribute__((visibility("hidden")));
long syscall_failed(long result)
{
	return as_libc(result);
}

__asm__(".text\n"
	".globl syscall\n"
	".type syscall, @function\n"
	"syscall:\n"
	".cfi_startproc\n"
	"	endbr64\n"
	"	cmpq $448, %rdi\n"
	"	jae 1f\n"
	"	leaq syscall_numbers(%rip), %rax\n"
	"	btq %rdi, (%rax)\n"
	"	jc syscall_ours\n"
	"1:	movq %rdi, %rax\n"
	"	movq %rsi, %rdi\n"
	"	movq %rdx, %rsi\n"
	"	movq %rcx, %rdx\n"
	"	movq %r8, %r10\n"
	"	movq %r9, %r8\n"
	"	movq 8(%rsp), %r9\n"
	"	syscall\n"
	"	cmpq $-4095, %rax\n"
	"	jae 2f\n"
	"	ret\n"
	"2:	movq %rax, %rdi\n"
	"	jmp syscall_failed\n"
	".cfi_endproc\n"
	".size syscall, .-syscall\n");
