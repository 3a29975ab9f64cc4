// SPDX-License-Identifier: MIT
// Makes a sequence and the state it starts from. Instructions are drawn from the templates; then the
// registers that address memory get values such that most operands lie in the data window, at all sorts
// of places: page and line crossings, misaligned, read-only, unmapped. Branches lead forward.
#include "values.h"

#include <string.h>

enum fixup_kind { FIXUP_RELATIVE, FIXUP_REGISTER, FIXUP_MEMORY, FIXUP_LOAD };
struct fixup {
	u8 kind, insn, size, reg;
	u64 where; // offset in code (relative) or address in the data window
};

struct generator {
	struct rng rng;
	struct program *p;
	u16 assigned, written; // registers with a chosen value; written by an earlier instruction
	s64 rsp_moved;
	bool rsp_lost;
	struct fixup fixup[3 * MAX_INSNS];
	unsigned fixups;
	struct { u64 address; u32 value; u8 size; } patch[3 * MAX_INSNS];
	unsigned patches;
	bool stored_image; // an x87 image lies in memory: nothing may be loaded from it
	u8 index_width[32]; // vector registers that index a gather: element size
};

struct candidate {
	u8 bytes[16];
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

static int gpr_of(ZydisRegister reg)
{
	ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);

	if (whole < ZYDIS_REGISTER_RAX || whole > ZYDIS_REGISTER_R15)
		return -1;
	return whole - ZYDIS_REGISTER_RAX;
}

static void assign(struct generator *g, int reg, u64 value)
{
	if (g->p->mode32)
		value = (u32)value;
	g->p->state.gpr[reg] = value;
	g->assigned |= 1 << reg;
}

static bool is_free(struct generator *g, int reg)
{
	return !((g->assigned | g->written) >> reg & 1);
}

static void patch(struct generator *g, u64 address, u32 value, unsigned size)
{
	if (g->patches < sizeof(g->patch) / sizeof(g->patch[0])) {
		g->patch[g->patches].address = address;
		g->patch[g->patches].value = value;
		g->patch[g->patches++].size = size;
	}
}

static void add_fixup(struct generator *g, enum fixup_kind kind, unsigned size, int reg, u64 where)
{
	if (g->fixups < sizeof(g->fixup) / sizeof(g->fixup[0]))
		g->fixup[g->fixups++] = (struct fixup){ kind, g->p->count, size, reg, where };
}

// Where a memory operand shall lie.
static u64 pick_target(struct generator *g, unsigned size)
{
	struct rng *rng = &g->rng;
	unsigned kind = below(rng, 100);
	u64 middle = DATA_BASE + 64 + below(rng, DATA_RW_SIZE - 64 - (size < 1024 ? size : 1024));

	if (kind < 66) // aligned
		return middle & ~(u64)(size >= 32 ? 31 : size ? size - 1 : 0);
	if (kind < (size >= 16 ? 74 : 82))
		return middle;
	if (kind < 88) // across a line
		return (middle & ~63ull) - below(rng, size + 1);
	if (kind < 93) // across a page
		return DATA_BASE + 4096 * (1 + below(rng, 2)) - below(rng, size + 1);
	if (kind < 95) // into the read-only page
		return DATA_BASE + DATA_RW_SIZE - below(rng, size + 1);
	if (kind < 97)
		return DATA_BASE + DATA_RW_SIZE + below(rng, 4000);
	if (kind < 98) // out of the window
		return DATA_BASE + DATA_SIZE - below(rng, size + 1);
	if (kind < 99)
		return DATA_BASE - below(rng, size + 1);
	return g->p->mode32 ? 0xffffffff - below(rng, 64) : rnd(rng);
}

static bool in_window(u64 address, unsigned size)
{
	return address >= DATA_BASE && address <= DATA_BASE + DATA_SIZE - size;
}

