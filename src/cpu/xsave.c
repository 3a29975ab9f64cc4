// SPDX-License-Identifier: MIT
// XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS, and the swap with an image in memory (struct fpstate).
//
// Components live in several places: x87, SSE, AVX and AVX-512 in cpu->fpstate, PKRU and the CET
// MSRs in struct cpu. component_read/write/in_use are the only code that knows. A restore reads
// and checks everything before it changes anything. The modified optimisation is not done (the
// SDM lets a processor always save).
//
// SDM: "Managing State Using the XSAVE Feature Set", and each instruction's page.
#include "cpu/amx.h"
#include "cpu/fpu.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/operand.h"
#include "xstate/xstate.h"

#include <string.h>

#define HEADER XSTATE_HEADER_OFFSET
#define IMAGE_MAX (576 + 11264)

static bool in_fpstate(unsigned bit)
{
	return fpu_host_mask() >> bit & 1;
}

// ---- components ----

static void component_read(struct cpu *cpu, unsigned bit, void *data)
{
	u64 *q = data;

	switch (bit) {
	case XSTATE_PKRU:
		q[0] = cpu->pkru;
		break;
	case XSTATE_CET_U:
		q[0] = cpu->u_cet;
		q[1] = cpu->pl_ssp[3];
		break;
	case XSTATE_CET_S:
		memcpy(q, cpu->pl_ssp, 24);
		break;
	case XSTATE_TILECFG:
		amx_config_read(cpu, data);
		break;
	case XSTATE_TILEDATA:
		// Disabled by IA32_XFD it counts as initial, whatever is there.
		if (cpu->xfd & XSTATE_MASK(XSTATE_TILEDATA))
			memset(data, 0, sizeof(cpu->tile));
		else
			memcpy(data, cpu->tile, sizeof(cpu->tile));
		break;
	default:
		if (in_fpstate(bit))
			memcpy(data, fpu_component(cpu, bit), xstate_component(bit)->size);
		else
			xstate_init_component(bit, data);
	}
}

static bool component_in_use(struct cpu *cpu, unsigned bit)
{
	switch (bit) {
	case XSTATE_PKRU:
		return cpu->pkru;
	case XSTATE_CET_U:
		return cpu->u_cet || cpu->pl_ssp[3];
	case XSTATE_CET_S:
		return cpu->pl_ssp[0] || cpu->pl_ssp[1] || cpu->pl_ssp[2];
	case XSTATE_TILECFG:
		return amx_configured(cpu);
	case XSTATE_TILEDATA:
		return cpu->tile_data_in_use;
	default:
		return in_fpstate(bit) && (fpu_xstate_bv(cpu) >> bit & 1);
	}
}

u64 fpu_xinuse(struct cpu *cpu)
{
	u64 mask = 0;

	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (component_in_use(cpu, i))
			mask |= XSTATE_MASK(i);
	if (fpu_get32(cpu, FX_MXCSR) != MXCSR_INIT)
		mask |= XSTATE_MASK(XSTATE_SSE);
	return mask & ~cpu->xfd;
}

// Bytes of a component that exist outside 64-bit mode, where vector registers 8 and above do not.
static unsigned visible_bytes(const struct cpu *cpu, unsigned bit)
{
	unsigned size = xstate_component(bit)->size;

	if (cpu_64bit(cpu))
		return size;
	switch (bit) {
	case XSTATE_AVX:
	case XSTATE_ZMM_HI256:
		return size / 2;
	case XSTATE_HI16_ZMM:
		return 0;
	}
	return size;
}

static void component_write(struct cpu *cpu, unsigned bit, const void *data, unsigned bytes)
{
	const u64 *q = data;

	switch (bit) {
	case XSTATE_PKRU:
		cpu_set_pkru(cpu, q[0]);
		break;
	case XSTATE_CET_U:
		cpu->u_cet = q[0];
		cpu->pl_ssp[3] = q[1];
		cpu_mode_changed(cpu);
		break;
	case XSTATE_CET_S:
		memcpy(cpu->pl_ssp, q, 24);
		break;
	case XSTATE_TILECFG:
		amx_config_write(cpu, data);
		break;
	case XSTATE_TILEDATA:
		amx_data_write(cpu, data);
		break;
	default:
		memcpy(fpu_component(cpu, bit), data, bytes);
		fpu_dirty(cpu, XSTATE_MASK(bit));
	}
}

