// SPDX-License-Identifier: MIT
// Executes one instruction, given as bytes, by its handler in C over the fixture's processor.
#ifndef TESTS_CPU_INSN_H
#define TESTS_CPU_INSN_H

#include "fixture.h"

#include "cpu/fpu.h"
#include "cpu/jit_translate.h"

#define INSN_RIP 0x1000

static inline void insn_execute(const u8 *bytes, unsigned length)
{
	static const ZydisMachineMode modes[] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_MACHINE_MODE_LEGACY_32,
						  ZYDIS_MACHINE_MODE_LEGACY_16 };
	static const ZydisStackWidth widths[] = { ZYDIS_STACK_WIDTH_64, ZYDIS_STACK_WIDTH_32,
						  ZYDIS_STACK_WIDTH_16 };
	unsigned mode = cpu_64bit(cpu) ? 0 : cpu->seg[SEG_CS].attributes & SEG_DB ? 1 : 2;
	ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction decoded;
	ZydisDecoder decoder;
	struct insn insn;

	ZydisDecoderInit(&decoder, modes[mode], widths[mode]);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, length, &decoded, operands))) {
		printf("Bail out! cannot decode\n");
		return;
	}
	jit_decode_insn(&decoded, operands, &insn);
	insn.row = insn_row_in_c(insn.mnemonic);
	cpu->rip = INSN_RIP;
	cpu->next_rip = INSN_RIP + insn.length;
	if (insn.row->flags & INSN_UNLOAD_FPU)
		cpu_fpu_unload(cpu);
	insn.row->handler(cpu, &insn);
	cpu->rip = cpu->next_rip;
}

// A function of its own, so that the caller's variables survive the jump out of a raise.
static __attribute__((noinline)) void insn_try(const u8 *bytes, unsigned length)
{
	TRY(insn_execute(bytes, length));
}

#define EXECUTE(...) \
	do { \
		static const u8 bytes_[] = { __VA_ARGS__ }; \
		insn_try(bytes_, sizeof(bytes_)); \
	} while (0)

// 64-bit mode with all of RAM mapped to itself by 4-KiB pages, for CPL `cpl`. pte() names an entry.
enum { TEST_PML4 = 0x10000, TEST_PDPT = 0x11000, TEST_PD = 0x12000, TEST_PT = 0x14000 };
enum { PTE_PRESENT = 1, PTE_WRITE = 2, PTE_USER = 4 };

static inline u64 *pte(u64 linear)
{
	return qword(TEST_PT + (linear >> 12) * 8);
}

static inline void insn_long_mode(unsigned cpl)
{
	const u64 all = PTE_PRESENT | PTE_WRITE | PTE_USER;

	*qword(TEST_PML4) = TEST_PDPT | all;
	*qword(TEST_PDPT) = TEST_PD | all;
	for (unsigned i = 0; i < RAM_SIZE >> 21; i++)
		*qword(TEST_PD + i * 8) = (TEST_PT + i * 4096) | all;
	for (u64 page = 0; page < RAM_SIZE; page += 4096)
		*pte(page) = page | all;
	fixture_long_mode(TEST_PML4, cpl);
	cpu_set_cr4(cpu, cpu->cr4 | CR4_OSXMMEXCPT, BY_HOST);
}

// A xorshift generator: the same numbers every time.
static inline u64 any64(void)
{
	static u64 state = 0x9e3779b97f4a7c15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

#endif
