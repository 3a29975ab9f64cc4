// SPDX-License-Identifier: MIT
// `cetkvm exec --client-cpuid`: the CPUID instruction in the client's main program answers as
// KVM_GET_SUPPORTED_CPUID does, and says that the processor can virtualize, for there is a KVM. Programs
// that ask the processor before they open /dev/kvm, as kvmtool does, start then on machines that
// cannot; and a CPU model of another vendor looks the same from everywhere.
//
// CPUID cannot be intercepted, so each one in the program is replaced by UD2, which is as long, and
// done in the handler for SIGILL. The bytes 0f a2 also occur inside other instructions: only what
// the program's table of functions (.eh_frame) leads to by decoding from a function's start is taken.
// Libraries, and the C library's own questions, are left alone.
#include "preload/preload.h"

#include "cetkvm/cetkvm.h"

#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define SITES_MAX 1024
#define ENTRIES_MAX 128

// DWARF pointer encodings of the linker's making; others are not looked at.
#define PCREL_SDATA4 0x1b
#define DATAREL_SDATA4 0x3b
#define UDATA4 0x03

static uintptr_t sites[SITES_MAX]; // in ascending order
static unsigned site_count;
static struct {
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entries[ENTRIES_MAX];
} answers;

static const uint8_t cpuid_bytes[2] = { 0x0f, 0xa2 }, ud2_bytes[2] = { 0x0f, 0x0b };

// ---- finding them ----
struct program {
	uintptr_t base;
	const uint8_t *table; // .eh_frame_hdr
	uintptr_t start[16], end[16]; // executable segments
	unsigned segments;
};

static int look_at_program(struct dl_phdr_info *info, size_t size, void *opaque)
{
	struct program *program = opaque;

	program->base = info->dlpi_addr;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];

		if (segment->p_type == PT_GNU_EH_FRAME)
			program->table = (const uint8_t *)(info->dlpi_addr + segment->p_vaddr);
		if (segment->p_type == PT_LOAD && (segment->p_flags & PF_X) && program->segments < 16) {
			program->start[program->segments] = info->dlpi_addr + segment->p_vaddr;
			program->end[program->segments++] = info->dlpi_addr + segment->p_vaddr + segment->p_filesz;
		}
	}
	return 1; // the first is the main program
}

static bool executable(const struct program *program, uintptr_t start, uintptr_t end)
{
	for (unsigned i = 0; i < program->segments; i++)
		if (start >= program->start[i] && end <= program->end[i] && start < end)
			return true;
	return false;
}

static int32_t get32(const uint8_t *from)
{
	int32_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

// The encoding of addresses in the FDEs that use this CIE, or -1 if it is too strange.
static int fde_encoding(const uint8_t *cie)
{
	const char *augmentation = (const char *)cie + 9;
	const uint8_t *p = (const uint8_t *)augmentation + strlen(augmentation) + 1;

	if (*augmentation != 'z')
		return -1;
	for (unsigned skip = 0; skip < 3; skip++) // code and data alignment, return register: LEB128
		while (*p++ & 0x80)
			;
	while (*p++ & 0x80) // length of what follows
		;
	for (augmentation++; *augmentation; augmentation++) {
		if (*augmentation == 'R')
			return *p;
		if (*augmentation == 'L')
			p++;
		else if (*augmentation == 'P' && (*p & 0xf) == 0xb)
			p += 5;
		else if (*augmentation != 'S' && *augmentation != 'B')
			return -1;
	}
	return -1;
}

static void take_function(const struct program *program, const ZydisDecoder *decoder, uintptr_t start, uintptr_t end)
{
	ZydisDecodedInstruction instruction;

	if (!executable(program, start, end) || !memmem((const void *)start, end - start, cpuid_bytes, 2))
		return;
	while (start < end && ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(decoder, NULL, (const void *)start, end - start,
									 &instruction))) {
		// A prefix would make it longer than UD2, and nobody writes one.
		if (instruction.mnemonic == ZYDIS_MNEMONIC_CPUID && instruction.length == 2 && site_count < SITES_MAX)
			sites[site_count++] = start;
		start += instruction.length;
	}
}

