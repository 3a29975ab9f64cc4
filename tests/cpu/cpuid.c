// SPDX-License-Identifier: MIT
// CPUID: what is offered fits together, leaf 0xD agrees with the layout of images, guests get what
// they were given and no more, leaves out of range.
#include "fixture.h"

#include "xstate/xstate.h"

#include <cpuid.h>

static struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
static unsigned count;

static struct cpu_cpuid_entry *entry(u32 function, u32 index)
{
	for (unsigned i = 0; i < count; i++)
		if (entries[i].function == function && entries[i].index == index)
			return &entries[i];
	return NULL;
}

static void offered(void)
{
	unsigned doubles = 0;
	u32 eax, ebx, ecx, edx;

	count = cpuid_supported(entries, CPU_MAX_CPUID);
	ok(count <= 80, "%u entries: clients have room for 80", count);
	is(cpuid_supported(entries, 3), count, "the count does not depend on the room");
	for (unsigned i = 0; i < count; i++)
		for (unsigned j = 0; j < i; j++)
			doubles += entries[i].function == entries[j].function && entries[i].index == entries[j].index;
	is(doubles, 0, "none twice");
	ok(entry(7, 0)->ecx >> 7 & 1, "SHSTK is offered on every host");
	ok(entry(7, 0)->edx >> 20 & 1, "so is IBT");
	ok(entry(7, 0)->ecx >> 3 & 1, "so is PKU");
	ok(entry(1, 0)->ecx >> 31, "a hypervisor is there");
	ok(!(entry(1, 0)->ecx >> 5 & 1) && !(entry(0x80000001, 0)->ecx >> 2 & 1), "neither VMX nor SVM");
	ok(entry(7, 0)->ecx >> 16 & 1, "so is LA57");
	ok(entry(0x80000007, 0)->edx >> 8 & 1, "invariant TSC");
	is(entry(0x40000000, 0)->ebx, 0x4b4d564b, "KVM's signature");
	__cpuid_count(7, 0, eax, ebx, ecx, edx);
	is(entry(7, 0)->ebx & ~ebx & (1u << 5 | 1u << 16 | 1u << 29), 0, "vector features only if the host has them");
	is(entry(7, 0)->edx >> 7 & 1, 0, "no reserved bit");
}

static void leaf_d(void)
{
	u64 xcr0 = (u64)entry(0xd, 0)->edx << 32 | entry(0xd, 0)->eax;
	u64 xss = (u64)entry(0xd, 1)->edx << 32 | entry(0xd, 1)->ecx;
	u32 end = 576;

	is(xss, 0x1800, "XSS: CET_U and CET_S");
	ok((xcr0 & 0x203) == 0x203, "XCR0: x87, SSE, PKRU");
	is(entry(0xd, 0)->ebx, 576, "size for XCR0 behind RESET");
	for (unsigned i = 2; i < 63; i++) {
		const struct cpu_cpuid_entry *e = entry(0xd, i);

		if (!((xcr0 | xss) >> i & 1)) {
			if (e)
				ok(false, "sub-leaf %u of a component that is not there", i);
			continue;
		}
		ok(e && e->eax, "component %u has a size", i);
		is(e->ecx & 1, xss >> i & 1, "component %u: supervisor", i);
		if (xss >> i & 1)
			is(e->ebx, 0, "component %u has no place in the standard format", i);
		else if (e->ebx + e->eax > end)
			end = e->ebx + e->eax;
		is(e->edx, 0, "component %u: EDX", i);
	}
	is(entry(0xd, 0)->ecx, end, "the largest image ends with its last component");

	// Compacted size for XCR0 | XSS, from the sub-leaves alone.
	fixture_reset();
	for (unsigned n = 0; n < 4; n++) {
		u64 bits = (n & 1 ? 0x207 : 3) & (xcr0 | 3), all;
		u32 out[4], size = 576;

		cpu_set_xcr0(cpu, bits, BY_GUEST);
		cpu_wrmsr(cpu, MSR_XSS, n & 2 ? 0x1800 : 0, BY_GUEST);
		all = cpu->xcr0 | cpu->xss;
		for (unsigned i = 2; i < 63; i++) {
			if (!(all >> i & 1))
				continue;
			cpuid_query(cpu, 0xd, i, out);
			if (out[2] & 2)
				size = (size + 63) & ~63u;
			size += out[0];
		}
		cpuid_query(cpu, 0xd, 1, out);
		is(out[1], size, "compacted size for XCR0 | XSS = %#llx", (unsigned long long)all);
	}
}

