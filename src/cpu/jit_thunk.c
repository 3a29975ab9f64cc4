// SPDX-License-Identifier: MIT
// The seams between C and translated code, made once per vCPU at the start of its code cache.
//
// Translated code runs with RSP = struct cpu (below it lies unused stack for signal frames). C runs
// on the thread's own stack, at cpu->host_rsp, whose top word holds the struct cpu's address. Every
// way into C first stores the guest's registers, so that C sees the architectural state.
#include "base/log.h"
#include "cpu/jit.h"

#define OFF(field) ((int)offsetof(struct cpu, field))
#define OFF_GPR(n) (OFF(gpr) + 8 * (int)(n))

const u8 jit_home[16] = {
	[RAX] = H_R10, [RCX] = H_RCX, [RDX] = H_RDX, [RBX] = H_RBX, [RSP] = H_R15, [RBP] = H_RBP,
	[RSI] = H_RSI, [RDI] = H_R11, [R8] = H_R8,   [R9] = H_R9,   [R10] = H_NONE, [R11] = H_NONE,
	[R12] = H_R12, [R13] = H_R13, [R14] = H_R14, [R15] = H_NONE,
};

// `bias`: RSP is that much below struct cpu.
static void save_registers(struct emit *e, int bias)
{
	for (unsigned g = 0; g < 16; g++)
		if (jit_home[g] != H_NONE)
			e_store(e, jit_home[g], OFF_GPR(g) + bias);
}

static void load_registers(struct emit *e)
{
	for (unsigned g = 0; g < 16; g++)
		if (jit_home[g] != H_NONE)
			e_load(e, jit_home[g], OFF_GPR(g));
}

static void call_c(struct emit *e, void *function)
{
	e_mov_imm(e, H_RAX, (u64)function);
	e2(e, 0xff, 0xd0); // call rax
}

static void to_host_stack(struct emit *e) // RDI = struct cpu
{
	e_op_rm(e, true, 0x8b, H_RSP, H_RDI, OFF(host_rsp));
}

static void to_cpu(struct emit *e) // RSP = struct cpu
{
	e_op_rm(e, true, 0x8b, H_RSP, H_RSP, 0);
}

static const u8 callee_saved[] = { H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15 };

static void leave(struct emit *e) // on the host stack, RAX = result of enter()
{
	e1(e, 0x58 | H_RDI);
	for (int i = sizeof(callee_saved) - 1; i >= 0; i--) {
		e_rex(e, false, 0, 0, callee_saved[i], false);
		e1(e, 0x58 | (callee_saved[i] & 7));
	}
	e1(e, 0xc3);
}

static const u8 *make_enter(struct emit *e)
{
	const u8 *start = e_rx(e);

	for (unsigned i = 0; i < sizeof(callee_saved); i++) {
		e_rex(e, false, 0, 0, callee_saved[i], false);
		e1(e, 0x50 | (callee_saved[i] & 7));
	}
	e1(e, 0x50 | H_RDI);
	e_op_rm(e, true, 0x89, H_RSP, H_RDI, OFF(host_rsp));
	e_mov_rr(e, H_RSP, H_RDI);
	e_store(e, H_RSI, OFF(jit_return));
	load_registers(e);
	e1(e, 0xff); // jmp [jit_return]
	e_modrm_mem(e, 4, H_RSP, OFF(jit_return));
	return start;
}

// Jumped to with EAX = result.
static const u8 *make_exit(struct emit *e)
{
	const u8 *start = e_rx(e);

	save_registers(e, 0);
	e_mov_rr(e, H_RDI, H_RSP);
	to_host_stack(e);
	leave(e);
	return start;
}

// Called with EAX = first argument, RDI = second. Comes back to the caller with the C function's
// result in RDI.
static const u8 *make_call(struct emit *e, void *function)
{
	const u8 *start = e_rx(e);

	save_registers(e, 8);
	e_mov_rr(e, H_RDX, H_RDI);
	e_mov32_rr(e, H_RSI, H_RAX);
	e_lea(e, true, H_RDI, H_RSP, 8);
	to_host_stack(e);
	call_c(e, function);
	to_cpu(e);
	e_mov_rr(e, H_RDI, H_RAX);
	load_registers(e);
	e_lea(e, true, H_RSP, H_RSP, -8);
	e1(e, 0xc3);
	return start;
}

// Jumped to with EAX, RDI = arguments of the C function, which returns where to go on, or 0.
static const u8 *make_goto(struct emit *e, void *function)
{
	const u8 *start = e_rx(e);
	u8 *hole;

	save_registers(e, 0);
	e_mov_rr(e, H_RDX, H_RDI);
	e_mov32_rr(e, H_RSI, H_RAX);
	e_mov_rr(e, H_RDI, H_RSP);
	to_host_stack(e);
	call_c(e, function);
	e_op_rr(e, true, 0x85, H_RAX, H_RAX);
	hole = e_jcc_hole(e, CC_E);
	to_cpu(e);
	e_store(e, H_RAX, OFF(jit_return));
	load_registers(e);
	e1(e, 0xff);
	e_modrm_mem(e, 4, H_RSP, OFF(jit_return));
	e_fill_hole(hole, e->p);
	leave(e);
	return start;
}

void jit_make_thunks(struct jit *jit)
{
	struct emit e = { jit->rw, jit->rw + 4096, jit->rx - jit->rw };

	jit->enter = make_enter(&e);
	jit->exit = make_exit(&e);
	jit->call_c = make_call(&e, jit_c_call);
	jit->mem_slow = make_call(&e, jit_c_mem_slow);
	jit->slow_begin = make_call(&e, jit_c_slow_begin);
	jit->slow_end = make_call(&e, jit_c_slow_end);
	jit->seg_linear = make_call(&e, jit_c_seg_linear);
	jit->call_c_end = make_goto(&e, jit_c_call_end);
	jit->link = make_goto(&e, jit_c_link);
	jit->lookup = make_goto(&e, jit_c_lookup);
	jit->lookup_indirect = make_goto(&e, jit_c_lookup_indirect);
	jit->host_fault = make_goto(&e, jit_c_host_fault);
	BUG_ON(e.p > e.end);
	jit->first = jit->next = jit->rw + 4096;
}
