// SPDX-License-Identifier: MIT
// PUSHF, POPF, LAHF, SAHF and the instructions that set one flag.
// SDM: "EFLAGS Instructions", "POPF/POPFD/POPFQ", "Interrupt Handling in Virtual-8086 Mode".
#include "cpu/handlers.h"
#include "cpu/operand.h"
#include "cpu/stack.h"

#define V86_16BIT_IOPL FLAG_IOPL

static unsigned iopl(const struct cpu *cpu)
{
	return (cpu->rflags & FLAG_IOPL) >> 12;
}

// Virtual-8086 mode below IOPL 3: #GP, unless the virtual-mode extensions lend VIF for IF.
static bool v86_virtual_if(struct cpu *cpu, unsigned size)
{
	if (!cpu_v86(cpu) || iopl(cpu) == 3)
		return false;
	if (!(cpu->cr4 & CR4_VME) || size != 2)
		cpu_gp0(cpu);
	return true;
}

void pushf_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	u64 flags = cpu_rflags(cpu) & ~(u64)(FLAG_VM | FLAG_RF);
	struct stack stack;

	if (v86_virtual_if(cpu, size)) {
		flags = (flags & ~(u64)FLAG_IF) | V86_16BIT_IOPL;
		if (cpu->rflags & FLAG_VIF)
			flags |= FLAG_IF;
	}
	stack_current(cpu, &stack);
	check_alignment(cpu, stack.ss.base + stack.sp, size);
	stack_push(cpu, &stack, &flags, size, size);
	stack_commit(cpu, &stack);
}

static u64 popf_changeable(const struct cpu *cpu, unsigned size)
{
	u64 mask = FLAGS_ARITH | FLAG_TF | FLAG_DF | FLAG_NT;

	if (size > 2)
		mask |= FLAG_AC | FLAG_ID;
	if (!cpu_protected(cpu) || (!cpu_v86(cpu) && cpu->cpl == 0))
		return mask | FLAG_IF | FLAG_IOPL;
	if (cpu_v86(cpu) ? iopl(cpu) == 3 : cpu->cpl <= iopl(cpu))
		mask |= FLAG_IF;
	return mask;
}

void popf_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	bool virtual_if = v86_virtual_if(cpu, size);
	u64 popped, old = cpu_rflags(cpu), flags;
	struct stack stack;

	stack_current(cpu, &stack);
	check_alignment(cpu, stack.ss.base + stack.sp, size);
	popped = stack_pop(cpu, &stack, size);
	if (virtual_if && ((popped & FLAG_TF) || ((popped & FLAG_IF) && (old & FLAG_VIP))))
		cpu_gp0(cpu);
	stack_commit(cpu, &stack);
	flags = popf_changeable(cpu, size);
	flags = (old & ~flags) | (popped & flags);
	if (virtual_if)
		flags = (flags & ~(u64)FLAG_VIF) | (popped & FLAG_IF ? FLAG_VIF : 0);
	cpu_set_rflags(cpu, flags & ~(u64)FLAG_RF);
	if ((old & ~flags & FLAG_AC) && cpu->tlb_ac_count)
		tlb_drop_ac(cpu);
	if ((old ^ flags) & (FLAG_TF | FLAG_AC))
		cpu_mode_changed(cpu);
	if (flags & FLAG_TF)
		cpu_request(cpu, REQ_EVENT);
	if ((flags & FLAG_IF) && cpu->irq_wait)
		cpu_request(cpu, REQ_IRQ);
}

static void check_lahf(struct cpu *cpu)
{
	if (cpu_64bit(cpu) && !guest_has(cpu, FEATURE_LAHF_LM))
		cpu_ud(cpu);
}

void lahf_handler(struct cpu *cpu, const struct insn *insn)
{
	check_lahf(cpu);
	((u8 *)&cpu->gpr[RAX])[1] = (cpu_rflags(cpu) & 0xff) | 2;
}

void sahf_handler(struct cpu *cpu, const struct insn *insn)
{
	const u64 mask = FLAGS_ARITH & 0xff;

	check_lahf(cpu);
	cpu_set_arith(cpu, (cpu_rflags(cpu) & ~mask) | ((cpu->gpr[RAX] >> 8) & mask));
}

static void change_flags(struct cpu *cpu, u64 clear, u64 flip)
{
	cpu_set_rflags(cpu, (cpu_rflags(cpu) & ~clear) ^ flip);
}

void clc_handler(struct cpu *cpu, const struct insn *insn)
{
	change_flags(cpu, FLAG_CF, 0);
}

void stc_handler(struct cpu *cpu, const struct insn *insn)
{
	change_flags(cpu, FLAG_CF, FLAG_CF);
}

void cmc_handler(struct cpu *cpu, const struct insn *insn)
{
	change_flags(cpu, 0, FLAG_CF);
}

void cld_handler(struct cpu *cpu, const struct insn *insn)
{
	change_flags(cpu, FLAG_DF, 0);
}

void std_handler(struct cpu *cpu, const struct insn *insn)
{
	change_flags(cpu, FLAG_DF, FLAG_DF);
}
