// SPDX-License-Identifier: MIT
// AMX through the handlers: configuration, loads and stores with faults in their midst, products
// against a model, and every condition for #UD, #NM and #GP. XSAVE with tiles: tests/cpu/insn_xsave.c
// and the end of this file.
#include "fixture.h"

#include "cpu/amx.h"
#include "cpu/insn.h"
#include "cpu/fpu.h"
#include "xstate/xstate.h"

#include <math.h>
#include <stdlib.h>

enum { P = 1, W = 2, U = 4 };
#define PML4 0x1000
#define BASE 0x400000ull
#define AT(linear) (ram + 0x100000 + ((linear) - BASE))
#define TILES XSTATE_MASK_AMX

static struct cpu_cpuid_entry entries[CPU_MAX_CPUID];

static void setup(void)
{
	unsigned count;

	fixture_reset();
	count = cpuid_supported_with(entries, CPU_MAX_CPUID, XSTATE_MASK(XSTATE_TILEDATA));
	cpuid_set(cpu, entries, count);
	*qword(PML4) = 0x2000 | P | W | U;
	*qword(0x2000) = 0x3000 | P | W | U;
	*qword(0x3000 + 8 * 2) = 0x4000 | P | W | U;
	for (unsigned n = 0; n < 32; n++)
		*qword(0x4000 + 8 * n) = (0x100000 + n * 4096) | P | W | U;
	fixture_long_mode(PML4, 0);
	cpu_set_xcr0(cpu, 7 | TILES, BY_HOST);
	cpu->xfd = cpu->xfd_err = 0;
	amx_reset(cpu);
}

static const struct insn_row *row(unsigned mnemonic)
{
	const struct insn_row *r = rows_amx;

	while (r->mnemonic && r->mnemonic != mnemonic)
		r++;
	return r;
}

static int execute(const struct insn *insn)
{
	cpu_fpu_unload(cpu);
	TRY(row(insn->mnemonic)->handler(cpu, insn));
	return outcome.vector;
}

// LDTILECFG and STTILECFG: the operand is at BASE + offset. Others: tiles by number.
static int config_op(unsigned mnemonic, u64 address)
{
	struct insn insn = { .mnemonic = mnemonic, .address_size = 8, .mem_seg = SEG_DS, .mem_base = 0xff, .mem_index = 0xff,
			     .mem_disp = (s64)address };

	return execute(&insn);
}

#define TILE(n) { .kind = OPERAND_TILE, .reg = (n) }

static int tiles(unsigned mnemonic, unsigned to, unsigned a, unsigned b)
{
	struct insn insn = { .mnemonic = mnemonic, .op = { TILE(to), TILE(a), TILE(b) } };

	return execute(&insn);
}

// [RBX + RCX * scale + disp]
static int move(unsigned mnemonic, unsigned tile, u64 base, u64 index, unsigned scale)
{
	bool store = mnemonic == ZYDIS_MNEMONIC_TILESTORED;
	struct insn insn = { .mnemonic = mnemonic, .address_size = 8, .mem_seg = SEG_DS, .mem_base = RBX, .mem_index = RCX,
			     .mem_scale = scale };

	insn.op[store] = (struct operand)TILE(tile);
	cpu->gpr[RBX] = base;
	cpu->gpr[RCX] = index;
	return execute(&insn);
}
#define CONFIG(name, address) (u64)config_op(ZYDIS_MNEMONIC_##name, address)
#define TILES_OP(name, ...) (u64)tiles(ZYDIS_MNEMONIC_##name, __VA_ARGS__)
#define MOVE(name, ...) (u64)move(ZYDIS_MNEMONIC_##name, __VA_ARGS__)
#define NONE (u64)NO_EXCEPTION

static u8 *config(void)
{
	u8 *c = AT(BASE);

	memset(c, 0, 64);
	c[0] = 1;
	return c;
}

static void shape(u8 *c, unsigned tile, unsigned rows, unsigned bytes)
{
	c[48 + tile] = rows;
	c[16 + 2 * tile] = bytes;
	c[16 + 2 * tile + 1] = bytes >> 8;
}

static void configure(unsigned rows, unsigned bytes)
{
	u8 *c = config();

	for (unsigned i = 0; i < 8; i++)
		shape(c, i, rows, bytes);
	CONFIG(LDTILECFG, BASE);
}

