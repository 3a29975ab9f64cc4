// SPDX-License-Identifier: MIT
// The CET MSRs, CR4.CET and its tie to CR0.WP, CPUID.
#include "kit.h"

CODE(write_read, "wrmsr; mov $0, %eax; mov $0, %edx; rdmsr");
CODE(read, "rdmsr");
CODE(cet_then_wp, "mov %cr4, %rax; or $0x800000, %rax; mov %rax, %cr4; mov %cr0, %rbx; btr $16, %rbx\n"
	"cet_then_wp_at: mov %rbx, %cr0");
CODE(cet_on_off, "mov %cr4, %rax; bts $23, %rax; mov %rax, %cr4; btr $23, %rax; mov %rax, %cr4");
CODE(set_cr4, "mov %rax, %cr4");
LABEL(cet_then_wp_at);

#define CANONICAL_TOP 0xffff800000000000ull

enum { ALIGN4 = 1, CET_BITS = 2, CANON = 4 };

static const struct {
	u32 msr;
	const char *name;
	int rules;
	bool shstk_only;
} msrs[] = {
	{MSR_U_CET, "IA32_U_CET", CET_BITS, false},
	{MSR_S_CET, "IA32_S_CET", CET_BITS, false},
	{MSR_PL0_SSP, "IA32_PL0_SSP", ALIGN4 | CANON, true},
	{MSR_PL1_SSP, "IA32_PL1_SSP", ALIGN4 | CANON, true},
	{MSR_PL2_SSP, "IA32_PL2_SSP", ALIGN4 | CANON, true},
	{MSR_PL3_SSP, "IA32_PL3_SSP", ALIGN4 | CANON, true},
	{MSR_INT_SSP_TAB, "IA32_INTERRUPT_SSP_TABLE_ADDR", CANON, true},
};

static const struct {
	u64 value;
	int bad_for; /* rules that this value breaks */
} values[] = {
	{0, 0},
	{SS_BASE, 0},
	{CANONICAL_TOP, 0},
	{0x7ffffffff000, 0},
	{0x800000000000, CANON | CET_BITS},
	{0x8000000000000000, CANON | CET_BITS},
	{SS_BASE + 1, ALIGN4},
	{SS_BASE + 2, ALIGN4},
	{SS_BASE + 4, 0},
	{CET_SHSTK_EN, ALIGN4},
	{CET_SHSTK_EN | CET_WRSS_EN, ALIGN4},
	{CET_ENDBR_EN, 0},
	{0x3c, 0},
	{0x40, CET_BITS},
	{0x80, CET_BITS},
	{0x100, CET_BITS},
	{0x200, CET_BITS},
	{CET_SUPPRESS, 0},
	{CET_TRACKER, 0},
	{CET_SUPPRESS | CET_TRACKER, CET_BITS},
};

static char text[120];

static const char *label(const char *name, const char *verb, u64 value)
{
	char *to = text;

	for (const char *s = name; *s;)
		*to++ = *s++;
	for (const char *s = verb; *s;)
		*to++ = *s++;
	for (int shift = 60; shift >= 0; shift -= 4)
		*to++ = "0123456789abcdef"[value >> shift & 15];
	*to = 0;
	return text;
}

static void test_values(void)
{
	for (unsigned m = 0; m < sizeof(msrs) / sizeof(msrs[0]); m++) {
		u64 value;

		if (msrs[m].shstk_only && !has_shstk) {
			CHECK(!rdmsr_safe(msrs[m].msr, &value) && outcome.vector == GP, "without SHSTK the MSR does not exist");
			continue;
		}
		for (unsigned v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
			struct run r = run_default(write_read);

			value = values[v].value;
			if (msrs[m].rules & CET_BITS && (!has_shstk || !has_ibt) && value & 0xfff)
				continue;
			r.gpr[RCX] = msrs[m].msr;
			r.gpr[RAX] = (u32)value;
			r.gpr[RDX] = value >> 32;
			run(&r);
			if (msrs[m].rules & values[v].bad_for)
				CHECK_FAULT(GP, 0, label(msrs[m].name, " refuses 0x", value));
			else
				CHECK(outcome.vector == DONE &&
					((u32)outcome.gpr[RAX] | outcome.gpr[RDX] << 32) == value,
					label(msrs[m].name, " keeps 0x", value));
		}
	}
}

static void test_privilege(void)
{
	struct run r = run_user(read);

	r.gpr[RCX] = MSR_U_CET;
	run(&r);
	CHECK_FAULT(GP, 0, "RDMSR of U_CET in ring 3");
}

static void test_control_registers(void)
{
	struct run r = run_default(cet_on_off);

	run(&r);
	CHECK_DONE("CR4.CET can be set and cleared with CR0.WP=1");
	r.rip = ADDR(cet_then_wp);
	run(&r);
	CHECK_FAULT(GP, 0, "clearing CR0.WP with CR4.CET=1 is #GP(0)");
	CHECK_EQ(outcome.rip, ADDR(cet_then_wp_at), "at the MOV to CR0");
	write_cr0(read_cr0() & ~(u64)CR0_WP);
	r = run_default(set_cr4);
	r.gpr[RAX] = read_cr4() | CR4_CET;
	run(&r);
	CHECK_FAULT(GP, 0, "setting CR4.CET with CR0.WP=0 is #GP(0)");
	write_cr0(read_cr0() | CR0_WP);
	run(&r);
	CHECK_DONE("and with CR0.WP=1 again it is not");
}

static void test_cpuid(void)
{
	u32 a[4];

	cpuid(0xd, 1, a);
	if (!(a[0] & 8)) {
		kit_skip("CPUID of the CET components", "no XSAVES");
		return;
	}
	CHECK((a[2] & 0x1800) == 0x1800, "CPUID.(D,1).ECX has CET_U and CET_S");
	cpuid(0xd, 11, a);
	CHECK(a[0] == 16 && a[1] == 0 && (a[2] & 1) && a[3] == 0, "CPUID.(D,11): 16 bytes, supervisor");
	cpuid(0xd, 12, a);
	CHECK(a[0] == 24 && a[1] == 0 && (a[2] & 1) && a[3] == 0, "CPUID.(D,12): 24 bytes, supervisor");
	cpuid(7, 1, a);
	CHECK_EQ(a[3] >> 18 & 1, 0, "CPUID does not promise supervisor shadow stacks free of early busy tokens");
}

void test_main(void)
{
	if (!has_cet) {
		struct run r = run_default(set_cr4);
		u32 a[4];

		/* QEMU's TCG takes any bit of CR4; leave it alone there. */
		cpuid(0x40000000, 0, a);
		if (a[1] == 0x54474354)
			return;
		r.gpr[RAX] = read_cr4() | CR4_CET;
		run(&r);
		CHECK_FAULT(GP, 0, "CR4.CET is reserved without SHSTK and IBT");
		r = run_default(read);
		for (unsigned m = 0; m < sizeof(msrs) / sizeof(msrs[0]); m++) {
			r.gpr[RCX] = msrs[m].msr;
			run(&r);
			CHECK_FAULT(GP, 0, "the CET MSRs do not exist without SHSTK and IBT");
		}
		return;
	}
	test_values();
	test_privilege();
	test_control_registers();
	test_cpuid();
}
