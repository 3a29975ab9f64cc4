// SPDX-License-Identifier: MIT
// Addresses and operands for handlers, below what insn.h offers: segmentation and the stack.
#ifndef CETKVM_CPU_OPERAND_H
#define CETKVM_CPU_OPERAND_H

#include "cpu/insn.h"

// Linear address of `size` bytes at `offset` in a segment, after its checks: raises #GP(0), or
// #SS(0) for SS. `offset` is already truncated to the address size.
u64 segment_linear(struct cpu *cpu, enum seg seg, u64 offset, unsigned size, bool write);
// The same, answering false instead of raising.
bool segment_allows(struct cpu *cpu, enum seg seg, u64 offset, u64 size, bool write);

// Offset of the memory operand in its segment, truncated to the address size.
u64 insn_offset(struct cpu *cpu, const struct insn *insn);

static inline u64 address_truncate(u64 offset, unsigned address_size)
{
	return address_size == 8 ? offset : address_size == 4 ? (u32)offset : (u16)offset;
}

// Bytes of the stack pointer: 8, 4 or 2 by mode and SS.B.
unsigned stack_pointer_size(const struct cpu *cpu);
// Address `displacement` from the stack pointer `rsp`, wrapped to its size.
u64 stack_offset(const struct cpu *cpu, u64 rsp, s64 displacement);
// Sets RSP/ESP/SP and leaves the bits above its size alone.
void stack_set(struct cpu *cpu, u64 rsp);
// One push or pop of `size` bytes; the stack pointer changes after the access succeeded.
void stack_push(struct cpu *cpu, u64 value, unsigned size);
u64 stack_pop(struct cpu *cpu, unsigned size);
// What a pop would read at `displacement` from the stack pointer; changes nothing.
u64 stack_peek(struct cpu *cpu, s64 displacement, unsigned size);

#endif
