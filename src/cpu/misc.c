// SPDX-License-Identifier: MIT
// Instructions that fit nowhere else: BOUND, ENTER, PUSHA, POPA, XLAT, random numbers, direct
// stores, cache control, undefined instructions; and the rows of flags.c and bcd.c.
// SDM: each instruction's page.
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"
#include "cpu/stack.h"

#include <string.h>

static s64 sign_extend(u64 value, unsigned size)
{
	return (s64)(value << (64 - 8 * size)) >> (64 - 8 * size);
}

static void bound(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	u64 linear = insn_linear(cpu, insn, 2 * size, false);
	s64 lower = sign_extend(mem_read_n(cpu, linear, size, reading(cpu)), size);
	s64 upper = sign_extend(mem_read_n(cpu, linear + size, size, reading(cpu)), size);
	s64 index = sign_extend(insn_read(cpu, insn, 0), size);

	if (index < lower || index > upper)
		cpu_raise(cpu, VECTOR_BR);
}

// Registers change only after everything was written; the frame may be partly there on a fault.
static void enter(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size, level = insn->far_selector & 31;
	struct stack stack, frames;
	u64 frame, probe;

	stack_current(cpu, &stack);
	check_alignment(cpu, stack.ss.base + stack.sp, size);
	frames = stack;
	frames.sp = cpu->gpr[RBP] & stack.mask;
	stack_push(cpu, &stack, &cpu->gpr[RBP], size, size);
	// Of a stack of 16 bits, the frame pointer gets what ESP has above them, too.
	frame = (cpu->gpr[RSP] & ~stack.mask) | stack.sp;
	for (unsigned i = 1; i < level; i++) {
		u64 value = 0;

		frames.sp = (frames.sp - size) & stack.mask;
		stack_peek(cpu, &frames, 0, &value, size);
		stack_push(cpu, &stack, &value, size, size);
	}
	if (level)
		stack_push(cpu, &stack, &frame, size, size);
	stack.sp = (stack.sp - (u16)insn->imm) & stack.mask;
	// The processor makes sure that the new top of the stack can be written.
	probe = segment_linear(cpu, SEG_SS, stack.sp, size, true);
	mem_probe_write(cpu, probe, size, writing(cpu));
	gpr_write(cpu, RBP, size, frame);
	stack_commit(cpu, &stack);
}

// One push after the other: the first that faults says where. RSP changes after the last.
static void pusha(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	struct stack stack;

	stack_current(cpu, &stack);
	check_alignment(cpu, stack.ss.base + stack.sp, size);
	for (unsigned reg = RAX; reg <= RDI; reg++)
		stack_push(cpu, &stack, &cpu->gpr[reg], size, size);
	stack_commit(cpu, &stack);
}

// Registers that were popped before one faults keep their new values, as on AMD's processors; RSP does
// not move before the last, so the instruction can be restarted.
static void popa(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	struct stack stack;

	stack_current(cpu, &stack);
	check_alignment(cpu, stack.ss.base + stack.sp, size);
	for (int reg = RDI; reg >= RAX; reg--) {
		u64 value = stack_pop(cpu, &stack, size);

		if (reg != RSP)
			gpr_write(cpu, reg, size, value);
	}
	stack_commit(cpu, &stack);
}

static void xlat(struct cpu *cpu, const struct insn *insn)
{
	u64 offset = address_truncate(cpu->gpr[RBX] + (u8)cpu->gpr[RAX], insn->address_size);

	gpr_write(cpu, RAX, 1,
		  mem_read_n(cpu, segment_linear(cpu, insn->mem_seg, offset, 1, false), 1,
			     reading(cpu)));
}

// Both set CF when there was a number, and clear the other arithmetic flags.
static void rdrand(struct cpu *cpu, const struct insn *insn)
{
	u64 value;
	bool good;

	__asm__ volatile("rdrand %0; setc %1" : "=r"(value), "=qm"(good) : : "cc");
	insn_write(cpu, insn, 0, good ? value : 0);
	cpu_set_arith(cpu, good ? FLAG_CF : 0);
}

static void rdseed(struct cpu *cpu, const struct insn *insn)
{
	u64 value;
	bool good;

	__asm__ volatile("rdseed %0; setc %1" : "=r"(value), "=qm"(good) : : "cc");
	insn_write(cpu, insn, 0, good ? value : 0);
	cpu_set_arith(cpu, good ? FLAG_CF : 0);
}

