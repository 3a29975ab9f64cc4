// SPDX-License-Identifier: MIT
// One block: decode guest instructions until something ends it, and emit code for each.
//
// A block stays in one guest page (an instruction that crosses into the next page is a block of its
// own), begins with a look at the request word, and leaves by chained jumps, look-ups or C. A
// conditional jump that is not taken stays inside the block.
#include "base/log.h"
#include "cpu/fpu.h"
#include "cpu/guest_access.h"
#include "cpu/jit_translate.h"
#include "cpu/mem.h"
#include "cpu/transfer.h"

#include <string.h>

static void raise_ud(struct cpu *cpu, const struct insn *insn) { cpu_ud(cpu); }
static void raise_nm(struct cpu *cpu, const struct insn *insn) { cpu_raise(cpu, VECTOR_NM); }
static void raise_gp(struct cpu *cpu, const struct insn *insn) { cpu_gp0(cpu); }

static void missing_endbranch(struct cpu *cpu, const struct insn *insn)
{
	cet_missing_endbranch(cpu);
	cpu_mode_changed(cpu);
	cpu->next_rip = cpu->rip; // allowed by the bitmap: now execute it
}

void endbranch_handler(struct cpu *cpu, const struct insn *insn);

void tr_call(struct translation *t, insn_handler *handler, unsigned flags)
{
	struct call_record *r = &t->jit->calls[t->jit->call_count];

	if (t->flags != FLAGS_LOST)
		tr_save_flags(t);
	*r = (struct call_record){ .handler = handler, .page_offset = t->page_offset,
				   .length = t->zi.length, .end = flags & INSN_END,
				   .unload = flags & INSN_UNLOAD_FPU,
				   .recipe = t->flags == FLAGS_LOST ? t->recipe_number : 0 };
	jit_decode_insn(&t->zi, t->op, &r->insn);
	r->insn.row = insn_row_in_c(t->zi.mnemonic);
	e_mov_imm32(&t->e, H_RAX, t->jit->call_count++);
	if (flags & INSN_END) {
		e_jmp(&t->e, t->jit->call_c_end);
		t->done = true;
	} else {
		e_call(&t->e, t->jit->call_c);
		t->flags = FLAGS_MEM;
	}
}

void tr_raise(struct translation *t, enum vector vector)
{
	tr_call(t, vector == VECTOR_NM ? raise_nm : vector == VECTOR_GP ? raise_gp : raise_ud, INSN_END);
}

// #UD and #NM that follow from control registers and CPUID, known at translation time. True: raised.
static bool refused(struct translation *t, const struct insn_row *row)
{
	bool vex = t->zi.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	unsigned vector = 0;

	if (!guest_has(t->cpu, row->feature))
		vector = VECTOR_UD;
	else if (vex && (!(t->mode & MODE_PE) || (t->mode & MODE_V86)))
		vector = VECTOR_UD;
	else if ((row->flags & INSN_AVX) && !(t->mode & MODE_AVX))
		vector = VECTOR_UD;
	else if ((row->flags & INSN_SSE) && ((t->mode & MODE_EM) || !(t->mode & MODE_OSFXSR)))
		vector = VECTOR_UD;
	else if (row->flags & INSN_FPU) {
		bool mmx = t->zi.meta.isa_ext == ZYDIS_ISA_EXT_MMX;

		if (mmx && (t->mode & MODE_EM))
			vector = VECTOR_UD;
		else if (t->zi.mnemonic == ZYDIS_MNEMONIC_FWAIT)
			vector = (t->mode & MODE_MP) && (t->mode & MODE_TS) ? VECTOR_NM : 0;
		else if (t->mode & (MODE_EM | MODE_TS))
			vector = VECTOR_NM;
	}
	if (!vector && (row->flags & (INSN_SSE | INSN_AVX)) && (t->mode & MODE_TS))
		vector = VECTOR_NM;
	if (!vector)
		return false;
	tr_raise(t, vector);
	return true;
}

