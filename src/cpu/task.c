// SPDX-License-Identifier: MIT
// Task switches through 16- and 32-bit TSSs.
// The order is the SDM's: checks, then the old state is saved, then the new state is loaded. From
// there on exceptions are the new task's: this is the one place where raising does not mean that
// nothing changed, and it happens only after every register has its new value.
// Known deviations: RF of the outgoing task's saved EFLAGS is not set for faults.
// SDM: "Task Management": "Task Switching", "Task-State Segment (TSS)"; "Control-flow Enforcement
// Technology (CET)" on task switches.
#include "cpu/task.h"

#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/segment.h"
#include "cpu/stack.h"
#include "cpu/system.h"

enum {
	TSS_LINK = 0, TSS32_CR3 = 0x1c, TSS32_EIP = 0x20, TSS32_LDT = 0x60, TSS32_TRAP = 0x64, TSS32_SSP = 0x68,
	TSS32_LIMIT = 0x67, TSS32_LIMIT_CET = 0x6b,
	TSS16_IP = 0x0e, TSS16_LDT = 0x2a, TSS16_LIMIT = 0x2b,
};

// The dynamic part of a TSS, in the order of both formats.
struct task_state {
	u32 eip, eflags, gpr[8];
	u16 seg[6]; // ES CS SS DS FS GS; the 16-bit TSS has the first four
	u16 ldt;
	u32 cr3, ssp;
	bool trap;
};

static void read_state(struct cpu *cpu, const struct segment *tss, bool wide, struct task_state *state)
{
	u64 at = tss->base + (wide ? TSS32_EIP : TSS16_IP);
	unsigned slot = wide ? 4 : 2;

	*state = (struct task_state){ 0 };
	state->eip = system_read(cpu, at, slot);
	state->eflags = system_read(cpu, at + slot, slot);
	for (unsigned i = 0; i < 8; i++)
		state->gpr[i] = system_read(cpu, at + (2 + i) * slot, slot);
	for (unsigned i = 0; i < (wide ? 6 : 4); i++)
		state->seg[i] = system_read(cpu, at + (10 + i) * slot, 2);
	state->ldt = system_read(cpu, tss->base + (wide ? TSS32_LDT : TSS16_LDT), 2);
	if (!wide)
		return;
	state->cr3 = system_read(cpu, tss->base + TSS32_CR3, 4);
	state->trap = system_read(cpu, tss->base + TSS32_TRAP, 1) & 1;
	if (cpu->cr4 & CR4_CET)
		state->ssp = system_read(cpu, tss->base + TSS32_SSP, 4);
}

static void write_system(struct cpu *cpu, u64 linear, u32 value, unsigned size)
{
	mem_write_n(cpu, (u32)linear, value, size, ACCESS_WRITE | ACCESS_IMPLICIT);
}

static void save_state(struct cpu *cpu, u32 eip, u32 eflags, u32 ext)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	bool wide = tr->attributes & 8;
	unsigned slot = wide ? 4 : 2;
	u64 at = tr->base + (wide ? TSS32_EIP : TSS16_IP);

	if (tr->limit < (wide ? 0x5fu : 0x29u))
		cpu_raise_error(cpu, VECTOR_TS, selector_error(tr->selector) | ext);
	mem_probe_write(cpu, (u32)at, slot * (wide ? 16 : 14), ACCESS_WRITE | ACCESS_IMPLICIT);
	write_system(cpu, at, eip, slot);
	write_system(cpu, at + slot, eflags, slot);
	for (unsigned i = 0; i < 8; i++)
		write_system(cpu, at + (2 + i) * slot, cpu->gpr[i], slot);
	for (unsigned i = 0; i < (wide ? 6 : 4); i++)
		write_system(cpu, at + (10 + i) * slot, cpu->seg[i].selector, 2);
}

// The new TSS's own descriptor: present and large enough.
static void check_tss(struct cpu *cpu, u16 selector, u64 raw, bool wide, u32 ext)
{
	u32 error = selector_error(selector) | ext, limit = wide ? TSS32_LIMIT : TSS16_LIMIT;

	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	if (cpu->cr4 & CR4_CET) {
		// Only the 32-bit TSS has a place for SSP.
		if (!wide)
			cpu_raise_error(cpu, VECTOR_TS, error);
		limit = TSS32_LIMIT_CET;
	}
	if (descriptor_limit(raw) < limit)
		cpu_raise_error(cpu, VECTOR_TS, error);
}

