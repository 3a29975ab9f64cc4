// SPDX-License-Identifier: MIT
// The local APIC: registers, priorities, messages, timer.
#include "fixture.h"

static void test_registers(void)
{
	static const struct {
		const char *name;
		unsigned offset;
		uint32_t write, read;
	} rows[] = {
		{ "version is read-only", APIC_LVR, 0, 0x50014 },
		{ "TPR has 8 bits", APIC_TPR, 0xffffff35, 0x35 },
		{ "ID has its upper byte", APIC_ID, 0x05ffffff, 0x05000000 },
		{ "LDR has its upper byte", APIC_LDR, 0x12345678, 0x12000000 },
		{ "DFR has its upper 4 bits", APIC_DFR, 0x00000000, 0x0fffffff },
		{ "SVR", APIC_SVR, 0xffffffff, 0x1ff },
		{ "LVT timer keeps mask, mode, vector", APIC_LVT_TIMER, 0xffffffff, 0x700ff & ~0u },
		{ "LVT LINT0: no status bits", APIC_LVT_LINT0, 0xffffffff, 0x1a7ff },
		{ "LVT error", APIC_LVT_ERROR, 0xffffffff, 0x100ff },
		{ "divide configuration", APIC_TDCR, 0xffffffff, 0xb },
		{ "ICR high", APIC_ICR2, 0xffffffff, 0xff000000 },
		{ "PPR is read-only and follows TPR", APIC_PPR, 0xff, 0 },
		{ "a hole reads 0", 0x40, 0xff, 0 },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		setup(true);
		reg_write(1, rows[i].offset, rows[i].write);
		is(reg_read(1, rows[i].offset), rows[i].read, "%s", rows[i].name);
	}
	setup(true);
	reg_write(1, APIC_SVR, 0xff);
	ok(reg_read(1, APIC_LVT_ERROR) & 1 << 16, "software disable masks the LVT");
	reg_write(1, APIC_LVT_ERROR, 0x33);
	is(reg_read(1, APIC_LVT_ERROR), 0x10033, "and keeps it masked");
	is(reg_read(0, APIC_LVT_LINT0) & 0x700, 0x700, "the boot processor starts in virtual wire mode");
	uint8_t bytes[4];
	lapic_read(cpus[2], APIC_LVR + 2, 1, bytes);
	is(bytes[0], 5, "a byte of a register can be read");
	lapic_read(cpus[2], APIC_LVR + 3, 4, bytes);
	is(bytes[0], 0, "but not across its end");
}

static void send(unsigned from, uint32_t low, uint32_t destination)
{
	reg_write(from, APIC_ICR2, destination << 24);
	reg_write(from, APIC_ICR, low);
}

static void test_priorities(void)
{
	setup(true);
	is(lapic_interrupt(cpus[0], true), -1, "nothing pending");
	send(0, 0x40000 | 0x51, 0); // self
	send(0, 0x40000 | 0x62, 0);
	is(lapic_interrupt(cpus[0], false), 0x62, "the highest vector is offered");
	is(lapic_interrupt(cpus[0], true), 0x62, "and acknowledged");
	is(reg_read(0, APIC_PPR), 0x60, "PPR is the class in service");
	is(lapic_interrupt(cpus[0], true), -1, "a lower class waits");
	send(0, 0x40000 | 0x6f, 0);
	is(lapic_interrupt(cpus[0], true), -1, "and so does the same class");
	send(0, 0x40000 | 0x71, 0);
	is(lapic_interrupt(cpus[0], true), 0x71, "a higher one nests");
	seen.wakes[0] = 0;
	reg_write(0, APIC_EOI, 0);
	ok(seen.wakes[0] > 0, "EOI asks to look again");
	is(reg_read(0, APIC_PPR), 0x60, "EOI retires the highest in service");
	reg_write(0, APIC_EOI, 0);
	is(lapic_interrupt(cpus[0], true), 0x6f, "the waiting one is next");
	reg_write(0, APIC_EOI, 0);
	reg_write(0, APIC_TPR, 0x50);
	is(lapic_interrupt(cpus[0], true), -1, "TPR holds back its class");
	is(lapic_cr8(cpus[0]), 5, "CR8 is TPR's class");
	lapic_set_cr8(cpus[0], 4);
	is(lapic_interrupt(cpus[0], true), 0x51, "CR8 lowers it");
	send(0, 0x40000 | 0x0f, 0);
	reg_write(0, APIC_ESR, 0);
	is(reg_read(0, APIC_ESR), 0x20, "a vector below 16 is an error of sending");
	is(who_has(0x0f), 0, "and goes nowhere");
}

