// SPDX-License-Identifier: MIT
// Slots of guest-physical memory and the client's addresses behind them.
// api.rst: KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2.
//
// A slot is an immutable value in the map (memory_map.c); its dirty bitmap is shared by the slots
// that succeed one another under the same number.
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PAGES ((1ull << 31) - 1)
#define USER_ADDRESS_END 0x7ffffffff000ull
#define VALID_FLAGS (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)

static unsigned slot_space(u32 slot) { return slot >> 16; }
static u32 slot_id(u32 slot) { return slot & 0xffff; }

// ---- by number ----
// gfn_of_id[space][id] is the slot's first page + 1, 0 for none. slots_lock held.
const struct memslot *memslot_find(struct vm *vm, u32 slot, int *error)
{
	unsigned space = slot_space(slot);
	u32 id = slot_id(slot);

	*error = -EINVAL;
	if (space >= ADDRESS_SPACES || id >= MAX_MEMSLOTS)
		return NULL;
	*error = -ENOENT;
	if (id >= vm->id_room[space] || !vm->gfn_of_id[space][id])
		return NULL;
	return memory_map_find(vm->maps[space], vm->gfn_of_id[space][id] - 1);
}

static int make_room(struct vm *vm, unsigned space, u32 id)
{
	u32 old = vm->id_room[space], room = old ? old : 64;
	u64 *table;

	while (room <= id)
		room *= 2;
	if (room == old)
		return 0;
	table = realloc(vm->gfn_of_id[space], room * sizeof(*table));
	if (!table)
		return -ENOMEM;
	memset(table + old, 0, (room - old) * sizeof(*table));
	vm->gfn_of_id[space] = table;
	vm->id_room[space] = room;
	return 0;
}

// ---- changes ----
static int publish(struct vm *vm, enum address_space space, const struct memslot *old_slot, const struct memslot *new)
{
	struct memory_map *old = vm->maps[space], *map = memory_map_replace(old, old_slot, new);
	u32 id = new ? new->id : old_slot->id;
	// Addresses that meant memory mean something else.
	bool moved = old_slot && (!new || new->gfn != old_slot->gfn);

	if (!map)
		return -ENOMEM;
	vm->gfn_of_id[space][id] = new ? new->gfn + 1 : 0;
	__atomic_store_n(&vm->maps[space], map, __ATOMIC_SEQ_CST);
	if (moved)
		__atomic_fetch_add(&vm->map_changes, 1, __ATOMIC_SEQ_CST);
	vm_synchronize(vm);
	memory_map_free(old);
	return 0;
}

static int check_region(const struct kvm_userspace_memory_region *r)
{
	if (r->flags & ~VALID_FLAGS)
		return -EINVAL;
	if ((r->memory_size | r->guest_phys_addr | r->userspace_addr) & (PAGE_SIZE - 1))
		return -EINVAL;
	if (r->userspace_addr > USER_ADDRESS_END || r->memory_size > USER_ADDRESS_END - r->userspace_addr)
		return -EINVAL;
	if (slot_space(r->slot) >= ADDRESS_SPACES || slot_id(r->slot) >= MAX_MEMSLOTS || r->memory_size >> 12 > MAX_PAGES)
		return -EINVAL;
	if (r->guest_phys_addr + r->memory_size < r->guest_phys_addr)
		return -EINVAL;
	return 0;
}

static int give_bitmap(struct vm *vm, const struct memslot *old, struct memslot *new)
{
	bool set = (vm->manual_dirty_protect & KVM_DIRTY_LOG_INITIALLY_SET) && !vm->dirty_ring_size;

	if (!(new->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return 0;
	if (old && old->dirty) {
		new->dirty = old->dirty;
		new->dirty_words = old->dirty_words;
		return 0;
	}
	new->dirty_words = (new->pages + 63) / 64;
	new->dirty = malloc(new->dirty_words * 8);
	if (!new->dirty)
		return -ENOMEM;
	memset(new->dirty, set ? 0xff : 0, new->dirty_words * 8);
	return 0;
}

static int create_or_change(struct vm *vm, const struct memslot *old, struct memslot *new)
{
	int result;

	if (old && (old->hva != new->hva || old->pages != new->pages || ((old->flags ^ new->flags) & KVM_MEM_READONLY)))
		return -EINVAL;
	if (old && old->gfn == new->gfn && old->flags == new->flags)
		return 0;
	if ((!old || old->gfn != new->gfn) && memory_map_overlaps(vm->maps[new->space], new->id, new->gfn, new->pages))
		return -EEXIST;
	if ((new->gfn + new->pages - 1) >> (GUEST_PHYS_BITS_MAX - 12))
		return -EINVAL;
	result = make_room(vm, new->space, new->id);
	if (!result)
		result = give_bitmap(vm, old, new);
	if (!result)
		result = publish(vm, new->space, old, new);
	return result;
}

int memslot_set(struct vm *vm, const struct kvm_userspace_memory_region *r)
{
	struct memslot new = { .gfn = r->guest_phys_addr >> 12, .pages = r->memory_size >> 12,
		.hva = r->userspace_addr, .id = slot_id(r->slot), .space = slot_space(r->slot), .flags = r->flags };
	const struct memslot *old;
	u64 *old_bitmap, *unused = NULL;
	int result = check_region(r), error;

	if (result)
		return result;
	lock_take(&vm->slots_lock);
	old = memslot_find(vm, r->slot, &error);
	old_bitmap = old ? old->dirty : NULL; // the slot itself goes with its map
	if (new.pages)
		result = create_or_change(vm, old, &new);
	else
		result = old ? publish(vm, new.space, old, NULL) : -EINVAL;
	// What is in use now? Nothing changed if it failed, or if it was there already.
	old = memslot_find(vm, r->slot, &error);
	if (old_bitmap && (!old || old->dirty != old_bitmap))
		unused = old_bitmap;
	else if (new.dirty && new.dirty != old_bitmap && (!old || old->dirty != new.dirty))
		unused = new.dirty;
	lock_release(&vm->slots_lock);
	free(unused);
	return result;
}

static void free_bitmap(const struct memslot *slot)
{
	free(slot->dirty);
}

void memory_map_destroy(struct vm *vm)
{
	for (unsigned space = 0; space < ADDRESS_SPACES; space++) {
		memory_map_each(vm->maps[space], free_bitmap);
		memory_map_free(vm->maps[space]);
		free(vm->gfn_of_id[space]);
	}
}
