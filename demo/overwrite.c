// SPDX-License-Identifier: MIT
// A program with a classic hole: it copies what it is given into a buffer on the stack without
// looking at the length. What it is given is the address of a function, many times over, so the
// return address is overwritten and the function's RET goes there.
//
// Where the kernel offers user shadow stacks the program turns them on first, by a raw system call,
// since Debian 12's C library does not do so by itself.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_SHSTK_ENABLE 0x5001
#define ARCH_SHSTK_SHSTK 1
#define SEGV_CPERR_CODE 10 /* asm-generic/siginfo.h of Linux 6.6 and later */
#define ATTACKED 66

// Nothing calls this. It is entered by a RET, so the stack is not aligned as the ABI has it.
__attribute__((noinline, used, force_align_arg_pointer)) static void should_never_run(void)
{
	puts("overwrite: >>> the function that nobody calls is running. The attack has won. <<<");
	fflush(stdout);
	_exit(ATTACKED);
}

__attribute__((noinline)) static void read_message(void *const *message, volatile size_t length)
{
	char buffer[32];

	for (size_t i = 0; i < length; i++)
		((volatile char *)buffer)[i] = ((const char *)message)[i];
	printf("overwrite: copied %zu bytes into a buffer of %zu\n", length, sizeof(buffer));
	fflush(stdout);
} // <- this RET

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	// The handler is gone after one call, so going back ends the process.
	printf("overwrite: SIGSEGV from the kernel, si_code %d%s\n", info->si_code,
		info->si_code == SEGV_CPERR_CODE ? " (SEGV_CPERR: control protection fault)" : "");
	fflush(stdout);
}

int main(void)
{
	void *message[8];
	long status;
	struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | (int)SA_RESETHAND};

	sigaction(SIGSEGV, &action, NULL);
	// In line, not in a function that returns: its return address would not be on the shadow stack.
	__asm__ volatile("syscall" : "=a"(status)
		: "a"((long)SYS_arch_prctl), "D"((long)ARCH_SHSTK_ENABLE), "S"((long)ARCH_SHSTK_SHSTK)
		: "rcx", "r11", "memory");
	printf("overwrite: shadow stack %s\n", status == 0 ? "is on" : "is not to be had here");
	for (int i = 0; i < 8; i++)
		message[i] = (void *)should_never_run;
	read_message(message, sizeof(message));
	puts("overwrite: returned as if nothing had happened");
	fflush(stdout);
	_exit(0);
}