static void test_destinations(void)
{
	static const struct {
		const char *name;
		uint32_t icr, destination;
		unsigned reached; // a bit per CPU; sender is CPU 1
	} rows[] = {
		{ "physical", 0x41, 2, 4 },
		{ "physical broadcast", 0x41, 0xff, 15 },
		{ "physical, nobody", 0x41, 9, 0 },
		{ "self", 0x40041, 0, 2 },
		{ "all", 0x80041, 0, 15 },
		{ "all but self", 0xc0041, 0, 13 },
		{ "flat logical, two", 0x841, 0x05, 5 },
		{ "flat logical, none", 0x841, 0x80, 0 },
		{ "logical broadcast", 0x841, 0xff, 15 },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		setup(true);
		for (unsigned n = 0; n < CPUS; n++)
			reg_write(n, APIC_LDR, 1u << (24 + n));
		send(1, rows[i].icr, rows[i].destination);
		is(who_has(0x41), rows[i].reached, "xAPIC: %s", rows[i].name);
	}
	// Cluster model: CPUs 0,1 in cluster 1, CPUs 2,3 in cluster 2.
	setup(true);
	for (unsigned n = 0; n < CPUS; n++) {
		reg_write(n, APIC_DFR, 0x0fffffff);
		reg_write(n, APIC_LDR, (n / 2 + 1) << 28 | 1u << (24 + n % 2));
	}
	send(0, 0x841, 0x23);
	is(who_has(0x41), 12, "cluster model: members of one cluster");
	// Lowest priority reaches exactly one, and not always the same.
	setup(true);
	for (unsigned n = 0; n < CPUS; n++)
		reg_write(n, APIC_LDR, 1u << (24 + n));
	send(0, 0x941, 0x0f);
	unsigned first = who_has(0x41);
	ok(__builtin_popcount(first) == 1, "lowest priority reaches one");
	send(0, 0x942, 0x0f);
	ok(__builtin_popcount(who_has(0x42)) == 1 && who_has(0x42) != first, "the next one another");
	reg_write(2, APIC_SVR, 0xff);
	send(0, 0x80055, 0);
	is(who_has(0x55), 11, "a software-disabled APIC takes no fixed interrupts");
	send(0, 0x80400, 0);
	ok(seen.nmis[2] == 1 && seen.nmis[0] == 1, "but NMIs");
}

static void test_x2apic(void)
{
	uint64_t value = 0;

	setup(true);
	ok(!lapic_msr_read(cpus[0], 0x802, &value), "no MSRs in xAPIC mode");
	for (unsigned n = 0; n < CPUS; n++)
		x2apic_on(n);
	ok(lapic_msr_read(cpus[3], 0x802, &value) && value == 3, "x2APIC ID");
	ok(lapic_msr_read(cpus[3], 0x80d, &value) && value == 8, "logical ID follows from it");
	static const struct {
		const char *name;
		uint32_t msr;
		uint64_t value;
		bool good;
	} writes[] = {
		{ "ID", 0x802, 1, false }, { "LDR", 0x80d, 1, false }, { "DFR", 0x80e, 1, false },
		{ "EOI 0", 0x80b, 0, true }, { "EOI 1", 0x80b, 1, false }, { "TPR 8 bits", 0x808, 0xff, true },
		{ "TPR 9 bits", 0x808, 0x100, false }, { "ESR 0", 0x828, 0, true }, { "ESR 1", 0x828, 1, false },
		{ "ICR reserved bit", 0x830, 1ull << 20, false }, { "high half of ICR", 0x831, 0, false },
		{ "self IPI", 0x83f, 0x44, true }, { "self IPI, 9 bits", 0x83f, 0x144, false },
		{ "timer mode", 0x832, 0x40022, true }, { "LVT reserved bit", 0x832, 1u << 20, false },
		{ "initial count", 0x838, 0xffffffff, true }, { "initial count, 33 bits", 0x838, 1ull << 32, false },
		{ "beyond", 0x840, 0, false }, { "IRR", 0x820, 0, false },
	};
	for (unsigned i = 0; i < sizeof(writes) / sizeof(*writes); i++)
		is(lapic_msr_write(cpus[0], writes[i].msr, writes[i].value), writes[i].good, "x2APIC write: %s",
		   writes[i].name);
	is(who_has(0x44), 1, "self IPI arrived");
	lapic_msr_write(cpus[0], 0x830, 3ull << 32 | 0x45);
	is(who_has(0x45), 8, "physical destination");
	lapic_msr_write(cpus[0], 0x830, 0xffffffffull << 32 | 0x46);
	is(who_has(0x46), 15, "broadcast");
	lapic_msr_write(cpus[0], 0x830, 0x00000006ull << 32 | 0x847);
	is(who_has(0x47), 6, "logical: two of cluster 0");
	lapic_msr_write(cpus[0], 0x830, 0x00010006ull << 32 | 0x848);
	is(who_has(0x48), 0, "logical: another cluster");
}

