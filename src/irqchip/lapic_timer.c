// SPDX-License-Identifier: MIT
// The local APIC's timer. Its clock ticks every chip->bus_cycle_ns (1: KVM's leaf 0x40000010 tells guests
// so), divided by the divide configuration.
// SDM: "APIC Timer", "TSC-Deadline Mode".
#include "irqchip/lapic_regs.h"

static unsigned divide_shift(const struct lapic *lapic)
{
	uint32_t tdcr = lapic_get(lapic, APIC_TDCR);

	return (((tdcr & 3) | (tdcr & 8) >> 1) + 1) & 7; // 0b111: divide by 1
}

static uint64_t tick_ns(const struct lapic *lapic)
{
	return lapic->chip->bus_cycle_ns << divide_shift(lapic);
}

static uint32_t mode(const struct lapic *lapic)
{
	return lapic_get(lapic, APIC_LVT_TIMER) & LVT_TIMER_MODE;
}

static void arm(struct lapic *lapic, uint64_t deadline)
{
	lapic->deadline = deadline;
	lapic->chip->ops->lapic_timer(lapic->vcpu, deadline);
}

static uint64_t period(const struct lapic *lapic)
{
	uint64_t ns = lapic_get(lapic, APIC_TMICT) * tick_ns(lapic); // fits: see irq_set_bus_cycle()

	// A guest cannot make the host do nothing but deliver its ticks.
	return ns < 10000 ? 10000 : ns;
}

void lapic_timer_restart(struct lapic *lapic)
{
	uint64_t ticks = lapic_get(lapic, APIC_TMICT), now;

	lapic->period = 0;
	if (mode(lapic) >= LVT_TIMER_TSC_DEADLINE) {
		lapic_tsc_changed(lapic);
		return;
	}
	if (!ticks || !lapic_enabled(lapic)) {
		if (lapic->deadline)
			arm(lapic, 0);
		return;
	}
	ticks *= tick_ns(lapic);
	if (mode(lapic) == LVT_TIMER_PERIODIC)
		lapic->period = period(lapic);
	now = lapic->chip->ops->now(lapic->chip->vm);
	arm(lapic, now + ticks < now ? ~0ull : now + ticks);
}

void lapic_timer_new_mode(struct lapic *lapic, uint32_t old)
{
	uint32_t new = lapic_get(lapic, APIC_LVT_TIMER);

	if (((old ^ new) & LVT_TIMER_TSC_DEADLINE) || mode(lapic) >= LVT_TIMER_TSC_DEADLINE) {
		// To and from TSC-deadline mode: disarmed.
		lapic->tsc_deadline = 0;
		lapic_put(lapic, APIC_TMICT, 0);
		lapic_timer_restart(lapic);
		return;
	}
	// Between one-shot and periodic the count goes on. The mode says what comes when it reaches 0: a
	// count that has (in the old mode) stays there.
	lapic_put(lapic, APIC_LVT_TIMER, old);
	lapic_timer_poll(lapic, lapic->chip->ops->now(lapic->chip->vm));
	lapic_put(lapic, APIC_LVT_TIMER, new);
	lapic->period = mode(lapic) == LVT_TIMER_PERIODIC ? period(lapic) : 0;
}

uint32_t lapic_timer_count(struct lapic *lapic)
{
	uint64_t now;

	if (!lapic->deadline || mode(lapic) >= LVT_TIMER_TSC_DEADLINE)
		return 0;
	now = lapic->chip->ops->now(lapic->chip->vm);
	if (now >= lapic->deadline) {
		if (!lapic->period)
			return 0;
		return (lapic->period - (now - lapic->deadline) % lapic->period) / tick_ns(lapic);
	}
	return (lapic->deadline - now) / tick_ns(lapic);
}

void lapic_timer_set_count(struct lapic *lapic, uint32_t count)
{
	uint32_t whole = lapic_timer_count(lapic);

	if (!lapic->deadline || mode(lapic) >= LVT_TIMER_TSC_DEADLINE || !count || count >= whole)
		return;
	arm(lapic, lapic->deadline - (whole - count) * tick_ns(lapic));
}

uint64_t lapic_timer_poll(struct lapic *lapic, uint64_t now)
{
	if (!lapic->deadline || now < lapic->deadline)
		return lapic->deadline;
	lapic_local(lapic, APIC_LVT_TIMER);
	if (lapic->period) {
		uint64_t late = now - lapic->deadline;

		// Ticks that nobody could take are lost, as on silicon: one bit in IRR is all there is.
		arm(lapic, lapic->deadline + lapic->period * (late / lapic->period + 1));
	} else {
		if (mode(lapic) >= LVT_TIMER_TSC_DEADLINE)
			lapic->tsc_deadline = 0;
		arm(lapic, 0);
	}
	return lapic->deadline;
}

uint64_t lapic_tsc_deadline(struct lapic *lapic)
{
	if (mode(lapic) != LVT_TIMER_TSC_DEADLINE)
		return 0;
	lapic_timer_poll(lapic, lapic->chip->ops->now(lapic->chip->vm));
	return lapic->tsc_deadline;
}

void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t value)
{
	if (mode(lapic) != LVT_TIMER_TSC_DEADLINE)
		return;
	lapic->tsc_deadline = value;
	lapic_tsc_changed(lapic);
}

void lapic_tsc_changed(struct lapic *lapic)
{
	if (mode(lapic) != LVT_TIMER_TSC_DEADLINE)
		return;
	if (!lapic->tsc_deadline || !lapic_enabled(lapic)) {
		if (lapic->deadline)
			arm(lapic, 0);
		return;
	}
	arm(lapic, lapic->chip->ops->tsc_to_time(lapic->vcpu, lapic->tsc_deadline));
	// In the past already?
	lapic_timer_poll(lapic, lapic->chip->ops->now(lapic->chip->vm));
}
