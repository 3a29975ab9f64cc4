// SPDX-License-Identifier: MIT
// The framework of src/xstate: configurations, guests' and tasks' images, permissions, growth, clearing,
// and user space's image. Tests are named after the statements of the series they come from:
// "002/N" is patch N of "Introduce CET supervisor xstate support", "000/N" of "Enable CET
// Virtualization" v10, "003" the thread about KVM_SET_XSAVE.
#include "../lib/tap.h"

#include "xstate/fpstate.h"

#include <errno.h>
#include <string.h>

#define M(name) XSTATE_MASK(XSTATE_##name)
#define CET (M(CET_U) | M(CET_S))
#define USER (7 | XSTATE_MASK_AVX512 | M(PKRU) | XSTATE_MASK_AMX)

enum { HAS_SHSTK = 1, HAS_IBT = 2, HAS_NOT_PKU = 4 };

static bool has(const struct xstate_cpuid_bit *bit, const void *opaque)
{
	unsigned flags = *(const unsigned *)opaque;

	if (bit->leaf == 7 && bit->subleaf == 0 && bit->reg == 2 && bit->bit == 7)
		return flags & HAS_SHSTK;
	if (bit->leaf == 7 && bit->subleaf == 0 && bit->reg == 3 && bit->bit == 20)
		return flags & HAS_IBT;
	if (bit->leaf == 7 && bit->subleaf == 0 && bit->reg == 2 && bit->bit == 3)
		return !(flags & HAS_NOT_PKU);
	return true;
}

static struct xstate_configs configure(unsigned flags, enum xstate_cet_u_rule rule)
{
	struct xstate_processor p = { .xcr0 = USER, .xss = CET | M(PT) | M(PASID) | M(LBR) | M(HDC),
				      .xsave = true, .xsaves = true, .has = has, .opaque = &flags };
	struct xstate_configs configs;

	xstate_configure(&configs, &p, rule);
	return configs;
}

static void configurations(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK), only;
	unsigned both = HAS_SHSTK | HAS_IBT;
	struct xstate_processor p = { .xcr0 = USER, .xss = CET, .xsave = true, .has = has, .opaque = &both };

	is(c.kernel.max_features, USER | CET | M(PASID), "002/3 (000/3): CET_S is among the components the kernel supports");
	is(xstate_component(XSTATE_CET_S)->size, 24, "002/3: it is 24 bytes");
	is(c.kernel.max_features & (M(PT) | M(HDC)), 0, "001: PT and others are not managed, though enumerated");
	is(XSTATE_MASK_GUEST_SUPERVISOR, M(CET_S), "002/4 (000/4): the guest-only (kernel dynamic) set is CET_S");
	is(c.kernel.default_features, c.kernel.max_features & ~(M(CET_S) | M(TILEDATA)),
	   "002/5: tasks' images have all but CET_S and tile data");
	is(c.guest_default.features, c.kernel.max_features & ~M(TILEDATA), "000/5: guests' images have CET_S, and no tile data");
	is(c.guest_default.size, xstate_compacted_size(c.guest_default.features),
	   "002/2: the size of a guest's image is that of its components");
	is(c.kernel.default_size, xstate_compacted_size(c.kernel.default_features), "002/2: a task's as well");
	is(c.user.max_features, USER, "user space sees no supervisor component");
	is(c.user.default_features, USER & ~M(TILEDATA), "and no tile data by default");
	is(c.user.max_size, 11008, "in the standard format");
	is(c.xss, CET | M(PASID) | M(LBR), "IA32_XSS: supervisor components and independent ones");
	is(c.independent, M(LBR), "LBR is independent");

	// Where nothing that is aligned follows CET_S its 24 bytes show.
	p.xcr0 = 7;
	p.xsaves = true;
	xstate_configure(&only, &p, CET_U_WITH_SHSTK);
	is(only.guest_default.size, 832 + 40, "002/2: x87, SSE, AVX, CET_U and CET_S for a guest");
	is(only.kernel.default_size, 832 + 16, "002/2: 24 bytes less for a task");
	p.xcr0 = USER;
	p.xsaves = false;

	only = configure(HAS_IBT, CET_U_WITH_SHSTK);
	is(only.kernel.max_features & CET, 0, "002/1 as merged: CET_U depends on SHSTK, like CET_S");
	only = configure(HAS_IBT, CET_U_WITH_EITHER);
	is(only.kernel.max_features & CET, M(CET_U), "002/1 (000/2): with IBT alone CET_U is managed, CET_S is not");
	only = configure(HAS_SHSTK, CET_U_WITH_EITHER);
	is(only.kernel.max_features & CET, CET, "002/1: with SHSTK alone both are");
	only = configure(0, CET_U_WITH_EITHER);
	is(only.kernel.max_features & CET, 0, "002/1: without either, neither");
	only = configure(HAS_SHSTK | HAS_NOT_PKU, CET_U_WITH_SHSTK);
	is(only.kernel.max_features & M(PKRU), 0, "a component without its feature is not managed");

	xstate_configure(&only, &p, CET_U_WITH_SHSTK);
	is(only.kernel.max_features, USER, "without XSAVES there are user components only");
	is(only.guest_default.size, xstate_standard_size(USER & ~M(TILEDATA)), "and sizes are of the standard format");
	p.xcr0 = USER | XSTATE_MASK_MPX | M(APX);
	xstate_configure(&only, &p, CET_U_WITH_SHSTK);
	is(only.kernel.max_features & (XSTATE_MASK_MPX | M(APX)), M(APX), "APX and MPX share their place: no MPX then");
	p.xsave = false;
	xstate_configure(&only, &p, CET_U_WITH_SHSTK);
	is(only.kernel.max_features, 3, "without XSAVE: x87 and SSE");
}