static void test_base(void)
{
	const uint64_t base = APIC_DEFAULT_BASE, x = APIC_BASE_X2APIC, e = APIC_BASE_ENABLE;
	static const char *modes[] = { "disabled", "invalid", "xAPIC", "x2APIC" };
	// From row to column: may the guest do it?
	static const bool allowed[4][4] = {
		{ 1, 0, 1, 0 }, { 0 }, { 1, 0, 1, 1 }, { 1, 0, 0, 1 },
	};
	const uint64_t bits[4] = { 0, x, e, e | x };

	for (unsigned from = 0; from < 4; from++) {
		for (unsigned to = 0; to < 4 && from != 1; to++) {
			setup(true);
			lapic_set_base(cpus[1], base | bits[from], true);
			is(lapic_set_base(cpus[1], base | bits[to], false), allowed[from][to],
			   "guest switches from %s to %s", modes[from], modes[to]);
		}
	}
	setup(true);
	ok(!lapic_set_base(cpus[1], base | e | 1, false), "reserved low bit");
	cpus[1]->base_reserved = ~0xffffffffffull;
	ok(!lapic_set_base(cpus[1], 1ull << 45 | e, false), "above the physical address width");
	cpus[1]->has_x2apic = false;
	ok(!lapic_set_base(cpus[1], base | e | x, false), "x2APIC not offered");
	ok(lapic_set_base(cpus[1], base, false) && !lapic_enabled(cpus[1]), "disable");
	send(0, 0x80055, 0);
	ok(!(who_has(0x55) & 2), "off the bus");
	lapic_reset(cpus[1], false);
	ok(lapic_enabled(cpus[1]) && !(cpus[1]->base & APIC_BASE_BSP), "RESET enables");
}

static void test_timer(void)
{
	uint64_t start;

	setup(true);
	reg_write(0, APIC_LVT_TIMER, 0x31);
	reg_write(0, APIC_TDCR, 0xb);
	start = the_time;
	reg_write(0, APIC_TMICT, 5000);
	is(seen.timer[0], start + 5000, "one-shot, divided by 1");
	the_time = start + 2000;
	is(reg_read(0, APIC_TMCCT), 3000, "it counts down");
	is(lapic_timer_poll(cpus[0], the_time), start + 5000, "not yet");
	ok(!pending_in_irr(0, 0x31), "no interrupt before its time");
	the_time = start + 5000;
	is(lapic_timer_poll(cpus[0], the_time), 0, "expired");
	ok(pending_in_irr(0, 0x31), "interrupt");
	is(reg_read(0, APIC_TMCCT), 0, "and stays at 0");
	reg_write(0, APIC_TMICT, 8000);
	the_time += 6000;
	reg_write(0, APIC_TDCR, 0x3); // by 16
	is(reg_read(0, APIC_TMCCT), 2000, "another divisor: the count goes on from where it is");
	is(seen.timer[0], the_time + 2000 * 16, "at the new rate");
	start = the_time;
	reg_write(0, APIC_LVT_TIMER, 0x20032);
	reg_write(0, APIC_TMICT, 1000);
	is(seen.timer[0], start + 16000, "periodic, divided by 16");
	the_time = start + 50000;
	is(lapic_timer_poll(cpus[0], the_time), start + 64000, "missed periods are skipped, the phase stays");
	ok(pending_in_irr(0, 0x32), "one interrupt for them");
	reg_write(0, APIC_TMICT, 0);
	is(seen.timer[0], 0, "0 stops it");
	reg_write(0, APIC_TMICT, 1000);
	reg_write(0, APIC_LVT_TIMER, 0x40033);
	is(seen.timer[0], 0, "switching to TSC-deadline mode disarms");
	lapic_set_tsc_deadline(cpus[0], (the_time + 700) * TSC_PER_NS);
	is(seen.timer[0], the_time + 700, "TSC deadline");
	is(lapic_tsc_deadline(cpus[0]), (the_time + 700) * TSC_PER_NS, "reads back while armed");
	reg_write(0, APIC_TMICT, 55);
	is(reg_read(0, APIC_TMICT), 0, "the initial count is ignored");
	the_time += 700;
	is(lapic_tsc_deadline(cpus[0]), 0, "reads 0 after expiry");
	ok(pending_in_irr(0, 0x33), "interrupt of the deadline");
	lapic_interrupt(cpus[0], true);
	lapic_set_tsc_deadline(cpus[0], 5);
	is(seen.timer[0], 0, "a deadline in the past fires at once");
	reg_write(0, APIC_LVT_TIMER, 0x31);
	lapic_set_tsc_deadline(cpus[0], ~0ull);
	is(lapic_tsc_deadline(cpus[0]), 0, "no deadline in other modes");
	// Between one-shot and periodic the count goes on.
	reg_write(0, APIC_TDCR, 0xb);
	start = the_time;
	reg_write(0, APIC_TMICT, 50000);
	the_time = start + 30000;
	reg_write(0, APIC_LVT_TIMER, 0x20031);
	is(reg_read(0, APIC_TMCCT), 20000, "one-shot becomes periodic: the count goes on");
	the_time = start + 50000;
	is(lapic_timer_poll(cpus[0], the_time), start + 100000, "and then begins anew");
	the_time = start + 90000;
	reg_write(0, APIC_LVT_TIMER, 0x31);
	is(reg_read(0, APIC_TMCCT), 10000, "periodic becomes one-shot: the count goes on");
	the_time = start + 100000;
	is(lapic_timer_poll(cpus[0], the_time), 0, "to its end");
	reg_write(0, APIC_LVT_TIMER, 0x20031);
	is(reg_read(0, APIC_TMCCT), 0, "a count that has ended stays there");
	is(seen.timer[0], 0, "whatever mode comes");
	reg_write(0, APIC_LVT_TIMER, 0x31);
	reg_write(0, APIC_TMICT, 50000);
	start = the_time;
	the_time = start + 60000; // nobody has looked yet
	reg_write(0, APIC_LVT_TIMER, 0x20031);
	is(reg_read(0, APIC_TMCCT), 0, "nor does one begin anew that ended in the old mode");
	reg_write(0, APIC_LVT_TIMER, 0x31);

	reg_write(1, APIC_LVT_TIMER, 0x10031);
	reg_write(1, APIC_TMICT, 10);
	the_time += 1000;
	lapic_timer_poll(cpus[1], the_time);
	ok(!pending_in_irr(1, 0x31), "a masked timer stays silent");
}

