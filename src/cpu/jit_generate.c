// SPDX-License-Identifier: MIT
// Instructions the translator has code of its own for: near control transfers with their
// shadow-stack and tracker work, stack operations, LEA, and the interrupt flag.
// SDM: "CALL", "RET", "JMP", "PUSH", "POP", "Shadow Stacks", "Indirect Branch Tracking".
//
// Order within an instruction: everything that may fault comes before anything is committed; RSP and
// SSP are changed last.
#include "base/log.h"
#include "cpu/jit_translate.h"
#include "cpu/mem.h"
#include "cpu/operand.h"
#include "cpu/transfer.h"

static struct emit *E(struct translation *t) { return &t->e; }

static s64 next_offset(struct translation *t) { return t->page_offset + t->zi.length; }

// ---- leaving the block ----

static void load_rip(struct translation *t, s64 page_offset) // T0 = RIP of that place
{
	e_load(E(t), H_T0, OFF(rip_base));
	// A branch over nearly 2 GiB is further than that from the page's start.
	for (; page_offset != (int)page_offset; page_offset -= page_offset < 0 ? -0x40000000 : 0x40000000)
		e_lea(E(t), true, H_T0, H_T0, page_offset < 0 ? -0x40000000 : 0x40000000);
	if (page_offset)
		e_lea(E(t), true, H_T0, H_T0, page_offset);
	if (!MODE_64(t->mode))
		e_mov32_rr(E(t), H_T0, H_T0);
}

void tr_leave(struct translation *t, s64 page_offset)
{
	tr_save_flags(t);
	load_rip(t, page_offset);
	e_store(E(t), H_T0, OFF(rip));
	e_mov_imm32(E(t), H_RAX, 1);
	e_jmp(E(t), t->jit->exit);
}

static bool jumps_inline(struct translation *t)
{
	if (t->mode & (MODE_SINGLE | MODE_SLOWMEM))
		return false;
	return MODE_64(t->mode) || ((t->mode & MODE_SIZE) == 1 && (t->mode & MODE_FLAT_CS));
}

// T0 = target RIP, flags saved.
void tr_goto(struct translation *t, u32 site, bool indirect)
{
	struct emit *e = E(t);
	unsigned class = MODE_CPL_OF(t->mode) == 3;
	bool ibt = indirect && (t->mode & MODE_IBT);
	int table = ibt ? OFF(jump_ibt[class][0]) : OFF(jump[class][0]);
	unsigned bits = ibt ? JUMP_IBT_BITS : JUMP_BITS;

	tr_save_flags(t);
	site = SITE(t->page_offset, (site >> 12 & 15), (site >> 16));
	// SUPPRESS changes what an indirect branch does to the tracker: C knows.
	if (!jumps_inline(t) || (ibt && (t->mode & MODE_SUPPRESS))) {
		e_mov_imm32(e, H_RAX, site);
		e_jmp(e, ibt ? t->jit->lookup_indirect : t->jit->lookup);
		return;
	}
	e2(e, 0x69, 0xc7); // imul eax, edi, K
	e4(e, 0x9e3779b1);
	e3(e, 0xc1, 0xe8, 32 - bits - 4); // shr eax
	e1(e, 0x25);			  // and eax
	e4(e, ((1u << bits) - 1) << 4);
	e2(e, 0x48, 0x3b); // cmp rdi, [jump.rip]
	e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, table);
	u8 *hole = e_jcc_hole(e, CC_NE);
	e_alu_imm(e, true, 4, H_T0, -4096);
	e_store(e, H_T0, OFF(rip_base));
	e1(e, 0xff); // jmp [jump.entry]
	e_modrm_sib(e, 4, H_RSP, H_RAX, 0, table + 8);
	tr_cold(t, (struct cold){ .kind = COLD_LOOKUP, .hole = hole, .record = site, .indirect = ibt });
}

