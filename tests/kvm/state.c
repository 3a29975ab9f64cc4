// SPDX-License-Identifier: MIT
// State for user space: CPUID, MSRs, registers, extended state, events, ONE_REG: rules and errors.
#include "machine.h"

#define SHSTK_ECX (1u << 7)
#define IBT_EDX (1u << 20)
#define REG_MSR(index) (0x2030000200000000ull | (index))
#define REG_SSP 0x2030000300000000ull

struct msrs {
	struct kvm_msrs header;
	struct kvm_msr_entry entries[300];
};

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	struct msrs m = { .header.nmsrs = 1, .entries[0] = { .index = index, .data = value } };

	return call(fd, KVM_SET_MSRS, &m);
}

static int get_msr(int fd, uint32_t index, uint64_t *value)
{
	struct msrs m = { .header.nmsrs = 1, .entries[0].index = index };
	int n = call(fd, KVM_GET_MSRS, &m);

	*value = m.entries[0].data;
	return n;
}

// A vCPU with all that is supported.
static void start(struct machine *m, unsigned flags)
{
	struct kvm_cpuid2 *cpuid;

	machine_start(m, flags);
	cpuid = supported_cpuid(m->kvm);
	if (call(m->vcpu, KVM_SET_CPUID2, cpuid) < 0)
		abort();
	free(cpuid);
}

static void test_cpuid(void)
{
	struct machine m;
	struct kvm_cpuid2 *cpuid, *back = calloc(1, sizeof(*back) + 256 * sizeof(back->entries[0]));

	machine_start(&m, 0);
	cpuid = supported_cpuid(m.kvm);
	ok(cpuid->nent <= 80, "at most 80 entries (%u)", cpuid->nent);
	ok(cpuid_entry(cpuid, 7, 0)->ecx & SHSTK_ECX, "shadow stacks");
	ok(cpuid_entry(cpuid, 7, 0)->edx & IBT_EDX, "indirect branch tracking");
	is(cpuid_entry(cpuid, 0xd, 1)->ecx & 0x1800, 0x1800, "CET in XSS");
	is(cpuid_entry(cpuid, 0xd, 11)->eax, 16, "CET_U");
	is(cpuid_entry(cpuid, 0xd, 12)->eax, 24, "CET_S");
	ok(cpuid_entry(cpuid, 0xd, 0)->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX, "leaf 0xD: the index matters");
	ok(cpuid_entry(cpuid, 0x40000000, 0) && cpuid_entry(cpuid, 0x40000001, 0), "hypervisor leaves");
	is(cpuid_entry(cpuid, 1, 0)->ecx >> 24 & 1, 0, "TSC-deadline mode is a capability's to announce");
	is(call(m.kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_TSC_DEADLINE_TIMER), 1, "KVM_CAP_TSC_DEADLINE_TIMER");
	back->nent = 3;
	is(error_of(call(m.kvm, KVM_GET_SUPPORTED_CPUID, back)), E2BIG, "too small");
	is(back->nent, 3, "nent stays as it was");
	is(call(m.vcpu, KVM_SET_CPUID2, cpuid), 0, "set");
	back->nent = 1;
	is(error_of(call(m.vcpu, KVM_GET_CPUID2, back)), E2BIG, "get, too small");
	back->nent = 256;
	is(call(m.vcpu, KVM_GET_CPUID2, back), 0, "get");
	is(back->nent, cpuid->nent, "as many");
	back->nent = 257;
	is(error_of(call(m.vcpu, KVM_SET_CPUID2, back)), E2BIG, "257 entries");
	is(cpuid_entry(cpuid, 1, 0)->ecx & 1 << 27, 0, "OSXSAVE is the system's");
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr4 |= 1 << 18;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "CR4.OSXSAVE");
	back->nent = 256;
	call(m.vcpu, KVM_GET_CPUID2, back);
	ok(cpuid_entry(back, 1, 0)->ecx & 1 << 27, "shows in CPUID");
	machine_bytes(&m, 0xf4);
	machine_run(&m);
	is(call(m.vcpu, KVM_SET_CPUID2, cpuid), 0, "after the first run: the same again");
	cpuid_entry(cpuid, 7, 0)->ecx &= ~SHSTK_ECX;
	is(error_of(call(m.vcpu, KVM_SET_CPUID2, cpuid)), EINVAL, "but nothing else");
	machine_end(&m);
	free(cpuid);
	free(back);
}

