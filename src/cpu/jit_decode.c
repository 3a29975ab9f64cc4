// SPDX-License-Identifier: MIT
// Zydis' description of an instruction -> struct insn for handlers in C.
#include "cpu/jit_translate.h"

static u8 mem_register(ZydisRegister reg)
{
	bool high;
	int g;

	if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
		return 0xfe;
	g = tr_gpr(reg, &high);
	if (g >= 0)
		return g;
	switch (ZydisRegisterGetClass(reg)) { // VSIB
	case ZYDIS_REGCLASS_XMM: return reg - ZYDIS_REGISTER_XMM0;
	case ZYDIS_REGCLASS_YMM: return reg - ZYDIS_REGISTER_YMM0;
	case ZYDIS_REGCLASS_ZMM: return reg - ZYDIS_REGISTER_ZMM0;
	default: return 0xff;
	}
}

static void decode_register(ZydisRegister reg, struct operand *to)
{
	bool high;
	int g = tr_gpr(reg, &high);

	if (g >= 0) {
		to->kind = OPERAND_REG;
		to->reg = g;
		to->high = high;
		return;
	}
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_SEGMENT:
		to->kind = OPERAND_SEG;
		to->reg = tr_segment(reg);
		break;
	case ZYDIS_REGCLASS_CONTROL:
		to->kind = OPERAND_CR;
		to->reg = reg - ZYDIS_REGISTER_CR0;
		break;
	case ZYDIS_REGCLASS_DEBUG:
		to->kind = OPERAND_DR;
		to->reg = reg - ZYDIS_REGISTER_DR0;
		break;
	case ZYDIS_REGCLASS_XMM:
	case ZYDIS_REGCLASS_YMM:
	case ZYDIS_REGCLASS_ZMM:
		to->kind = OPERAND_VEC;
		to->reg = mem_register(reg);
		break;
	case ZYDIS_REGCLASS_MMX:
		to->kind = OPERAND_VEC;
		to->reg = reg - ZYDIS_REGISTER_MM0;
		break;
	case ZYDIS_REGCLASS_TMM:
		to->kind = OPERAND_TILE;
		to->reg = reg - ZYDIS_REGISTER_TMM0;
		break;
	default:
		to->kind = OPERAND_NONE;
		break;
	}
}

// Segment of a memory operand that Zydis does not know of: MONITOR's [rAX].
static u8 segment_by_prefix(const ZydisDecodedInstruction *zi)
{
	static const struct { u8 prefix, seg; } rows[] = {
		{ 0x26, SEG_ES }, { 0x2e, SEG_CS }, { 0x36, SEG_SS }, { 0x3e, SEG_DS }, { 0x64, SEG_FS }, { 0x65, SEG_GS },
	};
	u8 seg = SEG_DS;

	for (unsigned i = 0; i < zi->raw.prefix_count; i++)
		for (unsigned n = 0; n < sizeof(rows) / sizeof(rows[0]); n++)
			if (zi->raw.prefixes[i].value == rows[n].prefix &&
			    (zi->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || rows[n].seg >= SEG_FS))
				seg = rows[n].seg;
	return seg;
}

void jit_decode_insn(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op, struct insn *insn)
{
	unsigned immediates = 0, n = 0;
	bool explicit_memory = false; // the stack, where CALL pushes, must not hide it

	*insn = (struct insn){
		.mnemonic = zi->mnemonic,
		.length = zi->length,
		.operand_size = zi->operand_width / 8,
		.address_size = zi->address_width / 8,
		.rep = zi->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE),
		.repne = !!(zi->attributes & ZYDIS_ATTRIB_HAS_REPNE),
		.lock = !!(zi->attributes & ZYDIS_ATTRIB_HAS_LOCK),
		.notrack = !!(zi->attributes & ZYDIS_ATTRIB_HAS_NOTRACK),
		.mem_base = 0xff,
		.mem_index = 0xff,
		.mem_seg = SEG_DS,
		.vector_length = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? 0 : zi->avx.vector_length / 8,
		.modrm = zi->raw.modrm.mod << 6 | zi->raw.modrm.reg << 3 | zi->raw.modrm.rm,
		.opcode = zi->opcode,
	};
	if (zi->mnemonic == ZYDIS_MNEMONIC_MONITOR || zi->mnemonic == ZYDIS_MNEMONIC_MONITORX)
		insn->mem_seg = segment_by_prefix(zi);
	for (unsigned i = 0; i < zi->operand_count; i++) {
		struct operand *to = n < 4 ? &insn->op[n] : NULL;

		// Of MOVS, whose operands are both hidden, the source is meant: it has the override.
		if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && !explicit_memory &&
		    (op[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT || insn->mem_base == 0xff ||
		     (op[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && mem_register(op[i].mem.base) == RSI))) {
			insn->mem_seg = tr_segment(op[i].mem.segment);
			insn->mem_base = mem_register(op[i].mem.base);
			insn->mem_index = mem_register(op[i].mem.index);
			insn->mem_scale = op[i].mem.scale;
			insn->mem_disp = op[i].mem.disp.has_displacement ? op[i].mem.disp.value : 0;
			explicit_memory = op[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
		}
		if (op[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN || !to)
			continue;
		n++;
		to->size = op[i].size / 8;
		switch (op[i].type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			decode_register(op[i].reg.value, to);
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			to->kind = OPERAND_MEM;
			break;
		case ZYDIS_OPERAND_TYPE_POINTER:
			to->kind = OPERAND_FAR;
			insn->imm = op[i].ptr.offset;
			insn->far_selector = op[i].ptr.segment;
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			to->kind = OPERAND_IMM;
			if (immediates++)
				insn->far_selector = op[i].imm.value.u;
			else
				insn->imm = op[i].imm.value.u;
			break;
		default:
			break;
		}
	}
}