// To a place given by its offset from the start of the current page. What is no flat segment has a limit
// that the target may be beyond: C looks.
void tr_goto_offset(struct translation *t, s64 target, u32 site)
{
	bool flat = MODE_64(t->mode) || (t->mode & MODE_FLAT_CS);

	tr_save_flags(t);
	if (flat && (t->mode & (MODE_SINGLE | MODE_SLOWMEM))) {
		tr_leave(t, target);
		return;
	}
	if (flat && target >= 0 && target < 4096) {
		u8 *hole = e_jmp_hole(E(t));

		tr_cold(t, (struct cold){ .kind = COLD_CHAIN, .hole = hole, .target = target });
		return;
	}
	load_rip(t, target);
	tr_goto(t, site, false);
}

// The target of a relative branch as an offset from the page's start. False: EIP is cut to 16 bits,
// so that the offset is not known.
static bool branch_target(struct translation *t, s64 *target)
{
	*target = next_offset(t) + t->op[0].imm.value.s;
	return MODE_64(t->mode) || t->zi.operand_width != 16;
}

static void goto_branch(struct translation *t, s64 target, bool known, u32 site)
{
	if (known) {
		tr_goto_offset(t, target, site);
		return;
	}
	tr_save_flags(t);
	load_rip(t, target);
	e3(E(t), 0x0f, 0xb7, 0xff); // movzx edi, di
	tr_goto(t, site, false);
}

static void end_goto(struct translation *t, s64 target, bool known, u32 site)
{
	goto_branch(t, target, known, site);
	t->done = true;
}

// Conditional jump in the host's terms: `hole` is taken when the guest's jump is.
static void taken(struct translation *t, u8 *hole, s64 target, bool known, u32 site)
{
	if (known) {
		tr_cold(t, (struct cold){ .kind = COLD_JCC, .hole = hole, .target = target,
					  .record = site | t->page_offset, .save_flags = t->flags == FLAGS_HOST });
		return;
	}
	// Rare: 16-bit operand size. The taken path comes inline behind a jump round it.
	u8 *around = e_jmp_hole(E(t));
	enum flags_state flags = t->flags;

	e_fill_hole(hole, E(t)->p);
	goto_branch(t, target, false, site);
	e_fill_hole(around, E(t)->p);
	t->flags = flags;
}

static void jcc(struct translation *t)
{
	s64 target;
	bool known = branch_target(t, &target);
	unsigned cc = t->zi.opcode & 15;

	tr_restore_flags(t);
	// A loop's branch is usually taken: save the flags before it, so that it can be chained.
	if (target <= t->page_offset)
		tr_save_flags(t);
	taken(t, e_jcc_hole(E(t), cc), target, known, SITE(0, SITE_JMP, 0));
}

void tr_repeat(struct translation *t)
{
	tr_restore_flags(t);
	taken(t, e_jcc_hole(E(t), (t->zi.opcode & 15) ^ 1), next_offset(t), true, SITE(0, SITE_JMP, 0));
}

static void loop(struct translation *t)
{
	struct emit *e = E(t);
	s64 target;
	bool known = branch_target(t, &target);
	unsigned width = t->zi.address_width;
	bool counts = t->zi.mnemonic == ZYDIS_MNEMONIC_LOOP || t->zi.mnemonic == ZYDIS_MNEMONIC_LOOPE ||
		      t->zi.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
	u8 *to_zero, *to_join = NULL, *skip = NULL, *hole;

	tr_save_flags(t);
	if (counts && t->zi.mnemonic != ZYDIS_MNEMONIC_LOOP)
		tr_restore_flags(t);
	if (counts && width == 16) {
		e_lea(e, false, H_T0, H_RCX, -1);
		e3(e, 0x66, 0x89, 0xf9); // mov cx, di
	} else if (counts) {
		e_lea(e, width == 64, H_RCX, H_RCX, -1);
	}
	if (width == 16) {
		e3(e, 0x0f, 0xb7, 0xf9); // movzx edi, cx
		e3(e, 0x48, 0x87, 0xf9); // xchg rcx, rdi
	}
	if (width == 32)
		e1(e, 0x67);
	e2(e, 0xe3, 0); // jrcxz
	to_zero = e->p - 1;
	if (width == 16)
		e3(e, 0x48, 0x87, 0xf9);
	if (counts) { // not zero: taken
		if (t->zi.mnemonic != ZYDIS_MNEMONIC_LOOP)
			skip = e_jcc_hole(e, t->zi.mnemonic == ZYDIS_MNEMONIC_LOOPE ? CC_NE : CC_E);
		hole = e_jmp_hole(e);
		*to_zero = e->p - (to_zero + 1);
		if (width == 16)
			e3(e, 0x48, 0x87, 0xf9);
		if (skip)
			e_fill_hole(skip, e->p);
	} else { // JRCXZ: zero: taken
		to_join = e_jmp_hole(e);
		*to_zero = e->p - (to_zero + 1);
		if (width == 16)
			e3(e, 0x48, 0x87, 0xf9);
		hole = e_jmp_hole(e);
		e_fill_hole(to_join, e->p);
	}
	taken(t, hole, target, known, counts ? SITE(0, SITE_LOOP, width / 8) : SITE(0, SITE_JMP, 0));
}

