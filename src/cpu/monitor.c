// SPDX-License-Identifier: MIT
// MONITOR, MWAIT and AMD's MONITORX, MWAITX.
// SDM: MONITOR and MWAIT in Vol. 2; APM Vol. 3 for the other two; api.rst: "7.31
// KVM_CAP_DISABLE_QUIRKS2" by its title for the two quirks.
//
// MWAIT goes on at once: a processor may leave the optimized state at any time and for any reason.
// So a guest that idles by MWAIT is awake all the time; none is told that there is MWAIT unless its
// VMM says so. Without the CPUID bit the instructions still do nothing unless
// cpu->monitor_faults (KVM never lets them raise #UD while its quirk is on).
#include "cpu/features.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"

static bool extended(const struct insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_MONITORX || insn->mnemonic == ZYDIS_MNEMONIC_MWAITX;
}

// True: it is an instruction of this guest's processor, with all its checks. False: it does nothing.
static bool is_there(struct cpu *cpu, const struct insn *insn)
{
	if (insn->lock || (extended(insn) && !guest_has(cpu, FEATURE_MONITORX)))
		cpu_ud(cpu);
	// MONITORX and MWAITX work at every privilege level.
	if (!extended(insn) && cpu->cpl)
		cpu_ud(cpu);
	if (extended(insn) || guest_has(cpu, FEATURE_MONITOR))
		return true;
	if (cpu->monitor_faults)
		cpu_ud(cpu);
	return false;
}

void monitor_handler(struct cpu *cpu, const struct insn *insn)
{
	u64 offset = address_truncate(cpu->gpr[RAX], insn->address_size);

	if (!is_there(cpu, insn))
		return;
	if ((u32)cpu->gpr[RCX])
		cpu_gp0(cpu); // no extensions
	// Checked as a load of one byte.
	mem_host(cpu, segment_linear(cpu, insn->mem_seg, offset, 1, false), 1, ACCESS_READ | cpu_access_of_cpl(cpu));
}

// The extensions a guest may ask for: waking by masked interrupts, and MWAITX's timer.
void mwait_handler(struct cpu *cpu, const struct insn *insn)
{
	u32 allowed = extended(insn) ? 3 : guest_has(cpu, FEATURE_MWAIT_BREAK) ? 1 : 0;

	if (!is_there(cpu, insn))
		return;
	if ((u32)cpu->gpr[RCX] & ~allowed)
		cpu_gp0(cpu);
}
