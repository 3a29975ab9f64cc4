// SPDX-License-Identifier: MIT
// The I/O APIC, the 8259 pair and the 8254.
#include "fixture.h"

#include <linux/kvm.h>

// ---- I/O APIC ----
static void io_write(unsigned reg, uint32_t value)
{
	uint32_t select = reg;

	ioapic_write(chip, 0, 4, &select);
	ioapic_write(chip, 0x10, 4, &value);
}

static uint32_t io_read(unsigned reg)
{
	uint32_t select = reg, value;

	ioapic_write(chip, 0, 4, &select);
	ioapic_read(chip, 0x10, 4, &value);
	return value;
}

static void redirect(unsigned pin, uint32_t low, unsigned destination)
{
	io_write(0x11 + 2 * pin, destination << 24);
	io_write(0x10 + 2 * pin, low);
}

static void eoi(unsigned cpu)
{
	reg_write(cpu, APIC_EOI, 0);
}

static void test_ioapic(void)
{
	setup(true);
	is(io_read(1), 0x170011, "version: 24 pins");
	io_write(0, 0xff000000);
	is(io_read(0), 0x0f000000, "ID has 4 bits");
	is(io_read(0x10), 0x10000, "pins start masked");
	redirect(5, 0xffffffff, 1);
	is(io_read(0x1a), 0x1afff, "status bits are read-only, reserved ones 0");

	redirect(3, 0x10061, 1);
	is(ioapic_set_irq(chip, 3, IRQ_SOURCE_USER, true), -1, "masked pin");
	ioapic_set_irq(chip, 3, IRQ_SOURCE_USER, false);
	redirect(3, 0x61, 1);
	is(who_has(0x61), 0, "an edge while masked is lost");
	is(ioapic_set_irq(chip, 3, IRQ_SOURCE_USER, true), 1, "edge");
	is(who_has(0x61), 2, "goes to its destination");
	is(ioapic_set_irq(chip, 3, IRQ_SOURCE_USER, true), 0, "no second edge without a fall");
	is(lapic_interrupt(cpus[1], true), 0x61, "taken");
	eoi(1);
	is(who_has(0x61), 0, "an edge comes once");
	struct kvm_ioapic_state up;
	ioapic_get_state(chip, &up);
	ioapic_set_state(chip, &up);
	is(who_has(0x61), 0, "also when the state is saved and restored with the line up");

	setup(true);
	redirect(9, 0x8000 | 0x71, 2);
	is(ioapic_set_irq(chip, 9, IRQ_SOURCE_USER, true), 1, "level");
	is(io_read(0x10 + 18) & 0x4000, 0x4000, "remote IRR is set");
	is(ioapic_set_irq(chip, 9, IRQ_SOURCE_RESAMPLE, true), 0, "a second source adds nothing");
	lapic_interrupt(cpus[2], true);
	eoi(2);
	is(seen.acked[2][9], 1, "EOI reaches the I/O APIC");
	is(who_has(0x71), 4, "the line is still up: again");
	lapic_interrupt(cpus[2], true);
	ioapic_set_irq(chip, 9, IRQ_SOURCE_USER, false);
	eoi(2);
	is(who_has(0x71), 4, "one of two sources is still up");
	lapic_interrupt(cpus[2], true);
	ioapic_set_irq(chip, 9, IRQ_SOURCE_RESAMPLE, false);
	eoi(2);
	is(who_has(0x71), 0, "both down");
	is(io_read(0x10 + 18) & 0x4000, 0, "remote IRR is clear");
	redirect(9, 0x18000 | 0x71, 2);
	ioapic_set_irq(chip, 9, IRQ_SOURCE_USER, true);
	is(who_has(0x71), 0, "level while masked");
	redirect(9, 0x8000 | 0x71, 2);
	is(who_has(0x71), 4, "comes when unmasked");
	redirect(9, 0x71, 2);
	is(io_read(0x10 + 18) & 0x4000, 0, "switching to edge clears remote IRR");

	struct kvm_ioapic_state state;
	ioapic_get_state(chip, &state);
	is(state.redirtbl[9].fields.vector, 0x71, "state: vector");
	is(state.redirtbl[9].fields.dest_id, 2, "state: destination");
	is(state.irr, 1 << 9, "state: asserted pins");
	setup(true);
	ioapic_set_state(chip, &state);
	is(who_has(0x71), 4, "setting the state delivers what is asserted");

	is(apic_send_msi(chip, 0xfee01000, 0x45, false), 1, "MSI");
	is(who_has(0x45), 2, "to APIC 1");
	is(apic_send_msi(chip, 0xfee09000, 0x45, false), -1, "MSI to nobody");
	is(apic_send_msi(chip, 0xfee01000, 0x45, false), 0, "MSI that is pending already");
}

