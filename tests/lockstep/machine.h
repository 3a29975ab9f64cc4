// SPDX-License-Identifier: MIT
// The small machine that lockstep and the litmus tests run: flat memory, page tables, descriptor tables.
#ifndef LOCKSTEP_MACHINE_H
#define LOCKSTEP_MACHINE_H

#include "lockstep.h"

#include "cpu/cpu.h"

// Guest-physical layout
#define MACHINE_RAM (2u << 20)
#define MACHINE_PML4 0x1000
#define MACHINE_PDPT 0x2000
#define MACHINE_PD 0x3000
#define MACHINE_PT_DATA 0x4000
#define MACHINE_PT_CODE 0x5000
#define MACHINE_PDPT_HIGH 0x6000
#define MACHINE_PD_HIGH 0x7000
#define MACHINE_GDT 0x8000
#define MACHINE_IDT 0x9000
#define MACHINE_TSS 0xa000   // 256 bytes for each vCPU
#define MACHINE_LDT 0xb000
#define MACHINE_STACK 0x10000 // 4 KiB for each vCPU
#define MACHINE_STUBS 0x1c000
#define MACHINE_DATA 0x20000
#define MACHINE_CODE 0x30000
#define MACHINE_SHARED 0x80000 // with writable code: an area that vCPUs share
#define MACHINE_SHARED_SIZE 0x80000
#define MACHINE_SHARED_BASE (DATA_BASE + 0x100000)
#define MACHINE_HIGH 0xffff800000000000ull // all of the memory, for the supervisor
#define MACHINE_CPUS 4

enum { MACHINE_CODE_READONLY, MACHINE_CODE_WRITABLE };

struct machine {
	u8 *ram;
	struct vm_code *code;
	struct cpu *cpu[MACHINE_CPUS];
	unsigned cpus;
};

void machine_create(struct machine *machine, unsigned cpus, unsigned code_writable);
void machine_user_mode(struct cpu *cpu, u64 rip, u64 rflags, bool mode32);
// Behind machine_user_mode(): the segments of a program that has its own.
void machine_load_segments(struct machine *machine, struct cpu *cpu, const struct program *program);
void machine_take_exception(struct machine *machine, struct cpu *cpu, struct state *end);

#endif