static void component_init(struct cpu *cpu, unsigned bit, unsigned bytes)
{
	static const u64 zero[8];

	if (bit == XSTATE_TILEDATA)
		amx_data_write(cpu, NULL);
	else if (!in_fpstate(bit))
		component_write(cpu, bit, zero, bytes);
	else if (bytes == xstate_component(bit)->size)
		fpu_init_component(cpu, bit);
	else
		memset(fpu_component(cpu, bit), 0, bytes);
}

// ---- values that WRMSR would refuse ----

static bool component_valid(const struct cpu *cpu, unsigned bit, const void *data)
{
	const u64 *q = data;

	switch (bit) {
	case XSTATE_PKRU:
		return true;
	case XSTATE_CET_U:
		return msr_cet_valid(cpu, q[0], BY_GUEST) && msr_ssp_valid(cpu, q[1], BY_GUEST);
	case XSTATE_CET_S:
		return msr_ssp_valid(cpu, q[0], BY_GUEST) && msr_ssp_valid(cpu, q[1], BY_GUEST) &&
		       msr_ssp_valid(cpu, q[2], BY_GUEST);
	}
	return true;
}

// ---- checks common to all ----

static void check_enabled(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_OSXSAVE))
		cpu_ud(cpu);
	if (cpu->cr0 & CR0_TS)
		cpu_raise(cpu, VECTOR_NM);
}

static void check_supervisor(struct cpu *cpu)
{
	if (cpu->cpl)
		cpu_gp0(cpu);
}

static u64 requested(const struct cpu *cpu)
{
	return (u32)cpu->gpr[RAX] | cpu->gpr[RDX] << 32;
}

// Address of the area, aligned, with `size` bytes inside its segment.
static u64 area(struct cpu *cpu, const struct insn *insn, unsigned size, bool write)
{
	insn_check_aligned(cpu, insn, 64);
	return insn_linear(cpu, insn, size, write);
}

static bool wide_pointers(const struct cpu *cpu, const struct insn *insn)
{
	return cpu_64bit(cpu) && insn->operand_size == 8;
}

// ---- saving ----

struct saver {
	struct cpu *cpu;
	u64 linear;
	unsigned access;
};

static void put(const struct saver *s, u32 offset, const void *data, unsigned size)
{
	if (size)
		mem_write(s->cpu, s->linear + offset, data, size, s->access);
}

static void save_x87(const struct saver *s, bool wide)
{
	u8 head[24];

	x87_fx_header(s->cpu, head, wide);
	put(s, 0, head, 24);
	put(s, FX_ST, &s->cpu->fpstate[FX_ST], 128);
}

static void save_mxcsr(const struct saver *s)
{
	u32 pair[2] = { fpu_get32(s->cpu, FX_MXCSR), GUEST_MXCSR_MASK };

	put(s, FX_MXCSR, pair, sizeof(pair));
}

static void save_component(const struct saver *s, unsigned bit, u64 xcomp, bool wide)
{
	u8 data[8192] __attribute__((aligned(64)));

	if (bit == XSTATE_X87) {
		save_x87(s, wide);
	} else if (bit == XSTATE_SSE) {
		put(s, FX_XMM, &s->cpu->fpstate[FX_XMM], cpu_64bit(s->cpu) ? 256 : 128);
	} else {
		component_read(s->cpu, bit, data);
		put(s, xstate_offset(xcomp, bit), data, visible_bytes(s->cpu, bit));
	}
}

// XSAVE and XSAVEOPT: standard format, XSTATE_BV bits outside RFBM stay as they are in memory.
static void save_standard(struct cpu *cpu, const struct insn *insn, bool skip_initial)
{
	u64 rfbm = requested(cpu) & cpu->xcr0, in_use, xstate_bv;
	struct saver s = { cpu, 0, ACCESS_WRITE | cpu_access_of_cpl(cpu) };

	check_enabled(cpu);
	s.linear = area(cpu, insn, xstate_standard_size(rfbm), true);
	in_use = 0;
	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if ((rfbm >> i & 1) && component_in_use(cpu, i) && !(cpu->xfd >> i & 1))
			in_use |= XSTATE_MASK(i);
	xstate_bv = mem_read_n(cpu, s.linear + HEADER, 8, ACCESS_READ | cpu_access_of_cpl(cpu));
	xstate_bv = (xstate_bv & ~rfbm) | in_use;
	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (((skip_initial ? in_use : rfbm) >> i & 1))
			save_component(&s, i, 0, wide_pointers(cpu, insn));
	if (rfbm & (XSTATE_MASK(XSTATE_SSE) | XSTATE_MASK(XSTATE_AVX)))
		save_mxcsr(&s);
	put(&s, HEADER, &xstate_bv, 8);
}

