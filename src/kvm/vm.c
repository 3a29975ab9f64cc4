// SPDX-License-Identifier: MIT
// A virtual machine's life. It is kept by its own descriptor and by each vCPU's; vCPUs live as long.
#include "kvm/generation.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static bool ever_created;

bool vm_ever_created(void)
{
	return __atomic_load_n(&ever_created, __ATOMIC_ACQUIRE);
}

int vm_create(u32 type)
{
	struct vm *vm;
	int fd;

	if (type)
		return -EINVAL;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	__atomic_store_n(&ever_created, true, __ATOMIC_RELEASE);
	vm->references = 1;
	vm->process_generation = fd_process_generation();
	vm->generation = option_generation;
	vm->counters = &vm->first_counters;
	vm->stats_fd = -1;
	clock_vm_init(vm);
	vm->code = vm_code_create();
	fd = memory_file("kvm-vm", PAGE_SIZE);
	if (fd < 0 || !vm->code) {
		vm_put(vm);
		return fd < 0 ? fd : (close(fd), -ENOMEM);
	}
	vm->ring = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vm->ring == MAP_FAILED) {
		vm->ring = NULL;
		close(fd);
		vm_put(vm);
		return -ENOMEM;
	}
	return fd_install(fd, FD_VM, vm);
}

void vm_get(struct vm *vm)
{
	__atomic_fetch_add(&vm->references, 1, __ATOMIC_RELAXED);
}

void vm_put(struct vm *vm)
{
	if (__atomic_sub_fetch(&vm->references, 1, __ATOMIC_ACQ_REL))
		return;
	// A child after fork has a copy of its parent's machines, in whatever state they were, but none of
	// their threads: there is nothing to be ended.
	if (vm->process_generation != fd_process_generation())
		return;
	timer_stop(vm);
	irqfd_release(vm);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		vcpu_destroy(vm->vcpus[i]);
	irq_destroy(vm);
	bus_destroy(vm);
	memory_map_destroy(vm);
	stats_close(vm->stats_fd, vm->counters);
	msr_filter_destroy(vm->msr_filter);
	if (vm->code)
		vm_code_destroy(vm->code);
	if (vm->ring)
		munmap(vm->ring, PAGE_SIZE);
	free(vm);
}
