// SPDX-License-Identifier: MIT
// Damaged kernels: headers with random changes are either refused or loaded without a step outside
// the file or the guest's memory. The sanitized build is the judge; every build checks that what was
// loaded lies where the boot data is not. Usage: kernel-files [ROUNDS [SEED]]
#include "vmm/kernel.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_SIZE   8192
#define MEMORY_SIZE (64ull << 20)

static uint64_t state;

static uint64_t random_next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void make_bzimage(uint8_t *data)
{
	struct setup_header *header = (struct setup_header *)(data + 0x1f1);

	header->setup_sects = 1;
	header->syssize = (FILE_SIZE - 1024) / 16;
	header->boot_flag = 0xaa55;
	header->jump = 0x6aeb;
	header->header = 0x53726448;
	header->version = 0x020f;
	header->xloadflags = XLF_KERNEL_64;
	header->initrd_addr_max = 0x7fffffff;
	header->cmdline_size = 2047;
	header->pref_address = 0x1000000;
	header->init_size = 0x1000000;
}

static void make_elf64(uint8_t *data)
{
	Elf64_Ehdr *header = (Elf64_Ehdr *)data;
	Elf64_Phdr *segment = (Elf64_Phdr *)(data + sizeof(*header));

	memcpy(header->e_ident, ELFMAG "\2\1\1", 7);
	header->e_type = ET_EXEC;
	header->e_machine = EM_X86_64;
	header->e_version = 1;
	header->e_entry = 0x100000;
	header->e_phoff = sizeof(*header);
	header->e_phentsize = sizeof(*segment);
	header->e_phnum = 2;
	segment[0] = (Elf64_Phdr){ PT_LOAD, PF_R | PF_X, 0, 0x100000, 0x100000, 4096, 8192, 4096 };
	segment[1] = (Elf64_Phdr){ PT_LOAD, PF_R | PF_W, 4096, 0x200000, 0x200000, 4096, 4096, 4096 };
}

static void make_elf32(uint8_t *data)
{
	Elf32_Ehdr *header = (Elf32_Ehdr *)data;
	Elf32_Phdr *segment = (Elf32_Phdr *)(data + sizeof(*header));

	memcpy(header->e_ident, ELFMAG "\1\1\1", 7);
	header->e_type = ET_EXEC;
	header->e_machine = EM_386;
	header->e_version = 1;
	header->e_entry = 0x100000;
	header->e_phoff = sizeof(*header);
	header->e_phentsize = sizeof(*segment);
	header->e_phnum = 1;
	segment[0] = (Elf32_Phdr){ PT_LOAD, 0, 0x100000, 0x100000, 4096, 8192, PF_R | PF_X, 4096 };
}

static void damage(uint8_t *data, size_t header_size)
{
	unsigned changes = random_next() % 4;
	static const uint64_t edges[] = { 0, 1, 0x7fffffff, 0x80000000, 0xffffffff, ~0ull, 1ull << 63, 0xfffff000 };

	while (changes--) {
		size_t at = random_next() % header_size, width = 1ull << random_next() % 4;
		uint64_t value = random_next() % 2 ? random_next() : edges[random_next() % 8];

		memcpy(data + at, &value, width);
	}
}

// Nothing may have been written to the low memory that belongs to the boot data.
static int check_low_memory(const struct guest_memory *memory)
{
	uint64_t i;

	for (i = 0; i < BOOT_LOW_END; i++)
		if (memory->host[i])
			return -1;
	return 0;
}

int main(int argc, char **argv)
{
	static void (*const makers[])(uint8_t *) = { make_bzimage, make_elf64, make_elf32 };
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000, i, loaded = 0, refused = 0;
	static uint8_t data[FILE_SIZE], initrd[4096];
	struct kernel_placement placement;
	struct guest_memory memory;
	struct kernel_image image;
	char path[64];
	int file, quiet;

	state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	file = memfd_create("kernel", MFD_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);
	dup2(quiet, STDERR_FILENO);
	if (file < 0 || guest_memory_create(&memory, MEMORY_SIZE) < 0)
		return 1;
	for (i = 0; i < rounds; i++) {
		unsigned kind = i % 3;

		memset(data, 0x90, sizeof(data));
		memset(data, 0, 1024);
		makers[kind](data);
		damage(data, kind ? 200 : 1024);
		if (ftruncate(file, 0) < 0 || pwrite(file, data, random_next() % 8 ? FILE_SIZE : random_next() % FILE_SIZE, 0) < 0)
			return 1;
		if (kernel_open(&image, path) < 0) {
			refused++;
			continue;
		}
		if (kernel_load(&image, &memory, initrd, sizeof(initrd), &placement) < 0) {
			refused++;
		} else {
			loaded++;
			if (placement.initrd_address + placement.initrd_size > MEMORY_SIZE ||
			    placement.initrd_address < BOOT_HIGH || placement.initrd_address < placement.end ||
			    check_low_memory(&memory) < 0) {
				printf("not ok 1 - round %lu, seed %s: something was written where it must not\n", i,
				       argc > 2 ? argv[2] : "1");
				return 1;
			}
		}
		kernel_close(&image);
	}
	printf("# %lu files loaded, %lu refused\n", loaded, refused);
	printf("%s 1 - damaged kernel files are refused or loaded safely\n1..1\n", loaded && refused ? "ok" : "not ok");
	return !(loaded && refused);
}