// ---- stack ----

static unsigned stack_width(struct translation *t)
{
	return MODE_64(t->mode) ? 64 : t->mode & MODE_SS32 ? 32 : 16;
}

static unsigned stack_bit(struct translation *t)
{
	return MODE_64(t->mode) ? ACCESS_STACK : 0;
}

static void stack_address(struct translation *t, int delta) // T0 = SP + delta
{
	unsigned width = stack_width(t);

	e_lea(E(t), width == 64, H_T0, jit_home[RSP], delta);
	if (width == 16)
		e3(E(t), 0x0f, 0xb7, 0xff);
}

static void stack_move(struct translation *t, int delta) // SP += delta
{
	unsigned width = stack_width(t);

	if (width == 16) {
		e_lea(E(t), false, H_T0, jit_home[RSP], delta);
		e1(E(t), 0x66);
		e_op_rr(E(t), false, 0x89, H_T0, jit_home[RSP]);
	} else {
		e_lea(E(t), width == 64, jit_home[RSP], jit_home[RSP], delta);
	}
}

static void sized_store(struct translation *t, unsigned reg, unsigned size) // [T0] = reg
{
	if (size == 2)
		e1(E(t), 0x66);
	e_op_rm(E(t), size == 8, 0x89, reg, H_T0, 0);
}

// Pushes `reg` (T1: loaded from temp[0]).
static void push(struct translation *t, unsigned reg, unsigned size)
{
	tr_release_flags(t);
	stack_address(t, -(int)size);
	tr_access(t, ACCESS_WRITE | stack_bit(t), size, SEG_SS);
	if (reg == H_T1)
		e_load(E(t), H_T1, OFF(temp[0]));
	sized_store(t, reg, size);
	tr_access_done(t);
}

static void load_sized(struct translation *t, unsigned reg, unsigned size) // reg = [T0], zero-extended
{
	if (size == 2) {
		e_rex(E(t), false, reg, 0, H_T0, false);
		e2(E(t), 0x0f, 0xb7);
		e_modrm_mem(E(t), reg, H_T0, 0);
	} else {
		e_op_rm(E(t), size == 8, 0x8b, reg, H_T0, 0);
	}
}

static void write_gpr(struct translation *t, unsigned g, unsigned size) // guest register = T1
{
	unsigned home = jit_home[g];

	if (size == 2) {
		e1(E(t), 0x66);
		if (home == H_NONE)
			e_op_rm(E(t), false, 0x89, H_T1, H_RSP, OFF_GPR(g));
		else
			e_op_rr(E(t), false, 0x89, H_T1, home);
	} else if (home == H_NONE) {
		if (size == 4)
			e_mov32_rr(E(t), H_T1, H_T1);
		e_store(E(t), H_T1, OFF_GPR(g));
	} else {
		e_op_rr(E(t), size == 8, 0x8b, home, H_T1);
	}
}

