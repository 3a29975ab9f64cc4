// SPDX-License-Identifier: MIT
// What all string instructions share: index and count registers, the piece of a string that lies
// in one page, and when to leave a repeated instruction in the middle.
// SDM: "String Instructions", "REP/REPE/REPZ/REPNE/REPNZ - Repeat String Operation Prefix".
#include "cpu/handlers.h"
#include "cpu/operand.h"

#include <linux/kvm.h>

#define PAGE 4096u

static bool backward(const struct cpu *cpu)
{
	return cpu->rflags & FLAG_DF;
}

// With single-stepping there is a trap after each iteration, with breakpoints after the one that meets it.
static bool stepping(const struct cpu *cpu)
{
	return cpu->watch_data || (cpu->rflags & FLAG_TF) || (cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
}

u64 string_count(const struct cpu *cpu, const struct insn *insn)
{
	return insn->rep || insn->repne ? address_truncate(cpu->gpr[RCX], insn->address_size) : 1;
}

void string_advance(struct cpu *cpu, const struct insn *insn, unsigned reg, u64 n, unsigned size)
{
	u64 delta = n * size;

	gpr_write(cpu, reg, insn->address_size, cpu->gpr[reg] + (backward(cpu) ? -delta : delta));
}

// Linear address of the current element, checked; for the slow way.
u64 string_element(struct cpu *cpu, const struct insn *insn, enum seg seg, unsigned reg,
		   unsigned size, bool write)
{
	u64 offset = address_truncate(cpu->gpr[reg], insn->address_size);
	u64 linear = segment_linear(cpu, seg, offset, size, write);

	check_alignment(cpu, linear, size);
	return linear;
}

static u64 min(u64 a, u64 b)
{
	return a < b ? a : b;
}

// The piece ends where the page, the address size's range or the segment does.
struct string_run string_run(struct cpu *cpu, const struct insn *insn, enum seg seg, unsigned reg,
			     unsigned size, bool write)
{
	u64 count = stepping(cpu) ? 1 : string_count(cpu, insn);
	struct string_run run;
	unsigned in_page;

	run.offset = address_truncate(cpu->gpr[reg], insn->address_size);
	run.linear = segment_linear_unchecked(cpu, seg, run.offset);
	in_page = run.linear % PAGE;
	if (in_page + size > PAGE || (alignment_checked(cpu) && (run.linear & (size - 1)))) {
		run.n = 0;
		return run;
	}
	if (backward(cpu)) {
		run.n = min(count, min(in_page / size + 1, run.offset / size + 1));
		run.offset -= (run.n - 1) * size;
		run.linear -= (run.n - 1) * size;
	} else {
		u64 range = insn->address_size == 8 ? -run.offset :
			    insn->address_size == 4 ? (1ull << 32) - run.offset :
						      (1ull << 16) - run.offset;

		run.n = min(count, (PAGE - in_page) / size);
		if (range)
			run.n = min(run.n, range / size);
	}
	if (run.n && !segment_allows(cpu, seg, run.offset, run.n * size, write))
		run.n = 0;
	return run;
}

bool string_next(struct cpu *cpu, const struct insn *insn, u64 n)
{
	if (!insn->rep && !insn->repne)
		return false;
	gpr_write(cpu, RCX, insn->address_size, cpu->gpr[RCX] - n);
	cpu->replay = false; // accesses of the next iteration are new ones
	if (!address_truncate(cpu->gpr[RCX], insn->address_size))
		return false;
	if (!stepping(cpu) && !__atomic_load_n(&cpu->request, __ATOMIC_RELAXED))
		return true;
	cpu->next_rip = cpu->rip;
	return false;
}