// BT, BTS, BTR, BTC m, r address a bit string: the bit offset selects memory far from the operand.
static void bit_string(struct translation *t)
{
	struct emit *e = &t->e;
	unsigned size = t->zi.operand_width / 8;
	bool high;
	int g = tr_gpr(t->op[1].reg.value, &high);
	unsigned access = t->zi.mnemonic == ZYDIS_MNEMONIC_BT ? 0 : ACCESS_WRITE | ACCESS_RMW_READS;

	tr_save_flags(t);
	tr_address(t, &t->op[0]);
	// T1 = sign-extended offset / (8 * size) * size
	if (jit_home[g] == H_NONE)
		e_load(e, H_T1, OFF_GPR(g));
	else
		e_mov_rr(e, H_T1, jit_home[g]);
	if (size == 2)
		e4(e, 0xc0bf0f48); // movsx rax, ax
	else if (size == 4)
		e3(e, 0x48, 0x63, 0xc0); // movsxd rax, eax
	e4(e, 0x03f8c148);		 // sar rax, 3
	e_alu_imm(e, true, 4, H_T1, -(int)size);
	e_op_rr(e, true, 0x03, H_T0, H_T1);
	if (t->zi.address_width == 32)
		e_mov32_rr(e, H_T0, H_T0);
	else if (t->zi.address_width == 16)
		e3(e, 0x0f, 0xb7, 0xff);
	t->flags = FLAGS_MEM;
	tr_access(t, access, size, tr_segment(t->op[0].mem.segment));
	if (jit_home[g] == H_NONE)
		e_load(e, H_T1, OFF_GPR(g));
	else
		e_mov_rr(e, H_T1, jit_home[g]);
	e_alu_imm(e, false, 4, H_T1, size * 8 - 1);
	if (t->zi.attributes & ZYDIS_ATTRIB_HAS_LOCK)
		e1(e, 0xf0);
	if (size == 2)
		e1(e, 0x66);
	e_rex(e, size == 8, H_T1, 0, H_T0, false);
	e2(e, 0x0f, t->zi.opcode);
	e_modrm_mem(e, H_T1, H_T0, 0);
	// CF is the only flag it changes.
	e3(e, 0x0f, 0x92, 0xc0); // setc al
	e1(e, 0x80);
	e_modrm_mem(e, 4, H_RSP, OFF(arith) + 1);
	e1(e, 0xfe);
	e1(e, 0x08); // or [arith + 1], al
	e_modrm_mem(e, 0, H_RSP, OFF(arith) + 1);
	tr_access_done(t);
}

bool jit_is_bit_string(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
	default:
		return false;
	}
}

static void translate_insn(struct translation *t)
{
	const struct insn_row *row = insn_row_of(&t->zi);

	if (!row) {
		tr_raise(t, VECTOR_UD);
		return;
	}
	if (refused(t, row))
		return;
	switch (row->kind) {
	case INSN_COPY:
		if (jit_is_bit_string(&t->zi, t->op))
			bit_string(t);
		else
			tr_copy(t);
		return;
	case INSN_GEN:
		if (tr_generate(t))
			return;
		row = insn_row_in_c(t->zi.mnemonic);
		if (!row || !row->handler) {
			tr_raise(t, VECTOR_UD);
			return;
		}
		// fall through
	default:
		// In C. What repeats or may change RIP ends the block.
		tr_call(t, row->handler, row->flags | (t->zi.attributes &
			(ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) ? INSN_END : 0));
		return;
	}
}

// What the tracker says to the first instruction behind a tracked branch.
static bool translate_waiting(struct translation *t, bool decoded)
{
	bool right = decoded && t->zi.mnemonic == (MODE_64(t->mode) ? ZYDIS_MNEMONIC_ENDBR64 : ZYDIS_MNEMONIC_ENDBR32);

	if (decoded && (t->zi.mnemonic == ZYDIS_MNEMONIC_INT3 || t->zi.mnemonic == ZYDIS_MNEMONIC_INT1))
		return false;
	if (!decoded)
		t->zi.length = 1;
	tr_call(t, right ? endbranch_handler : missing_endbranch, INSN_END);
	return true;
}

