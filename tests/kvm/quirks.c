// SPDX-License-Identifier: MIT
// Quirks that a client switches off, and exits it disables: MONITOR and MWAIT.
#include "machine.h"

static int enable(int fd, uint32_t number, uint64_t argument)
{
	struct kvm_enable_cap cap = { .cap = number, .args = { argument } };

	return error_of(call(fd, KVM_ENABLE_CAP, &cap));
}

#define MWAIT_UD KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
#define MWAIT_MSR KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT

// The local APIC's page where the APIC does not answer there: MMIO that leads nowhere, or user space's.
static void apic_page(void)
{
	// A 32-bit linear address in real mode: the segment has 4 GiB.
	static const uint8_t load_store[] = {
		0x67, 0x66, 0xa1, 0x30, 0x00, 0xe0, 0xfe,		     // mov eax, [0xfee00030]
		0x66, 0xe7, 0x80,					     // out 0x80, eax
		0x67, 0x66, 0xc7, 0x05, 0x00, 0x00, 0xe0, 0xfe, 0xff, 0, 0, 0, // mov dword [0xfee00000], 0xff
		0xe6, 0x81, 0xf4 };
	static const char *const modes[] = { "disabled", "in x2APIC mode" };
	struct kvm_sregs sregs;

	for (unsigned mode = 0; mode < 2; mode++) {
		struct kvm_cpuid2 *cpuid;
		struct machine m;

		machine_start(&m, IRQCHIP);
		cpuid = supported_cpuid(m.kvm);
		call(m.vcpu, KVM_SET_CPUID2, cpuid);
		free(cpuid);
		call(m.vcpu, KVM_GET_SREGS, &sregs);
		sregs.apic_base = 0xfee00100 | (mode ? 0xc00 : 0);
		sregs.ds.limit = 0xffffffff;
		sregs.ds.g = 1;
		is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "the APIC is %s", modes[mode]);
		machine_code(&m, load_store, sizeof(load_store));
		is(machine_run(&m), KVM_EXIT_IO, "a load from its page");
		is(*(uint32_t *)((char *)m.run + m.run->io.data_offset), 0xffffffff, "reads ones");
		is(machine_run(&m), KVM_EXIT_IO, "a store there");
		is(m.run->io.port, 0x81, "does nothing");
		is(enable(m.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LAPIC_MMIO_HOLE), 0, "the quirk off");
		machine_code(&m, load_store, sizeof(load_store));
		is(machine_run(&m), KVM_EXIT_MMIO, "the load is user space's");
		is(m.run->mmio.phys_addr, 0xfee00030, "its address");
		machine_end(&m);
	}
}

static uint32_t lint0_of(int vcpu)
{
	struct kvm_lapic_state lapic;
	uint32_t value = 0;

	if (call(vcpu, KVM_GET_LAPIC, &lapic) == 0)
		memcpy(&value, lapic.regs + 0x350, 4);
	return value;
}

static void test_lint0(void)
{
	struct machine m;

	machine_start(&m, IRQCHIP);
	is(lint0_of(m.vcpu), 0x700, "the boot processor's LINT0 takes interrupts of the 8259");
	machine_end(&m);
	machine_start(&m, IRQCHIP | NO_VCPU);
	is(enable(m.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LINT0_REENABLED), 0, "without that quirk");
	machine_vcpu(&m);
	is(lint0_of(m.vcpu), 0x10000, "it is masked");
	machine_end(&m);
}

int main(void)
{
	struct machine m;
	long mask, exits;

	machine_start(&m, NO_VCPU);
	mask = call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_DISABLE_QUIRKS2);
	ok((mask & MWAIT_UD) && (mask & MWAIT_MSR), "the quirks of MWAIT can be switched off");
	is(enable(m.vm, KVM_CAP_DISABLE_QUIRKS2, 1ull << 40), EINVAL, "what is no quirk cannot");
	exits = call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_DISABLE_EXITS);
	ok(exits & KVM_X86_DISABLE_EXITS_MWAIT, "exits that can be disabled: MWAIT");
	is(enable(m.vm, KVM_CAP_X86_DISABLE_EXITS, exits), 0, "disable them");
	is(enable(m.vm, KVM_CAP_X86_DISABLE_EXITS, 1 << 20), EINVAL, "an unknown one");
	struct kvm_cpuid2 *emulated = calloc(1, sizeof(*emulated) + 100 * sizeof(emulated->entries[0]));
	emulated->nent = 1;
	is(call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_EXT_EMUL_CPUID), 1, "KVM_CAP_EXT_EMUL_CPUID");
	is(error_of(call(m.kvm, KVM_GET_EMULATED_CPUID, emulated)), E2BIG, "too small");
	emulated->nent = 100;
	emulated->entries[7].padding[1] = 1;
	is(error_of(call(m.kvm, KVM_GET_EMULATED_CPUID, emulated)), EINVAL, "padding is 0");
	emulated->entries[7].padding[1] = 0;
	is(call(m.kvm, KVM_GET_EMULATED_CPUID, emulated), 0, "KVM_GET_EMULATED_CPUID");
	ok(cpuid_entry(emulated, 1, 0)->ecx == 8 && cpuid_entry(emulated, 7, 0)->edx == 1 << 4, "MONITOR and FSRM");
	free(emulated);
	machine_end(&m);

	machine_start(&m, 0);
	memcpy(m.memory + 6 * 4, "\x00\x30\x00\x00", 4); // #UD
	memcpy(m.memory + 0x3000, "\xe6\x66\xf4", 3);
	struct kvm_cpuid2 *cpuid = supported_cpuid(m.kvm);
	is(cpuid_entry(cpuid, 1, 0)->ecx & 8, 0, "MWAIT is not offered");
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	machine_bytes(&m, 0x66, 0x31, 0xc9, 0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9, 0xe6, 0x80, 0xf4); // xor ecx,ecx; monitor; mwait; out
	is(machine_run(&m), KVM_EXIT_IO, "by default");
	is(m.run->io.port, 0x80, "MONITOR and MWAIT do nothing");
	machine_run(&m);
	is(enable(m.vm, KVM_CAP_DISABLE_QUIRKS2, MWAIT_UD), 0, "the quirk off, with a vCPU there");
	machine_bytes(&m, 0x66, 0x31, 0xc9, 0x0f, 0x01, 0xc8, 0xe6, 0x80, 0xf4);
	machine_run(&m);
	is(m.run->io.port, 0x66, "#UD without the CPUID bit");
	machine_run(&m);
	is(enable(m.vm, KVM_CAP_DISABLE_QUIRKS2, MWAIT_UD | MWAIT_MSR), 0, "the other one off, too");
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = {
		{ .nmsrs = 1 }, { .index = 0x1a0, .data = 1 << 18 | 0x1800 } };
	is(call(m.vcpu, KVM_SET_MSRS, &msr), 1, "IA32_MISC_ENABLE.MWAIT");
	machine_bytes(&m, 0x66, 0x31, 0xc9, 0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9, 0xe6, 0x80, 0xf4);
	machine_run(&m);
	is(m.run->io.port, 0x80, "brings them");
	free(cpuid);
	machine_end(&m);
	apic_page();
	test_lint0();
	return done_testing();
}