// XSAVEC and XSAVES: compacted format, initial components are left out of it.
static void save_compacted(struct cpu *cpu, const struct insn *insn, u64 rfbm)
{
	u64 xcomp = rfbm | XSTATE_COMPACTED, in_use = fpu_xinuse(cpu) & rfbm;
	struct saver s = { cpu, 0, ACCESS_WRITE | cpu_access_of_cpl(cpu) };
	u64 header[2] = { in_use, xcomp };

	s.linear = area(cpu, insn, xstate_compacted_size(rfbm), true);
	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (in_use >> i & 1)
			save_component(&s, i, xcomp, wide_pointers(cpu, insn));
	if (in_use & XSTATE_MASK(XSTATE_SSE))
		save_mxcsr(&s);
	put(&s, HEADER, header, sizeof(header));
}

static void xsave(struct cpu *cpu, const struct insn *insn)
{
	save_standard(cpu, insn, false);
}

static void xsaveopt(struct cpu *cpu, const struct insn *insn)
{
	save_standard(cpu, insn, true);
}

static void xsavec(struct cpu *cpu, const struct insn *insn)
{
	check_enabled(cpu);
	save_compacted(cpu, insn, requested(cpu) & cpu->xcr0);
}

static void xsaves(struct cpu *cpu, const struct insn *insn)
{
	check_enabled(cpu);
	check_supervisor(cpu);
	save_compacted(cpu, insn, requested(cpu) & (cpu->xcr0 | cpu->xss));
}

// ---- restoring ----

// One restore: the parts of the image it needs, read from the guest at their offsets.
struct restorer {
	u64 linear;
	struct xstate_header header;
	u64 rfbm;
	u64 load; // components that come from memory
	u32 mxcsr;
	bool load_mxcsr;
	u8 image[IMAGE_MAX] __attribute__((aligned(64)));
};

static void fetch(struct cpu *cpu, struct restorer *r, u32 offset, unsigned size)
{
	if (size)
		mem_read(cpu, r->linear + offset, r->image + offset, size,
			 ACCESS_READ | cpu_access_of_cpl(cpu));
}

static void fetch_component(struct cpu *cpu, struct restorer *r, unsigned bit)
{
	u32 offset = xstate_offset(r->header.xcomp_bv, bit);

	if (bit == XSTATE_X87) {
		fetch(cpu, r, 0, 24);
		fetch(cpu, r, FX_ST, 128);
	} else if (bit == XSTATE_SSE) {
		fetch(cpu, r, FX_XMM, cpu_64bit(cpu) ? 256 : 128);
	} else {
		fetch(cpu, r, offset, visible_bytes(cpu, bit));
		if (!component_valid(cpu, bit, r->image + offset))
			cpu_gp0(cpu);
	}
}

// MXCSR belongs to SSE, and in the standard format to AVX too, whatever XSTATE_BV says.
static void fetch_mxcsr(struct cpu *cpu, struct restorer *r)
{
	bool compacted = r->header.xcomp_bv & XSTATE_COMPACTED;
	u64 owners = XSTATE_MASK(XSTATE_SSE) | (compacted ? 0 : XSTATE_MASK(XSTATE_AVX));

	r->load_mxcsr = r->rfbm & owners;
	r->mxcsr = MXCSR_INIT;
	if (!r->load_mxcsr || (compacted && !(r->load & XSTATE_MASK(XSTATE_SSE))))
		return;
	r->mxcsr = mem_read_n(cpu, r->linear + FX_MXCSR, 4, ACCESS_READ | cpu_access_of_cpl(cpu));
	if (r->mxcsr & ~GUEST_MXCSR_MASK)
		cpu_gp0(cpu);
}

