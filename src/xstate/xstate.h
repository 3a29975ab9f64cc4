// SPDX-License-Identifier: MIT
// Extended state: the table of state components and the layout of their images.
// SDM: "Managing State Using the XSAVE Feature Set".
//
// Offsets of the standard format are those of the guest's processor (CPUID leaf 0xD as this
// product shows it), which are Intel's; the host's may differ. Nothing here knows a vCPU.
#ifndef CETKVM_XSTATE_XSTATE_H
#define CETKVM_XSTATE_XSTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum xstate_bit {
	XSTATE_X87 = 0,
	XSTATE_SSE = 1,
	XSTATE_AVX = 2,
	XSTATE_BNDREGS = 3,
	XSTATE_BNDCSR = 4,
	XSTATE_OPMASK = 5,
	XSTATE_ZMM_HI256 = 6,
	XSTATE_HI16_ZMM = 7,
	XSTATE_PT = 8,
	XSTATE_PKRU = 9,
	XSTATE_PASID = 10,
	XSTATE_CET_U = 11,
	XSTATE_CET_S = 12,
	XSTATE_HDC = 13,
	XSTATE_UINTR = 14,
	XSTATE_LBR = 15,
	XSTATE_HWP = 16,
	XSTATE_TILECFG = 17,
	XSTATE_TILEDATA = 18,
	XSTATE_APX = 19,
	XSTATE_BITS = 20,
};

#define XSTATE_MASK(bit) (1ull << (bit))
#define XSTATE_MASK_FPSSE (XSTATE_MASK(XSTATE_X87) | XSTATE_MASK(XSTATE_SSE))
#define XSTATE_MASK_AVX512 \
	(XSTATE_MASK(XSTATE_OPMASK) | XSTATE_MASK(XSTATE_ZMM_HI256) | XSTATE_MASK(XSTATE_HI16_ZMM))
#define XSTATE_MASK_MPX (XSTATE_MASK(XSTATE_BNDREGS) | XSTATE_MASK(XSTATE_BNDCSR))
#define XSTATE_MASK_AMX (XSTATE_MASK(XSTATE_TILECFG) | XSTATE_MASK(XSTATE_TILEDATA))
#define XSTATE_COMPACTED (1ull << 63) // in XCOMP_BV

#define XSTATE_LEGACY_SIZE 512
#define XSTATE_HEADER_OFFSET 512
#define XSTATE_HEADER_SIZE 64
#define XSTATE_EXTENDED_OFFSET 576

#define FCW_INIT 0x37f   // after FNINIT and in the x87 component's initial configuration
#define FCW_RESET 0x40   // after RESET
#define MXCSR_INIT 0x1f80

// A CPUID bit: the register is 0 EAX .. 3 EDX.
struct xstate_cpuid_bit {
	uint32_t leaf, subleaf;
	uint8_t reg, bit;
};

struct xstate_component {
	const char *name;
	uint16_t size;	    // bytes
	uint16_t offset;    // in the standard format; 0 for supervisor components
	bool supervisor;    // managed by IA32_XSS, else by XCR0
	bool align64;	    // 64-byte aligned in the compacted format
	bool xfd;	    // may be disabled by IA32_XFD
	// What has to be enumerated beside leaf 0xD for the component to be managed: the first bit (all
	// zero: nothing). The second is an alternative to it that one rule allows: see config.h.
	struct xstate_cpuid_bit cpuid[2];
};

// NULL: there is no such component (or this product does not know it).
const struct xstate_component *xstate_component(unsigned bit);

// All known components managed by XCR0 / by IA32_XSS.
uint64_t xstate_user_mask(void);
uint64_t xstate_supervisor_mask(void);

// Size of a standard-format image that has room for `mask` (user components): at least 576.
uint32_t xstate_standard_size(uint64_t mask);
// Size of a compacted image with XCOMP_BV[62:0] = mask: at least 576.
uint32_t xstate_compacted_size(uint64_t mask);
// Offset of component `bit` (any >= 2 in mask) in that image.
uint32_t xstate_compacted_offset(uint64_t mask, unsigned bit);
// Offset in an image of either format; legacy components answer 0 and 160 in both.
uint32_t xstate_offset(uint64_t xcomp_bv, unsigned bit);

// The rules of XSETBV for XCR0: combinations that depend on each other, and `supported`.
bool xstate_xcr0_valid(uint64_t value, uint64_t supported);

struct xstate_header {
	uint64_t xstate_bv;
	uint64_t xcomp_bv;
	uint8_t reserved[48];
};
_Static_assert(sizeof(struct xstate_header) == XSTATE_HEADER_SIZE, "XSAVE header");

// May XRSTOR (user components `xcr0`) or XRSTORS (`xcr0` | `xss`, `supervisor` set) load an image
// with this header? `compaction`: the processor has XSAVEC. False where the processor raises #GP.
bool xstate_header_valid(const struct xstate_header *header, uint64_t allowed, bool supervisor,
			 bool compaction);

// Writes the initial configuration of component `bit` (its `size` bytes; for x87 and SSE the
// legacy region's parts of the 512-byte area at `data`) to `data`.
void xstate_init_component(unsigned bit, void *data);

#endif
