// SPDX-License-Identifier: MIT
// A processor over 2 MiB of flat memory, for tests that call the processor's C directly: descriptor
// tables, TSSs, page tables and stacks are laid out here; a test changes what it is about.
#ifndef TESTS_CPU_MACHINE_H
#define TESTS_CPU_MACHINE_H

#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/mem.h"
#include "cpu/segment.h"
#include "cpu/transfer.h"

enum {
	MEMORY_SIZE = 0x200000,
	GDT = 0x1000, LDT = 0x1800, IDT = 0x2000, TSS = 0x3000, TSS_B = 0x3400, SSP_TABLE = 0x3800,
	PAGE_TABLES = 0x10000,
	KERNEL_STACK = 0x21000, IST_STACK = 0x23000, RING1_STACK = 0x25000, USER_STACK = 0x31000,
	// Tops of shadow stacks: two pages of the supervisor's, one of the user's.
	KERNEL_SS = 0x41000, IST_SS = 0x43000, RING1_SS = 0x45000, USER_SS = 0x51000, USER_SS2 = 0x53000,
	NOT_SS = 0x60000, // ordinary page below
	UNMAPPED = 0x70000,
};

enum selector {
	CODE64 = 0x08, DATA = 0x10, USER_CODE32 = 0x1b, USER_DATA = 0x23, USER_CODE64 = 0x2b, CODE32 = 0x30,
	TSS_SELECTOR = 0x40, GATE = 0x50, CONFORMING64 = 0x60, RING1_DATA = 0x69, RING1_CODE64 = 0x71,
	ABSENT_DATA = 0x78, TSS_B_SELECTOR = 0x80, CODE16 = 0x88, RING1_CODE32 = 0x91, ABSENT_CODE = 0x98,
	READ_ONLY = 0xa0, CONFORMING32 = 0xa8, LDT_SELECTOR = 0xb0, TASK_GATE = 0xc0, USER_ABSENT_DATA = 0xcb,
	DATA16 = 0xd0, USER_READ_ONLY = 0xdb, EXECUTE_ONLY = 0xe0,
	GDT_LIMIT = 0xff,
};

#define HANDLER 0xffffffff81000000ull // where 64-bit gates lead
#define HANDLER32 0x8000u

extern struct cpu *cpu;
extern u8 *memory;

void machine_long(unsigned cpl); // 64-bit code at that level
void machine_compat(void); // 32-bit code at level 3 in long mode
void machine_32(unsigned cpl); // protected mode, no paging
void machine_v86(unsigned iopl);
void machine_real(void);
// CET on at all levels: shadow stacks, trackers when ibt. Sets SSP for the current level.
void machine_cet(bool shadow_stacks, bool ibt);

u64 get(u64 address, unsigned size);
void put(u64 address, u64 value, unsigned size);
void set_descriptor(u16 selector, u64 base, u32 limit, u32 attributes);
void set_gate64(u8 vector, u16 selector, u64 offset, unsigned type, unsigned dpl, unsigned ist);
void set_gate32(u8 vector, u16 selector, u32 offset, unsigned type, unsigned dpl);
void set_call_gate64(u16 at, u16 selector, u64 offset, unsigned dpl);
void set_call_gate32(u16 at, u16 selector, u32 offset, unsigned type, unsigned dpl, unsigned params);
void map_page(u64 linear, u64 flags);
void token(u64 address, bool busy);

// Executes an instruction by its handler: `insn` names at least the mnemonic.
void execute(const struct insn *insn);
#define INSN(name, size_, ...) \
	(&(struct insn){ .mnemonic = ZYDIS_MNEMONIC_##name, .operand_size = (size_), .length = 3, \
			 .address_size = 8, .mem_base = 0xff, .mem_index = 0xff, ##__VA_ARGS__ })

// Runs a statement which may raise. Afterwards raised.vector is -1 or what it raised.
struct raised {
	int vector;
	u32 error;
	u64 payload;
};
extern struct raised raised;
void try_begin(void);
void try_end(bool jumped);
#define TRY(...) \
	do { \
		sigjmp_buf buf_; \
		cpu->unwind = &buf_; \
		try_begin(); \
		if (!sigsetjmp(buf_, 0)) { \
			__VA_ARGS__; \
			try_end(false); \
		} else { \
			try_end(true); \
		} \
	} while (0)
// A raise is expected to change registers (task switches).
extern bool raise_may_change;

void ok_at(bool condition, const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
void is_at(u64 got, u64 wanted, const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 5, 6)));
void raises_at(int vector, u32 error, const char *file, int line, const char *name);
#define ok(condition, ...) ok_at(condition, __FILE__, __LINE__, __VA_ARGS__)
#define is(got, wanted, ...) is_at(got, wanted, __FILE__, __LINE__, __VA_ARGS__)
// The last TRY raised that vector with that error code (NO_ERROR: none is pushed); NOTHING: it did not.
#define raises(vector, error, name) raises_at(vector, error, __FILE__, __LINE__, name)
#define NOTHING -1
#define NO_ERROR 0xffffffffu
int done(void);

#endif
