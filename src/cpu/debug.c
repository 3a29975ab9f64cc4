// SPDX-License-Identifier: MIT
// Debug registers: matching breakpoints, #DB traps, DR6 and DR7 upkeep, and the host's debugger.
// A trap-class #DB waits in cpu->event with its DR6 bits as payload and is delivered at the
// instruction boundary; DR6 changes only then.
// SDM: "Debug Registers", "Debug Exceptions", "Instruction-Breakpoint Exception Condition".
#include "cpu/debug.h"

#include "cpu/far.h"
#include "cpu/msr.h"
#include "cpu/transfer.h"

#include <linux/kvm.h>

// The DR7 and addresses in force: the debugger's while it uses hardware breakpoints.
static u64 active_dr7(const struct cpu *cpu)
{
	return cpu->guest_debug & KVM_GUESTDBG_USE_HW_BP ? cpu->guest_debug_dr7 : cpu->dr7;
}

static u64 active_address(const struct cpu *cpu, unsigned n)
{
	return cpu->guest_debug & KVM_GUESTDBG_USE_HW_BP ? cpu->guest_debug_dr[n] : cpu->dr[n];
}

static bool enabled(u64 dr7, unsigned n) { return dr7 >> 2 * n & 3; }
static enum debug_access condition(u64 dr7, unsigned n) { return dr7 >> (16 + 4 * n) & 3; }

static unsigned length(u64 dr7, unsigned n)
{
	static const u8 bytes[] = { 1, 2, 8, 4 };

	return bytes[dr7 >> (18 + 4 * n) & 3];
}

bool debug_wants_code(const struct cpu *cpu)
{
	u64 dr7 = active_dr7(cpu);

	if (!(dr7 & DR7_ENABLES))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if (enabled(dr7, n) && condition(dr7, n) == DEBUG_EXECUTE)
			return true;
	return false;
}

bool debug_wants_data(const struct cpu *cpu)
{
	u64 dr7 = active_dr7(cpu);

	if (!(dr7 & DR7_ENABLES))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if (enabled(dr7, n) && condition(dr7, n) != DEBUG_EXECUTE)
			return true;
	return false;
}

bool debug_enabled(const struct cpu *cpu)
{
	return (active_dr7(cpu) & DR7_ENABLES) || (cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
}

bool debug_same(const struct cpu *cpu, const struct debug_setting *setting)
{
	if (setting->dr7 != active_dr7(cpu))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if (setting->address[n] != active_address(cpu, n))
			return false;
	return true;
}

void debug_get(const struct cpu *cpu, struct debug_setting *setting)
{
	setting->dr7 = active_dr7(cpu);
	for (unsigned n = 0; n < 4; n++)
		setting->address[n] = active_address(cpu, n);
}

bool debug_wants_each(const struct cpu *cpu, u64 linear)
{
	u64 dr7 = active_dr7(cpu), page = linear >> 12;

	if ((cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP) || (cpu->rflags & FLAG_RF) || debug_wants_data(cpu))
		return true;
	for (unsigned n = 0; n < 4; n++) {
		u64 wanted = active_address(cpu, n) >> 12;

		// A block may go on in the next page.
		if (enabled(dr7, n) && (wanted == page || wanted == page + 1))
			return true;
	}
	return false;
}

u32 debug_code_match(const struct cpu *cpu, u64 linear)
{
	u64 dr7 = active_dr7(cpu);
	u32 bits = 0;

	if (!(dr7 & DR7_ENABLES) || cpu->rflags & FLAG_RF)
		return 0;
	for (unsigned n = 0; n < 4; n++)
		if (enabled(dr7, n) && condition(dr7, n) == DEBUG_EXECUTE &&
		    active_address(cpu, n) == linear)
			bits |= 1u << n;
	return bits;
}

u32 debug_data_match(const struct cpu *cpu, u64 address, unsigned size, enum debug_access access)
{
	u64 dr7 = active_dr7(cpu);
	u32 bits = 0;

	if (!(dr7 & DR7_ENABLES))
		return 0;
	for (unsigned n = 0; n < 4; n++) {
		enum debug_access wanted = condition(dr7, n);
		unsigned bytes = length(dr7, n);
		u64 start = active_address(cpu, n) & ~(u64)(bytes - 1);

		if (!enabled(dr7, n))
			continue;
		if (access == DEBUG_IO ? wanted != DEBUG_IO || !(cpu->cr4 & CR4_DE)
				       : !(wanted == DEBUG_READ ||
					   (wanted == DEBUG_WRITE && access == DEBUG_WRITE)))
			continue;
		// Ranges overlap (neither wraps: a range of a breakpoint is aligned).
		if (address <= start + bytes - 1 && start <= address + size - 1)
			bits |= 1u << n;
	}
	return bits;
}

bool debug_general_detect(const struct cpu *cpu)
{
	return active_dr7(cpu) & DR7_GD;
}

void debug_trap(struct cpu *cpu, u32 dr6_bits)
{
	if (cpu->event.valid && cpu->event.vector == VECTOR_DB) {
		cpu->event.payload |= dr6_bits;
	} else if (!cpu->event.valid) {
		cpu->event = (struct pending_event){ .valid = true, .vector = VECTOR_DB, .payload = dr6_bits };
	}
	cpu_request(cpu, REQ_EVENT);
}

void debug_check_code(struct cpu *cpu)
{
	u64 linear = cpu_64bit(cpu) ? cpu->rip : (u32)(cpu->seg[SEG_CS].base + cpu->rip);
	u32 bits = debug_code_match(cpu, linear);

	// Behind MOV SS and POP SS, Intel's processors inhibit these as well.
	if (bits && !(cpu->mov_ss_shadow && !vendor_is_amd(cpu)))
		debug_raise(cpu, bits);
}

void debug_raise(struct cpu *cpu, u32 dr6_bits)
{
	cpu->debug_raised = dr6_bits;
	cpu_raise(cpu, VECTOR_DB);
}

void debug_deliver(struct cpu *cpu, u32 dr6_bits)
{
	cpu->dr6 = (cpu->dr6 & ~(u64)DR6_B) | DR6_FIXED | dr6_bits;
	cpu->dr7 &= ~(u64)DR7_GD;
	cpu->debugctl &= ~(u64)(DEBUGCTL_LBR | DEBUGCTL_BTF);
}

void debug_intercept(struct cpu *cpu, u8 vector, u32 dr6_bits)
{
	u32 wanted = vector == VECTOR_BP ? KVM_GUESTDBG_USE_SW_BP
					 : KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP;

	if (!(cpu->guest_debug & KVM_GUESTDBG_ENABLE) || !(cpu->guest_debug & wanted))
		return;
	// The guest does not get it.
	cpu->event.valid = false;
	cpu->delivering = 0;
	cpu->debug_exit.exception = vector;
	cpu->debug_exit.pc = cpu->seg[SEG_CS].base + cpu->rip;
	cpu->debug_exit.dr6 = vector == VECTOR_DB ? dr6_bits | DR6_FIXED : 0;
	cpu->debug_exit.dr7 = active_dr7(cpu);
	cpu_abort(cpu, CPU_EXIT_DEBUG);
}
