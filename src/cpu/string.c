// SPDX-License-Identifier: MIT
// String instructions: MOVS, CMPS, STOS, LODS, SCAS; the rows of INS, OUTS, IN and OUT.
//
// Work is done in pieces within one page of the host's memory, by the host's own string
// instructions; an element that crosses pages, lies in memory I/O or in a page of translated code
// takes the slow way alone. Registers are up to date after each piece, so that a fault or an
// interrupt finds exact progress. Deviation: the SDM has the flags of before the instruction restored
// when CMPS or SCAS fault in the middle; here, as on AMD's processors, they are those of the last
// comparison made. Nothing can depend on them, since the restarted instruction sets them.
//
// The mnemonics MOVSD and CMPSD are also those of SSE2 instructions: these rows mean opcodes A5
// and A7. The source segment is insn->mem_seg (DS, or the override).
//
// SDM: "REP/REPE/REPZ/REPNE/REPNZ - Repeat String Operation Prefix", and each instruction's page.
#include "cpu/guest_access.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"

static unsigned element_size(const struct insn *insn)
{
	return insn->opcode & 1 ? insn->operand_size : 1;
}

// Backward, the current element is the last of the piece: it is the one that faults.
static void *run_host(struct cpu *cpu, const struct string_run *run, unsigned size, unsigned access)
{
	if (!run->n)
		return NULL;
	if (run->n > 1 && (cpu->rflags & FLAG_DF))
		mem_host(cpu, run->linear + (run->n - 1) * size, size, access);
	return mem_host(cpu, run->linear, run->n * size, access);
}

// A piece cut to n elements: going backward it is the upper end that counts.
static void run_cut(struct cpu *cpu, struct string_run *run, u64 n, unsigned size)
{
	if (cpu->rflags & FLAG_DF)
		run->linear += (run->n - n) * size;
	run->n = n;
}

// ---- the host's instructions on host memory; pointers are to the lowest byte ----
//
// Guest memory may vanish in the host at any moment: each of these says how many elements it did.
// A fixup finds DF as the instruction had it.

#define FOR_SIZE(size, OP) \
	switch (size) { \
	case 1: OP("b"); break; \
	case 2: OP("w"); break; \
	case 4: OP("l"); break; \
	default: OP("q"); \
	}
#define FAULT GUEST_ACCESS_FIXUP("1b", "%l[fault]")

static u64 host_movs(u8 *to, const u8 *from, u64 n, unsigned size, bool back)
{
	u64 left = n;

	if (back) {
		to += (n - 1) * size;
		from += (n - 1) * size;
#define BACK(s) \
	__asm__ volatile goto("std\n1: rep movs" s "\n\tcld\n\t" FAULT \
		     : "+D"(to), "+S"(from), "+c"(left) : : "memory", "cc" : fault)
		FOR_SIZE(size, BACK)
#undef BACK
		return n;
	}
#define FORTH(s) \
	__asm__ volatile goto("1: rep movs" s "\n\t" FAULT \
		     : "+D"(to), "+S"(from), "+c"(left) : : "memory" : fault)
	FOR_SIZE(size, FORTH)
#undef FORTH
	return n;
fault:
	__asm__ volatile("cld");
	return n - left;
}

static u64 host_stos(u8 *to, u64 value, u64 n, unsigned size, bool back)
{
	u64 left = n;

	if (back) {
		to += (n - 1) * size;
#define BACK(s) \
	__asm__ volatile goto("std\n1: rep stos" s "\n\tcld\n\t" FAULT \
		     : "+D"(to), "+c"(left) : "a"(value) : "memory", "cc" : fault)
		FOR_SIZE(size, BACK)
#undef BACK
		return n;
	}
#define FORTH(s) \
	__asm__ volatile goto("1: rep stos" s "\n\t" FAULT \
		     : "+D"(to), "+c"(left) : "a"(value) : "memory" : fault)
	FOR_SIZE(size, FORTH)
#undef FORTH
	return n;
fault:
	__asm__ volatile("cld");
	return n - left;
}

// ONE(set direction, repeat prefix, size) in the way that `back` and `until_equal` say.
#define EACH_WAY(s) \
	if (back && until_equal) \
		ONE("std", "repne", s); \
	else if (back) \
		ONE("std", "repe", s); \
	else if (until_equal) \
		ONE("", "repne", s); \
	else \
		ONE("", "repe", s)

