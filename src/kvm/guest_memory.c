// SPDX-License-Identifier: MIT
// How vCPUs use the memory map, and how it is changed under them.
// api.rst: KVM_SET_USER_MEMORY_REGION.
//
// A new map takes the place of the old one whole. vm_synchronize() then waits until no vCPU can be
// using the old one, which is as long as a vCPU takes to its next instruction boundary (block entry),
// never until it returns to user space. The handshake with a vCPU:
//   vCPU:    in_guest = 1; look at vm->sync_generation, flush if it is new
//   updater: publish; sync_generation++; for each vCPU that is in_guest: REQ_TIMER, and wait until
//            it has caught up or left
// Both sides are sequentially consistent, so at least one sees the other.
#include "cpu/mem.h"
#include "kvm/kvm.h"

#include <sched.h>

// ---- the handshake ----
void vcpu_synchronize(struct vcpu *vcpu)
{
	u64 generation = __atomic_load_n(&vcpu->vm->sync_generation, __ATOMIC_SEQ_CST);

	if (vcpu->synchronized == generation)
		return;
	tlb_flush_all(vcpu->cpu);
	vcpu->last_slot = NULL;
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

	vm->counters->remote_tlb_flush++;
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
static const struct memslot *find_slot(struct vcpu *vcpu, enum address_space space, u64 gpa)
{
	const struct memslot *slot = vcpu->last_slot;

	if (slot && slot->space == space && (gpa >> 12) - slot->gfn < slot->pages)
		return slot;
	slot = memory_map_find(__atomic_load_n(&vcpu->vm->maps[space], __ATOMIC_ACQUIRE), gpa >> 12);
	if (slot)
		vcpu->last_slot = slot;
	return slot;
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
	u64 page, bit;

	if (!slot || !slot->dirty)
		return;
	page = (gpa >> 12) - slot->gfn;
	bit = 1ull << page % 64;
	if (__atomic_load_n(&slot->dirty[page / 64], __ATOMIC_SEQ_CST) & bit)
		return;
	// With rings the bit says that the page is in one.
	if (!(__atomic_fetch_or(&slot->dirty[page / 64], bit, __ATOMIC_SEQ_CST) & bit) && vcpu->dirty_ring)
		dirty_ring_push(vcpu, (u32)space << 16 | slot->id, page);
}

void memory_ops_mark_dirty(void *opaque, u64 gpa)
{
	struct vcpu *vcpu = opaque;

	// An instruction that finds the ring full begins anew when user space has made room.
	if (vcpu->dirty_ring && dirty_ring_full(vcpu) && !vcpu->cpu->replay && vcpu->cpu->unwind) {
		vcpu->exit_to_user = true;
		vcpu->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
		cpu_abort(vcpu->cpu, CPU_EXIT_OPS);
	}
	mark_dirty(vcpu, space_of(vcpu), gpa);
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
