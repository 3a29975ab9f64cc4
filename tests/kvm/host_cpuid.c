// SPDX-License-Identifier: MIT
// The option "host-cpuid": a host without shadow stacks, IBT and protection keys, and a guest that was told it has
// them. The guest's CPUID stays what the client says; nothing behind it is there.
#include "machine.h"

#define SHSTK_ECX (1u << 7)
#define PKU_ECX (1u << 3)
#define IBT_EDX (1u << 20)
#define CR4_PKE (1u << 22)
#define CR4_CET (1u << 23)
#define XSTATE_PKRU 0x200
#define REG_SSP 0x2030000300000000ull

static void to_text(const struct kvm_cpuid2 *cpuid, char *text)
{
	for (unsigned i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		text += sprintf(text, "%x:%x:%x:%x:%x:%x:%x;", e->function, e->index, e->flags, e->eax, e->ebx, e->ecx,
				e->edx);
	}
}

static bool listed(int kvm, uint32_t msr)
{
	struct {
		struct kvm_msr_list header;
		uint32_t indices[300];
	} list = { .header.nmsrs = 300 };

	if (call(kvm, KVM_GET_MSR_INDEX_LIST, &list) < 0)
		abort();
	for (unsigned i = 0; i < list.header.nmsrs; i++)
		if (list.indices[i] == msr)
			return true;
	return false;
}

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msrs = { .header.nmsrs = 1, .entry = { .index = index, .data = value } };

	return call(fd, KVM_SET_MSRS, &msrs);
}

// What the smaller host is like, as its text.
static void make_smaller(struct kvm_cpuid2 *cpuid, char *text)
{
	cpuid_entry(cpuid, 7, 0)->ecx &= ~(SHSTK_ECX | PKU_ECX);
	cpuid_entry(cpuid, 7, 0)->edx &= ~IBT_EDX;
	cpuid_entry(cpuid, 0xd, 0)->eax &= ~XSTATE_PKRU;
	cpuid_entry(cpuid, 0xd, 1)->ecx &= ~0x1800u;
	to_text(cpuid, text);
}

static void test_guest(struct kvm_cpuid2 *all)
{
	struct machine m;
	struct kvm_sregs sregs;
	static struct kvm_xsave xsave;
	uint64_t value, header = 3 | XSTATE_PKRU;
	struct kvm_one_reg ssp = { .id = REG_SSP, .addr = (uintptr_t)&value };

	machine_start(&m, 0);
	is(error_of(call(m.vcpu, KVM_SET_CPUID2, all)), 0, "a guest may be told of what the host has not");
	is(error_of(call(m.vcpu, KVM_GET_ONE_REG, &ssp)), EINVAL, "it has no SSP");
	is(set_msr(m.vcpu, 0x6a0, 1), 0, "U_CET is refused");
	is(set_msr(m.vcpu, 0x6a0, 0), 0, "and 0 too, for the host does not list it");
	is(set_msr(m.vcpu, 0xda0, 0x1800), 0, "XSS with CET is refused");
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr4 = CR4_CET;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "CR4.CET is refused");
	sregs.cr4 = CR4_PKE;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "CR4.PKE is refused");
	is(error_of(call(m.vcpu, KVM_GET_XSAVE, &xsave)), 0, "GET_XSAVE");
	memcpy(&value, (char *)xsave.region + 512, sizeof(value));
	is(value & XSTATE_PKRU, 0, "no PKRU in the image");
	memcpy((char *)xsave.region + 512, &header, sizeof(header));
	is(error_of(call(m.vcpu, KVM_SET_XSAVE, &xsave)), EINVAL, "and none is taken");
	header = 7;
	memcpy((char *)xsave.region + 512, &header, sizeof(header));
	is(error_of(call(m.vcpu, KVM_SET_XSAVE, &xsave)), 0, "what the host has is taken");
	machine_end(&m);
}

int main(void)
{
	static char text[16384];
	int kvm = cetkvm_open();
	struct kvm_cpuid2 *all = supported_cpuid(kvm), *smaller = supported_cpuid(kvm), *now;

	ok(listed(kvm, 0x6a0) && listed(kvm, 0xda0), "the whole host lists U_CET and XSS");
	is(error_of(cetkvm_set_option("host-cpuid", "")), EINVAL, "an empty host is none");
	is(error_of(cetkvm_set_option("host-cpuid", "7:0:1:x")), EINVAL, "nor is what cannot be read");
	make_smaller(smaller, text);
	is(error_of(cetkvm_set_option("host-cpuid", text)), 0, "a smaller host");
	now = supported_cpuid(kvm);
	ok(!(cpuid_entry(now, 7, 0)->ecx & (SHSTK_ECX | PKU_ECX)) && !(cpuid_entry(now, 7, 0)->edx & IBT_EDX) &&
		   !(cpuid_entry(now, 0xd, 0)->eax & XSTATE_PKRU),
	   "KVM_GET_SUPPORTED_CPUID says what was said");
	ok(!listed(kvm, 0x6a0) && !listed(kvm, 0xda0), "it lists no MSR of CET, nor XSS");
	test_guest(all);
	to_text(all, text);
	is(error_of(cetkvm_set_option("host-cpuid", text)), EBUSY, "after the first machine it is what it is");
	free(all);
	free(smaller);
	free(now);
	cetkvm_close(kvm);
	return done_testing();
}
