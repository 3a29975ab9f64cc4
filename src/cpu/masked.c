// SPDX-License-Identifier: MIT
// Masked vector moves: MASKMOVQ, MASKMOVDQU, VMASKMOVPS/PD, VPMASKMOVD/Q. Elements whose mask bit
// is clear are not accessed; except for the byte-wise stores, they cannot fault. A store checks all
// its elements before it writes the first.
// SDM: the instructions' pages.
#include "cpu/fpu.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"

#include <string.h>

#define VECTOR_MAX 32

static u64 element_linear(struct cpu *cpu, const struct insn *insn, u64 offset, unsigned size,
			  bool write)
{
	return segment_linear(cpu, insn->mem_seg, address_truncate(offset, insn->address_size), size,
			      write);
}

static bool selected(const u8 *mask, unsigned i, unsigned unit)
{
	return mask[i + unit - 1] & 0x80;
}

// Writes elements of `unit` bytes whose mask has its top bit set.
static void masked_store(struct cpu *cpu, const struct insn *insn, u64 offset, const u8 *data,
			 const u8 *mask, unsigned bytes, unsigned unit)
{
	unsigned access = ACCESS_WRITE | cpu_access_of_cpl(cpu);

	for (unsigned i = 0; i < bytes; i += unit)
		if (selected(mask, i, unit))
			mem_probe_write(cpu, element_linear(cpu, insn, offset + i, unit, true), unit,
					access);
	for (unsigned i = 0; i < bytes; i += unit)
		if (selected(mask, i, unit))
			mem_write(cpu, element_linear(cpu, insn, offset + i, unit, true), data + i,
				  unit, access);
}

// The whole operand must be writable, whatever is selected: the SDM leaves that open, and processors
// (AMD's at least) check it, 8 bytes at a time.
static void check_operand(struct cpu *cpu, const struct insn *insn, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i += 8)
		mem_probe_write(cpu, element_linear(cpu, insn, cpu->gpr[RDI] + i, 8, true), 8,
				ACCESS_WRITE | cpu_access_of_cpl(cpu));
}

void maskmov_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 data[16], mask[16];
	unsigned bytes = 16;

	if (insn->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) {
		if ((fpu_get16(cpu, FX_FSW) & 0x80) && (cpu->cr0 & CR0_NE)) // ES: an exception is pending
			cpu_raise(cpu, VECTOR_MF);
		u64 mm = fpu_mmx_read(cpu, insn->op[0].reg), select = fpu_mmx_read(cpu, insn->op[1].reg);

		bytes = 8;
		memcpy(data, &mm, 8);
		memcpy(mask, &select, 8);
	} else {
		fpu_vec_read(cpu, insn->op[0].reg, data, 16);
		fpu_vec_read(cpu, insn->op[1].reg, mask, 16);
	}
	if (bytes == 8)
		fpu_mmx_enter(cpu);
	check_operand(cpu, insn, bytes);
	masked_store(cpu, insn, cpu->gpr[RDI], data, mask, bytes, 1);
}

static unsigned element_bytes(const struct insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return 8;
	}
	return 4;
}

void vmaskmov_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned bytes = insn->vector_length, unit = element_bytes(insn);
	unsigned access = ACCESS_READ | cpu_access_of_cpl(cpu);
	u64 offset = insn_offset(cpu, insn);
	u8 mask[VECTOR_MAX], data[VECTOR_MAX] = { 0 };

	if (bytes > VECTOR_MAX)
		cpu_ud(cpu);
	fpu_vec_read(cpu, insn->op[1].reg, mask, bytes);
	if (insn->op[0].kind == OPERAND_MEM) {
		fpu_vec_read(cpu, insn->op[2].reg, data, bytes);
		masked_store(cpu, insn, offset, data, mask, bytes, unit);
		return;
	}
	for (unsigned i = 0; i < bytes; i += unit)
		if (selected(mask, i, unit))
			mem_read(cpu, element_linear(cpu, insn, offset + i, unit, false), data + i, unit,
				 access);
	fpu_vec_write_clear(cpu, insn->op[0].reg, data, bytes);
}