static void init_decoder(ZydisDecoder *decoder, struct cpu *cpu, u32 mode)
{
	switch (mode & MODE_SIZE) {
	case 2:
		ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
		break;
	case 1:
		ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LEGACY_32,
				 mode & MODE_SS32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16);
		break;
	default:
		ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LEGACY_16,
				 mode & MODE_SS32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16);
		break;
	}
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	// Without the features these are BSF and BSR with a prefix that means nothing.
	if (!guest_has(cpu, FEATURE_BMI1))
		ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_TZCNT, ZYAN_FALSE);
	if (!guest_has(cpu, FEATURE_ABM))
		ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_LZCNT, ZYAN_FALSE);
}

struct fetch {
	u8 bytes[32]; // of an instruction at the page's end, with those of the next page
	const u8 *at;
	unsigned available;
	u64 gpa2;
	const u8 *second; // where the next page is, if gpa2 says so
};

// The bytes at `offset` of the page; those of the next page too, if `both`, which may raise #PF.
static void fetch(struct cpu *cpu, const u8 *page, unsigned offset, bool both, struct fetch *f)
{
	f->at = page + offset;
	f->available = 4096 - offset;
	f->gpa2 = 0;
	f->second = NULL;
	if (!both)
		return;
	u64 linear = cpu_64bit(cpu) ? cpu->rip : (u32)(cpu->rip + cpu->seg[SEG_CS].base);
	u8 *second = jit_next_code_page(cpu, linear, &f->gpa2);

	f->second = second;
	if (!guest_copy(f->bytes, f->at, f->available))
		guest_fault(cpu, f->at);
	if (!guest_copy(f->bytes + f->available, second, 16))
		guest_fault(cpu, second);
	f->at = f->bytes;
	f->available += 16;
}

_Static_assert(MAX_INSNS * sizeof(struct decoded) <= JIT_DECODED_SIZE, "room for a block");

#define MEMORY_IS_GONE ZYAN_STATUS_BAD_SYSTEMCALL // of decode(): the client took it away; Zydis has no such status

// Decodes from a copy: another vCPU may change the bytes while they are looked at, and what is copied
// later must be what was found harmless here.
static ZyanStatus decode(ZydisDecoder *decoder, struct decoded *d, const struct fetch *f)
{
	unsigned available = f->available < 15 ? f->available : 15;
	ZyanStatus status;

	if (!guest_copy(d->bytes, f->at, available))
		return MEMORY_IS_GONE;
	status = ZydisDecoderDecodeFull(decoder, d->bytes, available, &d->zi, d->op);
	if (ZYAN_SUCCESS(status) && d->zi.mnemonic == ZYDIS_MNEMONIC_PAUSE && d->zi.raw.rex.B &&
	    (d->zi.attributes & ZYDIS_ATTRIB_HAS_REX)) {
		// F3 with REX.B 90 is XCHG R8, RAX to processors: show Zydis other prefixes for the F3.
		for (unsigned i = 0; i < d->zi.raw.prefix_count; i++)
			if (d->bytes[i] == 0xf3)
				d->bytes[i] = 0x3e;
		return ZydisDecoderDecodeFull(decoder, d->bytes, d->zi.length, &d->zi, d->op);
	}
	if (ZYAN_SUCCESS(status) && d->zi.attributes & ZYDIS_ATTRIB_HAS_NOTRACK &&
	    d->zi.machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
		d->op[0].mem.segment = ZYDIS_REGISTER_DS; // the prefix overrides the segment as ever
	if (!ZYAN_SUCCESS(status) || !d->zi.raw.sib.offset || d->zi.raw.modrm.mod || d->zi.raw.sib.base != 5)
		return status;
	// SIB without a base: Zydis 4.0 takes it for R13D with REX.B and 32-bit addresses.
	for (unsigned i = 0; i < d->zi.operand_count; i++) {
		ZydisDecodedOperand *op = &d->op[i];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.base == ZYDIS_REGISTER_R13D) {
			op->mem.base = ZYDIS_REGISTER_NONE;
			op->mem.disp.has_displacement = true;
			op->mem.disp.value = d->zi.raw.disp.value;
		}
	}
	return status;
}