static bool push_insn(struct translation *t)
{
	const ZydisDecodedOperand *op = &t->op[0];
	unsigned size = t->zi.operand_width / 8;
	bool high;

	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER: {
		int g = tr_gpr(op->reg.value, &high);

		if (g < 0)
			return false; // segment register: C
		if (jit_home[g] == H_NONE) {
			tr_release_flags(t);
			e_load(E(t), H_T1, OFF_GPR(g));
			e_store(E(t), H_T1, OFF(temp[0]));
			push(t, H_T1, size);
		} else {
			push(t, jit_home[g], size);
		}
		break;
	}
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		tr_release_flags(t);
		stack_address(t, -(int)size);
		tr_access(t, ACCESS_WRITE | stack_bit(t), size, SEG_SS);
		if (size == 2)
			e1(E(t), 0x66);
		e_rex(E(t), size == 8, 0, 0, 0, false);
		e1(E(t), 0xc7);
		e_modrm_mem(E(t), 0, H_T0, 0);
		for (unsigned i = 0; i < (size == 2 ? 2 : 4); i++)
			e1(E(t), op->imm.value.u >> 8 * i);
		tr_access_done(t);
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		tr_memory(t, op);
		load_sized(t, H_T1, size);
		e_store(E(t), H_T1, OFF(temp[0]));
		tr_access_done(t);
		push(t, H_T1, size);
		break;
	default:
		return false;
	}
	stack_move(t, -(int)size);
	return true;
}

static bool pop_insn(struct translation *t)
{
	const ZydisDecodedOperand *op = &t->op[0];
	unsigned size = t->zi.operand_width / 8;
	bool high;

	if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && tr_gpr(op->reg.value, &high) < 0)
		return false;
	tr_release_flags(t);
	stack_address(t, 0);
	tr_access(t, stack_bit(t), size, SEG_SS);
	load_sized(t, H_T1, size);
	tr_access_done(t);
	if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		stack_move(t, size); // before the write: POP RSP
		write_gpr(t, tr_gpr(op->reg.value, &high), size);
		return true;
	}
	e_store(E(t), H_T1, OFF(temp[0]));
	t->ea_adjust = size;
	tr_address(t, op);
	t->ea_adjust = 0;
	tr_access(t, ACCESS_WRITE, size, tr_segment(op->mem.segment));
	e_load(E(t), H_T1, OFF(temp[0]));
	sized_store(t, H_T1, size);
	tr_access_done(t);
	stack_move(t, size);
	return true;
}

static void leave(struct translation *t)
{
	unsigned size = t->zi.operand_width / 8, width = stack_width(t);

	tr_save_flags(t);
	if (width == 16)
		e3(E(t), 0x0f, 0xb7, 0xc0 | H_T0 << 3 | H_RBP);
	else
		e_op_rr(E(t), width == 64, 0x8b, H_T0, H_RBP);
	tr_access(t, stack_bit(t), size, SEG_SS);
	load_sized(t, H_T1, size);
	tr_access_done(t);
	// SP = BP + size in the stack's width, then BP.
	e_lea(E(t), width == 64, H_T0, H_RBP, size);
	if (width == 16) {
		e1(E(t), 0x66);
		e_op_rr(E(t), false, 0x89, H_T0, jit_home[RSP]);
	} else {
		e_op_rr(E(t), width == 64, 0x8b, jit_home[RSP], H_T0);
	}
	write_gpr(t, RBP, size);
}

// ---- near CALL, RET, JMP ----

static unsigned shadow_slot(struct translation *t)
{
	return MODE_64(t->mode) ? 8 : 4;
}

// Return address in temp[0] onto the shadow stack; SSP itself is changed by shadow_commit().
static void shadow_push(struct translation *t)
{
	unsigned slot = shadow_slot(t);

	e_load(E(t), H_T0, OFF(ssp));
	e_lea(E(t), slot == 8, H_T0, H_T0, -(int)slot);
	tr_access(t, ACCESS_WRITE | ACCESS_SS, slot, SEG_DS);
	e_load(E(t), H_T1, OFF(temp[0]));
	sized_store(t, H_T1, slot);
	tr_access_done(t);
}

static void shadow_commit(struct translation *t, int delta)
{
	e_load(E(t), H_T1, OFF(ssp));
	e_lea(E(t), MODE_64(t->mode), H_T1, H_T1, delta);
	e_store(E(t), H_T1, OFF(ssp));
}