static void test_sregs(void)
{
	static const struct {
		const char *name;
		uint64_t cr0_set, cr0_clear, cr4_set, efer_set;
		int error;
	} rows[] = {
		{ "as it is", 0, 0, 0, 0, 0 },
		{ "PG without PE", 1u << 31, 1, 0, 0, EINVAL },
		{ "NW without CD", 1 << 29, 1 << 30, 0, 0, EINVAL },
		{ "CR0 bit 32", 1ull << 32, 0, 0, 0, EINVAL },
		{ "CR4 bit 32", 0, 0, 1ull << 32, 0, EINVAL },
		{ "CR4.VMXE", 0, 0, 1 << 13, 0, EINVAL },
		{ "CR4.SMXE", 0, 0, 1 << 14, 0, EINVAL },
		{ "CR4.CET, WP clear: the host may", 0, 1 << 16, 1 << 23, 0, 0 },
		{ "CR4.OSXSAVE", 0, 0, 1 << 18, 0, 0 },
		{ "EFER.LMA without paging", 0, 0, 0, 1 << 10, EINVAL },
		{ "LME and PG without LMA", (1u << 31) | 1, 0, 1 << 5, 1 << 8, EINVAL },
		{ "LME and PG without PAE", (1u << 31) | 1, 0, 0, 5 << 8, EINVAL },
		{ "long mode", (1u << 31) | 1, 0, 1 << 5, 5 << 8, 0 },
		{ "EFER bit 20", 0, 0, 0, 1 << 20, EINVAL },
	};
	struct machine m;
	struct kvm_sregs sregs, back;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		start(&m, IRQCHIP);
		call(m.vcpu, KVM_GET_SREGS, &sregs);
		sregs.cr0 = (sregs.cr0 | rows[i].cr0_set) & ~rows[i].cr0_clear;
		sregs.cr4 |= rows[i].cr4_set;
		sregs.efer |= rows[i].efer_set;
		back = sregs;
		is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), rows[i].error, "SREGS: %s", rows[i].name);
		call(m.vcpu, KVM_GET_SREGS, &back);
		if (rows[i].error)
			ok(back.cr0 == 0x60000010 && !back.cr4 && !back.efer, "nothing has changed");
		else
			ok(!memcmp(&sregs, &back, sizeof(sregs)), "it reads back");
		machine_end(&m);
	}
	// Before any CPUID all that is supported is legal.
	machine_start(&m, 0);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr0 |= (1u << 31) | 1;
	sregs.cr4 |= (1 << 5) | (1 << 7) | (1 << 9);
	sregs.efer = 0xd01;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), 0, "long mode before KVM_SET_CPUID2");
	machine_end(&m);

	start(&m, IRQCHIP);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	is(sregs.apic_base, 0xfee00900, "IA32_APIC_BASE of the boot processor");
	sregs.apic_base |= 1ull << 60;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "reserved bits of it");
	sregs.apic_base = 0xfee00500;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "x2APIC without the APIC");
	struct kvm_sregs2 two;
	is(call(m.vcpu, KVM_GET_SREGS2, &two), 0, "SREGS2");
	is(two.flags, 0, "no PDPTRs without PAE");
	two.flags = 1;
	is(error_of(call(m.vcpu, KVM_SET_SREGS2, &two)), EINVAL, "PDPTRs without PAE");
	two.cr0 |= (1u << 31) | 1;
	two.cr4 |= 1 << 5;
	two.pdptrs[1] = 0x5001;
	is(error_of(call(m.vcpu, KVM_SET_SREGS2, &two)), 0, "with it");
	call(m.vcpu, KVM_GET_SREGS2, &two);
	ok(two.flags == 1 && two.pdptrs[1] == 0x5001, "read back");
	two.flags = 2;
	is(error_of(call(m.vcpu, KVM_SET_SREGS2, &two)), EINVAL, "unknown flag");
	machine_end(&m);
}

