// SPDX-License-Identifier: MIT
// A vCPU's creation and end, and the client's mapping of it: kvm_run, a page for port I/O data, and
// the machine's ring of coalesced writes.
#include "cetkvm/cetkvm.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define VCPU_MAP_SIZE (3 * PAGE_SIZE)
#define RING_OFFSET (KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE)

void vcpu_destroy(struct vcpu *vcpu)
{
	if (vcpu->cpu)
		cpu_destroy(vcpu->cpu);
	if (vcpu->lapic)
		lapic_destroy(vcpu->lapic);
	if (vcpu->run)
		munmap(vcpu->run, 2 * PAGE_SIZE);
	if (vcpu->dirty_ring)
		munmap(vcpu->dirty_ring, vcpu->vm->dirty_ring_size);
	fpstate_free(vcpu->fpu);
	free(vcpu->cpuid);
	stats_close(vcpu->stats_fd, vcpu->counters);
	free(vcpu);
}

static int check_id(struct vm *vm, u32 id)
{
	// What has not been limited before the first vCPU stays unlimited.
	if (!vm->max_vcpu_id)
		vm->max_vcpu_id = MAX_VCPU_ID;
	if (id >= vm->max_vcpu_id || vm->vcpu_count >= MAX_VCPUS)
		return -EINVAL;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i]->id == id)
			return -EEXIST;
	return 0;
}

static bool make_ring(struct vcpu *vcpu, int fd)
{
	u32 size = vcpu->vm->dirty_ring_size;
	void *ring;

	if (!size)
		return true;
	if (ftruncate(fd, RING_OFFSET + size) < 0)
		return false;
	ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, RING_OFFSET);
	if (ring == MAP_FAILED)
		return false;
	vcpu->dirty_ring = ring;
	return true;
}

static struct vcpu *make(struct vm *vm, u32 id, int fd)
{
	struct vcpu *vcpu = calloc(1, sizeof(*vcpu));

	if (!vcpu)
		return NULL;
	vcpu->vm = vm;
	vcpu->id = id;
	vcpu->queued_interrupt = -1;
	vcpu->apic_base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (id == vm->boot_cpu_id ? APIC_BASE_BSP : 0);
	vcpu->poll_control = 1;
	vcpu->counters = &vcpu->first_counters;
	vcpu->stats_fd = -1;
	vcpu->synchronized = __atomic_load_n(&vm->sync_generation, __ATOMIC_SEQ_CST);
	vcpu->run = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpu->run == MAP_FAILED)
		vcpu->run = NULL;
	vcpu->pio_page = (u8 *)vcpu->run + PAGE_SIZE;
	vcpu->cpu = cpu_create(&vcpu_ops, vcpu, vm->code);
	if (!vcpu->cpu || !vcpu->run || !make_ring(vcpu, fd) || !guest_fpu_create(vcpu)) {
		vcpu_destroy(vcpu);
		return NULL;
	}
	vcpu->cpu->trace_cp = option_trace_cp;
	vcpu->cpu->single_grain = option_single_grain;
	capability_apply_quirks(vm, vcpu);
	cpuid_limit_new(vcpu);
	clock_vcpu_init(vcpu);
	vcpu->mp_state = KVM_MP_STATE_RUNNABLE;
	if (vm->chip) {
		vcpu->lapic = lapic_create(vm->chip, vcpu, id, id == vm->boot_cpu_id);
		if (!vcpu->lapic) {
			vcpu_destroy(vcpu);
			return NULL;
		}
		if (id != vm->boot_cpu_id)
			vcpu->mp_state = KVM_MP_STATE_UNINITIALIZED;
	}
	return vcpu;
}

int vcpu_create(struct vm *vm, u32 id)
{
	int fd = memory_file("kvm-vcpu", VCPU_MAP_SIZE), result;
	struct vcpu *vcpu;

	if (fd < 0)
		return fd;
	lock_take(&vm->lock);
	result = check_id(vm, id);
	vcpu = result ? NULL : make(vm, id, fd);
	if (!vcpu) {
		lock_release(&vm->lock);
		close(fd);
		return result ? result : -ENOMEM;
	}
	vcpu->index = vm->vcpu_count;
	vm->vcpus[vcpu->index] = vcpu;
	if (vcpu->lapic)
		lapic_publish(vcpu->lapic);
	irq_vcpu_created(vcpu);
	__atomic_store_n(&vm->vcpu_count, vm->vcpu_count + 1, __ATOMIC_SEQ_CST);
	vm_get(vm);
	lock_release(&vm->lock);
	clock_vcpu_created(vcpu);
	return fd_install(fd, FD_VCPU, vcpu);
}

// Page 2 of every vCPU's mapping is the machine's: it is mapped once more over that of the vCPU's file.
static void *map_vcpu(struct vcpu *vcpu, void *address, size_t length, int protection, int flags, int fd,
		      off_t offset)
{
	u8 *area;
	size_t ring_at = 2 * PAGE_SIZE - (size_t)offset;

	if (vcpu->dirty_ring && offset >= (off_t)RING_OFFSET) {
		u64 rest = RING_OFFSET + vcpu->vm->dirty_ring_size - (u64)offset;

		// The ring is shared, and no place for code.
		if ((u64)offset > RING_OFFSET + vcpu->vm->dirty_ring_size || length > rest || (protection & PROT_EXEC) ||
		    !(flags & MAP_SHARED)) {
			errno = EINVAL;
			return MAP_FAILED;
		}
		return mmap(address, length, protection, flags, fd, offset);
	}
	if (offset >= (off_t)VCPU_MAP_SIZE || (protection & PROT_EXEC)) {
		errno = EINVAL;
		return MAP_FAILED;
	}
	area = mmap(address, length, protection, flags, fd, offset);
	if (area == MAP_FAILED || length <= ring_at)
		return area;
	// The length 0 means: one mapping more of the same.
	if (mremap(vcpu->vm->ring, 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, area + ring_at) == MAP_FAILED ||
	    mprotect(area + ring_at, PAGE_SIZE, protection) < 0) {
		munmap(area, length);
		return MAP_FAILED;
	}
	return area;
}

__attribute__((visibility("default")))
void *cetkvm_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	void *area = MAP_FAILED;
	struct file *file;
	int error;

	signals_enter();
	file = file_get(fd);
	if (!file)
		errno = EBADF;
	else if (file_kind(file) != FD_VCPU)
		errno = ENODEV;
	else
		area = map_vcpu(file_object(file), address, length, protection, flags, fd, offset);
	error = errno;
	if (file)
		file_put(file);
	signals_leave();
	errno = error;
	return area;
}

__attribute__((visibility("default"))) int cetkvm_kick(int fd)
{
	struct file *file = file_get(fd);

	if (!file || file_kind(file) != FD_VCPU) {
		if (file)
			file_put(file);
		errno = EBADF;
		return -1;
	}
	vcpu_kick(file_object(file));
	file_put(file);
	return 0;
}
