// SPDX-License-Identifier: MIT
// A cpio archive in "newc" format, as the kernel's documentation "initramfs buffer format" has it:
// "070701", thirteen 8-digit hexadecimal fields, the name, the data; both padded to 4 bytes.
#include "vmm/initramfs.h"

#include "vmm/message.h"
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void *must_allocate(void *old, size_t size)
{
	void *block = realloc(old, size);

	if (!block) {
		vmm_message("out of memory for the initramfs (%zu bytes)", size);
		exit(VMM_EXIT_FAILED);
	}
	return block;
}

static void append(struct initramfs *fs, const void *data, size_t size)
{
	if (fs->room - fs->size < size) {
		fs->room = (fs->size + size) * 3 / 2 + 65536;
		fs->data = must_allocate(fs->data, fs->room);
	}
	if (size)
		memcpy(fs->data + fs->size, data, size);
	fs->size += size;
}

static void pad(struct initramfs *fs)
{
	static const uint8_t zero[4];

	append(fs, zero, -fs->size & 3);
}

static void entry(struct initramfs *fs, const char *path, uint32_t mode, const void *data, size_t size,
		  unsigned major, unsigned minor)
{
	const char *name = *path == '/' ? path + 1 : path;
	const uint32_t fields[13] = {
		++fs->inode, mode, 0, 0, S_ISDIR(mode) ? 2 : 1, 0, size, 0, 0, major, minor, strlen(name) + 1, 0,
	};
	char field[9];
	unsigned i;

	append(fs, "070701", 6);
	for (i = 0; i < 13; i++) {
		snprintf(field, sizeof(field), "%08x", fields[i]);
		append(fs, field, 8);
	}
	append(fs, name, strlen(name) + 1);
	pad(fs);
	append(fs, data, size);
	pad(fs);
}

bool initramfs_has(const struct initramfs *fs, const char *path)
{
	size_t i;

	for (i = 0; i < fs->path_count; i++)
		if (!strcmp(fs->paths[i], path))
			return true;
	return false;
}

static void remember(struct initramfs *fs, const char *path, size_t length)
{
	char *copy = must_allocate(NULL, length + 1);

	if (fs->path_count == fs->path_room) {
		fs->path_room = fs->path_room * 2 + 64;
		fs->paths = must_allocate(fs->paths, fs->path_room * sizeof(*fs->paths));
	}
	memcpy(copy, path, length);
	copy[length] = 0;
	fs->paths[fs->path_count++] = copy;
}

void initramfs_add_directory(struct initramfs *fs, const char *path)
{
	const char *slash = strrchr(path, '/');
	char parent[4096];

	if (!slash || !slash[1] || initramfs_has(fs, path) || (size_t)(slash - path) >= sizeof(parent))
		return;
	memcpy(parent, path, slash - path);
	parent[slash - path] = 0;
	initramfs_add_directory(fs, parent);
	remember(fs, path, strlen(path));
	entry(fs, path, S_IFDIR | 0755, NULL, 0, 0, 0);
}

// True if the path was new; its parents exist then.
static bool claim(struct initramfs *fs, const char *path)
{
	const char *slash = strrchr(path, '/');
	char parent[4096];

	if (initramfs_has(fs, path) || !slash || (size_t)(slash - path) >= sizeof(parent))
		return false;
	memcpy(parent, path, slash - path);
	parent[slash - path] = 0;
	initramfs_add_directory(fs, parent);
	remember(fs, path, strlen(path));
	return true;
}

void initramfs_add_data(struct initramfs *fs, const char *path, uint32_t mode, const void *data, size_t size)
{
	if (claim(fs, path))
		entry(fs, path, S_IFREG | (mode & 07777), data, size, 0, 0);
}

void initramfs_add_link(struct initramfs *fs, const char *path, const char *target)
{
	if (claim(fs, path))
		entry(fs, path, S_IFLNK | 0777, target, strlen(target), 0, 0);
}

void initramfs_add_device(struct initramfs *fs, const char *path, uint32_t mode, unsigned major, unsigned minor)
{
	if (claim(fs, path))
		entry(fs, path, mode, NULL, 0, major, minor);
}

int initramfs_add_file(struct initramfs *fs, const char *path, const char *host_path)
{
	struct stat status;
	uint8_t *data = NULL;
	size_t done = 0;
	ssize_t n = 0;
	int fd;

	if (initramfs_has(fs, path))
		return 0;
	fd = open(host_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe is refused below, not waited for
	if (fd < 0 || fstat(fd, &status) < 0) {
		vmm_message("%s: %s; a readable file is needed", host_path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!S_ISREG(status.st_mode) || status.st_size > 0xffffffffll) {
		vmm_message("%s: not a regular file of less than 4 GiB; only such files can be packed", host_path);
		close(fd);
		return -1;
	}
	data = must_allocate(NULL, status.st_size + 1);
	while (done < (size_t)status.st_size && (n = read(fd, data + done, status.st_size - done)) > 0)
		done += n;
	close(fd);
	if (done < (size_t)status.st_size) {
		vmm_message("%s: cannot be read to its end: %s", host_path, n < 0 ? strerror(errno) : "it shrank");
		free(data);
		return -1;
	}
	initramfs_add_data(fs, path, status.st_mode & 0777, data, done);
	free(data);
	return 0;
}

void initramfs_create(struct initramfs *fs)
{
	memset(fs, 0, sizeof(*fs));
}

void initramfs_finish(struct initramfs *fs)
{
	entry(fs, "TRAILER!!!", 0, NULL, 0, 0, 0);
}

void initramfs_destroy(struct initramfs *fs)
{
	size_t i;

	for (i = 0; i < fs->path_count; i++)
		free(fs->paths[i]);
	free(fs->paths);
	free(fs->data);
	memset(fs, 0, sizeof(*fs));
}
