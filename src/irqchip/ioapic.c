// SPDX-License-Identifier: MIT
// The I/O APIC: 24 pins, each with a redirection entry.
// Intel 82093AA data sheet: "Register Description"; version 0x11, no EOI register.
#include "irqchip/irqchip.h"

#include <linux/kvm.h>
#include <string.h>

_Static_assert(sizeof(struct kvm_ioapic_state) == 216, "KVM ABI");

#define ENTRY_VECTOR(entry) ((uint8_t)(entry))
#define ENTRY_MODE(entry) ((entry) >> 8 & 7)
#define ENTRY_LOGICAL (1u << 11)
#define ENTRY_REMOTE_IRR (1u << 14)
#define ENTRY_LEVEL (1u << 15)
#define ENTRY_MASKED (1u << 16)
#define ENTRY_READ_ONLY (1u << 12 | ENTRY_REMOTE_IRR)
#define ENTRY_RESERVED 0x00fffffffffe0000ull

#define IOREGSEL 0x00
#define IOWIN 0x10

// Which vectors' EOI must come here. Edge-triggered ones only for the 8254, which counts its ticks:
// it may be wired to any pin, so all unmasked pins count while it reinjects.
void ioapic_update_vectors(struct irqchip *chip)
{
	uint64_t vectors[4] = { 0 };

	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		uint64_t entry = chip->ioapic.redirection[i];
		uint8_t vector = ENTRY_VECTOR(entry);

		if ((entry & ENTRY_LEVEL) || (chip->ioapic.notify >> i & 1) ||
		    (__atomic_load_n(&chip->pit.reinject, __ATOMIC_RELAXED) && !(entry & ENTRY_MASKED)))
			vectors[vector / 64] |= 1ull << vector % 64;
	}
	for (unsigned i = 0; i < 4; i++)
		__atomic_store_n(&chip->ioapic.vectors[i], vectors[i], __ATOMIC_SEQ_CST);
}

void ioapic_set_notify(struct irqchip *chip, uint32_t pins)
{
	lock_take(&chip->lock);
	chip->ioapic.notify = pins;
	ioapic_update_vectors(chip);
	lock_release(&chip->lock);
}

static int service(struct irqchip *chip, unsigned pin)
{
	uint64_t *entry = &chip->ioapic.redirection[pin];
	struct apic_message message = {
		.destination = *entry >> 56,
		.vector = ENTRY_VECTOR(*entry),
		.mode = ENTRY_MODE(*entry),
		.logical = *entry & ENTRY_LOGICAL,
		.level = *entry & ENTRY_LEVEL,
		.assert = true,
	};
	int reached;

	if (*entry & ENTRY_MASKED)
		return -1;
	if (message.level && (*entry & ENTRY_REMOTE_IRR))
		return 0;
	// Before the message leaves: its EOI may come on another thread at once, and will wait for
	// our lock.
	if (message.level)
		*entry |= ENTRY_REMOTE_IRR;
	else
		chip->ioapic.delivered |= 1u << pin;
	reached = apic_send(chip, NULL, &message);
	if (message.level && reached <= 0)
		*entry &= ~(uint64_t)ENTRY_REMOTE_IRR;
	return reached;
}

int ioapic_set_irq(struct irqchip *chip, unsigned pin, unsigned source, bool level)
{
	struct ioapic *ioapic = &chip->ioapic;
	uint32_t bit = 1u << pin, old;
	int reached = 1;

	lock_take(&chip->lock);
	if (level)
		chip->ioapic_lines[pin] |= 1u << source;
	else
		chip->ioapic_lines[pin] &= ~(1u << source);
	old = ioapic->irr;
	if (!chip->ioapic_lines[pin]) {
		ioapic->irr &= ~bit;
		ioapic->delivered &= ~bit;
	} else if (level) {
		ioapic->irr |= bit;
		if (!(ioapic->redirection[pin] & ENTRY_LEVEL) && (old & bit))
			reached = 0; // no edge
		else
			reached = service(chip, pin);
	}
	lock_release(&chip->lock);
	return reached;
}

void ioapic_eoi(struct irqchip *chip, uint8_t vector)
{
	lock_take(&chip->lock);
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		uint64_t *entry = &chip->ioapic.redirection[i];

		if (ENTRY_VECTOR(*entry) != vector)
			continue;
		// May lower the line (resampling), or send the next tick.
		lock_release(&chip->lock);
		chip->ops->acked(chip->vm, 2, i);
		lock_take(&chip->lock);
		if (!(*entry & ENTRY_LEVEL))
			continue;
		*entry &= ~(uint64_t)ENTRY_REMOTE_IRR;
		if (chip->ioapic.irr >> i & 1)
			service(chip, i);
	}
	lock_release(&chip->lock);
}

