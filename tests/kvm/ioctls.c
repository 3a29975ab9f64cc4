// SPDX-License-Identifier: MIT
// What the ioctls accept and refuse, with the kernel's errno values; descriptors and their lives.
#include "machine.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_dispatch(void)
{
	struct machine m;

	machine_start(&m, 0);
	is(call(m.kvm, KVM_GET_API_VERSION, 0), 12, "API version");
	is(error_of(call(m.kvm, KVM_GET_API_VERSION, 1)), EINVAL, "with an argument");
	is(call(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 12288, "size of the vCPU's mapping");
	is(error_of(call(m.kvm, _IO(KVMIO, 0xf7), 0)), EINVAL, "unknown on /dev/kvm");
	is(error_of(call(m.vm, _IO(KVMIO, 0xf7), 0)), ENOTTY, "unknown on a VM");
	is(error_of(call(m.vcpu, _IO(KVMIO, 0xf7), 0)), EINVAL, "unknown on a vCPU");
	is(error_of(call(m.vm, KVM_KVMCLOCK_CTRL, 0)), ENOTTY, "a vCPU's ioctl on a VM");
	is(error_of(call(m.vcpu, 0x5401, 0)), EINVAL, "another type on a vCPU");
	is(error_of(call(0, KVM_RUN, 0)), ENOTTY, "a file that is not ours");
	is(error_of(call(9999, KVM_RUN, 0)), EBADF, "no file");
	struct kvm_regs regs;
	is(call(m.vcpu, (unsigned long)(int)KVM_GET_REGS, &regs), 0, "sign-extended request");
	is(error_of(call(m.vcpu, KVM_GET_REGS, (void *)16)), EFAULT, "bad pointer, out");
	is(error_of(call(m.vcpu, KVM_SET_REGS, (void *)16)), EFAULT, "bad pointer, in");
	is(error_of(call(m.vcpu, KVM_SET_REGS, NULL)), EFAULT, "null pointer");
	is(error_of(call(m.vcpu, KVM_RUN, 1)), EINVAL, "KVM_RUN with an argument");
	is(error_of(call(m.kvm, KVM_CREATE_VM, 77)), EINVAL, "unknown type of machine");
	is(call(m.kvm, KVM_CHECK_EXTENSION, 100000), 0, "unknown capability");
	machine_end(&m);
}

static void test_vcpus(void)
{
	struct machine m;

	machine_start(&m, NO_VCPU);
	int a = call(m.vm, KVM_CREATE_VCPU, 7);
	ok(a >= 0, "a sparse id");
	is(error_of(call(m.vm, KVM_CREATE_VCPU, 7)), EEXIST, "twice");
	is(error_of(call(m.vm, KVM_CREATE_VCPU, call(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID))), EINVAL,
	   "beyond the highest id");
	is(error_of(call(m.vm, KVM_CREATE_IRQCHIP, 0)), EINVAL, "irqchip after a vCPU");
	is(error_of(call(m.vm, KVM_SET_BOOT_CPU_ID, 1)), EBUSY, "boot CPU after a vCPU");
	uint64_t address = 0xfffbc000;
	is(error_of(call(m.vm, KVM_SET_IDENTITY_MAP_ADDR, &address)), EINVAL, "identity map after a vCPU");
	is(error_of(call(m.vm, KVM_SET_TSC_KHZ, 1000000)), EINVAL, "the machine's TSC after a vCPU");
	is(call(m.vm, KVM_SET_TSS_ADDR, 0xffffd000), 0, "the last address for three pages");
	is(error_of(call(m.vm, KVM_SET_TSS_ADDR, 0xffffd001)), EINVAL, "one too far");
	struct kvm_lapic_state lapic;
	is(error_of(call(a, KVM_GET_LAPIC, &lapic)), EINVAL, "no APIC in the kernel");
	struct kvm_irqchip chip = { 0 };
	is(error_of(call(m.vm, KVM_GET_IRQCHIP, &chip)), ENXIO, "no irqchip");
	struct kvm_irq_level line = { 0 };
	is(error_of(call(m.vm, KVM_IRQ_LINE, &line)), ENXIO, "no line");
	struct kvm_pit_config pit = { 0 };
	is(error_of(call(m.vm, KVM_CREATE_PIT2, &pit)), ENOENT, "no PIT without a PIC");
	cetkvm_close(a);
	machine_end(&m);

	machine_start(&m, IRQCHIP);
	struct kvm_tpr_access_ctl tpr = { .enabled = 1 };
	is(call(m.vcpu, KVM_TPR_ACCESS_REPORTING, &tpr), 0, "accesses to the TPR");
	tpr.flags = 1;
	is(error_of(call(m.vcpu, KVM_TPR_ACCESS_REPORTING, &tpr)), EINVAL, "with flags");
	machine_end(&m);

	machine_start(&m, NO_VCPU | IRQCHIP);
	is(error_of(call(m.vm, KVM_CREATE_IRQCHIP, 0)), EEXIST, "irqchip twice");
	is(call(m.vm, KVM_CREATE_PIT2, &pit), 0, "PIT");
	is(error_of(call(m.vm, KVM_CREATE_PIT2, &pit)), EEXIST, "PIT twice");
	chip.chip_id = 3;
	is(error_of(call(m.vm, KVM_GET_IRQCHIP, &chip)), EINVAL, "no fourth chip");
	line.irq = 5;
	is(call(m.vm, KVM_IRQ_LINE_STATUS, &line), 0, "a line");
	struct { struct kvm_irq_routing r; struct kvm_irq_routing_entry e[2]; } routing = { .r.nr = 2 };
	routing.e[0].gsi = routing.e[1].gsi = 4;
	routing.e[0].type = routing.e[1].type = KVM_IRQ_ROUTING_MSI;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, &routing)), EINVAL, "two MSIs for one GSI");
	routing.e[1].gsi = 4096;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, &routing)), EINVAL, "GSI 4096");
	routing.e[1].gsi = 4095;
	is(call(m.vm, KVM_SET_GSI_ROUTING, &routing), 0, "two MSIs");
	routing.e[0].type = KVM_IRQ_ROUTING_IRQCHIP;
	routing.e[0].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	routing.e[0].u.irqchip.pin = 24;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, &routing)), EINVAL, "pin 24");
	routing.r.flags = 1;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, &routing)), EINVAL, "flags");
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x41, .flags = 8 };
	is(error_of(call(m.vm, KVM_SIGNAL_MSI, &msi)), EINVAL, "flags of an MSI");
	msi.flags = 0;
	is(call(m.vm, KVM_SIGNAL_MSI, &msi), 0, "an MSI to nobody");
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EEXIST, "split irqchip beside a full one");
	cap = (struct kvm_enable_cap){ .cap = KVM_CAP_EXCEPTION_PAYLOAD, .flags = 1 };
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "flags of a capability");
	cap = (struct kvm_enable_cap){ .cap = 9999 };
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "unknown capability");
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO };
	is(error_of(call(m.vm, KVM_CREATE_DEVICE, &device)), ENODEV, "no devices");
	int v = call(m.vm, KVM_CREATE_VCPU, 0), w = call(m.vm, KVM_CREATE_VCPU, 1);
	struct kvm_mp_state state;
	call(v, KVM_GET_MP_STATE, &state);
	is(state.mp_state, KVM_MP_STATE_RUNNABLE, "the boot processor can run");
	call(w, KVM_GET_MP_STATE, &state);
	is(state.mp_state, KVM_MP_STATE_UNINITIALIZED, "another waits to be started");
	state.mp_state = 99;
	is(error_of(call(w, KVM_SET_MP_STATE, &state)), EINVAL, "no such state");
	struct kvm_interrupt irq = { 256 };
	is(error_of(call(v, KVM_INTERRUPT, &irq)), EINVAL, "vector 256");
	irq.irq = 32;
	is(error_of(call(v, KVM_INTERRUPT, &irq)), ENXIO, "KVM_INTERRUPT beside a full irqchip");
	cetkvm_close(v);
	cetkvm_close(w);
	machine_end(&m);
}