// Compare up to n > 0 elements while they are equal (or not, for `until_equal`). Return how many
// were compared, 0 for a fault; *arith gets the flags of the last one as struct cpu keeps them.
static u64 host_cmps(const u8 *from, const u8 *to, u64 n, unsigned size, bool back,
		     bool until_equal, u32 *arith)
{
	u64 left = n, flags = 0;

	if (back) {
		to += (n - 1) * size;
		from += (n - 1) * size;
	}
#define ONE(direction, repeat, s) \
	__asm__ volatile goto(direction "\n1: " repeat " cmps" s "\n\tcld; lahf; seto %%al\n\t" FAULT \
		     : "+a"(flags), "+S"(from), "+D"(to), "+c"(left) : : "memory", "cc" : fault)
	FOR_SIZE(size, EACH_WAY)
#undef ONE
	*arith = flags & 0xffff;
	return n - left;
fault:
	__asm__ volatile("cld");
	return 0;
}

static u64 host_scas(u64 value, const u8 *to, u64 n, unsigned size, bool back, bool until_equal,
		     u32 *arith)
{
	u64 left = n, flags = value;

	if (back)
		to += (n - 1) * size;
#define ONE(direction, repeat, s) \
	__asm__ volatile goto(direction "\n1: " repeat " scas" s "\n\tcld; lahf; seto %%al\n\t" FAULT \
		     : "+a"(flags), "+D"(to), "+c"(left) : : "memory", "cc" : fault)
	FOR_SIZE(size, EACH_WAY)
#undef ONE
	*arith = flags & 0xffff;
	return n - left;
fault:
	__asm__ volatile("cld");
	return 0;
}

// ---- handlers ----

// The host cannot access guest memory after `n` elements of a piece: leave with exact state.
static __attribute__((noreturn)) void host_fault(struct cpu *cpu, const struct insn *insn,
						 const u8 *host, u64 n)
{
	if (n)
		string_next(cpu, insn, n);
	guest_fault(cpu, host);
}

static u64 movs_piece(struct cpu *cpu, const struct insn *insn, unsigned size, u8 **fault)
{
	struct string_run from, to;
	u8 *source, *target;

	from = string_run(cpu, insn, insn->mem_seg, RSI, size, false);
	to = string_run(cpu, insn, SEG_ES, RDI, size, true);
	if (from.n > to.n)
		run_cut(cpu, &from, to.n, size);
	else if (to.n > from.n)
		run_cut(cpu, &to, from.n, size);
	source = run_host(cpu, &from, size, reading(cpu));
	target = source ? run_host(cpu, &to, size, writing(cpu)) : NULL;
	if (target) {
		u64 done = host_movs(target, source, to.n, size, cpu->rflags & FLAG_DF);

		*fault = done < to.n ? target : NULL;
		return done;
	}
	u64 a = string_element(cpu, insn, insn->mem_seg, RSI, size, false);
	u64 value = mem_read_n(cpu, a, size, reading(cpu));

	mem_write_n(cpu, string_element(cpu, insn, SEG_ES, RDI, size, true), value, size,
		    writing(cpu));
	return 1;
}

static void movs(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = element_size(insn);
	u8 *fault = NULL;
	u64 n;

	if (!string_count(cpu, insn))
		return;
	do {
		n = movs_piece(cpu, insn, size, &fault);
		string_advance(cpu, insn, RSI, n, size);
		string_advance(cpu, insn, RDI, n, size);
		if (fault)
			host_fault(cpu, insn, fault, n);
	} while (string_next(cpu, insn, n));
}

static void stos(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = element_size(insn);
	struct string_run to;
	u8 *target;

	if (!string_count(cpu, insn))
		return;
	do {
		to = string_run(cpu, insn, SEG_ES, RDI, size, true);
		target = run_host(cpu, &to, size, writing(cpu));
		if (target) {
			u64 done = host_stos(target, cpu->gpr[RAX], to.n, size,
					     cpu->rflags & FLAG_DF);

			if (done < to.n) {
				string_advance(cpu, insn, RDI, done, size);
				host_fault(cpu, insn, target, done);
			}
		} else {
			to.n = 1;
			mem_write_n(cpu, string_element(cpu, insn, SEG_ES, RDI, size, true),
				    gpr_read(cpu, RAX, size), size, writing(cpu));
		}
		string_advance(cpu, insn, RDI, to.n, size);
	} while (string_next(cpu, insn, to.n));
}

static void lods(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = element_size(insn);
	struct string_run from;
	u8 *source;
	u64 value;

	if (!string_count(cpu, insn))
		return;
	do {
		from = string_run(cpu, insn, insn->mem_seg, RSI, size, false);
		source = run_host(cpu, &from, size, reading(cpu));
		if (source) { // only the last element stays in the register
			u64 last = cpu->rflags & FLAG_DF ? 0 : (from.n - 1) * size;

			if (!guest_load(source + last, size, &value))
				guest_fault(cpu, source + last);
		} else {
			from.n = 1;
			value = mem_read_n(cpu,
					   string_element(cpu, insn, insn->mem_seg, RSI, size, false),
					   size, reading(cpu));
		}
		gpr_write(cpu, RAX, size, value);
		string_advance(cpu, insn, RSI, from.n, size);
	} while (string_next(cpu, insn, from.n));
}

