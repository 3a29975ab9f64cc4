// SPDX-License-Identifier: MIT
// Gathers with a vector mask: VGATHERDPS/QPS/DPD/QPD, VPGATHERDD/QD/DQ/QQ (VEX forms).
//
// Elements are gathered in order; when one faults, those before it are in the destination and
// their mask elements are clear, so that the instruction can be restarted. insn->mem_index is the
// number of the index vector register. The EVEX forms are refused (#UD): not implemented.
// SDM: "VGATHERDPS/VGATHERQPS - Gather Packed Single Precision Floating-Point Values..." and kin.
#include "cpu/fpu.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"

#include <string.h>

struct gather {
	unsigned index_bytes, data_bytes, count, index_vector_bytes;
};

static void gather_shape(const struct insn *insn, struct gather *g)
{
	unsigned by_index, by_data;

	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VPGATHERDD:
		*g = (struct gather){ 4, 4, 0, 0 };
		break;
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
		*g = (struct gather){ 4, 8, 0, 0 };
		break;
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERQD:
		*g = (struct gather){ 8, 4, 0, 0 };
		break;
	default:
		*g = (struct gather){ 8, 8, 0, 0 };
	}
	// VEX.L sizes the wider of the two vectors.
	by_index = insn->vector_length / g->index_bytes;
	by_data = insn->vector_length / g->data_bytes;
	g->count = by_index < by_data ? by_index : by_data;
	g->index_vector_bytes = g->count * g->index_bytes;
}

static u64 element_offset(struct cpu *cpu, const struct insn *insn, const struct gather *g,
			  const u8 *indices, unsigned i)
{
	u64 base = insn->mem_base < 16 ? cpu->gpr[insn->mem_base] : 0;
	s64 index;

	if (g->index_bytes == 4)
		index = *(const int32_t *)(indices + i * 4);
	else
		index = *(const s64 *)(indices + i * 8);
	return address_truncate(base + insn->mem_disp + (u64)index * insn->mem_scale,
				insn->address_size);
}

void gather_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned target = insn->op[0].reg, mask_reg = insn->op[2].reg, unit, bytes;
	u8 data[32], mask[32], indices[32];
	struct gather g;

	if (insn->op[1].kind != OPERAND_MEM || insn->vector_length > 32)
		cpu_ud(cpu);
	if (target == mask_reg || target == insn->mem_index || mask_reg == insn->mem_index)
		cpu_ud(cpu);
	gather_shape(insn, &g);
	unit = g.data_bytes;
	bytes = g.count * unit;
	fpu_vec_read(cpu, target, data, 32);
	fpu_vec_read(cpu, mask_reg, mask, 32);
	fpu_vec_read(cpu, insn->mem_index, indices, g.index_vector_bytes);
	for (unsigned i = 0; i < g.count; i++) {
		u64 offset = element_offset(cpu, insn, &g, indices, i);

		if (mask[i * unit + unit - 1] & 0x80) {
			// If this element faults, the state has to be this.
			fpu_vec_write(cpu, mask_reg, mask, 32);
			fpu_vec_write(cpu, target, data, 32);
			mem_read(cpu, segment_linear(cpu, insn->mem_seg, offset, unit, false),
				 data + i * unit, unit, ACCESS_READ | cpu_access_of_cpl(cpu));
		}
		memset(mask + i * unit, 0, unit);
	}
	memset(mask, 0, sizeof(mask));
	memset(data + bytes, 0, sizeof(data) - bytes);
	fpu_vec_write_clear(cpu, mask_reg, mask, 32);
	fpu_vec_write_clear(cpu, target, data, 32);
}