// ---- 8259 ----
static void pic_init(uint8_t icw4)
{
	static const uint16_t base[2] = { 0x20, 0xa0 };

	for (unsigned i = 0; i < 2; i++) {
		pic_port_write(chip, base[i], 0x11);
		pic_port_write(chip, base[i] + 1, i ? 0x28 : 0x20);
		pic_port_write(chip, base[i] + 1, i ? 2 : 4);
		pic_port_write(chip, base[i] + 1, icw4);
	}
}

static void pulse(unsigned pin)
{
	pic_set_irq(chip, pin, IRQ_SOURCE_USER, true);
	pic_set_irq(chip, pin, IRQ_SOURCE_USER, false);
}

static uint8_t isr_of(uint16_t port)
{
	pic_port_write(chip, port, 0x0b);
	return pic_port_read(chip, port);
}

static void test_pic(void)
{
	setup(true);
	ok(!pic_pending(chip), "nothing pending");
	pic_init(1);
	pulse(4);
	ok(pic_pending(chip) && seen.wakes[0], "an edge wakes the boot processor");
	is(seen.wakes[1], 0, "and no other");
	pulse(1);
	is(pic_acknowledge(chip), 0x21, "the lowest input wins");
	ok(!pic_pending(chip), "and blocks lower priorities");
	is(isr_of(0x20), 0x02, "in service");
	pic_port_write(chip, 0x20, 0x20);
	is(seen.acked[0][1], 1, "EOI is reported");
	is(pic_acknowledge(chip), 0x24, "then the other");
	pic_port_write(chip, 0x20, 0x64);
	is(isr_of(0x20), 0, "specific EOI");
	pulse(12);
	is(pic_acknowledge(chip), 0x2c, "an input of the slave");
	is(isr_of(0xa0), 0x10, "in service there");
	is(isr_of(0x20), 0x04, "and at the cascade");
	pulse(8);
	ok(!pic_pending(chip), "a slave's higher input waits for the cascade's EOI");
	pic_port_write(chip, 0xa0, 0x20);
	pic_port_write(chip, 0x20, 0x20);
	is(pic_acknowledge(chip), 0x28, "and then comes");
	setup(true);
	pic_init(1);
	is(pic_acknowledge(chip), 0x27, "spurious: input 7");
	is(isr_of(0x20), 0, "with nothing in service");
	pic_port_write(chip, 0x21, 0x10);
	is(pic_set_irq(chip, 4, IRQ_SOURCE_USER, true), -1, "masked");
	ok(!pic_pending(chip), "says nothing");
	pic_port_write(chip, 0x21, 0);
	is(pic_acknowledge(chip), 0x24, "until unmasked");
	pic_port_write(chip, 0x20, 0xa0); // rotate on non-specific EOI
	pulse(4);
	pulse(5);
	is(pic_acknowledge(chip), 0x25, "rotation: what was served goes last");
	setup(true);
	pic_init(3);
	pulse(4);
	is(pic_acknowledge(chip), 0x24, "automatic EOI");
	is(isr_of(0x20), 0, "leaves nothing in service");
	setup(true);
	pic_init(1);
	pic_port_write(chip, 0x4d0, 0xff);
	is(pic_port_read(chip, 0x4d0), 0xf8, "timer, keyboard and cascade are always edge");
	pic_set_irq(chip, 5, IRQ_SOURCE_USER, true);
	is(pic_acknowledge(chip), 0x25, "level");
	pic_port_write(chip, 0x20, 0x20);
	ok(pic_pending(chip), "is pending while the line is up");
	pic_set_irq(chip, 5, IRQ_SOURCE_USER, false);
	ok(!pic_pending(chip), "and gone with it");
	pulse(1);
	pic_port_write(chip, 0x20, 0x0c);
	is(pic_port_read(chip, 0x20), 0x81, "poll: acknowledges input 1");
	is(isr_of(0x20), 2, "which is in service now");
	pic_port_write(chip, 0x20, 0x0c);
	is(pic_port_read(chip, 0x20), 0, "poll: nothing");
	struct kvm_pic_state state;
	pic_get_state(chip, 0, &state);
	is(state.irq_base, 0x20, "state: base");
	is(state.elcr, 0xf8, "state: ELCR");
	pic_set_state(chip, 0, &state);
	is(isr_of(0x20), 2, "state restores what is in service");
	setup(true);
	pic_init(1);
	pulse(3);
	reg_write(0, APIC_LVT_LINT0, 0x10700);
	ok(!lapic_accepts_pic(cpus[0]), "LINT0 masked");
	seen.wakes[0] = 0;
	reg_write(0, APIC_LVT_LINT0, 0x700);
	ok(lapic_accepts_pic(cpus[0]) && seen.wakes[0], "unmasked it asks to look");
}

