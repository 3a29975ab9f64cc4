// SPDX-License-Identifier: MIT
// Creation and end of a virtual machine's interrupt controllers.
#include "irqchip/irqchip.h"

#include <stdlib.h>

struct irqchip *irqchip_create(const struct irqchip_ops *ops, void *vm, unsigned max_lapics,
			       bool pic_and_ioapic)
{
	struct irqchip *chip = calloc(1, sizeof(*chip));

	if (!chip)
		return NULL;
	chip->lapics = calloc(max_lapics, sizeof(*chip->lapics));
	if (!chip->lapics) {
		free(chip);
		return NULL;
	}
	chip->ops = ops;
	chip->vm = vm;
	chip->pic_and_ioapic = pic_and_ioapic;
	chip->bus_cycle_ns = APIC_BUS_CYCLE_NS;
	chip->ioapic.base = IOAPIC_BASE;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		chip->ioapic.redirection[i] = 1u << 16; // masked
	return chip;
}

void irqchip_destroy(struct irqchip *chip)
{
	if (!chip)
		return;
	free(chip->lapics);
	free(chip);
}
