// SPDX-License-Identifier: MIT
// The pair of 8259 interrupt controllers and their edge/level control registers.
// Intel 8259A data sheet: "Initialization Command Words", "Operation Command Words", "Poll Command".
//
// Not there, as in no PC: single mode, level mode by ICW1 (the ELCRs have it), 8080 vectors.
#include "irqchip/irqchip.h"

#include <linux/kvm.h>
#include <string.h>

_Static_assert(sizeof(struct kvm_pic_state) == 16, "KVM ABI");

#define CASCADE 2
static const uint8_t elcr_mask[2] = { 0xf8, 0xde };

// Number of steps from the highest priority down to the first bit of `mask`; 8: none.
static unsigned priority_of(const struct pic *pic, uint8_t mask)
{
	unsigned priority = 0;

	while (priority < 8 && !(mask >> ((priority + pic->priority_add) & 7) & 1))
		priority++;
	return priority;
}

// The input that asks for service now, or -1.
static int requesting(const struct irqchip *chip, unsigned which)
{
	const struct pic *pic = &chip->pics[which];
	unsigned wanted = priority_of(pic, pic->irr & ~pic->imr);
	uint8_t in_service = pic->isr;

	if (wanted == 8)
		return -1;
	if (pic->special_mask)
		in_service &= ~pic->imr;
	if (pic->special_fully_nested && which == 0)
		in_service &= ~(1u << CASCADE);
	return wanted < priority_of(pic, in_service) ? (int)((wanted + pic->priority_add) & 7) : -1;
}

static bool set_input(struct pic *pic, unsigned input, bool level)
{
	uint8_t bit = 1u << input, old = pic->irr;

	if (pic->elcr & bit) {
		pic->irr = level ? pic->irr | bit : pic->irr & ~bit;
	} else if (level && !(pic->last_irr & bit)) {
		pic->irr |= bit;
	}
	pic->last_irr = level ? pic->last_irr | bit : pic->last_irr & ~bit;
	return !(old & bit) && (pic->irr & bit);
}

static void update(struct irqchip *chip)
{
	bool output;

	set_input(&chip->pics[0], CASCADE, requesting(chip, 1) >= 0);
	output = requesting(chip, 0) >= 0;
	__atomic_store_n(&chip->pic_output, output, __ATOMIC_SEQ_CST);
	if (!output)
		return;
	for (unsigned i = 0; i < __atomic_load_n(&chip->lapic_count, __ATOMIC_ACQUIRE); i++)
		if (lapic_accepts_pic(chip->lapics[i]))
			chip->ops->wake(chip->lapics[i]->vcpu, WAKE_IRQ);
}

int pic_set_irq(struct irqchip *chip, unsigned pin, unsigned source, bool level)
{
	struct pic *pic = &chip->pics[pin >> 3];
	int result = 1;

	lock_take(&chip->lock);
	if (level)
		chip->pic_lines[pin] |= 1u << source;
	else
		chip->pic_lines[pin] &= ~(1u << source);
	if (!set_input(pic, pin & 7, chip->pic_lines[pin]) && level)
		result = 0;
	if (pic->imr >> (pin & 7) & 1)
		result = -1;
	update(chip);
	lock_release(&chip->lock);
	return result;
}

bool pic_pending(struct irqchip *chip)
{
	return __atomic_load_n(&chip->pic_output, __ATOMIC_SEQ_CST);
}

// The line may change meanwhile.
static void tell_acked(struct irqchip *chip, unsigned which, unsigned input)
{
	lock_release(&chip->lock);
	chip->ops->acked(chip->vm, which, input);
	lock_take(&chip->lock);
}

static void acknowledge(struct irqchip *chip, unsigned which, unsigned input)
{
	struct pic *pic = &chip->pics[which];
	uint8_t bit = 1u << input;

	if (!(pic->elcr & bit))
		pic->irr &= ~bit;
	if (!pic->auto_eoi) {
		pic->isr |= bit;
		return;
	}
	if (pic->rotate_on_auto_eoi)
		pic->priority_add = (input + 1) & 7;
	tell_acked(chip, which, input);
}

int pic_acknowledge(struct irqchip *chip)
{
	int input, slave, vector;

	lock_take(&chip->lock);
	input = requesting(chip, 0);
	if (input < 0) {
		vector = chip->pics[0].irq_base + 7; // spurious
	} else if (input == CASCADE) {
		acknowledge(chip, 0, CASCADE);
		slave = requesting(chip, 1);
		if (slave >= 0)
			acknowledge(chip, 1, slave);
		vector = chip->pics[1].irq_base + (slave < 0 ? 7 : slave);
	} else {
		acknowledge(chip, 0, input);
		vector = chip->pics[0].irq_base + input;
	}
	update(chip);
	lock_release(&chip->lock);
	return vector;
}

static void end_of_interrupt(struct irqchip *chip, unsigned which, unsigned input, bool rotate)
{
	struct pic *pic = &chip->pics[which];
	bool was = pic->isr >> input & 1;

	pic->isr &= ~(1u << input);
	if (rotate)
		pic->priority_add = (input + 1) & 7;
	if (was)
		tell_acked(chip, which, input);
}

