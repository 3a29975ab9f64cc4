// SPDX-License-Identifier: MIT
// The x87 opcode and data pointer behind an unmasked exception, as the guest has to see them. The host's
// registers hold those of the copied instruction: another encoding, and an address in the host.
// SDM: "x87 FPU Instruction and Data (Operand) Pointers", "Last Instruction Opcode". They change with
// unmasked exceptions only (CPUID.7:EBX bit 6, and the fopcode compatibility mode off).
//
// What is needed is looked for in the TLB alone: nothing here may fault. What is not found reads 0.
#include "cpu/fpu.h"
#include "cpu/jit.h"
#include "cpu/mem.h"

struct x87_insn {
	u16 opcode;
	bool memory;
	enum seg seg; // FS or GS: the pointer is relative to it
};

// Does the entry at `index` hold a translation at all, and of this page?
static bool holds(const struct tlb_entry *entry, unsigned index, unsigned bits)
{
	return (entry->read >> 12 & ((1u << bits) - 1)) == index;
}

static const u8 *code_at(const struct cpu *cpu, u64 linear)
{
	unsigned index = linear >> 12 & ((1 << TLB_CODE_BITS) - 1);
	const struct tlb_entry *entry = &cpu->tlb_code[cpu->cpl == 3][index];

	if (entry->read != (linear & ~0xfffull))
		return NULL;
	return (const u8 *)entry->host + (linear & 0xfff);
}

static bool decode(const struct cpu *cpu, u64 linear, struct x87_insn *insn)
{
	const u8 *code = code_at(cpu, linear);
	unsigned n = 0, rest = 0x1000 - (linear & 0xfff);

	*insn = (struct x87_insn){ .seg = SEG_DS };
	for (; code && n + 1 < rest && n < 14; n++) {
		switch (code[n]) {
		case 0x64:
			insn->seg = SEG_FS;
			continue;
		case 0x65:
			insn->seg = SEG_GS;
			continue;
		case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x66: case 0x67: case 0xf2: case 0xf3:
			continue;
		}
		if (cpu_64bit(cpu) && (code[n] & 0xf0) == 0x40)
			continue;
		break;
	}
	if (!code || n + 1 >= rest || (code[n] & 0xf8) != 0xd8)
		return false;
	insn->opcode = (code[n] & 7) << 8 | code[n + 1];
	insn->memory = code[n + 1] < 0xc0;
	return true;
}

// The guest's linear address of what is at a host address; 0: unknown.
static u64 linear_of_host(const struct cpu *cpu, u64 host)
{
	const struct tlb_entry *table = cpu->cpl == 3 ? cpu->tlb_u : cpu->tlb_k;
	const struct jit *jit = cpu->jit;

	for (unsigned i = 0; i < sizeof(jit->slow) / sizeof(jit->slow[0]); i++) {
		u64 offset = host - (u64)jit->slow[i].buffer;

		if (offset < sizeof(jit->slow[i].buffer))
			return jit->slow[i].linear + offset - (jit->slow[i].linear & 63);
	}
	for (unsigned i = 0; i < 1 << TLB_K_BITS; i++)
		if (holds(&table[i], i, TLB_K_BITS) && table[i].host == (host & ~0xfffull))
			return table[i].read | (host & 0xfff);
	return 0;
}

void x87_exception_pointers(struct cpu *cpu, u64 rip, u64 host_data, u16 *opcode, u64 *data)
{
	u64 linear = cpu_64bit(cpu) ? rip : (u32)(rip + cpu->seg[SEG_CS].base), address;
	struct x87_insn insn;

	*opcode = 0;
	*data = 0;
	if (!decode(cpu, linear, &insn))
		return;
	*opcode = insn.opcode;
	if (!insn.memory)
		return;
	address = linear_of_host(cpu, host_data);
	if (!address)
		return;
	if (!cpu_64bit(cpu))
		*data = (u32)(address - cpu->seg[insn.seg].base);
	else
		*data = insn.seg == SEG_DS ? address : address - cpu->seg[insn.seg].base;
}
