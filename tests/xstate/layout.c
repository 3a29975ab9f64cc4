// SPDX-License-Identifier: MIT
// The table of state components against CPUID leaf 0xD of the host (where both know a component), the
// layouts computed from it, and the rules for XCR0 and headers.
#include "xstate/xstate.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#define M(name) XSTATE_MASK(XSTATE_##name)

static unsigned tests, failures;

static void ok(bool good, const char *name)
{
	printf("%s %u - %s\n", good ? "ok" : "not ok", ++tests, name);
	failures += !good;
}

static void is(uint64_t got, uint64_t wanted, const char *name)
{
	ok(got == wanted, name);
	if (got != wanted)
		printf("#   wanted %#llx\n#   got    %#llx\n", (unsigned long long)wanted, (unsigned long long)got);
}

// Offsets of the standard format differ between makers; size, kind and alignment do not.
static void against_host(void)
{
	unsigned checked = 0, bad = 0;

	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = xstate_component(i);
		uint32_t a, b, cx, d;

		if (!__get_cpuid_count(0xd, i, &a, &b, &cx, &d) || !a)
			continue;
		checked++;
		if (i == XSTATE_LBR) // as many entries as the processor has
			continue;
		if (!c || c->size != a || c->supervisor != (cx & 1) || c->align64 != (cx >> 1 & 1)) {
			printf("# component %u: host has size %u, flags %u\n", i, a, cx);
			bad++;
		}
	}
	ok(!bad, "components are as the host's CPUID describes them");
	printf("# %u components of the host compared\n", checked);
}

static void table(void)
{
	bool overlap = false;

	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		for (unsigned k = 2; k < i; k++) {
			const struct xstate_component *a = xstate_component(i), *b = xstate_component(k);

			if (a->supervisor || b->supervisor || (i == XSTATE_APX && k <= XSTATE_BNDCSR))
				continue;
			if (a->offset < b->offset + b->size && b->offset < a->offset + a->size)
				overlap = true;
		}
	}
	ok(!overlap, "user components do not overlap in the standard format, but for APX and MPX");
	is(xstate_user_mask() & xstate_supervisor_mask(), 0, "a component is of one kind");
	is(xstate_supervisor_mask() & (M(CET_U) | M(CET_S)), M(CET_U) | M(CET_S), "CET is supervisor state");
	ok(!xstate_component(XSTATE_BITS), "there is no component behind the last");
	ok(!xstate_component(63), "nor a bit 63");
	is(xstate_component(XSTATE_CET_U)->size, 16, "CET_U is 16 bytes");
	is(xstate_component(XSTATE_CET_S)->size, 24, "CET_S is 24 bytes");
}

static void layouts(void)
{
	uint64_t cet = M(CET_U) | M(CET_S);

	is(xstate_standard_size(3), 576, "standard size of x87 and SSE");
	is(xstate_standard_size(7), 832, "with AVX");
	is(xstate_standard_size(7 | XSTATE_MASK_AVX512), 2688, "with AVX-512");
	is(xstate_standard_size(7 | M(PKRU)), 2696, "with AVX and PKRU");
	is(xstate_standard_size(7 | XSTATE_MASK_AMX), 11008, "with AMX");
	is(xstate_standard_size(7 | cet), 832, "supervisor components have no place in it");
	is(xstate_compacted_size(0), 576, "compacted size of nothing");
	is(xstate_compacted_size(3 | cet), 616, "of x87, SSE and CET");
	is(xstate_compacted_offset(3 | cet, XSTATE_CET_S), 592, "CET_S lies behind CET_U");
	is(xstate_compacted_size(7 | M(PKRU) | cet), 832 + 8 + 16 + 24, "of AVX, PKRU, CET");
	is(xstate_compacted_offset(7 | M(PKRU) | M(TILECFG), XSTATE_TILECFG), 896, "XTILECFG is aligned to 64");
	is(xstate_compacted_offset(7 | M(CET_U), XSTATE_CET_S), 848, "where an absent component would lie");
	is(xstate_offset(0, XSTATE_PKRU), 2688, "offset of PKRU in a standard image");
	is(xstate_offset(7 | M(PKRU) | XSTATE_COMPACTED, XSTATE_PKRU), 832, "and in a compacted one");
}

static void xcr0(void)
{
	uint64_t all = xstate_user_mask();

	ok(xstate_xcr0_valid(1, all), "XCR0 with x87 alone");
	ok(!xstate_xcr0_valid(0, all), "without x87");
	ok(!xstate_xcr0_valid(6, all), "without x87, with AVX");
	ok(!xstate_xcr0_valid(5, all), "AVX without SSE");
	ok(xstate_xcr0_valid(7, all), "AVX with SSE");
	ok(!xstate_xcr0_valid(7, 3), "AVX that is not supported");
	ok(!xstate_xcr0_valid(7 | M(OPMASK), all), "a part of AVX-512");
	ok(xstate_xcr0_valid(7 | XSTATE_MASK_AVX512, all), "all of AVX-512");
	ok(!xstate_xcr0_valid(3 | XSTATE_MASK_AVX512, all), "AVX-512 without AVX");
	ok(!xstate_xcr0_valid(7 | M(BNDCSR), all), "half of MPX");
	ok(!xstate_xcr0_valid(7 | M(TILEDATA), all), "half of AMX");
	ok(xstate_xcr0_valid(7 | XSTATE_MASK_AMX, all), "AMX");
	ok(!xstate_xcr0_valid(7 | 1ull << 63, all), "bit 63");
}

static void headers(void)
{
	struct xstate_header h = { 0 };

	ok(xstate_header_valid(&h, 7, false, true), "an empty standard header");
	ok(!xstate_header_valid(&h, 7, true, true), "which XRSTORS refuses");
	h.xstate_bv = 8;
	ok(!xstate_header_valid(&h, 7, false, true), "a component that is not allowed");
	h.xstate_bv = 7;
	h.reserved[7] = 1;
	ok(!xstate_header_valid(&h, 7, false, true), "byte 23 of a standard header");
	h.reserved[7] = 0;
	h.reserved[8] = 1;
	ok(xstate_header_valid(&h, 7, false, true), "byte 24 of a standard header is free");
	h.xcomp_bv = XSTATE_COMPACTED | 7;
	ok(!xstate_header_valid(&h, 7, false, true), "byte 24 of a compacted header is not");
	h.reserved[8] = 0;
	ok(xstate_header_valid(&h, 7, true, true), "a compacted header");
	ok(!xstate_header_valid(&h, 7, false, false), "without support for it");
	h.xcomp_bv = XSTATE_COMPACTED | 3;
	ok(!xstate_header_valid(&h, 7, false, true), "XSTATE_BV goes beyond XCOMP_BV");
	h.xstate_bv = 0;
	h.xcomp_bv = XSTATE_COMPACTED | M(CET_S);
	ok(!xstate_header_valid(&h, 7, true, true), "XCOMP_BV goes beyond what is allowed");
}

int main(void)
{
	against_host();
	table();
	layouts();
	xcr0();
	headers();
	printf("1..%u\n", tests);
	return failures != 0;
}
