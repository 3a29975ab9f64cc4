// SPDX-License-Identifier: MIT
// A machine made through /dev/kvm by a client that knows nothing of this project: real-mode code, one vCPU.
#ifndef TESTS_PRELOAD_GUEST_H
#define TESTS_PRELOAD_GUEST_H

#include "../lib/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUEST_SIZE 0x10000
#define RUN_SIZE (3 * 4096)

struct guest {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint8_t *memory;
};

#define SPIN 0xeb, 0xfe // jmp .
#define GUEST_START(g, irqchip, ...) \
	guest_start(g, irqchip, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

// false, with errno, if anything fails.
static inline bool guest_start(struct guest *g, bool irqchip, const void *code, size_t size)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_SIZE };
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x800, .rflags = 2 };
	struct kvm_sregs sregs;

	g->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	g->vm = ioctl(g->kvm, KVM_CREATE_VM, 0);
	g->memory = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->kvm < 0 || g->vm < 0 || g->memory == MAP_FAILED)
		return false;
	memcpy(g->memory + 0x1000, code, size);
	region.userspace_addr = (uintptr_t)g->memory;
	if (ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 || (irqchip && ioctl(g->vm, KVM_CREATE_IRQCHIP, 0) < 0))
		return false;
	g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
	g->run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	if (g->vcpu < 0 || g->run == MAP_FAILED || ioctl(g->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return false;
	sregs.cs.base = sregs.cs.selector = 0;
	return ioctl(g->vcpu, KVM_SET_SREGS, &sregs) >= 0 && ioctl(g->vcpu, KVM_SET_REGS, &regs) >= 0;
}

static inline void guest_end(struct guest *g)
{
	munmap(g->run, RUN_SIZE);
	close(g->vcpu);
	close(g->vm);
	close(g->kvm);
	munmap(g->memory, GUEST_SIZE);
}

// The errno of KVM_RUN, 0 if it succeeds.
static inline int guest_run(struct guest *g)
{
	return ioctl(g->vcpu, KVM_RUN, 0) < 0 ? errno : 0;
}

// The exit status of a child that does this.
#define IN_CHILD(status, statement) \
	do { \
		pid_t child_ = fork(); \
		if (!child_) { \
			statement; \
			_exit(0); \
		} \
		waitpid(child_, &(status), 0); \
	} while (0)

#endif
