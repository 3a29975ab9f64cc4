// SPDX-License-Identifier: MIT
// LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR.
// SDM: their pages in Vol. 2; "System Descriptor Types", "Segment Loading Instructions in IA-32e
// Mode" (16-byte descriptors of LDTs and TSSs).
#include "cpu/system_tables.h"

#include "cpu/mem.h"
#include "cpu/segment.h"

static void need_protected(struct cpu *cpu)
{
	if (!cpu_protected(cpu) || cpu_v86(cpu))
		cpu_ud(cpu);
}

static void need_cpl0(struct cpu *cpu)
{
	if (cpu->cpl)
		cpu_gp0(cpu);
}

void tables_lgdt(struct cpu *cpu, const struct insn *insn)
{
	struct table_register *table =
		insn->mnemonic == ZYDIS_MNEMONIC_LGDT ? &cpu->gdtr : &cpu->idtr;
	unsigned base_size = cpu_64bit(cpu) ? 8 : 4;
	u8 bytes[10];
	u16 limit;
	u64 base = 0;

	need_cpl0(cpu);
	mem_read(cpu, insn_linear(cpu, insn, 2 + base_size, false), bytes, 2 + base_size, ACCESS_READ);
	__builtin_memcpy(&limit, bytes, 2);
	__builtin_memcpy(&base, bytes + 2, base_size);
	if (!cpu_64bit(cpu) && insn->operand_size == 2)
		base &= 0xffffff;
	if (cpu_64bit(cpu) && !cpu_canonical_base(cpu, base))
		cpu_gp0(cpu);
	table->base = base;
	table->limit = limit;
}

void tables_sgdt(struct cpu *cpu, const struct insn *insn)
{
	const struct table_register *table =
		insn->mnemonic == ZYDIS_MNEMONIC_SGDT ? &cpu->gdtr : &cpu->idtr;
	unsigned base_size = cpu_64bit(cpu) ? 8 : 4;
	u16 limit = table->limit;
	u8 bytes[10];

	check_umip(cpu);
	__builtin_memcpy(bytes, &limit, 2);
	__builtin_memcpy(bytes + 2, &table->base, base_size);
	mem_write(cpu, insn_linear(cpu, insn, 2 + base_size, true), bytes, 2 + base_size,
		  cpu_access_of_cpl(cpu));
}

// Reads the descriptor of an LDT or TSS with the checks that LLDT and LTR share. `types`: bit n set
// allows type n. Returns its first half.
static u64 system_descriptor(struct cpu *cpu, u16 selector, unsigned types, struct segment *segment)
{
	u32 error = selector_error(selector);
	u64 raw[2] = { 0, 0 };
	bool found = !(selector & 4) && (cpu_long_mode(cpu) ? descriptor_read16(cpu, selector, raw)
							    : descriptor_read(cpu, selector, raw));

	if (!found || descriptor_is_segment(raw[0]) || !(types >> descriptor_type(raw[0]) & 1))
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (!descriptor_present(raw[0]))
		cpu_raise_error(cpu, VECTOR_NP, error);
	segment_from_descriptor(segment, selector, raw[0]);
	segment->base |= raw[1] << 32;
	if (cpu_long_mode(cpu) && ((raw[1] >> 40 & 0x1f) || !cpu_canonical_base(cpu, segment->base)))
		cpu_raise_error(cpu, VECTOR_GP, error);
	return raw[0];
}

void tables_lldt(struct cpu *cpu, const struct insn *insn)
{
	struct segment segment;
	u16 selector;

	need_protected(cpu);
	need_cpl0(cpu);
	selector = insn_read(cpu, insn, 0);
	if (selector_null(selector)) {
		segment_null(&cpu->seg[SEG_LDTR], selector, 0);
		return;
	}
	system_descriptor(cpu, selector, 1u << TYPE_LDT, &segment);
	cpu->seg[SEG_LDTR] = segment;
}

void tables_ltr(struct cpu *cpu, const struct insn *insn)
{
	unsigned types = 1u << TYPE_TSS32 | (cpu_long_mode(cpu) ? 0 : 1u << TYPE_TSS16);
	struct segment segment;
	u16 selector;
	u64 raw;

	need_protected(cpu);
	need_cpl0(cpu);
	selector = insn_read(cpu, insn, 0);
	if (selector_null(selector))
		cpu_gp0(cpu);
	raw = system_descriptor(cpu, selector, types, &segment);
	descriptor_mark_busy(cpu, selector, raw, true);
	segment.attributes |= TSS_BUSY;
	cpu->seg[SEG_TR] = segment;
}

void tables_sldt(struct cpu *cpu, const struct insn *insn)
{
	enum seg seg = insn->mnemonic == ZYDIS_MNEMONIC_SLDT ? SEG_LDTR : SEG_TR;

	need_protected(cpu);
	check_umip(cpu);
	insn_write(cpu, insn, 0, cpu->seg[seg].selector);
}
