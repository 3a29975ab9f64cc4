// SPDX-License-Identifier: MIT
// A processor over flat memory for unit tests, and TAP. The processor's library is the real one;
// what is around it is an array, a recorder of memory I/O and a few MSRs.
#ifndef TESTS_CPU_FIXTURE_H
#define TESTS_CPU_FIXTURE_H

#include "cpu/features.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#define RAM_SIZE (16ull << 20)
// In SMM, 1 MiB at FIXTURE_SMRAM is other memory: FIXTURE_SMRAM_SHIFT further up in ram[].
#define FIXTURE_SMRAM 0x300000ull
#define FIXTURE_SMRAM_SHIFT 0x900000ull
#define READONLY_PAGE 0xf00000ull // PAGE_READONLY
#define DIRTY_PAGE 0xf01000ull	  // PAGE_LOG_DIRTY

extern u8 *ram;
extern struct cpu *cpu;

// What the surroundings saw.
extern struct seen {
	unsigned maps, dirty, mmio_count, written_pages;
	u64 dirty_gpa;
	struct { u64 gpa; unsigned len; bool write; u8 data[8]; } mmio[16];
	enum cpu_ops_result mmio_result, msr_result, pio_result;
	struct { unsigned calls, size, count; u16 port; bool write; u8 data[4096]; } pio; // data: of OUT, for IN
	u32 msr; // last one that reached the surroundings
	u64 msr_value, cr8;
	s64 tsc_offset;
} seen;

// A new processor with everything that is offered in its CPUID, RAM cleared. Long mode is off.
void fixture_reset(void);
// Removes a feature from the guest's CPUID.
void fixture_without(enum cpu_feature feature);
// 64-bit mode at CPL `cpl` with paging through the tables at `cr3` (CR0.WP set).
void fixture_long_mode(u64 cr3, unsigned cpl);

static inline u64 *qword(u64 gpa) { return (u64 *)(ram + gpa); }
static inline u32 *dword(u64 gpa) { return (u32 *)(ram + gpa); }

// Runs a statement that may raise. What came of it is in `outcome`.
enum { NO_EXCEPTION = -1, ABORTED = -2 };
extern struct outcome {
	int vector; // or NO_EXCEPTION, ABORTED
	u32 error;
	u64 address; // #PF
	enum cpu_exit exit;
} outcome;
extern sigjmp_buf fixture_unwind;
void fixture_outcome(int jumped);
#define TRY(statement) \
	do { \
		int jumped_ = sigsetjmp(fixture_unwind, 0); \
		cpu->unwind = &fixture_unwind; \
		if (!jumped_) { \
			statement; \
		} \
		fixture_outcome(jumped_); \
	} while (0)

bool ok(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool is(u64 got, u64 wanted, const char *format, ...) __attribute__((format(printf, 3, 4)));
int done_testing(void);

#endif
