// SPDX-License-Identifier: MIT
// Global system interrupts: the routing table from GSIs to controller pins and MSIs.
// api.rst: KVM_SET_GSI_ROUTING, KVM_IRQ_LINE, KVM_CREATE_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP.
//
// The table is replaced whole. vCPUs read it when a device inside (8254) or an EOI needs it; other
// threads read it too (irqfd, KVM_IRQ_LINE) and are not waited for, so old tables are kept until the
// machine ends: clients replace them rarely.
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct routing {
	struct routing *older;
	unsigned count;
	struct kvm_irq_routing_entry entries[]; // sorted by GSI
};

static int compare(const void *a, const void *b)
{
	const struct kvm_irq_routing_entry *x = a, *y = b;

	return x->gsi < y->gsi ? -1 : x->gsi > y->gsi;
}

static int check_entry(struct vm *vm, const struct kvm_irq_routing_entry *e)
{
	if (e->gsi >= MAX_GSI)
		return -EINVAL;
	switch (e->type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		if (e->flags || vm->split)
			return -EINVAL;
		if (e->u.irqchip.irqchip <= KVM_IRQCHIP_PIC_SLAVE)
			return e->u.irqchip.pin < 8 ? 0 : -EINVAL;
		if (e->u.irqchip.irqchip != KVM_IRQCHIP_IOAPIC || e->u.irqchip.pin >= IOAPIC_PINS)
			return -EINVAL;
		return 0;
	case KVM_IRQ_ROUTING_MSI:
		if (e->flags & ~(u32)KVM_MSI_VALID_DEVID)
			return -EINVAL;
		if ((vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS) && (e->u.msi.address_hi & 0xff))
			return -EINVAL;
		return 0;
	}
	return -EINVAL;
}

// Which EOIs user space must hear of, with its own I/O APIC: those of level-triggered routes.
static void update_eoi_bitmaps(struct vm *vm, const struct routing *routing)
{
	u64 bitmap[4] = { 0 };

	if (!vm->split)
		return;
	for (unsigned i = 0; i < routing->count; i++) {
		const struct kvm_irq_routing_entry *e = &routing->entries[i];
		u8 vector = e->u.msi.data & 0xff;

		if (e->type == KVM_IRQ_ROUTING_MSI && e->gsi < vm->split_pins && (e->u.msi.data & 1 << 15))
			bitmap[vector / 64] |= 1ull << vector % 64;
	}
	for (unsigned n = 0; n < vm_vcpu_count(vm); n++)
		for (unsigned i = 0; i < 4; i++)
			__atomic_store_n(&vm_vcpu(vm, n)->lapic->eoi_exit_bitmap[i], bitmap[i],
					 __ATOMIC_RELAXED);
}

// vm->lock held.
static int set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned count)
{
	struct routing *new;

	for (unsigned i = 0; i < count; i++) {
		int result = check_entry(vm, &entries[i]);

		if (result)
			return result;
		// A GSI has one MSI, or one pin of each controller.
		for (unsigned j = 0; j < i; j++) {
			const struct kvm_irq_routing_entry *a = &entries[i], *b = &entries[j];

			if (a->gsi == b->gsi &&
			    (a->type != KVM_IRQ_ROUTING_IRQCHIP || b->type != KVM_IRQ_ROUTING_IRQCHIP ||
			     a->u.irqchip.irqchip == b->u.irqchip.irqchip))
				return -EINVAL;
		}
	}
	new = malloc(sizeof(*new) + count * sizeof(*entries));
	if (!new)
		return -ENOMEM;
	if (count)
		memcpy(new->entries, entries, count * sizeof(*entries));
	new->count = count;
	new->older = vm->routing;
	qsort(new->entries, count, sizeof(*entries), compare);
	__atomic_store_n(&vm->routing, new, __ATOMIC_RELEASE);
	update_eoi_bitmaps(vm, new);
	return 0;
}

int irq_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned count)
{
	int result;

	lock_take(&vm->lock);
	result = vm->chip ? set_routing(vm, entries, count) : -EINVAL;
	lock_release(&vm->lock);
	return result;
}

static int set_pin(struct vm *vm, const struct kvm_irq_routing_entry *e, unsigned source, bool level)
{
	switch (e->type == KVM_IRQ_ROUTING_MSI ? -1 : (int)e->u.irqchip.irqchip) {
	case -1:
		if (!level)
			return -1;
		return apic_send_msi(vm->chip, e->u.msi.address_lo | (u64)e->u.msi.address_hi << 32,
				     e->u.msi.data, vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS);
	case KVM_IRQCHIP_IOAPIC:
		return ioapic_set_irq(vm->chip, e->u.irqchip.pin, source, level);
	}
	return pic_set_irq(vm->chip, e->u.irqchip.irqchip * 8 + e->u.irqchip.pin, source, level);
}

