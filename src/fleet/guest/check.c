// SPDX-License-Identifier: MIT
// Patterns in every part of the processor's state, and the look for them after the move. Each step has
// patterns of its own. What is no longer there is found out without using it.
#include "guest.h"

#define XCOMPONENT_AVX     2
#define XCOMPONENT_OPMASK  5
#define XCOMPONENT_TILECFG 17
#define XCOMPONENT_TILES   18
#define AVX512 (7ull << 5)
#define AMX    (3ull << 17)

#define MXCSR_AT 24
#define ST_AT    32
#define XMM_AT   160
#define HEADER   512

// Read and written by entry.S.
u8 area_set[16384] __attribute__((aligned(64))), area_found[16384] __attribute__((aligned(64)));
u8 legacy_found[512] __attribute__((aligned(64)));
u64 gpr_set[16], gpr_found[16], flags_set, flags_found, ssp_set, ssp_found;
u32 use_xsave, gprs_read, legacy_read, area_read;

static u32 now; // the step
static u32 pkru_set;
static u64 cr_set[9], dr_set[8], xcr0_set, xss_set, s_cet_set;
static u64 efer_set, fs_base_set, gs_base_set;
static u8 tables_set[20], tables_found[20]; // GDTR, IDTR

static u64 pattern(u32 component, u32 index)
{
	u64 x = (u64)now << 40 ^ (u64)component << 32 ^ index;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

// A canonical address of the upper half that nothing uses.
static u64 address_pattern(u32 component, u32 index)
{
	return (pattern(component, index) & 0x00007ffffffffff8) | 0xffff800000000000;
}

static void fill(u8 *to, u32 component, u32 size)
{
	for (u32 i = 0; i < size; i++)
		to[i] = (u8)(pattern(component, i / 8) >> 8 * (i % 8)) | 1;
}

static const struct msr {
	u32 index;
	enum { ANY, ADDRESS, MEMORY_TYPES, SMALL } kind;
} msrs[] = {
	// SYSENTER_ESP and SYSENTER_EIP have 32 bits on processors of AMD's.
	{ 0x174, SMALL }, { 0x175, SMALL }, { 0x176, SMALL }, { 0x277, MEMORY_TYPES },
	{ 0xc0000081, ANY }, { 0xc0000082, ADDRESS }, { 0xc0000083, ADDRESS }, { 0xc0000084, SMALL },
	{ 0xc0000102, ADDRESS }, { 0xc0000103, SMALL },
};
#define MSRS (sizeof(msrs) / sizeof(msrs[0]))
static u64 msr_set[MSRS];

static const u32 ssp_msrs[] = { MSR_PL0_SSP, MSR_PL1_SSP, MSR_PL2_SSP, MSR_PL3_SSP };
static u64 ssp_msr_set[4], u_cet_set;

static bool msr_there(const struct msr *m)
{
	return m->index != 0xc0000103 || has.rdtscp;
}

static void in_use(enum fleet_component component)
{
	REPORT->in_use |= 1u << component;
}

static void prepare_msrs(void)
{
	static const u8 types[] = { 0, 1, 4, 5, 6, 7 };

	for (u32 i = 0; i < MSRS; i++) {
		u64 value = pattern(FLEET_MSRS, i);

		if (!msr_there(&msrs[i]))
			continue;
		if (msrs[i].kind == ADDRESS)
			value = address_pattern(FLEET_MSRS, i);
		if (msrs[i].kind == SMALL)
			value = (value & 0xffff) | 1;
		if (msrs[i].kind == MEMORY_TYPES)
			for (u32 k = 0, raw = (u32)value; k < 8; k++, raw >>= 4)
				value = (value & ~(0xffull << 8 * k)) | (u64)types[(raw & 15) % 6] << 8 * k;
		msr_set[i] = value;
		wrmsr(msrs[i].index, value);
	}
	in_use(FLEET_MSRS);
}

// Only what is on: a guest that has lost a component does not get it back by itself.
static void prepare_vectors(u64 cr4)
{
	u64 xcr0 = 0;

	memset(area_set, 0, sizeof(area_set));
	area_set[0] = 0x7f;
	area_set[1] = 0x02 | (now & 1) << 10 >> 8; // FCW: double precision, and a rounding mode
	area_set[3] = (now & 7) << 3;               // FSW: TOP
	area_set[4] = 0xff;                         // no register is empty
	for (u32 i = 0; i < 8; i++)
		fill(area_set + ST_AT + 16 * i, FLEET_X87 << 8 | i, 10);
	in_use(FLEET_X87);
	area_set[MXCSR_AT] = 0xc0; // all masked but for what the next byte has, denormals are zeros
	area_set[MXCSR_AT + 1] = 0x1f | (1 + now % 3) << 5;
	fill(area_set + XMM_AT, FLEET_SSE, 256);
	in_use(FLEET_SSE);
	use_xsave = cr4 & CR4_OSXSAVE ? 1 : 0;
	if (!use_xsave)
		return;
	__asm__ volatile("xgetbv" : "=a"(((u32 *)&xcr0)[0]), "=d"(((u32 *)&xcr0)[1]) : "c"(0));
	xcr0_set = xcr0;
	in_use(FLEET_XCR0);
	for (u32 i = 2; i < 32; i++) {
		u8 *to = area_set + has.component_offset[i];

		if (!(xcr0 >> i & 1) || has.component_offset[i] + has.component_size[i] > sizeof(area_set))
			continue;
		fill(to, 0x100 + i, has.component_size[i]);
		if (i == 9) { // PKRU: the upper half is reserved
			memset(to + 4, 0, has.component_size[i] - 4);
			to[0] &= 0xfc; // the program in ring 3 has key 0
			pkru_set = *(u32 *)to;
		}
		if (i == XCOMPONENT_TILECFG) { // palette 1, full tiles
			memset(to, 0, 64);
			to[0] = 1;
			for (u32 k = 0; k < 8; k++) {
				to[16 + 2 * k] = 64;
				to[48 + k] = 16;
			}
		}
	}
	*(u64 *)(area_set + HEADER) = xcr0;
	if (xcr0 >> XCOMPONENT_AVX & 1)
		in_use(FLEET_AVX);
	if ((xcr0 & AVX512) == AVX512)
		in_use(FLEET_AVX512);
	if ((xcr0 & AMX) == AMX)
		in_use(FLEET_AMX);
	if ((xcr0 >> 9 & 1) && (cr4 & CR4_PKE))
		in_use(FLEET_PKRU);
}

static void prepare_cet(u64 cr4)
{
	if (!(cr4 & CR4_CET))
		return;
	s_cet_set = rdmsr(MSR_S_CET);
	if (!s_cet_set)
		return;
	in_use(FLEET_S_CET);
	u_cet_set = rdmsr(MSR_U_CET);
	if (u_cet_set) {
		if (has.shstk)
			u_cet_set = (u_cet_set & ~(u64)CET_WRSS_EN) | (now & 1 ? CET_WRSS_EN : 0);
		wrmsr(MSR_U_CET, u_cet_set);
		in_use(FLEET_CET_U);
		if (u_cet_set & CET_SHSTK_EN)
			in_use(FLEET_USER_STACK);
	}
	if (!has.shstk)
		return;
	// Rings 0 and 3 are at home in theirs; nobody uses those of rings 1 and 2.
	for (u32 i = 0; i < 4; i++) {
		if (i == 1 || i == 2)
			wrmsr(ssp_msrs[i], address_pattern(FLEET_CET_S, i));
		ssp_msr_set[i] = rdmsr(ssp_msrs[i]);
	}
	in_use(FLEET_CET_S);
	if (s_cet_set & CET_SHSTK_EN)
		in_use(FLEET_SHADOW_STACK);
}

void check_prepare(u32 step)
{
	u64 cr4 = READ_CR(4);

	now = step;
	gprs_read = legacy_read = area_read = 0;
	for (u32 i = 0; i < 16; i++)
		gpr_set[i] = pattern(FLEET_GPRS, i);
	gpr_set[0] = gpr_set[0] << 32 | FLEET_MOVE;
	gpr_set[2] = gpr_set[2] << 16 | FLEET_PORT;
	flags_set = 2 | (pattern(FLEET_GPRS, 16) & 0x8d5) | (step & 1) << 21; // arithmetic flags and ID
	fs_base_set = address_pattern(FLEET_SEGMENTS, 0);
	gs_base_set = address_pattern(FLEET_SEGMENTS, 1);
	wrmsr(MSR_FS_BASE, fs_base_set);
	wrmsr(MSR_GS_BASE, gs_base_set);
	__asm__ volatile("sgdt %0; sidt %1" : "=m"(tables_set[0]), "=m"(tables_set[10]) : : "memory");
	WRITE_CR(2, pattern(FLEET_CONTROL, 2));
	WRITE_CR(8, step % 14 + 1);
	cr_set[0] = READ_CR(0);
	cr_set[2] = READ_CR(2);
	cr_set[3] = READ_CR(3);
	cr_set[4] = cr4;
	cr_set[8] = READ_CR(8);
	efer_set = rdmsr(MSR_EFER);
	for (u32 i = 0; i < 4; i++)
		dr_set[i] = address_pattern(FLEET_DEBUG, i);
	WRITE_DR(0, dr_set[0]);
	WRITE_DR(1, dr_set[1]);
	WRITE_DR(2, dr_set[2]);
	WRITE_DR(3, dr_set[3]);
	WRITE_DR(7, 0x402); // a breakpoint where nothing is ever executed
	in_use(FLEET_GPRS);
	in_use(FLEET_SEGMENTS);
	in_use(FLEET_CONTROL);
	in_use(FLEET_DEBUG);
	prepare_msrs();
	if (has.xsaves)
		xss_set = rdmsr(MSR_XSS);
	prepare_vectors(cr4);
	prepare_cet(cr4);
}

// ---- the look ----

static struct fleet_finding *finding(enum fleet_component component)
{
	struct fleet_finding *f = &REPORT->found[component];

	if (!(REPORT->in_use >> component & 1))
		return NULL;
	if (f->verdict == FLEET_UNUSED)
		f->verdict = FLEET_SAME;
	return f;
}

// The first difference is the one that is told.
static void compare(enum fleet_component component, u32 what, u64 wanted, u64 found)
{
	struct fleet_finding *f = finding(component);

	if (!f || wanted == found || f->verdict != FLEET_SAME)
		return;
	*f = (struct fleet_finding){ FLEET_WRONG, what, wanted, found };
}

static void off(enum fleet_component component, u32 what, u64 wanted, u64 found)
{
	struct fleet_finding *f = finding(component);

	if (f)
		*f = (struct fleet_finding){ FLEET_OFF, what, wanted, found };
}

// Up to eight bytes as a number.
static u64 number(const u8 *from, u32 size)
{
	u64 value = 0;

	for (u32 i = 0; i < size && i < 8; i++)
		value |= (u64)from[i] << 8 * i;
	return value;
}

static void compare_bytes(enum fleet_component component, const u8 *wanted, const u8 *found, u32 from, u32 size)
{
	for (u32 i = 0; i < size; i += 8) {
		u32 at = from + i;

		compare(component, at, number(wanted + at, size - i), number(found + at, size - i));
	}
}

static void check_msr(enum fleet_component component, u32 index, u64 wanted)
{
	u64 found;

	if (rdmsr_try(index, &found))
		compare(component, index, wanted, found);
	else
		off(component, index, wanted, 0);
}

static void check_cet(u64 cr4)
{
	u64 s_cet = 0, u_cet = 0;
	bool there = rdmsr_try(MSR_S_CET, &s_cet) && rdmsr_try(MSR_U_CET, &u_cet) && (cr4 & CR4_CET);

	if (!there || (s_cet_set && !s_cet))
		off(FLEET_S_CET, MSR_S_CET, s_cet_set, s_cet);
	else
		compare(FLEET_S_CET, MSR_S_CET, s_cet_set, s_cet);
	if (has.shstk && there && s_cet)
		check_msr(FLEET_S_CET, MSR_INT_SSP_TAB, ssp_table_address);
	if (!there || (u_cet_set && !u_cet))
		off(FLEET_CET_U, MSR_U_CET, u_cet_set, u_cet);
	else
		compare(FLEET_CET_U, MSR_U_CET, u_cet_set, u_cet);
	if (!has.shstk)
		return;
	if (there && u_cet) {
		check_msr(FLEET_CET_U, MSR_PL3_SSP, ssp_msr_set[3]);
		check_msr(FLEET_USER_STACK, MSR_PL3_SSP, ssp_msr_set[3]);
	} else {
		off(FLEET_USER_STACK, MSR_U_CET, u_cet_set, u_cet);
	}
	for (u32 i = 0; i < 3; i++) {
		if (there && (s_cet & CET_SHSTK_EN))
			check_msr(FLEET_CET_S, ssp_msrs[i], ssp_msr_set[i]);
		else
			off(FLEET_CET_S, MSR_S_CET, s_cet_set, s_cet);
	}
	if (there && (s_cet & CET_SHSTK_EN))
		compare(FLEET_SHADOW_STACK, 0, ssp_set, ssp_found);
	else
		off(FLEET_SHADOW_STACK, MSR_S_CET, s_cet_set, s_cet);
}

static void check_component(enum fleet_component component, u64 xcr0, u32 first, u32 last)
{
	for (u32 i = first; i <= last; i++) {
		if (!(xcr0 >> i & 1) || !area_read)
			off(component, 0, xcr0_set, xcr0);
		else
			compare_bytes(component, area_set + has.component_offset[i], area_found + has.component_offset[i], 0,
				      has.component_size[i]);
	}
}

static void check_vectors(u64 cr4)
{
	u64 xcr0 = 0, xss = 0;

	if (legacy_read) {
		compare_bytes(FLEET_X87, area_set, legacy_found, 0, 5); // FCW, FSW, tags
		for (u32 i = 0; i < 8; i++)
			compare_bytes(FLEET_X87, area_set, legacy_found, ST_AT + 16 * i, 10);
		compare_bytes(FLEET_SSE, area_set, legacy_found, MXCSR_AT, 4);
		compare_bytes(FLEET_SSE, area_set, legacy_found, XMM_AT, 256);
	}
	if (cr4 & CR4_OSXSAVE) {
		__asm__ volatile("xgetbv" : "=a"(((u32 *)&xcr0)[0]), "=d"(((u32 *)&xcr0)[1]) : "c"(0));
		compare(FLEET_XCR0, 0, xcr0_set, xcr0);
	} else {
		off(FLEET_XCR0, 0, xcr0_set, 0);
	}
	if (has.xsaves) {
		if (rdmsr_try(MSR_XSS, &xss))
			compare(FLEET_XCR0, MSR_XSS, xss_set, xss);
		else
			off(FLEET_XCR0, MSR_XSS, xss_set, 0);
	}
	check_component(FLEET_AVX, xcr0, XCOMPONENT_AVX, XCOMPONENT_AVX);
	check_component(FLEET_AVX512, xcr0, XCOMPONENT_OPMASK, XCOMPONENT_OPMASK + 2);
	check_component(FLEET_AMX, xcr0, XCOMPONENT_TILECFG, XCOMPONENT_TILES);
	if (cr4 & CR4_PKE) {
		u32 pkru, zero;

		__asm__ volatile("rdpkru" : "=a"(pkru), "=d"(zero) : "c"(0));
		compare(FLEET_PKRU, 0, pkru_set, pkru);
	} else {
		off(FLEET_PKRU, 0, pkru_set, 0);
	}
}

void check_user(void)
{
	compare(FLEET_USER_STACK, 0, REPORT->user_depth, REPORT->user_returned);
}

void check_all(u64 cr4)
{
	u64 value;

	for (u32 i = 0; gprs_read && i < 16; i++)
		compare(FLEET_GPRS, i, gpr_set[i], gpr_found[i]);
	if (gprs_read)
		compare(FLEET_GPRS, 16, flags_set, flags_found);
	check_msr(FLEET_SEGMENTS, MSR_FS_BASE, fs_base_set);
	check_msr(FLEET_SEGMENTS, MSR_GS_BASE, gs_base_set);
	__asm__ volatile("sgdt %0; sidt %1" : "=m"(tables_found[0]), "=m"(tables_found[10]) : : "memory");
	compare_bytes(FLEET_SEGMENTS, tables_set, tables_found, 0, 20);
	compare(FLEET_CONTROL, 0, cr_set[0], READ_CR(0));
	// After an exception CR2 may be the exception's.
	if (!REPORT->exception)
		compare(FLEET_CONTROL, 2, cr_set[2], READ_CR(2));
	compare(FLEET_CONTROL, 3, cr_set[3], READ_CR(3));
	compare(FLEET_CONTROL, 4, cr_set[4], cr4);
	compare(FLEET_CONTROL, 8, cr_set[8], READ_CR(8));
	check_msr(FLEET_CONTROL, MSR_EFER, efer_set);
	value = READ_DR(7);
	if (value != 0x402) {
		off(FLEET_DEBUG, 7, 0x402, value);
	} else {
		compare(FLEET_DEBUG, 0, dr_set[0], READ_DR(0));
		compare(FLEET_DEBUG, 1, dr_set[1], READ_DR(1));
		compare(FLEET_DEBUG, 2, dr_set[2], READ_DR(2));
		compare(FLEET_DEBUG, 3, dr_set[3], READ_DR(3));
	}
	for (u32 i = 0; i < MSRS; i++)
		if (msr_there(&msrs[i]))
			check_msr(FLEET_MSRS, msrs[i].index, msr_set[i]);
	check_vectors(cr4);
	check_cet(cr4);
	REPORT->checked = 1;
}
