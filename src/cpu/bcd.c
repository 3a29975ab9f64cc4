// SPDX-License-Identifier: MIT
// Decimal arithmetic, which does not exist in 64-bit mode (#UD there), and SALC.
// SDM: "Decimal Arithmetic Instructions". Flags that the SDM leaves undefined get the values that
// processors give them: found by running all inputs on silicon.
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

// ZF, SF, PF of a result of `bits` bits.
static u64 result_flags(u32 value, unsigned bits)
{
	return (value ? 0 : FLAG_ZF) | (value >> (bits - 1) & 1 ? FLAG_SF : 0) |
	       (__builtin_parity(value & 0xff) ? 0 : FLAG_PF);
}

// OF of a + b, or of a - b.
static u64 overflow(u32 a, u32 b, u32 result, unsigned bits, bool subtract)
{
	u32 v = subtract ? (a ^ b) & (a ^ result) : (a ^ result) & (b ^ result);

	return v >> (bits - 1) & 1 ? FLAG_OF : 0;
}

static u8 al(const struct cpu *cpu)
{
	return cpu->gpr[RAX];
}

// SF, ZF, PF and OF are those of the addition to AX, before AL is cut to a digit.
static void aaa_aas(struct cpu *cpu, bool subtract)
{
	u64 flags = cpu_rflags(cpu);
	u16 ax = cpu->gpr[RAX], sum;
	bool adjust = (ax & 15) > 9 || (flags & FLAG_AF);
	u16 amount = adjust ? 0x106 : 0;

	check_mode(cpu);
	sum = subtract ? ax - amount : ax + amount;
	gpr_write(cpu, RAX, 2, sum & 0xff0f);
	set_flags(cpu, (adjust ? FLAG_AF | FLAG_CF : 0) | result_flags(sum, 16) |
			       overflow(ax, amount, sum, 16, subtract));
}

void aaa_handler(struct cpu *cpu, const struct insn *insn)
{
	aaa_aas(cpu, false);
}

void aas_handler(struct cpu *cpu, const struct insn *insn)
{
	aaa_aas(cpu, true);
}

void aam_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 base = insn->imm, value = al(cpu);

	check_mode(cpu);
	if (!base)
		cpu_raise(cpu, VECTOR_DE);
	gpr_write(cpu, RAX, 2, (value / base) << 8 | value % base);
	set_flags(cpu, result_flags(al(cpu), 8));
}

// All flags are those of the addition.
void aad_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 product, old = al(cpu), sum;

	check_mode(cpu);
	product = (u8)(cpu->gpr[RAX] >> 8) * (u8)insn->imm;
	sum = old + product;
	gpr_write(cpu, RAX, 2, sum);
	set_flags(cpu, (sum < old ? FLAG_CF : 0) | ((sum ^ old ^ product) & FLAG_AF) |
			       result_flags(sum, 8) | overflow(old, product, sum, 8, false));
}

static void daa_das(struct cpu *cpu, bool subtract)
{
	u64 flags = cpu_rflags(cpu), set = 0;
	u8 old = al(cpu), amount = 0, value;

	check_mode(cpu);
	if ((old & 15) > 9 || (flags & FLAG_AF)) {
		amount = 6;
		set |= FLAG_AF;
		if (subtract && old < 6)
			set |= FLAG_CF;
	}
	if (old > 0x99 || (flags & FLAG_CF)) {
		amount += 0x60;
		set |= FLAG_CF;
	}
	value = subtract ? old - amount : old + amount;
	gpr_write(cpu, RAX, 1, value);
	set_flags(cpu, set | result_flags(value, 8) | overflow(old, amount, value, 8, subtract));
}

void daa_handler(struct cpu *cpu, const struct insn *insn)
{
	daa_das(cpu, false);
}

void das_handler(struct cpu *cpu, const struct insn *insn)
{
	daa_das(cpu, true);
}

// Undocumented for long: AL = CF ? 0xff : 0.
void salc_handler(struct cpu *cpu, const struct insn *insn)
{
	check_mode(cpu);
	gpr_write(cpu, RAX, 1, cpu_rflags(cpu) & FLAG_CF ? 0xff : 0);
}