static bool ends_straight_line(const struct decoded *d)
{
	return d->zi.meta.category == ZYDIS_CATEGORY_UNCOND_BR || d->zi.meta.category == ZYDIS_CATEGORY_CALL ||
	       d->zi.meta.category == ZYDIS_CATEGORY_RET;
}

// Decodes behind the first instruction, as far as the block can go at most. The status of what ended it.
static ZyanStatus decode_ahead(struct cpu *cpu, ZydisDecoder *decoder, struct translation *t, const u8 *page,
			       unsigned limit)
{
	unsigned offset = t->list[0].offset + t->list[0].zi.length;
	ZyanStatus status = ZYAN_STATUS_SUCCESS;
	struct fetch f;

	for (t->listed = 1; t->listed < limit && offset < 4096; t->listed++) {
		struct decoded *d = &t->list[t->listed];

		if (ends_straight_line(d - 1))
			break;
		fetch(cpu, page, offset, false, &f);
		status = decode(decoder, d, &f);
		if (!ZYAN_SUCCESS(status))
			break;
		d->offset = offset;
		offset += d->zi.length;
	}
	for (unsigned i = 0; i < t->listed; i++)
		t->list[i].use = limit > 1 ? jit_flag_use(t, &t->list[i]) : FLAGS_READ;
	return status;
}

static void begin_insn(struct translation *t, const struct decoded *d)
{
	t->zi = d->zi;
	memcpy(t->op, d->op, sizeof(t->op[0]) * d->zi.operand_count);
	t->bytes = d->bytes;
	t->page_offset = d->offset;
	t->flags_made = false;
	t->point = &t->jit->points[t->jit->point_count++];
	*t->point = (struct point){ .code = t->e.p - t->jit->rw, .page_offset = d->offset,
				    .length = d->zi.length,
				    .recipe = t->flags == FLAGS_LOST ? t->recipe_number : 0 };
	t->block->points++;
}

static void end_insn(struct translation *t, const struct decoded *d)
{
	jit_keep_recipe(t, d);
	if (t->flags_made)
		jit_note_flags(t);
	t->jit->stat_insns++;
}

// A conditional jump back to the block's start: its body may be repeated instead, which saves the
// look at the request word and the flags that the body overwrites.
static bool closes_loop(const struct translation *t, const struct decoded *d, unsigned emitted)
{
	return d->zi.meta.category == ZYDIS_CATEGORY_COND_BR && MODE_64(t->mode) &&
	       (d->zi.opcode_map == ZYDIS_OPCODE_MAP_0F || (d->zi.opcode & 0xf0) == 0x70) &&
	       d->offset + d->zi.length + d->op[0].imm.value.s == t->list[0].offset &&
	       emitted + t->index + 1 <= MAX_INSNS;
}

static void find_loop(struct translation *t)
{
	for (unsigned i = 0; i < t->listed; i++) {
		t->index = i;
		t->loop |= closes_loop(t, &t->list[i], 0);
	}
}

#define UNROLL 4

static void emit_block(struct translation *t, unsigned limit, ZyanStatus last)
{
	unsigned emitted = 0, rounds = 1;
	bool shadowed;

	for (t->index = 0;; t->index++) {
		struct decoded *d = &t->list[t->index];

		if (t->index == t->listed) {
			if (t->listed < limit && !ZYAN_SUCCESS(last) && last != ZYDIS_STATUS_NO_MORE_DATA &&
			    last != MEMORY_IS_GONE) {
				*d = (struct decoded){ .offset = d[-1].offset + d[-1].zi.length,
						       .zi.length = 1 };
				begin_insn(t, d);
				// What is too long raises #GP, everything else that is none #UD.
				tr_raise(t, last == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? VECTOR_GP : VECTOR_UD);
				t->listed++;
				return;
			}
			t->zi.length = 0;
			t->page_offset = d[-1].offset;
			tr_goto_offset(t, d[-1].offset + d[-1].zi.length, SITE(0, SITE_NEXT, 0));
			return;
		}
		shadowed = t->sti_shadow;
		begin_insn(t, d);
		emitted++;
		if (rounds < UNROLL && closes_loop(t, d, emitted)) {
			tr_repeat(t);
			rounds++;
			t->index = -1u;
			continue;
		}
		translate_insn(t);
		end_insn(t, d);
		if (t->done) {
			t->listed = t->index + 1;
			return;
		}
		if (shadowed) {
			t->listed = t->index + 1;
			tr_goto_offset(t, d->offset + d->zi.length, SITE(0, SITE_NEXT, 0));
			return;
		}
	}
}

