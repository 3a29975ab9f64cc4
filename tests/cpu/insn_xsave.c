// SPDX-License-Identifier: MIT
// The XSAVE family: images byte for byte against the host's own instructions on random state, and the
// rules that user code cannot ask the host about: supervisor components, checks, exceptions.
#include "insn.h"

#include "cpu/transfer.h"
#include "xstate/xstate.h"

#include <stdlib.h>

#define AREA 0x200000ull // linear and physical
#define AREA_SIZE 4096
#define FPSSEAVX 7ull

static u8 native[AREA_SIZE] __attribute__((aligned(64)));
static u8 result[AREA_SIZE] __attribute__((aligned(64)));
static u8 state[AREA_SIZE] __attribute__((aligned(64)));
static u8 before[AREA_SIZE] __attribute__((aligned(64)));

static void fill(u8 *to, unsigned size)
{
	for (unsigned i = 0; i < size; i += 8) {
		u64 value = any64();

		memcpy(to + i, &value, 8);
	}
}

// A random but loadable standard image of x87, SSE and AVX in `state`.
static void random_state(void)
{
	u64 bv = any64() & FPSSEAVX;
	u32 mxcsr = any64() & 1 ? MXCSR_INIT : (any64() & 0xe07f) | MXCSR_INIT;

	fill(state, 832);
	memset(state + 512, 0, 64);
	*(u16 *)(state + FX_FCW) = 0x37f;
	*(u16 *)(state + FX_FSW) = any64() & 0x3800;
	*(u16 *)(state + FX_FTW) = any64() & 0xff;
	memset(state + FX_FOP, 0, 18); // pointers: hosts differ
	*(u32 *)(state + FX_MXCSR) = mxcsr;
	memcpy(state + 512, &bv, 8);
	for (unsigned i = 0; i < 8; i++) // reserved bytes of the stack registers
		memset(state + FX_ST + i * 16 + 10, 0, 6);
}

#define VECTORS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
	"xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
// `before` gets what is in the registers when the instruction begins: which components are in use
// is the host's secret, and may change between two loads of the same image.
#define AROUND(instruction, target, mask) \
	do { \
		u32 low_ = 7, high_ = 0; \
		__asm__ volatile("xrstor64 %[state]\n\t" \
				 "xsave64 %[before]\n\t" \
				 "mov %[rfbm], %%eax; xor %%edx, %%edx\n\t" instruction \
				 "\n\tfninit; vzeroupper; ldmxcsr %[plain]" \
				 : [area] "+m"(target), [before] "+m"(before), "+&a"(low_), "+&d"(high_) \
				 : [state] "m"(state), [rfbm] "r"((u32)(mask)), \
				   [plain] "m"(plain_mxcsr) : "memory", "cc", VECTORS); \
	} while (0)

static const u32 plain_mxcsr = MXCSR_INIT;

enum form { SAVE, SAVE64, SAVEOPT64, SAVEC64, FORMS };
static const char *const form_name[FORMS] = { "XSAVE", "XSAVE64", "XSAVEOPT64", "XSAVEC64" };

static void native_save(enum form form, u64 rfbm)
{
	switch (form) {
	case SAVE: AROUND("xsave %[area]", native, rfbm); break;
	case SAVE64: AROUND("xsave64 %[area]", native, rfbm); break;
	case SAVEOPT64: AROUND("xsaveopt64 %[area]", native, rfbm); break;
	default: AROUND("xsavec64 %[area]", native, rfbm);
	}
}

static void guest_save(enum form form)
{
	switch (form) {
	case SAVE: EXECUTE(0x0f, 0xae, 0x26); break;
	case SAVE64: EXECUTE(0x48, 0x0f, 0xae, 0x26); break;
	case SAVEOPT64: EXECUTE(0x48, 0x0f, 0xae, 0x36); break;
	default: EXECUTE(0x48, 0x0f, 0xc7, 0x26);
	}
}

// What the registers held goes into cpu->fpstate, as if translated code had left it there.
static void take_state(void)
{
	memcpy(cpu->fpstate, before, 832);
	cpu->fpu_loaded = false;
}

static void load_state(void)
{
	AROUND("", result, FPSSEAVX);
	take_state();
}

