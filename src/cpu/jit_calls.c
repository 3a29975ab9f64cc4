// SPDX-License-Identifier: MIT
// What translated code calls: instructions done in C, jumps to where no code is known yet, memory that the
// TLB check does not answer for, and faults of the host in translated code.
//
// Each call comes with a record that says which guest instruction it is from; locate() makes cpu->rip and
// cpu->next_rip of it, so that C finds the state at an instruction boundary. Whatever raises an
// exception unwinds to cpu_run().
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/fpu.h"
#include "cpu/guest_access.h"
#include "cpu/jit_translate.h"
#include "cpu/mem.h"
#include "cpu/operand.h"
#include "cpu/system.h"
#include "cpu/transfer.h"

#include <string.h>

#ifdef CETKVM_SANITIZED
#define FROM_TRANSLATED __attribute__((no_sanitize("address", "undefined", "thread"), target("general-regs-only")))
#else
#define FROM_TRANSLATED
#endif

static void locate(struct cpu *cpu, unsigned page_offset, unsigned length)
{
	cpu->rip = cpu->rip_base + page_offset;
	cpu->next_rip = cpu->rip + length;
	// IP does not wrap around in 16-bit code: the limit of CS stops it, or EIP goes on above 64 KiB.
	if (!cpu_64bit(cpu)) {
		cpu->rip = (u32)cpu->rip;
		cpu->next_rip = (u32)cpu->next_rip;
	}
}

static void call_handler(struct cpu *cpu, const struct call_record *r)
{
	locate(cpu, r->page_offset, r->length);
	if (r->unload)
		cpu_fpu_unload(cpu);
	cpu->jit->slow_active = 0;
	jit_cook_flags(cpu, r->recipe);
	r->handler(cpu, &r->insn);
}

FROM_TRANSLATED u64 jit_c_call(struct cpu *cpu, u64 record)
{
	ENTER_C(cpu);
	call_handler(cpu, &cpu->jit->calls[record]);
	LEAVE_C(cpu);
	return 0;
}

FROM_TRANSLATED u64 jit_c_call_end(struct cpu *cpu, u64 record)
{
	ENTER_C(cpu);
	call_handler(cpu, &cpu->jit->calls[record]);
	cpu->rip = cpu->next_rip;
	if ((cpu->rflags & FLAG_RF) && !debug_enabled(cpu))
		cpu->rflags &= ~(u64)FLAG_RF;
	if (cpu->irq_wait && (cpu->rflags & FLAG_IF))
		cpu_request(cpu, REQ_IRQ);
	if (cpu->rflags & FLAG_TF || cpu->interrupt_shadow || cpu->halted)
		cpu_request(cpu, REQ_EVENT);
	return jit_go_on(cpu);
}

FROM_TRANSLATED u64 jit_c_link(struct cpu *cpu, u64 page_offset, u64 hole)
{
	struct jit *jit = cpu->jit;
	u32 flushes = jit->stat_flushes, mode;
	struct block *b;

	ENTER_C(cpu);
	locate(cpu, page_offset, 0);
	if (jit_must_leave(cpu))
		return 0;
	mode = jit_mode(cpu);
	b = jit_get_block(cpu, mode);
	// The jump may be patched if the block it is in is still there.
	if (jit->stat_flushes == flushes && !b->gpa2)
		e_fill_hole(jit->rw + hole, jit->rw + b->code);
	LEAVE_C(cpu);
	return jit_block_entry(jit, b);
}

// The target of a near branch is no address: the fault is the branch's, undone.
static void check_target(struct cpu *cpu, u64 site, u64 rip)
{
	unsigned kind = site >> 12 & 15, pops = site >> 16, slot = cpu_64bit(cpu) ? 8 : 4;
	bool bad = cpu_64bit(cpu) ? !cpu_canonical(cpu, rip) : rip > cpu->seg[SEG_CS].limit;
	u64 delta = kind == SITE_RET ? -(u64)pops : kind == SITE_JMP ? 0 : pops;

	if (!bad)
		return;
	if (kind == SITE_NEXT) {
		cpu->rip = rip;
		cpu_gp0(cpu);
	}
	locate(cpu, site & 0xfff, 0);
	if (kind == SITE_LOOP)
		gpr_write(cpu, RCX, pops, cpu->gpr[RCX] + 1);
	else if (cpu_64bit(cpu))
		cpu->gpr[RSP] += delta;
	else if (cpu->seg[SEG_SS].attributes & SEG_DB)
		cpu->gpr[RSP] = (u32)(cpu->gpr[RSP] + delta);
	else
		*(u16 *)&cpu->gpr[RSP] += delta;
	if (kind == SITE_CALL)
		cpu->ssp += slot;
	else if (kind == SITE_RET && cet_shadow_stack_enabled(cpu, cpu->cpl))
		cpu->ssp -= slot;
	cpu_gp0(cpu);
}

