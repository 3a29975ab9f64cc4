// SPDX-License-Identifier: MIT
// Guest writes that end in the kernel: ioeventfds and coalesced zones.
// api.rst: KVM_IOEVENTFD, KVM_REGISTER_COALESCED_MMIO.
//
// The list is replaced whole, like the memory map, and read without a lock by vCPUs.
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum bus { BUS_MMIO, BUS_PIO, BUS_CCW }; // nothing writes to the last one here

struct ioeventfd {
	u64 address, datamatch;
	u32 length; // 0: any
	enum bus bus;
	bool match;
	int fd; // our own descriptor, one for each eventfd
	long id; // of the eventfd, whatever its number
};

struct zone {
	u64 address, size;
	bool pio;
};

struct io_bus {
	unsigned event_count, zone_count;
	struct ioeventfd *events; // sorted by bus and address
	struct zone *zones;
};

#define MAX_ZONES 1000
#define COALESCED_MAX ((PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

static struct io_bus *bus_copy(const struct io_bus *old, unsigned events, unsigned zones)
{
	struct io_bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return NULL;
	bus->events = calloc(events + 1, sizeof(*bus->events));
	bus->zones = calloc(zones + 1, sizeof(*bus->zones));
	if (!bus->events || !bus->zones) {
		free(bus->events);
		free(bus->zones);
		free(bus);
		return NULL;
	}
	if (old) {
		memcpy(bus->events, old->events, old->event_count * sizeof(*bus->events));
		memcpy(bus->zones, old->zones, old->zone_count * sizeof(*bus->zones));
		bus->event_count = old->event_count;
		bus->zone_count = old->zone_count;
	}
	return bus;
}

static void bus_free(struct io_bus *bus)
{
	if (!bus)
		return;
	free(bus->events);
	free(bus->zones);
	free(bus);
}

static void publish(struct vm *vm, struct io_bus *bus)
{
	struct io_bus *old = vm->bus;

	__atomic_store_n(&vm->bus, bus, __ATOMIC_SEQ_CST);
	vm_synchronize(vm);
	bus_free(old);
}

static bool before(const struct ioeventfd *a, const struct ioeventfd *b)
{
	return a->bus != b->bus ? a->bus < b->bus : a->address < b->address;
}

static bool collides(const struct ioeventfd *a, const struct ioeventfd *b)
{
	return a->bus == b->bus && a->address == b->address &&
	       (!a->length || !b->length ||
		(a->length == b->length && (!a->match || !b->match || a->datamatch == b->datamatch)));
}

// Our descriptor of the eventfd, or -1: there is none yet.
static int event_fd(const struct io_bus *bus, long id)
{
	for (unsigned i = 0; bus && i < bus->event_count; i++)
		if (bus->events[i].id == id)
			return bus->events[i].fd;
	return -1;
}

static int event_add(struct vm *vm, struct ioeventfd *new)
{
	unsigned events = vm->bus ? vm->bus->event_count : 0, at = 0;
	int shared = event_fd(vm->bus, new->id);
	struct io_bus *bus;

	for (unsigned i = 0; i < events; i++) {
		if (collides(&vm->bus->events[i], new))
			return -EEXIST;
		if (before(&vm->bus->events[i], new))
			at = i + 1;
	}
	new->fd = shared >= 0 ? shared : fcntl(new->fd, F_DUPFD_CLOEXEC, 512);
	if (new->fd < 0)
		return -errno;
	bus = bus_copy(vm->bus, events + 1, vm->bus ? vm->bus->zone_count : 0);
	if (!bus) {
		if (shared < 0)
			close(new->fd);
		return -ENOMEM;
	}
	memmove(&bus->events[at + 1], &bus->events[at], (events - at) * sizeof(*bus->events));
	bus->events[at] = *new;
	bus->event_count++;
	publish(vm, bus);
	return 0;
}

static int event_remove(struct vm *vm, const struct ioeventfd *which)
{
	unsigned events = vm->bus ? vm->bus->event_count : 0;
	struct io_bus *bus;

	for (unsigned i = 0; i < events; i++) {
		const struct ioeventfd *e = &vm->bus->events[i];
		int fd = e->fd;

		if (e->id != which->id || e->bus != which->bus || e->address != which->address ||
		    e->length != which->length || e->match != which->match ||
		    (e->match && e->datamatch != which->datamatch))
			continue;
		bus = bus_copy(vm->bus, events, vm->bus->zone_count);
		if (!bus)
			return -ENOMEM;
		bus->event_count--;
		memmove(&bus->events[i], &bus->events[i + 1], (events - i - 1) * sizeof(*bus->events));
		publish(vm, bus);
		if (event_fd(bus, which->id) < 0)
			close(fd);
		return 0;
	}
	return -ENOENT;
}

