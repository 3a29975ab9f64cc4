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
};
extern __thread struct thread thread __attribute__((tls_model("initial-exec")));

// Is the descriptor one that a function of ours has to look after?
bool ours(int fd);

// Files that only exist for clients of `cetkvm exec` (paths.c).
enum path_kind { PATH_OTHER, PATH_KVM, PATH_PARAMETER };
enum path_kind path_classify(int directory, const char *path, const char **content);
// Opens one of them as open() would: -1 and errno.
int path_open(enum path_kind kind, const char *content, int flags);

#endif
