// SPDX-License-Identifier: MIT
// Messages between APICs: who is meant, and what arrives there. Called from any thread, without locks.
// SDM: "Issuing Interprocessor Interrupts", "Determining IPI Destination", "Message Signalled
// Interrupts"; Intel 64 "x2APIC" destination formats.
//
// Deviation: beside an in-kernel I/O APIC, MSIs are edge-triggered whatever they say.
// Deviation, KVM's: lowest priority picks the APIC that got the fewest such interrupts so far.
#include "irqchip/lapic_regs.h"

static bool matches_physical(const struct lapic *target, const struct lapic *source, uint32_t destination)
{
	uint32_t all = lapic_x2apic(target) ? 0xffffffffu : 0xffu;

	if (destination == all || destination == 0xffffffffu)
		return true;
	// An 8-bit broadcast from a device, or from an APIC in xAPIC mode, reaches everybody.
	if (destination == 0xff && lapic_x2apic(target) && !target->chip->x2apic_broadcast_quirk_off &&
	    (!source || !lapic_x2apic(source)))
		return true;
	if (lapic_x2apic(target))
		return destination == target->id;
	return destination == lapic_get(target, APIC_ID) >> 24;
}

static bool matches_logical(const struct lapic *target, const struct lapic *source, uint32_t destination)
{
	uint32_t ldr = lapic_get(target, APIC_LDR);

	if (lapic_x2apic(target)) {
		if (destination == 0xffffffffu)
			return true;
		if (destination == 0xff && !target->chip->x2apic_broadcast_quirk_off &&
		    (!source || !lapic_x2apic(source)))
			return true;
		return ldr >> 16 == destination >> 16 && (ldr & destination & 0xffff);
	}
	if (destination == 0xff)
		return true;
	ldr >>= 24;
	if (lapic_get(target, APIC_DFR) >> 28 == 0xf)
		return ldr & destination;
	return ldr >> 4 == destination >> 4 && (ldr & destination & 0xf);
}

bool lapic_matches(const struct lapic *target, const struct lapic *source,
		   const struct apic_message *message)
{
	if (!lapic_enabled(target))
		// INIT, SIPI and NMI reach a processor whose APIC is software-disabled, but not one
		// whose APIC is off the bus.
		return message->shorthand == SHORTHAND_SELF && target == source;
	switch (message->shorthand) {
	case SHORTHAND_SELF:
		return target == source;
	case SHORTHAND_ALL:
		return true;
	case SHORTHAND_OTHERS:
		return target != source;
	}
	return message->logical ? matches_logical(target, source, message->destination) :
				  matches_physical(target, source, message->destination);
}

// Returns 1 delivered, 0 coalesced with one that is pending.
static int arrive(struct lapic *lapic, const struct apic_message *message)
{
	const struct irqchip_ops *ops = lapic->chip->ops;

	switch (message->mode) {
	case DELIVER_FIXED:
	case DELIVER_LOWEST:
		return lapic_accept(lapic, message->vector, message->level);
	case DELIVER_SMI:
		ops->wake(lapic->vcpu, WAKE_SMI);
		return 1;
	case DELIVER_NMI:
		ops->wake(lapic->vcpu, WAKE_NMI);
		return 1;
	case DELIVER_INIT:
		if (message->level && !message->assert)
			return 1; // de-assertion synchronized arbitration IDs once; no effect
		__atomic_store_n(&lapic->pending, LAPIC_PENDING_INIT, __ATOMIC_SEQ_CST);
		ops->wake(lapic->vcpu, WAKE_INIT_SIPI);
		return 1;
	case DELIVER_SIPI:
		__atomic_store_n(&lapic->sipi_vector, message->vector, __ATOMIC_SEQ_CST);
		__atomic_fetch_or(&lapic->pending, LAPIC_PENDING_SIPI, __ATOMIC_SEQ_CST);
		ops->wake(lapic->vcpu, WAKE_INIT_SIPI);
		return 1;
	}
	return 1; // ExtINT messages: nobody answers INTA for them
}

int apic_send(struct irqchip *chip, struct lapic *source, const struct apic_message *message)
{
	unsigned count = __atomic_load_n(&chip->lapic_count, __ATOMIC_ACQUIRE);
	struct lapic *lowest = NULL;
	bool pick_one = message->mode == DELIVER_LOWEST || message->msi_redirection_hint;
	int reached = -1;

	if (message->shorthand == SHORTHAND_SELF && source)
		return arrive(source, message);
	// The usual case: one APIC, whose number is its place.
	if (!message->shorthand && !message->logical && !pick_one && message->destination < count) {
		struct lapic *target = chip->lapics[message->destination];

		if (target->id == message->destination && message->destination != 0xff &&
		    lapic_x2apic(target))
			return arrive(target, message);
	}
	for (unsigned i = 0; i < count; i++) {
		struct lapic *target = chip->lapics[i];

		if (!lapic_matches(target, source, message))
			continue;
		if (!pick_one) {
			reached = (reached < 0 ? 0 : reached) + arrive(target, message);
			continue;
		}
		if (!lapic_software_enabled(target))
			continue;
		if (!lowest || target->arbitration < lowest->arbitration)
			lowest = target;
	}
	if (lowest) {
		__atomic_fetch_add(&lowest->arbitration, 1, __ATOMIC_RELAXED);
		return arrive(lowest, message);
	}
	return reached;
}

int apic_send_msi(struct irqchip *chip, uint64_t address, uint32_t data, bool x2apic_format)
{
	struct apic_message message = {
		.destination = (address >> 12 & 0xff) | (x2apic_format ? address >> 32 & 0xffffff00u : 0),
		.vector = data & 0xff,
		.mode = data >> 8 & 7,
		.logical = address >> 2 & 1,
		// The TMR says that somebody waits for the EOI. An I/O APIC in user space beside the one in here
		// (QEMU's microvm has a second one) would wait in vain: its driver has to tell it itself.
		.level = (data >> 15 & 1) && !chip->pic_and_ioapic,
		.assert = data >> 14 & 1,
		.msi_redirection_hint = address >> 3 & 1,
	};

	return apic_send(chip, NULL, &message);
}
