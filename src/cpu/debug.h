// SPDX-License-Identifier: MIT
// Debug registers: what DR7 asks for and what #DB leaves in DR6.
#ifndef CETKVM_CPU_DEBUG_H
#define CETKVM_CPU_DEBUG_H

#include "cpu/cpu.h"

#define DR6_B 0xfu		// a breakpoint's condition was met
#define DR6_BD (1u << 13)	// debug register access under DR7.GD
#define DR6_BS (1u << 14)	// single step
#define DR6_BT (1u << 15)	// task switch to a TSS with T set
#define DR6_WRITABLE (DR6_B | DR6_BD | DR6_BS | DR6_BT)
#define DR6_FIXED 0xffff0ff0u	// bits which read as 1
#define DR7_ENABLES 0xffu
#define DR7_LOCAL 0x55u
#define DR7_LE (1u << 8)
#define DR7_GD (1u << 13)
#define DR7_WRITABLE 0xffff23ffu
#define DR7_FIXED 0x400u

enum debug_access { DEBUG_EXECUTE = 0, DEBUG_WRITE = 1, DEBUG_IO = 2, DEBUG_READ = 3 };

// Does DR7 (the guest's or the debugger's) enable breakpoints of that kind? Cheap: for deciding
// whether accesses need a look at all.
bool debug_wants_code(const struct cpu *cpu);
bool debug_wants_data(const struct cpu *cpu);

// Is there anything to look for: enabled breakpoints, or a debugger's single step?
bool debug_enabled(const struct cpu *cpu);
// While it is: must the instruction at this linear address run alone? Code breakpoints ask for that only
// where they are, so that the rest of the guest keeps its speed.
bool debug_wants_each(const struct cpu *cpu, u64 linear);
// The breakpoints in force, to tell when they change.
struct debug_setting {
	u64 dr7, address[4];
};
void debug_get(const struct cpu *cpu, struct debug_setting *setting);
bool debug_same(const struct cpu *cpu, const struct debug_setting *setting);

// DR6 bits B3:0 of the enabled breakpoints that the access meets; 0: none. Code: the linear address
// of the first byte of an instruction (and EFLAGS.RF is honoured). `access`: DEBUG_READ, DEBUG_WRITE
// for data, DEBUG_IO for ports (CR4.DE).
u32 debug_code_match(const struct cpu *cpu, u64 linear);
u32 debug_data_match(const struct cpu *cpu, u64 address, unsigned size, enum debug_access access);

// An access of an instruction that is done in C.
static inline void debug_note_data(struct cpu *cpu, u64 linear, unsigned size, unsigned access)
{
	if (__builtin_expect(cpu->watch_data, 0) && !(access & (ACCESS_IMPLICIT | ACCESS_SS | ACCESS_FETCH)))
		cpu->watch_bits |= debug_data_match(cpu, linear, size, access & ACCESS_WRITE ? DEBUG_WRITE : DEBUG_READ);
}

static inline void debug_note_port(struct cpu *cpu, u16 port, unsigned size)
{
	if (__builtin_expect(cpu->watch_data, 0))
		cpu->watch_bits |= debug_data_match(cpu, port, size, DEBUG_IO);
}

// Leaves a trap-class #DB to be delivered behind the current instruction, together with what is
// already pending of it.
void debug_trap(struct cpu *cpu, u32 dr6_bits);
// Raises a fault-class #DB (code breakpoint, DR7.GD) at the current instruction.
void debug_raise(struct cpu *cpu, u32 dr6_bits) __attribute__((noreturn));
// Do accesses to debug registers raise #DB (DR7.GD, the guest's or the debugger's)?
bool debug_general_detect(const struct cpu *cpu);
// Raises a code breakpoint's fault at the current instruction when there is one.
void debug_check_code(struct cpu *cpu);
// #DB is being delivered: DR6 and DR7.
void debug_deliver(struct cpu *cpu, u32 dr6_bits);
// Does the host's debugger (KVM_SET_GUEST_DEBUG) take this #DB or #BP instead of the guest? If so,
// fills cpu->debug_exit and leaves with CPU_EXIT_DEBUG.
void debug_intercept(struct cpu *cpu, u8 vector, u32 dr6_bits);

#endif
