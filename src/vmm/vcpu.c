// SPDX-License-Identifier: MIT
// One virtual processor and its exit loop.
#include "vmm/vcpu.h"

#include "vmm/cpuid.h"
#include "vmm/machine.h"
#include "vmm/message.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KICK_SIGNAL (SIGRTMIN + 1)
#define KICKS_MAX   10000 // about as many milliseconds

#define MSR_MISC_ENABLE      0x1a0
#define MISC_ENABLE_STRINGS  0x1
#define MSR_MTRR_DEF_TYPE    0x2ff
#define MTRR_ENABLE_WB       (1 << 11 | 6)

#define LAPIC_LVT_LINT0 0x350
#define LAPIC_LVT_LINT1 0x360
#define LVT_MODE_NMI    0x400
#define LVT_MODE_EXTINT 0x700

static __thread struct kvm_run *thread_run;

// The flag is for the case that the signal arrives just before KVM_RUN.
static void kick_handler(int signal)
{
	if (thread_run)
		thread_run->immediate_exit = 1;
}

static int vcpu_set_cpuid(struct vcpu *vcpu)
{
	struct machine *machine = vcpu->machine;
	size_t size = sizeof(struct kvm_cpuid2) + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2);
	struct kvm_cpuid2 *cpuid = malloc(size);
	int result;

	if (!cpuid)
		return -1;
	memcpy(cpuid, machine->cpuid, size);
	cpuid_set_topology(cpuid, vcpu->index, machine->vcpu_count);
	result = machine->kvm->ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	if (result < 0)
		vmm_message("%s: KVM_SET_CPUID2 for vCPU %u: %s", machine->kvm->name, vcpu->index, strerror(errno));
	free(cpuid);
	return result;
}

// What firmware leaves in MSRs and the local APIC. A KVM without one of these MSRs is none the worse.
static void vcpu_set_firmware_state(struct vcpu *vcpu)
{
	const struct kvm_backend *kvm = vcpu->machine->kvm;
	const uint32_t values[][2] = {
		{ MSR_MISC_ENABLE, MISC_ENABLE_STRINGS }, { MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WB },
	};
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msrs;
	struct kvm_lapic_state lapic;
	uint32_t lvt;
	unsigned i;

	for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		memset(&msrs, 0, sizeof(msrs));
		msrs.header.nmsrs = 1;
		msrs.entry.index = values[i][0];
		msrs.entry.data = values[i][1];
		kvm->ioctl(vcpu->fd, KVM_SET_MSRS, &msrs);
	}
	if (kvm->ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic) < 0)
		return;
	// Virtual wire: the 8259 reaches the boot processor through LINT0. NMI comes by LINT1.
	if (vcpu->index == 0) {
		lvt = LVT_MODE_EXTINT;
		memcpy(lapic.regs + LAPIC_LVT_LINT0, &lvt, sizeof(lvt));
	}
	lvt = LVT_MODE_NMI;
	memcpy(lapic.regs + LAPIC_LVT_LINT1, &lvt, sizeof(lvt));
	kvm->ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic);
}

int vcpu_create(struct machine *machine, unsigned index)
{
	struct vcpu *vcpu = &machine->vcpus[index];
	const struct kvm_backend *kvm = machine->kvm;

	vcpu->machine = machine;
	vcpu->index = index;
	vcpu->fd = kvm->ioctl(machine->vm_fd, KVM_CREATE_VCPU, (void *)(unsigned long)index);
	if (vcpu->fd < 0) {
		vmm_message("%s: cannot create vCPU %u: %s", kvm->name, index, strerror(errno));
		return -1;
	}
	vcpu->run = kvm->mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		vmm_message("%s: cannot map vCPU %u: %s", kvm->name, index, strerror(errno));
		return -1;
	}
	if (vcpu_set_cpuid(vcpu) < 0)
		return -1;
	vcpu_set_firmware_state(vcpu);
	return 0;
}

static void vcpu_port_io(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned size = run->io.size;
	uint32_t i, value;

	for (i = 0; i < run->io.count; i++, data += size) {
		value = 0;
		if (run->io.direction == KVM_EXIT_IO_IN) {
			value = port_bus_read(&vcpu->machine->ports, run->io.port, size);
			memcpy(data, &value, size);
		} else {
			memcpy(&value, data, size);
			port_bus_write(&vcpu->machine->ports, run->io.port, value, size);
		}
	}
}

