// SPDX-License-Identifier: MIT
// What was generated and what completed, by mnemonic and operand form.
#include "lockstep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FORMS (1u << 16)

struct form {
	u64 key;
	u16 mnemonic;
	u16 class;
	u64 generated, completed;
};
static struct form forms[MAX_FORMS];

// An operand in 8 bits: its kind (register class, memory, immediate...) and size.
static u8 operand_code(const ZydisDecodedOperand *op)
{
	unsigned size = 0, kind;

	while (8u << size < op->size)
		size++;
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER: kind = ZydisRegisterGetClass(op->reg.value); break;
	case ZYDIS_OPERAND_TYPE_MEMORY: kind = 30; break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE: kind = 31; break;
	default: kind = 29; break;
	}
	return kind << 3 | (size & 7);
}

u32 coverage_form(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, int class)
{
	u64 key = insn->mnemonic;
	u32 slot;

	for (unsigned i = 0; i < insn->operand_count_visible && i < 5; i++)
		key = key << 8 | operand_code(&op[i]);
	if (insn->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		key |= 1ull << 62;
	if (insn->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
		key |= 1ull << 61;
	if (insn->attributes & ZYDIS_ATTRIB_HAS_REPNE)
		key |= 1ull << 60;
	if (insn->address_width != (insn->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? 64 : 32))
		key |= 1ull << 59;
	for (slot = key * 0x9e3779b97f4a7c15 >> 48; forms[slot].key != key; slot = (slot + 1) % MAX_FORMS)
		if (!forms[slot].key) {
			forms[slot] = (struct form){ key, insn->mnemonic, class, 0, 0 };
			break;
		}
	return slot;
}

void coverage_count(u32 form, bool completed)
{
	forms[form].generated++;
	forms[form].completed += completed;
}

static void form_text(u64 key, char *text)
{
	static const char *const kinds[32] = { [29] = "ptr", [30] = "m", [31] = "imm" };
	static const unsigned bits[] = { 8, 16, 32, 64, 128, 256, 512, 1024 };
	u8 code[8];
	int n = 0;

	*text = 0;
	if (key >> 62 & 1)
		text += sprintf(text, " lock");
	if (key >> 61 & 1)
		text += sprintf(text, " rep");
	if (key >> 60 & 1)
		text += sprintf(text, " repne");
	if (key >> 59 & 1)
		text += sprintf(text, " addr-size");
	key &= (1ull << 59) - 1;
	for (; key > 0xffff || (n == 0 && key >= 0x10000); key >>= 8)
		code[n++] = key;
	while (n--) {
		const char *kind = kinds[code[n] >> 3];

		text += sprintf(text, " %s%u", kind ? kind : "r", bits[code[n] & 7]);
	}
}

static int by_mnemonic(const void *a, const void *b)
{
	const struct form *x = *(struct form *const *)a, *y = *(struct form *const *)b;

	return x->class != y->class ? x->class - y->class : x->mnemonic != y->mnemonic ?
		       (int)x->mnemonic - (int)y->mnemonic : x->key < y->key ? -1 : 1;
}

void coverage_print(bool every_form)
{
	static struct form *list[MAX_FORMS];
	unsigned count = 0;

	for (unsigned i = 0; i < MAX_FORMS; i++)
		if (forms[i].generated)
			list[count++] = &forms[i];
	qsort(list, count, sizeof(list[0]), by_mnemonic);
	for (unsigned i = 0, k; i < count; i = k) {
		unsigned mnemonics = 0, never = 0;
		u64 generated = 0, completed = 0;

		for (k = i; k < count && list[k]->class == list[i]->class; k++) {
			mnemonics += k == i || list[k]->mnemonic != list[k - 1]->mnemonic;
			generated += list[k]->generated;
			completed += list[k]->completed;
			never += !list[k]->completed;
		}
		printf("# %-10s %4u of %4u mnemonics, %5u forms (%u never completed), %9lu instructions, %3lu%% completed\n",
		       classes[list[i]->class].name, mnemonics, class_templates[list[i]->class].count, k - i,
		       never, generated, completed * 100 / generated);
		for (unsigned f = i; every_form && f < k; f++) {
			char text[100];

			form_text(list[f]->key, text);
			printf("#   %-16s%-36s %9lu %9lu\n", ZydisMnemonicGetString(list[f]->mnemonic), text,
			       list[f]->generated, list[f]->completed);
		}
	}
}
