// SPDX-License-Identifier: MIT
// One virtual machine: creation in the order KVM asks for, and the reasons for its end.
#include "vmm/machine.h"

#include "vmm/acpi.h"
#include "vmm/boot.h"
#include "vmm/cpuid.h"
#include "vmm/devices.h"
#include "vmm/message.h"
#include "vmm/vcpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

// Three pages that KVM may use for itself, in the device hole, and one more below them.
#define KVM_TSS_ADDRESS          0xfffbd000ul
#define KVM_IDENTITY_MAP_ADDRESS 0xfffbc000ull

#define VCPUS_MAX 254 // APIC ids are bytes, and 255 means all

void machine_stop(struct machine *machine, enum machine_end end, int value)
{
	uint64_t one = 1;

	pthread_mutex_lock(&machine->end_lock);
	if (machine->end == MACHINE_RUNNING) {
		machine->end_value = value;
		machine->end = end;
	}
	pthread_mutex_unlock(&machine->end_lock);
	if (write(machine->end_event, &one, sizeof(one)) < 0)
		return; // the counter is full: the loop is awake
}

void machine_irq(struct machine *machine, unsigned gsi, bool level)
{
	struct kvm_irq_level line = { .irq = gsi, .level = level };

	if (machine->kvm->ioctl(machine->vm_fd, KVM_IRQ_LINE, &line) < 0 && machine->end == MACHINE_RUNNING) {
		vmm_message("%s: KVM_IRQ_LINE: %s", machine->kvm->name, strerror(errno));
		machine_stop(machine, MACHINE_FAILED, 0);
	}
}

// A Linux that panics says so on its console, whether or not it then reboots.
void machine_console_line(struct machine *machine, const char *line)
{
	const char *panic = strstr(line, "Kernel panic - not syncing");

	if (!panic)
		return;
	if (!machine->panic[0])
		strncpy(machine->panic, panic, sizeof(machine->panic) - 1);
	// The last line of the report; after it the kernel does nothing any more.
	if (strstr(line, "---[ end Kernel panic"))
		machine_stop(machine, MACHINE_PANICKED, 0);
}

static int kvm_failed(const struct machine *machine, const char *what)
{
	vmm_message("%s: %s: %s", machine->kvm->name, what, strerror(errno));
	return VMM_EXIT_FAILED;
}