static void movdiri(struct cpu *cpu, const struct insn *insn)
{
	insn_write(cpu, insn, 0, insn_read(cpu, insn, 1));
}

static void movdir64b(struct cpu *cpu, const struct insn *insn)
{
	u64 offset = address_truncate(cpu->gpr[insn->op[0].reg], insn->address_size), to;
	u8 data[64];

	to = segment_linear(cpu, SEG_ES, offset, 64, true);
	if (to & 63)
		cpu_gp0(cpu);
	mem_read(cpu, insn_linear(cpu, insn, 64, false), data, 64, reading(cpu));
	mem_write(cpu, to, data, 64, writing(cpu));
}

// Checked as a load of one byte; caches do not show in this processor.
static void flush_line(struct cpu *cpu, const struct insn *insn)
{
	mem_host(cpu, insn_linear(cpu, insn, 1, false), 1, reading(cpu));
}

static void hint(struct cpu *cpu, const struct insn *insn)
{
}

static void undefined(struct cpu *cpu, const struct insn *insn)
{
	cpu_ud(cpu);
}

#define ROW(name, flags, feature, handler) \
	{ ZYDIS_MNEMONIC_##name, INSN_C, flags, feature, handler }

const struct insn_row rows_misc[] = {
	ROW(BOUND, 0, 0, bound),
	ROW(ENTER, 0, 0, enter),
	ROW(PUSHA, 0, 0, pusha),
	ROW(PUSHAD, 0, 0, pusha),
	ROW(POPA, 0, 0, popa),
	ROW(POPAD, 0, 0, popa),
	ROW(PUSHF, 0, 0, pushf_handler),
	ROW(PUSHFD, 0, 0, pushf_handler),
	ROW(PUSHFQ, 0, 0, pushf_handler),
	ROW(POPF, INSN_END, 0, popf_handler),
	ROW(POPFD, INSN_END, 0, popf_handler),
	ROW(POPFQ, INSN_END, 0, popf_handler),
	ROW(LAHF, 0, 0, lahf_handler),
	ROW(SAHF, 0, 0, sahf_handler),
	ROW(CLC, 0, 0, clc_handler),
	ROW(STC, 0, 0, stc_handler),
	ROW(CMC, 0, 0, cmc_handler),
	ROW(CLD, 0, 0, cld_handler),
	ROW(STD, 0, 0, std_handler),
	ROW(AAA, 0, 0, aaa_handler),
	ROW(AAS, 0, 0, aas_handler),
	ROW(AAM, 0, 0, aam_handler),
	ROW(AAD, 0, 0, aad_handler),
	ROW(DAA, 0, 0, daa_handler),
	ROW(DAS, 0, 0, das_handler),
	ROW(SALC, 0, 0, salc_handler),
	ROW(XLAT, 0, 0, xlat),
	ROW(RDRAND, 0, FEATURE_RDRAND, rdrand),
	ROW(RDSEED, 0, FEATURE_RDSEED, rdseed),
	ROW(MOVDIRI, 0, FEATURE_MOVDIRI, movdiri),
	ROW(MOVDIR64B, 0, FEATURE_MOVDIR64B, movdir64b),
	ROW(CLFLUSH, 0, FEATURE_CLFSH, flush_line),
	ROW(CLFLUSHOPT, 0, FEATURE_CLFLUSHOPT, flush_line),
	ROW(CLWB, 0, FEATURE_CLWB, flush_line),
	ROW(CLDEMOTE, 0, 0, hint),
	ROW(PREFETCH, 0, 0, hint),
	ROW(PREFETCHW, 0, 0, hint),
	ROW(PREFETCHWT1, 0, 0, hint),
	ROW(PREFETCHNTA, 0, 0, hint),
	ROW(PREFETCHT0, 0, 0, hint),
	ROW(PREFETCHT1, 0, 0, hint),
	ROW(PREFETCHT2, 0, 0, hint),
	ROW(UD0, 0, 0, undefined),
	ROW(UD1, 0, 0, undefined),
	ROW(UD2, 0, 0, undefined),
	{ 0 },
};