// Translates at cpu->rip, whose page is at `page`. The guest's vector state is put away: Zydis may
// use vector registers.
struct block *jit_translate(struct cpu *cpu, u8 *page, u64 gpa, u32 mode)
{
	struct jit *jit = cpu->jit;
	struct translation t = { .cpu = cpu, .jit = jit, .mode = mode, .list = jit->decoded };
	unsigned limit = mode & (MODE_SINGLE | MODE_SLOWMEM | MODE_WAIT) ? 1 : MAX_INSNS;
	ZydisDecoder decoder;
	ZyanStatus first, last;
	u64 flushes;
	struct fetch f;

	init_decoder(&decoder, cpu, mode);
	jit_make_room(cpu);
	// A first instruction that crosses the page needs the next page, whose fetch may fault: find out
	// before anything is allocated. Waiting for other vCPUs may flush the cache, which takes back that
	// the page is known to hold code: then look at its bytes again.
	do {
		flushes = jit->stat_flushes;
		jit_page_gets_code(cpu, gpa);
		t.list[0].offset = gpa & 0xfff;
		fetch(cpu, page, gpa & 0xfff, false, &f);
		first = decode(&decoder, &t.list[0], &f);
		if (first == ZYDIS_STATUS_NO_MORE_DATA) {
			fetch(cpu, page, gpa & 0xfff, true, &f);
			jit_page_gets_code(cpu, f.gpa2);
			fetch(cpu, page, gpa & 0xfff, true, &f);
			first = decode(&decoder, &t.list[0], &f);
			limit = 1;
		}
		if (first == MEMORY_IS_GONE)
			guest_fault(cpu, f.at);
	} while (flushes != jit->stat_flushes);
	t.block = jit_new_block(cpu, gpa, mode);
	t.e = (struct emit){ jit->next, jit->rw + jit->size, jit->rx - jit->rw };
	t.block->code = jit->next - jit->rw;
	t.block->gpa2 = f.gpa2;
	t.block->branch = ZYAN_SUCCESS(first) && t.list[0].zi.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
	t.flags = FLAGS_MEM;
	if (!(mode & MODE_SINGLE)) {
		e_alu_field_imm(&t.e, 7, OFF(request), 0);
		tr_cold(&t, (struct cold){ .kind = COLD_REQUEST, .hole = e_jcc_hole(&t.e, CC_NE),
					   .target = gpa & 0xfff });
	}
	if (!ZYAN_SUCCESS(first)) {
		t.list[0] = (struct decoded){ .offset = gpa & 0xfff, .zi.length = 1 };
		begin_insn(&t, &t.list[0]);
		t.listed = 1;
		if (!(mode & MODE_WAIT) || !translate_waiting(&t, false))
			tr_raise(&t, first == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? VECTOR_GP : VECTOR_UD);
	} else {
		last = decode_ahead(cpu, &decoder, &t, page, limit);
		if (mode & MODE_WAIT) {
			begin_insn(&t, &t.list[0]);
			if (!translate_waiting(&t, true)) {
				jit->point_count--; // INT3, INT1: as ever
				t.block->points--;
				emit_block(&t, limit, last);
			}
		} else {
			find_loop(&t);
			emit_block(&t, limit, last);
		}
	}
	t.block->length = t.list[t.listed - 1].offset + t.list[t.listed - 1].zi.length - (gpa & 0xfff);
	tr_emit_colds(&t);
	t.block->code_size = t.e.p - (jit->rw + t.block->code);
	BUG_ON(t.block->code_size > 64 << 10);
	jit->next = t.e.p;
	jit_publish_block(jit, t.block, page, f.second);
	return t.block;
}
