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

// The address alone.
static inline u64 segment_linear_unchecked(const struct cpu *cpu, enum seg seg, u64 offset)
{
	if (!cpu_64bit(cpu))
		return (u32)(cpu->seg[seg].base + offset);
	return offset + (seg == SEG_FS || seg == SEG_GS ? cpu->seg[seg].base : 0);
}

// Accesses by the instruction itself, at the current privilege level.
static inline unsigned reading(const struct cpu *cpu) { return ACCESS_READ | cpu_access_of_cpl(cpu); }
static inline unsigned writing(const struct cpu *cpu) { return ACCESS_WRITE | cpu_access_of_cpl(cpu); }

// Must accesses be aligned (#AC)? That is for user code with CR0.AM and EFLAGS.AC.
static inline bool alignment_checked(const struct cpu *cpu)
{
	return cpu->cpl == 3 && (cpu->rflags & FLAG_AC) && (cpu->cr0 & CR0_AM);
}

static inline void check_alignment(struct cpu *cpu, u64 linear, unsigned size)
{
	if (__builtin_expect(alignment_checked(cpu), 0) && (linear & (size - 1)))
		cpu_raise_error(cpu, VECTOR_AC, 0);
}

// Raises #GP(0) unless the memory operand is aligned to `size`. Comes before the segment's limit, but
// behind the check for a canonical address.
void insn_check_aligned(struct cpu *cpu, const struct insn *insn, unsigned size);

// Offset of the memory operand in its segment, truncated to the address size.
u64 insn_offset(struct cpu *cpu, const struct insn *insn);

static inline u64 address_truncate(u64 offset, unsigned address_size)
{
	return address_size == 8 ? offset : address_size == 4 ? (u32)offset : (u16)offset;
}

#endif