static void allocation(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK);
	struct xstate_permission permission;
	struct fpstate *guest, *task;
	uint64_t xcomp;
	unsigned used = 0;

	xstate_permission_init(&permission, &c, true);
	guest = fpstate_alloc_guest(&c, &permission);
	task = fpstate_alloc_task(&c);
	memcpy(&xcomp, guest->image + 520, 8);
	is(xcomp, c.guest_default.features | XSTATE_COMPACTED, "002/7 (000/6): a guest's XCOMP_BV has bit 12 from the first allocation");
	is(guest->size, xstate_compacted_size(guest->xfeatures), "002/2: there is room for what XCOMP_BV names");
	ok(fpstate_component(guest, XSTATE_CET_S) + 24 <= guest->image + guest->size, "002/7: CET_S lies inside");
	memcpy(&xcomp, task->image + 520, 8);
	is(xcomp >> 12 & 1, 0, "002/5: a task's XCOMP_BV has not");
	ok(!fpstate_component(task, XSTATE_CET_S), "002/5: there is no CET_S in it");
	for (unsigned i = 0; i < guest->size; i++)
		used |= i >= 512 && i < 528 ? 0 : guest->image[i];
	is(used, 0, "004: a guest's image is allocated as zeros");
	is(fpstate_xstate_bv(guest), 0, "004: all of it initial");
	is(guest->xfd, 0, "a guest's IA32_XFD is 0");
	is(task->xfd, M(TILEDATA), "a task's disables what needs permission");
	is(guest->uabi_size, 4096, "user space's image is 4096 bytes");
	is(guest->user_xfeatures, c.user.default_features, "user space may set what the host has by default");
	ok(guest->is_guest && !task->is_guest, "who is who");

	ok(fpstate_may_save(guest), "002/8: CET_S in a guest's image is fine");
	ok(fpstate_may_save(task), "002/8: a task's without it too");
	is(fpstate_refusals(), 0, "002/8: nothing to warn of");
	task->xfeatures |= M(CET_S);
	ok(!fpstate_may_save(task), "002/8 (000/7): CET_S in a task's image is refused");
	is(fpstate_refusals(), 1, "002/8: and counted");
	fpstate_free(guest);
	fpstate_free(task);
}

