// SPDX-License-Identifier: MIT
// Copied instructions: the guest's own instruction, re-encoded with the host registers that hold its
// registers and with [T0] as its memory operand.
//
// Constraints that shape this file:
// - AH, CH, DH, BH cannot be encoded beside REX, so such an instruction may use host registers 0..7
//   only; guest RAX is then copied to host RAX and back.
// - Guest R10, R11 and R15 live in memory and are lent a scratch register for one instruction; when
//   both scratch registers are taken, another host register is spilled to temp[3] (and the block's
//   point says so, for faults).
// - An instruction that may leave a flag unchanged needs the old flags in the host's.
#include "base/log.h"
#include "cpu/jit_translate.h"

#define ARITH FLAGS_ARITH

struct lent {
	u8 guest, host;
	bool read, write;
};

struct copy {
	bool high, use_rax, rax_written, memory, vex;
	const ZydisDecodedOperand *mem;
	struct lent lent[4];
	unsigned lents;
	u32 host_used; // host registers the instruction names
	unsigned spilled;
	int reg, rm, vvvv, opcode_reg; // host numbers, -1: not a GPR
	bool byte_regs; // a 8-bit GPR operand that needs REX to mean SPL.. (or may have it)
};

static bool is_rax(ZydisRegister reg)
{
	return reg == ZYDIS_REGISTER_AL || reg == ZYDIS_REGISTER_AX || reg == ZYDIS_REGISTER_EAX ||
	       reg == ZYDIS_REGISTER_RAX || reg == ZYDIS_REGISTER_AH;
}

// Accumulator forms (04 ib, A9 id, ...) have an equivalent with ModRM, which needs no copy of RAX.
static bool accumulator_form(const ZydisDecodedInstruction *zi)
{
	u8 op = zi->opcode;

	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || zi->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return false;
	return (op < 0x40 && (op & 6) == 4) || op == 0xa8 || op == 0xa9 || (op >= 0xa0 && op <= 0xa3);
}

