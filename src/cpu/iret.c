// SPDX-License-Identifier: MIT
// IRET, IRETD, IRETQ: returns in real and virtual-8086 mode, to virtual-8086 mode, to the same and to
// outer privilege levels, and (NT) to the previous task.
// The frame is read and checked whole before any register changes. NMIs are unblocked in any case:
// executing IRET does that, even when it then faults.
// SDM: IRET/IRETD/IRETQ, "Handling Multiple NMIs", "Entering and Leaving Virtual-8086 Mode".
#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/far.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
#include "cpu/task.h"

#define FLAGS_ANY_CPL (FLAGS_ARITH | FLAG_TF | FLAG_DF | FLAG_NT)

static void load_flags(struct cpu *cpu, u64 flags, u64 mask)
{
	u64 rflags = (cpu_rflags(cpu) & ~mask) | (flags & mask);

	// RF lasts for one instruction and acts on code breakpoints alone. Without any it is not kept,
	// so that nobody has to clear it behind every return from a fault.
	if (!debug_wants_code(cpu))
		rflags &= ~(u64)FLAG_RF;
	cpu_set_rflags(cpu, rflags);
}

// Flags which IRET of this operand size may change at the level it is executed on.
static u64 flags_mask(const struct cpu *cpu, unsigned size)
{
	u64 mask = FLAGS_ANY_CPL;

	if (size > 2)
		mask |= FLAG_RF | FLAG_AC | FLAG_ID;
	if (cpu->cpl <= (cpu->rflags >> 12 & 3))
		mask |= FLAG_IF;
	if (cpu->cpl == 0)
		mask |= FLAG_IOPL | (size > 2 ? FLAG_VIF | FLAG_VIP : 0);
	return mask;
}

// Real mode and virtual-8086 mode: no privilege checks beyond IOPL.
static void iret_real(struct cpu *cpu, unsigned size)
{
	bool v86 = cpu_v86(cpu), low_iopl = v86 && (cpu->rflags & FLAG_IOPL) != FLAG_IOPL;
	struct segment cs = cpu->seg[SEG_CS];
	struct stack stack;
	u64 rip, flags, mask;
	u16 selector;

	if (low_iopl && (!(cpu->cr4 & CR4_VME) || size != 2))
		cpu_gp0(cpu);
	stack_current(cpu, &stack);
	rip = stack_pop(cpu, &stack, size);
	selector = stack_pop(cpu, &stack, size);
	flags = stack_pop(cpu, &stack, size);
	if (rip > cs.limit)
		cpu_gp0(cpu);
	mask = FLAGS_ANY_CPL | FLAG_IF | (size > 2 ? FLAG_RF | FLAG_AC | FLAG_ID : 0);
	if (!v86) {
		mask |= FLAG_IOPL;
	} else if (low_iopl) {
		// Virtual-8086 mode extensions: IF of the image goes to VIF.
		if (flags & FLAG_TF || (flags & FLAG_IF && cpu->rflags & FLAG_VIP))
			cpu_gp0(cpu);
		mask = (mask & ~(u64)FLAG_IF) | FLAG_VIF;
		flags = (flags & ~(u64)FLAG_VIF) | (flags & FLAG_IF ? FLAG_VIF : 0);
	}
	segment_load_real(&cs, SEG_CS, selector, v86);
	cpu->seg[SEG_CS] = cs;
	stack_commit(cpu, &stack);
	load_flags(cpu, flags, mask);
	cpu->next_rip = rip;
	cpu_mode_changed(cpu);
}