FROM_TRANSLATED u64 jit_c_lookup(struct cpu *cpu, u64 site, u64 rip)
{
	ENTER_C(cpu);
	check_target(cpu, site, rip);
	cpu->rip = rip;
	return jit_go_on(cpu);
}

FROM_TRANSLATED u64 jit_c_lookup_indirect(struct cpu *cpu, u64 site, u64 rip)
{
	ENTER_C(cpu);
	check_target(cpu, site, rip);
	locate(cpu, site & 0xfff, 0);
	cpu->last_branch_from = cpu->rip;
	cet_track_indirect(cpu, cpu->cpl, true, false);
	cpu_mode_changed(cpu);
	cpu->rip = rip;
	return jit_go_on(cpu);
}

// What comes before any fault of the memory operand: an x87 exception that is pending.
static void check_x87_pending(struct cpu *cpu, const struct mem_record *r)
{
	u16 status;

	if (!r->x87 || !(cpu->cr0 & CR0_NE))
		return;
	if (cpu->fpu_loaded)
		__asm__ volatile("fnstsw %0" : "=m"(status));
	else
		status = fpu_get16(cpu, FX_FSW);
	if (status & 0x80) {
		cpu_fpu_unload(cpu); // as in jit_c_host_fault()
		cpu_raise(cpu, VECTOR_MF);
	}
}

// Alignment comes before paging, before a stack address that is not canonical, and before limits.
static void check_required_alignment(struct cpu *cpu, const struct mem_record *r, u64 linear)
{
	if (r->align && (linear & (r->align - 1u)))
		cpu_gp0(cpu);
}

FROM_TRANSLATED u64 jit_c_seg_linear(struct cpu *cpu, u64 record, u64 offset)
{
	const struct mem_record *r = &cpu->jit->mems[record];
	struct insn insn = { .mem_seg = r->seg, .mem_base = 0xff, .mem_index = 0xff, .mem_disp = offset,
			     .address_size = 4, .length = r->length };
	u64 linear;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	check_x87_pending(cpu, r);
	check_required_alignment(cpu, r, segment_linear_unchecked(cpu, r->seg, offset));
	linear = insn_linear(cpu, &insn, r->size, r->access & ACCESS_WRITE);
	LEAVE_C(cpu);
	return linear;
}

static void check_canonical(struct cpu *cpu, const struct mem_record *r, u64 linear)
{
	if (!cpu_64bit(cpu)) {
		// A flat segment ends at 4 GiB: nothing wraps around there. Others were checked before.
		const struct segment *s = &cpu->seg[r->seg];

		if (linear + r->size - 1 <= 0xffffffff || (r->access & ACCESS_SS) || s->base || s->limit != 0xffffffff)
			return;
	} else if (cpu_canonical(cpu, linear) && cpu_canonical(cpu, linear + r->size - 1)) {
		return;
	}
	if (r->ss)
		cpu_raise_error(cpu, VECTOR_SS, 0);
	cpu_gp0(cpu);
}

FROM_TRANSLATED u64 jit_c_mem_slow(struct cpu *cpu, u64 record, u64 linear)
{
	const struct mem_record *r = &cpu->jit->mems[record];
	void *host;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	cpu->jit->stat_mem_slow++;
	jit_cook_flags(cpu, r->recipe);
	check_x87_pending(cpu, r);
	check_required_alignment(cpu, r, linear);
	check_canonical(cpu, r, linear);
	host = mem_host(cpu, linear, r->size, r->access & 0xff);
	if (!host) {
		cpu->jit->slow_once = true;
		cpu_unwind(cpu);
	}
	LEAVE_C(cpu);
	return (u64)host;
}