static void random_fill(void *at, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		((u8 *)at)[i] = rand();
}

static void test_config(void)
{
	static const struct { const char *what; unsigned at; u8 value; bool good; } rows[] = {
		{ "as it is", 63, 0, true },	      { "palette 2", 0, 2, false },
		{ "palette 255", 0, 255, false },     { "start_row", 1, 3, true },
		{ "reserved byte 2", 2, 1, false },   { "reserved byte 15", 15, 1, false },
		{ "colsb of tile 8", 32, 1, false },  { "colsb of tile 15", 47, 1, false },
		{ "rows of tile 8", 56, 1, false },   { "rows of tile 15", 63, 1, false },
		{ "colsb 65", 16, 65, false },	      { "colsb 256 + 64", 17, 1, false },
		{ "rows 17", 48, 17, false },	      { "rows 16", 48, 16, true },
		{ "rows 0 with columns", 48, 0, false }, { "columns 0 with rows", 16, 0, false },
		{ "colsb 63", 16, 63, true },	      { "colsb 1", 16, 1, true },
		{ "a tile without either", 50, 0, true },
	};
	u8 out[64], *c;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup();
		c = config();
		shape(c, 0, 8, 64);
		shape(c, 1, 16, 4);
		c[rows[i].at] = rows[i].value;
		memcpy(out, c, 64);
		is(CONFIG(LDTILECFG, BASE), rows[i].good ? NONE : VECTOR_GP, "LDTILECFG: %s", rows[i].what);
		is(amx_configured(cpu), rows[i].good, "configured");
		is(CONFIG(STTILECFG, BASE + 0x1000), NONE, "STTILECFG");
		if (!rows[i].good)
			memset(out, 0, 64);
		ok(!memcmp(AT(BASE + 0x1000), out, 64), "stores what was loaded");
	}
	setup();
	configure(16, 64);
	cpu->tile_data_in_use = true;
	memset(cpu->tile, 5, sizeof(cpu->tile));
	is(CONFIG(LDTILECFG, BASE), NONE, "LDTILECFG again");
	ok(!cpu->tile[7][15][63] && !cpu->tile[0][0][0] && !cpu->tile_data_in_use, "zeroes all tiles");
	c = config();
	c[0] = 0;
	memset(c + 1, 0xff, 63);
	cpu->tile_data_in_use = true;
	is(CONFIG(LDTILECFG, BASE), NONE, "palette 0: the rest is not looked at");
	ok(!amx_configured(cpu) && !cpu->tile_data_in_use, "initial state");
	c = config();
	c[0] = 9;
	configure(4, 4);
	c[0] = 9;
	is(CONFIG(LDTILECFG, BASE), VECTOR_GP, "a bad one");
	ok(amx_configured(cpu), "leaves the good one");
	is(CONFIG(LDTILECFG, BASE + 0x40000), VECTOR_PF, "#PF");
	is(CONFIG(LDTILECFG, 1ull << 63), VECTOR_GP, "not canonical");
	memset(cpu->tile, 1, sizeof(cpu->tile));
	cpu->tile_data_in_use = true;
	is(TILES_OP(TILERELEASE, 0, 0, 0), NONE, "TILERELEASE");
	ok(!amx_configured(cpu) && !cpu->tile_data_in_use && !cpu->tile[3][3][3], "initial state");
}

