// SPDX-License-Identifier: MIT
// The encodings of every instruction that takes part, found by asking the decoder about each opcode of
// each map with each mandatory prefix, REX.W/VEX.W, vector length and ModRM: nothing is written by hand.
#include "lockstep.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CLASSES 64
struct class_templates class_templates[MAX_CLASSES];
ZydisDecoder decoder;

static const u8 legacy_prefix[4] = { 0, 0x66, 0xf3, 0xf2 };

bool decode(const u8 *bytes, ZydisDecodedInstruction *insn, ZydisDecodedOperand *op)
{
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, 15, insn, op)))
		return false;
	// SIB without a base: Zydis 4.0 takes it for R13D with REX.B and 32-bit addresses.
	for (unsigned i = 0; i < insn->operand_count; i++)
		if (insn->raw.sib.offset && !insn->raw.modrm.mod && insn->raw.sib.base == 5 &&
		    op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && op[i].mem.base == ZYDIS_REGISTER_R13D) {
			op[i].mem.base = ZYDIS_REGISTER_NONE;
			op[i].mem.disp.has_displacement = true;
			op[i].mem.disp.value = insn->raw.disp.value;
		}
	return true;
}

// Encodings as the enumeration asks for them: `choice` selects among the fields that only some
// instructions leave open (vvvv), reg and rm are the ModRM fields.
static unsigned encode_fixed(const struct template *t, u8 *bytes, unsigned reg, unsigned rm, bool other_vvvv)
{
	unsigned n = 0;
	u8 vvvv = other_vvvv ? 0x5 : 0xf; // inverted: register 10 (2 in 32-bit mode) or none

	switch (t->encoding) {
	case ENCODING_LEGACY:
		if (t->lock)
			bytes[n++] = 0xf0;
		if (t->pp)
			bytes[n++] = legacy_prefix[t->pp];
		if (t->w)
			bytes[n++] = 0x48;
		if (t->map)
			bytes[n++] = 0x0f;
		if (t->map >= 2)
			bytes[n++] = t->map == 2 ? 0x38 : 0x3a;
		break;
	case ENCODING_VEX:
		bytes[n++] = 0xc4;
		bytes[n++] = 0xe0 | t->map;
		bytes[n++] = t->w << 7 | vvvv << 3 | t->l << 2 | t->pp;
		break;
	case ENCODING_EVEX:
		bytes[n++] = 0x62;
		bytes[n++] = 0xf0 | t->map;
		bytes[n++] = t->w << 7 | vvvv << 3 | 4 | t->pp;
		bytes[n++] = t->l << 5 | 8 | (t->modrm == MODRM_MEM ? 1 : 0);
		break;
	}
	bytes[n++] = t->opcode;
	bytes[n++] = (t->modrm == MODRM_REG ? 0xc0 : 0) | reg << 3 | (t->modrm == MODRM_REG ? rm : 4);
	bytes[n++] = 0x0b; // SIB: [rbx + rcx]
	memset(bytes + n, 0, 16);
	return n + 12;
}

// What the decoder says: the class, and the mnemonic and whether there is a ModRM byte.
static int ask(const struct template *t, unsigned reg, unsigned rm, ZydisMnemonic *mnemonic, bool *has_modrm)
{
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	u8 bytes[40];
	const char *why;

	for (int other = 0; other < (t->encoding == ENCODING_LEGACY ? 1 : 2); other++) {
		unsigned length = encode_fixed(t, bytes, reg, rm, other);

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, length < 15 ? length : 15, &insn, op)))
			continue;
		*mnemonic = insn.mnemonic;
		*has_modrm = insn.attributes & ZYDIS_ATTRIB_HAS_MODRM;
		return classify(&insn, op, &why);
	}
	return -1;
}

static void add(int class, const struct template *t)
{
	struct class_templates *c = &class_templates[class];
	struct mnemonic_templates *m = NULL;

	for (unsigned i = 0; i < c->count; i++)
		if (c->list[i].mnemonic == t->mnemonic)
			m = &c->list[i];
	if (!m) {
		c->list = realloc(c->list, (c->count + 1) * sizeof(*c->list));
		m = &c->list[c->count++];
		*m = (struct mnemonic_templates){ .mnemonic = t->mnemonic };
	}
	m->list = realloc(m->list, (m->count + 1) * sizeof(*m->list));
	m->list[m->count++] = *t;
}

static void add_modrm_forms(struct template t)
{
	struct { struct template t; int class; } found[64];
	unsigned count = 0;
	bool has_modrm;

	for (unsigned kind = MODRM_MEM; kind <= MODRM_REG; kind++) {
		t.modrm = kind;
		for (unsigned reg = 0; reg < 8; reg++) {
			struct { ZydisMnemonic mnemonic; int class; u8 rm_mask; } of_reg[8];
			unsigned n = 0;

			for (unsigned rm = 0; rm < (kind == MODRM_REG ? 8 : 1); rm++) {
				ZydisMnemonic mnemonic;
				int class = ask(&t, reg, rm, &mnemonic, &has_modrm);
				unsigned i;

				if (class < 0)
					continue;
				for (i = 0; i < n && (of_reg[i].mnemonic != mnemonic || of_reg[i].class != class); i++)
					;
				if (i == n)
					of_reg[n++] = (typeof(of_reg[0])){ mnemonic, class, 0 };
				of_reg[i].rm_mask |= 1 << rm;
			}
			for (unsigned i = 0; i < n; i++) {
				unsigned k;

				for (k = 0; k < count; k++)
					if (found[k].t.modrm == kind && found[k].t.mnemonic == of_reg[i].mnemonic &&
					    found[k].class == of_reg[i].class && found[k].t.rm_mask == of_reg[i].rm_mask)
						break;
				if (k == count) {
					found[count].t = t;
					found[count].t.mnemonic = of_reg[i].mnemonic;
					found[count].t.rm_mask = of_reg[i].rm_mask;
					found[count].t.reg_mask = 0;
					found[count++].class = of_reg[i].class;
				}
				found[k].t.reg_mask |= 1 << reg;
			}
		}
	}
	for (unsigned k = 0; k < count; k++)
		add(found[k].class, &found[k].t);
}

