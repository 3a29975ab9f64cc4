// SPDX-License-Identifier: MIT
// Random operand values: corner cases of each format far more often than chance would have them.
#include "values.h"

#include <string.h>

u64 random_int(struct rng *rng)
{
	u64 r = rnd(rng);

	switch (below(rng, 10)) {
	case 0: return r & 3;
	case 1: return -(u64)(r & 3);
	case 2: return 1ull << (r & 63);
	case 3: return (1ull << (r & 63)) - 1;
	case 4: return ~0ull << (r & 63);
	case 5: return (s64)(signed char)r;
	case 6: return (s64)(short)r;
	case 7: return r & 1 ? (s64)(int)(r >> 8) : (u32)(r >> 8);
	default: return r;
	}
}

u32 random_f32(struct rng *rng)
{
	u64 r = rnd(rng);
	u32 sign = r & 1 ? 0x80000000 : 0, fraction = r >> 8 & 0x7fffff;

	switch (below(rng, 12)) {
	case 0: return sign; // zero
	case 1: return sign | 0x7f800000; // infinity
	case 2: return sign | 0x7fc00000 | fraction; // QNaN
	case 3: return sign | 0x7f800000 | (fraction & 0x3fffff) | 1; // SNaN
	case 4: return sign | fraction; // denormal
	case 5: return sign | (1 + below(rng, 3)) << 23 | fraction; // about to underflow
	case 6: return sign | (252 + below(rng, 3)) << 23 | fraction; // about to overflow
	case 7: return sign | (127 + below(rng, 32)) << 23 | (fraction & ~0u << below(rng, 23)); // near an integer
	case 8: return sign | 0x3f800000; // one
	case 9: return r >> 16;
	default: return sign | (107 + below(rng, 40)) << 23 | fraction;
	}
}

u64 random_f64(struct rng *rng)
{
	u64 r = rnd(rng);
	u64 sign = r & 1 ? 1ull << 63 : 0, fraction = rnd(rng) & ((1ull << 52) - 1);

	switch (below(rng, 12)) {
	case 0: return sign;
	case 1: return sign | 0x7ffull << 52;
	case 2: return sign | 0xfffull << 51 | fraction;
	case 3: return sign | 0x7ffull << 52 | (fraction >> 1) | 1;
	case 4: return sign | fraction;
	case 5: return sign | (1 + below(rng, 3)) << 52 | fraction;
	case 6: return sign | (0x7fc + below(rng, 3)) << 52 | fraction;
	case 7: return sign | (1023 + below(rng, 64)) << 52 | (fraction & ~0ull << below(rng, 52));
	case 8: return sign | 1023ull << 52;
	case 9: return sign | (1023 - 150 + below(rng, 280)) << 52 | fraction; // about binary32's range
	default: return sign | (1003 + below(rng, 40)) << 52 | fraction;
	}
}

void random_f80(struct rng *rng, u8 bytes[10])
{
	u64 fraction = rnd(rng), integer = 1ull << 63;
	u16 exponent = 0x3fff - 20 + below(rng, 40);

	switch (below(rng, 16)) {
	case 0: exponent = 0, fraction = integer = 0; break; // zero
	case 1: exponent = 0x7fff, fraction = 0; break; // infinity
	case 2: exponent = 0x7fff, fraction |= 1ull << 62; break; // QNaN
	case 3: exponent = 0x7fff, fraction = (fraction & ~(3ull << 62)) | 1; break; // SNaN
	case 4: exponent = 0, integer = 0, fraction &= ~(1ull << 63); break; // denormal
	case 5: exponent = 0; break; // pseudo-denormal
	case 6: integer = 0, fraction &= ~(1ull << 63); break; // unnormal
	case 7: exponent = 0x7fff, integer = 0, fraction &= chance(rng, 30) ? 0 : ~(1ull << 63); break;
	case 8: exponent = 1 + below(rng, 3); break;
	case 9: exponent = 0x7ffe - below(rng, 3); break;
	case 10: exponent = 0x3fff + below(rng, 66), fraction &= ~0ull << below(rng, 64); break;
	case 11: exponent = 0x3fff, fraction = 0; break; // one
	case 12: exponent = 0x3fff + 62 + below(rng, 6); break; // about where FSIN and FISTP stop
	case 13: exponent = rnd(rng) & 0x7fff; break;
	case 14: exponent = 0x3fff - 1050 + below(rng, 2100); break; // about binary64's range
	default: break;
	}
	fraction |= integer;
	exponent |= rnd(rng) & 0x8000;
	memcpy(bytes, &fraction, 8);
	memcpy(bytes + 8, &exponent, 2);
}

