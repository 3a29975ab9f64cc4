// SPDX-License-Identifier: MIT
// The line `--trace cp` prints for each #CP.
#ifndef CETKVM_CPU_TRACE_CP_H
#define CETKVM_CPU_TRACE_CP_H

#include "cpu/cpu.h"

// Names an address of the guest into `buf` (" symbol+0x12" with a leading blank), or leaves it empty.
// The default looks into the files given to symbols_load().
extern void (*trace_cp_symbolize)(struct cpu *cpu, u64 address, char *buf, size_t n);

#endif