static void add_opcode(struct template t)
{
	ZydisMnemonic mnemonic;
	bool has_modrm = false, any = false;
	int class = -1;

	// Is there a ModRM byte? Any of its values that decodes tells.
	for (unsigned kind = MODRM_MEM; kind <= MODRM_REG && !any; kind++)
		for (unsigned reg = 0; reg < 8 && !any; reg++) {
			t.modrm = kind;
			any = (class = ask(&t, reg, 0, &mnemonic, &has_modrm)) >= 0;
		}
	if (any && !has_modrm) {
		t.modrm = MODRM_NONE;
		t.mnemonic = mnemonic;
		add(class, &t);
	} else {
		add_modrm_forms(t);
	}
}

void templates_build(bool mode32)
{
	if (mode32)
		ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
	else
		ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (unsigned map = 0; map < 4; map++)
		for (unsigned pp = 0; pp < 4; pp++)
			for (unsigned w = 0; w < (mode32 ? 1 : 2); w++)
				for (unsigned opcode = 0; opcode < 256; opcode++)
					for (unsigned lock = 0; lock < 2; lock++)
						add_opcode((struct template){ .encoding = ENCODING_LEGACY,
							.map = map, .pp = pp, .w = w, .opcode = opcode, .lock = lock });
	for (unsigned encoding = ENCODING_VEX; encoding <= ENCODING_EVEX; encoding++)
		for (unsigned map = 1; map < 4; map++)
			for (unsigned pp = 0; pp < 4; pp++)
				for (unsigned wl = 0; wl < (encoding == ENCODING_VEX ? 4 : 6); wl++)
					for (unsigned opcode = 0; opcode < 256; opcode++)
						add_opcode((struct template){ .encoding = encoding, .map = map,
							.pp = pp, .w = wl & 1, .l = wl >> 1, .opcode = opcode });
}

static unsigned bit_of(u8 mask, struct rng *rng)
{
	unsigned bit;

	do
		bit = below(rng, 8);
	while (!(mask >> bit & 1));
	return bit;
}

// Prefixes that change nothing, or only the address: legacy encodings take them all.
static unsigned random_prefixes(u8 *bytes, struct rng *rng, bool mode32)
{
	static const u8 segments[] = { 0x26, 0x2e, 0x36, 0x3e, 0x65 };
	unsigned n = 0;

	if (chance(rng, 4))
		bytes[n++] = segments[below(rng, mode32 ? 4 : 5)];
	if (chance(rng, mode32 ? 2 : 6))
		bytes[n++] = 0x67;
	return n;
}

unsigned template_encode(const struct template *t, u8 *bytes, struct rng *rng, bool mode32, unsigned form)
{
	unsigned n = random_prefixes(bytes, rng, mode32);
	unsigned rxb = mode32 ? 0 : below(rng, 8);
	u8 vvvv = form & 1 ? 0xf : below(rng, 16);

	switch (t->encoding) {
	case ENCODING_LEGACY:
		if (t->lock)
			bytes[n++] = 0xf0;
		if (t->pp)
			bytes[n++] = legacy_prefix[t->pp];
		if (chance(rng, 2)) // a prefix that is mostly ignored
			bytes[n++] = legacy_prefix[1 + below(rng, 3)];
		if (t->w || (!mode32 && chance(rng, 60)))
			bytes[n++] = 0x40 | t->w << 3 | rxb;
		if (t->map)
			bytes[n++] = 0x0f;
		if (t->map >= 2)
			bytes[n++] = t->map == 2 ? 0x38 : 0x3a;
		break;
	case ENCODING_VEX:
		if (t->map == 1 && !t->w && !(rxb & 3) && chance(rng, 70)) {
			bytes[n++] = 0xc5;
			bytes[n++] = (rxb & 4 ? 0 : 0x80) | vvvv << 3 | t->l << 2 | t->pp;
			break;
		}
		bytes[n++] = 0xc4;
		bytes[n++] = (rxb ^ 7) << 5 | t->map;
		bytes[n++] = t->w << 7 | vvvv << 3 | t->l << 2 | t->pp;
		break;
	case ENCODING_EVEX:
		bytes[n++] = 0x62;
		bytes[n++] = (rxb ^ 7) << 5 | (mode32 || chance(rng, 50)) << 4 | t->map;
		bytes[n++] = t->w << 7 | vvvv << 3 | 4 | t->pp;
		bytes[n++] = chance(rng, 30) << 7 | t->l << 5 | chance(rng, 10) << 4 |
			     (mode32 || chance(rng, 60)) << 3 | (form & 2 ? 0 : below(rng, 8));
		break;
	}
	bytes[n++] = t->opcode;
	if (t->modrm == MODRM_REG)
		bytes[n++] = 0xc0 | bit_of(t->reg_mask, rng) << 3 | bit_of(t->rm_mask, rng);
	else if (t->modrm == MODRM_MEM)
		bytes[n++] = below(rng, 3) << 6 | bit_of(t->reg_mask, rng) << 3 |
			     (form & 4 || chance(rng, 40) ? 4 : below(rng, 8));
	return n;
}
