// SPDX-License-Identifier: MIT
// Instructions on the descriptor-table registers, LDTR and TR; their rows are in system_insn.c.
#ifndef CETKVM_CPU_SYSTEM_TABLES_H
#define CETKVM_CPU_SYSTEM_TABLES_H

#include "cpu/insn.h"

insn_handler tables_lgdt, tables_sgdt, tables_lldt, tables_ltr, tables_sldt;

// #GP(0) for the instructions that CR4.UMIP keeps from user mode.
static inline void check_umip(struct cpu *cpu)
{
	if ((cpu->cr4 & CR4_UMIP) && cpu->cpl)
		cpu_gp0(cpu);
}

#endif
