// SPDX-License-Identifier: MIT
// What the files of src/preload share. The library is loaded into a client by `cetkvm exec`; its
// functions take the place of the C library's, and serve what concerns KVM from libcetkvm.
//
// - What does not concern KVM goes to the C library, found behind us by dlsym(RTLD_NEXT).
// - The engine calls the C library too, and meets our functions: while thread.inside is not 0, they
//   pass everything on.
#ifndef CETKVM_PRELOAD_PRELOAD_H
#define CETKVM_PRELOAD_PRELOAD_H

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))

// The C library's own function of this name.
#define REAL(name) \
	({ \
		static __typeof__(&name) function; \
		if (!__atomic_load_n(&function, __ATOMIC_RELAXED)) \
			__atomic_store_n(&function, (__typeof__(&name))real_symbol(#name), __ATOMIC_RELAXED); \
		function; \
	})
void *real_symbol(const char *name);

struct thread {
	unsigned inside; // calls of libcetkvm in progress
	unsigned long blocked_faults; // signals.c: the client thinks that they are
	// cancel.c
	bool asynchronous, listed;
	int running; // the descriptor of the vCPU in KVM_RUN, + 1
	volatile unsigned *stop;
	pthread_t self;
	struct thread *next;
};
extern __thread struct thread thread __attribute__((tls_model("initial-exec")));

// Is the descriptor one that a function of ours has to look after?
bool ours(int fd);

// Are we in a child that shares the memory of its parent, or that was not made by fork()? What it does
// to its descriptors and signals is none of this process's business.
bool foreign_process(void);

void signals_start(void);
void signals_run_mask(unsigned long mask);

// Around calls of libcetkvm: no cancellation in the middle. run_fd: of the vCPU if the call is KVM_RUN,
// else -1.
void cancel_enter(int run_fd);
void cancel_leave(void);

// The client limits its own system calls: say that this may not go well (seccomp.c).
void seccomp_seen(const void *filter);

// CPUID in the client's own code (client_cpuid.c). For the handler of SIGILL: was it one?
void client_cpuid_start(void);
bool client_cpuid_fault(void *context);

// Files that only exist for clients of `cetkvm exec` (paths.c).
enum path_kind { PATH_OTHER, PATH_KVM, PATH_PARAMETER };
enum path_kind path_classify(int directory, const char *path, const char **content);
// Opens one of them as open() would: -1 and errno.
int path_open(enum path_kind kind, const char *content, int flags);
// What stat() says of it.
struct statx;
void path_stat(enum path_kind kind, const char *content, struct statx *status);

#endif
