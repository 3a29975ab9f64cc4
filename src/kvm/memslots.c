// SPDX-License-Identifier: MIT
// The memory map: slots of guest-physical memory and the client's addresses behind them.
// api.rst: KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG.
//
// A map never changes: a new one takes its place. vm_synchronize() then waits until no vCPU can be
// using the old one, which is as long as a vCPU takes to its next instruction boundary (block entry),
// never until it returns to user space. The handshake with a vCPU:
//   vCPU:    in_guest = 1; look at vm->sync_generation, flush if it is new
//   updater: publish; sync_generation++; for each vCPU that is in_guest: REQ_TIMER, and wait until
//            it has caught up or left
// Both sides are sequentially consistent, so at least one sees the other.
#include "cpu/mem.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PAGES ((1ull << 31) - 1)
#define USER_ADDRESS_END 0x7ffffffff000ull
#define VALID_FLAGS (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)

// ---- the handshake ----
void vcpu_synchronize(struct vcpu *vcpu)
{
	u64 generation = __atomic_load_n(&vcpu->vm->sync_generation, __ATOMIC_SEQ_CST);

	if (vcpu->synchronized == generation)
		return;
	tlb_flush_all(vcpu->cpu);
	if (vcpu->map_seen != __atomic_load_n(&vcpu->vm->map_changes, __ATOMIC_SEQ_CST)) {
		vcpu->map_seen = __atomic_load_n(&vcpu->vm->map_changes, __ATOMIC_SEQ_CST);
		cpu_memory_map_changed(vcpu->cpu);
	}
	__atomic_store_n(&vcpu->synchronized, generation, __ATOMIC_SEQ_CST);
}

void vcpu_enter_guest(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->in_guest, 1, __ATOMIC_SEQ_CST);
	vcpu_synchronize(vcpu);
}

void vcpu_leave_guest(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->in_guest, 0, __ATOMIC_SEQ_CST);
}

void vm_synchronize(struct vm *vm)
{
	u64 generation = __atomic_add_fetch(&vm->sync_generation, 1, __ATOMIC_SEQ_CST);

	for (unsigned i = 0; i < vm_vcpu_count(vm); i++)
		if (__atomic_load_n(&vm_vcpu(vm, i)->in_guest, __ATOMIC_SEQ_CST))
			cpu_request(vm_vcpu(vm, i)->cpu, REQ_TIMER);
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		struct vcpu *vcpu = vm_vcpu(vm, i);

		for (unsigned n = 0; __atomic_load_n(&vcpu->in_guest, __ATOMIC_SEQ_CST) &&
				     __atomic_load_n(&vcpu->synchronized, __ATOMIC_SEQ_CST) < generation; n++) {
			if (n < 50)
				__builtin_ia32_pause();
			else
				sched_yield();
		}
	}
}

// ---- look-up ----
static const struct memslot *find(const struct memory_map *map, u64 gfn, unsigned *hint)
{
	unsigned low = 0, high;

	if (!map)
		return NULL;
	if (*hint < map->count && gfn - map->slots[*hint].gfn < map->slots[*hint].pages)
		return &map->slots[*hint];
	for (high = map->count; low < high;) {
		unsigned middle = (low + high) / 2;
		const struct memslot *slot = &map->slots[middle];

		if (gfn < slot->gfn) {
			high = middle;
		} else if (gfn - slot->gfn >= slot->pages) {
			low = middle + 1;
		} else {
			*hint = middle;
			return slot;
		}
	}
	return NULL;
}

static const struct memslot *find_slot(struct vcpu *vcpu, enum address_space space, u64 gpa)
{
	return find(__atomic_load_n(&vcpu->vm->maps[space], __ATOMIC_ACQUIRE), gpa >> 12, &vcpu->slot_hint);
}

static enum address_space space_of(const struct vcpu *vcpu)
{
	return vcpu->cpu->smm ? SPACE_SMM : SPACE_NORMAL;
}

static void *map_page(struct vcpu *vcpu, enum address_space space, u64 gpa, unsigned *flags)
{
	const struct memslot *slot = find_slot(vcpu, space, gpa);

	if (!slot)
		return NULL;
	*flags = (slot->flags & KVM_MEM_READONLY ? PAGE_READONLY : 0) |
		 (slot->dirty ? PAGE_LOG_DIRTY : 0);
	return (void *)(slot->hva + (((gpa >> 12) - slot->gfn) << 12));
}

void *memory_ops_map(void *opaque, u64 gpa, unsigned *flags)
{
	return map_page(opaque, space_of(opaque), gpa, flags);
}