// A lower task priority is reported to a user space that has the APIC if the guest sets it, not if it did so
// itself.
static void test_task_priority(void)
{
	struct kvm_sregs sregs;
	struct machine m;

	machine_start(&m, 0);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr8 = 5;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "a task priority");
	sregs.cr8 = 3;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "a lower one");
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	is(sregs.cr8, 3, "is there");
	machine_bytes(&m, 0xf4);
	m.run->cr8 = 3;
	is(machine_run(&m), KVM_EXIT_HLT, "and no KVM_EXIT_SET_TPR comes of it");
	// IA32_APIC_BASE has the same rules wherever the APIC is.
	sregs.apic_base |= 1 << 10;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "x2APIC mode without the CPUID bit");
	sregs.apic_base &= ~(1ull << 10);
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "xAPIC mode");
	struct kvm_cpuid2 *cpuid = supported_cpuid(m.kvm);
	cpuid_entry(cpuid, 1, 0)->ecx |= 1 << 21;
	machine_end(&m);

	machine_start(&m, 0);
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.apic_base |= 1 << 10;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "x2APIC mode with it");
	sregs.apic_base &= ~(1ull << 11);
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), EINVAL, "but not with the APIC disabled");
	free(cpuid);
	machine_end(&m);
}

static void test_msrs(void)
{
	struct machine m;
	struct msrs all = { 0 };
	struct { struct kvm_msr_list l; uint32_t more[512]; } list = { 0 };
	static const struct {
		const char *name;
		uint32_t index;
		uint64_t value;
		bool good;
	} rows[] = {
		{ "U_CET", 0x6a0, 3, true }, { "U_CET reserved", 0x6a0, 1 << 6, false },
		{ "S_CET suppress and track", 0x6a2, 3 << 10, false }, { "PL3_SSP", 0x6a7, 0x1000, true },
		{ "PL3_SSP unaligned", 0x6a7, 0x1002, false }, { "PL0_SSP not canonical", 0x6a4, 1ull << 60, false },
		{ "XSS", 0xda0, 0x1800, true }, { "XSS other", 0xda0, 0x100, false },
		{ "LSTAR", 0xc0000082, 0xffffffff80000000, true }, { "LSTAR not canonical", 0xc0000082, 1ull << 60, false },
		{ "PAT", 0x277, 0x0007040600070406, true }, { "PAT type 2", 0x277, 2, false },
		{ "system time", 0x4b564d01, 0, true }, { "async page faults on", 0x4b564d02, 1, false },
		{ "an unknown one", 0x12345678, 0, false }, { "TSC deadline", 0x6e0, 0, true },
		{ "KVM's own number for SSP", 0x4b564dff, 0x2000, true },
	};
	uint64_t value;

	start(&m, IRQCHIP);
	is(error_of(call(m.kvm, KVM_GET_MSR_INDEX_LIST, &list)), E2BIG, "index list: too small");
	ok(list.l.nmsrs > 20, "and says how many (%u)", list.l.nmsrs);
	is(call(m.kvm, KVM_GET_MSR_INDEX_LIST, &list), 0, "index list");
	unsigned cet = 0, failed = 0;
	for (unsigned i = 0; i < list.l.nmsrs; i++) {
		uint32_t index = list.l.indices[i];

		cet += index == 0xda0 || index == 0x6a0 || index == 0x6a2 || (index >= 0x6a4 && index <= 0x6a8);
		if (get_msr(m.vcpu, index, &value) != 1 || set_msr(m.vcpu, index, value) != 1) {
			printf("# MSR %#x cannot be read and written back\n", index);
			failed++;
		}
		for (unsigned j = 0; j < i; j++)
			if (list.l.indices[j] == index)
				failed++;
	}
	is(cet, 8, "with XSS and the CET MSRs");
	is(failed, 0, "all of it can be saved and restored, nothing twice");
	memset(&list, 0, sizeof(list));
	is(error_of(call(m.kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list)), E2BIG, "feature list");
	is(call(m.kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list), 0, "feature list");
	for (unsigned i = 0; i < list.l.nmsrs; i++)
		all.entries[i].index = list.l.indices[i];
	all.header.nmsrs = list.l.nmsrs;
	is(call(m.kvm, KVM_GET_MSRS, &all), list.l.nmsrs, "the system's KVM_GET_MSRS knows all of them");
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		is(set_msr(m.vcpu, rows[i].index, rows[i].value), rows[i].good, "MSR: %s", rows[i].name);
		if (rows[i].good)
			ok(get_msr(m.vcpu, rows[i].index, &value) == 1 && value == rows[i].value, "reads back");
	}
	all.header.nmsrs = 256;
	is(error_of(call(m.vcpu, KVM_GET_MSRS, &all)), E2BIG, "256 at once");
	all = (struct msrs){ .header.nmsrs = 3, .entries = { { .index = 0x277 }, { .index = 0x12345678 }, { .index = 0x277 } } };
	is(call(m.vcpu, KVM_GET_MSRS, &all), 1, "stops at the first bad one");
	machine_end(&m);

	// Features that the guest has not: the list's MSRs are 0 to the host.
	struct kvm_cpuid2 *cpuid;
	machine_start(&m, IRQCHIP);
	cpuid = supported_cpuid(m.kvm);
	cpuid_entry(cpuid, 7, 0)->ecx &= ~SHSTK_ECX;
	cpuid_entry(cpuid, 7, 0)->edx &= ~IBT_EDX;
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	ok(get_msr(m.vcpu, 0x6a7, &value) == 1 && value == 0, "without CET: PL3_SSP reads 0");
	is(set_msr(m.vcpu, 0x6a7, 0), 1, "can be written 0");
	is(set_msr(m.vcpu, 0x6a7, 0x1000), 0, "and nothing else");
	struct kvm_one_reg reg = { .id = REG_SSP, .addr = (uintptr_t)&value };
	is(error_of(call(m.vcpu, KVM_GET_ONE_REG, &reg)), EINVAL, "no SSP register");
	struct { uint64_t n, reg[4]; } regs = { 0 };
	is(error_of(call(m.vcpu, KVM_GET_REG_LIST, &regs)), 0, "an empty register list");
	machine_end(&m);
}

