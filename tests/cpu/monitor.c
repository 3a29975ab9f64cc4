// SPDX-License-Identifier: MIT
// MONITOR, MWAIT, MONITORX, MWAITX: when they are there, what they check.
#include "fixture.h"

#include "cpu/handlers.h"

#define PML4 0x1000
#define BASE 0x400000ull
enum { P = 1, W = 2, U = 4 };

// CPUID with or without the bits.
static void setup(unsigned cpl, bool monitor, bool monitorx)
{
	static struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	unsigned count;

	fixture_reset();
	count = cpuid_supported(entries, CPU_MAX_CPUID);
	for (unsigned i = 0; i < count; i++) {
		if (entries[i].function == 1)
			entries[i].ecx |= (u32)monitor << 3;
		if (entries[i].function == 0x80000001)
			entries[i].ecx |= (u32)monitorx << 29;
		if (entries[i].function == 5)
			entries[i].ecx |= monitor ? 3 : 0;
	}
	cpuid_set(cpu, entries, count);
	*qword(PML4) = 0x2000 | P | W | U;
	*qword(0x2000) = 0x3000 | P | W | U;
	*qword(0x3000 + 8 * 2) = 0x4000 | P | W | U;
	*qword(0x4000) = 0x100000 | P | W | U;
	*qword(0x4008) = 0x101000 | P | W; // supervisor
	fixture_long_mode(PML4, cpl);
	cpu->gpr[RAX] = BASE;
}

static int run(unsigned mnemonic)
{
	struct insn insn = { .mnemonic = mnemonic, .length = 3, .operand_size = 8, .address_size = 8, .mem_seg = SEG_DS };
	bool wait = mnemonic == ZYDIS_MNEMONIC_MWAIT || mnemonic == ZYDIS_MNEMONIC_MWAITX;

	TRY((wait ? mwait_handler : monitor_handler)(cpu, &insn));
	return outcome.vector;
}
#define RUN(name) (u64)run(ZYDIS_MNEMONIC_##name)
#define NONE (u64)NO_EXCEPTION

int main(void)
{
	setup(0, false, false);
	ok(!guest_has(cpu, FEATURE_MONITOR), "not offered");
	is(RUN(MONITOR), NONE, "without the bit MONITOR does nothing");
	cpu->gpr[RAX] = 1ull << 62;
	is(RUN(MONITOR), NONE, "and checks nothing");
	is(RUN(MWAIT), NONE, "nor does MWAIT");
	is(RUN(MONITORX), VECTOR_UD, "MONITORX is #UD");
	is(RUN(MWAITX), VECTOR_UD, "MWAITX is #UD");
	cpu->monitor_faults = true;
	is(RUN(MONITOR), VECTOR_UD, "with the quirk off MONITOR is #UD");
	is(RUN(MWAIT), VECTOR_UD, "MWAIT too");
	cpu->monitor_faults = false;
	cpu->cpl = 3;
	is(RUN(MONITOR), VECTOR_UD, "MONITOR at CPL 3");
	is(RUN(MWAIT), VECTOR_UD, "MWAIT at CPL 3");

	setup(0, true, false);
	cpu->monitor_faults = true;
	is(RUN(MONITOR), NONE, "MONITOR");
	cpu->gpr[RCX] = 1;
	is(RUN(MONITOR), VECTOR_GP, "ECX is not 0");
	cpu->gpr[RCX] = 1ull << 32;
	is(RUN(MONITOR), NONE, "RCX above 31:0 does not matter");
	cpu->gpr[RAX] = 1ull << 62;
	is(RUN(MONITOR), VECTOR_GP, "not canonical");
	cpu->gpr[RAX] = BASE + 0x5000;
	is(RUN(MONITOR), VECTOR_PF, "not present");
	is(outcome.error, 0, "a load");
	cpu->gpr[RCX] = 1;
	is(RUN(MWAIT), NONE, "MWAIT, masked interrupts break");
	cpu->gpr[RCX] = 2;
	is(RUN(MWAIT), VECTOR_GP, "MWAIT, unknown extension");
	setup(0, true, false);
	for (unsigned i = 0; i < cpu->cpuid_count; i++)
		if (cpu->cpuid[i].function == 5)
			cpu->features[WORD_5_ECX] = 0;
	cpu->gpr[RCX] = 1;
	is(RUN(MWAIT), VECTOR_GP, "MWAIT, extension not enumerated");

	setup(3, false, true);
	is(RUN(MONITORX), NONE, "MONITORX at CPL 3");
	is(RUN(MWAITX), NONE, "MWAITX at CPL 3");
	cpu->gpr[RAX] = BASE + 0x1000;
	is(RUN(MONITORX), VECTOR_PF, "MONITORX of a supervisor page");
	cpu->gpr[RCX] = 2;
	is(RUN(MWAITX), NONE, "its timer");
	cpu->gpr[RCX] = 4;
	is(RUN(MWAITX), VECTOR_GP, "an unknown extension");

	// The CPUID bit follows the MSR once the second quirk is off.
	setup(0, false, false);
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, MISC_ENABLE_MWAIT | 0x1800, BY_HOST), 0, "MISC_ENABLE.MWAIT");
	ok(!guest_has(cpu, FEATURE_MONITOR), "means nothing by itself");
	cpu_wrmsr(cpu, MSR_MISC_ENABLE, 0x1800, BY_HOST);
	cpu->monitor_by_msr = true;
	cpu_wrmsr(cpu, MSR_MISC_ENABLE, MISC_ENABLE_MWAIT | 0x1800, BY_HOST);
	u32 leaf[4];
	cpuid_query(cpu, 1, 0, leaf);
	ok(guest_has(cpu, FEATURE_MONITOR) && (leaf[2] & 8), "with the quirk off it sets the CPUID bit");
	cpu_wrmsr(cpu, MSR_MISC_ENABLE, 0x1800, BY_HOST);
	cpuid_query(cpu, 1, 0, leaf);
	ok(!guest_has(cpu, FEATURE_MONITOR) && !(leaf[2] & 8), "and takes it away");
	fixture_without(FEATURE_SSE3);
	is(cpu_wrmsr(cpu, MSR_MISC_ENABLE, MISC_ENABLE_MWAIT | 0x1800, BY_HOST), -EINVAL, "not without SSE3");
	cpu->monitor_by_msr = cpu->monitor_faults = false;
	return done_testing();
}
