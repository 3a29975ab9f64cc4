// SPDX-License-Identifier: MIT
// Telling kernels from other files, loading a bzImage, placing the initrd. Source of the bzImage
// format: the kernel's documentation "The Linux/x86 Boot Protocol".
#include "vmm/kernel.h"

#include "vmm/message.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ACCEPTED "accepted are a Linux bzImage, a vmlinux, and ELF executables for x86"

#define SETUP_HEADER_OFFSET 0x1f1
#define SETUP_MAGIC         0x53726448 // "HdrS"
#define ENTRY_64_OFFSET     0x200
#define PAGE                4096ull

static const struct setup_header *bzimage_header(const struct kernel_image *image)
{
	return (const struct setup_header *)(image->data + SETUP_HEADER_OFFSET);
}

static uint64_t bzimage_setup_size(const struct kernel_image *image)
{
	unsigned sectors = bzimage_header(image)->setup_sects;

	return ((sectors ? sectors : 4) + 1) * 512ull;
}

static bool bzimage_recognize(const uint8_t *data, size_t size)
{
	const struct setup_header *header = (const struct setup_header *)(data + SETUP_HEADER_OFFSET);

	return size >= 1024 && header->boot_flag == 0xaa55 && header->header == SETUP_MAGIC;
}

static int bzimage_check(struct kernel_image *image)
{
	const struct setup_header *header = bzimage_header(image);
	uint64_t setup = bzimage_setup_size(image), wanted = setup + header->syssize * 16ull;
	uint64_t payload = setup + header->payload_offset + (uint64_t)header->payload_length;

	if (header->version < 0x020c) {
		vmm_message("%s: a kernel too old (boot protocol %u.%02u, 2.12 is needed); " ACCEPTED, image->path,
			    header->version >> 8, header->version & 0xff);
		return -1;
	}
	if (payload > wanted)
		wanted = payload;
	if (image->size < wanted) {
		vmm_message("%s: truncated kernel: its header promises %" PRIu64 " bytes, the file has %zu; "
			    "a complete bzImage is needed", image->path, wanted, image->size);
		return -1;
	}
	if (image->size - setup < ENTRY_64_OFFSET + 16 || header->init_size < image->size - setup) {
		vmm_message("%s: damaged kernel: the sizes in its header contradict each other; " ACCEPTED, image->path);
		return -1;
	}
	image->kind = KERNEL_BZIMAGE;
	image->long_mode = header->xloadflags & XLF_KERNEL_64;
	return 0;
}

int kernel_open(struct kernel_image *image, const char *path)
{
	struct stat status;
	int fd;

	memset(image, 0, sizeof(*image));
	image->path = path;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe is refused below, not waited for
	if (fd < 0 || fstat(fd, &status) < 0) {
		vmm_message("%s: %s; --kernel needs a readable file", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!S_ISREG(status.st_mode) || !status.st_size) {
		vmm_message("%s: %s; " ACCEPTED, path, S_ISREG(status.st_mode) ? "an empty file" : "not a regular file");
		close(fd);
		return -1;
	}
	image->size = status.st_size;
	image->data = mmap(NULL, image->size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (image->data == MAP_FAILED) {
		image->data = NULL;
		vmm_message("%s: cannot map the file: %s", path, strerror(errno));
		return -1;
	}
	if (bzimage_recognize(image->data, image->size)) {
		if (!bzimage_check(image))
			return 0;
	} else if (elf_recognize(image->data, image->size)) {
		if (!elf_check(image))
			return 0;
	} else {
		vmm_message("%s: not a kernel; " ACCEPTED, path);
	}
	kernel_close(image);
	return -1;
}

void kernel_close(struct kernel_image *image)
{
	if (image->data)
		munmap(image->data, image->size);
	image->data = NULL;
}

void kernel_forget_pages(const struct kernel_image *image)
{
	madvise(image->data, image->size, MADV_DONTNEED);
}

static void report_too_little_memory(const struct kernel_image *image, uint64_t end, const struct guest_memory *memory)
{
	vmm_message("%s: too little memory: the kernel needs memory up to %" PRIu64 " MiB, the guest has %" PRIu64
		    " MiB; give more with --mem", image->path, (end + (1 << 20) - 1) >> 20, memory->size >> 20);
}

static int bzimage_load(const struct kernel_image *image, const struct guest_memory *memory,
			struct kernel_placement *placement)
{
	const struct setup_header *header = bzimage_header(image);
	uint64_t setup = bzimage_setup_size(image), start = header->pref_address;

	if (start < BOOT_HIGH || start > MEMORY_HOLE_START) {
		vmm_message("%s: damaged kernel: it wants to be loaded at %#" PRIx64 "; " ACCEPTED, image->path, start);
		return -1;
	}
	// The kernel decompresses itself in place: it needs init_size bytes from where it is loaded.
	placement->start = start;
	placement->end = start + header->init_size;
	if (placement->end > memory->low_size ||
	    !guest_memory_write(memory, start, image->data + setup, image->size - setup)) {
		report_too_little_memory(image, placement->end, memory);
		return -1;
	}
	placement->entry = start + (image->long_mode ? ENTRY_64_OFFSET : 0);
	return 0;
}

// As high as the kernel can reach, so that it is out of the way of decompression.
static int initrd_load(const struct kernel_image *image, const struct guest_memory *memory, const uint8_t *initrd,
		       size_t size, struct kernel_placement *placement)
{
	uint64_t limit = memory->low_size, address, low = placement->end > BOOT_HIGH ? placement->end : BOOT_HIGH;

	if (image->kind == KERNEL_BZIMAGE && bzimage_header(image)->initrd_addr_max + 1ull < limit)
		limit = bzimage_header(image)->initrd_addr_max + 1ull;
	if (size > limit || ((limit - size) & ~(PAGE - 1)) < low) {
		vmm_message("%s: too little memory: the kernel and an initrd of %zu MiB need more than the guest's %" PRIu64
			    " MiB; give more with --mem", image->path, (size + (1 << 20) - 1) >> 20, memory->size >> 20);
		return -1;
	}
	address = (limit - size) & ~(PAGE - 1);
	guest_memory_write(memory, address, initrd, size);
	placement->initrd_address = address;
	placement->initrd_size = size;
	return 0;
}

int kernel_load(const struct kernel_image *image, const struct guest_memory *memory, const uint8_t *initrd,
		size_t initrd_size, struct kernel_placement *placement)
{
	int result;

	memset(placement, 0, sizeof(*placement));
	if (image->kind == KERNEL_BZIMAGE)
		result = bzimage_load(image, memory, placement);
	else
		result = elf_load(image, memory, placement);
	if (!result && initrd_size)
		result = initrd_load(image, memory, initrd, initrd_size, placement);
	return result;
}

size_t kernel_command_line_max(const struct kernel_image *image)
{
	const size_t room = BOOT_LOW_END - BOOT_COMMAND_LINE - 1;
	size_t limit = image->kind == KERNEL_BZIMAGE ? bzimage_header(image)->cmdline_size : 2047;

	return limit < room ? limit : room;
}
