// SPDX-License-Identifier: MIT
// Port I/O: IN, OUT, INS, OUTS, and who may use a port.
//
// Nothing is committed before cpu_ops->pio() is done; when it asks to leave, the instruction (for
// a repeated one: the current piece) starts anew with the same port, size and count.
// SDM: "Input/Output": "I/O Sensitive Instructions", "I/O Permission Bit Map".
#include "cpu/debug.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"

#define TSS_IO_MAP_BASE 102
#define TSS_TYPE_386_AVAILABLE 9
#define TSS_TYPE_386_BUSY 11
#define STRING_BATCH 4096

// Raises #GP(0) unless every port of the access is allowed.
static void check_port(struct cpu *cpu, u16 port, unsigned size)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	unsigned iopl = (cpu->rflags & FLAG_IOPL) >> 12, type = tr->attributes & SEG_TYPE;
	u32 map, byte, bits;

	if (!cpu_protected(cpu) || (!cpu_v86(cpu) && cpu->cpl <= iopl))
		return;
	if ((tr->attributes & SEG_UNUSABLE) || !(tr->attributes & SEG_P) ||
	    (type != TSS_TYPE_386_AVAILABLE && type != TSS_TYPE_386_BUSY) ||
	    tr->limit < TSS_IO_MAP_BASE + 1)
		cpu_gp0(cpu);
	map = mem_read_n(cpu, tr->base + TSS_IO_MAP_BASE, 2, ACCESS_READ | ACCESS_IMPLICIT);
	byte = map + port / 8;
	// Two bytes are read always, so that an access may straddle them: the map ends in 0xff.
	if (byte + 1 > tr->limit)
		cpu_gp0(cpu);
	bits = mem_read_n(cpu, tr->base + byte, 2, ACCESS_READ | ACCESS_IMPLICIT);
	if (bits >> port % 8 & ((1u << size) - 1))
		cpu_gp0(cpu);
}

static unsigned port_size(const struct insn *insn)
{
	return !(insn->opcode & 1) ? 1 : insn->operand_size == 2 ? 2 : 4;
}

static u16 port_number(const struct cpu *cpu, const struct insn *insn)
{
	return insn->opcode & 8 ? cpu->gpr[RDX] : (u8)insn->imm; // E4..E7: immediate
}

void in_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = port_size(insn);
	u16 port = port_number(cpu, insn);
	u32 value = 0;

	check_port(cpu, port, size);
	debug_note_port(cpu, port, size);
	cpu_check_ops(cpu, cpu->ops->pio(cpu->opaque, port, &value, size, 1, false));
	gpr_write(cpu, RAX, size, value);
}

void out_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = port_size(insn);
	u16 port = port_number(cpu, insn);
	u32 value = gpr_read(cpu, RAX, size);

	check_port(cpu, port, size);
	debug_note_port(cpu, port, size);
	cpu_check_ops(cpu, cpu->ops->pio(cpu->opaque, port, &value, size, 1, true));
}

// A piece goes out as one request only forward and in order, from or to one page of memory.
static void string_io(struct cpu *cpu, const struct insn *insn, bool output)
{
	enum seg seg = output ? insn->mem_seg : SEG_ES;
	unsigned reg = output ? RSI : RDI, size = port_size(insn);
	unsigned access = (output ? ACCESS_READ : ACCESS_WRITE) | cpu_access_of_cpl(cpu);
	u16 port = cpu->gpr[RDX];
	u8 data[STRING_BATCH];
	u64 linear;
	struct string_run run;

	check_port(cpu, port, size); // also for a count of zero
	if (!string_count(cpu, insn))
		return;
	debug_note_port(cpu, port, size);
	do {
		u8 *host = NULL;

		run = string_run(cpu, insn, seg, reg, size, !output);
		linear = run.linear;
		if (run.n && (run.n == 1 || !(cpu->rflags & FLAG_DF)))
			host = mem_host(cpu, linear, run.n * size, access);
		if (!host) {
			run.n = 1;
			linear = string_element(cpu, insn, seg, reg, size, !output);
		}
		if (output)
			mem_read(cpu, linear, data, run.n * size, access);
		else
			mem_probe_write(cpu, linear, run.n * size, access);
		cpu_check_ops(cpu, cpu->ops->pio(cpu->opaque, port, data, size, run.n, output));
		if (!output)
			mem_write(cpu, linear, data, run.n * size, access);
		string_advance(cpu, insn, reg, run.n, size);
	} while (string_next(cpu, insn, run.n));
}

void ins_handler(struct cpu *cpu, const struct insn *insn)
{
	string_io(cpu, insn, false);
}

void outs_handler(struct cpu *cpu, const struct insn *insn)
{
	string_io(cpu, insn, true);
}
