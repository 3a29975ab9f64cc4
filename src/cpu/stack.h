// SPDX-License-Identifier: MIT
// A stack being worked on by a transfer: a local copy of SS and the stack pointer, so that nothing of
// struct cpu changes before everything has succeeded.
#ifndef CETKVM_CPU_STACK_H
#define CETKVM_CPU_STACK_H

#include "cpu/mem.h"

struct stack {
	struct segment ss;
	u64 mask;	 // of the stack pointer: 16, 32 or 64 bits
	u64 sp;
	u32 error;	 // error code of #SS: 0 or the new stack's selector, with EXT
	unsigned access; // ACCESS_USER, or 0
};

// The current stack at the current privilege level.
void stack_current(struct cpu *cpu, struct stack *stack);
// Another one; `wide`: of 64-bit mode.
void stack_new(struct cpu *cpu, struct stack *stack, const struct segment *ss, u64 sp, unsigned cpl,
	       bool wide, u32 error);
// Pushes `size` bytes, the first of them at the lowest address, as slots of `slot` bytes. Everything
// is checked before anything is written.
void stack_push(struct cpu *cpu, struct stack *stack, const void *data, unsigned size, unsigned slot);
// Reads or writes `size` bytes at `offset` above the stack pointer.
void stack_peek(struct cpu *cpu, const struct stack *stack, unsigned offset, void *data, unsigned size);
void stack_poke(struct cpu *cpu, const struct stack *stack, unsigned offset, const void *data,
		unsigned size);
// Reads a slot and moves the pointer.
u64 stack_pop(struct cpu *cpu, struct stack *stack, unsigned size);
// Puts the stack pointer into RSP, of the width of the stack.
void stack_commit(struct cpu *cpu, const struct stack *stack);

#endif
