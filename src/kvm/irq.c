// SPDX-License-Identifier: MIT
// Global system interrupts: the routing table from GSIs to controller pins and MSIs.
// api.rst: KVM_SET_GSI_ROUTING, KVM_IRQ_LINE, KVM_CREATE_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP.
//
// The table is replaced whole. vCPUs read it when a device inside (8254) or an EOI needs it; other
// threads read it too (irqfd, KVM_IRQ_LINE). Nobody waits for a reader: readers are counted, and who
// replaces a table frees the old ones if there is none at that moment, or leaves them to the next.
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct routing {
	struct routing *older;
	unsigned count;
	struct kvm_irq_routing_entry entries[]; // sorted by GSI
};

static const struct routing *routing_get(struct vm *vm)
{
	__atomic_fetch_add(&vm->routing_readers, 1, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&vm->routing, __ATOMIC_SEQ_CST);
}

static void routing_put(struct vm *vm)
{
	__atomic_fetch_sub(&vm->routing_readers, 1, __ATOMIC_SEQ_CST);
}

// vm->lock held.
static void routing_replace(struct vm *vm, struct routing *new)
{
	struct routing *old = vm->routing;

	new->older = old;
	__atomic_store_n(&vm->routing, new, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&vm->routing_readers, __ATOMIC_SEQ_CST))
		return;
	new->older = NULL;
	while (old) {
		struct routing *next = old->older;

		free(old);
		old = next;
	}
}

static int compare(const void *a, const void *b)
{
	const struct kvm_irq_routing_entry *x = a, *y = b;

	return x->gsi < y->gsi ? -1 : x->gsi > y->gsi;
}

bool irq_msi_valid(const struct vm *vm, u32 address_hi)
{
	return !(vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS) || !(address_hi & 0xff);
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
		return irq_msi_valid(vm, e->u.msi.address_hi) ? 0 : -EINVAL;
	}
	return -EINVAL;
}

// Which EOIs user space must hear of, with its own I/O APIC: those of level-triggered routes. (A local
// APIC looks at its TMR, too: the same vector may be an edge-triggered one elsewhere.) What is on its
// way to the guest keeps its bit.
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
	memcpy(vm->eoi_bitmap, bitmap, sizeof(bitmap));
	for (unsigned n = 0; n < vm_vcpu_count(vm); n++)
		lapic_set_eoi_exits(vm_vcpu(vm, n)->lapic, bitmap);
}

void irq_vcpu_created(struct vcpu *vcpu)
{
	if (vcpu->lapic && vcpu->vm->split)
		lapic_set_eoi_exits(vcpu->lapic, vcpu->vm->eoi_bitmap);
}

// A GSI has one MSI, or one pin of each controller.
static bool unambiguous(const struct routing *routing)
{
	for (unsigned i = 1; i < routing->count; i++) {
		for (unsigned j = i; j-- && routing->entries[j].gsi == routing->entries[i].gsi;) {
			const struct kvm_irq_routing_entry *a = &routing->entries[i], *b = &routing->entries[j];

			if (a->type != KVM_IRQ_ROUTING_IRQCHIP || b->type != KVM_IRQ_ROUTING_IRQCHIP ||
			    a->u.irqchip.irqchip == b->u.irqchip.irqchip)
				return false;
		}
	}
	return true;
}

// vm->lock held.
static int set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned count)
{
	struct routing *new;

	for (unsigned i = 0; i < count; i++) {
		int result = check_entry(vm, &entries[i]);

		if (result)
			return result;
	}
	new = malloc(sizeof(*new) + count * sizeof(*entries));
	if (!new)
		return -ENOMEM;
	if (count)
		memcpy(new->entries, entries, count * sizeof(*entries));
	new->count = count;
	qsort(new->entries, count, sizeof(*entries), compare);
	if (!unambiguous(new)) {
		free(new);
		return -EINVAL;
	}
	update_eoi_bitmaps(vm, new);
	routing_replace(vm, new);
	return 0;
}

int irq_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned count)
{
	int result;

	lock_take(&vm->lock);
	result = vm->chip ? set_routing(vm, entries, count) : -EINVAL;
	lock_release(&vm->lock);
	if (!result)
		irqfd_routing_changed(vm);
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

// Index of the first entry of `gsi`, or of where it would be.
static unsigned first_entry(const struct routing *routing, u32 gsi)
{
	unsigned low = 0, high = routing ? routing->count : 0;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (routing->entries[middle].gsi < gsi)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int irq_set_gsi(struct vm *vm, u32 gsi, unsigned source, bool level)
{
	const struct routing *routing = routing_get(vm);
	int result = -1;

	vm_code_client_wrote(vm->code); // what the device transferred may be code
	for (unsigned i = first_entry(routing, gsi); routing && i < routing->count && routing->entries[i].gsi == gsi;
	     i++) {
		int n = set_pin(vm, &routing->entries[i], source, level);

		if (n >= 0)
			result = result < 0 ? n : result + n;
	}
	routing_put(vm);
	return result;
}

int irq_pin_of_gsi(struct vm *vm, u32 gsi, unsigned chip)
{
	const struct routing *routing = routing_get(vm);
	int pin = -1;

	for (unsigned i = first_entry(routing, gsi); routing && i < routing->count && routing->entries[i].gsi == gsi;
	     i++) {
		const struct kvm_irq_routing_entry *e = &routing->entries[i];

		if (e->type == KVM_IRQ_ROUTING_IRQCHIP && e->u.irqchip.irqchip == chip)
			pin = (int)e->u.irqchip.pin;
	}
	routing_put(vm);
	return pin;
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

static void chip_acked(void *opaque, unsigned chip, unsigned pin)
{
	struct vm *vm = opaque;

	if (__atomic_load_n(&vm->chip->pit.present, __ATOMIC_ACQUIRE) && irq_pin_of_gsi(vm, 0, chip) == (int)pin)
		pit_acked(vm->chip);
	irqfd_acked(vm, chip, pin);
}

static void chip_eoi_exit(void *opaque, uint8_t vector)
{
	struct vcpu *vcpu = opaque;

	vcpu->eoi_exits[vector / 64] |= 1ull << vector % 64;
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
	if (vm_vcpu_count(vm))
		goto out;
	result = -ENOMEM;
	chip = irqchip_create(&irq_chip_ops, vm, MAX_VCPUS, !split);
	if (!chip)
		goto out;
	capability_apply_to_chip(vm, chip);
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

int irq_set_bus_cycle(struct vm *vm, u64 ns)
{
	u64 longest; // the longest time a timer can be set to, in ns
	int result = 0;

	if (!ns || __builtin_mul_overflow(0xffffffffull * 128, ns, &longest))
		return -EINVAL;
	lock_take(&vm->lock);
	if (!vm->chip)
		result = -ENXIO;
	else if (vm->vcpu_count)
		result = -EINVAL;
	else
		vm->chip->bus_cycle_ns = ns;
	lock_release(&vm->lock);
	return result;
}

u64 irq_bus_cycle(struct vm *vm)
{
	u64 ns = APIC_BUS_CYCLE_NS;

	if (!vm)
		return ns;
	lock_take(&vm->lock);
	if (vm->chip)
		ns = vm->chip->bus_cycle_ns;
	lock_release(&vm->lock);
	return ns;
}

void irq_destroy(struct vm *vm)
{
	for (struct routing *r = vm->routing, *older; r; r = older) {
		older = r->older;
		free(r);
	}
	irqchip_destroy(vm->chip);
}
