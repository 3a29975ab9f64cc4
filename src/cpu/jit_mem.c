// SPDX-License-Identifier: MIT
// Memory operands of translated code: effective address, segment, software TLB, slow paths; and the
// place of the arithmetic flags, which the TLB check overwrites.
//
// The check, for an address in T0:
//	rorx t1, t0, 12-5 ; and t1, mask	index of the entry times its size
//	xor  t0, tag[t1]			offset in the page if the tag matches
//	cmp  t0, 4096-size ; ja slow		one comparison finds a miss and a page crossing
//	add  t0, host[t1]
#include "base/log.h"
#include "cpu/jit_translate.h"

_Static_assert(sizeof(struct tlb_entry) == 32, "the index is scaled by shifts");

void tr_cold(struct translation *t, struct cold cold)
{
	BUG_ON(t->colds == MAX_COLD);
	t->cold[t->colds++] = cold;
}

void tr_save_flags(struct translation *t)
{
	BUG_ON(t->flags == FLAGS_LOST);
	if (t->flags != FLAGS_HOST)
		return;
	e1(&t->e, 0x9f);	      // lahf
	e3(&t->e, 0x0f, 0x90, 0xc0); // seto al
	e_store32(&t->e, H_RAX, OFF(arith));
	t->flags = FLAGS_BOTH;
}

void tr_restore_flags(struct translation *t)
{
	BUG_ON(t->flags == FLAGS_LOST);
	if (t->flags != FLAGS_MEM)
		return;
	e_load32(&t->e, H_RAX, OFF(arith));
	e2(&t->e, 0x04, 0x7f); // add al, 127: overflows if AL was 1
	e1(&t->e, 0x9e);       // sahf
	t->flags = FLAGS_BOTH;
}

int tr_gpr(ZydisRegister reg, bool *high)
{
	*high = false;
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR8:
		if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
			*high = true;
			return reg - ZYDIS_REGISTER_AH;
		}
		if (reg <= ZYDIS_REGISTER_BL)
			return reg - ZYDIS_REGISTER_AL;
		return reg - ZYDIS_REGISTER_SPL + 4;
	case ZYDIS_REGCLASS_GPR16:
		return reg - ZYDIS_REGISTER_AX;
	case ZYDIS_REGCLASS_GPR32:
		return reg - ZYDIS_REGISTER_EAX;
	case ZYDIS_REGCLASS_GPR64:
		return reg - ZYDIS_REGISTER_RAX;
	default:
		return -1;
	}
}

unsigned tr_segment(ZydisRegister reg)
{
	switch (reg) {
	case ZYDIS_REGISTER_ES: return SEG_ES;
	case ZYDIS_REGISTER_CS: return SEG_CS;
	case ZYDIS_REGISTER_SS: return SEG_SS;
	case ZYDIS_REGISTER_FS: return SEG_FS;
	case ZYDIS_REGISTER_GS: return SEG_GS;
	default: return SEG_DS;
	}
}

static bool segment_flat(struct translation *t, unsigned seg)
{
	static const u32 bit[] = { MODE_FLAT_ES, MODE_FLAT_CS, MODE_FLAT_SS, MODE_FLAT_DS,
				   MODE_FLAT_FS, MODE_FLAT_GS };

	return seg != SEG_CS && (t->mode & bit[seg]);
}

