// SPDX-License-Identifier: MIT
// Far JMP, CALL and RET, with call gates. Gates and TSSs lead to task.c.
// Invariant: everything that can fault comes first (memory written by pushes included), then the new
// state is stored in one go.
// SDM: "Calling Procedures Using CALL and RET", "Program Control Transfers" under "Protection", CALL,
// JMP, RET.
#include "cpu/far.h"

#include "cpu/cet.h"
#include "cpu/segment.h"
#include "cpu/task.h"

static u64 operand_mask(unsigned size)
{
	return size == 8 ? ~0ull : size == 4 ? 0xffffffffull : 0xffffull;
}

bool far_is_64bit(const struct cpu *cpu, const struct segment *cs)
{
	return cpu_long_mode(cpu) && cs->attributes & SEG_L;
}

void far_check_rip(struct cpu *cpu, const struct segment *cs, u64 rip)
{
	if (far_is_64bit(cpu, cs) ? !cpu_canonical(cpu, rip) : rip > cs->limit)
		cpu_gp0(cpu);
}

// Return address as the shadow stack holds it.
static u64 current_lip(const struct cpu *cpu)
{
	return cpu_64bit(cpu) ? cpu->next_rip : (u32)(cpu->seg[SEG_CS].base + cpu->next_rip);
}

// The far pointer operand: in the instruction or in memory.
static u16 read_pointer(struct cpu *cpu, const struct insn *insn, u64 *offset)
{
	unsigned size = insn->operand_size, user = cpu_access_of_cpl(cpu);
	u64 linear, selector_at;

	if (insn->op[0].kind != OPERAND_MEM) {
		*offset = insn->imm & operand_mask(size);
		return insn->far_selector;
	}
	linear = insn_linear(cpu, insn, size + 2, false);
	selector_at = cpu_64bit(cpu) ? linear + size : (u32)(linear + size);
	*offset = mem_read_n(cpu, linear, size, ACCESS_READ | user);
	return mem_read_n(cpu, selector_at, 2, ACCESS_READ | user);
}

static u64 read_descriptor(struct cpu *cpu, u16 selector)
{
	u64 raw;

	if (selector_null(selector))
		cpu_gp0(cpu);
	if (!descriptor_read(cpu, selector, &raw))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	return raw;
}

// L and D are not both 1 in long mode; through a gate of long mode the target is 64-bit code.
static void check_code_size(struct cpu *cpu, u16 selector, u64 raw, bool gate)
{
	u32 attributes = descriptor_attributes(raw) & (SEG_L | SEG_DB);

	if (!cpu_long_mode(cpu))
		return;
	if (attributes == (SEG_L | SEG_DB) || (gate && attributes != SEG_L))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
}

static void load_code(struct cpu *cpu, u16 selector, u64 raw, unsigned cpl, struct segment *cs)
{
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(cs, (selector & ~3) | cpl, raw);
}

// Code segment of a direct far JMP or CALL: the privilege level stays.
static void direct_code(struct cpu *cpu, u16 selector, u64 raw, struct segment *cs)
{
	u32 error = selector_error(selector);
	unsigned dpl = descriptor_dpl(raw);

	if (descriptor_is_conforming(raw) ? dpl > cpu->cpl
					  : dpl != cpu->cpl || (selector & 3u) > cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	check_code_size(cpu, selector, raw, false);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	load_code(cpu, selector, raw, cpu->cpl, cs);
}

static void commit_code(struct cpu *cpu, const struct segment *cs, unsigned cpl, u64 rip)
{
	cpu->seg[SEG_CS] = *cs;
	cpu->cpl = cpl;
	cet_track_indirect(cpu, cpl, false, false);
	cpu->next_rip = rip;
	cpu_mode_changed(cpu);
}

// ---- gates ----

struct call_gate {
	unsigned slot;	 // 2, 4 or 8 bytes
	unsigned params; // slots to copy
	u16 selector;
	u64 offset;
};

static void check_gate_access(struct cpu *cpu, u16 selector, u64 raw)
{
	if (descriptor_dpl(raw) < cpu->cpl || descriptor_dpl(raw) < (selector & 3u))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, selector_error(selector));
}