// From level 0 to virtual-8086 mode: six more slots are popped.
static void iret_to_v86(struct cpu *cpu, struct stack *stack, u64 rip, u16 cs, u64 flags)
{
	static const u8 order[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	u16 selectors[4], ss;
	u32 sp;

	sp = stack_pop(cpu, stack, 4);
	ss = stack_pop(cpu, stack, 4);
	for (unsigned i = 0; i < 4; i++)
		selectors[i] = stack_pop(cpu, stack, 4);
	if (rip > 0xffff)
		cpu_gp0(cpu);
	cet_return_v86(cpu);

	for (unsigned i = 0; i < 4; i++)
		segment_load_real(&cpu->seg[order[i]], order[i], selectors[i], true);
	segment_load_real(&cpu->seg[SEG_CS], SEG_CS, cs, true);
	segment_load_real(&cpu->seg[SEG_SS], SEG_SS, ss, true);
	cpu->gpr[RSP] = sp;
	cpu->cpl = 3;
	load_flags(cpu, flags, FLAGS_ANY_CPL | FLAG_IF | FLAG_IOPL | FLAG_RF | FLAG_VM | FLAG_AC | FLAG_VIF |
				       FLAG_VIP | FLAG_ID);
	cpu->next_rip = rip;
	cpu_mode_changed(cpu);
}

// The task linked to by the current TSS.
static void iret_task(struct cpu *cpu)
{
	u16 selector;
	u64 raw;

	if (cpu_long_mode(cpu))
		cpu_gp0(cpu);
	selector = system_read(cpu, cpu->seg[SEG_TR].base, 2);
	if (selector_null(selector) || selector & 4 || !descriptor_read(cpu, selector, &raw))
		cpu_raise_error(cpu, VECTOR_TS, selector_error(selector));
	if (descriptor_is_segment(raw) ||
	    (descriptor_type(raw) != TYPE_TSS16_BUSY && descriptor_type(raw) != TYPE_TSS32_BUSY))
		cpu_raise_error(cpu, VECTOR_TS, selector_error(selector));
	task_switch(cpu, selector, raw, TASK_IRET, cpu->next_rip, 0, false, 0);
	cpu->next_rip = cpu->rip;
}

void iret(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size, cpl;
	u64 frame[5], rip, lip, flags, mask;
	struct stack stack, outer;
	struct segment cs, ss;
	u16 selector;
	bool wide;

	event_unmask_nmi(cpu);
	if (!cpu_protected(cpu) || cpu_v86(cpu)) {
		iret_real(cpu, size);
		return;
	}
	if (cpu->rflags & FLAG_NT) {
		iret_task(cpu);
		return;
	}
	stack_current(cpu, &stack);
	if (size == 8) {
		// 64-bit mode, and the frame of every interrupt there: five slots at once.
		stack_peek(cpu, &stack, 0, frame, sizeof(frame));
		stack.sp += sizeof(frame);
	} else {
		for (unsigned i = 0; i < 3; i++)
			frame[i] = stack_pop(cpu, &stack, size);
	}
	rip = frame[0];
	selector = frame[1];
	flags = frame[2];
	if (flags & FLAG_VM && size == 4 && cpu->cpl == 0 && !cpu_long_mode(cpu)) {
		iret_to_v86(cpu, &stack, rip, selector, flags);
		return;
	}
	cpl = far_return_code(cpu, selector, &cs);
	wide = far_is_64bit(cpu, &cs);
	if (size != 8 && (cpl != cpu->cpl || cpu_64bit(cpu))) {
		frame[3] = stack_pop(cpu, &stack, size);
		frame[4] = stack_pop(cpu, &stack, size);
	}
	far_check_rip(cpu, &cs, rip);
	mask = flags_mask(cpu, size);
	lip = wide ? rip : (u32)(cs.base + rip);
	if (cpl != cpu->cpl || cpu_64bit(cpu)) {
		far_return_stack(cpu, frame[4], cpl, wide, &ss);
		cet_return(cpu, cpl, wide, selector, lip, true);
		stack_new(cpu, &outer, &ss, frame[3], cpl, wide, 0);
		cpu->seg[SEG_SS] = ss;
		stack_commit(cpu, &outer);
	} else {
		cet_return(cpu, cpl, wide, selector, lip, true);
		stack_commit(cpu, &stack);
	}
	cpu->seg[SEG_CS] = cs;
	if (cpl != cpu->cpl)
		segment_null_inner(cpu, cpl);
	cpu->cpl = cpl;
	load_flags(cpu, flags, mask);
	cpu->next_rip = rip;
	cpu_mode_changed(cpu);
}