static void start(unsigned cpl)
{
	fixture_reset();
	insn_long_mode(cpl);
	cpu->xcr0 = FPSSEAVX;
	cpu->gpr[RSI] = AREA;
}

// The MXCSR mask is the guest's own, fewer bits than some hosts'.
static bool same_image(bool mxcsr_mask_written)
{
	u32 mask = GUEST_MXCSR_MASK;

	if (mxcsr_mask_written)
		memcpy(native + FX_MXCSR_MASK, &mask, 4);
	for (unsigned i = 0; i < AREA_SIZE; i++) {
		if (native[i] != ram[AREA + i]) {
			printf("# byte %u: wanted %02x got %02x\n", i, native[i], ram[AREA + i]);
			return false;
		}
	}
	return true;
}

// One random case. The host may be interrupted between our look at its registers and its
// instruction, and then find other components in use: only what fails each time has failed.
static bool save_case(enum form form)
{
	static u8 area[AREA_SIZE];
	u64 rfbm = any64() & FPSSEAVX;

	fill(area, AREA_SIZE);
	memset(area + 512, 0, 64);
	area[512] = any64() & 7;
	random_state();
	for (unsigned attempt = 0; attempt < 5; attempt++) {
		start(3);
		memcpy(native, area, AREA_SIZE);
		memcpy(ram + AREA, area, AREA_SIZE);
		native_save(form, rfbm);
		take_state();
		cpu->gpr[RAX] = rfbm;
		cpu->gpr[RDX] = any64();
		guest_save(form);
		if (outcome.vector == NO_EXCEPTION &&
		    same_image(memcmp(area + FX_MXCSR_MASK, native + FX_MXCSR_MASK, 4)))
			return true;
	}
	printf("# rfbm %llx, state has %02x, host's XSTATE_BV %02x, MXCSR %x\n", (unsigned long long)rfbm, state[512],
	       native[512], *(u32 *)(state + FX_MXCSR));
	return false;
}

// CASES in the environment: more of them.
static unsigned cases(void)
{
	const char *wanted = getenv("CASES");

	return wanted ? strtoul(wanted, NULL, 10) : 2000;
}

static void save_against_host(void)
{
	for (enum form form = 0; form < FORMS; form++) {
		bool good = true;

		for (unsigned i = 0; i < cases() && good; i++)
			good = save_case(form);
		ok(good, "%s writes what the host's writes", form_name[form]);
	}
}

// What an XRSTOR of the image in `native` leaves in the host's registers, in `result`.
static void native_restore(u64 rfbm)
{
	u32 low = 7, high = 0;

	__asm__ volatile("xrstor64 %[state]\n\t"
			 "mov %[rfbm], %%eax; xor %%edx, %%edx\n\txrstor64 %[image]\n\t"
			 "mov $7, %%eax; xor %%edx, %%edx\n\txsave64 %[result]\n\t"
			 "fninit; vzeroupper; ldmxcsr %[plain]"
			 : [result] "+m"(result), "+&a"(low), "+&d"(high)
			 : [state] "m"(state), [image] "m"(native), [rfbm] "r"((u32)rfbm), [plain] "m"(plain_mxcsr)
			 : "memory", "cc", VECTORS);
}

static void image_to_restore(bool compacted)
{
	u64 bv = any64() & FPSSEAVX, xcomp = (any64() & FPSSEAVX) | bv | XSTATE_COMPACTED;

	random_state();
	memcpy(native, state, 832);
	if (compacted)
		memcpy(native + 520, &xcomp, 8);
	memcpy(native + 512, &bv, 8);
	memset(native + 832, 0x11, AREA_SIZE - 832);
	random_state();
}