// What every instruction checks, in the order of the checks.
static void test_conditions(void)
{
	static const struct { unsigned mnemonic; const char *name; bool needs_config, data; } rows[] = {
#define ROW(name, ...) { ZYDIS_MNEMONIC_##name, #name, __VA_ARGS__ }
		ROW(LDTILECFG, false, false), ROW(STTILECFG, false, false), ROW(TILERELEASE, false, false),
		ROW(TILEZERO, true, true), ROW(TILELOADD, true, true), ROW(TILELOADDT1, true, true),
		ROW(TILESTORED, true, true), ROW(TDPBSSD, true, true), ROW(TDPBSUD, true, true),
		ROW(TDPBUSD, true, true), ROW(TDPBUUD, true, true), ROW(TDPBF16PS, true, true),
#undef ROW
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		bool store = rows[i].mnemonic == ZYDIS_MNEMONIC_TILESTORED;
		struct insn insn = { .mnemonic = rows[i].mnemonic, .address_size = 8, .mem_seg = SEG_DS, .mem_base = RBX,
				     .mem_index = 0xff, .op = { TILE(0), TILE(1), TILE(2) } };
		const char *name = rows[i].name;

		if (store)
			insn.op[1].reg = 0;
#define AFTER(change, wanted, ...) \
		setup(); \
		configure(16, 64); \
		cpu->gpr[RBX] = BASE; \
		change; \
		is((u64)execute(&insn), (u64)(wanted), __VA_ARGS__)
		AFTER(, NO_EXCEPTION, "%s", name);
		AFTER(cpu->cr4 &= ~(u64)CR4_OSXSAVE, VECTOR_UD, "%s without OSXSAVE", name);
		AFTER(cpu->xcr0 = 7, VECTOR_UD, "%s without tiles in XCR0", name);
		AFTER(cpu->seg[SEG_CS].attributes &= ~SEG_L, VECTOR_UD, "%s in compatibility mode", name);
		AFTER(cpu->cr0 |= CR0_TS, VECTOR_NM, "%s with CR0.TS", name);
		is(cpu->xfd_err, 0, "leaves IA32_XFD_ERR");
		AFTER(cpu->xfd = TILES & ~XSTATE_MASK(XSTATE_TILECFG), rows[i].data ? VECTOR_NM : NO_EXCEPTION,
		      "%s with IA32_XFD", name);
		is(cpu->xfd_err, rows[i].data ? XSTATE_MASK(XSTATE_TILEDATA) : 0, "IA32_XFD_ERR");
		AFTER(TILES_OP(TILERELEASE, 0, 0, 0); cpu->xfd = XSTATE_MASK(XSTATE_TILEDATA),
		      rows[i].needs_config ? VECTOR_UD : NO_EXCEPTION, "%s without configuration: before IA32_XFD", name);
		is(cpu->xfd_err, 0, "IA32_XFD_ERR stays");
	}
}

static void test_moves(void)
{
	u8 *c;

	setup();
	c = config();
	shape(c, 0, 5, 12);
	shape(c, 1, 3, 6);
	CONFIG(LDTILECFG, BASE);
	random_fill(AT(BASE + 0x2000), 0x4000);
	memset(cpu->tile[0], 0x77, 1024);
	is(MOVE(TILELOADD, 0, BASE + 0x2000, 100, 2), NONE, "TILELOADD, stride 200");
	bool good = true, zero = true;
	for (unsigned r = 0; r < 16; r++)
		for (unsigned b = 0; b < 64; b++)
			if (r < 5 && b < 12)
				good &= cpu->tile[0][r][b] == AT(BASE + 0x2000)[200 * r + b];
			else
				zero &= !cpu->tile[0][r][b];
	ok(good, "rows of memory");
	ok(zero, "zeros outside the shape");
	is(cpu->tile_config[1], 0, "start_row is 0");
	ok(cpu->tile_data_in_use, "in use");
	is(MOVE(TILELOADD, 1, BASE, 0, 1), VECTOR_UD, "columns not in dwords");
	is(MOVE(TILELOADD, 2, BASE, 0, 1), VECTOR_UD, "a tile that is not there");

	memset(AT(BASE + 0x8000), 0xee, 0x2000);
	is(MOVE(TILESTORED, 0, BASE + 0x9000, -64ull, 4), NONE, "TILESTORED, stride -256");
	good = true;
	for (unsigned r = 0; r < 5; r++) {
		good &= !memcmp(AT(BASE + 0x9000 - 256 * r), cpu->tile[0][r], 12);
		good &= AT(BASE + 0x9000 - 256 * r)[12] == 0xee;
	}
	ok(good, "stored, and not a byte more");

	// The third row faults: two are done, and the instruction goes on from there.
	setup();
	configure(8, 64);
	random_fill(AT(BASE + 0x2000), 0x4000);
	*qword(0x4000 + 8 * 4) = 0; // BASE + 0x4000
	is(MOVE(TILELOADD, 3, BASE + 0x2000, 0x1000, 1), VECTOR_PF, "#PF in the third row");
	is(outcome.address, BASE + 0x4000, "its address");
	is(cpu->tile_config[1], 2, "start_row");
	ok(!memcmp(cpu->tile[3][1], AT(BASE + 0x3000), 64), "the rows before it are loaded");
	*qword(0x4000 + 8 * 4) = 0x104000 | P | W | U;
	tlb_flush_all(cpu);
	memset(AT(BASE + 0x2000), 1, 64); // row 0 is not read again
	is(MOVE(TILELOADD, 3, BASE + 0x2000, 0x1000, 1), NONE, "again");
	ok(!memcmp(cpu->tile[3][7], AT(BASE + 0x9000), 64) && memcmp(cpu->tile[3][0], AT(BASE + 0x2000), 64),
	   "the rest, without the rows that were done");
	is(cpu->tile_config[1], 0, "start_row is 0 again");
	*qword(0x4000 + 8 * 5) = 0x105000 | P | U; // not writable
	tlb_flush_all(cpu);
	cpu->cpl = 3;
	is(MOVE(TILESTORED, 3, BASE + 0x2000, 0x1000, 1), VECTOR_PF, "TILESTORED: #PF in the fourth row");
	ok(outcome.error == (PF_P | PF_W | PF_U) && cpu->tile_config[1] == 3, "error code and start_row");
	is(TILES_OP(TILEZERO, 3, 0, 0), NONE, "TILEZERO");
	ok(!cpu->tile[3][7][5] && !cpu->tile_config[1], "zeros, and start_row is 0");
	cpu->tile_config[1] = 8;
	is(MOVE(TILELOADD, 3, BASE, 0, 1), VECTOR_UD, "start_row behind the last row");
	cpu->tile_config[1] = 7;
	is(MOVE(TILELOADD, 3, BASE, 0, 1), NONE, "start_row at the last row");
	cpu->tile_config[1] = 1;
	is(TILES_OP(TDPBSSD, 0, 1, 2), VECTOR_UD, "products want start_row 0");
	is(MOVE(TILELOADD, 3, 1ull << 60, 0, 1), VECTOR_GP, "not canonical");
}