// "Linux Standard Base Core Specification", Exception Frames: the table is sorted by address.
static bool find_sites(const struct program *program)
{
	const uint8_t *table = program->table;
	ZydisDecoder decoder;
	uint32_t count;

	if (!table || table[0] != 1 || table[1] != PCREL_SDATA4 || table[2] != UDATA4 || table[3] != DATAREL_SDATA4)
		return false;
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	count = (uint32_t)get32(table + 8);
	for (uint32_t i = 0; i < count; i++) {
		uintptr_t start = (uintptr_t)table + (uintptr_t)(intptr_t)get32(table + 12 + 8 * i);
		const uint8_t *fde = table + get32(table + 12 + 8 * i + 4), *cie = fde + 4 - get32(fde + 4);

		if (fde_encoding(cie) == PCREL_SDATA4)
			take_function(program, &decoder, start, start + (uint32_t)get32(fde + 12));
	}
	return true;
}

static bool patch(void)
{
	uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);

	for (unsigned i = 0; i < site_count; i++) {
		uintptr_t first = sites[i] & -page_size, last = (sites[i] + 1) & -page_size;
		size_t size = last - first + page_size;

		if (mprotect((void *)first, size, PROT_READ | PROT_WRITE) < 0)
			return false;
		memcpy((void *)sites[i], ud2_bytes, 2);
		if (mprotect((void *)first, size, PROT_READ | PROT_EXEC) < 0)
			return false;
	}
	return true;
}

// ---- answering ----
static const struct kvm_cpuid_entry2 *find_answer(uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < answers.header.nent; i++) {
		const struct kvm_cpuid_entry2 *e = &answers.entries[i];

		if (e->function == function && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
			return e;
	}
	return NULL;
}

static bool vendor_is(const char *vendor)
{
	const struct kvm_cpuid_entry2 *e = find_answer(0, 0);

	return e && !memcmp(&e->ebx, vendor, 4);
}

static void answer(greg_t *regs)
{
	uint32_t function = (uint32_t)regs[REG_RAX], index = (uint32_t)regs[REG_RCX];
	const struct kvm_cpuid_entry2 *e = find_answer(function, index);
	uint32_t eax, ebx, ecx, edx;

	// What depends on where and when the question is asked is the host's.
	__cpuid_count(function, index, eax, ebx, ecx, edx);
	if (function == 1 && e) {
		ecx = (e->ecx & ~(1u << 27)) | (ecx & 1u << 27); // OSXSAVE
		if (vendor_is("Genu"))
			ecx |= 1u << 5; // VMX
		eax = e->eax;
		edx = e->edx;
	} else if (function != 0xb && function != 0x1f) {
		eax = e ? e->eax : 0;
		ebx = e ? e->ebx : 0;
		ecx = e ? e->ecx : 0;
		edx = e ? e->edx : 0;
		if (function == 0x80000001 && !vendor_is("Genu"))
			ecx |= 1u << 2; // SVM
	}
	regs[REG_RAX] = eax;
	regs[REG_RBX] = ebx;
	regs[REG_RCX] = ecx;
	regs[REG_RDX] = edx;
}

bool client_cpuid_fault(void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uintptr_t pc = (uintptr_t)regs[REG_RIP];

	for (unsigned i = 0; i < site_count; i++)
		if (sites[i] == pc) {
			answer(regs);
			regs[REG_RIP] += 2;
			return true;
		}
	return false;
}

static const char *start(void)
{
	struct program program = { 0 };
	int fd;

	dl_iterate_phdr(look_at_program, &program);
	if (!find_sites(&program))
		return "this program has no table of functions to find CPUID by";
	if (!site_count)
		return NULL;
	signals_start();
	thread.inside++;
	fd = cetkvm_open();
	answers.header.nent = ENTRIES_MAX;
	if (fd < 0 || cetkvm_ioctl(fd, KVM_GET_SUPPORTED_CPUID, &answers) < 0)
		answers.header.nent = 0;
	if (fd >= 0)
		cetkvm_close(fd);
	thread.inside--;
	if (!answers.header.nent)
		return strerror(errno);
	return patch() ? NULL : strerror(errno);
}

void client_cpuid_start(void)
{
	const char *problem = start();

	if (problem)
		fprintf(stderr, "cetkvm: --client-cpuid: %s\n", problem);
}
