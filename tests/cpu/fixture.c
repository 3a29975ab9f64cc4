// SPDX-License-Identifier: MIT
#include "fixture.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

u8 *ram;
struct cpu *cpu;
struct seen seen;
struct outcome outcome;
sigjmp_buf fixture_unwind;
static struct vm_code *vm;
static unsigned tests, failures;

static void *map(void *opaque, u64 gpa, unsigned *flags)
{
	seen.maps++;
	*flags = gpa == READONLY_PAGE ? PAGE_READONLY : gpa == DIRTY_PAGE ? PAGE_LOG_DIRTY : 0;
	if (cpu->smm && gpa - FIXTURE_SMRAM < 1 << 20)
		gpa += FIXTURE_SMRAM_SHIFT;
	return gpa < RAM_SIZE ? ram + gpa : NULL;
}

static void mark_dirty(void *opaque, u64 gpa)
{
	seen.dirty++;
	seen.dirty_gpa = gpa;
}

static enum cpu_ops_result mmio(void *opaque, u64 gpa, void *data, unsigned len, bool write)
{
	if (seen.mmio_result == CPU_OPS_DONE && seen.mmio_count < 16) {
		seen.mmio[seen.mmio_count].gpa = gpa;
		seen.mmio[seen.mmio_count].len = len;
		seen.mmio[seen.mmio_count].write = write;
		if (write)
			memcpy(seen.mmio[seen.mmio_count].data, data, len);
		seen.mmio_count++;
	}
	if (!write)
		memset(data, 0xa5, len);
	return seen.mmio_result;
}

static enum cpu_ops_result pio(void *opaque, u16 port, void *data, unsigned size, unsigned count, bool write)
{
	seen.pio.calls++;
	seen.pio.port = port;
	seen.pio.size = size;
	seen.pio.count = count;
	seen.pio.write = write;
	if (write)
		memcpy(seen.pio.data, data, size * count);
	else
		memcpy(data, seen.pio.data, size * count);
	return seen.pio_result;
}

static enum cpu_ops_result rdmsr(void *opaque, u32 msr, u64 *value, enum who who)
{
	if (msr == MSR_APIC_BASE) {
		*value = 0xfee00900;
		return CPU_OPS_DONE;
	}
	seen.msr = msr;
	*value = 0x1234;
	return seen.msr_result;
}

static enum cpu_ops_result wrmsr(void *opaque, u32 msr, u64 value, enum who who)
{
	if (msr == MSR_TSC) {
		seen.tsc_offset = value - 1000;
		return CPU_OPS_DONE;
	}
	seen.msr = msr;
	seen.msr_value = value;
	return seen.msr_result;
}

static int interrupt(void *opaque, bool acknowledge) { return -1; }
static u64 get_cr8(void *opaque) { return seen.cr8; }
static void set_cr8(void *opaque, u64 tpr) { seen.cr8 = tpr; }
static u64 tsc(void *opaque) { return 1000 + seen.tsc_offset; } // time stands still
static bool init_sipi(void *opaque) { return true; }
static void timer(void *opaque) {}
static enum cpu_ops_result hypercall(void *opaque, bool vmmcall) { return CPU_OPS_DONE; }

static const struct cpu_ops ops = {
	.map = map, .mark_dirty = mark_dirty, .mmio = mmio, .pio = pio, .rdmsr = rdmsr, .wrmsr = wrmsr,
	.interrupt = interrupt, .get_cr8 = get_cr8, .set_cr8 = set_cr8, .tsc = tsc, .init_sipi = init_sipi,
	.timer = timer, .hypercall = hypercall,
};

static struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
static unsigned entry_count;

void fixture_reset(void)
{
	if (!ram)
		ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else
		madvise(ram, RAM_SIZE, MADV_DONTNEED);
	if (!vm)
		vm = vm_code_create();
	if (!cpu)
		cpu = cpu_create(&ops, NULL, vm);
	if (ram == MAP_FAILED || !vm || !cpu) {
		printf("Bail out! no memory\n");
		exit(2);
	}
	memset(&seen, 0, sizeof(seen));
	entry_count = cpuid_supported(entries, CPU_MAX_CPUID);
	cpu->cr4 = 0;
	cpuid_set(cpu, entries, entry_count);
	cpu_reset(cpu, false);
}

void fixture_without(enum cpu_feature feature)
{
	static const struct { u32 function, index; u8 reg; } words[WORD_COUNT] = {
		[WORD_1_EDX] = { 1, 0, 3 },	  [WORD_1_ECX] = { 1, 0, 2 },
		[WORD_7_0_EBX] = { 7, 0, 1 },	  [WORD_7_0_ECX] = { 7, 0, 2 },
		[WORD_7_0_EDX] = { 7, 0, 3 },	  [WORD_7_1_EAX] = { 7, 1, 0 },
		[WORD_8_1_EDX] = { 0x80000001, 0, 3 }, [WORD_8_1_ECX] = { 0x80000001, 0, 2 },
		[WORD_D_1_EAX] = { 0xd, 1, 0 },	  [WORD_8_8_EBX] = { 0x80000008, 0, 1 },
		[WORD_6_EAX] = { 6, 0, 0 },	  [WORD_7_2_EDX] = { 7, 2, 3 },
		[WORD_5_ECX] = { 5, 0, 2 },
	};
	unsigned word = (feature - 1) / 32, bit = (feature - 1) % 32;

	for (unsigned i = 0; i < entry_count; i++)
		if (entries[i].function == words[word].function && entries[i].index == words[word].index)
			(&entries[i].eax)[words[word].reg] &= ~(1u << bit);
	cpuid_set(cpu, entries, entry_count);
}

void fixture_long_mode(u64 cr3, unsigned cpl)
{
	cpu_set_efer(cpu, EFER_LME | EFER_LMA | EFER_NX | EFER_SCE, BY_HOST);
	cpu_set_cr4(cpu, CR4_PAE | CR4_PGE | CR4_OSXSAVE | CR4_OSFXSR, BY_HOST);
	cpu_set_cr3(cpu, cr3, BY_HOST);
	cpu_set_cr0(cpu, CR0_PE | CR0_PG | CR0_WP | CR0_NE, BY_HOST);
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_L | 0xb | cpl << SEG_DPL_SHIFT;
	cpu->cpl = cpl;
}

void fixture_outcome(int jumped)
{
	outcome = (struct outcome){ .vector = NO_EXCEPTION };
	if (jumped && cpu->event.valid) {
		outcome.vector = cpu->event.vector;
		outcome.error = cpu->event.error;
		outcome.address = cpu->event.payload;
	} else if (jumped) {
		outcome.vector = ABORTED;
		outcome.exit = cpu->exit;
	}
	cpu->event.valid = false;
	cpu->unwind = NULL;
}

static bool report(bool good, const char *format, va_list args)
{
	printf("%s %u - ", good ? "ok" : "not ok", ++tests);
	vprintf(format, args);
	putchar('\n');
	failures += !good;
	return good;
}

bool ok(bool good, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	report(good, format, args);
	va_end(args);
	return good;
}

bool is(u64 got, u64 wanted, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (!report(got == wanted, format, args))
		printf("#   wanted %#llx\n#   got    %#llx\n", (unsigned long long)wanted,
		       (unsigned long long)got);
	va_end(args);
	return got == wanted;
}

int done_testing(void)
{
	printf("1..%u\n", tests);
	fflush(stdout);
	return failures != 0;
}