static bool is_stack_instruction(const ZydisDecodedInstruction *insn)
{
	return insn->meta.category == ZYDIS_CATEGORY_PUSH || insn->meta.category == ZYDIS_CATEGORY_POP ||
	       insn->meta.category == ZYDIS_CATEGORY_CALL || insn->meta.category == ZYDIS_CATEGORY_RET;
}

static unsigned address_bits(const struct candidate *c)
{
	return c->insn.address_width;
}

// A gather: the index register gets small elements.
static int vector_index(const struct candidate *c, const ZydisDecodedOperand *op)
{
	ZydisRegisterClass class = ZydisRegisterGetClass(op->mem.index);

	if (class != ZYDIS_REGCLASS_XMM && class != ZYDIS_REGCLASS_YMM && class != ZYDIS_REGCLASS_ZMM)
		return -1;
	return ZydisRegisterGetId(op->mem.index);
}

static bool gather_by_dword(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_VGATHERDPD || m == ZYDIS_MNEMONIC_VGATHERDPS ||
	       m == ZYDIS_MNEMONIC_VPGATHERDD || m == ZYDIS_MNEMONIC_VPGATHERDQ;
}

// The operand's address with the registers' initial values.
static u64 effective_address(struct generator *g, const struct candidate *c, const ZydisDecodedOperand *op,
			     s64 displacement)
{
	int base = gpr_of(op->mem.base), index = gpr_of(op->mem.index);
	u64 address = displacement;

	if (base >= 0)
		address += g->p->state.gpr[base] + (base == 4 ? g->rsp_moved : 0);
	if (index >= 0)
		address += g->p->state.gpr[index] * op->mem.scale;
	if (address_bits(c) == 32)
		address = (u32)address;
	return op->mem.segment == ZYDIS_REGISTER_GS ? address + GS_BASE : address;
}

static void patch_displacement(struct candidate *c, u64 value)
{
	u32 disp = value;

	memcpy(c->bytes + c->insn.raw.disp.offset, &disp, 4);
}

// Chooses register values (or the displacement) such that the operand lies at a picked place.
// *target: where, or 0 if that is not known. False: better take another instruction.
static bool solve_memory(struct generator *g, struct candidate *c, const ZydisDecodedOperand *op, u64 *target)
{
	struct rng *rng = &g->rng;
	unsigned size = op->size / 8, bits = address_bits(c);
	int base = gpr_of(op->mem.base), index = gpr_of(op->mem.index), vindex = vector_index(c, op);
	u64 where = pick_target(g, size), partial = op->mem.disp.value;

	// A mask of zeros may fault or not on a page that cannot be written.
	if (c->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || c->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
	    c->insn.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU)
		where = DATA_BASE + below(rng, DATA_RW_SIZE - 16);
	u64 here = g->p->start + g->p->size;
	bool disp32 = c->insn.raw.disp.size == 32 && op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;

	*target = 0;
	if (bits == 16)
		return chance(rng, 10);
	if (op->mem.segment == ZYDIS_REGISTER_FS || (op->mem.segment == ZYDIS_REGISTER_GS && g->p->mode32))
		return false;
	if (op->mem.segment == ZYDIS_REGISTER_GS)
		partial += GS_BASE;
	if ((base >= 0 && base != 4 && g->written >> base & 1) || (index >= 0 && g->written >> index & 1))
		return chance(rng, 8);
	if (base == 4 && (g->rsp_lost || (g->written >> 4 & 1)))
		return chance(rng, 30);
	if (vindex >= 0)
		g->index_width[vindex] = gather_by_dword(c->insn.mnemonic) ? 4 : 8;
	if (index >= 0 && index != base && c->insn.mnemonic != ZYDIS_MNEMONIC_XLAT) {
		if (!(g->assigned >> index & 1))
			assign(g, index, chance(rng, 90) ? below(rng, 4096) - 2048 : random_int(rng));
		partial += g->p->state.gpr[index] * op->mem.scale;
	}
	if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP ||
	    (op->mem.base == ZYDIS_REGISTER_NONE && disp32)) {
		if (chance(rng, 3))
			return true;
		partial -= op->mem.disp.value;
		if (op->mem.base != ZYDIS_REGISTER_NONE)
			partial += here + c->insn.length;
		patch_displacement(c, where - partial);
		*target = where;
		return true;
	}
	if (op->mem.base == ZYDIS_REGISTER_NONE && c->insn.raw.disp.size == 64) { // MOV AL, moffs
		memcpy(c->bytes + c->insn.raw.disp.offset, &where, 8);
		*target = where;
		return true;
	}
	if (base < 0)
		return chance(rng, 20);
	if (!(g->assigned >> base & 1)) {
		u64 value = where - partial;

		if (base == index && op->mem.scale == 1)
			value /= 2; // index and base alike: only near the target
		else if (base == index)
			value = (where - partial) / (1 + op->mem.scale);
		if (bits == 32 && !g->p->mode32)
			value = (u32)value | (chance(rng, 50) ? rnd(rng) << 32 : 0);
		assign(g, base, value);
	} else if (disp32 && base != 4) {
		u64 value = where - (partial - op->mem.disp.value) - g->p->state.gpr[base];

		patch_displacement(c, value);
		*target = effective_address(g, c, op, (int)value);
		return true;
	} else {
		where = partial + g->p->state.gpr[base];
		if (bits == 32)
			where = (u32)where;
		if (!in_window(where, size) && base != 4)
			return chance(rng, 15);
	}
	if (base == 4) {
		if (c->insn.meta.category == ZYDIS_CATEGORY_PUSH || c->insn.meta.category == ZYDIS_CATEGORY_CALL)
			return true; // stored, not read
	}
	*target = effective_address(g, c, op, op->mem.disp.value);
	return true;
}

