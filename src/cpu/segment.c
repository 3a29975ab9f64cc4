// SPDX-License-Identifier: MIT
// Segment registers: loading them and looking at descriptors.
// Nothing of struct cpu is changed before the last check and the accessed bit's write succeeded.
// SDM: "Protected-Mode Memory Management", "Protection", "Segment Loading Instructions in IA-32e
// Mode", LAR, LSL, VERR/VERW, ARPL, MOV, LDS/LES/LFS/LGS/LSS.
#include "cpu/segment.h"

#include "cpu/far.h"
#include "cpu/stack.h"
#include "cpu/transfer.h"

bool descriptor_address(struct cpu *cpu, u16 selector, unsigned size, u64 *linear)
{
	u32 offset = selector & 0xfff8, limit;
	u64 base;

	if (selector & 4) {
		if (cpu->seg[SEG_LDTR].attributes & SEG_UNUSABLE)
			return false;
		base = cpu->seg[SEG_LDTR].base;
		limit = cpu->seg[SEG_LDTR].limit;
	} else {
		base = cpu->gdtr.base;
		limit = cpu->gdtr.limit;
	}
	*linear = system_linear(cpu, base + offset);
	return (u64)offset + size - 1 <= limit;
}

bool descriptor_read(struct cpu *cpu, u16 selector, u64 *raw)
{
	u64 linear;

	if (!descriptor_address(cpu, selector, 8, &linear))
		return false;
	*raw = system_read8(cpu, linear);
	return true;
}

bool descriptor_read16(struct cpu *cpu, u16 selector, u64 raw[2])
{
	u64 linear;

	if (!descriptor_address(cpu, selector, 16, &linear))
		return false;
	raw[0] = system_read8(cpu, linear);
	raw[1] = system_read8(cpu, linear + 8);
	return true;
}

// Changes bits of a descriptor's type. Another processor may change the same descriptor, so this
// is a locked operation, except in a table which is not aligned to 8 bytes.
static void descriptor_change(struct cpu *cpu, u16 selector, u64 raw, u64 set, u64 clear)
{
	u64 linear, old;

	if (!descriptor_address(cpu, selector, 8, &linear))
		return;
	if (linear & 7) {
		u8 byte = mem_read_n(cpu, linear + 5, 1, ACCESS_READ | ACCESS_IMPLICIT);

		mem_write_n(cpu, linear + 5, (byte | (u8)(set >> 40)) & ~(u8)(clear >> 40), 1,
			    ACCESS_WRITE | ACCESS_IMPLICIT);
		return;
	}
	for (;;) {
		old = mem_cmpxchg64(cpu, linear, raw, (raw | set) & ~clear, ACCESS_WRITE | ACCESS_IMPLICIT);
		if (old == raw)
			return;
		raw = old;
	}
}

void descriptor_mark_accessed(struct cpu *cpu, u16 selector, u64 *raw)
{
	const u64 accessed = (u64)SEG_ACCESSED << 40;

	if (*raw & accessed)
		return;
	descriptor_change(cpu, selector, *raw, accessed, 0);
	*raw |= accessed;
}

void descriptor_mark_busy(struct cpu *cpu, u16 selector, u64 raw, bool busy)
{
	const u64 bit = (u64)TSS_BUSY << 40;

	descriptor_change(cpu, selector, raw, busy ? bit : 0, busy ? 0 : bit);
}

void segment_from_descriptor(struct segment *segment, u16 selector, u64 raw)
{
	segment->selector = selector;
	segment->base = descriptor_base(raw);
	segment->limit = descriptor_limit(raw);
	segment->attributes = descriptor_attributes(raw);
}

void segment_null(struct segment *segment, u16 selector, unsigned dpl)
{
	segment->selector = selector;
	segment->base = 0;
	segment->limit = 0;
	segment->attributes = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT;
}

void segment_load_real(struct segment *segment, enum seg seg, u16 selector, bool v86)
{
	segment->selector = selector;
	segment->base = (u32)selector << 4;
	if (v86) {
		segment->limit = 0xffff;
		segment->attributes = SEG_P | 3u << SEG_DPL_SHIFT | SEG_S | SEG_RW | SEG_ACCESSED;
		return;
	}
	// Real mode keeps the limit and the size ("unreal" mode); a register which became null in
	// protected mode becomes usable again.
	if (segment->attributes & SEG_UNUSABLE)
		segment->limit = 0xffff;
	segment->attributes = (segment->attributes & (SEG_AVL | SEG_DB | SEG_G)) | SEG_P | SEG_S | SEG_RW |
			      SEG_ACCESSED | (seg == SEG_CS ? SEG_CODE : 0);
}

