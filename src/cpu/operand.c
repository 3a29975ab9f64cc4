// SPDX-License-Identifier: MIT
// Operands of handlers in C: effective addresses, segment checks, registers, memory.
// SDM: "Memory Operands", "Limit Checking", "Type Checking", "Segment-Override Prefixes",
// "Canonical Addressing".
//
// An access that wraps around 4 GiB fails the limit check, whatever the limit (the SDM leaves it open
// for a limit of 4 GiB - 1).
#include "cpu/operand.h"

#include "cpu/mem.h"

#define DATA_EXPAND_DOWN 4u // in SEG_TYPE, with bit 3 clear
#define TYPE_CODE 8u
#define TYPE_RW 2u // writable data, readable code

static bool offset_in_limit(const struct segment *s, u64 offset, u64 size)
{
	u64 last = offset + size - 1;

	if ((s->attributes & (SEG_S | TYPE_CODE | DATA_EXPAND_DOWN)) == (SEG_S | DATA_EXPAND_DOWN))
		return offset > s->limit && last <= (s->attributes & SEG_DB ? 0xffffffffu : 0xffffu);
	return last <= s->limit;
}

static bool type_allows(const struct cpu *cpu, const struct segment *s, bool write)
{
	unsigned type = s->attributes & SEG_TYPE;

	if (!cpu_protected(cpu) || cpu_v86(cpu))
		return true;
	if ((s->attributes & SEG_UNUSABLE) || !(s->attributes & SEG_P))
		return false;
	if (write)
		return (type & (TYPE_CODE | TYPE_RW)) == TYPE_RW;
	return !(type & TYPE_CODE) || (type & TYPE_RW);
}

bool segment_allows(struct cpu *cpu, enum seg seg, u64 offset, u64 size, bool write)
{
	const struct segment *s = &cpu->seg[seg];
	u64 linear;

	if (cpu_64bit(cpu)) {
		linear = segment_linear_unchecked(cpu, seg, offset);
		return cpu_canonical(cpu, linear) && cpu_canonical(cpu, linear + size - 1);
	}
	return type_allows(cpu, s, write) && offset_in_limit(s, offset, size);
}

u64 segment_linear(struct cpu *cpu, enum seg seg, u64 offset, unsigned size, bool write)
{
	if (__builtin_expect(!segment_allows(cpu, seg, offset, size, write), 0))
		cpu_raise_error(cpu, seg == SEG_SS ? VECTOR_SS : VECTOR_GP, 0);
	return segment_linear_unchecked(cpu, seg, offset);
}

u64 insn_offset(struct cpu *cpu, const struct insn *insn)
{
	u64 offset = insn->mem_disp;

	if (insn->mem_base == 0xfe)
		offset += cpu->next_rip;
	else if (insn->mem_base != 0xff)
		offset += cpu->gpr[insn->mem_base];
	if (insn->mem_index != 0xff)
		offset += cpu->gpr[insn->mem_index] * insn->mem_scale;
	return address_truncate(offset, insn->address_size);
}

u64 insn_linear(struct cpu *cpu, const struct insn *insn, unsigned size, bool write)
{
	return segment_linear(cpu, insn->mem_seg, insn_offset(cpu, insn), size, write);
}

void insn_check_aligned(struct cpu *cpu, const struct insn *insn, unsigned size)
{
	u64 offset = insn_offset(cpu, insn);

	if (!(segment_linear_unchecked(cpu, insn->mem_seg, offset) & (size - 1)))
		return;
	if (cpu_64bit(cpu))
		segment_linear(cpu, insn->mem_seg, offset, 1, false);
	cpu_gp0(cpu);
}

u64 insn_read(struct cpu *cpu, const struct insn *insn, unsigned n)
{
	const struct operand *op = &insn->op[n];
	u64 linear;

	switch (op->kind) {
	case OPERAND_REG:
		if (op->high)
			return (u8)(cpu->gpr[op->reg & 3] >> 8);
		return gpr_read(cpu, op->reg, op->size);
	case OPERAND_SEG:
		return cpu->seg[op->reg].selector;
	case OPERAND_MEM:
		linear = insn_linear(cpu, insn, op->size, false);
		check_alignment(cpu, linear, op->size);
		return mem_read_n(cpu, linear, op->size, ACCESS_READ | cpu_access_of_cpl(cpu));
	case OPERAND_IMM:
		// The second immediate (ENTER, EXTRQ) is kept apart.
		for (unsigned i = 0; i < n; i++)
			if (insn->op[i].kind == OPERAND_IMM)
				return insn->far_selector;
		return insn->imm;
	}
	cpu_ud(cpu);
	return 0;
}

void insn_write(struct cpu *cpu, const struct insn *insn, unsigned n, u64 value)
{
	const struct operand *op = &insn->op[n];
	u64 linear;

	switch (op->kind) {
	case OPERAND_REG:
		if (op->high)
			((u8 *)&cpu->gpr[op->reg & 3])[1] = value;
		else
			gpr_write(cpu, op->reg, op->size, value);
		return;
	case OPERAND_MEM:
		linear = insn_linear(cpu, insn, op->size, true);
		check_alignment(cpu, linear, op->size);
		mem_write_n(cpu, linear, value, op->size, ACCESS_WRITE | cpu_access_of_cpl(cpu));
		return;
	}
	cpu_ud(cpu);
}