// The same for a restore. XSTATE_BV is not compared: which components are in use may differ.
static bool restore_case(bool compacted)
{
	u64 rfbm = any64() & FPSSEAVX;

	start(3);
	image_to_restore(compacted);
	load_state();
	memset(result, 0, sizeof(result));
	native_restore(rfbm);
	memcpy(ram + AREA, native, AREA_SIZE);
	cpu->gpr[RAX] = rfbm;
	EXECUTE(0x48, 0x0f, 0xae, 0x2e);
	cpu->fpstate[FX_MXCSR_MASK + 2] = result[FX_MXCSR_MASK + 2];
	for (unsigned k = 0; k < 832; k++) {
		if ((k >= 416 && k < 576) || cpu->fpstate[k] == result[k])
			continue;
		printf("# byte %u: wanted %02x got %02x, rfbm %llx bv %x\n", k, result[k], cpu->fpstate[k],
		       (unsigned long long)rfbm, native[512]);
		return false;
	}
	return outcome.vector == NO_EXCEPTION;
}

static void restore_against_host(void)
{
	for (unsigned compacted = 0; compacted < 2; compacted++) {
		bool good = true;

		for (unsigned i = 0; i < cases() && good; i++)
			good = restore_case(compacted);
		ok(good, "XRSTOR of %s images loads what the host's loads", compacted ? "compacted" : "standard");
	}
}

// ---- exceptions ----

static void raises(int vector, const char *name)
{
	is(outcome.vector, vector, "%s", name);
}

#define XRSTOR64 0x48, 0x0f, 0xae, 0x2e
#define XSAVE64_ 0x48, 0x0f, 0xae, 0x26
#define XSAVES64 0x48, 0x0f, 0xc7, 0x2e
#define XRSTORS64 0x48, 0x0f, 0xc7, 0x1e

static void header(u64 xstate_bv, u64 xcomp_bv)
{
	memset(ram + AREA, 0, AREA_SIZE);
	*dword(AREA + FX_MXCSR) = MXCSR_INIT;
	*(u16 *)(ram + AREA) = FCW_INIT;
	*qword(AREA + 512) = xstate_bv;
	*qword(AREA + 520) = xcomp_bv;
}

static void exceptions(void)
{
	start(3);
	cpu->gpr[RAX] = 7;
	header(0, 0);
	EXECUTE(XRSTOR64);
	raises(NO_EXCEPTION, "XRSTOR of an empty image");
	cpu->gpr[RSI] = AREA + 16;
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "XRSTOR from a misaligned area");
	EXECUTE(XSAVE64_);
	raises(VECTOR_GP, "XSAVE to a misaligned area");
	cpu->gpr[RSI] = 1ull << 47;
	EXECUTE(XSAVE64_);
	raises(VECTOR_GP, "XSAVE to a non-canonical area");
	cpu->gpr[RSI] = AREA;
	header(1 << 5, 0);
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "XSTATE_BV with a bit that XCR0 has not");
	header(0, 2);
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "XCOMP_BV of a standard image is not zero");
	header(0, 0);
	*qword(AREA + 528) = 1;
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "header byte 16 of a standard image is not zero");
	header(0, 0);
	*qword(AREA + 536) = 1;
	EXECUTE(XRSTOR64);
	raises(NO_EXCEPTION, "header byte 24 of a standard image is not looked at");
	header(0, XSTATE_COMPACTED);
	*qword(AREA + 568) = 1;
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "header byte 56 of a compacted image is not zero");
	header(4, XSTATE_COMPACTED | 3);
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "XSTATE_BV with a bit that XCOMP_BV has not");
	header(0, XSTATE_COMPACTED | 1 << 9);
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "XCOMP_BV with a bit that XCR0 has not");
	header(0, XSTATE_COMPACTED | 3);
	fixture_without(FEATURE_XSAVEC);
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "a compacted image without XSAVEC");
	header(0, 0);
	*dword(AREA + FX_MXCSR) = 0x10000;
	EXECUTE(XRSTOR64);
	raises(VECTOR_GP, "MXCSR with a reserved bit, although XSTATE_BV is empty");
	cpu->gpr[RAX] = 1;
	EXECUTE(XRSTOR64);
	raises(NO_EXCEPTION, "the same when only x87 is asked for");
	cpu->cr0 |= CR0_TS;
	EXECUTE(XRSTOR64);
	raises(VECTOR_NM, "CR0.TS");
	cpu->cr4 &= ~CR4_OSXSAVE;
	EXECUTE(XRSTOR64);
	raises(VECTOR_UD, "CR4.OSXSAVE clear comes first");
}