// ---- 8254 ----
static void pit_load(unsigned channel, unsigned mode, unsigned count)
{
	pit_port_write(chip, 0x43, channel << 6 | 0x30 | mode << 1);
	pit_port_write(chip, 0x40 + channel, count & 0xff);
	pit_port_write(chip, 0x40 + channel, count >> 8);
}

static unsigned pit_count(unsigned channel)
{
	unsigned low;

	pit_port_write(chip, 0x43, channel << 6);
	low = pit_port_read(chip, 0x40 + channel);
	return low | pit_port_read(chip, 0x40 + channel) << 8;
}

static void pass_ticks(uint64_t ticks)
{
	the_time += ticks * 1000000000 / 1193182 + 1;
}

static void test_pit(void)
{
	setup(true);
	ok(!pit_owns_port(chip, 0x40), "no ports without a PIT");
	pit_create(chip, true);
	ok(pit_owns_port(chip, 0x40) && pit_owns_port(chip, 0x61), "its ports");
	pit_load(0, 2, 10000);
	is(seen.pit_timer, the_time + 10000ull * 1000000000 / 1193182, "rate generator");
	pass_ticks(4000);
	ok(pit_count(0) >= 5999 && pit_count(0) <= 6000, "it counts down");
	pass_ticks(6001);
	pit_timer(chip, the_time);
	is(seen.pit_up, 1, "an edge at the end of the period");
	is(seen.pit_down, 1, "and down again");
	pass_ticks(10000);
	pit_timer(chip, the_time);
	is(seen.pit_up, 1, "the next waits for the acknowledgement");
	pit_acked(chip);
	is(seen.pit_timer, the_time, "which asks for it at once");
	pit_timer(chip, the_time);
	is(seen.pit_up, 2, "the tick owed");
	chip->pit.reinject = false;
	pass_ticks(50000);
	pit_timer(chip, the_time);
	is(seen.pit_up, 3, "without reinjection missed ticks are one");

	pit_load(2, 0, 1000);
	is(pit_port_read(chip, 0x61) & 0x20, 0, "channel 2 counts");
	pass_ticks(1001);
	is(pit_port_read(chip, 0x61) & 0x20, 0x20, "its output rises");
	pit_port_write(chip, 0x61, 3);
	is(pit_port_read(chip, 0x61) & 3, 3, "gate and speaker read back");
	pit_load(2, 2, 1000);
	pit_port_write(chip, 0x43, 0xe8); // read-back: status of channel 2
	is(pit_port_read(chip, 0x42), 0xb4, "read-back status: output, word access, mode 2");
	pit_port_write(chip, 0x43, 0x94); // LSB only
	pit_port_write(chip, 0x42, 100);
	pass_ticks(10);
	ok(pit_port_read(chip, 0x42) <= 90, "LSB access");

	struct kvm_pit_state2 state;
	pit_load(0, 2, 0);
	pit_get_state(chip, &state);
	is(state.channels[0].count, 0x10000, "state: 0 counts as 65536");
	is(state.channels[0].mode, 2, "state: mode");
	is(state.channels[0].rw_mode, 3, "state: access");
	state.channels[0].count = 0x10001;
	ok(!pit_set_state(chip, &state), "a count that cannot be is refused");
	state.channels[0].count = 5000;
	ok(pit_set_state(chip, &state), "another is taken");
	is(seen.pit_timer, the_time + 5000ull * 1000000000 / 1193182, "and runs");

	setup(true);
	pit_wired = true;
	pit_create(chip, true);
	pic_init(1);
	pic_port_write(chip, 0x21, 0xff);
	pit_load(0, 2, 1000);
	for (unsigned i = 0; i < 3; i++) {
		pass_ticks(1001);
		pit_timer(chip, the_time);
	}
	is(seen.pit_up, 3, "ticks that nobody takes are not waited for");
}

static void test_split(void)
{
	setup(false);
	cpus[1]->eoi_exit_bitmap[0x61 / 64] |= 1ull << 0x61 % 64;
	apic_send_msi(chip, 0xfee01000, 0xc061, false);
	apic_send_msi(chip, 0xfee01000, 0x62, false);
	is(lapic_interrupt(cpus[1], true), 0x62, "edge MSI");
	eoi(1);
	is(seen.eoi_exits, 0, "whose EOI interests nobody");
	is(lapic_interrupt(cpus[1], true), 0x61, "level MSI");
	eoi(1);
	is(seen.eoi_exits, 1, "whose EOI is reported");
	is(seen.eoi_vector, 0x61, "with its vector");
}

int main(void)
{
	test_ioapic();
	test_pic();
	test_pit();
	test_split();
	return done_testing();
}