// Operands of many bytes near 4 GiB: processors check and access them in different order.
static bool may_cross_4g(const struct generator *g, const struct candidate *c, const ZydisDecodedOperand *op,
			 u64 target)
{
	return g->p->mode32 && (op->size >= 80 || c->insn.mnemonic == ZYDIS_MNEMONIC_BOUND) &&
	       c->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && !(target && target < 0xffff0000);
}

// Values that keep instructions with stern demands from faulting nearly always.
static void please(struct generator *g, struct candidate *c, u64 target)
{
	struct rng *rng = &g->rng;
	bool known = target && in_window(target, 512);

	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
		if (chance(rng, 85)) {
			if (c->op[0].size == 8 && is_free(g, 0))
				assign(g, 0, below(rng, 512));
			else if (is_free(g, 2))
				assign(g, 2, chance(rng, 60) ? 0 : below(rng, 100));
		}
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
		if (known && is_free(g, 0) && chance(rng, 60))
			add_fixup(g, FIXUP_LOAD, c->op[0].size / 8, 0, target);
		break;
	case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
		if (known && is_free(g, 0) && is_free(g, 2) && chance(rng, 60)) {
			unsigned half = c->insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;

			add_fixup(g, FIXUP_LOAD, half, 0, target);
			add_fixup(g, FIXUP_LOAD, half, 2, target + half);
		}
		break;
	case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
		if (known) // bit 17 is AMD's
			patch(g, target, chance(rng, 85) ? random_mxcsr(rng, true) : rnd(rng) & ~0x20000u, 4);
		break;
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
		if (known) {
			patch(g, target + 24, chance(rng, 90) ? random_mxcsr(rng, false) : rnd(rng) & ~0x20000u, 4);
			patch(g, target, random_fcw(rng, false), 2);
		}
		break;
	case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FRSTOR:
		if (known && chance(rng, 80))
			patch(g, target, random_fcw(rng, true), 2);
		break;
	case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ:
		if (known) {
			u32 flags = rnd(rng) & ~(chance(rng, 85) ? 0x100 : 0) & ~0x40000u;

			patch(g, target, flags, c->insn.operand_width / 8);
		}
		break;
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
		if (c->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && c->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
			int reg = gpr_of(c->op[1].reg.value);

			if (is_free(g, reg) && chance(rng, 92))
				assign(g, reg, (s64)below(rng, 8192) - 4096);
		}
		break;
	case ZYDIS_MNEMONIC_ENTER:
		if (chance(rng, 90))
			c->bytes[c->insn.raw.imm[0].offset + 1] &= 1;
		break;
	default:
		break;
	}
}