// Pushes the return address on both stacks and commits.
static void call_pushes(struct translation *t, bool shadow)
{
	unsigned size = t->zi.operand_width / 8;

	tr_save_flags(t);
	load_rip(t, next_offset(t));
	if (size == 2)
		e3(E(t), 0x0f, 0xb7, 0xff);
	e_store(E(t), H_T0, OFF(temp[0]));
	push(t, H_T1, size);
	if (shadow)
		shadow_push(t);
	stack_move(t, -(int)size);
	if (shadow)
		shadow_commit(t, -(int)shadow_slot(t));
}

static u32 call_site(struct translation *t, bool shadow)
{
	return SITE(0, shadow ? SITE_CALL : SITE_CALL_NO_SS, t->zi.operand_width / 8);
}

// The target is in temp[1]. #GP for it leaves the stack as it is: the push would fault first, but writes
// nothing now.
static void check_call_target(struct cpu *cpu, const struct insn *insn)
{
	unsigned size = insn->operand_size;
	u64 target = cpu->temp[1], mask = ~0ull, linear;

	if (cpu_64bit(cpu) ? cpu_canonical(cpu, target) : target <= cpu->seg[SEG_CS].limit)
		return;
	if (!cpu_64bit(cpu))
		mask = cpu->seg[SEG_SS].attributes & SEG_DB ? 0xffffffff : 0xffff;
	linear = segment_linear(cpu, SEG_SS, (cpu->gpr[RSP] - size) & mask, size, true);
	check_alignment(cpu, linear, size);
	mem_probe_write(cpu, linear, size, writing(cpu));
	cpu_gp0(cpu);
}

static bool limited_code(struct translation *t)
{
	return !MODE_64(t->mode) && !(t->mode & MODE_FLAT_CS);
}

static void call_relative(struct translation *t)
{
	s64 target;
	bool known = branch_target(t, &target);
	bool shadow = (t->mode & MODE_SHSTK) && t->op[0].imm.value.s != 0;

	if (limited_code(t)) {
		tr_save_flags(t);
		load_rip(t, target);
		if (!known)
			e3(E(t), 0x0f, 0xb7, 0xff); // movzx edi, di
		e_store(E(t), H_T0, OFF(temp[1]));
		tr_call(t, check_call_target, 0);
	}
	call_pushes(t, shadow);
	end_goto(t, target, known, call_site(t, shadow));
}

// Target of an indirect branch -> temp[1].
static void indirect_target(struct translation *t)
{
	const ZydisDecodedOperand *op = &t->op[0];
	unsigned size = t->zi.operand_width / 8;
	bool high;

	tr_save_flags(t);
	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		tr_memory(t, op);
		load_sized(t, H_T1, size);
		e_store(E(t), H_T1, OFF(temp[1]));
		tr_access_done(t);
		return;
	}
	int g = tr_gpr(op->reg.value, &high);

	if (jit_home[g] == H_NONE)
		e_load(E(t), H_T1, OFF_GPR(g));
	else
		e_mov_rr(E(t), H_T1, jit_home[g]);
	if (size == 4)
		e_mov32_rr(E(t), H_T1, H_T1);
	else if (size == 2)
		e3(E(t), 0x0f, 0xb7, 0xc0);
	e_store(E(t), H_T1, OFF(temp[1]));
}

static bool tracked(struct translation *t)
{
	return (t->mode & MODE_IBT) &&
	       !((t->zi.attributes & ZYDIS_ATTRIB_HAS_NOTRACK) && (t->mode & MODE_NOTRACK_EN));
}

static void branch_indirect(struct translation *t, bool call)
{
	bool shadow = t->mode & MODE_SHSTK;
	u32 site = SITE(0, SITE_JMP, 0);

	indirect_target(t);
	if (call && limited_code(t))
		tr_call(t, check_call_target, 0);
	if (call && MODE_64(t->mode)) {
		// Bits 63:47 alike: fine, else C looks again.
		e4(E(t), 0x2ff8c148); // sar rax, 47
		e3(E(t), 0x48, 0xff, 0xc0); // inc rax
		e_alu_imm(E(t), true, 7, H_T1, 1);
		u8 *fine = e_jcc_hole(E(t), CC_BE);

		tr_call(t, check_call_target, 0);
		e_fill_hole(fine, E(t)->p);
	}
	if (call) {
		call_pushes(t, shadow);
		site = call_site(t, shadow);
	}
	e_load(E(t), H_T0, OFF(temp[1]));
	tr_goto(t, site, tracked(t));
	t->done = true;
}

