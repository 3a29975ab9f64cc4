// SPDX-License-Identifier: MIT
// Pieces of far transfers which others share.
#ifndef CETKVM_CPU_FAR_H
#define CETKVM_CPU_FAR_H

#include "cpu/insn.h"
#include "cpu/stack.h"

// SS:ESP for privilege level `cpl` from the 16- or 32-bit TSS, checked (#TS, #SS with EXT).
void far_inner_stack(struct cpu *cpu, unsigned cpl, u32 ext, struct stack *stack);

// CS of a far return: RETF and IRET. Checks the selector popped; returns the new CPL (its RPL) and the
// segment, with the accessed bit set in memory.
unsigned far_return_code(struct cpu *cpu, u16 selector, struct segment *cs);
// SS of a far return to CPL `cpl`; `wide`: to 64-bit code.
void far_return_stack(struct cpu *cpu, u16 selector, unsigned cpl, bool wide, struct segment *ss);
// #GP(0) unless `rip` may be run in that code segment.
void far_check_rip(struct cpu *cpu, const struct segment *cs, u64 rip);

// Is this (checked) code segment 64-bit code?
bool far_is_64bit(const struct cpu *cpu, const struct segment *cs);

// Does the guest's CPUID name AMD or Hygon? Where the vendors differ the guest gets what it expects.
bool vendor_is_amd(const struct cpu *cpu);

// Handlers (rows_transfer is in transfer.c).
insn_handler far_call, far_jmp, far_ret, iret, syscall_syscall, syscall_sysret, syscall_sysenter,
	syscall_sysexit;

#endif
