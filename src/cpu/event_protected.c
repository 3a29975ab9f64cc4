// SPDX-License-Identifier: MIT
// Event delivery in protected mode outside long mode, also from virtual-8086 mode: interrupt, trap and
// task gates of 16 and 32 bits.
// SDM: INT n ("PROTECTED-MODE", "INTER-PRIVILEGE-LEVEL-INTERRUPT", "INTERRUPT-FROM-VIRTUAL-8086-MODE",
// "INTRA-PRIVILEGE-LEVEL-INTERRUPT"), "Stack Usage on Transfers to Interrupt and Exception Handling
// Routines".
#include "cpu/event_internal.h"

#include "cpu/cet.h"
#include "cpu/far.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
#include "cpu/task.h"

static u64 read_gate(struct cpu *cpu, const struct delivery *event)
{
	unsigned type;
	u64 gate;

	if (event->vector * 8u + 7 > cpu->idtr.limit)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	gate = system_read8(cpu, cpu->idtr.base + event->vector * 8u);
	type = gate >> 40 & 0x1f;
	if (type != TYPE_TASK_GATE && type != TYPE_INTERRUPT_GATE16 && type != TYPE_TRAP_GATE16 &&
	    type != TYPE_INTERRUPT_GATE32 && type != TYPE_TRAP_GATE32)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	if (event->software && descriptor_dpl(gate) < cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	if (!descriptor_present(gate))
		cpu_raise_error(cpu, VECTOR_NP, idt_error(event));
	return gate;
}

static unsigned read_code(struct cpu *cpu, const struct delivery *event, u16 selector,
			  struct segment *cs)
{
	u32 error = selector_error(selector) | event->ext;
	unsigned cpl;
	u64 raw;

	if (selector_null(selector))
		cpu_raise_error(cpu, VECTOR_GP, event->ext);
	if (!descriptor_read(cpu, selector, &raw))
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (!descriptor_is_code(raw) || descriptor_dpl(raw) > cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	cpl = descriptor_is_conforming(raw) ? cpu->cpl : descriptor_dpl(raw);
	// From virtual-8086 mode only to level 0.
	if (cpu_v86(cpu) && cpl != 0)
		cpu_raise_error(cpu, VECTOR_GP, error);
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(cs, (selector & ~3) | cpl, raw);
	return cpl;
}

// Frame in slots of 2 or 4 bytes, lowest address first.
struct frame {
	u8 bytes[11 * 4];
	unsigned size, slot;
};

static void frame_add(struct frame *frame, u32 value)
{
	u8 *at = frame->bytes + frame->size;

	if (frame->slot == 4)
		*(u32 *)at = value;
	else
		*(u16 *)at = value;
	frame->size += frame->slot;
}

void deliver_protected(struct cpu *cpu, const struct delivery *event)
{
	u64 gate = read_gate(cpu, event);
	unsigned type = descriptor_type(gate), cpl;
	struct frame frame = { .slot = type & 8 ? 4 : 2 };
	u16 old_cs = cpu->seg[SEG_CS].selector;
	bool v86 = cpu_v86(cpu);
	struct stack stack;
	struct segment cs;
	u32 offset;

	if (type == TYPE_TASK_GATE) {
		task_switch_gate(cpu, gate, TASK_EVENT, event->return_rip, event->ext, event->has_error,
				 event->error);
		return;
	}
	cpl = read_code(cpu, event, gate >> 16, &cs);
	offset = (gate & 0xffff) | (frame.slot == 4 ? gate >> 32 & 0xffff0000 : 0);
	if (event->has_error)
		frame_add(&frame, event->error);
	frame_add(&frame, event->return_rip);
	frame_add(&frame, old_cs);
	frame_add(&frame, event->rflags);
	if (cpl != cpu->cpl) {
		frame_add(&frame, cpu->gpr[RSP]);
		frame_add(&frame, cpu->seg[SEG_SS].selector);
		far_inner_stack(cpu, cpl, event->ext, &stack);
	} else {
		stack_current(cpu, &stack);
		stack.error = event->ext;
	}
	if (v86) {
		frame_add(&frame, cpu->seg[SEG_ES].selector);
		frame_add(&frame, cpu->seg[SEG_DS].selector);
		frame_add(&frame, cpu->seg[SEG_FS].selector);
		frame_add(&frame, cpu->seg[SEG_GS].selector);
	}
	if (offset > cs.limit)
		cpu_raise_error(cpu, VECTOR_GP, event->ext);
	stack_push(cpu, &stack, frame.bytes, frame.size, frame.slot);
	cet_enter(cpu, cpl, 0, false, old_cs, (u32)(cpu->seg[SEG_CS].base + event->return_rip), event->ext);

	// Nothing below faults.
	if (v86) {
		segment_null(&cpu->seg[SEG_ES], 0, 0);
		segment_null(&cpu->seg[SEG_DS], 0, 0);
		segment_null(&cpu->seg[SEG_FS], 0, 0);
		segment_null(&cpu->seg[SEG_GS], 0, 0);
	}
	cpu->seg[SEG_SS] = stack.ss;
	stack_commit(cpu, &stack);
	cpu->seg[SEG_CS] = cs;
	cpu->rflags &= ~(u64)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (type & 1 ? 0 : FLAG_IF));
	cpu->cpl = cpl;
	cet_track_indirect(cpu, cpl, false, false);
	cpu->rip = offset;
	cpu_mode_changed(cpu);
}