static void growth(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK);
	struct xstate_permission permission, tasks;
	struct fpstate *guest;
	uint64_t xcomp, supervisor;

	xstate_permission_init(&permission, &c, true);
	xstate_permission_init(&tasks, &c, false);
	supervisor = permission.features & xstate_supervisor_mask();
	is(permission.features, c.guest_default.features, "a guest's permission begins with its default");
	is(permission.kernel_size, xstate_compacted_size(permission.features), "its size with supervisor components");
	is(tasks.features & CET, M(CET_U), "a task's has no CET_S");
	is(xstate_permission_visible(&permission, &c), c.user.default_features, "user space sees no supervisor bit of it");
	is(xstate_permission_request(&permission, &c, 64), -EINVAL, "a component with no number");
	is(xstate_permission_request(&permission, &c, XSTATE_CET_S), -EOPNOTSUPP, "CET_S cannot be asked for");
	is(xstate_permission_request(&permission, &c, XSTATE_AVX), -EOPNOTSUPP, "nor what everybody has");
	is(xstate_permission_request(&permission, &c, XSTATE_TILEDATA), 0, "tile data can");
	is(permission.features & xstate_supervisor_mask(), supervisor, "000/1: supervisor components stay in the permission");
	is(permission.kernel_size, xstate_compacted_size(c.guest_default.features | M(TILEDATA)),
	   "002/6: CET_S is counted when the permitted size grows");
	is(permission.user_size, 11008, "and is not in user space's size");

	// Without padding to hide it: AVX ends at 832, a multiple of 64.
	unsigned both = HAS_SHSTK | HAS_IBT;
	struct xstate_processor small = { .xcr0 = 7 | XSTATE_MASK_AMX, .xss = CET, .xsave = true, .xsaves = true,
					  .has = has, .opaque = &both };
	struct xstate_configs few;

	xstate_configure(&few, &small, CET_U_WITH_SHSTK);
	xstate_permission_init(&permission, &few, true);
	xstate_permission_request(&permission, &few, XSTATE_TILEDATA);
	is(permission.kernel_size, 832 + 64 + 64 + 8192, "002/6: CET's 40 bytes push the tiles up by 64");

	xstate_permission_init(&permission, &c, true);
	guest = fpstate_alloc_guest(&c, &permission);
	is(xstate_permission_request(&permission, &c, XSTATE_TILEDATA), -EBUSY, "000/1: the first guest locks the permission");
	is(fpstate_enable_dynamic(guest, &permission, &c, M(TILEDATA)), -EPERM, "growth without permission");
	is(fpstate_enable_dynamic(guest, &permission, &c, M(CET_S)), -EINVAL, "growth by what is not dynamic");
	fpstate_free(guest);

	xstate_permission_init(&permission, &c, true);
	xstate_permission_request(&permission, &c, XSTATE_TILEDATA);
	guest = fpstate_alloc_guest(&c, &permission);
	is(xstate_permission_request(&permission, &c, XSTATE_TILEDATA), 0, "000/1: what is permitted may be asked for again, locked or not");
	memset(fpstate_component(guest, XSTATE_CET_S), 0x12, 24);
	memset(fpstate_component(guest, XSTATE_CET_U), 0x11, 16);
	memset(fpstate_component(guest, XSTATE_AVX), 0x02, 256);
	memset(guest->image + 160, 0x01, 256);
	fpstate_set_xstate_bv(guest, 7 | CET);
	fpstate_set_xfd(guest, M(TILEDATA));
	is(fpstate_enable_dynamic(guest, &permission, &c, M(TILEDATA)), 0, "growth with it");
	memcpy(&xcomp, guest->image + 520, 8);
	is(xcomp, c.guest_default.features | M(TILEDATA) | XSTATE_COMPACTED, "002/6: the grown image still has CET_S");
	is(guest->size, xstate_compacted_size(guest->xfeatures), "002/6: with room for it");
	ok(fpstate_component(guest, XSTATE_CET_S)[23] == 0x12 && fpstate_component(guest, XSTATE_CET_U)[15] == 0x11 &&
	   fpstate_component(guest, XSTATE_AVX)[255] == 2 && guest->image[160] == 1, "and all that it held");
	is(fpstate_xstate_bv(guest), 7 | CET, "XSTATE_BV stays");
	is(guest->user_xfeatures, c.user.max_features, "003: user_xfeatures grow with a guest's image too");
	is(guest->xfd, 0, "IA32_XFD no longer disables it");
	is(guest->uabi_size, 11008, "user space's image grows");
	is(fpstate_enable_dynamic(guest, &permission, &c, M(TILEDATA)), 0, "twice is fine");

	fpstate_set_xstate_bv(guest, 7 | M(TILEDATA));
	fpstate_set_xfd(guest, M(TILEDATA));
	is(fpstate_xstate_bv(guest), 7, "IA32_XFD takes a disabled component out of the image");
	fpstate_set_xfd(guest, 0);
	fpstate_set_xstate_bv(guest, 7 | M(TILEDATA));
	guest->in_use = true;
	fpstate_set_xfd(guest, M(TILEDATA));
	is(fpstate_xstate_bv(guest), 7 | M(TILEDATA), "but not while the registers hold the state");
	fpstate_free(guest);
}

