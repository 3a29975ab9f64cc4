// SPDX-License-Identifier: MIT
// A small x86-64 emitter for the translator's own code. Copied guest instructions are re-encoded in
// jit_copy.c; everything here has fixed operands. Host register numbers are those of the encoding.
#ifndef CETKVM_CPU_JIT_EMIT_H
#define CETKVM_CPU_JIT_EMIT_H

#include "cpu/cpu.h"


// Host registers. HOST_T0 (address) and HOST_T1 are scratch; RSP points at struct cpu.
enum host { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11,
	    H_R12, H_R13, H_R14, H_R15, H_NONE = 0xff };
#define H_T0 H_RDI
#define H_T1 H_RAX

struct emit {
	u8 *p;	   // next byte, in the writable mapping
	u8 *end;   // no room behind this
	s64 to_rx; // executable address = p + to_rx
};

static inline void e1(struct emit *e, u8 a) { *e->p++ = a; }
static inline void e2(struct emit *e, u8 a, u8 b) { e1(e, a); e1(e, b); }
static inline void e3(struct emit *e, u8 a, u8 b, u8 c) { e2(e, a, b); e1(e, c); }
static inline void e4(struct emit *e, u32 v) { __builtin_memcpy(e->p, &v, 4); e->p += 4; }
static inline void e8(struct emit *e, u64 v) { __builtin_memcpy(e->p, &v, 8); e->p += 8; }
static inline u8 *e_rx(struct emit *e) { return e->p + e->to_rx; }

// ModRM, SIB and displacement for [base + disp]; only the low three bits of reg and base are used.
static inline void e_modrm_mem(struct emit *e, unsigned reg, unsigned base, int disp)
{
	bool sib = (base & 7) == 4;
	unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;

	e1(e, mod << 6 | (reg & 7) << 3 | (sib ? 4 : (base & 7)));
	if (sib)
		e1(e, 0x24);
	if (mod == 1)
		e1(e, disp);
	else if (mod == 2)
		e4(e, disp);
}

// The same for [base + index * (1 << scale) + disp]. base may be H_NONE.
static inline void e_modrm_sib(struct emit *e, unsigned reg, unsigned base, unsigned index,
			       unsigned scale, int disp)
{
	if (base == H_NONE) {
		e2(e, (reg & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | 5);
		e4(e, disp);
		return;
	}
	unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;

	e2(e, mod << 6 | (reg & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | (base & 7));
	if (mod == 1)
		e1(e, disp);
	else if (mod == 2)
		e4(e, disp);
}

static inline void e_rex(struct emit *e, bool w, unsigned reg, unsigned index, unsigned rm, bool force)
{
	u8 rex = 0x40 | w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (rm >> 3 & 1);

	if (rex != 0x40 || force)
		e1(e, rex);
}

// op reg, rm (registers): `opcode` one byte. w: 64-bit.
static inline void e_op_rr(struct emit *e, bool w, u8 opcode, unsigned reg, unsigned rm)
{
	e_rex(e, w, reg, 0, rm, false);
	e2(e, opcode, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

static inline void e_op_rm(struct emit *e, bool w, u8 opcode, unsigned reg, unsigned base, int disp)
{
	e_rex(e, w, reg, 0, base, false);
	e1(e, opcode);
	e_modrm_mem(e, reg, base, disp);
}

static inline void e_mov_rr(struct emit *e, unsigned to, unsigned from) { e_op_rr(e, true, 0x8b, to, from); }
static inline void e_mov32_rr(struct emit *e, unsigned to, unsigned from) { e_op_rr(e, false, 0x8b, to, from); }
// Fields of struct cpu, by offset.
static inline void e_load(struct emit *e, unsigned reg, int off) { e_op_rm(e, true, 0x8b, reg, H_RSP, off); }
static inline void e_load32(struct emit *e, unsigned reg, int off) { e_op_rm(e, false, 0x8b, reg, H_RSP, off); }
static inline void e_store(struct emit *e, unsigned reg, int off) { e_op_rm(e, true, 0x89, reg, H_RSP, off); }
static inline void e_store32(struct emit *e, unsigned reg, int off) { e_op_rm(e, false, 0x89, reg, H_RSP, off); }

static inline void e_lea(struct emit *e, bool w, unsigned reg, unsigned base, int disp)
{
	e_op_rm(e, w, 0x8d, reg, base, disp);
}

static inline void e_mov_imm32(struct emit *e, unsigned reg, u32 imm)
{
	e_rex(e, false, 0, 0, reg, false);
	e1(e, 0xb8 | (reg & 7));
	e4(e, imm);
}

static inline void e_mov_imm(struct emit *e, unsigned reg, u64 imm)
{
	if (imm == (u32)imm) {
		e_mov_imm32(e, reg, imm);
	} else if ((s64)imm == (int)imm) {
		e_rex(e, true, 0, 0, reg, false);
		e2(e, 0xc7, 0xc0 | (reg & 7));
		e4(e, imm);
	} else {
		e_rex(e, true, 0, 0, reg, false);
		e1(e, 0xb8 | (reg & 7));
		e8(e, imm);
	}
}

// Group 1 with a 32-bit immediate: /0 add /1 or /4 and /5 sub /6 xor /7 cmp.
static inline void e_alu_imm(struct emit *e, bool w, unsigned op, unsigned reg, int imm)
{
	e_rex(e, w, 0, 0, reg, false);
	if (imm >= -128 && imm <= 127) {
		e3(e, 0x83, 0xc0 | op << 3 | (reg & 7), imm);
	} else {
		e2(e, 0x81, 0xc0 | op << 3 | (reg & 7));
		e4(e, imm);
	}
}

static inline void e_alu_field_imm(struct emit *e, unsigned op, int off, int imm) // dword [cpu+off]
{
	e1(e, imm >= -128 && imm <= 127 ? 0x83 : 0x81);
	e_modrm_mem(e, op, H_RSP, off);
	if (imm >= -128 && imm <= 127)
		e1(e, imm);
	else
		e4(e, imm);
}

static inline void e_jmp(struct emit *e, const u8 *rx_target)
{
	u8 *from = e_rx(e) + 5;

	e1(e, 0xe9);
	e4(e, (u32)(rx_target - from));
}

static inline void e_call(struct emit *e, const u8 *rx_target)
{
	u8 *from = e_rx(e) + 5;

	e1(e, 0xe8);
	e4(e, (u32)(rx_target - from));
}

// jcc rel32 with a hole; returns the hole's place in the writable mapping.
static inline u8 *e_jcc_hole(struct emit *e, unsigned cc)
{
	e2(e, 0x0f, 0x80 | cc);
	e4(e, 0);
	return e->p - 4;
}

static inline u8 *e_jmp_hole(struct emit *e)
{
	e1(e, 0xe9);
	e4(e, 0);
	return e->p - 4;
}

static inline void e_fill_hole(u8 *hole, const u8 *rw_target)
{
	u32 rel = rw_target - (hole + 4);

	__builtin_memcpy(hole, &rel, 4);
}

#define CC_E 4
#define CC_NE 5
#define CC_BE 6
#define CC_A 7

#endif