// Handler for the mismatch the translated code has found: says so the architectural way.
static void near_return_mismatch(struct cpu *cpu, const struct insn *insn)
{
	cet_pop_check(cpu, cpu->temp[0], cpu_64bit(cpu) ? 8 : 4);
}

static void ret(struct translation *t)
{
	unsigned size = t->zi.operand_width / 8, slot = shadow_slot(t);
	unsigned pops = t->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? t->op[0].imm.value.u & 0xffff : 0;
	bool shadow = t->mode & MODE_SHSTK;
	u8 *hole;

	tr_save_flags(t);
	stack_address(t, 0);
	tr_access(t, stack_bit(t), size, SEG_SS);
	load_sized(t, H_T1, size);
	e_store(E(t), H_T1, OFF(temp[0]));
	tr_access_done(t);
	if (shadow) {
		e_load(E(t), H_T0, OFF(ssp));
		tr_access(t, ACCESS_SS, slot, SEG_DS);
		e_load(E(t), H_T1, OFF(temp[0]));
		e_op_rm(E(t), slot == 8, 0x3b, H_T1, H_T0, 0);
		hole = e_jcc_hole(E(t), CC_NE);
		tr_access_done(t);
		struct call_record *r = &t->jit->calls[t->jit->call_count];

		*r = (struct call_record){ .handler = near_return_mismatch, .page_offset = t->page_offset,
					   .length = t->zi.length, .end = true };
		tr_cold(t, (struct cold){ .kind = COLD_CALL_END, .hole = hole,
					  .record = t->jit->call_count++ });
		shadow_commit(t, slot);
	}
	stack_move(t, size + pops);
	e_load(E(t), H_T0, OFF(temp[0]));
	tr_goto(t, SITE(0, SITE_RET, size + pops), false);
	t->done = true;
}

// ---- the rest ----

static void lea(struct translation *t)
{
	bool high;

	tr_address(t, &t->op[1]);
	// No flags were touched; T1 may have been an index register.
	e_mov_rr(E(t), H_T1, H_T0);
	write_gpr(t, tr_gpr(t->op[0].reg.value, &high), t->zi.operand_width / 8);
}

static void pushfq(struct translation *t)
{
	struct emit *e = E(t);

	tr_save_flags(t);
	e_load32(e, H_RAX, OFF(arith));
	e3(e, 0x0f, 0xb6, 0xfc); // movzx edi, ah
	e_alu_imm(e, false, 4, H_RDI, FLAGS_ARITH & 0xff);
	e_alu_imm(e, false, 4, H_RAX, 1);
	e3(e, 0xc1, 0xe0, 11); // shl eax, 11
	e_op_rr(e, false, 0x0b, H_RAX, H_RDI);
	e_op_rm(e, false, 0x0b, H_RAX, H_RSP, OFF(rflags));
	e_alu_imm(e, false, 4, H_RAX, ~(int)(FLAG_RF | FLAG_VM));
	e_store(e, H_RAX, OFF(temp[0]));
	t->flags = FLAGS_MEM;
	push(t, H_T1, 8);
	stack_move(t, -8);
}

static void swapgs(struct translation *t)
{
	struct emit *e = E(t);

	e_load(e, H_T0, OFF(seg[SEG_GS].base));
	e_load(e, H_T1, OFF(kernel_gs_base));
	e_store(e, H_T1, OFF(seg[SEG_GS].base));
	e_store(e, H_T0, OFF(kernel_gs_base));
}

static void change_flag(struct translation *t, unsigned op, u32 mask)
{
	tr_save_flags(t);
	e_alu_field_imm(E(t), op, OFF(rflags), mask);
	t->flags = FLAGS_MEM;
}