static void guest(void)
{
	u32 out[4];

	fixture_reset();
	cpuid_query(cpu, 1, 0, out);
	ok(!(out[2] >> 27 & 1), "OSXSAVE is clear");
	cpu_set_cr4(cpu, CR4_OSXSAVE | CR4_PKE, BY_GUEST);
	cpuid_query(cpu, 1, 0, out);
	ok(out[2] >> 27 & 1, "OSXSAVE follows CR4");
	cpuid_query(cpu, 7, 0, out);
	ok(out[2] >> 4 & 1, "so does OSPKE");
	cpu_set_cr4(cpu, 0, BY_GUEST);
	cpuid_query(cpu, 7, 0, out);
	ok(!(out[2] >> 4 & 1), "both ways");

	is(entry(0x80000008, 0)->eax >> 8 & 0xff, entry(7, 0)->ecx >> 16 & 1 ? 57 : 48, "linear address bits fit LA57");
	entry(7, 0)->ebx |= 1u << 14; // MPX
	entry(1, 0)->ecx |= 1u << 5;  // VMX
	entry(7, 0)->edx |= 1u << 4;  // FSRM
	entry(7, 0)->edx |= 1u << 24; // AMX: offered to those who may have it
	entry(0xd, 0)->eax |= 0x60018;
	entry(0xd, 1)->ecx |= 1u << 8;
	is(cpuid_set(cpu, entries, count), 0, "a client may ask for more than is offered");
	is(cpu->features[WORD_7_0_EBX] >> 14 & 1, 0, "and does not get it");
	is(cpu->xcr0_supported & 0x60018, 0x60000, "nor the state");
	is(cpu->xss_supported, 0x1800, "nor the supervisor state");
	ok(guest_has(cpu, FEATURE_FSRM), "unless it works and is just not offered");
	is(cpuid_set(cpu, entries, CPU_MAX_CPUID + 1), (u64)-E2BIG, "too many entries");
	entry(0xd, 0)->eax &= ~4u;
	cpuid_set(cpu, entries, count);
	ok(!(cpu->xcr0_supported & 4), "a guest may have less");
	entry(0x80000008, 0)->eax = 40 | 48 << 8;
	cpuid_set(cpu, entries, count);
	is(cpu->phys_bits, 40, "physical address bits");
	is(cpuid_set(cpu, NULL, 0), 0, "no CPUID at all");
	ok(guest_has(cpu, FEATURE_LM) && !cpu->xcr0_supported, "does what it can, and enumerates nothing");
}

static void out_of_range(void)
{
	u32 out[4], wanted[4];

	fixture_reset();
	count = cpuid_supported(entries, CPU_MAX_CPUID);
	memcpy(&entry(0, 0)->ebx, "Genu", 4);
	memcpy(&entry(0, 0)->edx, "ineI", 4);
	memcpy(&entry(0, 0)->ecx, "ntel", 4);
	cpuid_set(cpu, entries, count);
	cpuid_query(cpu, entry(0, 0)->eax, 1, wanted);
	cpuid_query(cpu, 0x1000, 1, out);
	ok(!memcmp(out, wanted, 16), "Intel: beyond the last basic leaf comes the last basic leaf, with its index");
	cpuid_query(cpu, 0x8000ffff, 1, out);
	ok(!memcmp(out, wanted, 16), "the same beyond the last extended leaf");
	cpuid_query(cpu, 3, 0, out);
	ok(!(out[0] | out[1] | out[2] | out[3]), "a leaf within the range that is not there is zero");
	cpuid_query(cpu, 0xb, 5, out);
	is(out[2], 5, "topology leaves answer with the index");
	memcpy(&entry(0, 0)->ebx, "Auth", 4);
	cpuid_set(cpu, entries, count);
	cpuid_query(cpu, 0x1000, 1, out);
	ok(!(out[0] | out[1] | out[2] | out[3]), "AMD: zero");
}

int main(void)
{
	offered();
	count = cpuid_supported(entries, CPU_MAX_CPUID);
	leaf_d();
	guest();
	out_of_range();
	return done_testing();
}