static void page_faults(void)
{
	start(3);
	cpu->gpr[RAX] = 7;
	cpu->gpr[RSI] = AREA + 4096 - 576; // AVX is on the second page
	random_state();
	load_state();
	fpu_dirty(cpu, 7);
	*pte(AREA + 4096) = 0;
	tlb_flush_all(cpu);
	EXECUTE(XSAVE64_);
	raises(VECTOR_PF, "XSAVE to an area whose last page is missing");
	is(outcome.address, AREA + 4096, "#PF names that page");
	cpu->gpr[RAX] = 3;
	EXECUTE(XSAVE64_);
	raises(NO_EXCEPTION, "it does not matter when AVX is not asked for");
	memset(ram + AREA + 4096 - 64, 0, 64);
	ram[AREA + 4096 - 64] = 7;
	cpu->gpr[RAX] = 7;
	memcpy(result, cpu->fpstate, 832);
	EXECUTE(XRSTOR64);
	raises(VECTOR_PF, "XRSTOR from it");
	ok(!memcmp(result, cpu->fpstate, 832), "nothing was loaded");
}

// ---- supervisor components ----

static void supervisor(void)
{
	const u64 cet = XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S);

	start(0);
	if (!guest_has(cpu, FEATURE_XSAVES) || !guest_has(cpu, FEATURE_SHSTK)) {
		ok(false, "the processor has XSAVES and shadow stacks");
		return;
	}
	cpu->xss = cet;
	cpu->gpr[RAX] = ~0ull;
	cpu->gpr[RDX] = ~0ull;
	cpu->u_cet = CET_SHSTK_EN | CET_WRSS_EN;
	cpu->pl_ssp[3] = 0x7ffff000;
	cpu->pl_ssp[0] = 0xffff800000001000;
	cpu->pl_ssp[1] = 0x2000;
	cpu->pl_ssp[2] = 0x3000;
	memset(ram + AREA, 0xcc, AREA_SIZE);
	memset(ram + AREA + 512, 0, 64);
	EXECUTE(XSAVES64);
	raises(NO_EXCEPTION, "XSAVES");
	is(*qword(AREA + 520), XSTATE_COMPACTED | FPSSEAVX | cet, "XCOMP_BV");
	is(*qword(AREA + 512) & cet, cet, "both CET components are in use");
	is(*qword(AREA + 832), CET_SHSTK_EN | CET_WRSS_EN, "CET_U: IA32_U_CET behind AVX");
	is(*qword(AREA + 840), 0x7ffff000, "CET_U: IA32_PL3_SSP");
	is(*qword(AREA + 848), 0xffff800000001000, "CET_S: IA32_PL0_SSP");
	is(*qword(AREA + 864), 0x3000, "CET_S: IA32_PL2_SSP");
	cpu->u_cet = cpu->pl_ssp[3] = cpu->pl_ssp[0] = cpu->pl_ssp[1] = cpu->pl_ssp[2] = 0;
	EXECUTE(XRSTORS64);
	raises(NO_EXCEPTION, "XRSTORS");
	is(cpu->u_cet, CET_SHSTK_EN | CET_WRSS_EN, "IA32_U_CET is back");
	is(cpu->pl_ssp[3], 0x7ffff000, "IA32_PL3_SSP");
	is(cpu->pl_ssp[0], 0xffff800000001000, "IA32_PL0_SSP");
	is(cpu->pl_ssp[2], 0x3000, "IA32_PL2_SSP");

	*qword(AREA + 848) = 0x1001;
	*qword(AREA + 840) = 0x5000;
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "XRSTORS of a misaligned IA32_PL0_SSP");
	is(cpu->pl_ssp[3], 0x7ffff000, "CET_U, which was fine, is not loaded either");
	*qword(AREA + 848) = 1ull << 56;
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "of a non-canonical one");
	*qword(AREA + 848) = 0;
	*qword(AREA + 832) = 1 << 6;
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "of a reserved bit in IA32_U_CET");
	*qword(AREA + 832) = CET_SUPPRESS | CET_WAIT;
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "of SUPPRESS with WAIT_FOR_ENDBRANCH");
	*qword(AREA + 832) = 0;
	*qword(AREA + 512) &= ~cet;
	EXECUTE(XRSTORS64);
	raises(NO_EXCEPTION, "XRSTORS with the components absent");
	fixture_without(FEATURE_XSAVEC);
	EXECUTE(XRSTORS64);
	raises(NO_EXCEPTION, "XRSTORS of a processor without XSAVEC");
	is(cpu->u_cet | cpu->pl_ssp[3] | cpu->pl_ssp[0] | cpu->pl_ssp[2], 0, "initializes them");
	*qword(AREA + 520) &= ~XSTATE_COMPACTED;
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "XRSTORS of a standard image");
	EXECUTE(XSAVES64);
	is(*qword(AREA + 512) & cet, 0, "components at their initial values are not in use");
	cpu->xss = XSTATE_MASK(XSTATE_CET_U);
	EXECUTE(XSAVES64);
	is(*qword(AREA + 520), XSTATE_COMPACTED | FPSSEAVX | XSTATE_MASK(XSTATE_CET_U), "IA32_XSS limits XSAVES");
	cpu->cpl = 3;
	EXECUTE(XSAVES64);
	raises(VECTOR_GP, "XSAVES at CPL 3");
	EXECUTE(XRSTORS64);
	raises(VECTOR_GP, "XRSTORS at CPL 3");
}

