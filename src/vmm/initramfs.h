// SPDX-License-Identifier: MIT
// An initramfs in memory: a growing cpio archive in "newc" format. Paths are absolute guest paths;
// their parent directories appear by themselves.
#ifndef CETKVM_VMM_INITRAMFS_H
#define CETKVM_VMM_INITRAMFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct initramfs {
	uint8_t *data;
	size_t size, room;
	uint32_t inode;
	char **paths; // what is there already
	size_t path_count, path_room;
};

void initramfs_create(struct initramfs *fs);
void initramfs_destroy(struct initramfs *fs);

// Each adds one entry unless the path is there already. Out of memory ends the process.
void initramfs_add_directory(struct initramfs *fs, const char *path);
void initramfs_add_data(struct initramfs *fs, const char *path, uint32_t mode, const void *data, size_t size);
void initramfs_add_link(struct initramfs *fs, const char *path, const char *target);
void initramfs_add_device(struct initramfs *fs, const char *path, uint32_t mode, unsigned major, unsigned minor);
// Writes one line and returns -1 if the host file cannot be read.
int initramfs_add_file(struct initramfs *fs, const char *path, const char *host_path);
bool initramfs_has(const struct initramfs *fs, const char *path);

// Ends the archive; nothing can be added after it.
void initramfs_finish(struct initramfs *fs);

#endif