static void ignore(struct program *p, u64 address, unsigned from, unsigned to)
{
	unsigned at = p->ignored_count++;
	u64 offset = address - DATA_BASE;

	for (; at && p->ignored[at - 1].from > offset + from; at--)
		p->ignored[at] = p->ignored[at - 1];
	p->ignored[at].from = offset + from;
	p->ignored[at].to = offset + to;
}

// Stored images hold pointers to the last x87 instruction and its operand, and MXCSR's mask, which our
// processor defines by itself. They are not compared, and nothing is loaded behind them.
static bool image_allowed(struct generator *g, const struct candidate *c, u64 target)
{
	bool known = target && in_window(target, 1);

	g->p->images |= (c->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && c->op[0].size > (c->insn.meta.isa_ext == ZYDIS_ISA_EXT_X87 ? 80 : 128) &&
			 c->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY);
	g->p->masked |= c->insn.meta.category == ZYDIS_CATEGORY_AVX2GATHER;
	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FNSAVE:
		g->stored_image = true;
		if (known && c->insn.operand_width == 16)
			ignore(g->p, target, 6, 14);
		else if (known)
			ignore(g->p, target, 12, 28);
		return target;
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
		g->stored_image = true;
		if (known) {
			ignore(g->p, target, 6, 24);
			ignore(g->p, target, 28, 32);
		}
		return target;
	case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_VLDMXCSR:
		return !g->stored_image;
	case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		g->p->masked = true;
		return true;
	default:
		return true;
	}
}

static bool is_string(const ZydisDecodedInstruction *insn)
{
	return insn->meta.category == ZYDIS_CATEGORY_STRINGOP;
}

// Branches: targets are instructions further on, known when the sequence is complete.
static bool prepare_branch(struct generator *g, struct candidate *c, u64 target)
{
	struct rng *rng = &g->rng;
	unsigned width = g->p->mode32 ? 4 : 8;

	for (unsigned i = 0; i < c->insn.raw.prefix_count; i++)
		if (c->insn.raw.prefixes[i].value == 0x66 && (!g->p->mode32 || chance(rng, 80)))
			return false; // before a near branch: vendors differ; in 32-bit code EIP is cut
	if (c->insn.raw.imm[0].is_relative) {
		if (c->insn.meta.category == ZYDIS_CATEGORY_COND_BR && c->insn.raw.imm[0].size == 8)
			for (unsigned i = 0; i < c->insn.raw.prefix_count; i++)
				if ((c->insn.raw.prefixes[i].value & 0xfe) == 0xf2)
					return false; // AMD: REP overrides the condition of LOOPE and LOOPNE
		unsigned size = c->insn.raw.imm[0].size / 8;

		if (size == 1 || chance(rng, 96))
			add_fixup(g, FIXUP_RELATIVE, size, 0, g->p->size + c->insn.raw.imm[0].offset);
		if (c->insn.mnemonic >= ZYDIS_MNEMONIC_LOOP && c->insn.mnemonic <= ZYDIS_MNEMONIC_LOOPNE &&
		    is_free(g, 1))
			assign(g, 1, below(rng, 4));
		if (is_free(g, 1) && chance(rng, 30))
			assign(g, 1, rnd(rng) << 32);
		return true;
	}
	if (c->insn.meta.category == ZYDIS_CATEGORY_RET) {
		if (c->insn.raw.imm[0].size)
			c->bytes[c->insn.raw.imm[0].offset + 1] &= 0;
		if (target)
			add_fixup(g, FIXUP_MEMORY, width, 0, target);
		return true;
	}
	if (c->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
		int reg = gpr_of(c->op[0].reg.value);

		if (!is_free(g, reg))
			return chance(rng, 3);
		add_fixup(g, FIXUP_REGISTER, width, reg, 0);
		g->assigned |= 1 << reg;
	} else if (target) {
		add_fixup(g, FIXUP_MEMORY, width, 0, target);
	}
	return true;
}