// ---- segments of the new task: exceptions are the new task's ----

static void load_ldt(struct cpu *cpu, u16 selector, u32 ext)
{
	u32 error = selector_error(selector) | ext;
	u64 raw;

	if (selector_null(selector))
		return;
	if (selector & 4 || !descriptor_read(cpu, selector, &raw) || descriptor_is_segment(raw) ||
	    descriptor_type(raw) != TYPE_LDT || !descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_TS, error);
	segment_from_descriptor(&cpu->seg[SEG_LDTR], selector, raw);
}

static void load_task_code(struct cpu *cpu, u16 selector, u32 ext)
{
	u32 error = selector_error(selector) | ext;
	unsigned rpl = selector & 3;
	u64 raw;

	if (selector_null(selector) || !descriptor_read(cpu, selector, &raw) || !descriptor_is_code(raw))
		cpu_raise_error(cpu, VECTOR_TS, error);
	if (descriptor_is_conforming(raw) ? descriptor_dpl(raw) > rpl : descriptor_dpl(raw) != rpl)
		cpu_raise_error(cpu, VECTOR_TS, error);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(&cpu->seg[SEG_CS], selector, raw);
}

static void load_task_data(struct cpu *cpu, enum seg seg, u16 selector, u32 ext)
{
	u32 error = selector_error(selector) | ext;
	unsigned type, dpl;
	u64 raw;

	if (selector_null(selector))
		return;
	if (!descriptor_read(cpu, selector, &raw) || !descriptor_is_segment(raw))
		cpu_raise_error(cpu, VECTOR_TS, error);
	type = descriptor_type(raw);
	dpl = descriptor_dpl(raw);
	if ((type & (SEG_CODE | SEG_RW)) == SEG_CODE)
		cpu_raise_error(cpu, VECTOR_TS, error);
	if ((type & (SEG_CODE | SEG_CONFORMING)) != (SEG_CODE | SEG_CONFORMING) &&
	    ((selector & 3u) > dpl || cpu->cpl > dpl))
		cpu_raise_error(cpu, VECTOR_TS, error);
	if (!descriptor_present(raw))
		cpu_raise_error(cpu, VECTOR_NP, error);
	descriptor_mark_accessed(cpu, selector, &raw);
	segment_from_descriptor(&cpu->seg[seg], selector, raw);
}

static void load_segments(struct cpu *cpu, const struct task_state *state, u32 ext)
{
	static const u8 data[] = { SEG_DS, SEG_ES, SEG_FS, SEG_GS };

	load_ldt(cpu, state->ldt, ext);
	if (cpu_v86(cpu)) {
		for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
			segment_load_real(&cpu->seg[seg], seg, state->seg[seg], true);
		return;
	}
	load_task_code(cpu, state->seg[SEG_CS], ext);
	if (selector_null(state->seg[SEG_SS]))
		cpu_raise_error(cpu, VECTOR_TS, selector_error(state->seg[SEG_SS]) | ext);
	segment_check_stack(cpu, state->seg[SEG_SS], cpu->cpl, VECTOR_TS, ext, &cpu->seg[SEG_SS]);
	for (unsigned i = 0; i < sizeof(data); i++)
		load_task_data(cpu, data[i], state->seg[data[i]], ext);
}

// Registers of the new task, with segment registers named but not loaded.
static void load_registers(struct cpu *cpu, const struct task_state *state, bool wide)
{
	for (unsigned i = 0; i < 8; i++)
		cpu->gpr[i] = wide ? state->gpr[i] : 0xffff0000 | state->gpr[i];
	cpu_set_rflags(cpu, state->eflags & FLAGS_DEFINED);
	cpu->rip = cpu->next_rip = state->eip;
	cpu->cpl = cpu_v86(cpu) ? 3 : state->seg[SEG_CS] & 3;
	for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
		if (seg == SEG_CS) {
			cpu->seg[seg].selector = state->seg[seg];
			continue;
		}
		segment_null(&cpu->seg[seg], state->seg[seg], seg == SEG_SS ? cpu->cpl : 0);
	}
	segment_null(&cpu->seg[SEG_LDTR], state->ldt, 0);
}