static void vcpu_failed(struct vcpu *vcpu, const char *what, unsigned long long detail)
{
	// Only the first one speaks: others may fail because of it.
	if (vcpu->machine->end != MACHINE_RUNNING)
		return;
	vmm_message("%s: vCPU %u: %s (%#llx)", vcpu->machine->kvm->name, vcpu->index, what, detail);
	vcpu_report_registers(vcpu);
	machine_stop(vcpu->machine, MACHINE_FAILED, 0);
}

static void vcpu_internal_error(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	char text[128];
	unsigned i, n = run->internal.ndata;

	n = n > 16 ? 16 : n;
	snprintf(text, sizeof(text), "KVM cannot execute this (internal error %u)", run->internal.suberror);
	if (vcpu->machine->end == MACHINE_RUNNING)
		for (i = 0; i < n; i++)
			vmm_message("internal error data %u: %#llx", i, (unsigned long long)run->internal.data[i]);
	vcpu_failed(vcpu, text, run->internal.suberror);
}

static void vcpu_system_event(struct vcpu *vcpu)
{
	switch (vcpu->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		machine_stop(vcpu->machine, MACHINE_POWERED_OFF, 0);
		break;
	case KVM_SYSTEM_EVENT_RESET:
		machine_stop(vcpu->machine, MACHINE_RESET, 0);
		break;
	case KVM_SYSTEM_EVENT_CRASH:
		machine_stop(vcpu->machine, MACHINE_PANICKED, 0);
		break;
	default:
		vcpu_failed(vcpu, "unknown system event", vcpu->run->system_event.type);
		break;
	}
}

static void vcpu_handle_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		vcpu_port_io(vcpu);
		break;
	case KVM_EXIT_MMIO:
		// No device of this board is there.
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_HLT: // the in-kernel APIC sleeps itself; seen only from a KVM that does not
		break;
	case KVM_EXIT_SHUTDOWN:
		if (vcpu->machine->end != MACHINE_RUNNING)
			break;
		vmm_message("guest crashed: triple fault on vCPU %u", vcpu->index);
		vcpu_report_registers(vcpu);
		machine_stop(vcpu->machine, MACHINE_TRIPLE_FAULT, 0);
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		vcpu_system_event(vcpu);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		vcpu_failed(vcpu, "KVM could not enter the guest", run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpu_internal_error(vcpu);
		break;
	default:
		vcpu_failed(vcpu, "exit for an unknown reason", run->exit_reason);
		break;
	}
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;
	struct machine *machine = vcpu->machine;

	thread_run = vcpu->run;
	while (machine->end == MACHINE_RUNNING) {
		if (machine->kvm->ioctl(vcpu->fd, KVM_RUN, NULL) < 0) {
			// EAGAIN: an application processor was started, or still waits.
			if (errno != EINTR && errno != EAGAIN)
				vcpu_failed(vcpu, strerror(errno), errno);
			continue;
		}
		vcpu_handle_exit(vcpu);
	}
	thread_run = NULL;
	vcpu->thread_ended = true;
	return NULL;
}

int vcpu_start(struct vcpu *vcpu)
{
	struct sigaction action = { .sa_handler = kick_handler };
	int error;

	sigaction(KICK_SIGNAL, &action, NULL);
	vcpu->thread_ended = false;
	error = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
	if (error) {
		vmm_message("cannot start a thread for vCPU %u: %s", vcpu->index, strerror(error));
		return -1;
	}
	vcpu->thread_started = true;
	return 0;
}

bool vcpu_join(struct vcpu *vcpu)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	unsigned kicks;

	if (!vcpu->thread_started)
		return true;
	for (kicks = 0; !vcpu->thread_ended; kicks++) {
		if (kicks == KICKS_MAX)
			return false;
		pthread_kill(vcpu->thread, KICK_SIGNAL);
		if (vcpu->machine->kvm->kick)
			vcpu->machine->kvm->kick(vcpu->fd);
		nanosleep(&pause, NULL);
	}
	pthread_join(vcpu->thread, NULL);
	vcpu->thread_started = false;
	return true;
}

void vcpu_destroy(struct vcpu *vcpu)
{
	const struct kvm_backend *kvm = vcpu->machine ? vcpu->machine->kvm : NULL;

	if (!kvm)
		return;
	if (vcpu->run)
		munmap(vcpu->run, vcpu->machine->run_size);
	if (vcpu->fd >= 0)
		kvm->close(vcpu->fd);
	vcpu->run = NULL;
	vcpu->fd = -1;
}