static bool waits_for_x87(const struct translation *t)
{
	const ZydisDecodedInstruction *zi = &t->zi;

	if (zi->mnemonic == ZYDIS_MNEMONIC_FNSTCW || zi->mnemonic == ZYDIS_MNEMONIC_FNSTSW)
		return false;
	for (unsigned i = 0; i < zi->operand_count; i++)
		if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(t->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
			return true;
	return zi->meta.isa_ext == ZYDIS_ISA_EXT_X87 || zi->mnemonic == ZYDIS_MNEMONIC_FISTTP;
}

u32 tr_mem_record(struct translation *t, unsigned access, unsigned size, unsigned seg)
{
	struct mem_record *r = &t->jit->mems[t->jit->mem_count];

	*r = (struct mem_record){ .page_offset = t->page_offset, .length = t->zi.length, .size = size,
				  .access = access, .seg = seg, .ss = seg == SEG_SS, .x87 = waits_for_x87(t),
				  .align = t->alignment,
				  .locked = (access & ACCESS_WRITE) &&
					    ((t->zi.attributes & ZYDIS_ATTRIB_HAS_LOCK) ||
					     t->zi.mnemonic == ZYDIS_MNEMONIC_XCHG) };
	return t->jit->mem_count++;
}

static void load_gpr(struct translation *t, unsigned host, unsigned guest)
{
	if (jit_home[guest] == H_NONE)
		e_load(&t->e, host, OFF_GPR(guest));
	else
		e_mov_rr(&t->e, host, jit_home[guest]);
}

// T0 = T0 + constant
static void add_constant(struct translation *t, s64 v)
{
	while (v != (int)v) {
		int step = v < 0 ? -0x40000000 : 0x40000000;

		e_lea(&t->e, true, H_T0, H_T0, step);
		v -= step;
	}
	if (v)
		e_lea(&t->e, true, H_T0, H_T0, v);
}

void tr_address(struct translation *t, const ZydisDecodedOperand *op)
{
	struct emit *e = &t->e;
	bool high, wide = t->zi.address_width == 64;
	int base = tr_gpr(op->mem.base, &high), index = tr_gpr(op->mem.index, &high);
	unsigned hb = H_NONE, hi = H_NONE, scale = 0;
	s64 disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;

	if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
		e_load(e, H_T0, OFF(rip_base));
		add_constant(t, disp + t->page_offset + t->zi.length);
		if (!wide)
			e_mov32_rr(e, H_T0, H_T0);
		return;
	}
	if (base == RSP)
		disp += t->ea_adjust;
	if (base >= 0) {
		hb = jit_home[base];
		if (hb == H_NONE) {
			load_gpr(t, H_T0, base);
			hb = H_T0;
		}
	}
	if (index >= 0) {
		scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2;
		hi = jit_home[index];
		if (hi == H_NONE) {
			load_gpr(t, H_T1, index);
			hi = H_T1;
		}
	}
	if (hb == H_NONE && hi == H_NONE) {
		e_mov_imm(e, H_T0, wide ? (u64)disp : t->zi.address_width == 32 ? (u32)disp : (u16)disp);
		return;
	}
	e_rex(e, wide, H_T0, hi == H_NONE ? 0 : hi, hb == H_NONE ? 0 : hb, false);
	e1(e, 0x8d);
	if (hi == H_NONE)
		e_modrm_mem(e, H_T0, hb, disp);
	else
		e_modrm_sib(e, H_T0, hb, hi, scale, disp);
	if (t->zi.address_width == 16)
		e3(e, 0x0f, 0xb7, 0xc0 | H_T0 << 3 | H_T0); // movzx edi, di
}

// T0 = offset in segment `seg` -> T0 = linear address
static void apply_segment(struct translation *t, unsigned seg, unsigned access, unsigned size)
{
	struct emit *e = &t->e;

	if (MODE_64(t->mode)) {
		if (seg == SEG_FS || seg == SEG_GS) {
			e_load(e, H_T1, OFF_SEG_BASE(seg));
			e_rex(e, true, H_T0, H_T1, H_T0, false);
			e1(e, 0x8d);
			e_modrm_sib(e, H_T0, H_T0, H_T1, 0, 0);
		}
		return;
	}
	if (segment_flat(t, seg))
		return;
	e_mov_imm32(e, H_RAX, tr_mem_record(t, access, size, seg));
	e_call(e, t->jit->seg_linear);
	t->flags = FLAGS_MEM;
}

// The check up to and including the jump to the slow path, whose hole it returns.
static u8 *look_up(struct emit *e, unsigned bits, int tag, unsigned size)
{
	e4(e, 0xf0fbe3c4); // rorx rax, rdi, 7
	e2(e, 0xc7, 12 - 5);
	e1(e, 0x25); // and eax, mask
	e4(e, ((1u << bits) - 1) << 5);
	e2(e, 0x48, 0x33); // xor rdi, [rsp + rax + tag]
	e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, tag);
	e_alu_imm(e, true, 7, H_T0, 4096 - (int)size);
	return e_jcc_hole(e, CC_A);
}

static void slow_call(struct translation *t, int tag, u32 record, const u8 *back)
{
	struct emit *e = &t->e;

	e2(e, 0x48, 0x33); // xor rdi, tag: the address again
	e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, tag);
	e_mov_imm32(e, H_RAX, record);
	e_call(e, t->jit->mem_slow);
	e_jmp(e, back + e->to_rx);
}

