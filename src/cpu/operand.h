// SPDX-License-Identifier: MIT
// Addresses and operands for handlers, below what insn.h offers: segmentation.
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

#endif