bool segment_within_limit(const struct segment *segment, u64 offset, unsigned size)
{
	u64 last = offset + size - 1;

	if ((segment->attributes & (SEG_CODE | SEG_EXPAND_DOWN)) == SEG_EXPAND_DOWN)
		return offset > segment->limit && last <= (segment->attributes & SEG_DB ? 0xffffffff : 0xffff);
	// Also with a limit of 4 GiB - 1 an access must not wrap around the end.
	return last <= segment->limit;
}

void segment_check_stack(struct cpu *cpu, u16 selector, unsigned cpl, enum vector vector, u32 ext,
			 struct segment *segment)
{
	u32 error = selector_error(selector) | ext;
	u64 raw;

	if (!descriptor_read(cpu, selector, &raw) || (selector & 3) != cpl ||
	    !descriptor_is_writable_data(raw) || descriptor_dpl(raw) != cpl)
		cpu_raise_error(cpu, vector, error);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_SS, error);
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(segment, selector, raw);
}

void segment_null_inner(struct cpu *cpu, unsigned cpl)
{
	static const u8 data[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < sizeof(data); i++) {
		struct segment *segment = &cpu->seg[data[i]];
		u32 attributes = segment->attributes;

		if (attributes & SEG_UNUSABLE) {
			// A null selector stays; only its RPL bits go (the selector is loaded with 0).
			if (selector_null(segment->selector))
				segment->selector = 0;
			continue;
		}
		if (segment_dpl(segment) < cpl &&
		    (attributes & (SEG_CODE | SEG_CONFORMING)) != (SEG_CODE | SEG_CONFORMING)) {
			u64 base = segment->base;

			segment_null(segment, 0, 0);
			// In long mode the bases of FS and GS survive: they are MSRs.
			if (cpu_long_mode(cpu) && data[i] >= SEG_FS)
				segment->base = base;
		}
	}
}

// ---- MOV Sreg, POP Sreg, LDS... ----

static void load_stack(struct cpu *cpu, u16 selector, struct segment *segment)
{
	if (selector_null(selector)) {
		if (!cpu_64bit(cpu) || cpu->cpl == 3 || (selector & 3) != cpu->cpl)
			cpu_gp0(cpu);
		segment_null(segment, selector, cpu->cpl);
		return;
	}
	segment_check_stack(cpu, selector, cpu->cpl, VECTOR_GP, 0, segment);
}

static void load_data(struct cpu *cpu, u16 selector, struct segment *segment)
{
	unsigned type, dpl;
	u64 raw;

	if (selector_null(selector)) {
		segment_null(segment, selector, 0);
		return;
	}
	if (!descriptor_read(cpu, selector, &raw) || !descriptor_is_segment(raw))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	type = descriptor_type(raw);
	dpl = descriptor_dpl(raw);
	if ((type & (SEG_CODE | SEG_RW)) == SEG_CODE)
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	if ((type & (SEG_CODE | SEG_CONFORMING)) != (SEG_CODE | SEG_CONFORMING) &&
	    ((selector & 3u) > dpl || cpu->cpl > dpl))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, selector_error(selector));
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(segment, selector, raw);
}

void segment_load(struct cpu *cpu, enum seg seg, u16 selector)
{
	struct segment segment = cpu->seg[seg];

	if (!cpu_protected(cpu) || cpu_v86(cpu))
		segment_load_real(&segment, seg, selector, cpu_v86(cpu));
	else if (seg == SEG_SS)
		load_stack(cpu, selector, &segment);
	else
		load_data(cpu, selector, &segment);
	cpu->seg[seg] = segment;
	cpu_mode_changed(cpu);
}

static void shadow_of_stack_load(struct cpu *cpu, enum seg seg)
{
	if (seg == SEG_SS)
		cpu->interrupt_shadow = cpu->mov_ss_shadow = true;
}

// MOV with a segment register as one operand.
static void segment_mov(struct cpu *cpu, const struct insn *insn)
{
	if (insn->op[0].kind == OPERAND_SEG) {
		enum seg seg = insn->op[0].reg;

		if (seg == SEG_CS)
			cpu_ud(cpu);
		segment_load(cpu, seg, insn_read(cpu, insn, 1));
		shadow_of_stack_load(cpu, seg);
	} else {
		insn_write(cpu, insn, 0, cpu->seg[insn->op[1].reg].selector);
	}
}

