// SPDX-License-Identifier: MIT
// A program that limits its own system calls, with a filter that lets everything through.
// Usage: seccomp prctl|syscall|asking
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = 1, .filter = &allow };

	if (argc == 2 && !strcmp(argv[1], "asking"))
		return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL) == 0;
	if (argc != 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return 2;
	if (!strcmp(argv[1], "prctl"))
		return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? 1 : 0;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) ? 1 : 0;
}
