// SPDX-License-Identifier: MIT
// Random descriptors, gates, TSSs and stacks under every transfer, in every mode, with and without CET.
// What must hold whatever the guest has in memory: a raise leaves the registers as they were (task
// switches excepted), and success leaves a state that a processor can be in.
// Usage: transfer_fuzz [COUNT [SEED]]
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static u64 seed, count;

static u64 random_bits(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * 0x2545f4914f6cdd1dull;
}

static unsigned below(unsigned n) { return (random_bits() >> 33) % n; }
static bool one_in(unsigned n) { return !below(n); }

static const u16 selectors[] = {
	CODE64, DATA, USER_CODE32, USER_DATA, USER_CODE64, CODE32, TSS_SELECTOR, GATE, CONFORMING64, RING1_DATA,
	RING1_CODE64, ABSENT_DATA, TSS_B_SELECTOR, CODE16, RING1_CODE32, ABSENT_CODE, READ_ONLY, CONFORMING32,
	LDT_SELECTOR, TASK_GATE, DATA16, EXECUTE_ONLY, 0, 3, GDT_LIMIT + 1,
};

static u16 random_selector(void)
{
	u16 selector = selectors[below(sizeof(selectors) / sizeof(selectors[0]))];

	return one_in(3) ? (selector & ~7) | below(8) : selector;
}

static u64 random_address(void)
{
	static const u64 places[] = {
		0, KERNEL_STACK - 0x40, USER_STACK - 0x40, RING1_STACK - 0x40, KERNEL_SS - 0x40, KERNEL_SS - 8,
		USER_SS - 0x40, IST_SS - 8, UNMAPPED, UNMAPPED - 8, 0x7ffffffffff8, 0x800000000000, HANDLER, 0xfffffff8,
		0x100000000, ~7ull, MEMORY_SIZE - 8, GDT, IDT, TSS,
	};
	u64 address = places[below(sizeof(places) / sizeof(places[0]))];

	return one_in(4) ? address + below(64) : one_in(20) ? random_bits() : address;
}

static void random_machine(void)
{
	switch (below(9)) {
	case 0:
	case 1: machine_long(0); break;
	case 2: machine_long(1); break;
	case 3: machine_long(3); break;
	case 4: machine_compat(); break;
	case 5: machine_32(0); break;
	case 6: machine_32(3); break;
	case 7: machine_v86(below(4)); break;
	case 8: machine_real(); break;
	}
	if (!one_in(3))
		machine_cet(!one_in(4), one_in(2));
	if (one_in(2))
		cpu->cr4 |= CR4_VME;
	// Gates and tasks worth the name, for what follows to damage.
	if (cpu_long_mode(cpu))
		set_call_gate64(GATE, one_in(2) ? CODE64 : random_selector(), HANDLER, below(4));
	else
		set_call_gate32(GATE, one_in(2) ? CODE32 : random_selector(), HANDLER32,
				one_in(3) ? TYPE_CALL_GATE16 : TYPE_CALL_GATE32, below(4), below(32));
	put(GDT + TASK_GATE, (u64)TSS_B_SELECTOR << 16 | 0xe5ull << 40, 8);
	for (unsigned i = 0x20; i < 0x60; i += 4)
		put(TSS_B + i, one_in(3) ? random_bits() : i >= 0x48 ? random_selector() : 0x5000 + i, 4);
	put(TSS_B + 0x68, one_in(2) ? RING1_SS - 8 : random_address(), 4);
}

static void random_damage(void)
{
	for (unsigned i = below(6); i; i--) {
		u64 where = one_in(3) ? GDT + below(GDT_LIMIT + 1) : one_in(2) ? IDT + below(0x1000) : TSS + below(0x500);

		memory[where] = random_bits();
	}
	if (one_in(4))
		cpu->gpr[RSP] = random_address();
	if (one_in(4))
		cpu->ssp = random_address() & ~3ull;
	if (one_in(6))
		cpu->pl_ssp[below(4)] = random_address() & ~3ull;
	if (one_in(8))
		cpu->rflags ^= random_bits() & (FLAG_NT | FLAG_IOPL | FLAG_IF | FLAG_VIF | FLAG_VIP | FLAG_TF);
	if (one_in(10))
		cpu->seg[SEG_TR].limit = below(0x80);
	if (one_in(10))
		cpu->gdtr.limit = below(0x100);
	// A frame to return by.
	if (one_in(2)) {
		u64 at = (cpu->gpr[RSP] + (cpu_64bit(cpu) ? 0 : cpu->seg[SEG_SS].base)) & (MEMORY_SIZE - 1);
		unsigned slot = cpu_64bit(cpu) ? 8 : one_in(3) ? 2 : 4;

		for (unsigned i = 0; i < 9 && at + (i + 1) * slot <= MEMORY_SIZE; i++)
			put(at + i * slot, i == 1 || i > 3 ? random_selector() : i == 2 ? random_bits() & 0x3f7fd7 : random_address(),
			    slot);
	}
	if (one_in(3))
		put((cpu->ssp & (MEMORY_SIZE - 8)), cpu->ssp | below(4), 8);
}

