// SPDX-License-Identifier: MIT
// Interrupt controllers with a clock that the test turns, and a record of what they said.
#ifndef TESTS_IRQCHIP_FIXTURE_H
#define TESTS_IRQCHIP_FIXTURE_H

#include "../lib/tap.h"
#include "irqchip/irqchip.h"

#include <string.h>

#define CPUS 4
#define TSC_PER_NS 3

static uint64_t the_time = 1000000;
static struct irqchip *chip;
static struct lapic *cpus[CPUS];
static struct seen {
	unsigned wakes[CPUS], nmis[CPUS], inits[CPUS];
	uint64_t timer[CPUS], pit_timer;
	unsigned pit_up, pit_down, acked[3][IOAPIC_PINS], eoi_exits;
	uint8_t eoi_vector;
} seen;
static bool pit_wired; // GSI 0 to the first 8259 and pin 2 of the I/O APIC

static unsigned number_of(void *vcpu)
{
	return (unsigned)((uintptr_t)vcpu - 1);
}

static uint64_t fake_now(void *vm) { return the_time; }

static uint64_t fake_tsc_to_time(void *vcpu, uint64_t tsc)
{
	return tsc / TSC_PER_NS < the_time ? the_time : tsc / TSC_PER_NS;
}

static void fake_wake(void *vcpu, unsigned what)
{
	seen.wakes[number_of(vcpu)] += !!(what & WAKE_IRQ);
	seen.nmis[number_of(vcpu)] += !!(what & WAKE_NMI);
	seen.inits[number_of(vcpu)] += !!(what & WAKE_INIT_SIPI);
}

static void fake_lapic_timer(void *vcpu, uint64_t deadline) { seen.timer[number_of(vcpu)] = deadline; }
static void fake_pit_timer(void *vm, uint64_t deadline) { seen.pit_timer = deadline; }

static int fake_pit_irq(void *vm, bool level)
{
	int a, b;

	seen.pit_up += level;
	seen.pit_down += !level;
	if (!pit_wired)
		return 1;
	a = pic_set_irq(chip, 0, IRQ_SOURCE_PIT, level);
	b = ioapic_set_irq(chip, 2, IRQ_SOURCE_PIT, level);
	return a > b ? a : b;
}

static void fake_acked(void *vm, unsigned which, unsigned pin)
{
	seen.acked[which][pin]++;
	if (pit_wired && ((which == 0 && pin == 0) || (which == 2 && pin == 2)))
		pit_acked(chip);
}

static void fake_eoi_exit(void *vcpu, uint8_t vector)
{
	seen.eoi_exits++;
	seen.eoi_vector = vector;
}

static const struct irqchip_ops fake_ops = {
	.now = fake_now, .tsc_to_time = fake_tsc_to_time, .wake = fake_wake,
	.lapic_timer = fake_lapic_timer, .pit_timer = fake_pit_timer, .pit_irq = fake_pit_irq,
	.acked = fake_acked, .eoi_exit = fake_eoi_exit,
};

// Fresh controllers; every local APIC software-enabled, as an operating system leaves them.
static void setup(bool full)
{
	if (chip) {
		for (unsigned i = 0; i < CPUS; i++)
			lapic_destroy(cpus[i]);
		irqchip_destroy(chip);
	}
	pit_wired = false;
	chip = irqchip_create(&fake_ops, NULL, CPUS, full);
	for (unsigned i = 0; i < CPUS; i++) {
		uint32_t svr = 0x1ff;

		cpus[i] = lapic_create(chip, (void *)(uintptr_t)(i + 1), i, i == 0);
		cpus[i]->has_x2apic = cpus[i]->has_tsc_deadline = true;
		lapic_publish(cpus[i]);
		lapic_write(cpus[i], APIC_SVR, 4, &svr);
	}
	memset(&seen, 0, sizeof(seen));
}

static inline void reg_write(unsigned cpu, unsigned offset, uint32_t value)
{
	lapic_write(cpus[cpu], offset, 4, &value);
}

static inline uint32_t reg_read(unsigned cpu, unsigned offset)
{
	uint32_t value;

	lapic_read(cpus[cpu], offset, 4, &value);
	return value;
}

static inline void x2apic_on(unsigned cpu)
{
	lapic_set_base(cpus[cpu], cpus[cpu]->base | APIC_BASE_X2APIC, false);
}

static inline bool pending_in_irr(unsigned cpu, uint8_t vector)
{
	uint32_t w;

	memcpy(&w, cpus[cpu]->regs + APIC_IRR + (vector / 32) * 16, 4);
	return w >> vector % 32 & 1;
}

// Which CPUs have the vector in IRR, a bit each.
static inline unsigned who_has(uint8_t vector)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < CPUS; i++)
		mask |= (unsigned)pending_in_irr(i, vector) << i;
	return mask;
}

#endif