static void test_eventfds(void)
{
	struct machine m;
	int e = eventfd(0, 0), f = eventfd(0, 0), file = open("/dev/null", O_RDONLY);
	static const struct {
		const char *name;
		uint32_t len, flags;
		uint64_t datamatch;
		int error, same_error;
	} rows[] = {
		{ "any length", 0, 0, 0, 0, EEXIST },
		{ "any length with a match", 0, KVM_IOEVENTFD_FLAG_DATAMATCH, 0, EINVAL, 0 },
		{ "three bytes", 3, 0, 0, EINVAL, 0 },
		{ "sixteen bytes", 16, 0, 0, EINVAL, 0 },
		{ "unknown flag", 4, 1 << 20, 0, EINVAL, 0 },
		{ "four bytes", 4, KVM_IOEVENTFD_FLAG_DATAMATCH, 7, 0, EEXIST },
		{ "port", 2, KVM_IOEVENTFD_FLAG_PIO, 0, 0, EEXIST },
	};

	machine_start(&m, 0);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		struct kvm_ioeventfd args = { .addr = 0xd0000, .len = rows[i].len, .fd = e, .flags = rows[i].flags,
					      .datamatch = rows[i].datamatch };

		is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), rows[i].error, "ioeventfd: %s", rows[i].name);
		if (rows[i].error)
			continue;
		args.fd = f;
		is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), EEXIST, "again");
		args.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
		is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), ENOENT, "another eventfd is not there");
		args.fd = e;
		is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), 0, "removed");
		is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), ENOENT, "not twice");
	}
	struct kvm_ioeventfd args = { .addr = 0xd0000, .len = 4, .fd = file };
	is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), EINVAL, "not an eventfd");
	args.fd = 9999;
	is(error_of(call(m.vm, KVM_IOEVENTFD, &args)), EBADF, "no file");
	// It is written instead of an exit.
	args = (struct kvm_ioeventfd){ .addr = 0x80, .len = 1, .fd = e, .datamatch = 5,
		.flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH };
	is(call(m.vm, KVM_IOEVENTFD, &args), 0, "port 0x80, value 5");
	machine_bytes(&m, 0xb0, 5, 0xe6, 0x80, 0xb0, 6, 0xe6, 0x80, 0xf4);
	is(machine_run(&m), KVM_EXIT_IO, "another value exits");
	is(((uint8_t *)m.run)[m.run->io.data_offset], 6, "with it");
	uint64_t count = 0;
	ok(read(e, &count, 8) == 8 && count == 1, "the matching one was counted");
	is(machine_run(&m), KVM_EXIT_HLT, "HLT");
	machine_end(&m);
	close(e);
	close(f);
	close(file);
}

