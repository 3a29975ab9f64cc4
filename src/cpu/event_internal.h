// SPDX-License-Identifier: MIT
// The parts of event delivery, by mode.
#ifndef CETKVM_CPU_EVENT_INTERNAL_H
#define CETKVM_CPU_EVENT_INTERNAL_H

#include "cpu/transfer.h"

struct delivery {
	u8 vector;
	bool software;	// INT n, INT3, INTO: the gate's DPL counts
	bool has_error;
	u32 error;
	u32 ext;	// EXT bit of error codes raised by delivery
	u64 return_rip;
	u64 rflags;	// as pushed
};

void deliver_long(struct cpu *cpu, const struct delivery *event);
void deliver_protected(struct cpu *cpu, const struct delivery *event);
// Through the table of far pointers at `table`: real mode, and v86 with redirection.
void deliver_real(struct cpu *cpu, const struct delivery *event, u64 table);

// Error code for gate `vector` of the IDT.
static inline u32 idt_error(const struct delivery *event)
{
	return event->vector * 8 + 2 + event->ext;
}

#endif