// Registers that the instruction changes. False: it would spoil too much.
static bool note_writes(struct generator *g, const struct candidate *c)
{
	u16 writes = 0;

	for (unsigned i = 0; i < c->insn.operand_count; i++) {
		const ZydisDecodedOperand *op = &c->op[i];
		int reg;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		reg = gpr_of(op->reg.value);
		if (reg < 0)
			continue;
		if (reg == 4 && op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && is_stack_instruction(&c->insn))
			continue;
		if (is_string(&c->insn) && (reg == 6 || reg == 7))
			continue;
		if (reg == 4 && !chance(&g->rng, 8) && c->insn.mnemonic != ZYDIS_MNEMONIC_LEAVE &&
		    c->insn.mnemonic != ZYDIS_MNEMONIC_ENTER)
			return false;
		writes |= 1 << reg;
	}
	g->written |= writes;
	if (writes & 1 << 4)
		g->rsp_lost = true;
	if (is_stack_instruction(&c->insn)) {
		s64 width = c->insn.operand_width / 8;

		if (c->insn.meta.category == ZYDIS_CATEGORY_PUSH || c->insn.meta.category == ZYDIS_CATEGORY_CALL)
			width = -width;
		if (c->insn.mnemonic == ZYDIS_MNEMONIC_PUSHA || c->insn.mnemonic == ZYDIS_MNEMONIC_PUSHAD ||
		    c->insn.mnemonic == ZYDIS_MNEMONIC_POPA || c->insn.mnemonic == ZYDIS_MNEMONIC_POPAD)
			width *= 8;
		g->rsp_moved += width;
	}
	return true;
}

static bool draw(struct generator *g, int class, struct candidate *c)
{
	struct rng *rng = &g->rng;
	struct class_templates *ct = &class_templates[class];
	struct mnemonic_templates *mt = &ct->list[below(rng, ct->count)];
	const struct template *t = &mt->list[below(rng, mt->count)];
	const char *why;
	unsigned n;

	for (unsigned i = 0; i < 16; i++)
		c->bytes[i] = random_int(rng);
	n = template_encode(t, c->bytes, rng, g->p->mode32, below(rng, 8));
	if (t->modrm == MODRM_MEM && chance(rng, 50)) // small displacement
		for (unsigned i = n + 2; i < n + 5 && i < 15; i++)
			c->bytes[i] = c->bytes[n + 1] & 0x80 ? 0xff : 0;
	return decode(c->bytes, &c->insn, c->op) &&
	       c->insn.mnemonic == t->mnemonic && classify(&c->insn, c->op, &why) == class;
}