u16 random_fcw(struct rng *rng, bool lively)
{
	if (chance(rng, 50))
		return 0x37f;
	if (!lively || chance(rng, 60))
		return 0x7f | (rnd(rng) & 0xf00);
	return 0x40 | (rnd(rng) & 0xf3f);
}

u32 random_mxcsr(struct rng *rng, bool lively)
{
	u32 sticky = chance(rng, 50) ? rnd(rng) & 0x3f : 0;

	if (chance(rng, 40))
		return 0x1f80 | sticky;
	if (!lively || chance(rng, 70))
		return 0x1f80 | (rnd(rng) & 0xe040) | sticky;
	return (rnd(rng) & 0xffc0) | sticky;
}

void random_line(struct rng *rng, u8 *bytes, unsigned size, unsigned flavour)
{
	unsigned kind = below(rng, 8);
	u64 *q = (u64 *)bytes;

	for (unsigned i = 0; i < size / 8; i++) {
		u64 v;

		if (flavour == FLAVOUR_INT || kind < 2)
			v = kind & 1 ? random_int(rng) : rnd(rng);
		else if (flavour == FLAVOUR_FLOAT)
			v = kind < 5 ? random_f32(rng) | (u64)random_f32(rng) << 32 : random_f64(rng);
		else
			v = kind == 2 ? random_f32(rng) | (u64)random_f32(rng) << 32 :
			    kind == 3 ? random_f64(rng) : kind == 4 ? random_int(rng) :
			    rnd(rng) & 0x9999999999999999; // packed BCD
		memcpy(&q[i], &v, 8);
	}
	if (flavour == FLAVOUR_X87 && kind >= 6)
		for (unsigned i = 0; i + 16 <= size; i += 16)
			random_f80(rng, bytes + i);
}

// The XSAVE image: x87 at 0, MXCSR at 24, ST at 32, XMM at 160, header at 512, upper halves from 576.
void random_xstate(struct rng *rng, u8 *xsave, unsigned flavour)
{
	bool x87 = flavour == FLAVOUR_X87;
	u16 fcw = random_fcw(rng, x87), fsw;
	u32 mxcsr = random_mxcsr(rng, flavour == FLAVOUR_FLOAT);
	u8 ftw = !x87 && chance(rng, 50) ? 0 : rnd(rng) & (chance(rng, 50) ? rnd(rng) : 0xff);
	u64 bv = 3 | (xsave_size > 576 ? 4 : 0) | (xsave_size > 2000 ? 0xe0 : 0);

	memset(xsave, 0, 576);
	fsw = rnd(rng) & 0x7f7f; // TOP, condition codes, sticky flags
	if (chance(rng, x87 ? 92 : 100))
		fsw &= ~(~fcw & 0x3f) & ~0x40; // nothing is pending
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	memcpy(xsave, &fcw, 2);
	memcpy(xsave + 2, &fsw, 2);
	xsave[4] = ftw;
	memcpy(xsave + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++) {
		if (x87 || chance(rng, 20))
			random_f80(rng, xsave + 32 + 16 * i);
		else {
			u64 v = random_int(rng);

			memcpy(xsave + 32 + 16 * i, &v, 8);
			memset(xsave + 40 + 16 * i, 0xff, 2);
		}
	}
	for (unsigned i = 0; i < 16; i++)
		random_line(rng, xsave + 160 + 16 * i, 16, flavour == FLAVOUR_X87 ? FLAVOUR_INT : flavour);
	for (unsigned i = 576; i + 64 <= xsave_size; i += 64)
		random_line(rng, xsave + i, 64, flavour == FLAVOUR_X87 ? FLAVOUR_INT : flavour);
	memcpy(xsave + 512, &bv, 8);
}
