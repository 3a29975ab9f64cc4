// SPDX-License-Identifier: MIT
// The x87 state in memory: FXSAVE, FXRSTOR, FNSAVE, FRSTOR, FNSTENV, FLDENV in all their formats.
// SDM: "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE", "x87 FPU Tag Word",
// "FXSAVE and FXRSTOR Instructions". Selectors of FIP and FDP are always saved as zero, as
// processors with "FPU CS and FPU DS deprecated" do.
#include "cpu/fpu.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/operand.h"
#include "xstate/xstate.h"

#include <string.h>

#define FCW_MASKS 0x3fu
#define FCW_WRITABLE 0x1f3fu
#define FCW_FIXED 0x40u
#define FSW_B (1u << 15)
#define FSW_TOP_SHIFT 11
#define FOP_MASK 0x7ffu

static u64 *pointer(struct cpu *cpu, unsigned offset)
{
	return (u64 *)&cpu->fpstate[offset];
}

static void check_available(struct cpu *cpu)
{
	if (cpu->cr0 & (CR0_EM | CR0_TS))
		cpu_raise(cpu, VECTOR_NM);
}

// The waiting forms: an unmasked exception that is pending comes first.
static void check_pending(struct cpu *cpu)
{
	check_available(cpu);
	if ((fpu_get16(cpu, FX_FSW) & FSW_ES) && (cpu->cr0 & CR0_NE))
		cpu_raise(cpu, VECTOR_MF);
}

// ES and B summarize what is pending and not masked.
static void set_control_status(struct cpu *cpu, u16 fcw, u16 fsw)
{
	fcw = (fcw & FCW_WRITABLE) | FCW_FIXED;
	fsw &= ~(FSW_ES | FSW_B);
	if (fsw & ~fcw & FCW_MASKS)
		fsw |= FSW_ES | FSW_B;
	fpu_set16(cpu, FX_FCW, fcw);
	fpu_set16(cpu, FX_FSW, fsw);
	fpu_dirty(cpu, XSTATE_MASK(XSTATE_X87));
}

// ---- FXSAVE format ----

void x87_fx_header(struct cpu *cpu, void *head, bool wide)
{
	u8 *p = head;

	memcpy(p, cpu->fpstate, 24);
	p[5] = 0;
	if (!wide) {
		memset(p + 12, 0, 4);
		memset(p + 20, 0, 4);
	}
}

void x87_fx_load(struct cpu *cpu, const void *image, bool wide)
{
	const u8 *from = image;
	u16 fcw, fsw;

	memcpy(&fcw, from + FX_FCW, 2);
	memcpy(&fsw, from + FX_FSW, 2);
	memcpy(cpu->fpstate, from, 24);
	set_control_status(cpu, fcw, fsw);
	fpu_set16(cpu, FX_FTW, from[FX_FTW]);
	fpu_set16(cpu, FX_FOP, fpu_get16(cpu, FX_FOP) & FOP_MASK);
	if (!wide) {
		*pointer(cpu, FX_FIP) = (u32)*pointer(cpu, FX_FIP);
		*pointer(cpu, FX_FDP) = (u32)*pointer(cpu, FX_FDP);
	}
	for (unsigned i = 0; i < 8; i++) {
		memcpy(&cpu->fpstate[FX_ST + i * 16], from + FX_ST + i * 16, 10);
		memset(&cpu->fpstate[FX_ST + i * 16 + 10], 0, 6);
	}
}

static void probe(struct cpu *cpu, u64 linear, unsigned size, bool write)
{
	u32 unused;

	if (write)
		mem_probe_write(cpu, linear, size, ACCESS_WRITE | cpu_access_of_cpl(cpu));
	else
		mem_read(cpu, linear, &unused, size, ACCESS_READ | cpu_access_of_cpl(cpu));
}

// The segment's limit comes first, then alignment; then the last byte is checked for everything before
// the rest: not defined by the SDM, but what AMD's processors do.
static u64 fx_area(struct cpu *cpu, const struct insn *insn, bool write)
{
	u64 end = address_truncate(insn_offset(cpu, insn) + XSTATE_LEGACY_SIZE - 1, insn->address_size), linear;

	check_available(cpu);
	if (cpu_64bit(cpu))
		insn_check_aligned(cpu, insn, 16);
	linear = segment_linear(cpu, insn->mem_seg, end, 1, write);
	insn_check_aligned(cpu, insn, 16);
	probe(cpu, linear, 1, write);
	return insn_linear(cpu, insn, XSTATE_LEGACY_SIZE, write);
}

static bool wide_pointers(const struct cpu *cpu, const struct insn *insn)
{
	return cpu_64bit(cpu) && insn->operand_size == 8;
}