static void survey(struct translation *t, struct copy *c)
{
	const ZydisDecodedInstruction *zi = &t->zi;
	bool accumulator = accumulator_form(zi);

	for (unsigned i = 0; i < zi->operand_count; i++) {
		const ZydisDecodedOperand *op = &t->op[i];
		bool high;
		int g;

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type == ZYDIS_MEMOP_TYPE_MEM) {
			c->memory = true;
			c->mem = op;
		}
		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		g = tr_gpr(op->reg.value, &high);
		if (g < 0)
			continue;
		if (high)
			c->high = true;
		if (op->encoding == ZYDIS_OPERAND_ENCODING_NONE && is_rax(op->reg.value) && !accumulator) {
			c->use_rax = true;
			if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
				c->rax_written = true;
		}
	}
	if (c->high) {
		c->use_rax = true;
		for (unsigned i = 0; i < zi->operand_count; i++)
			if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_rax(t->op[i].reg.value) &&
			    (t->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
				c->rax_written = true;
	}
	// EAX and RAX operands mapped to host RAX are written through it too.
	if (c->use_rax)
		for (unsigned i = 0; i < zi->operand_count; i++)
			if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_rax(t->op[i].reg.value) &&
			    (t->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
				c->rax_written = true;
}

// Host register for an explicit GPR operand; lends one if the guest register has none it can use here.
static unsigned place(struct translation *t, struct copy *c, const ZydisDecodedOperand *op)
{
	bool high;
	unsigned g = tr_gpr(op->reg.value, &high), host;
	bool write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	bool read = (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) || op->size < 32 ||
		    (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) ||
		    t->zi.mnemonic == ZYDIS_MNEMONIC_BSF || t->zi.mnemonic == ZYDIS_MNEMONIC_BSR; // kept for 0
	struct lent *l;

	if (high)
		return g + 4; // AH.. on host RAX.. (guest RCX, RDX, RBX live in their namesakes)
	if (op->size == 8 && t->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		c->byte_regs = true;
	if (g == RAX && c->use_rax)
		return H_RAX;
	host = jit_home[g];
	if (host != H_NONE && !(c->high && host >= 8))
		return host;
	for (unsigned i = 0; i < c->lents; i++)
		if (c->lent[i].guest == g) {
			c->lent[i].read |= read;
			c->lent[i].write |= write;
			return c->lent[i].host;
		}
	l = &c->lent[c->lents++];
	*l = (struct lent){ .guest = g, .read = read, .write = write };
	if (!c->use_rax && !(c->host_used & 1 << H_RAX)) {
		l->host = H_RAX;
	} else if (!c->memory && !(c->host_used & 1 << H_RDI)) {
		l->host = H_RDI;
	} else {
		static const u8 candidates[] = { H_RBX, H_RSI, H_RCX, H_RDX };
		u32 used = c->host_used;

		for (unsigned i = 0; i < t->zi.operand_count; i++) {
			int n = t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER
					? tr_gpr(t->op[i].reg.value, &high) : -1;

			if (n >= 0 && jit_home[n] != H_NONE)
				used |= 1u << jit_home[n];
		}
		for (unsigned i = 0; i < 4; i++)
			if (!(used & 1u << candidates[i])) {
				c->spilled = candidates[i];
				break;
			}
		BUG_ON(!c->spilled);
		l->host = c->spilled;
	}
	c->host_used |= 1u << l->host;
	return l->host;
}

// Two destinations that are only written may share nothing, but a source that is only read may give
// its scratch register to a destination that is only written: MULX R10, R11, R15.
static void place_operands(struct translation *t, struct copy *c)
{
	c->reg = c->rm = c->vvvv = c->opcode_reg = -1;
	for (unsigned i = 0; i < t->zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &t->op[i];
		bool high;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || tr_gpr(op->reg.value, &high) < 0)
			continue;
		switch (op->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG: c->reg = place(t, c, op); break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM: c->rm = place(t, c, op); break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD: c->vvvv = place(t, c, op); break;
		case ZYDIS_OPERAND_ENCODING_OPCODE: c->opcode_reg = place(t, c, op); break;
		case ZYDIS_OPERAND_ENCODING_NONE:
			if (accumulator_form(&t->zi) && is_rax(op->reg.value)) {
				if (t->zi.opcode >= 0xa0 && t->zi.opcode <= 0xa3)
					c->reg = place(t, c, op);
				else
					c->rm = place(t, c, op);
			}
			break;
		default: break;
		}
	}
}

// A register number in bits 7:4 of an immediate: bit 7 is ignored outside 64-bit mode.
static u8 immediate_mask(const struct translation *t)
{
	for (unsigned i = 0; i < t->zi.operand_count && !MODE_64(t->mode); i++)
		if (t->op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4)
			return 0x7f;
	return 0xff;
}

static void emit_immediates(struct translation *t)
{
	u8 mask = immediate_mask(t);

	for (unsigned i = 0; i < 2; i++)
		for (unsigned n = 0; n < t->zi.raw.imm[i].size / 8u; n++)
			e1(&t->e, t->bytes[t->zi.raw.imm[i].offset + n] & mask);
}

static void emit_modrm(struct translation *t, struct copy *c, unsigned reg, unsigned rm)
{
	if (c->memory)
		e1(&t->e, (reg & 7) << 3 | H_T0);
	else
		e1(&t->e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

// The fields of ModR/M, with their extension bits, where the operands are in the host.
static void rename_operands(const struct copy *c, unsigned *reg, unsigned *rm)
{
	if (c->reg >= 0)
		*reg = c->reg;
	if (c->rm >= 0)
		*rm = c->rm;
	if (c->memory)
		*rm = H_T0;
}

static void emit_legacy(struct translation *t, struct copy *c)
{
	const ZydisDecodedInstruction *zi = &t->zi;
	struct emit *e = &t->e;
	u8 opcode = zi->opcode;
	bool map0 = zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT, modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	unsigned reg = 0, rm = 0, rex_bits;
	bool w = (zi->attributes & ZYDIS_ATTRIB_HAS_REX) && zi->raw.rex.W;

	if (modrm) {
		bool rex = zi->attributes & ZYDIS_ATTRIB_HAS_REX;

		reg = zi->raw.modrm.reg | (rex && zi->raw.rex.R ? 8 : 0);
		rm = zi->raw.modrm.rm | (rex && zi->raw.rex.B ? 8 : 0);
	}
	if (accumulator_form(zi)) {
		modrm = true;
		if (opcode >= 0xa0 && opcode <= 0xa3) {
			opcode = (opcode & 2 ? 0x88 : 0x8a) | (opcode & 1);
		} else if (opcode >= 0xa8) {
			opcode = 0xf6 | (opcode & 1);
			reg = 0;
		} else {
			reg = opcode >> 3;
			opcode = 0x80 | (opcode & 1);
		}
	} else if (map0 && t->zi.machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && opcode >= 0x40 && opcode <= 0x4f) {
		modrm = true; // one-byte INC and DEC
		reg = opcode >> 3 & 1;
		opcode = 0xff;
		c->rm = c->opcode_reg;
		c->opcode_reg = -1;
	}
	if (map0 && opcode == 0x82) // outside 64-bit mode another encoding of 80
		opcode = 0x80;
	rename_operands(c, &reg, &rm);

	bool opsize = false;
	if (zi->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		e1(e, 0xf0);
	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		u8 p = zi->raw.prefixes[i].value;

		if (zi->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) {
			e1(e, p);
			opsize |= p == 0x66;
		}
	}
	if (!opsize && zi->operand_width == 16) {
		bool effective = false;

		for (unsigned i = 0; i < zi->operand_count_visible; i++)
			effective |= t->op[i].size == 16 && t->op[i].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
		if (zi->machine_mode == ZYDIS_MACHINE_MODE_LEGACY_16 ||
		    zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_COMPAT_16 ||
		    zi->machine_mode == ZYDIS_MACHINE_MODE_REAL_16) {
			// Here 16 bits is also what instructions without an operand size say.
			if (zi->meta.isa_ext != ZYDIS_ISA_EXT_BASE && zi->meta.isa_ext != ZYDIS_ISA_EXT_MOVBE &&
			    zi->meta.isa_ext != ZYDIS_ISA_EXT_LZCNT && zi->meta.isa_ext != ZYDIS_ISA_EXT_BMI1 &&
			    zi->meta.isa_ext != ZYDIS_ISA_EXT_ADOX_ADCX && zi->meta.isa_ext != ZYDIS_ISA_EXT_SSE4)
				effective = false;
			for (unsigned i = 0; i < zi->operand_count; i++)
				effective |= t->op[i].size == 16 && zi->meta.isa_ext == ZYDIS_ISA_EXT_BASE &&
					     t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
					     tr_gpr(t->op[i].reg.value, &(bool){ false }) >= 0;
		} else {
			effective = zi->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;
		}
		if (effective)
			e1(e, 0x66);
	}
	rex_bits = w << 3 | (reg >> 3 & 1) << 2 | ((modrm ? rm : c->opcode_reg >= 0 ? (unsigned)c->opcode_reg : 0) >> 3 & 1);
	if (!c->high && (rex_bits || c->byte_regs))
		e1(e, 0x40 | rex_bits);
	BUG_ON(c->high && rex_bits);
	switch (zi->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT: break;
	case ZYDIS_OPCODE_MAP_0F: e1(e, 0x0f); break;
	case ZYDIS_OPCODE_MAP_0F38: e2(e, 0x0f, 0x38); break;
	case ZYDIS_OPCODE_MAP_0F3A: e2(e, 0x0f, 0x3a); break;
	default: BUG_ON(true);
	}
	if (c->opcode_reg >= 0)
		opcode = (opcode & ~7) | (c->opcode_reg & 7);
	e1(e, opcode);
	if (modrm)
		emit_modrm(t, c, reg, rm);
	if (!(accumulator_form(zi) && zi->opcode >= 0xa0 && zi->opcode <= 0xa3))
		emit_immediates(t);
}

static bool general_operand(const struct translation *t)
{
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_VMOVD: case ZYDIS_MNEMONIC_VCVTSI2SD: case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VPEXTRD: case ZYDIS_MNEMONIC_VPINSRD:
		return true; // from or to memory too
	default:
		break;
	}
	for (unsigned i = 0; i < t->zi.operand_count; i++)
		if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(t->op[i].reg.value) == ZYDIS_REGCLASS_GPR32)
			return true;
	return false;
}

// VZEROUPPER and VZEROALL outside 64-bit mode leave registers 8 to 15 alone.
static void emit_vzero_low(struct emit *e, bool all)
{
	for (unsigned i = 0; i < 8; i++)
		if (all)
			e4(e, 0x00ef81c5 | (~i & 15) << 11 | (0xc0u | i << 3 | i) << 24); // vpxor xi, xi, xi
		else
			e4(e, 0x006ff9c5 | (0xc0u | i << 3 | i) << 24); // vmovdqa xi, xi
}

static void emit_vex(struct translation *t, struct copy *c)
{
	const ZydisDecodedInstruction *zi = &t->zi;
	const u8 *vex = t->bytes + zi->raw.vex.offset;
	struct emit *e = &t->e;
	bool two = vex[0] == 0xc5;
	u8 last = two ? vex[1] & 0x7f : vex[2]; // W vvvv L pp
	u8 map = two ? 1 : vex[1] & 0x1f;
	bool r = !(vex[1] & 0x80), b = !two && !(vex[1] & 0x20);
	unsigned reg = zi->raw.modrm.reg | r << 3, rm = zi->raw.modrm.rm | b << 3;

	if (zi->opcode == 0x77 && map == 1 && !MODE_64(t->mode)) {
		emit_vzero_low(e, last & 4);
		return;
	}
	// Outside 64-bit mode the extension bits are ignored or part of the opcode test.
	if (!MODE_64(t->mode)) {
		reg &= 7;
		rm &= 7;
		last |= 0x40; // vvvv[3], inverted
		if (general_operand(t))
			last &= 0x7f; // and W is ignored where it would mean a 64-bit general register
	}
	rename_operands(c, &reg, &rm);
	if (c->vvvv >= 0)
		last = (last & 0x87) | (~c->vvvv & 15) << 3;
	e1(e, 0xc4);
	e1(e, (reg & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | map);
	e2(e, last, zi->opcode);
	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM) // VZEROALL and VZEROUPPER have none
		emit_modrm(t, c, reg, rm);
	emit_immediates(t);
}

u32 jit_flags_needed(const ZydisDecodedInstruction *zi, u32 *written)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;
	u32 changed, undefined;

	*written = 0;
	if (!f)
		return 0;
	undefined = f->undefined & ARITH;
	changed = (f->modified | f->set_0 | f->set_1) & ARITH;
	*written = changed | undefined;
	if (!*written)
		return f->tested & ARITH;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_AND: // AF is undefined, and cleared by all there are
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_TEST:
		changed |= undefined;
		break;
	default:
		break;
	}
	return (f->tested & ARITH) | (ARITH & ~changed);
}