static uint32_t read_selected(const struct ioapic *ioapic)
{
	unsigned n;

	switch (ioapic->select) {
	case 0:
		return (ioapic->id & 15) << 24;
	case 1:
		return (IOAPIC_PINS - 1) << 16 | 0x11;
	case 2:
		return (ioapic->id & 15) << 24;
	}
	n = (ioapic->select - 0x10) / 2;
	if (ioapic->select < 0x10 || n >= IOAPIC_PINS)
		return ~0u;
	return ioapic->redirection[n] >> (ioapic->select & 1 ? 32 : 0);
}

static void write_selected(struct irqchip *chip, uint32_t value)
{
	struct ioapic *ioapic = &chip->ioapic;
	unsigned n = (ioapic->select - 0x10) / 2;
	uint64_t *entry;

	if (ioapic->select == 0) {
		ioapic->id = value >> 24 & 15;
		return;
	}
	if (ioapic->select < 0x10 || n >= IOAPIC_PINS)
		return;
	entry = &ioapic->redirection[n];
	if (ioapic->select & 1)
		*entry = (*entry & 0xffffffffu) | (uint64_t)value << 32;
	else
		*entry = (*entry & (0xffffffff00000000ull | ENTRY_READ_ONLY)) |
			 (value & ~ENTRY_READ_ONLY);
	*entry &= ~ENTRY_RESERVED;
	// An edge-triggered pin has no remote IRR: old kernels clear it by switching there and back.
	if (!(*entry & ENTRY_LEVEL))
		*entry &= ~(uint64_t)ENTRY_REMOTE_IRR;
	ioapic_update_vectors(chip);
	if ((*entry & ENTRY_LEVEL) && (ioapic->irr >> n & 1))
		service(chip, n);
}

void ioapic_read(struct irqchip *chip, unsigned offset, unsigned length, void *data)
{
	uint32_t value = 0;

	lock_take(&chip->lock);
	if ((offset & ~0xfu) == IOREGSEL)
		value = chip->ioapic.select;
	else if ((offset & ~0xfu) == IOWIN)
		value = read_selected(&chip->ioapic);
	lock_release(&chip->lock);
	memset(data, 0, length);
	memcpy(data, &value, length < 4 ? length : 4);
}

void ioapic_write(struct irqchip *chip, unsigned offset, unsigned length, const void *data)
{
	uint32_t value = 0;

	memcpy(&value, data, length < 4 ? length : 4);
	lock_take(&chip->lock);
	if ((offset & ~0xfu) == IOREGSEL)
		chip->ioapic.select = value & 0xff;
	else if ((offset & ~0xfu) == IOWIN)
		write_selected(chip, value);
	lock_release(&chip->lock);
}

void ioapic_get_state(struct irqchip *chip, void *state)
{
	struct kvm_ioapic_state *s = state;

	memset(s, 0, sizeof(*s));
	lock_take(&chip->lock);
	s->base_address = chip->ioapic.base;
	s->ioregsel = chip->ioapic.select;
	s->id = chip->ioapic.id;
	s->irr = chip->ioapic.irr;
	memcpy(s->redirtbl, chip->ioapic.redirection, sizeof(s->redirtbl));
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		if (!(chip->ioapic.redirection[i] & ENTRY_LEVEL))
			s->irr &= ~(chip->ioapic.delivered & 1u << i);
	lock_release(&chip->lock);
}

void ioapic_set_state(struct irqchip *chip, const void *state)
{
	const struct kvm_ioapic_state *s = state;
	struct ioapic *ioapic = &chip->ioapic;

	lock_take(&chip->lock);
	__atomic_store_n(&ioapic->base, s->base_address, __ATOMIC_RELAXED);
	ioapic->select = s->ioregsel & 0xff;
	ioapic->id = s->id & 15;
	ioapic->irr = ioapic->delivered = 0;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		ioapic->redirection[i] = s->redirtbl[i].bits & ~ENTRY_RESERVED;
	ioapic_update_vectors(chip);
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		if (s->irr >> i & 1) {
			ioapic->irr |= 1u << i;
			service(chip, i);
		}
	}
	lock_release(&chip->lock);
}