// Not on the page that the stack was last written on, or that this access last hit: the ordinary
// check. Its page becomes the one, but only a write makes the stack's.
static void stack_miss(struct translation *t, struct cold *c)
{
	struct emit *e = &t->e;
	bool write = c->access & ACCESS_WRITE, remember = write || !(c->access & ACCESS_STACK);
	int page = c->page, host = c->tlb + (int)offsetof(struct tlb_entry, host);
	int tag = c->tlb + (write ? offsetof(struct tlb_entry, write) : offsetof(struct tlb_entry, read));
	u8 *hole;

	e_op_rm(e, true, 0x03, H_T0, H_RSP, page); // add rdi, tag: the address again
	hole = look_up(e, c->bits, tag, c->size);
	if (remember) {
		e_store(e, H_T0, OFF(temp[2]));
		e2(e, 0x48, 0x8b); // mov rdi, host
		e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, host);
		e_store(e, H_T0, page + 8);
		e2(e, 0x48, 0x8b); // mov rax, tag
		e_modrm_sib(e, H_RAX, H_RSP, H_RAX, 0, tag);
		e_store(e, H_RAX, page);
		e_op_rm(e, true, 0x03, H_T0, H_RSP, OFF(temp[2]));
	} else {
		e2(e, 0x48, 0x03); // add rdi, host
		e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, host);
	}
	e_jmp(e, c->back + e->to_rx);
	e_fill_hole(hole, e->p);
	slow_call(t, tag, c->record, c->back);
}

void tr_access(struct translation *t, unsigned access, unsigned size, unsigned seg)
{
	struct emit *e = &t->e;
	bool user = MODE_CPL_OF(t->mode) == 3, write = access & ACCESS_WRITE;
	int table;
	unsigned bits;

	tr_release_flags(t);
	if (user)
		access |= ACCESS_USER;
	if (access & ACCESS_SS) {
		seg = SEG_DS;
		table = user ? OFF(tlb_ssu) : OFF(tlb_ssk);
		bits = TLB_SS_BITS;
	} else {
		apply_segment(t, seg, access, size);
		table = user ? OFF(tlb_u) : OFF(tlb_k);
		bits = user ? TLB_U_BITS : TLB_K_BITS;
	}
	u32 record = tr_mem_record(t, access, size, seg);

	t->alignment = 0;
	if (t->flags == FLAGS_LOST)
		t->jit->mems[record].recipe = t->recipe_number;
	else
		t->flags = FLAGS_MEM;
	if (t->mode & MODE_SLOWMEM) {
		e_mov_imm32(e, H_RAX, record);
		e_call(e, t->jit->slow_begin);
		t->open = true;
		t->open_record = record;
		t->open_write = write;
		return;
	}
	bool site = access & ACCESS_SITE;

	if ((access & ACCESS_STACK) || site) {
		int page = OFF(stack_page[user]);

		if (!(access & ACCESS_STACK))
			page = OFF(site_page[user][write]) + 16 * (t->jit->next_site++ % SITE_PAGES);

		e_op_rm(e, true, 0x2b, H_T0, H_RSP, page); // sub rdi, tag
		e_alu_imm(e, true, 7, H_T0, 4096 - (int)size);
		u8 *miss = e_jcc_hole(e, CC_A);
		e_op_rm(e, true, 0x03, H_T0, H_RSP, page + 8); // add rdi, host
		tr_cold(t, (struct cold){ .kind = COLD_STACK, .hole = miss, .back = e->p, .record = record,
					  .tlb = table, .bits = bits, .access = access, .size = size, .page = page });
		return;
	}
	int tag = table + (write ? offsetof(struct tlb_entry, write) : offsetof(struct tlb_entry, read));

	u8 *hole = look_up(e, bits, tag, size);
	e2(e, 0x48, 0x03); // add rdi, [rsp + rax + host]
	e_modrm_sib(e, H_T0, H_RSP, H_RAX, 0, table + (int)offsetof(struct tlb_entry, host));
	tr_cold(t, (struct cold){ .kind = COLD_MEM, .hole = hole, .back = e->p, .record = record,
				  .table = tag });
}

void tr_access_done(struct translation *t)
{
	if (t->open && t->open_write) {
		tr_save_flags(t);
		e_mov_imm32(&t->e, H_RAX, t->open_record);
		e_call(&t->e, t->jit->slow_end);
		t->flags = FLAGS_MEM;
	}
	t->open = false;
}