static void read_call_gate(struct cpu *cpu, u16 selector, u64 raw, struct call_gate *gate)
{
	bool wide = descriptor_type(raw) == TYPE_CALL_GATE32;
	u64 both[2];

	if (cpu_long_mode(cpu)) {
		if (!descriptor_read16(cpu, selector, both) || both[1] >> 40 & 0x1f)
			cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
	}
	check_gate_access(cpu, selector, raw);
	gate->selector = raw >> 16;
	gate->offset = (raw & 0xffff) | (wide ? raw >> 32 & 0xffff0000 : 0);
	gate->params = raw >> 32 & 0x1f;
	gate->slot = wide ? 4 : 2;
	if (cpu_long_mode(cpu)) {
		gate->offset |= both[1] << 32;
		gate->params = 0;
		gate->slot = 8;
	}
}

static u64 gate_code(struct cpu *cpu, const struct call_gate *gate)
{
	u64 raw = read_descriptor(cpu, gate->selector);
	u32 error = selector_error(gate->selector);

	if (!descriptor_is_code(raw) || descriptor_dpl(raw) > cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	check_code_size(cpu, gate->selector, raw, true);
	return raw;
}

// What a system descriptor means to a far JMP or CALL. Returns true for a call gate; otherwise the
// task switch has happened.
static bool is_call_gate(struct cpu *cpu, u16 selector, u64 raw, enum task_cause cause)
{
	switch (descriptor_type(raw)) {
	case TYPE_CALL_GATE32:
		return true;
	case TYPE_CALL_GATE16:
		if (!cpu_long_mode(cpu))
			return true;
		break;
	case TYPE_TASK_GATE:
		if (cpu_long_mode(cpu))
			break;
		check_gate_access(cpu, selector, raw);
		task_switch_gate(cpu, raw, cause, cpu->next_rip, 0, false, 0);
		cpu->next_rip = cpu->rip;
		return false;
	case TYPE_TSS16:
	case TYPE_TSS32:
		if (cpu_long_mode(cpu) || selector & 4)
			break;
		check_gate_access(cpu, selector, raw);
		task_switch(cpu, selector, raw, cause, cpu->next_rip, 0, false, 0);
		cpu->next_rip = cpu->rip;
		return false;
	}
	cpu_raise_error(cpu, VECTOR_GP, selector_error(selector));
}

// ---- JMP ----

static void jmp_gate(struct cpu *cpu, u16 selector, u64 raw)
{
	struct call_gate gate;
	struct segment cs;
	u64 code;

	if (!is_call_gate(cpu, selector, raw, TASK_JMP))
		return;
	read_call_gate(cpu, selector, raw, &gate);
	code = gate_code(cpu, &gate);
	if (!descriptor_is_conforming(code) && descriptor_dpl(code) != cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, selector_error(gate.selector));
	if (!descriptor_present(code))
		cpu_raise_error(cpu, VECTOR_NP, selector_error(gate.selector));
	load_code(cpu, gate.selector, code, cpu->cpl, &cs);
	far_check_rip(cpu, &cs, gate.offset);
	cet_check_width(cpu, far_is_64bit(cpu, &cs));
	commit_code(cpu, &cs, cpu->cpl, gate.offset);
}

// Where a far JMP or CALL leads: to CS:offset (not checked yet) without a change of privilege. False: `raw`
// is the system descriptor that the selector names instead.
struct far_target {
	struct segment cs;
	u16 selector;
	u64 offset, raw;
};

static bool direct_target(struct cpu *cpu, const struct insn *insn, struct far_target *target)
{
	struct segment *cs = &target->cs;

	*cs = cpu->seg[SEG_CS];
	target->selector = read_pointer(cpu, insn, &target->offset);
	if (!cpu_protected(cpu) || cpu_v86(cpu)) {
		if (target->offset > cs->limit)
			cpu_gp0(cpu);
		segment_load_real(cs, SEG_CS, target->selector, cpu_v86(cpu));
		return true;
	}
	target->raw = read_descriptor(cpu, target->selector);
	if (!descriptor_is_segment(target->raw))
		return false;
	if (!descriptor_is_code(target->raw))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(target->selector));
	direct_code(cpu, target->selector, target->raw, cs);
	return true;
}

void far_jmp(struct cpu *cpu, const struct insn *insn)
{
	struct far_target target;

	if (!direct_target(cpu, insn, &target)) {
		jmp_gate(cpu, target.selector, target.raw);
		return;
	}
	far_check_rip(cpu, &target.cs, target.offset);
	cet_check_width(cpu, far_is_64bit(cpu, &target.cs));
	commit_code(cpu, &target.cs, cpu->cpl, target.offset);
}

// ---- CALL ----