static void random_insn(struct insn *insn)
{
	static const struct insn_row *const tables[] = { rows_transfer, rows_transfer, rows_cet, rows_segment };
	const struct insn_row *table = tables[below(4)];
	unsigned rows = 0;

	while (table[rows].mnemonic)
		rows++;
	*insn = (struct insn){ .mnemonic = table[below(rows)].mnemonic, .length = 3, .mem_index = 0xff, .mem_seg = SEG_DS,
			       .mem_base = one_in(2) ? 0xff : RBX, .mem_disp = random_address() };
	insn->operand_size = cpu_64bit(cpu) ? (one_in(2) ? 8 : 4) : one_in(2) ? 4 : 2;
	insn->address_size = cpu_64bit(cpu) ? 8 : 4;
	if (insn->mem_base != 0xff)
		insn->mem_disp = 0;
	cpu->gpr[RBX] = random_address();
	cpu->gpr[RAX] = random_selector();
	insn->imm = random_bits() & 0xff;
	insn->far_selector = random_selector();
	insn->op[0] = (struct operand){ .kind = OPERAND_REG, .size = insn->operand_size, .reg = RCX };
	insn->op[1] = (struct operand){ .kind = OPERAND_REG, .size = insn->operand_size, .reg = RAX };
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		insn->op[one_in(3)] = (struct operand){ .kind = OPERAND_SEG, .size = 2, .reg = below(6) };
		insn->op[0].size = insn->op[0].kind == OPERAND_SEG ? 2 : insn->operand_size;
		if (insn->op[0].kind == OPERAND_REG && insn->op[1].kind == OPERAND_REG)
			insn->op[1] = (struct operand){ .kind = OPERAND_SEG, .size = 2, .reg = SEG_CS };
		break;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		insn->op[0] = (struct operand){ .kind = OPERAND_SEG, .size = 2, .reg = one_in(2) ? SEG_FS : SEG_GS };
		break;
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_JMP:
		insn->imm = random_address();
		insn->op[0].kind = one_in(2) ? OPERAND_FAR : OPERAND_MEM;
		break;
	case ZYDIS_MNEMONIC_RET:
		insn->op[0].kind = one_in(2) ? OPERAND_IMM : OPERAND_NONE;
		break;
	case ZYDIS_MNEMONIC_WRSSD:
	case ZYDIS_MNEMONIC_WRUSSD:
		insn->op[1].size = 4;
		insn->op[0].kind = OPERAND_MEM;
		break;
	case ZYDIS_MNEMONIC_WRSSQ:
	case ZYDIS_MNEMONIC_WRUSSQ:
		insn->op[1].size = 8;
		// fall through
	case ZYDIS_MNEMONIC_RSTORSSP:
	case ZYDIS_MNEMONIC_CLRSSBSY:
		insn->op[0].kind = OPERAND_MEM;
		break;
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
		insn->op[1].kind = OPERAND_MEM;
		break;
	}
}

// What a state must fulfil; NULL, or what it does not.
static const char *broken(void)
{
	const struct segment *cs = &cpu->seg[SEG_CS], *ss = &cpu->seg[SEG_SS];

	if (cpu->cpl > 3)
		return "CPL above 3";
	if (!cpu_protected(cpu))
		return cpu->cpl ? "CPL not 0 in real mode" : cpu->rip > 0xffff ? "IP above 64 KiB" : NULL;
	if (cpu_v86(cpu))
		return cpu->cpl != 3 ? "CPL not 3 in virtual-8086 mode" : cs->base != (u32)cs->selector << 4 ? "CS base" : NULL;
	if ((cs->selector & 3u) != cpu->cpl)
		return "RPL of CS is not CPL";
	if (!(cs->attributes & SEG_P) || !(cs->attributes & SEG_S) || !(cs->attributes & SEG_CODE))
		return "CS is no present code segment";
	if (cpu_long_mode(cpu) && (cs->attributes & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB))
		return "CS has L and D";
	if (cpu_64bit(cpu) ? !cpu_canonical(cpu, cpu->rip) : cpu->rip > cs->limit)
		return "RIP outside CS";
	if (segment_dpl(ss) != cpu->cpl)
		return "DPL of SS is not CPL";
	if (ss->attributes & SEG_UNUSABLE ? !cpu_64bit(cpu) : (ss->attributes & (SEG_S | SEG_CODE | SEG_RW)) != (SEG_S | SEG_RW))
		return "SS is no stack";
	for (unsigned i = 0; i < 2; i++)
		if ((i ? cpu->s_cet : cpu->u_cet) >> 10 == 3)
			return "a tracker both waits and is suppressed";
	return NULL;
}

int main(int argc, char **argv)
{
	static unsigned raises, failures;
	static struct insn insn;
	static u64 start;

	count = argc > 1 ? strtoull(argv[1], NULL, 0) : 20000;
	start = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	for (; count; count--) {
		static const char *problem;
		static bool switches;
		static u16 task;

		seed = (start + count) * 0x9e3779b97f4a7c15ull | 1;
		random_machine();
		random_damage();
		task = cpu->seg[SEG_TR].selector;
		if (one_in(2)) {
			static u8 vector;
			static enum event_source source;

			vector = random_bits();
			source = below(6);
			memset(&insn, 0, sizeof(insn));
			TRY(event_deliver(cpu, vector, source, source == EVENT_EXCEPTION && vector & 1, vector));
		} else {
			random_insn(&insn);
			TRY(execute(&insn));
		}
		switches = task != cpu->seg[SEG_TR].selector;
		raises += raised.vector != NOTHING;
		problem = raised.vector != NOTHING && switches ? NULL : broken();
		// IRET of 64-bit code to 64-bit code of level 0 may leave a null SS; compatibility code may inherit it.
		if (problem && !strcmp(problem, "SS is no stack") && cpu_long_mode(cpu))
			problem = NULL;
		if (problem && failures++ < 10)
			printf("# seed %llu: %s after %s, raised %d\n", (unsigned long long)(start + count), problem,
			       insn.mnemonic ? ZydisMnemonicGetString(insn.mnemonic) : "event", raised.vector);
	}
	printf("# %u raised\n", raises);
	ok(!failures, "every state is one that a processor can be in");
	return done();
}
