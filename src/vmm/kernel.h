// SPDX-License-Identifier: MIT
// Guest kernels: what kind of file it is, and putting it into guest memory. Files are hostile input:
// every offset in them is checked against the file and against guest memory.
#ifndef CETKVM_VMM_KERNEL_H
#define CETKVM_VMM_KERNEL_H

#include "vmm/memory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kernel_kind {
	KERNEL_BZIMAGE,   // Linux boot protocol, entered at its 64-bit entry point, or the 32-bit one
	KERNEL_VMLINUX,   // Linux as ELF64: same protocol, entered at e_entry
	KERNEL_FLAT64,    // any other ELF64: long mode, 4 GiB identity-mapped
	KERNEL_FLAT32,    // ELF32: protected mode, flat segments, no paging
};

struct kernel_image {
	enum kernel_kind kind;
	const char *path;
	uint8_t *data; // private mapping of the whole file
	size_t size;
	bool long_mode; // entered in it; else in protected mode without paging
	bool multiboot; // KERNEL_FLAT32 with a Multiboot header
	uint64_t multiboot_offset;
};

// Where a loaded kernel is, and what else goes into memory.
struct kernel_placement {
	uint64_t entry, start, end;
	uint64_t initrd_address, initrd_size;
};

// Opens and checks a file. Writes one line and returns -1 if it is not a whole kernel.
int kernel_open(struct kernel_image *image, const char *path);
void kernel_close(struct kernel_image *image);
// Gives back the memory that holds the file, until it is needed again.
void kernel_forget_pages(const struct kernel_image *image);

// Copies the kernel and the initrd into memory. Writes one line and returns -1 if they do not fit.
int kernel_load(const struct kernel_image *image, const struct guest_memory *memory, const uint8_t *initrd,
		size_t initrd_size, struct kernel_placement *placement);

// Longest command line it takes.
size_t kernel_command_line_max(const struct kernel_image *image);

// In elf.c.
bool elf_recognize(const uint8_t *data, size_t size);
int elf_check(struct kernel_image *image);
int elf_load(const struct kernel_image *image, const struct guest_memory *memory, struct kernel_placement *placement);

// Guest memory that the boot protocol, page tables and ACPI tables use; nothing is loaded there.
#define BOOT_GDT          0x500ull
#define BOOT_STACK_TOP    0x7000ull
#define BOOT_PARAMS       0x7000ull
#define BOOT_PAGE_TABLES  0x9000ull
#define BOOT_MULTIBOOT    0x10000ull
#define BOOT_RNG_SEED     0x11000ull
#define BOOT_COMMAND_LINE 0x20000ull
#define BOOT_LOW_END      0x30000ull
#define BOOT_EBDA         0x9fc00ull
#define BOOT_ACPI         0xe0000ull
#define BOOT_HIGH         0x100000ull

#endif