static bool sti(struct translation *t)
{
	u8 *hole;

	if (MODE_CPL_OF(t->mode) || (t->mode & (MODE_V86 | MODE_SINGLE | MODE_SLOWMEM)) || t->sti_shadow)
		return false;
	// The next instruction is executed before an interrupt is taken: it must be in this block.
	if (next_offset(t) + ZYDIS_MAX_INSTRUCTION_LENGTH > 4096)
		return false;
	change_flag(t, 1, FLAG_IF);
	// An interrupt that waited for this is taken behind the next instruction.
	e_alu_field_imm(E(t), 7, OFF(irq_wait), 0);
	hole = e_jcc_hole(E(t), CC_E);
	e1(E(t), 0xf0);
	e_alu_field_imm(E(t), 1, OFF(request), REQ_IRQ);
	e_fill_hole(hole, E(t)->p);
	t->sti_shadow = true;
	return true;
}

static void endbr(struct translation *t, bool endbr64)
{
	if (endbr64 == MODE_64(t->mode) && t->block->points == 1 &&
	    !(t->mode & (MODE_SINGLE | MODE_SLOWMEM)))
		t->block->endbr_entry = E(t)->p - (t->jit->rw + t->block->code);
}

// MODE_WAIT: the block is the one instruction behind a tracked branch.
void endbranch_handler(struct cpu *cpu, const struct insn *insn);
void endbranch_handler(struct cpu *cpu, const struct insn *insn)
{
	cet_endbranch(cpu, insn->mnemonic == ZYDIS_MNEMONIC_ENDBR64);
	cpu_mode_changed(cpu);
}

bool tr_generate(struct translation *t)
{
	switch (t->zi.mnemonic) {
	case ZYDIS_MNEMONIC_LEA: lea(t); return true;
	case ZYDIS_MNEMONIC_PUSH: return push_insn(t);
	case ZYDIS_MNEMONIC_POP: return pop_insn(t);
	case ZYDIS_MNEMONIC_LEAVE: leave(t); return true;
	case ZYDIS_MNEMONIC_CALL:
		if (t->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return false;
		if (t->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			call_relative(t);
		else
			branch_indirect(t, true);
		return true;
	case ZYDIS_MNEMONIC_JMP: {
		s64 target;

		if (t->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return false;
		if (t->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
			bool known = branch_target(t, &target);

			end_goto(t, target, known, SITE(0, SITE_JMP, 0));
		} else {
			branch_indirect(t, false);
		}
		return true;
	}
	case ZYDIS_MNEMONIC_RET:
		if (t->zi.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return false;
		ret(t);
		return true;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		loop(t);
		return true;
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
	case ZYDIS_MNEMONIC_CLDEMOTE:
		return true;
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_ENDBR32:
		if (t->mode & MODE_SUPPRESS)
			tr_call(t, endbranch_handler, INSN_END);
		else
			endbr(t, t->zi.mnemonic == ZYDIS_MNEMONIC_ENDBR64);
		return true;
	case ZYDIS_MNEMONIC_CLI:
		if (MODE_CPL_OF(t->mode) || (t->mode & MODE_V86))
			return false;
		change_flag(t, 4, ~FLAG_IF);
		return true;
	case ZYDIS_MNEMONIC_PUSHFQ:
		if (!MODE_64(t->mode))
			return false;
		pushfq(t);
		return true;
	case ZYDIS_MNEMONIC_STI: return sti(t);
	case ZYDIS_MNEMONIC_STAC:
		if (MODE_CPL_OF(t->mode))
			return false;
		change_flag(t, 1, FLAG_AC); // CLAC has translations to drop: in C
		return true;
	case ZYDIS_MNEMONIC_SWAPGS:
		if (!MODE_64(t->mode) || MODE_CPL_OF(t->mode))
			return false;
		swapgs(t);
		return true;
	case ZYDIS_MNEMONIC_CLD: change_flag(t, 4, ~FLAG_DF); return true;
	case ZYDIS_MNEMONIC_STD: change_flag(t, 1, FLAG_DF); return true;
	default:
		if (t->zi.meta.category == ZYDIS_CATEGORY_COND_BR) {
			jcc(t);
			return true;
		}
		return false;
	}
}
