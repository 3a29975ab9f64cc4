// SPDX-License-Identifier: MIT
// Compares two end states completely and prints what differs in two columns.
#include "lockstep.h"

#include <stdio.h>
#include <string.h>

bool ignore_fip = true;

struct view { // an XSAVE image with components in their initial state filled in
	u16 fcw, fsw, fop;
	u8 ftw;
	u64 fip, fdp;
	u32 mxcsr;
	u8 st[8][10];
	u8 xmm[16][16];
	u8 upper[XSAVE_MAX - 576] __attribute__((aligned(8)));
};

// A gather or masked store that faults: which of its bytes faulted, and what it had done to its mask and
// destination by then, differs between processors.
static bool loose(const struct program *p, const struct state *s)
{
	return p->masked && (s->vector == 13 || s->vector == 14 || s->vector == 12);
}

// AMD's processors also want an offset canonical before a segment's base makes it so; the SDM, whose rule
// the engine follows, only the sum.
static bool amd_offset_check(const struct program *p, const struct state *silicon, const struct state *engine)
{
	return p->gs && silicon->vector == 13 && engine->vector == 14 && silicon->rip == engine->rip;
}

// The engine's own memcmp() and memset() make no hurry.
static bool bytes_differ(const void *a, const void *b, size_t size)
{
	const u8 *x = a, *y = b;
	u64 p, q, difference = 0;

	for (; size >= 8; size -= 8, x += 8, y += 8) {
		__builtin_memcpy(&p, x, 8);
		__builtin_memcpy(&q, y, 8);
		difference |= p ^ q;
	}
	while (size--)
		difference |= *x++ ^ *y++;
	return difference;
}

static bool data_differ(const struct program *p, const u8 *a, const u8 *b)
{
	unsigned from = 0;

	if (!p->ignored_count)
		return bytes_differ(a, b, DATA_SIZE);
	for (unsigned i = 0; i <= p->ignored_count; i++) { // they are in order
		unsigned to = i < p->ignored_count ? p->ignored[i].from : DATA_SIZE;

		if (to > DATA_SIZE)
			to = DATA_SIZE;
		if (to > from && bytes_differ(a + from, b + from, to - from))
			return true;
		if (i < p->ignored_count && p->ignored[i].to > from)
			from = p->ignored[i].to;
	}
	return false;
}

static size_t view_size(void)
{
	return offsetof(struct view, upper) + xsave_size - 576;
}

static void view_of(struct view *v, const u8 *xsave, bool mode32)
{
	u64 bv;

	for (unsigned i = 0; i < view_size() / 8; i++)
		((u64 *)v)[i] = 0;
	memcpy(&bv, xsave + 512, 8);
	memcpy(&v->mxcsr, xsave + 24, 4);
	v->fcw = 0x37f;
	if (bv & 1) {
		memcpy(&v->fcw, xsave, 2);
		memcpy(&v->fsw, xsave + 2, 2);
		v->ftw = xsave[4];
		if (!ignore_fip) {
			memcpy(&v->fop, xsave + 6, 2);
			memcpy(&v->fip, xsave + 8, mode32 ? 4 : 8);
			memcpy(&v->fdp, xsave + 16, mode32 ? 4 : 8);
		}
		for (unsigned i = 0; i < 8; i++)
			memcpy(v->st[i], xsave + 32 + 16 * i, 10);
	}
	if (bv & 2)
		memcpy(v->xmm, xsave + 160, mode32 ? 128 : 256);
	for (unsigned i = 576; i < xsave_size; i += 16) {
		unsigned component = i < 832 ? 2 : i < 1152 ? 5 : i < 1664 ? 6 : 7;

		if ((i < 832 || i >= 1088) && (bv >> component & 1)) // a hole between
			memcpy(v->upper + i - 576, xsave + i, 16);
	}
}

static u64 gpr_mask(bool mode32)
{
	return mode32 ? 0xffffffff : ~0ull;
}

bool states_differ(const struct program *p, const struct state *a, const u8 *data_a, const struct state *b,
		   const u8 *data_b)
{
	struct view va, vb;
	bool mode32 = p->mode32;

	if (a->ended || b->ended)
		return !a->ended != !b->ended;
	if (amd_offset_check(p, a, b))
		return false;
	for (unsigned i = 0; i < (mode32 ? 8 : 16); i++)
		if (((a->gpr[i] ^ b->gpr[i]) & gpr_mask(mode32)) && !(p->pops_all && i != 4 && a->vector >= 12))
			return true;
	if ((a->rflags ^ b->rflags) & ~(p->compares && a->vector == 14 ? 0x8d5ull : 0))
		return true;
	if (p->far && (a->cs != b->cs || a->ss != b->ss))
		return true;
	if (a->rip != b->rip || a->vector != b->vector || a->error != b->error)
		return true;
	if (loose(p, a))
		return data_differ(p, data_a, data_b);
	if (p->images ? (a->cr2 ^ b->cr2) >> 12 : a->cr2 != b->cr2)
		return true;
	view_of(&va, a->xsave, mode32);
	view_of(&vb, b->xsave, mode32);
	return bytes_differ(&va, &vb, view_size()) || data_differ(p, data_a, data_b);
}