static void test_one_reg(void)
{
	static const struct {
		const char *name;
		uint64_t id;
		int error;
	} rows[] = {
		{ "SSP", REG_SSP, 0 }, { "an MSR", REG_MSR(0x277), 0 }, { "an unknown MSR", REG_MSR(0x12345678), EINVAL },
		{ "KVM register 1", REG_SSP + 1, EINVAL }, { "another architecture", 0x6030000300000000, EINVAL },
		{ "type 4", 0x2030000400000000, EINVAL }, { "32 bits", 0x2020000200000277, EINVAL },
		{ "reserved nibble", 0x2031000200000277, EINVAL }, { "reserved byte", 0x2030010200000277, EINVAL },
	};
	struct machine m;
	uint64_t value;
	struct kvm_one_reg reg = { .addr = (uintptr_t)&value };
	struct { uint64_t n, reg[4]; } list = { 0 };

	start(&m, 0);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		reg.id = rows[i].id;
		is(error_of(call(m.vcpu, KVM_GET_ONE_REG, &reg)), rows[i].error, "ONE_REG get: %s", rows[i].name);
		is(error_of(call(m.vcpu, KVM_SET_ONE_REG, &reg)), rows[i].error, "ONE_REG set: %s", rows[i].name);
	}
	reg.id = REG_SSP;
	value = 0x7000;
	is(call(m.vcpu, KVM_SET_ONE_REG, &reg), 0, "SSP");
	value = 0;
	call(m.vcpu, KVM_GET_ONE_REG, &reg);
	is(value, 0x7000, "reads back");
	value = 0x7001;
	is(error_of(call(m.vcpu, KVM_SET_ONE_REG, &reg)), EINVAL, "unaligned");
	value = 1ull << 60;
	is(error_of(call(m.vcpu, KVM_SET_ONE_REG, &reg)), EINVAL, "not canonical");
	reg.addr = 8;
	is(error_of(call(m.vcpu, KVM_SET_ONE_REG, &reg)), EFAULT, "bad address, set");
	is(error_of(call(m.vcpu, KVM_GET_ONE_REG, &reg)), EFAULT, "bad address, get");
	is(error_of(call(m.vcpu, KVM_GET_REG_LIST, &list)), E2BIG, "list: too small");
	is(list.n, 1, "says how many");
	is(call(m.vcpu, KVM_GET_REG_LIST, &list), 0, "list");
	is(list.reg[0], REG_SSP, "of SSP");
	machine_end(&m);
}