// ---- products ----

static const struct { unsigned mnemonic; bool signed_a, signed_b; } dots[] = {
	{ ZYDIS_MNEMONIC_TDPBSSD, true, true }, { ZYDIS_MNEMONIC_TDPBSUD, true, false },
	{ ZYDIS_MNEMONIC_TDPBUSD, false, true }, { ZYDIS_MNEMONIC_TDPBUUD, false, false },
};

static long as(u8 byte, bool is_signed) { return is_signed ? (signed char)byte : byte; }

// C is m x n dwords, A m x k, B k x n.
static void shapes(unsigned m, unsigned k, unsigned n)
{
	u8 *c = config();

	shape(c, 2, m, 4 * n);
	shape(c, 5, m, 4 * k);
	shape(c, 6, k, 4 * n);
	CONFIG(LDTILECFG, BASE);
	for (unsigned r = 0; r < 16; r++) {
		random_fill(cpu->tile[2][r], r < m ? 4 * n : 0);
		random_fill(cpu->tile[5][r], r < m ? 4 * k : 0);
		random_fill(cpu->tile[6][r], r < k ? 4 * n : 0);
	}
	cpu->tile_data_in_use = true;
}

static void test_bytes(void)
{
	for (unsigned round = 0; round < 40; round++) {
		unsigned m = 1 + rand() % 16, k = 1 + rand() % 16, n = 1 + rand() % 16, which = round % 4;
		u32 wanted[16][16] = { { 0 } };

		setup();
		shapes(m, k, n);
		for (unsigned i = 0; i < m; i++)
			for (unsigned j = 0; j < n; j++) {
				long sum = ((s64)((u32 *)cpu->tile[2][i])[j]);

				for (unsigned b = 0; b < 4 * k; b++)
					sum += as(cpu->tile[5][i][b], dots[which].signed_a) *
					       as(cpu->tile[6][b / 4][4 * j + b % 4], dots[which].signed_b);
				wanted[i][j] = (u32)sum;
			}
		is((u64)tiles(dots[which].mnemonic, 2, 5, 6), NONE, "product %u x %u x %u, kind %u", m, k, n, which);
		ok(!memcmp(cpu->tile[2], wanted, 1024), "is right");
	}
}