// PUSH Sreg: of a slot of 32 bits Intel's processors write the lower 16 alone.
static void segment_push(struct cpu *cpu, const struct insn *insn)
{
	u64 selector = cpu->seg[insn->op[0].reg].selector;
	struct stack stack;

	stack_current(cpu, &stack);
	if (insn->operand_size == 4 && !vendor_is_amd(cpu)) {
		stack.sp = (stack.sp - 4) & stack.mask;
		stack_poke(cpu, &stack, 0, &selector, 2);
	} else {
		stack_push(cpu, &stack, &selector, insn->operand_size, insn->operand_size);
	}
	stack_commit(cpu, &stack);
}

static void segment_pop(struct cpu *cpu, const struct insn *insn)
{
	enum seg seg = insn->op[0].reg;
	struct stack stack;
	u64 selector = 0;

	stack_current(cpu, &stack);
	stack_peek(cpu, &stack, 0, &selector, 2);
	stack.sp = (stack.sp + insn->operand_size) & stack.mask;
	segment_load(cpu, seg, selector);
	stack_commit(cpu, &stack);
	shadow_of_stack_load(cpu, seg);
}

static void load_far_pointer(struct cpu *cpu, const struct insn *insn, enum seg seg)
{
	unsigned size = insn->operand_size, user = cpu_access_of_cpl(cpu);
	u64 linear, offset;
	u16 selector;

	if (insn->op[1].kind != OPERAND_MEM)
		cpu_ud(cpu);
	linear = insn_linear(cpu, insn, size + 2, false);
	offset = mem_read_n(cpu, linear, size, ACCESS_READ | user);
	linear += size;
	if (!cpu_64bit(cpu))
		linear = (u32)linear;
	selector = mem_read_n(cpu, linear, 2, ACCESS_READ | user);
	segment_load(cpu, seg, selector);
	gpr_write(cpu, insn->op[0].reg, size, offset);
}

static void segment_lds(struct cpu *cpu, const struct insn *insn) { load_far_pointer(cpu, insn, SEG_DS); }
static void segment_les(struct cpu *cpu, const struct insn *insn) { load_far_pointer(cpu, insn, SEG_ES); }
static void segment_lfs(struct cpu *cpu, const struct insn *insn) { load_far_pointer(cpu, insn, SEG_FS); }
static void segment_lgs(struct cpu *cpu, const struct insn *insn) { load_far_pointer(cpu, insn, SEG_GS); }
static void segment_lss(struct cpu *cpu, const struct insn *insn) { load_far_pointer(cpu, insn, SEG_SS); }

// ---- LAR, LSL, VERR, VERW, ARPL ----

static void set_zf(struct cpu *cpu, bool zf)
{
	const u32 bit = FLAG_ZF << 8; // see cpu_set_arith()

	cpu->arith = zf ? cpu->arith | bit : cpu->arith & ~bit;
}

static void require_protected(struct cpu *cpu)
{
	if (!cpu_protected(cpu) || cpu_v86(cpu))
		cpu_ud(cpu);
}

// The privilege check of LAR, LSL, VERR and VERW.
static bool visible(const struct cpu *cpu, u16 selector, u64 raw)
{
	unsigned dpl = descriptor_dpl(raw);

	if (descriptor_is_code(raw) && descriptor_is_conforming(raw))
		return true;
	return cpu->cpl <= dpl && (selector & 3u) <= dpl;
}

// Reads the descriptor for LAR and LSL; `types` and `types_long`: system types they accept.
static bool examine(struct cpu *cpu, u16 selector, unsigned types, unsigned types_long, u64 *raw)
{
	bool wide = cpu_long_mode(cpu);

	if (selector_null(selector) || !descriptor_read(cpu, selector, raw))
		return false;
	if (!descriptor_is_segment(*raw)) {
		u64 both[2];

		if (!((wide ? types_long : types) >> descriptor_type(*raw) & 1))
			return false;
		// A system descriptor of long mode has 16 bytes, with zeros in the second type field.
		if (wide && (!descriptor_read16(cpu, selector, both) || (both[1] >> 40 & 0x1f)))
			return false;
	}
	return visible(cpu, selector, *raw);
}