void tr_copy(struct translation *t)
{
	struct copy c = { 0 };
	struct emit *e = &t->e;
	u32 written, needed = jit_flags_needed(&t->zi, &written);

	survey(t, &c);
	if (c.memory)
		tr_memory(t, c.mem);
	place_operands(t, &c);
	if (needed)
		tr_restore_flags(t);
	if (t->flags == FLAGS_HOST)
		t->point->flags |= POINT_FLAGS_IN_HOST;
	if (c.use_rax)
		e_mov_rr(e, H_RAX, jit_home[RAX]);
	if (c.spilled) {
		e_store(e, c.spilled, OFF(temp[3]));
		t->point->flags |= c.spilled << POINT_SPILLED_SHIFT;
	}
	for (unsigned i = 0; i < c.lents; i++)
		if (c.lent[i].read) {
			if (jit_home[c.lent[i].guest] == H_NONE)
				e_load(e, c.lent[i].host, OFF_GPR(c.lent[i].guest));
			else
				e_mov_rr(e, c.lent[i].host, jit_home[c.lent[i].guest]);
		}
	if (t->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
		emit_vex(t, &c);
	else
		emit_legacy(t, &c);
	if (written) {
		t->flags = FLAGS_HOST;
		t->flags_made = true;
	}
	for (unsigned i = 0; i < c.lents; i++)
		if (c.lent[i].write) {
			if (jit_home[c.lent[i].guest] == H_NONE)
				e_store(e, c.lent[i].host, OFF_GPR(c.lent[i].guest));
			else
				e_mov_rr(e, jit_home[c.lent[i].guest], c.lent[i].host);
		}
	if (c.rax_written)
		e_mov_rr(e, jit_home[RAX], H_RAX);
	if (c.spilled)
		e_load(e, c.spilled, OFF(temp[3]));
	tr_access_done(t);
}