// After a piece: does the repeat condition hold?
static bool goes_on(const struct insn *insn, u32 arith)
{
	bool equal = arith >> 8 & FLAG_ZF;

	return insn->repne ? !equal : equal;
}

static u64 cmps_piece(struct cpu *cpu, const struct insn *insn, unsigned size, u32 *arith)
{
	u64 a, b;
	bool back = cpu->rflags & FLAG_DF;
	struct string_run from, to;
	u8 *source, *target;

	from = string_run(cpu, insn, insn->mem_seg, RSI, size, false);
	to = string_run(cpu, insn, SEG_ES, RDI, size, false);
	if (from.n > to.n)
		run_cut(cpu, &from, to.n, size);
	else if (to.n > from.n)
		run_cut(cpu, &to, from.n, size);
	target = run_host(cpu, &to, size, reading(cpu));
	source = target ? run_host(cpu, &from, size, reading(cpu)) : NULL;
	if (source)
		return host_cmps(source, target, to.n, size, back, insn->repne, arith);
	b = mem_read_n(cpu, string_element(cpu, insn, SEG_ES, RDI, size, false), size, reading(cpu));
	a = mem_read_n(cpu, string_element(cpu, insn, insn->mem_seg, RSI, size, false), size,
		       reading(cpu));
	return host_cmps((u8 *)&a, (u8 *)&b, 1, size, false, insn->repne, arith);
}

static u64 scas_piece(struct cpu *cpu, const struct insn *insn, unsigned size, u32 *arith)
{
	struct string_run to;
	u8 *target;
	u64 b;

	to = string_run(cpu, insn, SEG_ES, RDI, size, false);
	target = run_host(cpu, &to, size, reading(cpu));
	if (target)
		return host_scas(cpu->gpr[RAX], target, to.n, size, cpu->rflags & FLAG_DF,
				 insn->repne, arith);
	b = mem_read_n(cpu, string_element(cpu, insn, SEG_ES, RDI, size, false), size, reading(cpu));
	return host_scas(cpu->gpr[RAX], (u8 *)&b, 1, size, false, insn->repne, arith);
}

// CMPS (`source`: RSI moves too) and SCAS, by pieces.
static void compare(struct cpu *cpu, const struct insn *insn, bool source,
		    u64 (*piece)(struct cpu *cpu, const struct insn *insn, unsigned size, u32 *arith))
{
	unsigned size = element_size(insn);
	u64 next_rip = cpu->next_rip, n;
	u32 arith;

	if (!string_count(cpu, insn))
		return;
	do {
		n = piece(cpu, insn, size, &arith);
		if (!n)
			guest_fault(cpu, NULL);
		cpu->arith = arith;
		if (source)
			string_advance(cpu, insn, RSI, n, size);
		string_advance(cpu, insn, RDI, n, size);
	} while (string_next(cpu, insn, n) && goes_on(insn, arith));
	if (!goes_on(insn, arith)) // complete, whatever string_next() wants to look at
		cpu->next_rip = next_rip;
}

static void cmps(struct cpu *cpu, const struct insn *insn) { compare(cpu, insn, true, cmps_piece); }
static void scas(struct cpu *cpu, const struct insn *insn) { compare(cpu, insn, false, scas_piece); }

#define STRING(name, handler) { ZYDIS_MNEMONIC_##name, INSN_C, INSN_REP_RESTART, 0, handler }

const struct insn_row rows_string[] = {
	STRING(MOVSB, movs), STRING(MOVSW, movs), STRING(MOVSD, movs), STRING(MOVSQ, movs),
	STRING(CMPSB, cmps), STRING(CMPSW, cmps), STRING(CMPSD, cmps), STRING(CMPSQ, cmps),
	STRING(STOSB, stos), STRING(STOSW, stos), STRING(STOSD, stos), STRING(STOSQ, stos),
	STRING(LODSB, lods), STRING(LODSW, lods), STRING(LODSD, lods), STRING(LODSQ, lods),
	STRING(SCASB, scas), STRING(SCASW, scas), STRING(SCASD, scas), STRING(SCASQ, scas),
	STRING(INSB, ins_handler), STRING(INSW, ins_handler), STRING(INSD, ins_handler),
	STRING(OUTSB, outs_handler), STRING(OUTSW, outs_handler), STRING(OUTSD, outs_handler),
	{ ZYDIS_MNEMONIC_IN, INSN_C, 0, 0, in_handler },
	{ ZYDIS_MNEMONIC_OUT, INSN_C, 0, 0, out_handler },
	{ 0 },
};
