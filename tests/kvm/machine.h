// SPDX-License-Identifier: MIT
// A client of libcetkvm: machines with a little memory and real-mode code, and errno checks.
#ifndef TESTS_KVM_MACHINE_H
#define TESTS_KVM_MACHINE_H

#include "../lib/tap.h"
#include "cetkvm/cetkvm.h"
#include "kvm/abi.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MEMORY_SIZE 0x20000

struct machine {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint8_t *memory;
	unsigned code; // where the current code begins
};

#define call cetkvm_ioctl

// The errno of a call, 0 if it succeeds.
#define error_of(expression) ((expression) < 0 ? errno : 0)

#define IRQCHIP 1
#define NO_VCPU 2

static inline void machine_vcpu(struct machine *m)
{
	struct kvm_sregs sregs;

	m->vcpu = call(m->vm, KVM_CREATE_VCPU, 0);
	m->run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->vcpu < 0 || m->run == MAP_FAILED || call(m->vcpu, KVM_GET_SREGS, &sregs) < 0)
		abort();
	sregs.cs.base = sregs.cs.selector = 0;
	if (call(m->vcpu, KVM_SET_SREGS, &sregs) < 0)
		abort();
}

static inline void machine_start(struct machine *m, unsigned flags)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE };

	memset(m, 0, sizeof(*m));
	m->vcpu = -1;
	m->kvm = cetkvm_open();
	m->vm = call(m->kvm, KVM_CREATE_VM, 0);
	m->memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (uintptr_t)m->memory;
	if (call(m->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		abort();
	if ((flags & IRQCHIP) && call(m->vm, KVM_CREATE_IRQCHIP, 0) < 0)
		abort();
	if (!(flags & NO_VCPU))
		machine_vcpu(m);
}

// Puts code (real mode) over what ran before, and the processor at its start.
static inline void machine_code(struct machine *m, const void *code, size_t size)
{
	struct kvm_regs regs = { .rflags = 2, .rsp = 0x1000 };

	m->code = 0x5000;
	regs.rip = m->code;
	memcpy(m->memory + m->code, code, size);
	if (call(m->vcpu, KVM_SET_REGS, &regs) < 0)
		abort();
}
#define machine_bytes(m, ...) \
	machine_code(m, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static inline struct kvm_regs machine_regs(struct machine *m)
{
	struct kvm_regs regs;

	if (call(m->vcpu, KVM_GET_REGS, &regs) < 0)
		abort();
	return regs;
}

// KVM_RUN; the exit reason, or -errno.
static inline int machine_run(struct machine *m)
{
	return call(m->vcpu, KVM_RUN, 0) < 0 ? -errno : (int)m->run->exit_reason;
}

static inline void machine_end(struct machine *m)
{
	if (m->run)
		munmap(m->run, 3 * 4096);
	if (m->vcpu >= 0)
		cetkvm_close(m->vcpu);
	cetkvm_close(m->vm);
	cetkvm_close(m->kvm);
	munmap(m->memory, MEMORY_SIZE);
}

// All that is supported, as the guest's CPUID.
static inline struct kvm_cpuid2 *supported_cpuid(int kvm)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 100 * sizeof(cpuid->entries[0]));

	cpuid->nent = 100;
	if (call(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		abort();
	return cpuid;
}

static inline struct kvm_cpuid_entry2 *cpuid_entry(struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == function && cpuid->entries[i].index == index)
			return &cpuid->entries[i];
	return NULL;
}

#endif