static void test_extended(void)
{
	struct machine m;
	struct kvm_xcrs xcrs;
	struct kvm_fpu fpu, fpu2;
	int size;
	uint8_t *area;

	start(&m, 0);
	size = call(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	ok(size >= 4096, "KVM_CAP_XSAVE2: %d", size);
	area = aligned_alloc(64, (size + 63) & ~63);
	is(call(m.vcpu, KVM_GET_XCRS, &xcrs), 0, "XCRS");
	ok(xcrs.nr_xcrs == 1 && xcrs.xcrs[0].xcr == 0 && xcrs.xcrs[0].value == 1, "XCR0 is 1 after RESET");
	static const struct {
		uint64_t value;
		int error;
	} rows[] = { { 3, 0 }, { 7, 0 }, { 0, EINVAL }, { 2, EINVAL }, { 5, EINVAL }, { 1ull << 40 | 1, EINVAL }, { 1, 0 } };
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		xcrs.xcrs[0].value = rows[i].value;
		is(error_of(call(m.vcpu, KVM_SET_XCRS, &xcrs)), rows[i].error, "XCR0 = %#llx",
		   (unsigned long long)rows[i].value);
	}
	xcrs.nr_xcrs = 17;
	is(error_of(call(m.vcpu, KVM_SET_XCRS, &xcrs)), EINVAL, "17 XCRs");
	xcrs.nr_xcrs = 1;
	xcrs.flags = 1;
	is(error_of(call(m.vcpu, KVM_SET_XCRS, &xcrs)), EINVAL, "flags");

	is(call(m.vcpu, KVM_GET_FPU, &fpu), 0, "FPU");
	ok(fpu.fcw == 0x40 || fpu.fcw == 0x37f, "control word after RESET (%#x)", fpu.fcw);
	is(fpu.mxcsr, 0x1f80, "MXCSR after RESET");
	for (unsigned i = 0; i < 16; i++)
		memset(fpu.xmm[i], 0x10 + i, 16);
	for (unsigned i = 0; i < 8; i++)
		memset(fpu.fpr[i], 0x40 + i, 10);
	fpu.ftwx = 0x5a;
	fpu.fsw = 0x3800;
	fpu.fcw = 0x27f;
	fpu.mxcsr = 0x9fc0;
	is(call(m.vcpu, KVM_SET_FPU, &fpu), 0, "set");
	call(m.vcpu, KVM_GET_FPU, &fpu2);
	ok(!memcmp(&fpu, &fpu2, sizeof(fpu)), "reads back");
	is(call(m.vcpu, size > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area), 0, "XSAVE");
	ok(area[160] == 0x10 && area[160 + 15 * 16] == 0x1f && area[32] == 0x40, "the same state");
	ok((area[512] & 3) == 3, "XSTATE_BV has x87 and SSE");
	ok(*(uint64_t *)(area + 520) == 0, "standard format");
	memset(area + 576, 0x77, 256);
	area[512] |= 4;
	is(call(m.vcpu, KVM_SET_XSAVE, area), 0, "set with AVX");
	memset(area, 0, size);
	call(m.vcpu, size > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area);
	ok((area[512] & 4) && area[576] == 0x77 && area[576 + 255] == 0x77, "reads back");
	area[512 + 7] = 0x40;
	is(error_of(call(m.vcpu, KVM_SET_XSAVE, area)), EINVAL, "a component nobody has");
	area[512 + 7] = 0;
	area[512 + 1] = 0x08;
	is(error_of(call(m.vcpu, KVM_SET_XSAVE, area)), EINVAL, "supervisor state");
	free(area);
	machine_end(&m);
}