static void push_error(struct cpu *cpu, bool wide, u32 error, u32 ext)
{
	struct stack stack;

	stack_current(cpu, &stack);
	stack.error = ext;
	stack_push(cpu, &stack, &error, wide ? 4 : 2, wide ? 4 : 2);
	stack_commit(cpu, &stack);
}

void task_switch(struct cpu *cpu, u16 selector, u64 raw, enum task_cause cause, u64 return_rip, u32 ext,
		 bool has_error, u32 error)
{
	bool wide = descriptor_type(raw) & 8;
	bool nested = cause == TASK_CALL || cause == TASK_EVENT;
	u16 old_tss = cpu->seg[SEG_TR].selector;
	u32 tss_error = selector_error(selector) | ext, eflags = cpu_rflags(cpu);
	struct cet_task cet;
	struct task_state state;
	struct segment tss;
	u64 old_raw;

	check_tss(cpu, selector, raw, wide, ext);
	cet_task_check(cpu, cause, selector_error(old_tss) | ext);
	segment_from_descriptor(&tss, selector, raw);
	read_state(cpu, &tss, wide, &state);
	if (nested)
		mem_probe_write(cpu, (u32)(tss.base + TSS_LINK), 2, ACCESS_WRITE | ACCESS_IMPLICIT);
	save_state(cpu, return_rip, cause == TASK_IRET ? eflags & ~FLAG_NT : eflags, ext);

	if (!nested && descriptor_read(cpu, old_tss, &old_raw))
		descriptor_mark_busy(cpu, old_tss, old_raw, false);
	if (nested) {
		write_system(cpu, tss.base + TSS_LINK, old_tss, 2);
		state.eflags |= FLAG_NT;
	}
	if (cause != TASK_IRET)
		descriptor_mark_busy(cpu, selector, raw, true);
	cet_task_leave(cpu, cause, state.eflags & FLAG_VM ? 3 : state.seg[SEG_CS] & 3,
		       cpu->seg[SEG_CS].selector, (u32)(cpu->seg[SEG_CS].base + return_rip), &cet);

	// From here on this is the new task.
	tss.attributes |= TSS_BUSY;
	cpu->seg[SEG_TR] = tss;
	cpu->cr0 |= CR0_TS;
	cpu->dr7 &= ~(u64)(DR7_LOCAL | DR7_LE);
	cpu->interrupt_shadow = cpu->mov_ss_shadow = false;
	load_registers(cpu, &state, wide);
	cpu_mode_changed(cpu);
	if (wide && cpu->cr0 & CR0_PG && cpu_set_cr3(cpu, state.cr3, BY_GUEST))
		cpu_raise_error(cpu, VECTOR_GP, ext);
	load_segments(cpu, &state, ext);
	cpu_mode_changed(cpu);
	if (cpu->cr4 & CR4_CET) {
		if (cpu_v86(cpu) && cpu->u_cet & (CET_SHSTK_EN | CET_ENDBR_EN))
			cpu_raise_error(cpu, VECTOR_TS, tss_error);
		if (!cpu_v86(cpu))
			cet_task_enter(cpu, &cet, state.ssp, tss_error);
		if (cause != TASK_IRET)
			cet_track_indirect(cpu, cpu->cpl, false, false);
	}
	if (state.trap)
		debug_trap(cpu, DR6_BT);
	if (has_error)
		push_error(cpu, wide, error, ext);
	if (cpu->rip > cpu->seg[SEG_CS].limit)
		cpu_raise_error(cpu, VECTOR_GP, ext);
	cpu_mode_changed(cpu);
}

void task_switch_gate(struct cpu *cpu, u64 gate, enum task_cause cause, u64 return_rip, u32 ext,
		      bool has_error, u32 error)
{
	u16 selector = gate >> 16;
	u64 raw;

	if (selector & 4 || selector_null(selector) || !descriptor_read(cpu, selector, &raw) ||
	    descriptor_is_segment(raw) ||
	    (descriptor_type(raw) != TYPE_TSS16 && descriptor_type(raw) != TYPE_TSS32))
		cpu_raise_error(cpu, VECTOR_GP, selector_error(selector) | ext);
	task_switch(cpu, selector, raw, cause, return_rip, ext, has_error, error);
}