static void put_slot(u8 *frame, unsigned n, unsigned slot, u64 value)
{
	u8 *at = frame + n * slot;

	if (slot == 8)
		*(u64 *)at = value;
	else if (slot == 4)
		*(u32 *)at = value;
	else
		*(u16 *)at = value;
}

// CALL to the same privilege level: CS and RIP onto the current stack, before RIP is checked.
static void call_same(struct cpu *cpu, const struct segment *cs, u64 offset, unsigned slot)
{
	u16 old_cs = cpu->seg[SEG_CS].selector;
	bool real = !cpu_protected(cpu) || cpu_v86(cpu);
	struct stack stack;
	u8 frame[16];

	put_slot(frame, 0, slot, cpu->next_rip);
	put_slot(frame, 1, slot, old_cs);
	stack_current(cpu, &stack);
	stack_push(cpu, &stack, frame, 2 * slot, slot);
	far_check_rip(cpu, cs, offset);
	if (!real)
		cet_enter(cpu, cpu->cpl, 0, far_is_64bit(cpu, cs), old_cs, current_lip(cpu), 0);
	stack_commit(cpu, &stack);
	commit_code(cpu, cs, cpu->cpl, offset);
}

// SS:ESP of an inner level out of a 16- or 32-bit TSS; the selector is returned.
static u16 tss_stack(struct cpu *cpu, unsigned cpl, u32 ext, u32 *sp)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	bool wide = tr->attributes & 8;
	unsigned offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;

	if (offset + (wide ? 5 : 3) > tr->limit)
		cpu_raise_error(cpu, VECTOR_TS, selector_error(tr->selector) | ext);
	*sp = system_read(cpu, tr->base + offset, wide ? 4 : 2);
	return system_read(cpu, tr->base + offset + (wide ? 4 : 2), 2);
}

void far_inner_stack(struct cpu *cpu, unsigned cpl, u32 ext, struct stack *stack)
{
	struct segment ss;
	u16 selector;
	u32 sp;

	selector = tss_stack(cpu, cpl, ext, &sp);
	if (selector_null(selector))
		cpu_raise_error(cpu, VECTOR_TS, ext);
	segment_check_stack(cpu, selector, cpl, VECTOR_TS, ext, &ss);
	stack_new(cpu, stack, &ss, sp, cpl, false, selector_error(selector) | ext);
}

// The stack of an inner level in long mode: no segment, RSP of the 64-bit TSS.
static void inner_stack_long(struct cpu *cpu, unsigned cpl, struct stack *stack)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	unsigned offset = 4 + 8 * cpl;
	struct segment ss;

	if (offset + 7 > tr->limit)
		cpu_raise_error(cpu, VECTOR_TS, selector_error(tr->selector));
	segment_null(&ss, cpl, cpl);
	stack_new(cpu, stack, &ss, system_read8(cpu, tr->base + offset), cpl, true, 0);
	if (!cpu_canonical(cpu, stack->sp))
		cpu_raise_error(cpu, VECTOR_SS, 0);
}

// CALL through a gate to a more privileged level: parameters are copied to the inner stack.
static void call_inner(struct cpu *cpu, const struct call_gate *gate, const struct segment *cs,
		       unsigned cpl)
{
	u16 old_cs = cpu->seg[SEG_CS].selector;
	unsigned slot = gate->slot, params = gate->params;
	struct stack old, stack;
	u8 frame[8 * 4 + 31 * 4];

	if (slot == 8)
		inner_stack_long(cpu, cpl, &stack);
	else
		far_inner_stack(cpu, cpl, 0, &stack);
	far_check_rip(cpu, cs, gate->offset);
	stack_current(cpu, &old);
	put_slot(frame, 0, slot, cpu->next_rip);
	put_slot(frame, 1, slot, old_cs);
	if (params)
		stack_peek(cpu, &old, 0, frame + 2 * slot, params * slot);
	put_slot(frame, 2 + params, slot, cpu->gpr[RSP]);
	put_slot(frame, 3 + params, slot, cpu->seg[SEG_SS].selector);
	stack_push(cpu, &stack, frame, (4 + params) * slot, slot);
	cet_enter(cpu, cpl, 0, slot == 8, old_cs, current_lip(cpu), 0);

	cpu->seg[SEG_SS] = stack.ss;
	stack_commit(cpu, &stack);
	commit_code(cpu, cs, cpl, gate->offset);
}