static void test_events(void)
{
	struct machine m;
	struct kvm_vcpu_events events, bad;
	struct kvm_debugregs debug;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = { 1 } };

	start(&m, IRQCHIP);
	is(call(m.vcpu, KVM_GET_VCPU_EVENTS, &events), 0, "events");
	is(events.flags, KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM, "flags");
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "set");
	bad = events;
	bad.flags |= 1u << 20;
	is(error_of(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad)), EINVAL, "unknown flag");
	bad = events;
	bad.nmi.pending = 255;
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad), 0, "many NMIs");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &bad);
	is(bad.nmi.pending, 2, "are two");
	call(m.vcpu, KVM_SET_VCPU_EVENTS, &events);
	bad = events;
	bad.exception.injected = 1;
	bad.exception.nr = 2;
	is(error_of(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad)), EINVAL, "NMI is no exception");
	bad.exception.nr = 32;
	is(error_of(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad)), EINVAL, "nor is 32");
	bad = events;
	bad.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	is(error_of(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad)), EINVAL, "payload before it is switched on");
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "switch it on");
	is(error_of(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad)), 0, "payload");
	bad.exception.injected = bad.exception.pending = 1;
	bad.exception.nr = 6;
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &bad), 0, "injected and pending");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &bad);
	ok(bad.exception.pending && !bad.exception.injected, "is pending");
	// An injected #UD is delivered.
	events.exception.injected = 1;
	events.exception.nr = 6;
	machine_bytes(&m, 0xf4);
	m.memory[6 * 4] = 0;
	m.memory[6 * 4 + 1] = 0x30;
	memcpy(m.memory + 0x3000, "\xe6\x80", 2);
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "inject #UD");
	is(machine_run(&m), KVM_EXIT_IO, "its handler runs");
	is(machine_regs(&m).rip, 0x3000, "there");

	is(call(m.vcpu, KVM_GET_DEBUGREGS, &debug), 0, "debug registers");
	ok(debug.dr6 == 0xffff0ff0 && debug.dr7 == 0x400, "after RESET");
	debug.db[2] = 0x1234;
	debug.dr7 = 0x420;
	is(call(m.vcpu, KVM_SET_DEBUGREGS, &debug), 0, "set");
	call(m.vcpu, KVM_GET_DEBUGREGS, &debug);
	ok(debug.db[2] == 0x1234 && debug.dr7 == 0x420, "read back");
	debug.dr7 = 1ull << 32;
	is(error_of(call(m.vcpu, KVM_SET_DEBUGREGS, &debug)), EINVAL, "DR7 bit 32");
	debug.dr7 = 0x400;
	debug.flags = 1;
	is(error_of(call(m.vcpu, KVM_SET_DEBUGREGS, &debug)), EINVAL, "flags");
	machine_end(&m);
}