static void mark_dirty(struct vcpu *vcpu, enum address_space space, u64 gpa)
{
	const struct memslot *slot = find_slot(vcpu, space, gpa);
	u64 page;

	if (!slot || !slot->dirty)
		return;
	page = (gpa >> 12) - slot->gfn;
	__atomic_fetch_or(&slot->dirty[page / 64], 1ull << page % 64, __ATOMIC_SEQ_CST);
}

void memory_ops_mark_dirty(void *opaque, u64 gpa)
{
	mark_dirty(opaque, space_of(opaque), gpa);
}

// ---- our own accesses, by system call: client memory may be gone ----
static bool guest_copy(struct vcpu *vcpu, u64 gpa, u8 *data, unsigned size, bool write)
{
	static const long numbers[2] = { SYS_process_vm_readv, SYS_process_vm_writev };
	struct { void *base; size_t length; } local, remote;

	while (size) {
		unsigned n = PAGE_SIZE - (gpa & (PAGE_SIZE - 1)), flags = 0;
		u8 *page = map_page(vcpu, SPACE_NORMAL, gpa & ~(u64)(PAGE_SIZE - 1), &flags);
		long pid;

		if (n > size)
			n = size;
		if (!page || (write && (flags & PAGE_READONLY)))
			return false;
		pid = raw_syscall6(SYS_getpid, 0, 0, 0, 0, 0, 0);
		local.base = data;
		remote.base = page + (gpa & (PAGE_SIZE - 1));
		local.length = remote.length = n;
		if (raw_syscall6(numbers[write], pid, (long)&local, 1, (long)&remote, 1, 0) != (long)n)
			return false;
		if (write) {
			mark_dirty(vcpu, SPACE_NORMAL, gpa);
			jit_page_written(vcpu->cpu, gpa, n);
		}
		gpa += n;
		data += n;
		size -= n;
	}
	return true;
}

bool guest_write(struct vcpu *vcpu, u64 gpa, const void *data, unsigned size)
{
	return guest_copy(vcpu, gpa, (u8 *)data, size, true);
}

bool guest_read(struct vcpu *vcpu, u64 gpa, void *data, unsigned size)
{
	return guest_copy(vcpu, gpa, data, size, false);
}

// ---- changes ----
static struct memslot *find_id(struct memory_map *map, u32 id)
{
	for (unsigned i = 0; map && i < map->count; i++)
		if (map->slots[i].id == id)
			return &map->slots[i];
	return NULL;
}

static bool overlaps(const struct memory_map *map, u32 id, u64 gfn, u64 pages)
{
	for (unsigned i = 0; map && i < map->count; i++) {
		const struct memslot *slot = &map->slots[i];

		if (slot->id != id && gfn < slot->gfn + slot->pages && slot->gfn < gfn + pages)
			return true;
	}
	return false;
}

// A map with slot `id` replaced by `new` (NULL: without it).
static struct memory_map *replaced(const struct memory_map *old, u32 id, const struct memslot *new)
{
	unsigned count = old ? old->count : 0, n = 0;
	struct memory_map *map = malloc(sizeof(*map) + (count + 1) * sizeof(map->slots[0]));

	if (!map)
		return NULL;
	for (unsigned i = 0; i < count; i++) {
		if (old->slots[i].id == id)
			continue;
		if (new && new->gfn < old->slots[i].gfn) {
			map->slots[n++] = *new;
			new = NULL;
		}
		map->slots[n++] = old->slots[i];
	}
	if (new)
		map->slots[n++] = *new;
	map->count = n;
	return map;
}

static int publish(struct vm *vm, enum address_space space, u32 id, const struct memslot *new)
{
	struct memory_map *old = vm->maps[space], *map = replaced(old, id, new);

	if (!map)
		return -ENOMEM;
	__atomic_store_n(&vm->maps[space], map, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&vm->map_changes, 1, __ATOMIC_SEQ_CST);
	vm_synchronize(vm);
	free(old);
	return 0;
}

static unsigned slot_space(u32 slot) { return slot >> 16; }
static u32 slot_id(u32 slot) { return slot & 0xffff; }

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