int ioeventfd_set(struct vm *vm, const struct kvm_ioeventfd *args)
{
	struct ioeventfd event = { .address = args->addr, .datamatch = args->datamatch, .length = args->len,
		.bus = args->flags & KVM_IOEVENTFD_FLAG_PIO ? BUS_PIO :
		       args->flags & KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY ? BUS_CCW : BUS_MMIO,
		.match = args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH, .fd = args->fd };
	bool remove = args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
	int result;

	if (!remove) {
		if (args->len > 8 || (args->len & (args->len - 1)) || args->addr + args->len < args->addr)
			return -EINVAL;
		if ((args->flags & ~KVM_IOEVENTFD_VALID_FLAG_MASK) || (!args->len && event.match))
			return -EINVAL;
	}
	event.id = eventfd_identity(args->fd);
	if (event.id < 0)
		return (int)event.id;
	lock_take(&vm->slots_lock);
	result = remove ? event_remove(vm, &event) : event_add(vm, &event);
	lock_release(&vm->slots_lock);
	return result;
}

static bool inside(const struct zone *zone, u64 address, u64 size)
{
	u64 offset = address - zone->address;

	return address >= zone->address && offset <= zone->size && size <= zone->size - offset;
}

int coalesced_zone_set(struct vm *vm, const struct kvm_coalesced_mmio_zone *args, bool add)
{
	struct io_bus *bus;
	unsigned n = 0;

	if (args->pio > 1)
		return -EINVAL;
	lock_take(&vm->slots_lock);
	if (add && vm->bus && vm->bus->zone_count >= MAX_ZONES) {
		lock_release(&vm->slots_lock);
		return -ENOSPC;
	}
	bus = bus_copy(vm->bus, vm->bus ? vm->bus->event_count : 0, vm->bus ? vm->bus->zone_count + 1 : 1);
	if (!bus) {
		lock_release(&vm->slots_lock);
		return -ENOMEM;
	}
	if (add) {
		bus->zones[bus->zone_count++] = (struct zone){ args->addr, args->size, args->pio };
	} else {
		for (unsigned i = 0; i < bus->zone_count; i++) {
			struct zone *z = &bus->zones[i];

			if (z->pio != args->pio || !inside(z, args->addr, args->size))
				bus->zones[n++] = *z;
		}
		bus->zone_count = n;
	}
	publish(vm, bus);
	lock_release(&vm->slots_lock);
	return 0;
}

static bool coalesce(struct vm *vm, bool pio, u64 address, unsigned length, const void *data)
{
	struct kvm_coalesced_mmio_ring *ring = vm->ring;
	u32 last, first;
	bool room;

	lock_take(&vm->ring_lock);
	last = ring->last % COALESCED_MAX; // the client can write it too
	first = __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE);
	room = (last + 1) % COALESCED_MAX != first;
	if (room) {
		struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[last];

		entry->phys_addr = address;
		entry->len = length;
		entry->pio = pio;
		memcpy(entry->data, data, length);
		__atomic_store_n(&ring->last, (last + 1) % (u32)COALESCED_MAX, __ATOMIC_RELEASE);
	}
	lock_release(&vm->ring_lock);
	return room;
}

static unsigned first_event(const struct io_bus *bus, const struct ioeventfd *key)
{
	unsigned low = 0, high = bus->event_count;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (before(&bus->events[middle], key))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool bus_write(struct vm *vm, bool pio, u64 address, unsigned length, const void *data)
{
	const struct io_bus *bus = __atomic_load_n(&vm->bus, __ATOMIC_ACQUIRE);
	struct ioeventfd key = { .bus = pio ? BUS_PIO : BUS_MMIO, .address = address };
	u64 value = 0, one = 1;

	if (!bus || length > 8)
		return false;
	memcpy(&value, data, length);
	for (unsigned i = first_event(bus, &key); i < bus->event_count && !before(&key, &bus->events[i]); i++) {
		const struct ioeventfd *e = &bus->events[i];

		// More to match than the access is wide: never.
		if ((e->length && e->length != length) || (e->match && e->datamatch != value))
			continue;
		raw_write(e->fd, &one, sizeof(one));
		return true;
	}
	for (unsigned i = 0; i < bus->zone_count; i++) {
		const struct zone *z = &bus->zones[i];

		if (z->pio == pio && inside(z, address, length))
			return coalesce(vm, pio, address, length, data);
	}
	return false;
}

void bus_destroy(struct vm *vm)
{
	for (unsigned i = 0; vm->bus && i < vm->bus->event_count; i++) {
		bool again = false; // one descriptor may serve several

		for (unsigned j = 0; j < i; j++)
			again |= vm->bus->events[j].fd == vm->bus->events[i].fd;
		if (!again)
			close(vm->bus->events[i].fd);
	}
	bus_free(vm->bus);
}