static void restore(struct cpu *cpu, const struct insn *insn, struct restorer *r)
{
	for (unsigned i = 0; i < XSTATE_BITS; i++) {
		u8 *data = r->image + xstate_offset(r->header.xcomp_bv, i);
		bool from_memory = r->load >> i & 1;

		if (!(r->rfbm >> i & 1))
			continue;
		if (i == XSTATE_X87 && from_memory) {
			x87_fx_load(cpu, r->image, wide_pointers(cpu, insn));
		} else if (i == XSTATE_SSE) {
			unsigned bytes = cpu_64bit(cpu) ? 256 : 128;

			if (from_memory || bytes != 256)
				fpu_dirty(cpu, XSTATE_MASK(XSTATE_SSE));
			else
				fpu_init_component(cpu, XSTATE_SSE);
			if (from_memory)
				memcpy(&cpu->fpstate[FX_XMM], r->image + FX_XMM, bytes);
			else
				memset(&cpu->fpstate[FX_XMM], 0, bytes);
		} else if (from_memory) {
			component_write(cpu, i, data, visible_bytes(cpu, i));
		} else if (visible_bytes(cpu, i)) {
			component_init(cpu, i, visible_bytes(cpu, i));
		}
	}
	if (r->load_mxcsr)
		fpu_set32(cpu, FX_MXCSR, r->mxcsr);
}

static void restore_checked(struct cpu *cpu, const struct insn *insn, u64 allowed, bool supervisor)
{
	struct restorer r;
	u64 xcomp, disabled;

	r.rfbm = requested(cpu) & allowed;
	r.linear = area(cpu, insn, XSTATE_EXTENDED_OFFSET, false);
	mem_read(cpu, r.linear + HEADER, &r.header, sizeof(r.header),
		 ACCESS_READ | cpu_access_of_cpl(cpu));
	if (!xstate_header_valid(&r.header, allowed, supervisor, supervisor || guest_has(cpu, FEATURE_XSAVEC)))
		cpu_gp0(cpu);
	xcomp = r.header.xcomp_bv;
	r.load = r.rfbm & r.header.xstate_bv;
	area(cpu, insn, xcomp ? xstate_compacted_size(xcomp & ~XSTATE_COMPACTED) :
				xstate_standard_size(r.load), false);
	disabled = r.load & cpu->xfd;
	if (disabled) {
		cpu->xfd_err = disabled;
		cpu_raise(cpu, VECTOR_NM);
	}
	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (r.load >> i & 1)
			fetch_component(cpu, &r, i);
	fetch_mxcsr(cpu, &r);
	restore(cpu, insn, &r);
}

static void xrstor(struct cpu *cpu, const struct insn *insn)
{
	check_enabled(cpu);
	restore_checked(cpu, insn, cpu->xcr0, false);
}

static void xrstors(struct cpu *cpu, const struct insn *insn)
{
	check_enabled(cpu);
	check_supervisor(cpu);
	restore_checked(cpu, insn, cpu->xcr0 | cpu->xss, true);
}

// ---- images in memory ----

bool cpu_fpstate_save(struct cpu *cpu, struct fpstate *fpstate)
{
	u32 mxcsr[2] = { 0, GUEST_MXCSR_MASK };
	u64 in_use;

	if (!fpstate_may_save(fpstate))
		return false;
	cpu_fpu_unload(cpu);
	// PKRU is always told: it has no initial configuration that a guest could not want.
	in_use = (fpu_xinuse(cpu) | XSTATE_MASK(XSTATE_PKRU)) & fpstate->xfeatures;
	for (unsigned i = 0; i < XSTATE_BITS; i++) {
		u8 *data = in_use >> i & 1 ? fpstate_component(fpstate, i) : NULL;

		if (!data)
			continue;
		if (i == XSTATE_X87) {
			x87_fx_header(cpu, data, true);
			memcpy(data + FX_ST, &cpu->fpstate[FX_ST], 128);
		} else if (i == XSTATE_SSE) {
			memcpy(data + FX_XMM, &cpu->fpstate[FX_XMM], 256);
		} else {
			component_read(cpu, i, data);
		}
	}
	mxcsr[0] = fpu_get32(cpu, FX_MXCSR);
	memcpy(fpstate->image + FX_MXCSR, mxcsr, sizeof(mxcsr));
	fpstate_set_xstate_bv(fpstate, in_use);
	return true;
}

