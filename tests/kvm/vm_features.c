// SPDX-License-Identifier: MIT
// What a client switches on for a whole machine, or asks of it: MSR filters, the TSC's offset,
// statistics, exits on emulation failures, KVM's hypercalls.
#include "machine.h"

#include <unistd.h>

static int enable(int fd, uint32_t number, uint64_t argument)
{
	struct kvm_enable_cap cap = { .cap = number, .args = { argument } };

	return error_of(call(fd, KVM_ENABLE_CAP, &cap));
}

static void test_msr_filter(void)
{
	uint8_t denied = 0;
	struct kvm_msr_filter filter = { .ranges = { { .flags = KVM_MSR_FILTER_READ, .base = 0xc0000102, .nmsrs = 1,
		.bitmap = &denied } } };
	struct machine m;

	machine_start(&m, 0);
	filter.flags = 2;
	is(error_of(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter)), EINVAL, "unknown flags of a filter");
	filter.flags = 0;
	filter.ranges[0].flags = 4;
	is(error_of(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter)), EINVAL, "unknown flags of a range");
	filter.ranges[0].flags = KVM_MSR_FILTER_READ;
	filter.ranges[0].nmsrs = 0x10000;
	is(error_of(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter)), EINVAL, "too long a range");
	filter.ranges[0].nmsrs = 0;
	filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
	is(error_of(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter)), EINVAL, "nothing allowed at all");
	filter.flags = 0;
	filter.ranges[0].nmsrs = 1;
	filter.ranges[0].bitmap = (void *)8;
	is(error_of(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter)), EFAULT, "no bitmap there");
	filter.ranges[0].bitmap = &denied;
	is(call(m.vm, KVM_X86_SET_MSR_FILTER, &filter), 0, "KERNEL_GS_BASE may not be read");
	is(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, 1 << 3), EINVAL, "an unknown reason to exit");
	is(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0, "exit for what is denied");
	// mov ecx,0xc0000102; wrmsr; rdmsr; out 0x80,al; hlt
	machine_bytes(&m, 0x66, 0xb9, 0x02, 0x01, 0, 0xc0, 0x0f, 0x30, 0x0f, 0x32, 0xe6, 0x80, 0xf4);
	is(machine_run(&m), KVM_EXIT_X86_RDMSR, "the read, not the write");
	is(m.run->msr.index, 0xc0000102, "its number");
	is(m.run->msr.reason, KVM_MSR_EXIT_REASON_FILTER, "the reason");
	m.run->msr.data = 0x77;
	is(machine_run(&m), KVM_EXIT_IO, "on with an answer");
	is(((uint8_t *)m.run)[4096], 0x77, "which the guest gets");
	machine_end(&m);
}

static void test_tsc_offset(void)
{
	uint64_t offset = 0;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)&offset };
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = 0x10 } };
	uint64_t before, after;
	struct machine m;

	machine_start(&m, 0);
	is(call(m.vcpu, KVM_HAS_DEVICE_ATTR, &attr), 0, "the offset is an attribute");
	attr.attr = 1;
	is(error_of(call(m.vcpu, KVM_HAS_DEVICE_ATTR, &attr)), ENXIO, "another is not");
	attr.attr = KVM_VCPU_TSC_OFFSET;
	attr.addr = 8;
	is(error_of(call(m.vcpu, KVM_SET_DEVICE_ATTR, &attr)), EFAULT, "no value there");
	attr.addr = (uintptr_t)&offset;
	offset = 1ull << 50;
	is(call(m.vcpu, KVM_SET_DEVICE_ATTR, &attr), 0, "set");
	before = __builtin_ia32_rdtsc() + offset;
	call(m.vcpu, KVM_GET_MSRS, &msr);
	after = __builtin_ia32_rdtsc() + offset;
	ok(before <= msr.entry.data && msr.entry.data <= after, "the TSC is the host's and that");
	offset = 0;
	is(call(m.vcpu, KVM_GET_DEVICE_ATTR, &attr), 0, "get");
	is(offset, 1ll << 50, "the same");
	is(error_of(call(m.vm, KVM_SET_TSC_KHZ, 1000000)), EINVAL, "the machine's frequency is fixed with its first vCPU");
	machine_end(&m);
}