static void test_shapes(void)
{
	static const struct { const char *what; unsigned tile, rows, bytes; } rows[] = {
		{ "C has another number of rows", 2, 3, 16 }, { "A has another number of rows", 5, 5, 8 },
		{ "B has another number of rows", 6, 3, 16 }, { "B has another width", 6, 2, 12 },
		{ "A has another width", 5, 4, 12 },	      { "C has another width", 2, 4, 20 },
		{ "A's width is not in dwords", 5, 4, 9 },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup();
		shapes(4, 2, 4);
		is(TILES_OP(TDPBSSD, 2, 5, 6), NONE, "4 x 2 x 4");
		shape(cpu->tile_config, rows[i].tile, rows[i].rows, rows[i].bytes);
		is(TILES_OP(TDPBSSD, 2, 5, 6), VECTOR_UD, "%s", rows[i].what);
		is(TILES_OP(TDPBF16PS, 2, 5, 6), VECTOR_UD, "%s, bfloat16", rows[i].what);
	}
	setup();
	configure(16, 64);
	is(TILES_OP(TDPBUUD, 1, 1, 2), VECTOR_UD, "C and A the same");
	is(TILES_OP(TDPBUUD, 1, 2, 1), VECTOR_UD, "C and B the same");
	is(TILES_OP(TDPBUUD, 1, 2, 2), VECTOR_UD, "A and B the same");
	is(TILES_OP(TDPBUUD, 1, 2, 8), VECTOR_UD, "tile 8");
}

// Denormals are zeros, in and out.
static float flush(float f)
{
	return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f;
}

static float bf16(const u8 *at)
{
	u32 bits = (u32)at[0] << 16 | (u32)at[1] << 24;
	float f;

	memcpy(&f, &bits, 4);
	return flush(f);
}

static u32 bits_of(float f)
{
	u32 bits;

	memcpy(&bits, &f, 4);
	return bits;
}

static void test_bf16(void)
{
	unsigned different = 0, numbers = 0;

	for (unsigned round = 0; round < 40; round++) {
		unsigned m = 1 + rand() % 16, k = 1 + rand() % 16, n = 1 + rand() % 16;
		float wanted[16][16] = { { 0 } };
		u32 mxcsr = 0x7f80, after; // round to zero: of no consequence

		setup();
		shapes(m, k, n);
		// Exponents near enough to each other that every bit of rounding matters; some denormals.
		for (unsigned i = 0; i < 8192; i += 2) {
			u8 *p = &cpu->tile[0][0][i];
			bool low_half = i % 4 == 0 && i / 1024 == 2;

			if (!low_half && (p[0] || p[1])) {
				unsigned exponent = round % 5 == 4 ? rand() % 90 : 120 + rand() % 12;

				p[1] = (p[1] & 0x80) | exponent >> 1;
				p[0] = (p[0] & 0x7f) | (exponent & 1) << 7;
			}
		}
		for (unsigned i = 0; i < m; i++)
			for (unsigned j = 0; j < n; j++) {
				float even = 0, odd = 0, c;

				memcpy(&c, &cpu->tile[2][i][4 * j], 4);
				for (unsigned l = 0; l < k; l++) {
					even = flush(fmaf(bf16(&cpu->tile[5][i][4 * l]), bf16(&cpu->tile[6][l][4 * j]), even));
					odd = flush(fmaf(bf16(&cpu->tile[5][i][4 * l + 2]), bf16(&cpu->tile[6][l][4 * j + 2]), odd));
				}
				wanted[i][j] = flush(flush(c) + flush(even + odd));
			}
		__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
		tiles(ZYDIS_MNEMONIC_TDPBF16PS, 2, 5, 6);
		__asm__ volatile("stmxcsr %0" : "=m"(after));
		mxcsr = 0x1f80;
		__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
		is(outcome.vector, NONE, "TDPBF16PS %u x %u x %u", m, k, n);
		is(after, 0x7f80, "MXCSR is neither used nor changed");
		for (unsigned i = 0; i < m; i++)
			for (unsigned j = 0; j < n; j++, numbers++) {
				u32 got;

				memcpy(&got, &cpu->tile[2][i][4 * j], 4);
				different += got != bits_of(wanted[i][j]);
			}
		bool zero = true;
		for (unsigned i = 0; i < 16; i++)
			for (unsigned j = 0; j < 64; j++)
				zero &= (i < m && j < 4 * n) || !cpu->tile[2][i][j];
		ok(zero, "zeros outside");
	}
	is(different, 0, "every bit of %u sums", numbers);
}

