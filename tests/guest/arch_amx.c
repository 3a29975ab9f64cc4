// SPDX-License-Identifier: MIT
// AMX in a guest: encodings and what decoding refuses, the order of #UD and #NM, IA32_XFD, faults in
// the middle of a tile, state through XSAVE. The arithmetic: tests/cpu/amx.c.
#include "kit.h"

#define MSR_XFD 0x1c4
#define MSR_XFD_ERR 0x1c5
#define XTILES 0x60000
#define AT FREE_VA

CODE(ldtilecfg, ".byte 0xc4, 0xe2, 0x78, 0x49, 0x00"); /* (%rax) */
CODE(sttilecfg, ".byte 0xc4, 0xe2, 0x79, 0x49, 0x00");
CODE(tilerelease, ".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0");
CODE(tilezero3, ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xd8");
CODE(tileloadd1, ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08"); /* (%rax, %rcx, 1), %tmm1 */
CODE(tileloaddt1, ".byte 0xc4, 0xe2, 0x79, 0x4b, 0x0c, 0x08");
CODE(tileloadd_no_sib, ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x08");
CODE(tilestored1, ".byte 0xc4, 0xe2, 0x7a, 0x4b, 0x0c, 0x08");
CODE(tdpbssd, ".byte 0xc4, 0xe2, 0x6b, 0x5e, 0xc1"); /* %tmm2, %tmm1, %tmm0 */
CODE(tdpbssd_same, ".byte 0xc4, 0xe2, 0x7b, 0x5e, 0xc1");
CODE(tdpbssd_w, ".byte 0xc4, 0xe2, 0xeb, 0x5e, 0xc1");
CODE(tdpbf16ps, ".byte 0xc4, 0xe2, 0x6a, 0x5c, 0xc1");
CODE(lock_release, ".byte 0xf0, 0xc4, 0xe2, 0x78, 0x49, 0xc0");
CODE(data16_release, ".byte 0x66, 0xc4, 0xe2, 0x78, 0x49, 0xc0");
CODE(rex_release, ".byte 0x48, 0xc4, 0xe2, 0x78, 0x49, 0xc0");
CODE(vvvv_release, ".byte 0xc4, 0xe2, 0x70, 0x49, 0xc0");
CODE(fs_load, ".byte 0x64, 0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08");
CODE(addr32_load, ".byte 0x67, 0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08");
CODE(all, "mov %rdi, %rax; .byte 0xc4, 0xe2, 0x78, 0x49, 0x00; mov %rsi, %rax; mov $64, %ecx;"
	  ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08; .byte 0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x08;"
	  ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0; .byte 0xc4, 0xe2, 0x68, 0x5e, 0xc1;" /* tilezero 0; tdpbuud */
	  "mov %rdx, %rax; .byte 0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x08");
CODE32(release32, ".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0");

extern u64 kit_cr4; /* what run() goes back to */

static u8 config[64] __attribute__((aligned(64))), in[1024], out[1024], area[16384] __attribute__((aligned(64)));

static void set_xcr0(u64 value)
{
	__asm__ volatile("xsetbv" : : "c"(0), "a"((u32)value), "d"((u32)(value >> 32)));
}

static u64 xcr0(void)
{
	u32 a, d;

	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (u64)d << 32 | a;
}

static void shape(unsigned rows, unsigned bytes)
{
	memset(config, 0, sizeof(config));
	config[0] = 1;
	for (unsigned i = 0; i < 8; i++) {
		config[16 + 2 * i] = bytes;
		config[48 + i] = rows;
	}
}

static struct run with(const void *code, const void *rax)
{
	struct run r = run_default(code);

	r.gpr[RAX] = ADDR(rax);
	r.gpr[RCX] = 64;
	return r;
}

static void expect(const void *code, const void *rax, u64 vector, const char *name)
{
	struct run r = with(code, rax);

	run(&r);
	CHECK_VECTOR(vector, name);
}

static void test_cpuid(void)
{
	u32 leaf[4];

	cpuid(0x1d, 0, leaf);
	CHECK_EQ(leaf[0], 1, "CPUID 0x1D: one palette");
	cpuid(0x1d, 1, leaf);
	CHECK(leaf[0] == 0x04002000 && leaf[1] == 0x00080040 && leaf[2] == 16, "its sizes");
	cpuid(0x1e, 0, leaf);
	CHECK_EQ(leaf[1], 0x4010, "CPUID 0x1E");
	cpuid(0xd, 17, leaf);
	CHECK(leaf[0] == 64 && leaf[1] == 2752 && leaf[2] == 2, "XTILECFG");
	cpuid(0xd, 18, leaf);
	CHECK(leaf[0] == 8192 && leaf[1] == 2816 && leaf[2] == 6, "XTILEDATA, with XFD");
	cpuid(0xd, 1, leaf);
	CHECK(leaf[0] & 16, "XFD");
}

static void test_decoding(void)
{
	struct run r;

	expect(ldtilecfg, config, DONE, "LDTILECFG");
	expect(lock_release, NULL, UD, "LOCK");
	expect(data16_release, NULL, UD, "prefix 66");
	expect(rex_release, NULL, UD, "REX");
	expect(vvvv_release, NULL, UD, "vvvv");
	expect(tileloadd_no_sib, in, UD, "TILELOADD without SIB");
	expect(tdpbssd_same, NULL, UD, "the same tile twice");
	expect(tdpbssd_w, NULL, UD, "VEX.W");
	expect(tdpbssd, NULL, DONE, "TDPBSSD");
	expect(tdpbf16ps, NULL, DONE, "TDPBF16PS");
	expect(tilezero3, NULL, DONE, "TILEZERO");
	r = run_default(release32);
	r.cs = CS32;
	r.ss = DS0;
	run(&r);
	CHECK_VECTOR(UD, "32-bit code");
	expect(tilerelease, NULL, DONE, "TILERELEASE");
	expect(tdpbssd, NULL, UD, "without configuration");
	expect(tileloadd1, in, UD, "a load without configuration");
}

static void test_xfd(void)
{
	CHECK(!wrmsr_safe(MSR_XFD, 1 << 17), "IA32_XFD: XTILECFG cannot be disabled");
	CHECK(!wrmsr_safe(MSR_XFD, 4), "nor AVX");
	CHECK(wrmsr_safe(MSR_XFD, 1 << 18), "XTILEDATA can");
	expect(ldtilecfg, config, DONE, "LDTILECFG under IA32_XFD");
	wrmsr(MSR_XFD_ERR, 0);
	expect(tileloadd1, in, NM, "TILELOADD is #NM");
	CHECK_EQ(rdmsr(MSR_XFD_ERR), 1 << 18, "IA32_XFD_ERR says why");
	wrmsr(MSR_XFD_ERR, 0);
	expect(tilezero3, NULL, NM, "TILEZERO");
	expect(sttilecfg, out, DONE, "STTILECFG is not");
	expect(tilerelease, NULL, DONE, "TILERELEASE is not");
	wrmsr(MSR_XFD_ERR, 0);
	expect(tileloadd1, in, UD, "#UD for want of a configuration comes first");
	CHECK_EQ(rdmsr(MSR_XFD_ERR), 0, "IA32_XFD_ERR stays");
	wrmsr(MSR_XFD, 0);
}

static void test_moves(void)
{
	struct run r;
	bool good = true;

	shape(16, 64);
	for (unsigned i = 0; i < 1024; i++)
		in[i] = i * 7;
	r = run_default(all);
	r.gpr[RDI] = ADDR(config);
	r.gpr[RSI] = ADDR(in);
	r.gpr[RDX] = ADDR(out);
	run(&r);
	CHECK_DONE("load, multiply, store");
	for (unsigned m = 0; m < 16; m++)
		for (unsigned n = 0; n < 16; n++) {
			u32 sum = 0, got;

			for (unsigned b = 0; b < 64; b++)
				sum += in[64 * m + b] * in[64 * (b / 4) + 4 * n + b % 4];
			memcpy(&got, &out[64 * m + 4 * n], 4);
			good &= got == sum;
		}
	CHECK(good, "the product");

	// Sixteen rows over two pages, the second missing.
	map_page(AT, alloc_pages(1), PT_P | PT_W | PT_U);
	unmap_page(AT + 4096);
	r = with(tileloadd1, (void *)(AT + 4096 - 4 * 64));
	run(&r);
	CHECK_VECTOR(PF, "a load that runs into a missing page");
	CHECK_EQ(outcome.cr2, AT + 4096, "its address");
	r = with(sttilecfg, out);
	run(&r);
	CHECK_EQ(out[1], 4, "start_row: four rows are done");
	map_page(AT + 4096, alloc_pages(1), PT_P | PT_W | PT_U);
	r = with(tileloadd1, (void *)(AT + 4096 - 4 * 64));
	run(&r);
	CHECK_DONE("and goes on");
	r = with(sttilecfg, out);
	run(&r);
	CHECK_EQ(out[1], 0, "to the end");
	expect(tileloaddt1, in, DONE, "TILELOADDT1");
	r = with(fs_load, NULL);
	wrmsr(MSR_FS_BASE, ADDR(in));
	run(&r);
	CHECK_DONE("FS override");
	r = with(tilestored1, out);
	run(&r);
	CHECK(!memcmp(in, out, 1024), "used its base");
	r = with(addr32_load, in);
	r.gpr[RAX] |= 1ull << 40;
	run(&r);
	CHECK_DONE("32-bit addresses");
	r = run_user(tileloadd1);
	r.gpr[RAX] = ADDR(in);
	r.gpr[RCX] = 64;
	run(&r);
	CHECK_DONE("at CPL 3");
}

static void test_xsave(void)
{
	struct run r;

	r = with(tileloadd1, in);
	run(&r);
	__asm__ volatile("xsave64 %0" : "+m"(area) : "a"(XTILES | 7), "d"(0) : "memory");
	CHECK_EQ(*(u64 *)(area + 512) & XTILES, XTILES, "XSAVE: both in use");
	CHECK(!memcmp(area + 2752, config, 64), "XTILECFG");
	CHECK(!memcmp(area + 2816 + 1024, in, 1024), "XTILEDATA, tile 1");
	expect(tilerelease, NULL, DONE, "TILERELEASE");
	__asm__ volatile("xrstor64 %0" : : "m"(area), "a"(XTILES), "d"(0) : "memory");
	memset(out, 0, sizeof(out));
	r = with(tilestored1, out);
	run(&r);
	CHECK(outcome.vector == DONE && !memcmp(in, out, 1024), "XRSTOR brings them back");
	expect(tilerelease, NULL, DONE, "TILERELEASE");
	*(u64 *)(area + 512) = XTILES;
	__asm__ volatile("xsavec64 %0" : "+m"(area) : "a"(XTILES), "d"(0) : "memory");
	CHECK_EQ(*(u64 *)(area + 512) & XTILES, 0, "initial again");
	CHECK_EQ(*(u64 *)(area + 520), 1ull << 63 | XTILES, "XCOMP_BV has them");
}

void test_main(void)
{
	u32 leaf[4];
	u64 old;

	cpuid(7, 0, leaf);
	if (!(leaf[3] >> 24 & 1)) {
		kit_skip("AMX", "this processor has none");
		return;
	}
	test_cpuid();
	kit_cr4 |= CR4_OSXSAVE;
	write_cr4(kit_cr4);
	old = xcr0();
	shape(16, 64);
	expect(ldtilecfg, config, UD, "without XCR0");
	set_xcr0(old | 7 | XTILES);
	test_decoding();
	test_xfd();
	expect(ldtilecfg, config, DONE, "LDTILECFG");
	test_moves();
	test_xsave();
	write_cr0(read_cr0() | CR0_TS);
	expect(ldtilecfg, config, NM, "CR0.TS");
	write_cr0(read_cr0() & ~(u64)CR0_TS);
}
