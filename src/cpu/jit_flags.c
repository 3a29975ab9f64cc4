// SPDX-License-Identifier: MIT
// Arithmetic flags that nothing reads need not be saved before a TLB check overwrites them, as long
// as a fault can still show them: the instruction that made them is remembered as a recipe, which
// makes them again from registers that have not changed since.
#include "base/log.h"
#include "cpu/jit_translate.h"

#define NO_REGISTER 0xff

// How an instruction of the block uses the arithmetic flags, as far as losing them is concerned.
enum flag_use jit_flag_use(const struct translation *t, const struct decoded *d)
{
	const struct insn_row *row = insn_row_of(&d->zi);
	u32 written, needed;

	if (!row)
		return FLAGS_READ;
	if (row->kind == INSN_COPY) {
		if (jit_is_bit_string(&d->zi, d->op))
			return FLAGS_READ;
		needed = jit_flags_needed(&d->zi, &written);
		return needed ? FLAGS_READ : written ? FLAGS_KILL : FLAGS_IGNORE;
	}
	if (row->kind != INSN_GEN || !MODE_64(t->mode))
		return FLAGS_READ;
	switch (d->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_NOP:
		return FLAGS_IGNORE;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP: {
		bool high;
		const ZydisDecodedOperand *op = &d->op[0];

		return op->type == ZYDIS_OPERAND_TYPE_REGISTER && tr_gpr(op->reg.value, &high) < 0
			       ? FLAGS_READ : FLAGS_IGNORE;
	}
	default:
		return FLAGS_READ; // leaves the block, or is done in C
	}
}

static bool writes(const struct decoded *d, u8 guest)
{
	bool high;

	for (unsigned i = 0; i < d->zi.operand_count; i++)
		if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (d->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    tr_gpr(d->op[i].reg.value, &high) == guest)
			return true;
	return false;
}

static bool changes_recipe(const struct decoded *d, const struct flags_recipe *r)
{
	return writes(d, r->result) || (r->source != NO_REGISTER && writes(d, r->source));
}

// Behind each copied instruction that leaves all flags in the host's.
void jit_note_flags(struct translation *t)
{
	const ZydisDecodedOperand *a = &t->op[0], *b = &t->op[1];
	struct flags_recipe *r = &t->recipe;
	bool high, logic = false;
	int g;

	t->recipe_known = false;
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
		logic = true;
		break;
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST:
		break;
	default:
		return;
	}
	if (!MODE_64(t->mode) || a->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return;
	*r = (struct flags_recipe){ .mnemonic = t->zi.mnemonic, .size = a->size / 8, .source = NO_REGISTER };
	g = tr_gpr(a->reg.value, &high);
	if (g < 0 || high)
		return;
	r->result = g;
	if (logic) {
		t->recipe_known = true; // they follow from the result alone
		return;
	}
	if (b->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		r->immediate = b->imm.value.s;
	} else if (b->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		g = tr_gpr(b->reg.value, &high);
		// ADD r, r: what r was before does not follow from the result.
		if (g < 0 || high || (g == r->result && t->zi.mnemonic == ZYDIS_MNEMONIC_ADD))
			return;
		r->source = g;
	} else {
		return;
	}
	t->recipe_known = true;
}

// Behind every instruction: does the recipe still hold?
void jit_keep_recipe(struct translation *t, const struct decoded *d)
{
	if (t->recipe_known && changes_recipe(d, &t->recipe))
		t->recipe_known = false;
}

// The host's flags are about to be overwritten within the current instruction: may that be?
static bool may_lose(const struct translation *t)
{
	if (!t->recipe_known || (t->mode & (MODE_SINGLE | MODE_SLOWMEM)))
		return false;
	for (unsigned i = t->index; i < t->listed; i++) {
		const struct decoded *d = &t->list[i];

		if (d->use == FLAGS_READ)
			return false;
		if (d->use == FLAGS_KILL)
			return true;
		if (changes_recipe(d, &t->recipe))
			return false;
	}
	return false;
}

void tr_release_flags(struct translation *t)
{
	if (t->flags != FLAGS_HOST)
		return;
	if (!may_lose(t)) {
		tr_save_flags(t);
		return;
	}
	struct jit *jit = t->jit;

	jit->recipes[jit->recipe_count] = t->recipe;
	t->recipe_number = ++jit->recipe_count;
	t->flags = FLAGS_LOST;
	t->point->recipe = t->recipe_number;
}

#define FLAGS_OF(instruction, suffix, type) \
	({ \
		type x_ = x, y_ = y; \
		u32 flags_; \
		__asm__(instruction suffix " %2, %1\n\tlahf\n\tseto %%al" \
			: "=&a"(flags_), "+r"(x_) : "r"(y_) : "cc"); \
		flags_; \
	})
#define FLAGS_BY_SIZE(instruction) \
	(r->size == 8   ? FLAGS_OF(instruction, "q", u64) \
	 : r->size == 4 ? FLAGS_OF(instruction, "l", u32) \
	 : r->size == 2 ? FLAGS_OF(instruction, "w", u16) \
			: FLAGS_OF(instruction, "b", u8))

// Makes cpu->arith valid from a recipe (its number; 0: it is valid). The guest's registers are in
// cpu->gpr[].
void jit_cook_flags(struct cpu *cpu, u32 number)
{
	const struct flags_recipe *r;
	u64 x, y;

	if (!number)
		return;
	r = &cpu->jit->recipes[number - 1];
	x = cpu->gpr[r->result];
	y = r->source == NO_REGISTER ? (u64)r->immediate : cpu->gpr[r->source];
	switch (r->mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
		x -= y;
		cpu->arith = FLAGS_BY_SIZE("add");
		break;
	case ZYDIS_MNEMONIC_SUB:
		x = r->source == r->result ? y : x + y;
		cpu->arith = FLAGS_BY_SIZE("sub");
		break;
	case ZYDIS_MNEMONIC_CMP:
		cpu->arith = FLAGS_BY_SIZE("cmp");
		break;
	case ZYDIS_MNEMONIC_TEST:
		cpu->arith = FLAGS_BY_SIZE("test");
		break;
	default:
		y = x;
		cpu->arith = FLAGS_BY_SIZE("test");
		break;
	}
}
