// SPDX-License-Identifier: MIT
// Events: which one is delivered, as what, and what becomes of exceptions during delivery. The gates
// themselves are in event_long.c and event_protected.c.
// Delivery leaves struct cpu as it was when it raises; then the first event is remembered in
// cpu->delivering and the two are combined.
// SDM: "Interrupt and Exception Handling", "Double Fault Exception", "20.3 Interrupt and Exception
// Handling in Virtual-8086 Mode" by its title.
#include "cpu/event_internal.h"

#include "cpu/debug.h"
#include "cpu/segment.h"
#include "cpu/stack.h"

static bool is_contributory(u8 vector)
{
	switch (vector) {
	case VECTOR_DE:
	case VECTOR_TS:
	case VECTOR_NP:
	case VECTOR_SS:
	case VECTOR_GP:
	case VECTOR_CP:
		return true;
	}
	return false;
}

// Saved RF: 1 for faults, so that the instruction is not caught by its own breakpoint again. Traps,
// aborts and interrupts push what is there; so does a code breakpoint's #DB, whose handler decides.
static bool fault_sets_rf(u8 vector, u32 debug_bits)
{
	switch (vector) {
	case VECTOR_DB:
		return debug_bits & DR6_BD;
	case VECTOR_NMI:
	case VECTOR_BP:
	case VECTOR_OF:
	case VECTOR_DF:
	case VECTOR_MC:
		return false;
	}
	return true;
}

static void deliver(struct cpu *cpu, u8 vector, enum event_source source, bool has_error, u32 error,
		    bool fault)
{
	struct delivery event = {
		.vector = vector,
		.software = source == EVENT_SOFT || source == EVENT_SOFT_EXCEPTION,
		.has_error = has_error,
		.error = error,
	};

	event.ext = !event.software;
	event.return_rip = source >= EVENT_SOFT ? cpu->next_rip : cpu->rip;
	event.rflags = cpu_rflags(cpu) | (fault ? FLAG_RF : 0);
	if (source == EVENT_NMI)
		cpu->nmi_masked = true;
	if (cpu_long_mode(cpu))
		deliver_long(cpu, &event);
	else if (cpu_protected(cpu))
		deliver_protected(cpu, &event);
	else
		deliver_real(cpu, &event, cpu->idtr.base);
	cpu->interrupt_shadow = cpu->mov_ss_shadow = false;
	cpu->step_canceled = true;
	cpu->halted = false;
}

void event_deliver(struct cpu *cpu, u8 vector, enum event_source source, bool has_error, u32 error)
{
	deliver(cpu, vector, source, has_error, error,
		source == EVENT_EXCEPTION && fault_sets_rf(vector, 0));
}

// The SDM's table "Conditions for Generating a Double Fault": true when a double fault results.
static bool makes_double_fault(u8 first, u8 second)
{
	if (first == VECTOR_PF)
		return second == VECTOR_PF || is_contributory(second);
	return is_contributory(first) && is_contributory(second);
}

// Combines cpu->event with the one whose delivery it interrupted. Returns false for shutdown.
static bool combine(struct cpu *cpu)
{
	struct pending_event *event = &cpu->event;

	if (!cpu->delivering)
		return true;
	if (cpu->delivering_vector == VECTOR_DF &&
	    (is_contributory(event->vector) || event->vector == VECTOR_PF))
		return false;
	if (makes_double_fault(cpu->delivering_vector, event->vector))
		*event = (struct pending_event){ .valid = true, .vector = VECTOR_DF, .has_error = true };
	return true;
}

static enum event_source source_of(const struct pending_event *event)
{
	if (!event->soft)
		return EVENT_EXCEPTION;
	switch (event->vector) {
	case VECTOR_DB:
		return EVENT_PRIVILEGED_SOFT;
	case VECTOR_BP:
	case VECTOR_OF:
		return EVENT_SOFT_EXCEPTION;
	}
	return EVENT_SOFT;
}

void event_unmask_nmi(struct cpu *cpu)
{
	u32 two = 2;

	// However many NMIs came while they were masked, the processor has latched one.
	if (cpu->nmi_masked)
		__atomic_compare_exchange_n(&cpu->nmi_pending, &two, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	cpu->nmi_masked = false;
	if (cpu->nmi_pending)
		cpu_request(cpu, REQ_NMI);
}

bool event_deliver_pending(struct cpu *cpu)
{
	struct pending_event *event = &cpu->event;
	enum event_source source;

	if (!event->valid)
		return true;
	// When delivery was cut short by an exit to user space it begins anew with the same event.
	if (!event->underway) {
		// CR2 follows every page fault, also one which becomes a double fault.
		if (event->vector == VECTOR_PF)
			cpu->cr2 = event->payload;
		// What user space injects has left its mark in DR6 already.
		if (event->vector == VECTOR_DB && !event->soft && !event->injected) {
			event->payload |= cpu->debug_raised;
			cpu->debug_raised = 0;
			if (!event->for_guest)
				debug_intercept(cpu, VECTOR_DB, event->payload);
			debug_deliver(cpu, event->payload);
		}
		if (!combine(cpu)) {
			cpu->delivering = 0;
			event->valid = false;
			return false;
		}
		// What is injected as INT3 or INTO goes on behind that instruction, which has one byte.
		if (event->soft)
			cpu->next_rip = cpu_64bit(cpu) ? cpu->rip + 1 : (u32)(cpu->rip + 1);
		event->underway = true;
		cpu->delivering = event->vector == VECTOR_DF ? 2 : 1;
		cpu->delivering_vector = event->vector;
	}
	source = source_of(event);
	deliver(cpu, event->vector, source, event->has_error, event->error,
		source == EVENT_EXCEPTION && fault_sets_rf(event->vector, event->payload));
	cpu->delivering = 0;
	event->valid = event->underway = false;
	return true;
}

void deliver_real(struct cpu *cpu, const struct delivery *event, u64 table)
{
	bool v86 = cpu_v86(cpu);
	u16 frame[3] = { event->return_rip, cpu->seg[SEG_CS].selector, event->rflags };
	struct segment cs = cpu->seg[SEG_CS];
	struct stack stack;
	u64 flags = cpu->rflags;
	u32 pointer;

	if (!v86 && event->vector * 4 + 3u > cpu->idtr.limit)
		cpu_raise_error(cpu, VECTOR_GP, idt_error(event));
	pointer = v86 ? mem_read_n(cpu, table + event->vector * 4, 4, ACCESS_READ | ACCESS_USER)
		      : system_read(cpu, table + event->vector * 4, 4);
	stack_current(cpu, &stack);
	if (!v86)
		stack.error = event->ext;
	if ((pointer & 0xffff) > cs.limit)
		cpu_raise_error(cpu, VECTOR_GP, event->ext);
	stack_push(cpu, &stack, frame, sizeof(frame), 2);

	segment_load_real(&cs, SEG_CS, pointer >> 16, v86);
	cpu->seg[SEG_CS] = cs;
	stack_commit(cpu, &stack);
	flags &= ~(u64)(FLAG_TF | FLAG_RF | FLAG_AC);
	// Virtual-8086 mode extensions: below IOPL 3 the virtual flag stands for IF.
	if (v86 && (cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
		flags &= ~(u64)FLAG_VIF;
	else
		flags &= ~(u64)FLAG_IF;
	cpu->rflags = flags;
	cpu->rip = pointer & 0xffff;
	cpu_mode_changed(cpu);
}
