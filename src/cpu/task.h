// SPDX-License-Identifier: MIT
// Task switches.
#ifndef CETKVM_CPU_TASK_H
#define CETKVM_CPU_TASK_H

#include "cpu/cpu.h"

enum task_cause { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };

// Switches to the task whose TSS descriptor `raw` the caller has read from the GDT for `selector` and
// checked for type and privilege. The old task continues at `return_rip`. `ext`: EXT bit for error
// codes of exceptions. An event's error code is pushed onto the new task's stack. On return
// cpu->rip is the new task's. Exceptions after the new state is loaded belong to the new task.
void task_switch(struct cpu *cpu, u16 selector, u64 raw, enum task_cause cause, u64 return_rip, u32 ext,
		 bool has_error, u32 error);
// The same through a task gate (CALL, JMP, events): reads and checks the TSS descriptor it names.
void task_switch_gate(struct cpu *cpu, u64 gate, enum task_cause cause, u64 return_rip, u32 ext,
		      bool has_error, u32 error);

#endif