static void initialize(struct pic *pic, uint8_t icw1)
{
	pic->init4 = icw1 & 1;
	pic->last_irr = 0;
	pic->irr &= pic->elcr;
	pic->imr = 0;
	pic->isr = 0;
	pic->priority_add = 0;
	pic->special_mask = 0;
	pic->read_isr = 0;
	pic->rotate_on_auto_eoi = 0;
	if (!pic->init4) {
		pic->special_fully_nested = 0;
		pic->auto_eoi = 0;
	}
	pic->init_state = 1;
}

static void write_ocw2(struct irqchip *chip, unsigned which, uint8_t value)
{
	struct pic *pic = &chip->pics[which];
	unsigned command = value >> 5, priority;

	switch (command) {
	case 0: // clear, set: rotate in automatic EOI mode
	case 4:
		pic->rotate_on_auto_eoi = command >> 2;
		break;
	case 1: // non-specific EOI, with rotation
	case 5:
		priority = priority_of(pic, pic->isr);
		if (priority < 8)
			end_of_interrupt(chip, which, (priority + pic->priority_add) & 7, command == 5);
		break;
	case 3: // specific EOI, with rotation
	case 7:
		end_of_interrupt(chip, which, value & 7, command == 7);
		break;
	case 6:
		pic->priority_add = (value + 1) & 7;
		break;
	}
}

static void write_command(struct irqchip *chip, unsigned which, uint8_t value)
{
	struct pic *pic = &chip->pics[which];

	if (value & 0x10) {
		initialize(pic, value);
	} else if (value & 0x08) {
		if (value & 0x04)
			pic->poll = 1;
		if (value & 0x02)
			pic->read_isr = value & 1;
		if (value & 0x40)
			pic->special_mask = value >> 5 & 1;
	} else {
		write_ocw2(chip, which, value);
	}
}

static void write_data(struct pic *pic, uint8_t value)
{
	switch (pic->init_state) {
	case 0:
		pic->imr = value;
		break;
	case 1:
		pic->irq_base = value & 0xf8;
		pic->init_state = 2;
		break;
	case 2:
		pic->init_state = pic->init4 ? 3 : 0;
		break;
	case 3:
		pic->special_fully_nested = value >> 4 & 1;
		pic->auto_eoi = value >> 1 & 1;
		pic->init_state = 0;
		break;
	}
}

bool pic_owns_port(uint16_t port)
{
	return (port & ~1) == 0x20 || (port & ~1) == 0xa0 || (port & ~1) == 0x4d0;
}

uint8_t pic_port_read(struct irqchip *chip, uint16_t port)
{
	unsigned which = port >= 0x4d0 ? port & 1 : port >> 7;
	struct pic *pic = &chip->pics[which];
	uint8_t value;
	int input;

	lock_take(&chip->lock);
	if (port >= 0x4d0) {
		value = pic->elcr;
	} else if (pic->poll) {
		// The poll command makes the next read an INTA cycle.
		pic->poll = 0;
		input = requesting(chip, which);
		value = input < 0 ? 0 : 0x80 | input;
		if (input >= 0)
			acknowledge(chip, which, input);
		update(chip);
	} else if (port & 1) {
		value = pic->imr;
	} else {
		value = pic->read_isr ? pic->isr : pic->irr;
	}
	lock_release(&chip->lock);
	return value;
}

void pic_port_write(struct irqchip *chip, uint16_t port, uint8_t value)
{
	unsigned which = port >= 0x4d0 ? port & 1 : port >> 7;
	struct pic *pic = &chip->pics[which];

	lock_take(&chip->lock);
	if (port >= 0x4d0)
		pic->elcr = value & elcr_mask[which];
	else if (port & 1)
		write_data(pic, value);
	else
		write_command(chip, which, value);
	update(chip);
	lock_release(&chip->lock);
}

void pic_get_state(struct irqchip *chip, unsigned which, void *state)
{
	struct kvm_pic_state *s = state;
	const struct pic *pic = &chip->pics[which];

	lock_take(&chip->lock);
	*s = (struct kvm_pic_state){
		.last_irr = pic->last_irr, .irr = pic->irr, .imr = pic->imr, .isr = pic->isr,
		.priority_add = pic->priority_add, .irq_base = pic->irq_base,
		.read_reg_select = pic->read_isr, .poll = pic->poll, .special_mask = pic->special_mask,
		.init_state = pic->init_state, .auto_eoi = pic->auto_eoi,
		.rotate_on_auto_eoi = pic->rotate_on_auto_eoi,
		.special_fully_nested_mode = pic->special_fully_nested, .init4 = pic->init4,
		.elcr = pic->elcr, .elcr_mask = elcr_mask[which],
	};
	lock_release(&chip->lock);
}

void pic_set_state(struct irqchip *chip, unsigned which, const void *state)
{
	const struct kvm_pic_state *s = state;

	lock_take(&chip->lock);
	chip->pics[which] = (struct pic){
		.last_irr = s->last_irr, .irr = s->irr, .imr = s->imr, .isr = s->isr,
		.priority_add = s->priority_add & 7, .irq_base = s->irq_base & 0xf8,
		.read_isr = s->read_reg_select & 1, .poll = s->poll & 1,
		.special_mask = s->special_mask & 1, .init_state = s->init_state & 3,
		.auto_eoi = s->auto_eoi & 1, .rotate_on_auto_eoi = s->rotate_on_auto_eoi & 1,
		.special_fully_nested = s->special_fully_nested_mode & 1, .init4 = s->init4 & 1,
		.elcr = s->elcr & elcr_mask[which],
	};
	update(chip);
	lock_release(&chip->lock);
}
