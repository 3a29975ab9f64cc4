// SPDX-License-Identifier: MIT
// Decimal arithmetic, which does not exist in 64-bit mode (#UD there), and SALC.
// SDM: "Decimal Arithmetic Instructions". Flags that the SDM leaves undefined get the values that
// processors give them, as far as tests/cpu/insn_bcd.c shows against the host's own.
#include "cpu/handlers.h"

static void check_mode(struct cpu *cpu)
{
	if (cpu_64bit(cpu))
		cpu_ud(cpu);
}

static void set_flags(struct cpu *cpu, u64 flags)
{
	cpu_set_arith(cpu, flags);
}

static u64 result_flags(u8 value)
{
	return (value ? 0 : FLAG_ZF) | (value & 0x80 ? FLAG_SF : 0) |
	       (__builtin_parity(value) ? 0 : FLAG_PF);
}

static u8 al(const struct cpu *cpu)
{
	return cpu->gpr[RAX];
}

static void aaa_aas(struct cpu *cpu, int sign)
{
	u64 flags = cpu_rflags(cpu);
	u16 ax = cpu->gpr[RAX];
	bool adjust = (ax & 15) > 9 || (flags & FLAG_AF);

	check_mode(cpu);
	if (adjust)
		ax = sign > 0 ? ax + 0x106 : ax - 0x106;
	gpr_write(cpu, RAX, 2, ax & 0xff0f);
	set_flags(cpu, (adjust ? FLAG_AF | FLAG_CF : 0) | result_flags(ax & 0x0f));
}

void aaa_handler(struct cpu *cpu, const struct insn *insn)
{
	aaa_aas(cpu, 1);
}

void aas_handler(struct cpu *cpu, const struct insn *insn)
{
	aaa_aas(cpu, -1);
}

void aam_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 base = insn->imm, value = al(cpu);

	check_mode(cpu);
	if (!base)
		cpu_raise(cpu, VECTOR_DE);
	gpr_write(cpu, RAX, 2, (value / base) << 8 | value % base);
	set_flags(cpu, result_flags(al(cpu)));
}

void aad_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 product, sum;

	check_mode(cpu);
	product = (u8)(cpu->gpr[RAX] >> 8) * (u8)insn->imm;
	sum = al(cpu) + product;
	gpr_write(cpu, RAX, 2, sum);
	set_flags(cpu, result_flags(sum));
}

void daa_handler(struct cpu *cpu, const struct insn *insn)
{
	u64 flags = cpu_rflags(cpu), set = 0;
	u8 old = al(cpu), value = old;

	check_mode(cpu);
	if ((old & 15) > 9 || (flags & FLAG_AF)) {
		value += 6;
		set |= FLAG_AF;
	}
	if (old > 0x99 || (flags & FLAG_CF)) {
		value += 0x60;
		set |= FLAG_CF;
	}
	gpr_write(cpu, RAX, 1, value);
	set_flags(cpu, set | result_flags(value));
}

void das_handler(struct cpu *cpu, const struct insn *insn)
{
	u64 flags = cpu_rflags(cpu), set = 0;
	u8 old = al(cpu), value = old;

	check_mode(cpu);
	if ((old & 15) > 9 || (flags & FLAG_AF)) {
		value -= 6;
		set |= FLAG_AF;
		if (old < 6)
			set |= FLAG_CF;
	}
	if (old > 0x99 || (flags & FLAG_CF)) {
		value -= 0x60;
		set |= FLAG_CF;
	}
	gpr_write(cpu, RAX, 1, value);
	set_flags(cpu, set | result_flags(value));
}

// Undocumented for long: AL = CF ? 0xff : 0.
void salc_handler(struct cpu *cpu, const struct insn *insn)
{
	check_mode(cpu);
	gpr_write(cpu, RAX, 1, cpu_rflags(cpu) & FLAG_CF ? 0xff : 0);
}
