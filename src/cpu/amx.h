// SPDX-License-Identifier: MIT
// Advanced Matrix Extensions: what other parts of the processor need of the tiles.
#ifndef CETKVM_CPU_AMX_H
#define CETKVM_CPU_AMX_H

#include "cpu/cpu.h"

// XTILECFG and XTILEDATA for the XSAVE instructions and images in memory.
bool amx_configured(const struct cpu *cpu);		  // TILES_CONFIGURED: XINUSE[17]
void amx_config_read(const struct cpu *cpu, u8 config[64]);
void amx_config_write(struct cpu *cpu, const u8 config[64]); // one that LDTILECFG refuses: initial state
void amx_data_write(struct cpu *cpu, const void *data);	  // 8 KiB; NULL: initial state
// RESET.
void amx_reset(struct cpu *cpu);

#endif
