/* SPDX-License-Identifier: MIT
 * The KVM API in this process, without /dev/kvm: the calls of a KVM client, with a prefix.
 *
 * File descriptors are real ones and may be polled and closed on exec; pass them to these functions
 * only. Returns and errno are those of the system calls: -1 (MAP_FAILED) and errno on failure.
 *
 * A signal handler that runs while its thread is in KVM_RUN ends KVM_RUN with EINTR when it sets
 * kvm_run.immediate_exit; at once if it calls cetkvm_kick() too, which is async-signal-safe,
 * otherwise within some milliseconds.
 */
#ifndef CETKVM_H
#define CETKVM_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Like open("/dev/kvm", O_RDWR | O_CLOEXEC). ENODEV: see cetkvm_host_problem(). */
int cetkvm_open(void);
int cetkvm_ioctl(int fd, unsigned long request, ...);
void *cetkvm_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int cetkvm_close(int fd);

/* Ends the KVM_RUN in progress on this vCPU, if there is one, with EINTR. Any thread may call it. */
int cetkvm_kick(int vcpu_fd);

/* The two operations of arch_prctl(2) about guests: ARCH_GET_XCOMP_GUEST_PERM (0x1024) stores the mask of
 * state components that this process may give guests at `argument`, ARCH_REQ_XCOMP_GUEST_PERM (0x1025)
 * asks for component number `argument` (18: AMX's tiles, and with them AMX). Before the first vCPU: EBUSY.
 * EOPNOTSUPP: not a component to be asked for, or this host cannot keep it. ENOSYS: another operation. */
long cetkvm_arch_prctl(int operation, unsigned long argument);

/* NULL when this host can run guests, else one line that says what it lacks. */
const char *cetkvm_host_problem(void);

/* For signal handlers, first thing: `info` and `context` are the handler's arguments (SA_SIGINFO). If
 * the handler runs in the middle of one of these calls, this returns 1 and the handler must return at
 * once: the signal will come again when the call is over, as the kernel would have delivered it, and
 * KVM_RUN ends with EINTR. Returns 0 in all other places. Not for exceptions (SIGSEGV with si_code > 0
 * and the like). Handlers that call this may make any KVM call. */
int cetkvm_signal(int signal, void *info, void *context);

/* A word of the calling thread. While it is not 0, KVM_RUN on this thread returns EINTR; to end one in
 * progress, any thread sets the word and then calls cetkvm_kick(). */
volatile unsigned *cetkvm_stop_word(void);

/* Options for virtual machines created from now on. ENOENT: no such option; EINVAL: bad value.
 *   trace-cp   on, off          one line on standard error for every #CP a guest takes
 *   symbols    FILE             System.map or ELF file with the guest's symbols for it
 *   grain      block, single    translate many instructions at a time, or each alone
 *   supported-cpuid  FUNCTION:INDEX:FLAGS:EAX:EBX:ECX:EDX;...   in hexadecimal: what
 *                               KVM_GET_SUPPORTED_CPUID answers. Guests still get nothing that this
 *                               host and library cannot do.
 *   host-cpuid  (the same)      the host itself is one that has no more than this: it offers no more,
 *                               and guests and the state of others are given no more, whatever their
 *                               CPUID says. EBUSY after the first virtual machine of the process.
 *   cpuid-policy     FUNCTION:INDEX:REGISTER:BIT:VALUE;...      (the first two in hexadecimal; REGISTER 0
 *                               EAX to 3 EDX): bits that KVM_SET_CPUID2 sets or clears in what a client
 *                               gives a guest. A guest may have CET so though its VMM does not know it.
 *   kvm-abi    over-saving, strict, constrained
 *                               which generation of KVM_GET_XSAVE and KVM_SET_XSAVE: before Linux 5.17,
 *                               before 6.6, and since then (which is the default)
 *   cet-u      shstk, either    whether a host needs shadow stacks to keep IA32_U_CET for guests, as Linux has
 *                               it (the default), or either half of CET, as the series first had it;
 *                               guests of a host without shadow stacks get no CET in any case */
int cetkvm_set_option(const char *name, const char *value);

/* What there is: number `index` of the ioctls, and of the capabilities that KVM_CHECK_EXTENSION knows.
 * ENOENT: there are no more. */
struct cetkvm_ioctl {
	const char *name, *object; /* "KVM_RUN"; "/dev/kvm", "machine", "vCPU"... */
	unsigned number;
	const char *needs, *note; /* may be empty */
};
struct cetkvm_capability {
	const char *name;
	unsigned number;
	long value;
};
int cetkvm_list_ioctl(unsigned index, struct cetkvm_ioctl *out);
int cetkvm_list_capability(unsigned index, struct cetkvm_capability *out);

/* For programs that put these calls in the place of the C library's, as `cetkvm exec` does.
 *
 * cetkvm_known: 1 if `fd` is a descriptor of this API, else 0. Async-signal-safe.
 * cetkvm_alias: `copy` was made from `fd` by dup(), fcntl() or the like, and stands for the same. EBADF.
 * cetkvm_forget: `fd` was closed by other means than cetkvm_close(). Unknown numbers are no error. */
int cetkvm_known(int fd);
int cetkvm_alias(int fd, int copy);
void cetkvm_forget(int fd);

#ifdef __cplusplus
}
#endif

#endif
