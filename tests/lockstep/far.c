// SPDX-License-Identifier: MIT
// Far transfers and segment loads at level 3: one instruction with random selectors, good and bad, of the
// GDT and of an LDT. Where it leads there is INT3. CS and SS are compared, too.
#include "values.h"

#include <string.h>

enum { MODE_32 = 1, MODE_64 = 2 };
enum operands {
	POINTER,      // far pointer in the instruction
	MEMORY,	      // far pointer in memory, by a 32-bit displacement
	RETURN,	      // frame on the stack
	FROM_AX,      // selector in AX
};
static const struct kind {
	u8 modes, operands, bytes[4], length;
} kinds[] = {
	{ MODE_32, POINTER, { 0x9a }, 1 }, // CALL
	{ MODE_32, POINTER, { 0xea }, 1 }, // JMP
	{ MODE_32, MEMORY, { 0xff, 0x1d }, 2 }, // CALL
	{ MODE_32, MEMORY, { 0xff, 0x2d }, 2 }, // JMP
	{ MODE_64, MEMORY, { 0xff, 0x1c, 0x25 }, 3 },
	{ MODE_64, MEMORY, { 0xff, 0x2c, 0x25 }, 3 },
	{ MODE_32 | MODE_64, RETURN, { 0xcb }, 1 }, // RETF
	{ MODE_32 | MODE_64, RETURN, { 0xca, 0x08, 0x00 }, 3 },
	{ MODE_32 | MODE_64, RETURN, { 0xcf }, 1 }, // IRET
	{ MODE_64, RETURN, { 0x48, 0xcb }, 2 },
	{ MODE_64, RETURN, { 0x48, 0xcf }, 2 },
	{ MODE_32 | MODE_64, FROM_AX, { 0x8e, 0xd8 }, 2 }, // MOV DS
	{ MODE_32 | MODE_64, FROM_AX, { 0x8e, 0xc0 }, 2 }, // MOV ES
	{ MODE_32 | MODE_64, FROM_AX, { 0x8e, 0xd0 }, 2 }, // MOV SS
	{ MODE_32, RETURN, { 0x1f }, 1 }, // POP DS
	{ MODE_32, RETURN, { 0x17 }, 1 }, // POP SS
	{ MODE_32, MEMORY, { 0xc5, 0x15 }, 2 }, // LDS EDX
	{ MODE_32, MEMORY, { 0x0f, 0xb2, 0x15 }, 3 }, // LSS EDX
	{ MODE_64, MEMORY, { 0x0f, 0xb2, 0x14, 0x25 }, 4 },
	{ MODE_32 | MODE_64, FROM_AX, { 0x0f, 0x02, 0xd0 }, 3 }, // LAR EDX, EAX
	{ MODE_32 | MODE_64, FROM_AX, { 0x0f, 0x03, 0xd0 }, 3 }, // LSL EDX, EAX
	{ MODE_32 | MODE_64, FROM_AX, { 0x0f, 0x00, 0xe0 }, 3 }, // VERR AX
	{ MODE_32 | MODE_64, FROM_AX, { 0x0f, 0x00, 0xe8 }, 3 }, // VERW AX
};

static u16 random_selector(struct rng *rng)
{
	// Of Linux's GDT, what the guest's has too.
	static const u16 gdt[] = { 0x10, 0x18, 0x23, 0x2b, 0x33, 0x23, 0x33, 0 };
	u16 selector = chance(rng, 50) ? gdt[below(rng, 8)] : LDT_SELECTOR(below(rng, LDT_ALL + 1));

	return chance(rng, 15) ? (selector & ~3) | below(rng, 4) : selector;
}

static u64 random_target(struct rng *rng)
{
	return chance(rng, 80) ? CODE_BASE + below(rng, CODE_SIZE) : chance(rng, 70) ? below(rng, 0x2100) : random_int(rng);
}