static void clearing(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK);
	struct xstate_permission permission;
	struct fpstate *guest;

	xstate_permission_init(&permission, &c, true);
	guest = fpstate_alloc_guest(&c, &permission);
	memset(guest->image + 576, 0xaa, guest->size - 576);
	fpstate_set_xstate_bv(guest, M(CET_U) | M(AVX));
	fpstate_clear_component(guest, XSTATE_CET_U);
	ok(!fpstate_component(guest, XSTATE_CET_U)[0] && !fpstate_component(guest, XSTATE_CET_U)[15], "004: a component is cleared");
	is(fpstate_component(guest, XSTATE_CET_S)[0], 0xaa, "004: its neighbour is not");
	is(fpstate_xstate_bv(guest), M(CET_U) | M(AVX), "004: its XSTATE_BV bit stays");
	fpstate_clear_component(guest, XSTATE_CET_S);
	is(fpstate_component(guest, XSTATE_CET_S)[0], 0xaa, "a component that is initial already is left alone");
	fpstate_clear_component(guest, XSTATE_BNDREGS);
	fpstate_clear_component(guest, 63);
	is(fpstate_component(guest, XSTATE_AVX)[0], 0xaa, "components that are not there do no harm");
	fpstate_free(guest);
}

static uint8_t image[12288], again[12288];

static void set_bv(uint64_t bv)
{
	memcpy(image + 512, &bv, 8);
}

static uint64_t get_bv(void)
{
	uint64_t bv;

	memcpy(&bv, image + 512, 8);
	return bv;
}

static struct fpstate *filled_guest(const struct xstate_configs *c)
{
	struct xstate_permission permission;
	struct fpstate *guest;

	xstate_permission_init(&permission, c, true);
	guest = fpstate_alloc_guest(c, &permission);
	for (unsigned i = 0; i < guest->size; i++)
		if (i < 512 || i >= 576)
			guest->image[i] = i * 37 >> 3 | 1;
	memcpy(guest->image + 24, "\x80\x9f\0\0\xff\xff\0\0", 8);
	fpstate_set_xstate_bv(guest, guest->xfeatures);
	return guest;
}

static void to_user(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK);
	struct fpstate *guest = filled_guest(&c);
	uint64_t all = c.user.default_features, value;
	unsigned sum = 0;

	memset(image, 0xee, sizeof(image));
	ok(fpstate_copy_to_uabi(guest, image, 4096, ~0ull, 0x12345678), "an image for user space");
	is(get_bv(), all, "003/1: with every component of user space's when the mask has all");
	memcpy(&value, image + 520, 8);
	is(value, 0, "in the standard format");
	ok(!memcmp(image + 576, fpstate_component(guest, XSTATE_AVX), 256), "AVX is in its place");
	ok(!memcmp(image + 1664, fpstate_component(guest, XSTATE_HI16_ZMM), 1024), "Hi16_ZMM too");
	ok(!memcmp(image, guest->image, 416), "x87, SSE and MXCSR");
	memcpy(&value, image + 2688, 8);
	is(value, 0x12345678, "PKRU is what the caller says");
	memcpy(&value, image + 464, 8);
	is(value, guest->user_xfeatures, "the bytes for software hold what user space can have");
	for (unsigned i = 2752 + 64; i < 4096; i++)
		sum |= image[i];
	is(sum, 0, "the rest is zero");

	ok(fpstate_copy_to_uabi(guest, image, 4096, 3, 0), "003/1: with a mask of x87 and SSE");
	is(get_bv(), 3, "003/1: XSTATE_BV has no more");
	for (unsigned i = 576; i < 4096; i++)
		sum |= image[i];
	is(sum, 0, "003/1: nor has the image");
	ok(fpstate_copy_to_uabi(guest, image, 4096, 4, 0), "a mask without x87 and SSE");
	is(get_bv(), 4, "XSTATE_BV");
	is(image[0] | image[1] << 8, FCW_INIT, "x87 is initial");
	is(image[160] | image[415], 0, "SSE is initial");
	is(image[24] | image[25] << 8, 0x9f80, "MXCSR comes with AVX");
	ok(fpstate_copy_to_uabi(guest, image, 4096, 1, 0), "a mask of x87 alone");
	is(image[24] | image[25] << 8, MXCSR_INIT, "MXCSR is initial");
	fpstate_set_xstate_bv(guest, 1 | CET);
	ok(fpstate_copy_to_uabi(guest, image, 4096, ~0ull, 0x77), "an image that is mostly initial");
	is(get_bv(), 1, "shows what is there, and no supervisor component");
	is(image[2688], 0, "no PKRU without its bit");
	ok(fpstate_copy_to_uabi(guest, image, 576, 3, 0), "a buffer that just fits");
	fpstate_set_xstate_bv(guest, 7);
	ok(!fpstate_copy_to_uabi(guest, image, 831, 7, 0), "one that does not");
	fpstate_free(guest);
}