// Vector registers 8 to 15 do not exist outside 64-bit mode.
static void compatibility_mode(void)
{
	start(0);
	random_state();
	state[512] = 7;
	load_state();
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_DB | 0xb;
	cpu->seg[SEG_CS].limit = 0xffffffff;
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		if (i != SEG_CS)
			cpu->seg[i] = (struct segment){ .limit = 0xffffffff, .attributes = SEG_P | SEG_S | SEG_DB | 3 };
	cpu->gpr[RAX] = 7;
	memset(ram + AREA, 0xcc, AREA_SIZE);
	memset(ram + AREA + 512, 0, 64);
	EXECUTE(0x0f, 0xae, 0x26);
	raises(NO_EXCEPTION, "XSAVE in compatibility mode");
	ok(!memcmp(ram + AREA + FX_XMM, state + FX_XMM, 128), "XMM0 to XMM7 are saved");
	is(*qword(AREA + FX_XMM + 128), 0xcccccccccccccccc, "XMM8 is not");
	is(*qword(AREA + 576 + 128), 0xcccccccccccccccc, "nor is the upper half of YMM8");
	memset(ram + AREA, 0, AREA_SIZE);
	*dword(AREA + FX_MXCSR) = MXCSR_INIT;
	EXECUTE(0x0f, 0xae, 0x2e);
	raises(NO_EXCEPTION, "XRSTOR of initial state in compatibility mode");
	is(*(u64 *)&cpu->fpstate[FX_XMM + 8], 0, "clears XMM0");
	ok(!memcmp(cpu->fpstate + FX_XMM + 128, state + FX_XMM + 128, 128), "leaves XMM8 to XMM15 alone");
	ok(!memcmp(cpu->fpstate + 576 + 128, state + 576 + 128, 128), "and the upper halves of YMM8 to YMM15");
}

static void segment_limit(void)
{
	start(0);
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_DB | 0xb;
	cpu->seg[SEG_DS] = (struct segment){ .limit = AREA + 831, .attributes = SEG_P | SEG_S | SEG_DB | 3 };
	cpu->gpr[RAX] = 7;
	EXECUTE(0x0f, 0xae, 0x26);
	raises(NO_EXCEPTION, "XSAVE that just fits in its segment");
	cpu->seg[SEG_DS].limit--;
	EXECUTE(0x0f, 0xae, 0x26);
	raises(VECTOR_GP, "XSAVE that does not");
}

// ---- the swap with an image in memory ----

static bool any_feature(const struct xstate_cpuid_bit *bit, const void *opaque)
{
	return true;
}

