// SPDX-License-Identifier: MIT
// The state in which a boot loader enters a kernel. Sources: "The Linux/x86 Boot Protocol" of the
// kernel's documentation (64-bit), the Multiboot specification 0.6.96, and Intel SDM "Initialization
// Overview" for the descriptor and paging formats.
#include "vmm/boot.h"

#include "vmm/machine.h"
#include "vmm/message.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define E820_RAM      1
#define E820_RESERVED 2

#define LOADER_TYPE_UNDEFINED 0xff
#define SETUP_RNG_SEED_TYPE   9 // SETUP_RNG_SEED of newer headers
#define RNG_SEED_SIZE         32

#define SELECTOR_CODE 0x10 // __BOOT_CS of the boot protocol
#define SELECTOR_DATA 0x18
#define SELECTOR_TASK 0x20

#define CR0_PE 0x00000001ull
#define CR0_ET 0x00000010ull
#define CR0_NE 0x00000020ull
#define CR0_WP 0x00010000ull
#define CR0_PG 0x80000000ull
#define CR4_PAE 0x20ull
#define EFER_LME 0x100ull
#define EFER_LMA 0x400ull

#define PAGE_PRESENT_WRITE 0x3ull
#define PAGE_LARGE         0x80ull

#define MULTIBOOT_BOOT_MAGIC   0x2badb002u
#define MULTIBOOT_HAS_MEMORY   0x001u
#define MULTIBOOT_HAS_CMDLINE  0x004u
#define MULTIBOOT_HAS_MODULES  0x008u

static void e820_add(struct boot_params *params, uint64_t start, uint64_t end, uint32_t type)
{
	struct boot_e820_entry *entry = &params->e820_table[params->e820_entries];

	if (start >= end)
		return;
	entry->addr = start;
	entry->size = end - start;
	entry->type = type;
	params->e820_entries++;
}

static void boot_write_e820(struct boot_params *params, const struct guest_memory *memory)
{
	e820_add(params, 0, BOOT_EBDA, E820_RAM);
	e820_add(params, BOOT_EBDA, 0xa0000, E820_RESERVED);
	e820_add(params, BOOT_ACPI, BOOT_HIGH, E820_RESERVED);
	e820_add(params, BOOT_HIGH, memory->low_size, E820_RAM);
	e820_add(params, MEMORY_HOLE_END, MEMORY_HOLE_END + memory->high_size, E820_RAM);
}

// Gives the guest's random number generator a start that a machine without devices cannot gather.
static void boot_write_rng_seed(struct boot_params *params, const struct guest_memory *memory)
{
	struct {
		struct setup_data header;
		uint8_t seed[RNG_SEED_SIZE];
	} data = { .header = { .type = SETUP_RNG_SEED_TYPE, .len = RNG_SEED_SIZE } };

	if (getrandom(data.seed, sizeof(data.seed), 0) != sizeof(data.seed))
		return;
	guest_memory_write(memory, BOOT_RNG_SEED, &data, sizeof(data));
	params->hdr.setup_data = BOOT_RNG_SEED;
}

static void boot_write_params(struct machine *machine, const struct kernel_image *image,
			      const struct kernel_placement *placement, uint64_t rsdp)
{
	struct boot_params params;

	memset(&params, 0, sizeof(params));
	if (image->kind == KERNEL_BZIMAGE) {
		// The header ends where the jump at 0x200 says: 0x202 + its displacement byte.
		size_t end = 0x202 + image->data[0x201], start = offsetof(struct boot_params, hdr);

		if (end > start + sizeof(params.hdr))
			end = start + sizeof(params.hdr);
		memcpy(&params.hdr, image->data + start, end - start);
	} else {
		params.hdr.boot_flag = 0xaa55;
		params.hdr.header = 0x53726448;
		params.hdr.version = 0x020f;
		params.hdr.kernel_alignment = 0x200000;
	}
	params.hdr.type_of_loader = LOADER_TYPE_UNDEFINED;
	params.hdr.loadflags |= LOADED_HIGH;
	params.hdr.loadflags &= ~CAN_USE_HEAP;
	params.hdr.vid_mode = 0xffff; // normal
	params.hdr.cmd_line_ptr = BOOT_COMMAND_LINE;
	params.hdr.ramdisk_image = placement->initrd_address;
	params.hdr.ramdisk_size = placement->initrd_size;
	params.acpi_rsdp_addr = rsdp;
	params.alt_mem_k = machine->memory.low_size > 1 << 20 ? (machine->memory.low_size >> 10) - 1024 : 0;
	boot_write_e820(&params, &machine->memory);
	boot_write_rng_seed(&params, &machine->memory);
	guest_memory_write(&machine->memory, BOOT_PARAMS, &params, sizeof(params));
}

