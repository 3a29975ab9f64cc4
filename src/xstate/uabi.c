// SPDX-License-Identifier: MIT
// Extended state for user space: the standard-format image of KVM_{GET,SET}_XSAVE from and to the
// compacted image in memory.
// api.rst: KVM_GET_XSAVE2, KVM_SET_XSAVE.
#include "xstate/fpstate.h"

#include <errno.h>
#include <string.h>

#define MXCSR_AT 24
#define MXCSR_SIZE 8 // with its mask
#define XMM_AT 160
#define SOFTWARE_AT 464 // left to software: here the mask of components user space can have
#define MXCSR_VALID 0xffffu
#define WITH_MXCSR (XSTATE_MASK_FPSSE | XSTATE_MASK(XSTATE_AVX))

static void put32(uint8_t *to, uint32_t value)
{
	memcpy(to, &value, sizeof(value));
}

static void legacy_to_uabi(const struct fpstate *fpstate, uint8_t *to, uint64_t present)
{
	const uint8_t *from = fpstate->image;

	xstate_init_component(XSTATE_X87, to);
	if (present & XSTATE_MASK(XSTATE_X87)) {
		memcpy(to, from, MXCSR_AT);
		memcpy(to + 32, from + 32, 128);
	}
	put32(to + MXCSR_AT, MXCSR_INIT);
	put32(to + MXCSR_AT + 4, MXCSR_VALID);
	if (present & (XSTATE_MASK(XSTATE_SSE) | XSTATE_MASK(XSTATE_AVX)))
		memcpy(to + MXCSR_AT, from + MXCSR_AT, MXCSR_SIZE);
	if (present & XSTATE_MASK(XSTATE_SSE))
		memcpy(to + XMM_AT, from + XMM_AT, 256);
	memcpy(to + SOFTWARE_AT, &fpstate->user_xfeatures, sizeof(fpstate->user_xfeatures));
}

bool fpstate_copy_to_uabi(const struct fpstate *fpstate, void *to, size_t size, uint64_t mask, uint32_t pkru)
{
	struct xstate_header header = { 0 };
	uint8_t *out = to;

	header.xstate_bv = fpstate_xstate_bv(fpstate) & fpstate->user_xfeatures & mask & xstate_user_mask();
	if (size < xstate_standard_size(header.xstate_bv))
		return false;
	memset(out, 0, size);
	legacy_to_uabi(fpstate, out, header.xstate_bv);
	memcpy(out + XSTATE_HEADER_OFFSET, &header, sizeof(header));
	for (unsigned i = XSTATE_AVX; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = xstate_component(i);

		if (!(header.xstate_bv >> i & 1))
			continue;
		if (i == XSTATE_PKRU)
			put32(out + c->offset, pkru);
		else
			memcpy(out + c->offset, fpstate_component((struct fpstate *)fpstate, i), c->size);
	}
	return true;
}

static bool acceptable(const struct fpstate *fpstate, const uint8_t *from, size_t size, uint64_t supported)
{
	struct xstate_header header;
	uint64_t allowed = fpstate->user_xfeatures & supported;
	uint32_t mxcsr;

	if (size < XSTATE_EXTENDED_OFFSET)
		return false;
	memcpy(&header, from + XSTATE_HEADER_OFFSET, sizeof(header));
	memcpy(&mxcsr, from + MXCSR_AT, sizeof(mxcsr));
	if ((header.xstate_bv & ~allowed) || header.xcomp_bv)
		return false;
	for (unsigned i = 0; i < sizeof(header.reserved); i++)
		if (header.reserved[i])
			return false;
	if (size < xstate_standard_size(header.xstate_bv))
		return false;
	return (fpstate->xsave && !(header.xstate_bv & WITH_MXCSR)) || !(mxcsr & ~MXCSR_VALID);
}

// x87 and MXCSR lie beside each other; SSE and AVX need MXCSR even where x87 is not there.
static void legacy_from_uabi(struct fpstate *fpstate, const uint8_t *from, uint64_t present)
{
	uint8_t *to = fpstate->image;

	if (present & XSTATE_MASK(XSTATE_X87)) {
		memcpy(to, from, MXCSR_AT);
		memcpy(to + 32, from + 32, 128);
	}
	if (present & WITH_MXCSR)
		memcpy(to + MXCSR_AT, from + MXCSR_AT, MXCSR_SIZE);
	if (present & XSTATE_MASK(XSTATE_SSE))
		memcpy(to + XMM_AT, from + XMM_AT, 256);
}

int fpstate_copy_from_uabi(struct fpstate *fpstate, const void *from, size_t size, uint64_t supported,
			   uint32_t *pkru)
{
	const uint8_t *in = from;
	uint64_t present, kept;

	if (!acceptable(fpstate, in, size, supported))
		return -EINVAL;
	memcpy(&present, in + XSTATE_HEADER_OFFSET, sizeof(present));
	if (present & XSTATE_MASK(XSTATE_PKRU))
		memcpy(pkru, in + xstate_component(XSTATE_PKRU)->offset, sizeof(*pkru));
	// What the owner's IA32_XFD disables cannot be loaded.
	present &= ~fpstate->xfd;
	legacy_from_uabi(fpstate, in, present);
	for (unsigned i = XSTATE_AVX; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = xstate_component(i);
		uint8_t *to = present >> i & 1 ? fpstate_component(fpstate, i) : NULL;

		if (to)
			memcpy(to, in + c->offset, c->size);
	}
	kept = fpstate_xstate_bv(fpstate) & xstate_supervisor_mask();
	fpstate_set_xstate_bv(fpstate, kept | present);
	return 0;
}
