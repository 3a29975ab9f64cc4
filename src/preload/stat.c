// SPDX-License-Identifier: MIT
// The ways to ask about a file by its name. The device is there for everybody, whatever the host has.
#include "preload/preload.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool look(int directory, const char *path, struct statx *status)
{
	const char *content = NULL;
	enum path_kind kind = thread.inside ? PATH_OTHER : path_classify(directory, path, &content);

	if (kind != PATH_OTHER && status)
		path_stat(kind, content, status);
	return kind != PATH_OTHER;
}

// struct stat and struct stat64 are the same here.
static int fill(const struct statx *from, void *to)
{
	struct stat status = { .st_mode = from->stx_mode, .st_nlink = from->stx_nlink, .st_ino = from->stx_ino,
		.st_size = (off_t)from->stx_size, .st_blksize = from->stx_blksize,
		.st_rdev = makedev(from->stx_rdev_major, from->stx_rdev_minor) };

	memcpy(to, &status, sizeof(status));
	return 0;
}

#define STAT_FUNCTION(name, type) \
	EXPORT int name(const char *path, struct type *status) \
	{ \
		struct statx found; \
		return look(AT_FDCWD, path, &found) ? fill(&found, status) : REAL(name)(path, status); \
	}
STAT_FUNCTION(stat, stat)
STAT_FUNCTION(stat64, stat64)
STAT_FUNCTION(lstat, stat)
STAT_FUNCTION(lstat64, stat64)

EXPORT int fstatat(int directory, const char *path, struct stat *status, int flags)
{
	struct statx found;

	return look(directory, path, &found) ? fill(&found, status) : REAL(fstatat)(directory, path, status, flags);
}

EXPORT int fstatat64(int directory, const char *path, struct stat64 *status, int flags)
{
	struct statx found;

	return look(directory, path, &found) ? fill(&found, status) : REAL(fstatat64)(directory, path, status, flags);
}

// What programs call that were linked to older C libraries.
int __xstat(int version, const char *path, struct stat *status);
int __xstat64(int version, const char *path, struct stat64 *status);
int __lxstat(int version, const char *path, struct stat *status);
int __lxstat64(int version, const char *path, struct stat64 *status);
int __fxstatat(int version, int directory, const char *path, struct stat *status, int flags);
int __fxstatat64(int version, int directory, const char *path, struct stat64 *status, int flags);

#define XSTAT_FUNCTION(name, type) \
	EXPORT int name(int version, const char *path, struct type *status) \
	{ \
		struct statx found; \
		return look(AT_FDCWD, path, &found) ? fill(&found, status) : REAL(name)(version, path, status); \
	}
XSTAT_FUNCTION(__xstat, stat)
XSTAT_FUNCTION(__xstat64, stat64)
XSTAT_FUNCTION(__lxstat, stat)
XSTAT_FUNCTION(__lxstat64, stat64)

EXPORT int __fxstatat(int version, int directory, const char *path, struct stat *status, int flags)
{
	struct statx found;

	return look(directory, path, &found) ? fill(&found, status) :
					       REAL(__fxstatat)(version, directory, path, status, flags);
}

EXPORT int __fxstatat64(int version, int directory, const char *path, struct stat64 *status, int flags)
{
	struct statx found;

	return look(directory, path, &found) ? fill(&found, status) :
					       REAL(__fxstatat64)(version, directory, path, status, flags);
}

EXPORT int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict status)
{
	return look(directory, path, status) ? 0 : REAL(statx)(directory, path, flags, mask, status);
}

static int permitted(int directory, const char *path, int mode, bool *known)
{
	struct statx found;

	*known = look(directory, path, &found);
	if (!*known || !(mode & (W_OK | X_OK)) || (S_ISCHR(found.stx_mode) && !(mode & X_OK)))
		return 0;
	errno = EACCES;
	return -1;
}

#define ACCESS_FUNCTION(name) \
	EXPORT int name(const char *path, int mode) \
	{ \
		bool known; \
		int result = permitted(AT_FDCWD, path, mode, &known); \
		return known ? result : REAL(name)(path, mode); \
	}
ACCESS_FUNCTION(access)
ACCESS_FUNCTION(euidaccess)
ACCESS_FUNCTION(eaccess)

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
	bool known;
	int result = permitted(directory, path, mode, &known);

	return known ? result : REAL(faccessat)(directory, path, mode, flags);
}

// The C library opens streams without our open().
static FILE *open_stream(const char *path, const char *mode, bool *known)
{
	const char *content = NULL;
	enum path_kind kind = thread.inside ? PATH_OTHER : path_classify(AT_FDCWD, path, &content);
	int fd, flags = strchr(mode, '+') ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
	FILE *stream;

	*known = kind != PATH_OTHER;
	if (!*known)
		return NULL;
	fd = path_open(kind, content, flags | (strchr(mode, 'e') ? O_CLOEXEC : 0));
	stream = fd < 0 ? NULL : fdopen(fd, mode);
	if (fd >= 0 && !stream)
		close(fd);
	return stream;
}

EXPORT FILE *fopen(const char *restrict path, const char *restrict mode)
{
	bool known;
	FILE *stream = open_stream(path, mode, &known);

	return known ? stream : REAL(fopen)(path, mode);
}

EXPORT FILE *fopen64(const char *restrict path, const char *restrict mode)
{
	bool known;
	FILE *stream = open_stream(path, mode, &known);

	return known ? stream : REAL(fopen64)(path, mode);
}