static void boot_write_multiboot(struct machine *machine, const struct kernel_placement *placement)
{
	struct {
		uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, rest[22];
		uint32_t module[4]; // start, end, string, reserved
	} info;

	memset(&info, 0, sizeof(info));
	info.flags = MULTIBOOT_HAS_MEMORY | MULTIBOOT_HAS_CMDLINE;
	info.mem_lower = 639;
	info.mem_upper = machine->memory.low_size > 1 << 20 ? (machine->memory.low_size >> 10) - 1024 : 0;
	info.cmdline = BOOT_COMMAND_LINE;
	if (placement->initrd_size) {
		info.flags |= MULTIBOOT_HAS_MODULES;
		info.mods_count = 1;
		info.mods_addr = BOOT_MULTIBOOT + __builtin_offsetof(__typeof__(info), module);
		info.module[0] = placement->initrd_address;
		info.module[1] = placement->initrd_address + placement->initrd_size;
	}
	guest_memory_write(&machine->memory, BOOT_MULTIBOOT, &info, sizeof(info));
}

// 4 GiB identity-mapped with 2 MiB pages: one PML4, one PDPT, four page directories.
static void boot_write_page_tables(const struct guest_memory *memory)
{
	uint64_t table[512], directory = BOOT_PAGE_TABLES + 0x2000;
	unsigned i, k;

	memset(table, 0, sizeof(table));
	table[0] = (BOOT_PAGE_TABLES + 0x1000) | PAGE_PRESENT_WRITE;
	guest_memory_write(memory, BOOT_PAGE_TABLES, table, sizeof(table));
	for (i = 0; i < 4; i++)
		table[i] = (directory + i * 0x1000) | PAGE_PRESENT_WRITE;
	guest_memory_write(memory, BOOT_PAGE_TABLES + 0x1000, table, sizeof(table));
	for (i = 0; i < 4; i++) {
		for (k = 0; k < 512; k++)
			table[k] = ((uint64_t)i << 30 | k << 21) | PAGE_PRESENT_WRITE | PAGE_LARGE;
		guest_memory_write(memory, directory + i * 0x1000, table, sizeof(table));
	}
}

void boot_prepare_memory(struct machine *machine, const struct kernel_image *image,
			 const struct kernel_placement *placement, uint64_t rsdp)
{
	bool long_mode = image->long_mode;
	const uint64_t gdt[] = {
		0, 0,
		long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull, // code
		0x00cf93000000ffffull,                                     // data
		0x00008b0000000067ull, 0,                                  // TSS, never used
	};
	const struct guest_memory *memory = &machine->memory;
	const char *append = machine->config->append;

	guest_memory_write(memory, BOOT_GDT, gdt, sizeof(gdt));
	guest_memory_write(memory, BOOT_COMMAND_LINE, append, strlen(append) + 1);
	boot_write_params(machine, image, placement, rsdp);
	boot_write_page_tables(memory);
	if (image->multiboot)
		boot_write_multiboot(machine, placement);
}

static void boot_set_segments(struct kvm_sregs *sregs, bool long_mode)
{
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = SELECTOR_DATA, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct kvm_segment code = data;

	code.selector = SELECTOR_CODE;
	code.type = 11;
	code.l = long_mode;
	code.db = !long_mode;
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->tr = (struct kvm_segment){ .limit = 0x67, .selector = SELECTOR_TASK, .type = 11, .present = 1 };
	sregs->ldt = (struct kvm_segment){ .type = 2, .unusable = 1 };
	sregs->gdt.base = BOOT_GDT;
	sregs->gdt.limit = 6 * 8 - 1;
	sregs->idt.base = 0;
	sregs->idt.limit = 0;
}

int boot_set_registers(struct machine *machine, const struct kernel_image *image,
		       const struct kernel_placement *placement)
{
	const struct kvm_backend *kvm = machine->kvm;
	bool long_mode = image->long_mode;
	int fd = machine->vcpus[0].fd;
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = placement->entry, .rflags = 2, .rsp = BOOT_STACK_TOP, .rsi = BOOT_PARAMS,
	};

	if (image->multiboot) {
		regs.rax = MULTIBOOT_BOOT_MAGIC;
		regs.rbx = BOOT_MULTIBOOT;
	}
	if (kvm->ioctl(fd, KVM_GET_SREGS, &sregs) < 0) {
		vmm_message("%s: KVM_GET_SREGS: %s", kvm->name, strerror(errno));
		return -1;
	}
	boot_set_segments(&sregs, long_mode);
	sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
	if (long_mode) {
		sregs.cr0 |= CR0_PG | CR0_WP;
		sregs.cr3 = BOOT_PAGE_TABLES;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
	}
	if (kvm->ioctl(fd, KVM_SET_SREGS, &sregs) < 0 || kvm->ioctl(fd, KVM_SET_REGS, &regs) < 0) {
		vmm_message("%s: setting the boot processor's registers: %s", kvm->name, strerror(errno));
		return -1;
	}
	return 0;
}