FROM_TRANSLATED u64 jit_c_slow_begin(struct cpu *cpu, u64 record, u64 linear)
{
	struct jit *jit = cpu->jit;
	const struct mem_record *r = &jit->mems[record];
	unsigned access = r->access & 0xff;
	struct slow_access *s;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	check_x87_pending(cpu, r);
	check_required_alignment(cpu, r, linear);
	check_canonical(cpu, r, linear);
	BUG_ON(jit->slow_active == 4);
	s = &jit->slow[jit->slow_active++];
	s->linear = linear;
	s->record = record;
	if ((jit_mode(cpu) & MODE_ALIGN) && !(access & ACCESS_SS) && r->size <= 8 && (linear & (r->size - 1)) &&
	    (r->size & (r->size - 1)) == 0)
		cpu_raise_error(cpu, VECTOR_AC, 0);
	u8 *buffer = s->buffer + (linear & 63);
	if (access & ACCESS_WRITE)
		mem_probe_write(cpu, linear, r->size, access);
	if (r->locked && (linear & 0xfff) + r->size > 4096)
		jit_split_lock(jit);
	// An x87 store that raises an unmasked exception writes nothing: let it leave what is there.
	if (!(access & ACCESS_WRITE) || (r->access & 0x100) || r->x87)
		mem_read(cpu, linear, buffer, r->size, access & ~(unsigned)ACCESS_WRITE);
	if (!jit->saved_valid) {
		memcpy(jit->saved_gpr, cpu->gpr, sizeof(jit->saved_gpr));
		jit->saved_arith = cpu->arith;
		jit->saved_valid = true;
	}
	LEAVE_C(cpu);
	return (u64)buffer;
}

FROM_TRANSLATED u64 jit_c_slow_end(struct cpu *cpu, u64 record)
{
	struct jit *jit = cpu->jit;
	const struct mem_record *r = &jit->mems[record];
	struct slow_access *s = NULL;
	u64 gpr[16];
	u32 arith;

	ENTER_C(cpu);
	locate(cpu, r->page_offset, r->length);
	for (unsigned i = 0; i < jit->slow_active; i++)
		if (jit->slow[i].record == record)
			s = &jit->slow[i];
	BUG_ON(!s);
	// The write may leave for user space: then the instruction has not happened yet.
	memcpy(gpr, cpu->gpr, sizeof(gpr));
	arith = cpu->arith;
	memcpy(cpu->gpr, jit->saved_gpr, sizeof(gpr));
	cpu->arith = jit->saved_arith;
	mem_write(cpu, s->linear, s->buffer + (s->linear & 63), r->size, r->access & 0xff);
	jit_split_unlock(jit);
	memcpy(cpu->gpr, gpr, sizeof(gpr));
	cpu->arith = arith;
	LEAVE_C(cpu);
	return 0;
}

// A signal in translated code, as the guest's or the client's fault. Never returns.
FROM_TRANSLATED u64 jit_c_host_fault(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	struct block *b = jit_block_of_pc(jit, jit->fault_pc);
	struct point *p = b ? jit_point_of_pc(jit, b, jit->fault_pc) : NULL;

	ENTER_C(cpu);
	BUG_ON(!p);
	locate(cpu, p->page_offset, p->length);
	if (p->flags >> POINT_SPILLED_SHIFT)
		for (unsigned g = 0; g < 16; g++)
			if (jit_home[g] == p->flags >> POINT_SPILLED_SHIFT)
				cpu->gpr[g] = cpu->temp[3];
	jit_cook_flags(cpu, p->recipe);
	if (p->flags & POINT_FLAGS_IN_HOST)
		cpu_set_arith(cpu, jit->fault_flags);
	switch (jit->fault_trap) {
	case VECTOR_DE:
		cpu_raise(cpu, VECTOR_DE);
		break;
	case VECTOR_UD:
		cpu_ud(cpu);
		break;
	case VECTOR_GP:
		cpu_gp0(cpu);
		break;
	case VECTOR_MF:
		cpu_fpu_unload(cpu); // now, while FIP's host address can be told to be which guest address
		cpu_raise(cpu, VECTOR_MF);
		break;
	case VECTOR_XM:
		cpu_raise(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? VECTOR_XM : VECTOR_UD);
		break;
	default:
		if (jit->fault_address < 4096) { // see tlb_forget_stack(): the slow path says which fault
			jit->slow_once = true;
			cpu_unwind(cpu);
		}
		cpu->fault_hva = jit->fault_address;
		cpu_abort(cpu, CPU_EXIT_FAULT);
	}
	return 0;
}

u64 jit_guest_rip_of_host(struct cpu *cpu, u64 host_pc)
{
	struct block *b = jit_block_of_pc(cpu->jit, host_pc);
	struct point *p = b ? jit_point_of_pc(cpu->jit, b, host_pc) : NULL;

	return p ? cpu->rip_base + p->page_offset : 0;
}
