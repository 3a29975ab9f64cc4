// SPDX-License-Identifier: MIT
// ELF guests: vmlinux and flat executables, 64 and 32 bit, loaded at their physical addresses.
#include "vmm/kernel.h"

#include "vmm/message.h"

#include <elf.h>
#include <inttypes.h>
#include <string.h>

#define ACCEPTED "accepted are x86 and x86-64 executables linked to fixed physical addresses"

#define LINUX_KERNEL_MAP  0xffffffff80000000ull
#define MULTIBOOT_MAGIC   0x1badb002u
#define MULTIBOOT_SEARCH  8192

// One program header, either class.
struct segment {
	uint32_t type;
	uint64_t offset, virtual_address, physical, file_size, memory_size;
};

bool elf_recognize(const uint8_t *data, size_t size)
{
	return size >= sizeof(Elf32_Ehdr) && !memcmp(data, ELFMAG, SELFMAG);
}

static bool elf_is_64(const struct kernel_image *image)
{
	return image->data[EI_CLASS] == ELFCLASS64;
}

static unsigned elf_segment_count(const struct kernel_image *image)
{
	return elf_is_64(image) ? ((const Elf64_Ehdr *)image->data)->e_phnum : ((const Elf32_Ehdr *)image->data)->e_phnum;
}

static uint64_t elf_entry(const struct kernel_image *image)
{
	return elf_is_64(image) ? ((const Elf64_Ehdr *)image->data)->e_entry : ((const Elf32_Ehdr *)image->data)->e_entry;
}