static void test_debugging(void)
{
	struct machine m;
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	start(&m, 0);
	machine_bytes(&m, 0x90, 0x40, 0x43, 0xcc, 0xf4);
	is(call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0, "single step");
	is(machine_run(&m), KVM_EXIT_DEBUG, "stops");
	is(machine_regs(&m).rip, m.code + 1, "behind one instruction");
	is(m.run->debug.arch.exception, 1, "#DB");
	ok(m.run->debug.arch.dr6 & 1 << 14, "DR6.BS");
	debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
	call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug);
	is(machine_run(&m), KVM_EXIT_DEBUG, "INT3 stops");
	is(m.run->debug.arch.exception, 3, "#BP");
	is(m.run->debug.arch.pc, m.code + 3, "at it");
	struct kvm_regs regs = machine_regs(&m);
	regs.rip = m.code;
	call(m.vcpu, KVM_SET_REGS, &regs);
	debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	debug.arch.debugreg[0] = m.code + 2;
	debug.arch.debugreg[7] = 0x402;
	call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug);
	is(machine_run(&m), KVM_EXIT_DEBUG, "a hardware breakpoint stops");
	is(m.run->debug.arch.pc, m.code + 2, "at its address");
	ok(m.run->debug.arch.dr6 & 1, "DR6.B0");
	debug.control = 1u << 30;
	is(error_of(call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug)), EINVAL, "unknown control");
	// What the debugger found not to be its own goes to the guest.
	struct kvm_enable_cap payload = { .cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = { 1 } };
	struct kvm_vcpu_events events;
	struct kvm_debugregs registers;
	call(m.vm, KVM_ENABLE_CAP, &payload);
	memcpy(m.memory + 4, "\x00\x30\x00\x00", 4);
	memcpy(m.memory + 0x3000, "\xe6\x80\xcf", 3); // out 0x80,al; iret
	regs.rip = m.code;
	call(m.vcpu, KVM_SET_REGS, &regs);
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	events.exception.pending = events.exception_has_payload = 1;
	events.exception.nr = 1;
	events.exception_payload = 1 << 14;
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "a pending #DB");
	is(machine_run(&m), KVM_EXIT_IO, "does not stop again");
	call(m.vcpu, KVM_GET_DEBUGREGS, &registers);
	ok(registers.dr6 & 1 << 14, "the guest finds its payload in DR6");
	debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB;
	call(m.vcpu, KVM_SET_REGS, &regs);
	is(call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0, "KVM_GUESTDBG_INJECT_DB");
	is(machine_run(&m), KVM_EXIT_IO, "nor does that");
	call(m.vcpu, KVM_GET_DEBUGREGS, &registers);
	ok(registers.dr6 & 1 << 14, "and leaves DR6 as it is");
	struct kvm_translation t = { .linear_address = 0x1234 };
	ok(call(m.vcpu, KVM_TRANSLATE, &t) == 0 && t.valid && t.physical_address == 0x1234, "translation without paging");
	machine_end(&m);
}

static void test_clocks(void)
{
	struct machine m;
	struct kvm_clock_data clock;
	uint64_t a, b;

	machine_start(&m, 0);
	int khz = call(m.vcpu, KVM_GET_TSC_KHZ, 0);
	ok(khz > 100000, "TSC: %d kHz", khz);
	is(call(m.vm, KVM_GET_TSC_KHZ, 0), khz, "the machine's is the same");
	is(call(m.vm, KVM_GET_CLOCK, &clock), 0, "clock");
	ok(clock.clock < 1000000000, "starts near 0");
	clock.flags = 0;
	clock.clock = 5000000000;
	is(call(m.vm, KVM_SET_CLOCK, &clock), 0, "set");
	call(m.vm, KVM_GET_CLOCK, &clock);
	ok(clock.clock >= 5000000000 && clock.clock < 5500000000, "goes on from there");
	clock.flags = 1;
	is(error_of(call(m.vm, KVM_SET_CLOCK, &clock)), EINVAL, "unknown flag");
	is(error_of(call(m.vcpu, KVM_KVMCLOCK_CTRL, 0)), EINVAL, "KVMCLOCK_CTRL without a clock page");
	is(set_msr(m.vcpu, 0x10, 1ull << 50), 1, "set the TSC");
	get_msr(m.vcpu, 0x10, &a);
	ok(a >= 1ull << 50 && a - (1ull << 50) < 1000000000, "it goes on from there");
	int second = call(m.vm, KVM_CREATE_VCPU, 1);
	set_msr(second, 0x10, 1ull << 50);
	get_msr(second, 0x10, &b);
	get_msr(m.vcpu, 0x10, &a);
	ok(a > b && a - b < 100000000, "the same value a moment later on another vCPU means the same clock");
	cetkvm_close(second);
	machine_end(&m);
}

int main(void)
{
	test_cpuid();
	test_sregs();
	test_task_priority();
	test_msrs();
	test_one_reg();
	test_extended();
	test_events();
	test_debugging();
	test_clocks();
	return done_testing();
}