static void from_user(void)
{
	struct xstate_configs c = configure(HAS_SHSTK | HAS_IBT, CET_U_WITH_SHSTK), old = c;
	struct fpstate *guest = filled_guest(&c), *empty = filled_guest(&c);
	uint64_t all = c.user.default_features;
	uint32_t pkru = 5;
	uint8_t *before;

	memset(empty->image + 576, 0, empty->size - 576);
	memset(empty->image, 0, 512);
	fpstate_set_xstate_bv(empty, M(CET_S));
	memset(fpstate_component(empty, XSTATE_CET_S), 0x5a, 24);
	fpstate_copy_to_uabi(guest, image, 4096, ~0ull, 0x12345678);
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), 0, "003/4: an image goes into one that was never used");
	is(pkru, 0x12345678, "PKRU goes to the caller");
	is(fpstate_xstate_bv(empty), all | M(CET_S), "user components are replaced, supervisor components kept");
	is(fpstate_component(empty, XSTATE_CET_S)[5], 0x5a, "with their data");
	fpstate_copy_to_uabi(empty, again, 4096, ~0ull, 0x12345678);
	ok(!memcmp(image, again, 4096), "the same comes out again");

	// What is refused changes nothing.
	before = fpstate_component(empty, XSTATE_AVX);
	memset(image + 576, 0x33, 256);
	set_bv(all | M(CET_U));
	is(fpstate_copy_from_uabi(empty, image, 4096, ~0ull, &pkru), -EINVAL, "a supervisor component is refused");
	set_bv(all | M(BNDREGS));
	is(fpstate_copy_from_uabi(empty, image, 4096, ~0ull, &pkru), -EINVAL, "a component of no host here");
	set_bv(all);
	is(fpstate_copy_from_uabi(empty, image, 4096, all & ~M(PKRU), &pkru), -EINVAL, "003: one that is not supported");
	image[520] = 1;
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), -EINVAL, "XCOMP_BV");
	image[520] = 0;
	for (unsigned i = 528; i < 576; i += 47) {
		image[i] = 1;
		is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), -EINVAL, "byte %u of the header", i - 512);
		image[i] = 0;
	}
	image[26] = 1;
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), -EINVAL, "a reserved bit of MXCSR");
	for (unsigned i = 0; i < 3; i++) {
		set_bv(1ull << i);
		is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), -EINVAL, "with component %u alone", i);
	}
	ok(before[0] != 0x33 && fpstate_xstate_bv(empty) == (all | M(CET_S)) && pkru == 0x12345678, "nothing of it was taken");
	set_bv(M(PKRU));
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), 0, "MXCSR is not looked at without x87, SSE, AVX");
	is(fpstate_xstate_bv(empty), M(PKRU) | M(CET_S), "components that are not there become initial");
	image[26] = 0;
	pkru = 9;
	set_bv(4);
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), 0, "AVX alone");
	is(pkru, 9, "PKRU stays without its bit");
	is(empty->image[24] | empty->image[25] << 8, 0x9f80, "MXCSR comes with AVX");
	is(fpstate_copy_from_uabi(empty, image, 600, all, &pkru), -EINVAL, "an image that ends within a component");
	is(fpstate_copy_from_uabi(empty, image, 575, all, &pkru), -EINVAL, "one that ends in the header");
	set_bv(7);
	empty->xfd = 4;
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), 0, "a component that IA32_XFD disables");
	is(fpstate_xstate_bv(empty), 3 | M(CET_S), "is left out");

	// 003: narrowing user_xfeatures is what the strict generation did.
	empty->xfd = 0;
	empty->user_xfeatures = 7;
	set_bv(7 | M(PKRU));
	is(fpstate_copy_from_uabi(empty, image, 4096, all, &pkru), -EINVAL, "003: a narrowed guest refuses what its host has");
	fpstate_free(empty);
	old.xsave = old.compacted = false;
	empty = filled_guest(&old);
	set_bv(0);
	image[26] = 1;
	is(fpstate_copy_from_uabi(empty, image, 4096, 3, &pkru), -EINVAL, "without XSAVE MXCSR is always looked at");
	image[26] = 0;
	set_bv(4);
	is(fpstate_copy_from_uabi(empty, image, 4096, 3, &pkru), -EINVAL, "and there is nothing but x87 and SSE");
	fpstate_free(empty);
	fpstate_free(guest);
}

int main(void)
{
	configurations();
	allocation();
	growth();
	clearing();
	to_user();
	from_user();
	return done_testing();
}