// False if the header is not inside the file.
static bool elf_segment(const struct kernel_image *image, unsigned index, struct segment *segment)
{
	const Elf64_Ehdr *header64 = (const Elf64_Ehdr *)image->data;
	const Elf32_Ehdr *header32 = (const Elf32_Ehdr *)image->data;
	uint64_t entry_size = elf_is_64(image) ? header64->e_phentsize : header32->e_phentsize;
	uint64_t offset = elf_is_64(image) ? header64->e_phoff : header32->e_phoff;

	if (entry_size < (elf_is_64(image) ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || offset > image->size ||
	    entry_size * (index + 1) > image->size - offset)
		return false;
	if (elf_is_64(image)) {
		Elf64_Phdr ph;

		memcpy(&ph, image->data + offset + entry_size * index, sizeof(ph));
		*segment = (struct segment){ ph.p_type, ph.p_offset, ph.p_vaddr, ph.p_paddr, ph.p_filesz, ph.p_memsz };
	} else {
		Elf32_Phdr ph;

		memcpy(&ph, image->data + offset + entry_size * index, sizeof(ph));
		*segment = (struct segment){ ph.p_type, ph.p_offset, ph.p_vaddr, ph.p_paddr, ph.p_filesz, ph.p_memsz };
	}
	return true;
}

// The Multiboot header: magic, flags and checksum that add up to zero, in the first 8 KiB.
static void elf_find_multiboot(struct kernel_image *image)
{
	uint64_t offset;

	for (offset = 0; offset + 12 <= image->size && offset < MULTIBOOT_SEARCH; offset += 4) {
		uint32_t words[3];

		memcpy(words, image->data + offset, sizeof(words));
		if (words[0] == MULTIBOOT_MAGIC && words[0] + words[1] + words[2] == 0) {
			image->multiboot = true;
			image->multiboot_offset = offset;
			return;
		}
	}
}

static int elf_check_header(const struct kernel_image *image)
{
	const Elf32_Ehdr *header = (const Elf32_Ehdr *)image->data; // both classes agree up to e_version
	bool is_64 = elf_is_64(image);

	if ((!is_64 && image->data[EI_CLASS] != ELFCLASS32) || image->data[EI_DATA] != ELFDATA2LSB ||
	    (is_64 ? header->e_machine != EM_X86_64 : header->e_machine != EM_386)) {
		vmm_message("%s: an ELF file for another processor; " ACCEPTED, image->path);
		return -1;
	}
	if (is_64 && image->size < sizeof(Elf64_Ehdr)) {
		vmm_message("%s: truncated ELF file: no room for its header; " ACCEPTED, image->path);
		return -1;
	}
	if (header->e_type != ET_EXEC) {
		vmm_message("%s: an ELF file that is not a fixed-address executable%s; " ACCEPTED, image->path,
			    header->e_type == ET_DYN ? " (a program or library of this host?)" : "");
		return -1;
	}
	return 0;
}

int elf_check(struct kernel_image *image)
{
	unsigned count, i, loads = 0;
	struct segment segment;
	bool kernel_map = false, interpreter = false;

	if (elf_check_header(image) < 0)
		return -1;
	count = elf_segment_count(image);
	for (i = 0; i < count; i++) {
		if (!elf_segment(image, i, &segment)) {
			vmm_message("%s: truncated ELF file: program headers are missing; " ACCEPTED, image->path);
			return -1;
		}
		interpreter |= segment.type == PT_INTERP;
		if (segment.type != PT_LOAD || !segment.memory_size)
			continue;
		if (segment.offset > image->size || segment.file_size > image->size - segment.offset) {
			vmm_message("%s: truncated ELF file: a segment of %" PRIu64 " bytes at offset %" PRIu64
				    " goes beyond its %zu bytes; a complete file is needed",
				    image->path, segment.file_size, segment.offset, image->size);
			return -1;
		}
		if (segment.file_size > segment.memory_size || segment.physical + segment.memory_size < segment.physical) {
			vmm_message("%s: damaged ELF file: impossible segment sizes; " ACCEPTED, image->path);
			return -1;
		}
		kernel_map |= segment.virtual_address >= LINUX_KERNEL_MAP;
		loads++;
	}
	if (!loads || interpreter) {
		vmm_message("%s: %s; " ACCEPTED, image->path,
			    interpreter ? "a dynamically linked program of this host, not a kernel (see --program)" :
					  "an ELF file with nothing to load");
		return -1;
	}
	if (!elf_is_64(image)) {
		image->kind = KERNEL_FLAT32;
		elf_find_multiboot(image);
	} else {
		// Linux is linked high and entered low, at its physical address.
		image->long_mode = true;
		image->kind = kernel_map && elf_entry(image) < 1ull << 32 ? KERNEL_VMLINUX : KERNEL_FLAT64;
	}
	return 0;
}

// RAM that is the guest's own: not the boot data, not the PC's reserved area below 1 MiB.
static bool elf_range_is_free(const struct guest_memory *memory, uint64_t start, uint64_t length)
{
	uint64_t end = start + length;

	if (!guest_memory_at(memory, start, length) || start < BOOT_LOW_END)
		return false;
	return end <= BOOT_EBDA || start >= BOOT_HIGH;
}

int elf_load(const struct kernel_image *image, const struct guest_memory *memory, struct kernel_placement *placement)
{
	unsigned count = elf_segment_count(image), i;
	struct segment segment;

	placement->start = ~0ull;
	placement->entry = elf_entry(image);
	for (i = 0; i < count; i++) {
		if (!elf_segment(image, i, &segment) || segment.type != PT_LOAD || !segment.memory_size)
			continue;
		if (!elf_range_is_free(memory, segment.physical, segment.memory_size)) {
			vmm_message("%s: a segment at %#" PRIx64 "..%#" PRIx64 " is outside usable memory; usable are %#llx.."
				    "%#llx and 1 MiB..%" PRIu64 " MiB (see --mem)", image->path, segment.physical,
				    segment.physical + segment.memory_size, BOOT_LOW_END, BOOT_EBDA,
				    memory->low_size >> 20);
			return -1;
		}
		guest_memory_write(memory, segment.physical, image->data + segment.offset, segment.file_size);
		if (segment.physical < placement->start)
			placement->start = segment.physical;
		if (segment.physical < MEMORY_HOLE_START && segment.physical + segment.memory_size > placement->end)
			placement->end = segment.physical + segment.memory_size;
	}
	return 0;
}
