// SPDX-License-Identifier: MIT
// Which pages the guest has written: bitmaps of slots, or a ring of each vCPU.
// api.rst: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
// KVM_CAP_DIRTY_LOG_RING, KVM_RESET_DIRTY_RINGS.
//
// A page is reported when a vCPU's TLB gets a writable entry for it. Who takes a report away makes
// all vCPUs forget their entries (vm_synchronize()), so the next write is reported again. What was
// written before is in memory when the client looks.
//
// Ring entries lie in memory that the client can write: nothing read from there is believed.
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RESERVED_ENTRIES 64 // left when user space is told that a ring is full
#define RING_MAX_BYTES (65536 * sizeof(struct kvm_dirty_gfn))

// slots_lock held.
static const struct memslot *logged_slot(struct vm *vm, u32 slot, int *error)
{
	const struct memslot *found = memslot_find(vm, slot, error);

	if (found && found->dirty)
		return found;
	if (found)
		*error = -ENOENT;
	return NULL;
}

int memslot_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log)
{
	bool keep = vm->manual_dirty_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, any = false;
	const struct memslot *slot;
	u64 *copy = NULL, size;
	int result;

	if (vm->dirty_ring_size)
		return -ENXIO;
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
	const struct memslot *slot;
	u64 *copy = NULL, words, rest;
	bool any = false;
	int result;

	if (vm->dirty_ring_size)
		return -ENXIO;
	lock_take(&vm->slots_lock);
	result = -EINVAL;
	if (log->first_page & 63)
		goto out;
	slot = logged_slot(vm, log->slot, &result);
	if (!slot)
		goto out;
	result = -EINVAL;
	rest = log->first_page > slot->pages ? 0 : slot->pages - log->first_page;
	if (log->first_page > slot->pages || log->num_pages > rest || (log->num_pages < rest && (log->num_pages & 63)))
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

// ---- rings ----
int dirty_ring_enable(struct vm *vm, u64 size)
{
	int result = -EINVAL;

	if (!size || (size & (size - 1)) || size < PAGE_SIZE ||
	    size < RESERVED_ENTRIES * sizeof(struct kvm_dirty_gfn))
		return -EINVAL;
	if (size > RING_MAX_BYTES)
		return -E2BIG;
	lock_take(&vm->lock);
	if (!vm->dirty_ring_size && !vm->vcpu_count) {
		vm->dirty_ring_size = (u32)size;
		result = 0;
	}
	lock_release(&vm->lock);
	return result;
}

static u32 entries(const struct vm *vm)
{
	return vm->dirty_ring_size / sizeof(struct kvm_dirty_gfn);
}

static u32 used(const struct vcpu *vcpu)
{
	return vcpu->dirty_index - __atomic_load_n(&vcpu->dirty_reset_index, __ATOMIC_ACQUIRE);
}

bool dirty_ring_soft_full(const struct vcpu *vcpu)
{
	return vcpu->dirty_ring && used(vcpu) >= entries(vcpu->vm) - RESERVED_ENTRIES;
}

bool dirty_ring_full(const struct vcpu *vcpu)
{
	return used(vcpu) >= entries(vcpu->vm) - 2;
}

void dirty_ring_push(struct vcpu *vcpu, u32 slot, u64 page)
{
	struct kvm_dirty_gfn *entry;

	// Cannot be: who pushes stops at dirty_ring_full(). A page more would overwrite one.
	if (used(vcpu) >= entries(vcpu->vm))
		return;
	entry = &vcpu->dirty_ring[vcpu->dirty_index++ & (entries(vcpu->vm) - 1)];
	entry->slot = slot;
	entry->offset = page;
	__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
	if (dirty_ring_soft_full(vcpu))
		cpu_request(vcpu->cpu, REQ_KICK);
}

static void report_again(struct vm *vm, u32 slot_number, u64 page)
{
	int error;
	const struct memslot *slot = logged_slot(vm, slot_number, &error);

	if (slot && page < slot->pages)
		__atomic_fetch_and(&slot->dirty[page / 64], ~(1ull << page % 64), __ATOMIC_SEQ_CST);
}

static u32 reset_ring(struct vm *vm, struct vcpu *vcpu)
{
	u32 count = 0;

	// The client owns the flags: it can make us go round only as often as there are entries.
	while (vcpu->dirty_ring && count < entries(vm)) {
		struct kvm_dirty_gfn *entry = &vcpu->dirty_ring[(vcpu->dirty_reset_index) & (entries(vm) - 1)];
		u32 slot;
		u64 page;

		if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET) ||
		    vcpu->dirty_reset_index == __atomic_load_n(&vcpu->dirty_index, __ATOMIC_ACQUIRE))
			break;
		slot = __atomic_load_n(&entry->slot, __ATOMIC_RELAXED);
		page = __atomic_load_n(&entry->offset, __ATOMIC_RELAXED);
		__atomic_store_n(&entry->flags, 0, __ATOMIC_RELEASE);
		__atomic_store_n(&vcpu->dirty_reset_index, vcpu->dirty_reset_index + 1, __ATOMIC_RELEASE);
		report_again(vm, slot, page);
		count++;
	}
	return count;
}

long dirty_rings_reset(struct vm *vm)
{
	long count = 0;

	if (!vm->dirty_ring_size)
		return -EINVAL;
	lock_take(&vm->slots_lock);
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++)
		count += reset_ring(vm, vm_vcpu(vm, i));
	if (count)
		vm_synchronize(vm);
	lock_release(&vm->slots_lock);
	return count;
}
