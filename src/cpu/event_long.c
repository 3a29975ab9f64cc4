// SPDX-License-Identifier: MIT
// Event delivery in long mode (64-bit and compatibility code): always to 64-bit code, on a 16-byte
// aligned stack with SS:RSP always pushed.
// This is the path of every page fault and timer tick: each descriptor is read once.
// SDM: "Exception and Interrupt Handling in 64-bit Mode", INT n ("IA-32e-MODE").
#include "cpu/event_internal.h"

#include "cpu/cet.h"
#include "cpu/guest_access.h"
#include "cpu/segment.h"

struct gate {
	u16 selector;
	u8 ist;
	bool interrupt; // clears IF
	u64 offset;
};

static void read_gate(struct cpu *cpu, const struct delivery *event, struct gate *gate)
{
	u64 address = cpu->idtr.base + event->vector * 16u, low, high;
	unsigned type;

	if (event->vector * 16u + 15 > cpu->idtr.limit)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	low = system_read8(cpu, address);
	high = system_read8(cpu, address + 8);
	type = low >> 40 & 0x1f;
	if (type != TYPE_INTERRUPT_GATE32 && type != TYPE_TRAP_GATE32)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	if (event->software && descriptor_dpl(low) < cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	if (!descriptor_present(low))
		cpu_raise_error(cpu, VECTOR_NP, idt_error(event));
	gate->selector = low >> 16;
	gate->ist = low >> 32 & 7;
	gate->interrupt = type == TYPE_INTERRUPT_GATE32;
	gate->offset = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32;
}

// The handler's code segment; returns the new CPL.
static unsigned read_code(struct cpu *cpu, const struct delivery *event, const struct gate *gate,
			  struct segment *cs)
{
	u32 error = selector_error(gate->selector) | event->ext;
	unsigned cpl;
	u64 raw;

	if (selector_null(gate->selector))
		cpu_raise_error(cpu, VECTOR_GP, event->ext);
	if (!descriptor_read(cpu, gate->selector, &raw))
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (!descriptor_is_code(raw) || descriptor_dpl(raw) > cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	if ((descriptor_attributes(raw) & (SEG_L | SEG_DB)) != SEG_L)
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	cpl = descriptor_is_conforming(raw) ? cpu->cpl : descriptor_dpl(raw);
	descriptor_mark_accessed(cpu, gate->selector, &raw);
	segment_from_descriptor(cs, (gate->selector & ~3) | cpl, raw);
	return cpl;
}

// RSP of the 64-bit TSS: of the privilege level, or of the interrupt stack table.
static u64 tss_stack(struct cpu *cpu, const struct delivery *event, unsigned cpl, unsigned ist)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	unsigned offset = ist ? 0x1c + 8 * ist : 4 + 8 * cpl;
	u64 rsp;

	if (offset + 7 > tr->limit)
		cpu_raise_error(cpu, VECTOR_TS, selector_error(tr->selector) | event->ext);
	rsp = system_read8(cpu, tr->base + offset);
	if (!cpu_canonical(cpu, rsp))
		cpu_raise_error(cpu, VECTOR_SS, event->ext);
	return rsp;
}

static void push_frame(struct cpu *cpu, const struct delivery *event, u64 rsp, const u64 *frame,
		       unsigned slots, unsigned access)
{
	u64 *host;

	if (!cpu_canonical(cpu, rsp) || !cpu_canonical(cpu, rsp + slots * 8 - 1))
		cpu_raise_error(cpu, VECTOR_SS, event->ext);
	host = mem_host(cpu, rsp, slots * 8, ACCESS_WRITE | access);
	if (!host) {
		mem_write(cpu, rsp, frame, slots * 8, ACCESS_WRITE | access);
		return;
	}
	for (unsigned i = 0; i < slots; i++)
		if (!guest_store64(host + i, frame[i]))
			guest_fault(cpu, host + i);
}

void deliver_long(struct cpu *cpu, const struct delivery *event)
{
	u16 old_cs = cpu->seg[SEG_CS].selector;
	unsigned cpl, slots = event->has_error ? 6 : 5;
	u64 frame[6], *slot = frame, rsp, lip = event->return_rip;
	struct segment cs;
	struct gate gate;

	read_gate(cpu, event, &gate);
	cpl = read_code(cpu, event, &gate, &cs);
	if (cpl != cpu->cpl || gate.ist)
		rsp = tss_stack(cpu, event, cpl, gate.ist);
	else
		rsp = cpu->gpr[RSP];
	if (!cpu_canonical(cpu, gate.offset))
		cpu_raise_error(cpu, VECTOR_GP, event->ext);
	rsp &= ~0xfull;
	rsp -= slots * 8;
	if (event->has_error)
		*slot++ = event->error;
	*slot++ = event->return_rip;
	*slot++ = old_cs;
	*slot++ = event->rflags;
	*slot++ = cpu->gpr[RSP];
	*slot++ = cpu->seg[SEG_SS].selector;
	push_frame(cpu, event, rsp, frame, slots, cpl == 3 ? ACCESS_USER : 0);
	if (!cpu_64bit(cpu))
		lip = (u32)(cpu->seg[SEG_CS].base + lip);
	cet_enter(cpu, cpl, gate.ist, true, old_cs, lip, event->ext);

	// Nothing below faults.
	cpu->gpr[RSP] = rsp;
	if (cpl != cpu->cpl)
		segment_null(&cpu->seg[SEG_SS], cpl, cpl);
	cpu->seg[SEG_CS] = cs;
	cpu->rflags &= ~(u64)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (gate.interrupt ? FLAG_IF : 0));
	cpu->cpl = cpl;
	cet_track_indirect(cpu, cpl, false, false);
	cpu->rip = gate.offset;
	cpu_mode_changed(cpu);
}