int memslot_set(struct vm *vm, const struct kvm_userspace_memory_region *r)
{
	enum address_space space = slot_space(r->slot);
	struct memslot *old, new = { .gfn = r->guest_phys_addr >> 12, .pages = r->memory_size >> 12,
		.hva = r->userspace_addr, .id = slot_id(r->slot), .flags = r->flags };
	int result = check_region(r);
	u64 *unused = NULL;

	if (result)
		return result;
	lock_take(&vm->slots_lock);
	old = find_id(vm->maps[space], new.id);
	if (!new.pages) {
		result = -EINVAL;
		if (old) {
			unused = old->dirty;
			result = publish(vm, space, new.id, NULL);
		}
		goto out;
	}
	result = -EINVAL;
	if (old && (old->hva != new.hva || old->pages != new.pages ||
		    ((old->flags ^ new.flags) & KVM_MEM_READONLY)))
		goto out;
	if (old && old->gfn == new.gfn && old->flags == new.flags) {
		result = 0;
		goto out;
	}
	if ((new.gfn + new.pages - 1) >> (GUEST_PHYS_BITS_MAX - 12))
		goto out;
	result = -EEXIST;
	if (overlaps(vm->maps[space], new.id, new.gfn, new.pages))
		goto out;
	if (old && (old->flags & new.flags & KVM_MEM_LOG_DIRTY_PAGES)) {
		new.dirty = old->dirty;
		new.dirty_words = old->dirty_words;
	} else if (new.flags & KVM_MEM_LOG_DIRTY_PAGES) {
		new.dirty_words = (new.pages + 63) / 64;
		new.dirty = malloc(new.dirty_words * 8);
		result = -ENOMEM;
		if (!new.dirty)
			goto out;
		memset(new.dirty, vm->manual_dirty_protect & KVM_DIRTY_LOG_INITIALLY_SET ? 0xff : 0,
		       new.dirty_words * 8);
	}
	if (old && old->dirty != new.dirty)
		unused = old->dirty;
	result = publish(vm, space, new.id, &new);
	if (result) {
		if (!old || new.dirty != old->dirty)
			free(new.dirty);
		unused = NULL;
	}
out:
	lock_release(&vm->slots_lock);
	free(unused);
	return result;
}

void memory_map_destroy(struct vm *vm)
{
	for (unsigned space = 0; space < ADDRESS_SPACES; space++) {
		struct memory_map *map = vm->maps[space];

		for (unsigned i = 0; map && i < map->count; i++)
			free(map->slots[i].dirty);
		free(map);
	}
}

// ---- dirty log ----
// NULL with *error: -EINVAL, no such number; -ENOENT, no slot with a log there.
static struct memslot *logged_slot(struct vm *vm, u32 slot, int *error)
{
	struct memslot *found;

	*error = -EINVAL;
	if (slot_space(slot) >= ADDRESS_SPACES || slot_id(slot) >= MAX_MEMSLOTS)
		return NULL;
	*error = -ENOENT;
	found = find_id(vm->maps[slot_space(slot)], slot_id(slot));
	return found && found->dirty ? found : NULL;
}

int memslot_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log)
{
	struct memslot *slot;
	int result;
	u64 *copy = NULL, size;
	bool keep = vm->manual_dirty_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, any = false;

	lock_take(&vm->slots_lock);
	slot = logged_slot(vm, log->slot, &result);
	if (!slot)
		goto out;
	size = slot->dirty_words * 8;
	result = -ENOMEM;
	copy = malloc(size);
	if (!copy)
		goto out;
	for (u64 i = 0; i < slot->dirty_words; i++) {
		copy[i] = keep ? __atomic_load_n(&slot->dirty[i], __ATOMIC_SEQ_CST) :
				 __atomic_exchange_n(&slot->dirty[i], 0, __ATOMIC_SEQ_CST);
		any |= copy[i] != 0;
	}
	// From here on writes to these pages are reported again; what was written before is in them
	// when the client reads them.
	if (any && !keep)
		vm_synchronize(vm);
	if (slot->pages % 64)
		copy[slot->dirty_words - 1] &= (1ull << slot->pages % 64) - 1;
	result = copy_to_client(log->dirty_bitmap, copy, size);
out:
	lock_release(&vm->slots_lock);
	free(copy);
	return result;
}

int memslot_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log)
{
	struct memslot *slot;
	int result = -EINVAL;
	u64 *copy = NULL, words;
	bool any = false;

	lock_take(&vm->slots_lock);
	if (!vm->manual_dirty_protect || (log->first_page & 63))
		goto out;
	slot = logged_slot(vm, log->slot, &result);
	if (!slot)
		goto out;
	result = -EINVAL;
	if (log->first_page > slot->pages || log->num_pages > slot->pages - log->first_page ||
	    ((log->num_pages & 63) && log->num_pages != slot->pages - log->first_page))
		goto out;
	words = (log->num_pages + 63ull) / 64;
	result = -ENOMEM;
	copy = malloc(words * 8 + 8);
	if (!copy)
		goto out;
	result = copy_from_client(copy, log->dirty_bitmap, words * 8);
	if (result)
		goto out;
	for (u64 i = 0; i < words; i++) {
		u64 old = __atomic_fetch_and(&slot->dirty[log->first_page / 64 + i], ~copy[i], __ATOMIC_SEQ_CST);

		any |= (old & copy[i]) != 0;
	}
	if (any)
		vm_synchronize(vm);
out:
	lock_release(&vm->slots_lock);
	free(copy);
	return result;
}