static void call_gate(struct cpu *cpu, u16 selector, u64 raw)
{
	struct call_gate gate;
	struct segment cs;
	unsigned cpl;
	u64 code;

	if (!is_call_gate(cpu, selector, raw, TASK_CALL))
		return;
	read_call_gate(cpu, selector, raw, &gate);
	code = gate_code(cpu, &gate);
	if (!descriptor_present(code))
		cpu_raise_error(cpu, VECTOR_NP, selector_error(gate.selector));
	cpl = descriptor_is_conforming(code) ? cpu->cpl : descriptor_dpl(code);
	load_code(cpu, gate.selector, code, cpl, &cs);
	if (cpl < cpu->cpl) {
		call_inner(cpu, &gate, &cs, cpl);
		return;
	}
	call_same(cpu, &cs, gate.offset, gate.slot);
}

void far_call(struct cpu *cpu, const struct insn *insn)
{
	struct far_target target;

	if (direct_target(cpu, insn, &target))
		call_same(cpu, &target.cs, target.offset, insn->operand_size);
	else
		call_gate(cpu, target.selector, target.raw);
}

// ---- RET ----

unsigned far_return_code(struct cpu *cpu, u16 selector, struct segment *cs)
{
	u32 error = selector_error(selector);
	unsigned rpl = selector & 3, dpl;
	u64 raw = read_descriptor(cpu, selector);

	dpl = descriptor_dpl(raw);
	if (!descriptor_is_code(raw) || rpl < cpu->cpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	if (descriptor_is_conforming(raw) ? dpl > rpl : dpl != rpl)
		cpu_raise_error(cpu, VECTOR_GP, error);
	check_code_size(cpu, selector, raw, false);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	load_code(cpu, selector, raw, rpl, cs);
	return rpl;
}

void far_return_stack(struct cpu *cpu, u16 selector, unsigned cpl, bool wide, struct segment *ss)
{
	if (selector_null(selector)) {
		if (!wide || cpl == 3 || (selector & 3u) != cpl)
			cpu_gp0(cpu);
		segment_null(ss, selector, cpl);
		return;
	}
	segment_check_stack(cpu, selector, cpl, VECTOR_GP, 0, ss);
}

// Bytes to release from the outer stack too; its pointer has the width the new SS gives it.
static void release_outer(struct cpu *cpu, struct stack *outer, unsigned bytes)
{
	outer->sp = (outer->sp + bytes) & outer->mask;
	stack_commit(cpu, outer);
}

void far_ret(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size, cpl;
	unsigned release = insn->op[0].kind == OPERAND_IMM ? (u16)insn->imm : 0;
	struct segment cs = cpu->seg[SEG_CS], ss;
	struct stack stack, outer;
	u64 rip, lip, outer_sp;
	u16 selector, outer_ss;
	bool wide;

	stack_current(cpu, &stack);
	rip = stack_pop(cpu, &stack, size);
	selector = stack_pop(cpu, &stack, size);
	if (!cpu_protected(cpu) || cpu_v86(cpu)) {
		if (rip > cs.limit)
			cpu_gp0(cpu);
		segment_load_real(&cs, SEG_CS, selector, cpu_v86(cpu));
		stack.sp = (stack.sp + release) & stack.mask;
		stack_commit(cpu, &stack);
		cpu->seg[SEG_CS] = cs;
		cpu->next_rip = rip;
		cpu_mode_changed(cpu);
		return;
	}
	cpl = far_return_code(cpu, selector, &cs);
	wide = far_is_64bit(cpu, &cs);
	lip = wide ? rip : (u32)(cs.base + rip);
	stack.sp = (stack.sp + release) & stack.mask;
	if (cpl == cpu->cpl) {
		far_check_rip(cpu, &cs, rip);
		cet_return(cpu, cpl, wide, selector, lip, false);
		stack_commit(cpu, &stack);
	} else {
		outer_sp = stack_pop(cpu, &stack, size);
		outer_ss = stack_pop(cpu, &stack, size);
		far_return_stack(cpu, outer_ss, cpl, wide, &ss);
		far_check_rip(cpu, &cs, rip);
		cet_return(cpu, cpl, wide, selector, lip, false);
		stack_new(cpu, &outer, &ss, outer_sp, cpl, wide, 0);
		cpu->seg[SEG_SS] = ss;
		release_outer(cpu, &outer, release);
		segment_null_inner(cpu, cpl);
	}
	cpu->seg[SEG_CS] = cs;
	cpu->cpl = cpl;
	cpu->next_rip = rip;
	cpu_mode_changed(cpu);
}