static bool add_instruction(struct generator *g, int class)
{
	struct program *p = g->p;
	struct candidate c;
	u64 target = 0, t;
	struct generator before = *g;
	unsigned ignored_count = p->ignored_count;
	bool masked = p->masked, compares = p->compares, images = p->images, pops_all = p->pops_all, gs = p->gs;
	typeof(p->ignored) ignored;
	u64 gpr[16];

	memcpy(gpr, p->state.gpr, sizeof(gpr));
	memcpy(&ignored, &p->ignored, sizeof(ignored));
	if (!draw(g, class, &c))
		return false;
	for (unsigned i = 0; i < c.insn.operand_count; i++) {
		const ZydisDecodedOperand *op = &c.op[i];

		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		p->gs |= op->mem.segment == ZYDIS_REGISTER_GS;
		if (!solve_memory(g, &c, op, &t) || may_cross_4g(g, &c, op, t))
			goto reject;
		if (!target)
			target = t;
	}
	if (is_string(&c.insn) && (c.insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
							ZYDIS_ATTRIB_HAS_REPNE)) && is_free(g, 1))
		assign(g, 1, chance(&g->rng, 88) ? below(&g->rng, 70) : random_int(&g->rng));
	if ((c.insn.mnemonic == ZYDIS_MNEMONIC_UD0 || c.insn.mnemonic == ZYDIS_MNEMONIC_UD1) &&
	    p->start + p->size + c.insn.length > CODE_BASE + CODE_SIZE)
		goto reject; // whether they fetch a ModRM byte differs
	if (is_string(&c.insn) && (c.insn.attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
		p->compares = true;
	if (c.insn.mnemonic == ZYDIS_MNEMONIC_POPA || c.insn.mnemonic == ZYDIS_MNEMONIC_POPAD)
		p->pops_all = true;
	if (!image_allowed(g, &c, target))
		goto reject;
	please(g, &c, target);
	if (c.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && !prepare_branch(g, &c, target))
		goto reject;
	if (!note_writes(g, &c))
		goto reject;
	memcpy(p->code + p->size, c.bytes, c.insn.length);
	p->insn[p->count] = (struct generated_insn){ p->size, c.insn.length, class,
						     coverage_form(&c.insn, c.op, class) };
	p->size += c.insn.length;
	p->count++;
	return true;
reject:
	before.rng = g->rng;
	*g = before;
	p->ignored_count = ignored_count;
	memcpy(&p->ignored, &ignored, sizeof(ignored));
	p->masked = masked;
	p->compares = compares;
	p->images = images;
	p->pops_all = pops_all;
	p->gs = gs;
	memcpy(p->state.gpr, gpr, sizeof(gpr));
	return false;
}

static void store(struct program *p, u64 address, u64 value, unsigned size)
{
	if (in_window(address, size))
		memcpy(p->data + (address - DATA_BASE), &value, size);
}

static void apply_fixups(struct generator *g)
{
	struct program *p = g->p;

	for (unsigned i = 0; i < g->patches; i++)
		store(p, g->patch[i].address, g->patch[i].value, g->patch[i].size);
	for (unsigned i = 0; i < g->fixups; i++) {
		struct fixup *f = &g->fixup[i];
		unsigned to = f->insn + 1 + below(&g->rng, p->count - f->insn);
		u64 target = p->start + (to < p->count ? p->insn[to].offset : p->size);
		u64 next = p->start + p->insn[f->insn].offset + p->insn[f->insn].length;
		u64 relative = target - next, value = 0;

		switch (f->kind) {
		case FIXUP_RELATIVE:
			memcpy(p->code + f->where, &relative, f->size);
			break;
		case FIXUP_REGISTER:
			assign(g, f->reg, target);
			break;
		case FIXUP_MEMORY:
			store(p, f->where, target, f->size);
			break;
		case FIXUP_LOAD:
			if (in_window(f->where, f->size))
				memcpy(&value, p->data + (f->where - DATA_BASE), f->size);
			assign(g, f->reg, value);
			break;
		}
	}
}

static void finish_state(struct generator *g, unsigned flavour, bool traps)
{
	struct program *p = g->p;
	struct rng *rng = &g->rng;

	for (unsigned i = 0; i < (p->mode32 ? 8 : 16); i++)
		if (!(g->assigned >> i & 1))
			assign(g, i, random_int(rng));
	if (p->mode32)
		memset(p->state.gpr + 8, 0, 8 * sizeof(p->state.gpr[0]));
	p->state.rip = p->start;
	p->state.rflags = 0x202 | (rnd(rng) & 0x8d5) | (chance(rng, 20) ? 0x400 : 0) |
			  (p->class >= 0 && (classes[p->class].modes & 4) && chance(rng, 4) ? 0x40000 : 0);
	if (traps)
		p->state.rflags |= (chance(rng, 20) ? 0x100 : 0) |
				   (chance(rng, 20) ? 0x204000 & rnd(rng) : 0);
	random_xstate(rng, p->state.xsave, flavour);
	for (unsigned i = 0; i < 16; i++) {
		if (!g->index_width[i])
			continue;
		for (unsigned k = 0; k < 32; k += g->index_width[i]) {
			s64 element = chance(rng, 97) ? (s64)below(rng, 512) - 256 : (s64)random_int(rng);

			memcpy(p->state.xsave + (k < 16 ? 160 + 16 * i + k : 576 + 16 * i + k - 16), &element,
			       g->index_width[i]);
		}
	}
}

// Lines of the data window come out of a pool, the same in every run.
static void fill_data(struct generator *g, unsigned flavour)
{
	enum { LINES = 4096 };
	static u64 pool[3][LINES][8];
	static bool filled[3];
	u64 *to = (u64 *)g->p->data;

	if (!filled[flavour]) {
		struct rng rng = { flavour };

		for (unsigned i = 0; i < LINES; i++)
			random_line(&rng, (u8 *)pool[flavour][i], 64, flavour);
		filled[flavour] = true;
	}
	for (unsigned line = 0; line < DATA_SIZE / 64; line += 4) {
		u64 r = rnd(&g->rng);

		for (unsigned i = 0; i < 4; i++, r >>= 16, to += 8)
			for (unsigned k = 0; k < 8; k++)
				to[k] = pool[flavour][r % LINES][k];
	}
}

static int random_class(struct rng *rng, bool mode32)
{
	unsigned class;

	do
		class = below(rng, class_count);
	while (!(classes[class].modes & (mode32 ? 2 : 1)) || !class_templates[class].count ||
	       !strcmp(classes[class].name, "trap") || !strcmp(classes[class].name, "privileged") ||
	       !strcmp(classes[class].name, "popf") || !strcmp(classes[class].name, "x87env") ||
	       !strcmp(classes[class].name, "fxsave")); // their images would be moved about
	return class;
}

void generate(struct program *p, int class, u64 seed, u64 index, bool mode32)
{
	struct generator g = { .p = p };
	unsigned wanted, flavour;
	const char *name = class < 0 ? "mixed" : classes[class].name;
	u64 hash = mode32;

	for (const char *s = name; *s; s++)
		hash = hash * 31 + *s;
	g.rng.state = seed * 0xd1342543de82ef95 + index * 0x2545f4914f6cdd1d + hash * 0x9e3779b97f4a7c15;
	rnd(&g.rng);
	p->seed = seed;
	p->index = index;
	p->mode32 = mode32;
	p->class = class;
	p->count = p->size = p->ignored_count = 0;
	p->masked = p->compares = p->images = p->pops_all = p->gs = false;
	p->state.ended = NULL;
	p->start = CODE_BASE + (chance(&g.rng, 80) ? below(&g.rng, 3900) :
				chance(&g.rng, 80) ? 4096 - below(&g.rng, 60) : CODE_SIZE - below(&g.rng, 60));
	wanted = 1 + below(&g.rng, MAX_INSNS);
	flavour = class < 0 ? below(&g.rng, 3) : classes[class].flavour;
	for (unsigned attempt = 0; p->count < wanted && attempt < 300; attempt++)
		add_instruction(&g, class < 0 ? random_class(&g.rng, mode32) : class);
	if (!(g.assigned & 1 << 4))
		assign(&g, 4, pick_target(&g, 8) & ~7ull);
	fill_data(&g, flavour);
	apply_fixups(&g);
	finish_state(&g, flavour, class >= 0 && !strcmp(name, "popf"));
	p->code[p->size] = 0xcc;
}