static int machine_open_kvm(struct machine *machine)
{
	const struct kvm_backend *kvm = machine->kvm;
	const char *problem;
	int version;

	machine->kvm_fd = kvm->open();
	if (machine->kvm_fd < 0) {
		problem = kvm->problem ? kvm->problem() : NULL;
		if (problem)
			vmm_message("%s: %s", kvm->name, problem);
		else
			vmm_message("%s: %s; --device needs a KVM device such as /dev/kvm", kvm->name, strerror(errno));
		return VMM_EXIT_BAD_INPUT;
	}
	version = kvm->ioctl(machine->kvm_fd, KVM_GET_API_VERSION, NULL);
	if (version != KVM_API_VERSION) {
		vmm_message("%s: not a KVM device (API version %d, wanted %d); --device needs one such as /dev/kvm", kvm->name, version, KVM_API_VERSION);
		return VMM_EXIT_BAD_INPUT;
	}
	machine->run_size = kvm->ioctl(machine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if ((long)machine->run_size < (long)sizeof(struct kvm_run))
		return kvm_failed(machine, "KVM_GET_VCPU_MMAP_SIZE");
	return 0;
}

static int machine_add_memory(struct machine *machine, unsigned slot, uint64_t guest, uint8_t *host, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = guest, .memory_size = size, .userspace_addr = (uintptr_t)host,
	};

	if (!size)
		return 0;
	if (machine->kvm->ioctl(machine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return kvm_failed(machine, "KVM_SET_USER_MEMORY_REGION");
	// System-management mode sees the same memory: this board has no SMRAM of its own.
	if (machine->kvm->ioctl(machine->vm_fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_MULTI_ADDRESS_SPACE) > 1) {
		region.slot |= 1 << 16;
		if (machine->kvm->ioctl(machine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
			return kvm_failed(machine, "KVM_SET_USER_MEMORY_REGION");
	}
	return 0;
}

static int machine_create_vm(struct machine *machine)
{
	const struct kvm_backend *kvm = machine->kvm;
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity_map = KVM_IDENTITY_MAP_ADDRESS;
	struct guest_memory *memory = &machine->memory;
	int status;

	machine->vm_fd = kvm->ioctl(machine->kvm_fd, KVM_CREATE_VM, NULL);
	if (machine->vm_fd < 0)
		return kvm_failed(machine, "KVM_CREATE_VM");
	if (kvm->ioctl(machine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
		return kvm_failed(machine, "KVM_SET_IDENTITY_MAP_ADDR");
	if (kvm->ioctl(machine->vm_fd, KVM_SET_TSS_ADDR, (void *)KVM_TSS_ADDRESS) < 0)
		return kvm_failed(machine, "KVM_SET_TSS_ADDR");
	if (kvm->ioctl(machine->vm_fd, KVM_CREATE_IRQCHIP, NULL) < 0)
		return kvm_failed(machine, "KVM_CREATE_IRQCHIP");
	if (kvm->ioctl(machine->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return kvm_failed(machine, "KVM_CREATE_PIT2");
	if (guest_memory_create(memory, machine->config->memory_size) < 0)
		return VMM_EXIT_BAD_INPUT;
	status = machine_add_memory(machine, 0, 0, memory->host, memory->low_size);
	if (!status)
		status = machine_add_memory(machine, 1, MEMORY_HOLE_END, memory->host + memory->low_size, memory->high_size);
	return status;
}

static int machine_create_vcpus(struct machine *machine)
{
	const struct kvm_backend *kvm = machine->kvm;
	struct kvm_cpuid2 *emulated;
	struct cpu_choice choice;
	int limit, result;
	unsigned i;

	machine->vcpu_count = machine->config->vcpus;
	limit = kvm->ioctl(machine->kvm_fd, KVM_CHECK_EXTENSION, (void *)(long)KVM_CAP_MAX_VCPUS);
	if (limit < 1 || limit > VCPUS_MAX)
		limit = limit < 1 ? 1 : VCPUS_MAX;
	if (machine->vcpu_count > (unsigned)limit) {
		vmm_message("--smp %u: too many vCPUs; at most %d are possible here", machine->vcpu_count, limit);
		return VMM_EXIT_BAD_INPUT;
	}
	if (cpu_choice_parse(&choice, machine->config->cpu) < 0)
		return VMM_EXIT_BAD_INPUT;
	// Only who asks for permission is told of AMX. What comes of it shows in the CPUID.
	if (cpu_choice_wants(&choice, "amx_tile") && kvm->permit)
		(void)kvm->permit(COMPONENT_TILEDATA);
	machine->cpuid = cpuid_supported(kvm, machine->kvm_fd);
	emulated = cpuid_emulated(kvm, machine->kvm_fd);
	if (!machine->cpuid || !emulated)
		return VMM_EXIT_FAILED;
	result = cpuid_apply_choice(machine->cpuid, emulated, &choice, kvm->any_vendor);
	free(emulated);
	if (result < 0)
		return VMM_EXIT_BAD_INPUT;
	machine->vcpus = calloc(machine->vcpu_count, sizeof(*machine->vcpus));
	if (!machine->vcpus)
		return VMM_EXIT_FAILED;
	for (i = 0; i < machine->vcpu_count; i++)
		machine->vcpus[i].fd = -1;
	for (i = 0; i < machine->vcpu_count; i++)
		if (vcpu_create(machine, i) < 0)
			return VMM_EXIT_FAILED;
	return 0;
}

static int machine_create_devices(struct machine *machine)
{
	if (serial_create(machine) < 0 || rtc_create(machine) < 0 || i8042_create(machine) < 0 || pm_create(machine) < 0 ||
	    pci_create(machine) < 0) {
		vmm_message("out of memory");
		return VMM_EXIT_FAILED;
	}
	exit_ports_create(machine);
	return 0;
}

static int machine_load_guest(struct machine *machine, const struct kernel_image *image)
{
	const struct vmm_config *config = machine->config;
	struct kernel_placement placement;
	uint64_t rsdp;

	if (kernel_load(image, &machine->memory, config->initrd, config->initrd_size, &placement) < 0)
		return VMM_EXIT_BAD_INPUT;
	rsdp = acpi_write_tables(&machine->memory, machine->vcpu_count);
	boot_prepare_memory(machine, image, &placement, rsdp);
	return boot_set_registers(machine, image, &placement) < 0 ? VMM_EXIT_FAILED : 0;
}

int machine_create(struct machine *machine, const struct vmm_config *config, const struct kernel_image *image,
		   struct console *console)
{
	int status;

	memset(machine, 0, sizeof(*machine));
	machine->config = config;
	machine->kvm = config->backend;
	machine->console = console;
	machine->kvm_fd = machine->vm_fd = -1;
	machine->end = MACHINE_RUNNING;
	pthread_mutex_init(&machine->end_lock, NULL);
	machine->end_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (machine->end_event < 0)
		return kvm_failed(machine, "eventfd");
	status = machine_open_kvm(machine);
	if (!status)
		status = machine_create_vm(machine);
	if (!status)
		status = machine_create_devices(machine);
	if (!status)
		status = machine_create_vcpus(machine);
	if (!status)
		status = machine_load_guest(machine, image);
	return status;
}

void machine_start(struct machine *machine)
{
	unsigned i;

	for (i = 0; i < machine->vcpu_count; i++)
		if (vcpu_start(&machine->vcpus[i]) < 0)
			machine_stop(machine, MACHINE_FAILED, 0);
}

void machine_join(struct machine *machine)
{
	unsigned i;

	machine_stop(machine, MACHINE_USER_QUIT, 0); // unless it has ended already
	for (i = 0; machine->vcpus && i < machine->vcpu_count; i++)
		if (!vcpu_join(&machine->vcpus[i])) {
			vmm_message("%s: vCPU %u does not stop", machine->kvm->name, i);
			exit(VMM_EXIT_FAILED); // gives the terminal back
		}
}

void machine_destroy(struct machine *machine)
{
	unsigned i;

	machine_join(machine);
	for (i = 0; machine->vcpus && i < machine->vcpu_count; i++)
		vcpu_destroy(&machine->vcpus[i]);
	free(machine->vcpus);
	free(machine->cpuid);
	serial_destroy(machine);
	rtc_destroy(machine);
	i8042_destroy(machine);
	pm_destroy(machine);
	pci_destroy(machine);
	if (machine->vm_fd >= 0)
		machine->kvm->close(machine->vm_fd);
	if (machine->kvm_fd >= 0)
		machine->kvm->close(machine->kvm_fd);
	guest_memory_destroy(&machine->memory);
	close(machine->end_event);
	pthread_mutex_destroy(&machine->end_lock);
}
