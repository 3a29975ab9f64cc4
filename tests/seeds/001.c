// SPDX-License-Identifier: MIT
// Document 001, "KVM: x86: Report XSS as to-be-saved if there are supported features", and its answers:
// which supervisor components a guest gets, and that XSAVES reaches no other state.
#include "seeds.h"

int main(void)
{
	struct { struct kvm_msr_list list; uint32_t more[512]; } l = { .list.nmsrs = 512 };
	static const struct { const char *name; unsigned bit; } others[] = {
		{ "PT", 8 }, { "PASID", 10 }, { "HDC", 13 }, { "UINTR", 14 }, { "LBR", 15 }, { "HWP", 16 },
	};
	struct kvm_cpuid2 *cpuid;
	struct kvm_cpuid_entry2 *leaf;
	struct machine m;
	unsigned found = 0;

	start_with(&m, 0, 0);
	cpuid = supported_cpuid(m.kvm);
	leaf = cpuid_entry(cpuid, 0xd, 1);
	is(leaf->ecx | (uint64_t)leaf->edx << 32, 0x1800, "001 supported supervisor components: both of CET, no other");
	call(m.kvm, KVM_GET_MSR_INDEX_LIST, &l);
	for (unsigned i = 0; i < l.list.nmsrs; i++)
		found += l.list.indices[i] == XSS;
	is(found, leaf->ecx != 0, "001 IA32_XSS is to be saved since there is one");
	ok(set_msr(m.vcpu, XSS, 0x1800), "001 they can be enabled");
	for (unsigned i = 0; i < sizeof(others) / sizeof(*others); i++)
		ok(!set_msr(m.vcpu, XSS, 1ull << others[i].bit), "001 %s cannot: it is not switched lazily", others[i].name);
	is(get_msr(m.vcpu, XSS), 0x1800, "001 refused values change nothing");

	// XSAVES of everything, by a guest with XSS = 0 and with both.
	flat_mode(&m, 0x40600);
	memset(m.memory + 0x8000, 0, 4096);
	set_msr(m.vcpu, PL0_SSP, 0x1230);
	set_msr(m.vcpu, PL3_SSP, 0x4560);
	for (unsigned enabled = 0; enabled <= 1; enabled++) {
		uint8_t *area = m.memory + 0x8000;

		set_msr(m.vcpu, XSS, enabled ? 0x1800 : 0);
		// MOV EAX, -1; MOV EDX, -1; XSAVES [0x8000]; OUT
		is(run_bytes(&m, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xba, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xc7, 0x2d, 0x00, 0x80, 0x00, 0x00,
			     0xe6, 0x80), 0x80, "(XSAVES)");
		is(*(uint64_t *)(area + 520) & ~(1ull << 63), 1 | (enabled ? 0x1800 : 0), "001 XSAVES reaches what XCR0 and XSS enable (XSS %#x)",
		   enabled ? 0x1800 : 0);
		is(*(uint64_t *)(area + 584), enabled ? 0x4560 : 0, "001 PL3_SSP is saved %s", enabled ? "then" : "only then");
		is(*(uint64_t *)(area + 592), enabled ? 0x1230 : 0, "001 PL0_SSP too");
	}
	free(cpuid);
	machine_end(&m);

	machine_start(&m, 0);
	cpuid = supported_cpuid(m.kvm);
	cpuid_entry(cpuid, 0xd, 1)->eax &= ~8u;
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	ok(!set_msr(m.vcpu, XSS, 0x1800), "001 without XSAVES there is no IA32_XSS to set");
	ok(set_msr(m.vcpu, XSS, 0) && get_msr(m.vcpu, XSS) == 0, "001 its 0 can be restored");
	free(cpuid);
	machine_end(&m);
	return done_testing();
}
