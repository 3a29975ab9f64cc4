// SPDX-License-Identifier: MIT
// The guest's parts: machine.c makes the processor ready, check.c leaves patterns and looks for them.
#ifndef CETKVM_FLEET_GUEST_H
#define CETKVM_FLEET_GUEST_H

#include "abi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define CR4_OSFXSR     (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_OSXSAVE    (1u << 18)
#define CR4_PKE        (1u << 22)
#define CR4_CET        (1u << 23)
#define CET_SHSTK_EN   1
#define CET_WRSS_EN    2
#define CET_ENDBR_EN   4
#define CET_NO_TRACK   16

#define MSR_U_CET       0x6a0
#define MSR_S_CET       0x6a2
#define MSR_PL0_SSP     0x6a4
#define MSR_PL1_SSP     0x6a5
#define MSR_PL2_SSP     0x6a6
#define MSR_PL3_SSP     0x6a7
#define MSR_INT_SSP_TAB 0x6a8
#define MSR_XSS         0xda0
#define MSR_EFER        0xc0000080
#define MSR_FS_BASE     0xc0000100
#define MSR_GS_BASE     0xc0000101

#define REPORT ((struct fleet_report *)FLEET_REPORT)

// What the guest's CPUID gives it.
extern struct guest_features {
	bool xsave, xsaves, pku, shstk, ibt, rdtscp, fsgsbase;
	u64 xcr0, xss;
	u32 component_offset[32], component_size[32]; // in the standard format
} has;

extern const u64 ssp_table_address;

extern u32 user_returned; // calls of the program in ring 3 that have returned

void machine_init(void);
void check_prepare(u32 step);
// What is left. cr4: as it was on arrival. CET is off while this runs.
void check_all(u64 cr4);
// After the user's calls have returned, or have not.
void check_user(void);
void say(u32 what);
void *memset(void *to, int value, size_t size);

static inline u64 rdmsr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 index, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

extern volatile u64 recover_rip;

// False if there is no such MSR (any more). With CET off only.
static inline bool rdmsr_try(u32 index, u64 *value)
{
	u32 low = 0, high = 0;
	u64 good = 0;

	__asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, recover_rip(%%rip)\n rdmsr\n movl $1, %k[good]\n"
			 "movq $0, recover_rip(%%rip)\n 1:"
			 : "=&a"(low), "=&d"(high), [good] "+&r"(good)
			 : "c"(index)
			 : "memory");
	*value = good ? (u64)high << 32 | low : 0;
	return good;
}

#define READ_CR(n) ({ u64 v; __asm__ volatile("movq %%cr" #n ", %0" : "=r"(v)); v; })
#define WRITE_CR(n, v) __asm__ volatile("movq %0, %%cr" #n : : "r"((u64)(v)) : "memory")
#define READ_DR(n) ({ u64 v; __asm__ volatile("movq %%db" #n ", %0" : "=r"(v)); v; })
#define WRITE_DR(n, v) __asm__ volatile("movq %0, %%db" #n : : "r"((u64)(v)) : "memory")

static inline void cpuid(u32 leaf, u32 index, u32 out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(index));
}

#endif