static int open_files(void)
{
	int count = 0;

	for (int fd = 0; fd < 2000; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void test_lifetimes(void)
{
	struct machine m;

	machine_start(&m, 0);
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	cetkvm_close(m.vm);
	is(error_of(call(m.vm, KVM_CHECK_EXTENSION, 1)), EBADF, "a closed descriptor");
	is(machine_run(&m), KVM_EXIT_IO, "a vCPU keeps its machine");
	cetkvm_close(m.vcpu);
	m.run->exit_reason = 55;
	is(m.run->exit_reason, 55, "the mapping outlives the descriptor");
	munmap(m.run, 3 * 4096);
	munmap(m.memory, MEMORY_SIZE);
	ok(fcntl(m.kvm, F_GETFD) & FD_CLOEXEC, "close on exec");
	is(cetkvm_close(m.kvm), 0, "close");
	is(error_of(cetkvm_close(m.kvm)), EBADF, "twice");

	machine_start(&m, 0);
	void *ring = cetkvm_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 2 * 4096);
	ok(ring != MAP_FAILED, "the ring alone");
	int second = call(m.vm, KVM_CREATE_VCPU, 1);
	uint8_t *other = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
	memset(ring, 0x5a, 16);
	is(other[2 * 4096 + 5], 0x5a, "is the same in every vCPU's mapping");
	is(((uint8_t *)m.run)[2 * 4096 + 5], 0x5a, "of all vCPUs");
	is(error_of(cetkvm_mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vm, 0) == MAP_FAILED ? -1 : 0), ENODEV,
	   "a machine cannot be mapped");
	munmap(other, 3 * 4096);
	munmap(ring, 4096);
	cetkvm_close(second);

	fflush(stdout);
	pid_t child = fork();
	if (!child) {
		struct kvm_regs regs;
		int good = error_of(call(m.vcpu, KVM_GET_REGS, &regs)) == EIO;
		struct machine own;

		machine_start(&own, 0);
		machine_bytes(&own, 0xf4);
		good = good && machine_run(&own) == KVM_EXIT_HLT;
		machine_end(&own);
		_exit(good ? 0 : 1);
	}
	int status = -1;
	waitpid(child, &status, 0);
	is(status, 0, "a child has no share in the machine, but makes its own");
	machine_end(&m);

	// Nothing is left behind.
	int before = open_files();
	for (unsigned i = 0; i < 20; i++) {
		machine_start(&m, IRQCHIP);
		machine_bytes(&m, 0xe6, 0x80);
		machine_run(&m);
		machine_end(&m);
	}
	is(open_files(), before, "no descriptor leaks");
}

int main(void)
{
	test_dispatch();
	test_vcpus();
	test_eventfds();
	test_lifetimes();
	return done_testing();
}