// Bytes of the image: MXCSR and XMM belong to it only with CR4.OSFXSR.
static unsigned fx_size(const struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_OSFXSR))
		return FX_XMM;
	return FX_XMM + (cpu_64bit(cpu) ? 256 : 128);
}

void fxsave_handler(struct cpu *cpu, const struct insn *insn)
{
	u64 linear = fx_area(cpu, insn, true);
	u8 image[FX_XMM + 256];
	u32 mxcsr[2] = { fpu_get32(cpu, FX_MXCSR), GUEST_MXCSR_MASK };

	memcpy(image, cpu->fpstate, sizeof(image));
	x87_fx_header(cpu, image, wide_pointers(cpu, insn));
	memcpy(image + FX_MXCSR, mxcsr, sizeof(mxcsr));
	mem_write(cpu, linear, image, fx_size(cpu), ACCESS_WRITE | cpu_access_of_cpl(cpu));
}

void fxrstor_handler(struct cpu *cpu, const struct insn *insn)
{
	u64 linear = fx_area(cpu, insn, false);
	unsigned size = fx_size(cpu);
	u8 image[FX_XMM + 256];
	u32 mxcsr;

	mem_read(cpu, linear, image, size, ACCESS_READ | cpu_access_of_cpl(cpu));
	memcpy(&mxcsr, image + FX_MXCSR, 4);
	if (size > FX_XMM && (mxcsr & ~GUEST_MXCSR_MASK))
		cpu_gp0(cpu);
	x87_fx_load(cpu, image, wide_pointers(cpu, insn));
	if (size > FX_XMM) {
		fpu_set32(cpu, FX_MXCSR, mxcsr);
		memcpy(&cpu->fpstate[FX_XMM], image + FX_XMM, size - FX_XMM);
		fpu_dirty(cpu, XSTATE_MASK(XSTATE_SSE));
	}
}

// ---- FNSAVE and FNSTENV formats ----

enum { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

static unsigned tag_of(const u8 *st)
{
	u64 mantissa;
	u16 exponent;

	memcpy(&mantissa, st, 8);
	memcpy(&exponent, st + 8, 2);
	exponent &= 0x7fff;
	if (!exponent && !mantissa)
		return TAG_ZERO;
	if (!exponent || exponent == 0x7fff || !(mantissa >> 63))
		return TAG_SPECIAL;
	return TAG_VALID;
}

static u16 full_tag_word(struct cpu *cpu)
{
	unsigned top = fpu_get16(cpu, FX_FSW) >> FSW_TOP_SHIFT & 7, tags = 0;

	for (unsigned i = 0; i < 8; i++) {
		unsigned tag = TAG_EMPTY;

		if (cpu->fpstate[FX_FTW] >> i & 1)
			tag = tag_of(&cpu->fpstate[FX_ST + ((i - top) & 7) * 16]);
		tags |= tag << 2 * i;
	}
	return tags;
}

static u8 abridged_tag_word(u16 tags)
{
	u8 ftw = 0;

	for (unsigned i = 0; i < 8; i++)
		if ((tags >> 2 * i & 3) != TAG_EMPTY)
			ftw |= 1u << i;
	return ftw;
}

static bool real_format(const struct cpu *cpu)
{
	return !cpu_protected(cpu) || cpu_v86(cpu);
}

// The seven fields of the environment; 16-bit formats keep the lower half of each.
static unsigned env_build(struct cpu *cpu, const struct insn *insn, u8 *to)
{
	const u32 reserved = 0xffff0000;
	u32 fip = *pointer(cpu, FX_FIP), fdp = *pointer(cpu, FX_FDP);
	u16 fop = fpu_get16(cpu, FX_FOP) & FOP_MASK;
	bool wide = insn->operand_size != 2;
	u32 field[7] = {
		fpu_get16(cpu, FX_FCW) | reserved,
		fpu_get16(cpu, FX_FSW) | reserved,
		full_tag_word(cpu) | reserved,
		fip, (u32)fop << 16, fdp, reserved,
	};

	if (real_format(cpu)) {
		field[3] = (u16)fip | reserved;
		field[4] = wide ? (fip >> 16) << 12 | fop : (fip >> 16 & 15) << 12 | fop;
		field[5] = (u16)fdp | reserved;
		field[6] = wide ? (fdp >> 16) << 12 : (fdp >> 16 & 15) << 12;
	}
	for (unsigned i = 0; i < 7; i++)
		memcpy(to + i * (wide ? 4 : 2), &field[i], wide ? 4 : 2);
	return wide ? 28 : 14;
}

// Loads what env_build() writes. The registers themselves do not move when TOP changes.
static void env_load(struct cpu *cpu, const struct insn *insn, const u8 *from)
{
	bool wide = insn->operand_size != 2;
	u32 field[7] = { 0 };
	unsigned top = fpu_get16(cpu, FX_FSW) >> FSW_TOP_SHIFT & 7, new_top;
	u8 physical[8][16];
	u32 fip, fdp;

	for (unsigned i = 0; i < 7; i++)
		memcpy(&field[i], from + i * (wide ? 4 : 2), wide ? 4 : 2);
	fip = field[3];
	fdp = field[5];
	if (real_format(cpu)) {
		fip = (u16)fip | (field[4] >> 12 & (wide ? 0xffff : 15)) << 16;
		fdp = (u16)fdp | (field[6] >> 12 & (wide ? 0xffff : 15)) << 16;
		fpu_set16(cpu, FX_FOP, field[4] & FOP_MASK);
	} else {
		fpu_set16(cpu, FX_FOP, wide ? field[4] >> 16 & FOP_MASK : 0);
	}
	*pointer(cpu, FX_FIP) = fip;
	*pointer(cpu, FX_FDP) = fdp;
	for (unsigned i = 0; i < 8; i++)
		memcpy(physical[(top + i) & 7], &cpu->fpstate[FX_ST + i * 16], 16);
	new_top = field[1] >> FSW_TOP_SHIFT & 7;
	for (unsigned i = 0; i < 8; i++)
		memcpy(&cpu->fpstate[FX_ST + i * 16], physical[(new_top + i) & 7], 16);
	set_control_status(cpu, field[0], field[1]);
	fpu_set16(cpu, FX_FTW, abridged_tag_word(field[2]));
}

static unsigned env_size(const struct insn *insn)
{
	return insn->operand_size == 2 ? 14 : 28;
}

// Address of a whole image. Its first field is checked for everything, then its last byte.
static u64 env_area(struct cpu *cpu, const struct insn *insn, unsigned size, bool write)
{
	unsigned field = insn->operand_size == 2 ? 2 : 4;

	probe(cpu, insn_linear(cpu, insn, field, write), field, write);
	probe(cpu, insn_linear(cpu, insn, size, write) + size - 1, 1, write);
	return insn_linear(cpu, insn, size, write);
}

void fnstenv_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 image[28];
	u64 linear;