int irq_set_gsi(struct vm *vm, u32 gsi, unsigned source, bool level)
{
	const struct routing *routing = __atomic_load_n(&vm->routing, __ATOMIC_ACQUIRE);
	unsigned low = 0, high = routing ? routing->count : 0;
	int result = -1;

	vm_code_client_wrote(vm->code); // what the device transferred may be code
	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (routing->entries[middle].gsi < gsi)
			low = middle + 1;
		else
			high = middle;
	}
	for (; routing && low < routing->count && routing->entries[low].gsi == gsi; low++) {
		int n = set_pin(vm, &routing->entries[low], source, level);

		if (n >= 0)
			result = result < 0 ? n : result + n;
	}
	return result;
}

// ---- what the controllers tell us ----
static u64 chip_now(void *vm)
{
	return clock_now();
}

static int chip_pit_irq(void *vm, bool level)
{
	return irq_set_gsi(vm, 0, IRQ_SOURCE_PIT, level);
}

static bool routes_to(struct vm *vm, u32 gsi, unsigned chip, unsigned pin)
{
	const struct routing *routing = __atomic_load_n(&vm->routing, __ATOMIC_ACQUIRE);

	for (unsigned i = 0; routing && i < routing->count; i++) {
		const struct kvm_irq_routing_entry *e = &routing->entries[i];

		if (e->gsi == gsi && e->type == KVM_IRQ_ROUTING_IRQCHIP &&
		    e->u.irqchip.irqchip == chip && e->u.irqchip.pin == pin)
			return true;
	}
	return false;
}

static void chip_acked(void *opaque, unsigned chip, unsigned pin)
{
	struct vm *vm = opaque;

	if (vm->chip->pit.present && routes_to(vm, 0, chip, pin))
		pit_acked(vm->chip);
	irqfd_acked(vm, chip, pin);
}

static void chip_eoi_exit(void *opaque, uint8_t vector)
{
	struct vcpu *vcpu = opaque;

	vcpu->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
	vcpu->run->eoi.vector = vector;
	vcpu->exit_to_user = true;
	cpu_request(vcpu->cpu, REQ_KICK);
}

const struct irqchip_ops irq_chip_ops = {
	.now = chip_now,
	.tsc_to_time = clock_tsc_to_time,
	.wake = vcpu_wake,
	.lapic_timer = timer_set_vcpu,
	.pit_timer = timer_set_pit,
	.pit_irq = chip_pit_irq,
	.acked = chip_acked,
	.eoi_exit = chip_eoi_exit,
};

// ---- life ----
int irq_create_chip(struct vm *vm, bool split, unsigned pins)
{
	struct kvm_irq_routing_entry entries[40];
	unsigned n = 0;
	struct irqchip *chip;
	int result;

	memset(entries, 0, sizeof(entries));
	// 24 pins of the I/O APIC, of which the first 16 also lead to the 8259s.
	for (unsigned gsi = 0; gsi < IOAPIC_PINS; gsi++) {
		entries[n].gsi = gsi;
		entries[n].type = KVM_IRQ_ROUTING_IRQCHIP;
		entries[n].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
		entries[n++].u.irqchip.pin = gsi;
		if (gsi >= 16)
			continue;
		entries[n].gsi = gsi;
		entries[n].type = KVM_IRQ_ROUTING_IRQCHIP;
		entries[n].u.irqchip.irqchip = gsi / 8;
		entries[n++].u.irqchip.pin = gsi % 8;
	}
	lock_take(&vm->lock);
	result = -EEXIST;
	if (vm->chip)
		goto out;
	result = split ? -EEXIST : -EINVAL;
	if (vm->vcpu_count)
		goto out;
	result = -ENOMEM;
	chip = irqchip_create(&irq_chip_ops, vm, MAX_VCPUS, !split);
	if (!chip)
		goto out;
	chip->x2apic_broadcast_quirk_off = vm->x2apic_api & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
	vm->split = split;
	vm->split_pins = pins;
	result = set_routing(vm, entries, split ? 0 : n);
	if (result)
		irqchip_destroy(chip);
	else
		__atomic_store_n(&vm->chip, chip, __ATOMIC_RELEASE);
out:
	lock_release(&vm->lock);
	return result;
}

void irq_destroy(struct vm *vm)
{
	for (struct routing *r = vm->routing, *older; r; r = older) {
		older = r->older;
		free(r);
	}
	irqchip_destroy(vm->chip);
}