static void images_in_memory(void)
{
	const u64 cet = XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S);
	struct xstate_processor processor = { .xcr0 = FPSSEAVX | XSTATE_MASK(XSTATE_PKRU), .xss = cet,
					      .xsave = true, .xsaves = true, .has = any_feature };
	struct xstate_configs configs;
	struct xstate_permission permission;
	struct fpstate *guest, *task;

	xstate_configure(&configs, &processor, CET_U_WITH_SHSTK);
	xstate_permission_init(&permission, &configs, true);
	guest = fpstate_alloc_guest(&configs, &permission);
	task = fpstate_alloc_task(&configs);
	start(0);
	random_state();
	state[512] = 7;
	load_state();
	cpu->pkru = 0x55555554;
	cpu->u_cet = CET_SHSTK_EN;
	cpu->pl_ssp[0] = 0x1000;
	cpu->pl_ssp[3] = 0x4000;
	ok(cpu_fpstate_save(cpu, guest), "a guest's state is saved");
	is(*(u64 *)(guest->image + 512), FPSSEAVX | XSTATE_MASK(XSTATE_PKRU) | cet, "XSTATE_BV with both parts of CET");
	is(*(u64 *)(guest->image + 520), (FPSSEAVX | XSTATE_MASK(XSTATE_PKRU) | cet) | XSTATE_COMPACTED, "XCOMP_BV as well");
	ok(!memcmp(fpstate_component(guest, XSTATE_AVX), state + 576, 256), "AVX is in it");
	is(*(u64 *)fpstate_component(guest, XSTATE_CET_S), 0x1000, "PL0_SSP is in it");
	is(((u64 *)fpstate_component(guest, XSTATE_CET_U))[1], 0x4000, "PL3_SSP is in it");
	fpu_reset(cpu);
	cpu->u_cet = cpu->pl_ssp[0] = cpu->pl_ssp[3] = 0;
	cpu->pkru = 0x11;
	cpu_fpstate_load(cpu, guest);
	ok(!memcmp(cpu->fpstate + FX_XMM, state + FX_XMM, 256), "XMM are back");
	ok(cpu->u_cet == CET_SHSTK_EN && cpu->pl_ssp[0] == 0x1000 && cpu->pl_ssp[3] == 0x4000, "CET is back");
	is(cpu->pkru, 0x11, "PKRU is not loaded with the rest");
	fpstate_set_xstate_bv(guest, XSTATE_MASK(XSTATE_X87));
	cpu_fpstate_load(cpu, guest);
	is(*(u64 *)(cpu->fpstate + FX_XMM), 0, "components that are not there become initial");
	is(cpu->u_cet | cpu->pl_ssp[0] | cpu->pl_ssp[3], 0, "CET as well");

	ok(cpu_fpstate_save(cpu, task), "a task's state is saved");
	is(*(u64 *)(task->image + 520) & cet, XSTATE_MASK(XSTATE_CET_U), "without CET_S");
	task->xfeatures |= XSTATE_MASK(XSTATE_CET_S);
	ok(!cpu_fpstate_save(cpu, task), "a task's image with CET_S is refused");
	is(fpstate_refusals(), 1, "and counted");
	fpstate_free(guest);
	fpstate_free(task);
}

// Host and guest state around translated code: neither sees the other's.
static void swapping(void)
{
	u32 mxcsr;
	u16 fcw;

	start(0);
	random_state();
	state[512] = 7;
	load_state();
	*(u32 *)&cpu->fpstate[FX_MXCSR] = 0x7f80;
	*(u16 *)&cpu->fpstate[FX_FCW] = 0x27f;
	memcpy(state, cpu->fpstate, 832);
	cpu_fpu_enter(cpu);
	cpu_fpu_load(cpu);
	__asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(fcw));
	cpu_fpu_unload(cpu);
	cpu_fpu_leave(cpu);
	is(mxcsr, 0x7f80, "the guest's MXCSR is loaded");
	is(fcw, 0x27f, "the guest's x87 control word is loaded");
	__asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(fcw));
	is(mxcsr, MXCSR_INIT, "the thread's MXCSR is back");
	is(fcw, FCW_INIT, "the thread's x87 control word is back");
	ok(!memcmp(state + 160, cpu->fpstate + 160, 256) && !memcmp(state + 576, cpu->fpstate + 576, 256),
	   "the guest's vector registers come back as they were");
}

int main(void)
{
	save_against_host();
	restore_against_host();
	exceptions();
	page_faults();
	supervisor();
	compatibility_mode();
	segment_limit();
	images_in_memory();
	swapping();
	return done_testing();
}