// What the memory operand of a copied instruction must be aligned to, else #GP. The copy itself faults
// like that too; this is for operands that also fault otherwise.
static unsigned required_alignment(const ZydisDecodedInstruction *zi, unsigned size)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_CMPXCHG16B:
	case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA:
		return size;
	case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU: case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI: case ZYDIS_MNEMONIC_PCMPISTRM:
		return 0;
	default:
		return size == 16 && zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
		       zi->meta.isa_ext != ZYDIS_ISA_EXT_BASE && zi->meta.isa_ext != ZYDIS_ISA_EXT_X87 &&
		       zi->meta.isa_ext != ZYDIS_ISA_EXT_SHA ? 16 : 0; // SHA: as the host does it
	}
}

#define NEAR 256 // bytes a loop's access may move each time round and still be called near

// Does this instruction of the loop move register g by a constant that is not near? What changes it in
// another way (a pointer followed, an index computed) is found on the same page often enough.
static bool strides(const struct decoded *d, int g, unsigned scale)
{
	const ZydisDecodedOperand *a = &d->op[0], *b = &d->op[1];
	bool high;
	s64 step;

	if (a->type != ZYDIS_OPERAND_TYPE_REGISTER || tr_gpr(a->reg.value, &high) != g)
		return false;
	switch (d->zi.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		if (b->type == ZYDIS_OPERAND_TYPE_REGISTER)
			return true; // most likely a row's length
		if (b->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		step = b->imm.value.s * (s64)scale;
		break;
	case ZYDIS_MNEMONIC_LEA:
		if (tr_gpr(b->mem.base, &high) != g)
			return false;
		step = b->mem.disp.value * (s64)scale;
		break;
	default:
		return false;
	}
	return step > NEAR || step < -NEAR;
}

// In a loop: is this operand likely to be on the page it was on the last time?
static bool likely_same_page(const struct translation *t, const ZydisDecodedOperand *op)
{
	bool high;
	int base = tr_gpr(op->mem.base, &high), index = tr_gpr(op->mem.index, &high);

	if (!t->loop || !MODE_64(t->mode))
		return false;
	for (unsigned i = 0; i < t->listed; i++)
		if ((base >= 0 && strides(&t->list[i], base, 1)) ||
		    (index >= 0 && strides(&t->list[i], index, op->mem.scale)))
			return false;
	return true;
}

void tr_memory(struct translation *t, const ZydisDecodedOperand *op)
{
	unsigned access = 0;

	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
		access = ACCESS_WRITE;
		if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
			access |= ACCESS_RMW_READS;
	}
	t->alignment = required_alignment(&t->zi, op->size / 8);
	if (op->mem.base == ZYDIS_REGISTER_RSP && op->mem.index == ZYDIS_REGISTER_NONE && MODE_64(t->mode))
		access |= ACCESS_STACK;
	else if (likely_same_page(t, op))
		access |= ACCESS_SITE;
	tr_release_flags(t);
	tr_address(t, op);
	tr_access(t, access, op->size / 8, tr_segment(op->mem.segment));
}

static void emit_cold(struct translation *t, struct cold *c)
{
	struct emit *e = &t->e;

	e_fill_hole(c->hole, e->p);
	switch (c->kind) {
	case COLD_MEM:
		slow_call(t, c->table, c->record, c->back);
		break;
	case COLD_STACK:
		stack_miss(t, c);
		break;
	case COLD_JCC:
		if (c->save_flags) {
			t->flags = FLAGS_HOST;
			tr_save_flags(t);
		}
		t->flags = FLAGS_BOTH;
		t->page_offset = c->record & 0xfff;
		tr_goto_offset(t, c->target, c->record);
		break;
	case COLD_CHAIN:
		e_mov_imm32(e, H_RDI, (u32)(c->hole - t->jit->rw));
		e_mov_imm32(e, H_RAX, (u32)c->target);
		e_jmp(e, t->jit->link);
		break;
	case COLD_LOOKUP:
		e_mov_imm32(e, H_RAX, c->record);
		e_jmp(e, c->indirect ? t->jit->lookup_indirect : t->jit->lookup);
		break;
	case COLD_REQUEST:
		t->flags = FLAGS_BOTH;
		tr_leave(t, c->target);
		break;
	case COLD_CALL_END:
		e_mov_imm32(e, H_RAX, c->record);
		e_jmp(e, t->jit->call_c_end);
		break;
	}
}

void tr_emit_colds(struct translation *t)
{
	// A cold piece may need another one (a taken branch becomes a chain): the list grows.
	for (unsigned i = 0; i < t->colds; i++)
		emit_cold(t, &t->cold[i]);
}