static void test_init_sipi(void)
{
	setup(true);
	send(0, 0x4500, 2);
	is(cpus[2]->pending, LAPIC_PENDING_INIT, "INIT");
	send(0, 0x8500, 2);
	is(cpus[2]->pending, LAPIC_PENDING_INIT, "INIT de-assert does nothing");
	send(0, 0x4607, 2);
	is(cpus[2]->pending, LAPIC_PENDING_INIT | LAPIC_PENDING_SIPI, "start-up IPI");
	is(cpus[2]->sipi_vector, 7, "its vector");
	send(0, 0x4500, 2);
	is(cpus[2]->pending, LAPIC_PENDING_INIT, "another INIT forgets it");
	is(seen.inits[2], 3, "the processor was told each time");
}

static void test_state(void)
{
	uint8_t state[APIC_REGS_SIZE];
	uint32_t id;

	setup(true);
	x2apic_on(3);
	reg_write(3, APIC_TPR, 0); // no effect: not memory any more
	lapic_msr_write(cpus[3], 0x808, 0x20);
	lapic_get_state(cpus[3], state, false);
	memcpy(&id, state + APIC_ID, 4);
	is(id, 3u << 24, "x2APIC ID in the old format");
	ok(lapic_set_state(cpus[3], state, false), "which can be set");
	lapic_get_state(cpus[3], state, true);
	memcpy(&id, state + APIC_ID, 4);
	is(id, 3, "and in the new one");
	ok(lapic_set_state(cpus[3], state, true), "which can be set");
	id = 2;
	memcpy(state + APIC_ID, &id, 4);
	ok(!lapic_set_state(cpus[3], state, true), "but not to another ID");
	setup(true);
	reg_write(1, APIC_TDCR, 0xb);
	reg_write(1, APIC_LVT_TIMER, 0x31);
	reg_write(1, APIC_TMICT, 10000);
	the_time += 4000;
	lapic_get_state(cpus[1], state, false);
	the_time += 77777;
	ok(lapic_set_state(cpus[1], state, false), "state with a running timer");
	is(seen.timer[1], the_time + 6000, "it goes on where it stood");
}

int main(void)
{
	test_registers();
	test_priorities();
	test_destinations();
	test_x2apic();
	test_base();
	test_timer();
	test_init_sipi();
	test_state();
	return done_testing();
}
