// SPDX-License-Identifier: MIT
// The table of state components, and layout computed from it.
// SDM: "Managing State Using the XSAVE Feature Set": "XSAVE Area", "XSAVE-Supported Features".
#include "xstate/xstate.h"

#include <string.h>

enum { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

#define USER false
#define SUPERVISOR true
#define ALIGN64 true

static const struct xstate_component components[XSTATE_BITS] = {
	[XSTATE_X87] = { "x87", 160, 0, USER, false, false, { { 0 } } },
	[XSTATE_SSE] = { "SSE", 256, 160, USER, false, false, { { 0 } } },
	[XSTATE_AVX] = { "AVX", 256, 576, USER, false, false, { { 1, 0, REG_ECX, 28 } } },
	[XSTATE_BNDREGS] = { "BNDREGS", 64, 960, USER, false, false, { { 7, 0, REG_EBX, 14 } } },
	[XSTATE_BNDCSR] = { "BNDCSR", 64, 1024, USER, false, false, { { 7, 0, REG_EBX, 14 } } },
	[XSTATE_OPMASK] = { "opmask", 64, 1088, USER, false, false, { { 7, 0, REG_EBX, 16 } } },
	[XSTATE_ZMM_HI256] = { "ZMM_Hi256", 512, 1152, USER, false, false,
			       { { 7, 0, REG_EBX, 16 } } },
	[XSTATE_HI16_ZMM] = { "Hi16_ZMM", 1024, 1664, USER, false, false,
			      { { 7, 0, REG_EBX, 16 } } },
	[XSTATE_PT] = { "PT", 128, 0, SUPERVISOR, false, false, { { 7, 0, REG_EBX, 25 } } },
	[XSTATE_PKRU] = { "PKRU", 8, 2688, USER, false, false, { { 7, 0, REG_ECX, 3 } } },
	[XSTATE_PASID] = { "PASID", 8, 0, SUPERVISOR, false, false, { { 7, 0, REG_ECX, 29 } } },
	// The second bit counts under one of the two rules for CET_U only: see config.h.
	[XSTATE_CET_U] = { "CET_U", 16, 0, SUPERVISOR, false, false,
			   { { 7, 0, REG_ECX, 7 }, { 7, 0, REG_EDX, 20 } } },
	[XSTATE_CET_S] = { "CET_S", 24, 0, SUPERVISOR, false, false, { { 7, 0, REG_ECX, 7 } } },
	[XSTATE_HDC] = { "HDC", 8, 0, SUPERVISOR, false, false, { { 6, 0, REG_EAX, 13 } } },
	[XSTATE_UINTR] = { "UINTR", 48, 0, SUPERVISOR, false, false, { { 7, 0, REG_EDX, 5 } } },
	[XSTATE_LBR] = { "LBR", 808, 0, SUPERVISOR, false, false, { { 7, 0, REG_EDX, 19 } } },
	[XSTATE_HWP] = { "HWP", 8, 0, SUPERVISOR, false, false, { { 6, 0, REG_EAX, 7 } } },
	[XSTATE_TILECFG] = { "XTILECFG", 64, 2752, USER, ALIGN64, false,
			     { { 7, 0, REG_EDX, 24 } } },
	[XSTATE_TILEDATA] = { "XTILEDATA", 8192, 2816, USER, ALIGN64, true,
			      { { 7, 0, REG_EDX, 24 } } },
	// Takes the room of MPX, which no processor has together with it.
	[XSTATE_APX] = { "APX", 128, 960, USER, false, false, { { 7, 1, REG_EDX, 21 } } },
};

const struct xstate_component *xstate_component(unsigned bit)
{
	return bit < XSTATE_BITS && components[bit].size ? &components[bit] : NULL;
}

static uint64_t mask_of_kind(bool supervisor)
{
	uint64_t mask = 0;

	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (components[i].size && components[i].supervisor == supervisor)
			mask |= XSTATE_MASK(i);
	return mask;
}

uint64_t xstate_user_mask(void)
{
	return mask_of_kind(false);
}

uint64_t xstate_supervisor_mask(void)
{
	return mask_of_kind(true);
}

uint32_t xstate_standard_size(uint64_t mask)
{
	uint32_t size = XSTATE_EXTENDED_OFFSET;

	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = &components[i];

		if ((mask >> i & 1) && !c->supervisor && c->offset + c->size > size)
			size = c->offset + c->size;
	}
	return size;
}

// Offset right behind the components of `mask` below `bit`, aligned for `bit`.
uint32_t xstate_compacted_offset(uint64_t mask, unsigned bit)
{
	uint32_t offset = XSTATE_EXTENDED_OFFSET;

	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		if (!(mask >> i & 1) && i != bit)
			continue;
		if (components[i].align64)
			offset = (offset + 63) & ~63u;
		if (i == bit)
			break;
		offset += components[i].size;
	}
	return offset;
}

uint32_t xstate_compacted_size(uint64_t mask)
{
	mask &= XSTATE_MASK(XSTATE_BITS) - 1;
	for (unsigned i = XSTATE_BITS; i-- > 2;)
		if (mask >> i & 1)
			return xstate_compacted_offset(mask, i) + components[i].size;
	return XSTATE_EXTENDED_OFFSET;
}

uint32_t xstate_offset(uint64_t xcomp_bv, unsigned bit)
{
	if (bit < 2 || !(xcomp_bv & XSTATE_COMPACTED))
		return components[bit].offset;
	return xstate_compacted_offset(xcomp_bv & ~XSTATE_COMPACTED, bit);
}

bool xstate_xcr0_valid(uint64_t value, uint64_t supported)
{
	uint64_t avx512 = value & XSTATE_MASK_AVX512, mpx = value & XSTATE_MASK_MPX;
	uint64_t amx = value & XSTATE_MASK_AMX;

	if (value & ~supported || !(value & XSTATE_MASK(XSTATE_X87)))
		return false;
	if ((value & XSTATE_MASK(XSTATE_AVX)) && !(value & XSTATE_MASK(XSTATE_SSE)))
		return false;
	if (mpx && (mpx != XSTATE_MASK_MPX || (value & XSTATE_MASK(XSTATE_APX))))
		return false;
	if (avx512 && (avx512 != XSTATE_MASK_AVX512 || !(value & XSTATE_MASK(XSTATE_AVX))))
		return false;
	return !amx || amx == XSTATE_MASK_AMX;
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n--)
		if (*p++)
			return false;
	return true;
}

bool xstate_header_valid(const struct xstate_header *header, uint64_t allowed, bool supervisor,
			 bool compaction)
{
	uint64_t xcomp = header->xcomp_bv & ~XSTATE_COMPACTED;

	if (!(header->xcomp_bv & XSTATE_COMPACTED))
		// Standard: header bytes 23:8 must be zero. Bytes 63:24 are not looked at.
		return !supervisor && !(header->xstate_bv & ~allowed) && !header->xcomp_bv &&
		       all_zero(header->reserved, 8);
	return compaction && !(xcomp & ~allowed) && !(header->xstate_bv & ~xcomp) &&
	       all_zero(header->reserved, sizeof(header->reserved));
}

static void put16(uint8_t *p, uint16_t value)
{
	p[0] = value;
	p[1] = value >> 8;
}

void xstate_init_component(unsigned bit, void *data)
{
	uint8_t *p = data;

	switch (bit) {
	case XSTATE_X87:
		memset(p, 0, 24);
		memset(p + 32, 0, 128);
		put16(p, FCW_INIT);
		break;
	case XSTATE_SSE:
		memset(p + 160, 0, 256);
		break;
	default:
		memset(p, 0, components[bit].size);
	}
}