	check_available(cpu);
	linear = env_area(cpu, insn, env_size(insn), true);
	mem_write(cpu, linear, image, env_build(cpu, insn, image),
		  ACCESS_WRITE | cpu_access_of_cpl(cpu));
	set_control_status(cpu, fpu_get16(cpu, FX_FCW) | FCW_MASKS, fpu_get16(cpu, FX_FSW));
}

void fldenv_handler(struct cpu *cpu, const struct insn *insn)
{
	u8 image[28];

	check_pending(cpu);
	mem_read(cpu, env_area(cpu, insn, env_size(insn), false), image, env_size(insn),
		 ACCESS_READ | cpu_access_of_cpl(cpu));
	env_load(cpu, insn, image);
}

void fnsave_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned head = env_size(insn);
	u8 image[28 + 80];
	u64 linear;

	check_available(cpu);
	linear = env_area(cpu, insn, head + 80, true);
	env_build(cpu, insn, image);
	for (unsigned i = 0; i < 8; i++)
		memcpy(image + head + i * 10, &cpu->fpstate[FX_ST + i * 16], 10);
	mem_write(cpu, linear, image, head + 80, ACCESS_WRITE | cpu_access_of_cpl(cpu));

	// As FNINIT: tags empty, the registers keep their bits (by physical number).
	memset(image, 0xff, 28);
	memset(image + (head == 28 ? 4 : 2), 0, 2);
	memset(image + (head == 28 ? 12 : 6), 0, head == 28 ? 16 : 8);
	env_load(cpu, insn, image);
	fpu_set16(cpu, FX_FCW, FCW_INIT);
}

void frstor_handler(struct cpu *cpu, const struct insn *insn)
{
	unsigned head = env_size(insn);
	u8 image[28 + 80];

	check_pending(cpu);
	mem_read(cpu, env_area(cpu, insn, head + 80, false), image, head + 80,
		 ACCESS_READ | cpu_access_of_cpl(cpu));
	env_load(cpu, insn, image);
	for (unsigned i = 0; i < 8; i++) {
		memcpy(&cpu->fpstate[FX_ST + i * 16], image + head + i * 10, 10);
		memset(&cpu->fpstate[FX_ST + i * 16 + 10], 0, 6);
	}
}