// LAR and LSL: reads the descriptor, sets ZF when it may be looked at.
static bool examine_operand(struct cpu *cpu, const struct insn *insn, unsigned types, unsigned types_long,
			    u64 *raw)
{
	bool ok;

	require_protected(cpu);
	ok = examine(cpu, insn_read(cpu, insn, 1), types, types_long, raw);
	set_zf(cpu, ok);
	return ok;
}

#define WITH_LIMIT_LONG (1u << TYPE_LDT | 1u << TYPE_TSS32 | 1u << TYPE_TSS32_BUSY)
#define WITH_LIMIT (WITH_LIMIT_LONG | 1u << TYPE_TSS16 | 1u << TYPE_TSS16_BUSY)

static void segment_lar(struct cpu *cpu, const struct insn *insn)
{
	const unsigned gates = 1u << TYPE_CALL_GATE16 | 1u << TYPE_TASK_GATE | 1u << TYPE_CALL_GATE32;
	u64 raw;

	if (examine_operand(cpu, insn, WITH_LIMIT | gates, WITH_LIMIT_LONG | 1u << TYPE_CALL_GATE32, &raw))
		gpr_write(cpu, insn->op[0].reg, insn->operand_size, raw >> 32 & 0xffff00);
}

static void segment_lsl(struct cpu *cpu, const struct insn *insn)
{
	u64 raw;

	if (examine_operand(cpu, insn, WITH_LIMIT, WITH_LIMIT_LONG, &raw))
		gpr_write(cpu, insn->op[0].reg, insn->operand_size, descriptor_limit(raw));
}

static void verify(struct cpu *cpu, const struct insn *insn, bool write)
{
	u16 selector;
	u64 raw;
	bool ok;

	require_protected(cpu);
	selector = insn_read(cpu, insn, 0);
	ok = !selector_null(selector) && descriptor_read(cpu, selector, &raw) &&
	     descriptor_is_segment(raw) && visible(cpu, selector, raw);
	if (ok && write)
		ok = descriptor_is_writable_data(raw);
	else if (ok)
		ok = !(descriptor_type(raw) & SEG_CODE) || descriptor_type(raw) & SEG_RW;
	set_zf(cpu, ok);
}

static void segment_verr(struct cpu *cpu, const struct insn *insn) { verify(cpu, insn, false); }
static void segment_verw(struct cpu *cpu, const struct insn *insn) { verify(cpu, insn, true); }

static void segment_arpl(struct cpu *cpu, const struct insn *insn)
{
	u16 destination, source;
	bool lower;

	require_protected(cpu);
	destination = insn_read(cpu, insn, 0);
	source = insn_read(cpu, insn, 1);
	lower = (destination & 3) < (source & 3);
	if (lower)
		insn_write(cpu, insn, 0, (destination & ~3) | (source & 3));
	set_zf(cpu, lower);
}

// MOV, PUSH and POP: the forms with a segment register operand.
const struct insn_row rows_segment[] = {
	{ ZYDIS_MNEMONIC_MOV, INSN_C, INSN_END, 0, segment_mov },
	{ ZYDIS_MNEMONIC_PUSH, INSN_C, 0, 0, segment_push },
	{ ZYDIS_MNEMONIC_POP, INSN_C, INSN_END, 0, segment_pop },
	{ ZYDIS_MNEMONIC_LDS, INSN_C, INSN_END, 0, segment_lds },
	{ ZYDIS_MNEMONIC_LES, INSN_C, INSN_END, 0, segment_les },
	{ ZYDIS_MNEMONIC_LFS, INSN_C, INSN_END, 0, segment_lfs },
	{ ZYDIS_MNEMONIC_LGS, INSN_C, INSN_END, 0, segment_lgs },
	{ ZYDIS_MNEMONIC_LSS, INSN_C, INSN_END, 0, segment_lss },
	{ ZYDIS_MNEMONIC_LAR, INSN_C, 0, 0, segment_lar },
	{ ZYDIS_MNEMONIC_LSL, INSN_C, 0, 0, segment_lsl },
	{ ZYDIS_MNEMONIC_VERR, INSN_C, 0, 0, segment_verr },
	{ ZYDIS_MNEMONIC_VERW, INSN_C, 0, 0, segment_verw },
	{ ZYDIS_MNEMONIC_ARPL, INSN_C, 0, 0, segment_arpl },
	{ 0 },
};
