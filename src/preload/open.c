// SPDX-License-Identifier: MIT
// The ways to open a file.
#include "preload/preload.h"

#include <stdarg.h>

// The mode is there only if the flags say so.
#define MODE(flags) \
	({ \
		mode_t mode_ = 0; \
		if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
			va_list args_; \
			va_start(args_, flags); \
			mode_ = va_arg(args_, mode_t); \
			va_end(args_); \
		} \
		mode_; \
	})

// Opened by us: the descriptor or -1 is in *fd.
static bool open_ours(int directory, const char *path, int flags, int *fd)
{
	const char *content = NULL;
	enum path_kind kind = thread.inside ? PATH_OTHER : path_classify(directory, path, &content);

	if (kind == PATH_OTHER)
		return false;
	*fd = path_open(kind, content, flags);
	return true;
}

EXPORT int open(const char *path, int flags, ...)
{
	mode_t mode = MODE(flags);
	int fd;

	return open_ours(AT_FDCWD, path, flags, &fd) ? fd : REAL(open)(path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...)
{
	mode_t mode = MODE(flags);
	int fd;

	return open_ours(AT_FDCWD, path, flags, &fd) ? fd : REAL(open64)(path, flags, mode);
}

EXPORT int openat(int directory, const char *path, int flags, ...)
{
	mode_t mode = MODE(flags);
	int fd;

	return open_ours(directory, path, flags, &fd) ? fd : REAL(openat)(directory, path, flags, mode);
}

EXPORT int openat64(int directory, const char *path, int flags, ...)
{
	mode_t mode = MODE(flags);
	int fd;

	return open_ours(directory, path, flags, &fd) ? fd : REAL(openat64)(directory, path, flags, mode);
}

// What the compiler makes of calls without a mode (_FORTIFY_SOURCE).
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);

EXPORT int __open_2(const char *path, int flags)
{
	int fd;

	return open_ours(AT_FDCWD, path, flags, &fd) ? fd : REAL(__open_2)(path, flags);
}

EXPORT int __open64_2(const char *path, int flags)
{
	int fd;

	return open_ours(AT_FDCWD, path, flags, &fd) ? fd : REAL(__open64_2)(path, flags);
}

EXPORT int __openat_2(int directory, const char *path, int flags)
{
	int fd;

	return open_ours(directory, path, flags, &fd) ? fd : REAL(__openat_2)(directory, path, flags);
}

EXPORT int __openat64_2(int directory, const char *path, int flags)
{
	int fd;

	return open_ours(directory, path, flags, &fd) ? fd : REAL(__openat64_2)(directory, path, flags);
}