static uint64_t counter(int fd, const char *name)
{
	struct kvm_stats_header header;
	uint64_t value = ~0ull;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
		return ~0ull;
	for (unsigned i = 0; i < header.num_desc; i++) {
		size_t size = sizeof(struct kvm_stats_desc) + header.name_size;
		uint8_t bytes[256] = { 0 };
		struct kvm_stats_desc d;

		if (size > sizeof(bytes) || pread(fd, bytes, size, header.desc_offset + i * size) != (ssize_t)size)
			return ~0ull;
		memcpy(&d, bytes, sizeof(d));
		if (!strcmp((char *)bytes + sizeof(d), name) &&
		    pread(fd, &value, sizeof(value), header.data_offset + d.offset) != sizeof(value))
			return ~0ull;
	}
	return value;
}

static void test_statistics(void)
{
	struct machine m;
	uint64_t first;
	int fd;

	machine_start(&m, 0);
	machine_bytes(&m, 0xe6, 0x80, 0xe6, 0x80, 0xe6, 0x80, 0xf4);
	machine_run(&m);
	fd = call(m.vcpu, KVM_GET_STATS_FD, 0);
	ok(fd >= 0, "a descriptor");
	first = counter(fd, "io_exits");
	is(first, 1, "what was counted before");
	machine_run(&m);
	is(counter(fd, "io_exits"), 2, "and what is counted since");
	is(write(fd, &m, 8), -1, "read only");
	machine_end(&m);
	is(counter(fd, "io_exits"), 2, "it outlives the machine");
	close(fd);

	machine_start(&m, IRQCHIP);
	fd = call(m.vcpu, KVM_GET_STATS_FD, 0);
	memcpy(m.memory + 2 * 4, "\x00\x30\x00\x00", 4); // NMI
	memcpy(m.memory + 0x20 * 4, "\x00\x30\x00\x00", 4);
	memcpy(m.memory + 0x3000, "\xe6\x80\xcf", 3); // out 0x80,al; iret
	machine_bytes(&m, 0xfb, 0xf4);
	struct kvm_mp_state halted = { KVM_MP_STATE_HALTED };
	is(call(m.vcpu, KVM_SET_MP_STATE, &halted), 0, "a halted vCPU");
	call(m.vcpu, KVM_NMI, 0);
	is(machine_run(&m), KVM_EXIT_IO, "an NMI wakes it");
	is(counter(fd, "halt_wakeup"), 1, "which is counted");
	struct kvm_lapic_state lapic;
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	lapic.regs[0xf1] = 1; // enabled, and an interrupt with vector 0x20 is there
	lapic.regs[0x210] = 1;
	call(m.vcpu, KVM_SET_LAPIC, &lapic);
	is(machine_run(&m), KVM_EXIT_IO, "an interrupt");
	is(counter(fd, "irq_injections"), 1, "is counted");
	machine_end(&m);
	close(fd);
}

static void test_emulation_failure(void)
{
	struct machine m;

	machine_start(&m, 0);
	is(enable(m.vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0, "tell of what KVM cannot do");
	// fld dword [0xf000:0] in a segment without memory
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0xd0000;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	machine_bytes(&m, 0xd9, 0x06, 0x00, 0x00, 0xf4);
	is(machine_run(&m), KVM_EXIT_INTERNAL_ERROR, "x87 and memory I/O");
	is(m.run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION, "which error");
	ok(m.run->emulation_failure.insn_size >= 4 && m.run->emulation_failure.insn_bytes[0] == 0xd9, "with its bytes");
	is(machine_regs(&m).rip, m.code, "RIP stays");
	machine_end(&m);
}

static void test_hypercalls(void)
{
	struct machine m;

	machine_start(&m, 0);
	// mov eax,11; vmcall; out 0x80,al; mov eax,99; vmcall; out 0x80,al
	machine_bytes(&m, 0x66, 0xb8, 11, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xe6, 0x80, 0x66, 0xb8, 99, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xe6, 0x80);
	machine_run(&m);
	is(((uint8_t *)m.run)[4096], 0, "KVM_HC_SCHED_YIELD");
	machine_run(&m);
	is(((uint8_t *)m.run)[4096], (uint8_t)-1000, "an unknown one: -KVM_ENOSYS");
	machine_end(&m);
}

int main(void)
{
	test_msr_filter();
	test_tsc_offset();
	test_statistics();
	test_emulation_failure();
	test_hypercalls();
	return done_testing();
}
