// SPDX-License-Identifier: MIT
// Sequences of 16-bit code: random bytes as far as they are instructions that can be compared, in segments
// of an LDT on the data window; 16-bit addresses find it often enough. Relative branches go forward, or to
// where there is INT3 or nothing.
#include "values.h"

#include <string.h>

// Other branches could come to any byte; the rest is left out as with --segments.
static bool usable(struct program *p, const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, int *class)
{
	static const char *const left_out[] = { "trap", "privileged", "popf", "x87env", "fxsave" };
	const char *why;

	*class = classify(insn, op, &why);
	if (*class < 0 || insn->meta.isa_ext == ZYDIS_ISA_EXT_SSE4A) // which no guest is offered
		return false;
	if (insn->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
		// AMD: REP overrides the condition of LOOPE and LOOPNE.
		if (insn->mnemonic == ZYDIS_MNEMONIC_LOOPE || insn->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
			for (unsigned i = 0; i < insn->raw.prefix_count; i++)
				if ((insn->raw.prefixes[i].value & 0xfe) == 0xf2)
					return false;
		return insn->raw.imm[0].is_relative;
	}
	for (unsigned i = 0; i < sizeof(left_out) / sizeof(left_out[0]); i++)
		if (!strcmp(classes[*class].name, left_out[i]))
			return false;
	for (unsigned i = 0; i < insn->operand_count; i++) {
		if (op[i].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		if (op[i].mem.segment == ZYDIS_REGISTER_FS || op[i].mem.segment == ZYDIS_REGISTER_GS)
			return false;
		p->images |= op[i].size > 128;
	}
	p->masked |= insn->meta.category == ZYDIS_CATEGORY_AVX2GATHER || strstr(ZydisMnemonicGetString(insn->mnemonic), "mask");
	p->compares |= insn->meta.category == ZYDIS_CATEGORY_STRINGOP &&
		       insn->attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
	p->pops_all |= insn->mnemonic == ZYDIS_MNEMONIC_POPA || insn->mnemonic == ZYDIS_MNEMONIC_POPAD;
	return true;
}

static void add_instruction(struct program *p, struct rng *rng)
{
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	u8 bytes[16];
	int class;

	for (unsigned i = 0; i < sizeof(bytes); i += 8) {
		u64 value = rnd(rng);

		memcpy(bytes + i, &value, 8);
	}
	if (chance(rng, 25))
		bytes[0] = 0x66 + below(rng, 2);
	if (!decode(bytes, &insn, op) || !usable(p, &insn, op, &class))
		return;
	memcpy(p->code + p->size, bytes, insn.length);
	p->insn[p->count++] = (struct generated_insn){ p->size, insn.length, class, 0 };
	p->size += insn.length;
}

static void aim_branches(struct program *p, struct rng *rng)
{
	for (unsigned n = 0; n < p->count; n++) {
		u8 *code = p->code + p->insn[n].offset;
		ZydisDecodedInstruction insn;
		ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
		unsigned to = n + 1 + below(rng, p->count - n);
		u32 start = p->start - CODE_BASE, next = start + p->insn[n].offset + p->insn[n].length, relative, far;

		if (!decode(code, &insn, op) || insn.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
			continue;
		relative = start + (to < p->count ? p->insn[to].offset : p->size) - next;
		far = below(rng, 0x10000);
		if (insn.raw.imm[0].size > 8 && chance(rng, 20) && (far < start || far > start + p->size))
			relative = far - next;
		memcpy(code + insn.raw.imm[0].offset, &relative, insn.raw.imm[0].size / 8);
	}
}

static struct ldt_segment random_data(struct rng *rng, bool stack)
{
	static const u16 shift[] = { 0, 0, 1, 0x10 };

	return (struct ldt_segment){ .base = DATA_BASE + shift[below(rng, 4)], .big = stack && chance(rng, 30),
				     .limit = chance(rng, 50) ? 0xffff : below(rng, 0x5000),
				     .expand_down = chance(rng, 15), .read_only = !stack && chance(rng, 10) };
}

static void random_registers(struct program *p, struct rng *rng)
{
	for (unsigned i = 0; i < 8; i++) {
		p->state.gpr[i] = (u32)random_int(rng);
		if (i >= 3 && chance(rng, 80))
			p->state.gpr[i] = (chance(rng, 70) ? 0 : p->state.gpr[i] & 0xffff0000) | below(rng, DATA_SIZE);
	}
	if (chance(rng, 80))
		p->state.gpr[4] &= ~3ull;
	memset(p->state.gpr + 8, 0, 8 * sizeof(p->state.gpr[0]));
	p->state.rflags = 0x202 | (rnd(rng) & 0x8d5) | (chance(rng, 20) ? 0x400 : 0);
}

void generate16(struct program *p, u64 seed, u64 index)
{
	struct rng rng = { seed * 0xd1342543de82ef95 + index * 0x2545f4914f6cdd1d + 16 };
	unsigned wanted, flavour = below(&rng, 3);

	rnd(&rng);
	p->seed = seed;
	p->index = index;
	p->mode32 = p->code16 = p->segments = true;
	p->class = -1;
	p->count = p->size = p->ignored_count = 0;
	p->masked = p->compares = p->images = p->pops_all = p->gs = false;
	p->state.ended = NULL;
	p->start = CODE_BASE + (chance(&rng, 80) ? below(&rng, 3900) : 4096 - below(&rng, 60));
	wanted = 1 + below(&rng, MAX_INSNS);
	for (unsigned attempt = 0; p->count < wanted && attempt < 300; attempt++)
		add_instruction(p, &rng);
	aim_branches(p, &rng);
	for (unsigned n = LDT_DS; n <= LDT_SS; n++)
		p->ldt[n] = random_data(&rng, n == LDT_SS);
	p->state.rip = p->start - CODE_BASE;
	p->ldt[LDT_CS] = (struct ldt_segment){ .base = CODE_BASE, .code = true,
					       .limit = chance(&rng, 80) ? CODE_SIZE - 1 : p->state.rip + below(&rng, 60) };
	random_registers(p, &rng);
	random_xstate(&rng, p->state.xsave, flavour);
	for (unsigned i = 0; i < DATA_SIZE; i += 64)
		random_line(&rng, p->data + i, 64, flavour);
	p->code[p->size] = 0xcc;
}