// ---- XSAVE ----

static void test_xsave(void)
{
	struct insn save = { .mnemonic = ZYDIS_MNEMONIC_XSAVE64, .operand_size = 8, .address_size = 8, .mem_seg = SEG_DS,
			     .mem_base = RBX, .mem_index = 0xff };
	const struct insn_row *r;
	static u8 config_before[64], data_before[8192];
#define XOP(name, mask) \
	for (r = rows_xsave; r->mnemonic != ZYDIS_MNEMONIC_##name; r++) ; \
	cpu->gpr[RAX] = (mask); \
	cpu->gpr[RDX] = 0; \
	cpu->gpr[RBX] = BASE + 0x4000; \
	TRY(r->handler(cpu, &save))
	u8 *area = AT(BASE + 0x4000);
	u64 *header = (u64 *)(area + 512);

	setup();
	cpu_fpu_unload(cpu);
	XOP(XSAVE64, 0x60007);
	is(header[0] & TILES, 0, "initial: XSTATE_BV has no tiles");
	configure(16, 64);
	XOP(XSAVE64, 0x60007);
	is(header[0] & TILES, XSTATE_MASK(XSTATE_TILECFG), "configured");
	ok(!memcmp(area + 2752, AT(BASE), 64), "XTILECFG at its place");
	random_fill(AT(BASE + 0x10000), 1024);
	MOVE(TILELOADD, 6, BASE + 0x10000, 64, 1);
	XOP(XSAVE64, 0x60007);
	is(header[0] & TILES, TILES, "with data");
	ok(!memcmp(area + 2816 + 6 * 1024, AT(BASE + 0x10000), 1024), "tile 6 in XTILEDATA");
	memcpy(config_before, cpu->tile_config, 64);
	memcpy(data_before, cpu->tile, 8192);
	TILES_OP(TILERELEASE, 0, 0, 0);
	XOP(XRSTOR64, 0x60007);
	is(outcome.vector, NONE, "XRSTOR");
	ok(!memcmp(config_before, cpu->tile_config, 64) && !memcmp(data_before, cpu->tile, 8192), "brings both back");
	// IA32_XFD: saving counts the data as initial, loading is #NM.
	cpu->xfd = XSTATE_MASK(XSTATE_TILEDATA);
	XOP(XRSTOR64, 0x60007);
	is(outcome.vector, VECTOR_NM, "XRSTOR of disabled data");
	is(cpu->xfd_err, XSTATE_MASK(XSTATE_TILEDATA), "IA32_XFD_ERR");
	cpu->xfd_err = 0;
	XOP(XRSTOR64, 0x20007);
	is(outcome.vector, NONE, "not if it is not asked for");
	XOP(XSAVE64, 0x60007);
	is(header[0] & TILES, XSTATE_MASK(XSTATE_TILECFG), "XSAVE of disabled data: not in use");
	ok(!area[2816 + 6 * 1024 + 7] && !area[2816 + 6 * 1024 + 8], "zeros");
	memset(area, 0, 0x3000);
	XOP(XSAVEC64, 0x60000);
	is(header[0], XSTATE_MASK(XSTATE_TILECFG), "XSAVEC: not in XSTATE_BV");
	is(header[1], 1ull << 63 | TILES, "but in XCOMP_BV");
	XOP(XRSTOR64, 0x60000);
	is(outcome.vector, NONE, "an image without data can be loaded");
	ok(!cpu->tile_data_in_use, "it makes the data initial");
	cpu->xfd = 0;
	is(fpu_xinuse(cpu) & TILES, XSTATE_MASK(XSTATE_TILECFG), "XINUSE");
	area[576] = 7; // the compacted image begins with XTILECFG: palette 7
	XOP(XRSTOR64, 0x60000);
	is(outcome.vector, NONE, "a configuration that LDTILECFG would refuse");
	ok(!amx_configured(cpu), "becomes the initial one");
}

int main(void)
{
	srand(7);
	test_config();
	test_conditions();
	test_moves();
	test_bytes();
	test_shapes();
	test_bf16();
	test_xsave();
	return done_testing();
}