static void random_segments(struct program *p, struct rng *rng)
{
	static const struct ldt_segment flat = { .limit = 0xfffff, .pages = true, .big = true };

	for (unsigned n = LDT_DS; n < LDT_ALL; n++)
		p->ldt[n] = flat;
	p->ldt[LDT_CS].code = p->ldt[LDT_CONFORMING].code = p->ldt[LDT_ABSENT_CODE].code = p->ldt[LDT_CODE16].code = true;
	p->ldt[LDT_CONFORMING].conforming = p->ldt[LDT_CONFORMING].absent = true; // the kernel wants both
	p->ldt[LDT_ABSENT_CODE].absent = p->ldt[LDT_ABSENT_DATA].absent = true;
	p->ldt[LDT_CODE16] = (struct ldt_segment){ .base = CODE_BASE, .limit = below(rng, CODE_SIZE), .code = true };
	p->ldt[LDT_EXECUTE_ONLY] = (struct ldt_segment){ .limit = 0xfffff, .pages = true, .big = true, .code = true,
							 .read_only = true };
	p->ldt[LDT_ES].read_only = chance(rng, 50);
	p->ldt[LDT_DATA16] = (struct ldt_segment){ .base = DATA_BASE, .limit = below(rng, 0x5000),
						   .expand_down = chance(rng, 30) };
}

static void put(struct program *p, u64 address, u64 value, unsigned size)
{
	memcpy(p->data + (address - DATA_BASE), &value, size);
}

// A frame for whatever returns: offset, selector, flags, stack pointer, stack segment.
static void make_frame(struct program *p, struct rng *rng, unsigned slot, u64 target, bool pops_selector)
{
	u64 sp = p->state.gpr[4];
	u64 frame[5] = { pops_selector ? random_selector(rng) : target, random_selector(rng), 2 | (rnd(rng) & 0x383cd5),
			 DATA_BASE + below(rng, DATA_SIZE), random_selector(rng) };

	for (unsigned i = 0; i < 5; i++)
		put(p, sp + i * slot, frame[i], slot);
}

void generate_far(struct program *p, u64 seed, u64 index, bool mode32)
{
	struct rng rng = { seed * 0xd1342543de82ef95 + index * 0x2545f4914f6cdd1d + 99 + mode32 };
	const struct kind *kind;
	bool short_operand;
	u64 at = DATA_BASE + 0x800 + below(&rng, 0x40), target;
	unsigned slot;

	rnd(&rng);
	p->seed = seed;
	p->index = index;
	p->mode32 = mode32;
	p->far = p->segments = true;
	p->class = -1;
	p->count = 1;
	p->size = p->ignored_count = 0;
	p->masked = p->compares = p->images = p->pops_all = p->gs = false;
	p->state.ended = NULL;
	do
		kind = &kinds[below(&rng, sizeof(kinds) / sizeof(kinds[0]))];
	while (!(kind->modes & (mode32 ? MODE_32 : MODE_64)));
	short_operand = chance(&rng, 25) && kind->bytes[0] != 0x48;
	random_segments(p, &rng);
	for (unsigned i = 0; i < DATA_SIZE; i += 64)
		random_line(&rng, p->data + i, 64, 0);
	for (unsigned i = 0; i < 16; i++)
		p->state.gpr[i] = mode32 ? i < 8 ? (u32)random_int(&rng) : 0 : random_int(&rng);
	p->state.gpr[0] = random_selector(&rng);
	p->state.gpr[4] = DATA_BASE + 0x1000 + 4 * below(&rng, 64);
	p->start = CODE_BASE + below(&rng, 3900);
	p->state.rip = p->start;
	p->state.rflags = 0x202 | (rnd(&rng) & 0x8d5);
	random_xstate(&rng, p->state.xsave, 0);
	target = random_target(&rng);

	if (short_operand)
		p->code[p->size++] = 0x66;
	memcpy(p->code + p->size, kind->bytes, kind->length);
	p->size += kind->length;
	slot = short_operand ? 2 : kind->bytes[0] == 0x48 ? 8 : 4;
	switch (kind->operands) {
	case POINTER:
		memcpy(p->code + p->size, &target, slot);
		memcpy(p->code + p->size + slot, (u16[]){ random_selector(&rng) }, 2);
		p->size += slot + 2;
		break;
	case MEMORY:
		memcpy(p->code + p->size, &at, 4);
		p->size += 4;
		put(p, at, target, slot);
		put(p, at + slot, random_selector(&rng), 2);
		break;
	case RETURN:
		make_frame(p, &rng, slot, target, kind->bytes[0] == 0x1f || kind->bytes[0] == 0x17);
		break;
	}
	p->insn[0] = (struct generated_insn){ 0, p->size, 0, 0 };
	p->code[p->size] = 0xcc;
}