void cpu_fpstate_load(struct cpu *cpu, struct fpstate *fpstate)
{
	u64 present = fpstate_xstate_bv(fpstate);
	u32 mxcsr = MXCSR_INIT;

	cpu_fpu_unload(cpu);
	for (unsigned i = 0; i < XSTATE_BITS; i++) {
		const u8 *data = fpstate_component(fpstate, i);

		if (!data || i == XSTATE_PKRU)
			continue;
		if (!(present >> i & 1)) {
			component_init(cpu, i, xstate_component(i)->size);
		} else if (i == XSTATE_X87) {
			x87_fx_load(cpu, data, true);
		} else if (i == XSTATE_SSE) {
			memcpy(&cpu->fpstate[FX_XMM], data + FX_XMM, 256);
			fpu_dirty(cpu, XSTATE_MASK(XSTATE_SSE));
		} else {
			component_write(cpu, i, data, xstate_component(i)->size);
		}
	}
	// The compacted format has MXCSR with SSE.
	if (present & XSTATE_MASK(XSTATE_SSE))
		memcpy(&mxcsr, fpstate->image + FX_MXCSR, sizeof(mxcsr));
	fpu_set32(cpu, FX_MXCSR, mxcsr & GUEST_MXCSR_MASK);
}

void fpu_receive_init(struct cpu *cpu)
{
	u64 kept = fpu_host_mask() | XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S);
	u64 cleared = XSTATE_MASK_CLEARED_BY_INIT & kept;

	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (cleared >> i & 1)
			component_init(cpu, i, xstate_component(i)->size);
}

// ---- rows ----

#define ROW(name, flags, feature, handler) \
	{ ZYDIS_MNEMONIC_##name, INSN_C, INSN_UNLOAD_FPU | (flags), feature, handler }
#define LOAD(name, feature) ROW(name, INSN_SSE | INSN_AVX, feature, vmaskmov_handler)
#define GATHER(name) ROW(name, INSN_SSE | INSN_AVX, FEATURE_AVX2, gather_handler)

const struct insn_row rows_xsave[] = {
	ROW(XSAVE, 0, FEATURE_XSAVE, xsave),
	ROW(XSAVE64, 0, FEATURE_XSAVE, xsave),
	ROW(XSAVEOPT, 0, FEATURE_XSAVEOPT, xsaveopt),
	ROW(XSAVEOPT64, 0, FEATURE_XSAVEOPT, xsaveopt),
	ROW(XSAVEC, 0, FEATURE_XSAVEC, xsavec),
	ROW(XSAVEC64, 0, FEATURE_XSAVEC, xsavec),
	ROW(XSAVES, 0, FEATURE_XSAVES, xsaves),
	ROW(XSAVES64, 0, FEATURE_XSAVES, xsaves),
	ROW(XRSTOR, INSN_END, FEATURE_XSAVE, xrstor),
	ROW(XRSTOR64, INSN_END, FEATURE_XSAVE, xrstor),
	ROW(XRSTORS, INSN_END, FEATURE_XSAVES, xrstors),
	ROW(XRSTORS64, INSN_END, FEATURE_XSAVES, xrstors),
	ROW(FXSAVE, 0, FEATURE_FXSR, fxsave_handler),
	ROW(FXSAVE64, 0, FEATURE_FXSR, fxsave_handler),
	ROW(FXRSTOR, 0, FEATURE_FXSR, fxrstor_handler),
	ROW(FXRSTOR64, 0, FEATURE_FXSR, fxrstor_handler),
	ROW(FNSAVE, 0, FEATURE_FPU, fnsave_handler),
	ROW(FRSTOR, 0, FEATURE_FPU, frstor_handler),
	ROW(FNSTENV, 0, FEATURE_FPU, fnstenv_handler),
	ROW(FLDENV, 0, FEATURE_FPU, fldenv_handler),
	ROW(MASKMOVQ, INSN_FPU, FEATURE_SSE, maskmov_handler),
	ROW(MASKMOVDQU, INSN_SSE, FEATURE_SSE2, maskmov_handler),
	ROW(VMASKMOVDQU, INSN_SSE | INSN_AVX, FEATURE_AVX, maskmov_handler),
	LOAD(VMASKMOVPS, FEATURE_AVX),
	LOAD(VMASKMOVPD, FEATURE_AVX),
	LOAD(VPMASKMOVD, FEATURE_AVX2),
	LOAD(VPMASKMOVQ, FEATURE_AVX2),
	GATHER(VGATHERDPS),
	GATHER(VGATHERDPD),
	GATHER(VGATHERQPS),
	GATHER(VGATHERQPD),
	GATHER(VPGATHERDD),
	GATHER(VPGATHERDQ),
	GATHER(VPGATHERQD),
	GATHER(VPGATHERQQ),
	{ 0 },
};