static void row(const char *name, u64 a, u64 b)
{
	if (a != b)
		printf("#   %-10s %20lx %20lx\n", name, a, b);
}

static void hex(const char *name, unsigned n, const u8 *a, const u8 *b, unsigned size)
{
	if (!memcmp(a, b, size))
		return;
	printf("#   %s%-7x ", name, n);
	for (unsigned i = size; i-- > 0;)
		printf("%02x", a[i]);
	printf("\n#              ");
	for (unsigned i = size; i-- > 0;)
		printf("%02x", b[i]);
	printf("\n");
}

static const char *const gpr_names[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					 "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

void print_difference(const struct program *p, const char *name_a, const struct state *a, const u8 *data_a,
		      const char *name_b, const struct state *b, const u8 *data_b)
{
	struct view va, vb;
	bool mode32 = p->mode32;

	printf("#   %-10s %20s %20s\n", "", name_a, name_b);
	if (a->ended || b->ended)
		printf("#   %-10s %20s %20s\n", "ended by", a->ended ? a->ended : "an exception",
		       b->ended ? b->ended : "an exception");
	row("vector", a->vector, b->vector);
	row("error", a->error, b->error);
	row("cr2", a->cr2, b->cr2);
	row("rip", a->rip, b->rip);
	row("cs", a->cs, b->cs);
	row("ss", a->ss, b->ss);
	row("rflags", a->rflags, b->rflags);
	for (unsigned i = 0; i < (mode32 ? 8 : 16); i++)
		row(gpr_names[i], a->gpr[i] & gpr_mask(mode32), b->gpr[i] & gpr_mask(mode32));
	view_of(&va, a->xsave, mode32);
	view_of(&vb, b->xsave, mode32);
	row("fcw", va.fcw, vb.fcw);
	row("fsw", va.fsw, vb.fsw);
	row("ftw", va.ftw, vb.ftw);
	row("fop", va.fop, vb.fop);
	row("fip", va.fip, vb.fip);
	row("fdp", va.fdp, vb.fdp);
	row("mxcsr", va.mxcsr, vb.mxcsr);
	for (unsigned i = 0; i < 8; i++)
		hex("st", i, va.st[i], vb.st[i], 10);
	for (unsigned i = 0; i < 16; i++)
		hex("xmm", i, va.xmm[i], vb.xmm[i], 16);
	for (unsigned i = 0; i < xsave_size - 576; i += 16)
		hex(i < 256 ? "ymmh" : "upper", i / 16, va.upper + i, vb.upper + i, 16);
	for (unsigned i = 0, shown = 0; i < DATA_SIZE && shown < 4; i += 16)
		if (memcmp(data_a + i, data_b + i, 16)) {
			hex("m", DATA_BASE + i, data_a + i, data_b + i, 16);
			shown++;
		}
}

void print_program(const struct program *p)
{
	ZydisFormatter formatter;
	u16 used = 0;
	u32 mxcsr;

	ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
	for (unsigned i = 0; i < p->count; i++) {
		ZydisDecodedInstruction insn;
		ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
		char text[128] = "(not decoded)", bytes[40];
		u64 at = p->start + p->insn[i].offset;
		unsigned length = p->insn[i].length;

		if (p->code[p->insn[i].offset] == 0x90 && length > 1 && p->code[p->insn[i].offset + 1] == 0x90)
			continue; // taken out by the minimizer
		if (decode(p->code + p->insn[i].offset, &insn, op)) {
			ZydisFormatterFormatInstruction(&formatter, &insn, op, insn.operand_count_visible, text,
							sizeof(text), at, NULL);
			for (unsigned k = 0; k < insn.operand_count; k++) {
				ZydisRegister regs[3] = { 0 };

				if (op[k].type == ZYDIS_OPERAND_TYPE_REGISTER)
					regs[0] = op[k].reg.value;
				if (op[k].type == ZYDIS_OPERAND_TYPE_MEMORY) {
					regs[1] = op[k].mem.base;
					regs[2] = op[k].mem.index;
				}
				for (unsigned r = 0; r < 3; r++) {
					ZydisRegister whole =
						ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, regs[r]);

					if (whole >= ZYDIS_REGISTER_RAX && whole <= ZYDIS_REGISTER_R15)
						used |= 1 << (whole - ZYDIS_REGISTER_RAX);
				}
			}
		}
		for (unsigned k = 0; k < length; k++)
			sprintf(bytes + 2 * k, "%02x", p->code[p->insn[i].offset + k]);
		printf("#   %8lx  %-30s %s\n", at, bytes, text);
	}
	memcpy(&mxcsr, p->state.xsave + 24, 4);
	printf("#   from rflags=%lx fcw=%02x%02x fsw=%02x%02x ftw=%02x mxcsr=%x", p->state.rflags, p->state.xsave[1],
	       p->state.xsave[0], p->state.xsave[3], p->state.xsave[2], p->state.xsave[4], mxcsr);
	for (unsigned i = 0; i < 16; i++)
		if (used >> i & 1)
			printf(" %s=%lx", gpr_names[i], p->state.gpr[i]);
	printf("\n");
}
