// SPDX-License-Identifier: MIT
// Packing host programs, with everything they need to start, into an initramfs that runs one.
#ifndef CETKVM_VMM_PACK_H
#define CETKVM_VMM_PACK_H

#include "vmm/initramfs.h"

struct pack_request {
	char *const *arguments;        // the program and its arguments; NULL: an interactive shell
	char *const *environment;      // NAME=VALUE strings, NULL at the end; may be NULL
	char *const *extra_files;      // HOST[:GUEST] strings, NULL at the end; may be NULL
	const char *busybox;           // the guest's shell and tools; NULL: none
};

// Path of a static busybox on this host, or NULL.
const char *pack_find_busybox(void);

// A program named without a slash is looked for in PATH. resolved has room for PATH_MAX bytes. Writes
// one line and returns -1 if there is none.
int pack_find_program(const char *name, char *resolved);

// Builds the archive. Writes one line and returns -1 if something is missing.
int pack_initramfs(struct initramfs *fs, const struct pack_request *request);

#endif
