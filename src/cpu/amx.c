// SPDX-License-Identifier: MIT
// Advanced Matrix Extensions: tile configuration, loads and stores of tiles, products of tiles.
// SDM: Vol. 1 "Programming with Intel Advanced Matrix Extensions"; each instruction's page, and the
// tables "Type AMX-E1 Class Exception Conditions" to "AMX-E6".
//
// - No host needs to have tiles: they live in struct cpu, integer products are done here, and those
//   of bfloat16 by the host's FMA with the rounding the SDM prescribes.
// - Tile n is 16 rows of 64 bytes, as in XTILEDATA of palette 1, whatever shape it is configured to;
//   what lies outside the shape is zero after every instruction that writes the tile.
// - A load or store that faults has completed the rows before start_row, which says where to go on.
// - #UD comes first, then #NM by CR0.TS, then #NM by IA32_XFD with IA32_XFD_ERR. LDTILECFG, STTILECFG
//   and TILERELEASE never look at IA32_XFD.
#include "cpu/amx.h"
#include "cpu/features.h"
#include "cpu/insn.h"
#include "cpu/mem.h"
#include "cpu/operand.h"
#include "xstate/xstate.h"

#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, PALETTE = 1 };
// Bytes of the configuration in memory.
enum { CONFIG_PALETTE = 0, CONFIG_START_ROW = 1, CONFIG_COLSB = 16, CONFIG_ROWS = 48, CONFIG_SIZE = 64 };
_Static_assert(sizeof(((struct cpu *)0)->tile) == TILES * ROWS * ROW_BYTES, "XTILEDATA");

// ---- configuration ----

bool amx_configured(const struct cpu *cpu)
{
	return cpu->tile_config[CONFIG_PALETTE];
}

static unsigned colsb_of(const u8 *config, unsigned tile)
{
	return config[CONFIG_COLSB + 2 * tile] | config[CONFIG_COLSB + 2 * tile + 1] << 8;
}

static unsigned colsb(const struct cpu *cpu, unsigned tile) { return colsb_of(cpu->tile_config, tile); }
static unsigned rows(const struct cpu *cpu, unsigned tile) { return cpu->tile_config[CONFIG_ROWS + tile]; }

static bool any(const u8 *bytes, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		if (bytes[i])
			return true;
	return false;
}

// Palette 0 is the initial state, whatever else is there.
static bool config_valid(const u8 *config)
{
	if (config[CONFIG_PALETTE] == 0)
		return true;
	if (config[CONFIG_PALETTE] > PALETTE || any(config, 2, CONFIG_COLSB) ||
	    any(config, CONFIG_COLSB + 2 * TILES, CONFIG_ROWS) || any(config, CONFIG_ROWS + TILES, CONFIG_SIZE))
		return false;
	for (unsigned i = 0; i < TILES; i++) {
		unsigned bytes = colsb_of(config, i), n = config[CONFIG_ROWS + i];

		if (bytes > ROW_BYTES || n > ROWS || !bytes != !n)
			return false;
	}
	return true;
}

static void clear_data(struct cpu *cpu)
{
	if (cpu->tile_data_in_use)
		memset(cpu->tile, 0, sizeof(cpu->tile));
	cpu->tile_data_in_use = false;
}

void amx_config_read(const struct cpu *cpu, u8 config[64])
{
	memcpy(config, cpu->tile_config, CONFIG_SIZE);
}

void amx_config_write(struct cpu *cpu, const u8 config[64])
{
	if (config[CONFIG_PALETTE] && config_valid(config))
		memcpy(cpu->tile_config, config, CONFIG_SIZE);
	else
		memset(cpu->tile_config, 0, CONFIG_SIZE);
}

void amx_data_write(struct cpu *cpu, const void *data)
{
	clear_data(cpu);
	if (!data)
		return;
	memcpy(cpu->tile, data, sizeof(cpu->tile));
	cpu->tile_data_in_use = true;
}

void amx_reset(struct cpu *cpu)
{
	memset(cpu->tile_config, 0, CONFIG_SIZE);
	memset(cpu->tile, 0, sizeof(cpu->tile));
	cpu->tile_data_in_use = false;
}

// ---- checks ----

// #UD of all classes but for what the operands say.
static void check_there(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & XSTATE_MASK_AMX) != XSTATE_MASK_AMX || !cpu_64bit(cpu))
		cpu_ud(cpu);
}

static void check_configured(struct cpu *cpu)
{
	check_there(cpu);
	if (!amx_configured(cpu))
		cpu_ud(cpu);
}

static void check_available(struct cpu *cpu, bool uses_data)
{
	if (cpu->cr0 & CR0_TS)
		cpu_raise(cpu, VECTOR_NM);
	if (uses_data && (cpu->xfd & XSTATE_MASK(XSTATE_TILEDATA))) {
		cpu->xfd_err = XSTATE_MASK(XSTATE_TILEDATA);
		cpu_raise(cpu, VECTOR_NM);
	}
}

static bool tile_usable(const struct cpu *cpu, unsigned tile)
{
	return tile < TILES && rows(cpu, tile) && colsb(cpu, tile) % 4 == 0;
}

static void zero_start_row(struct cpu *cpu) { cpu->tile_config[CONFIG_START_ROW] = 0; }

static void zero_rows_from(struct cpu *cpu, unsigned tile, unsigned row)
{
	if (row < ROWS)
		memset(cpu->tile[tile][row], 0, (ROWS - row) * ROW_BYTES);
}

// ---- LDTILECFG, STTILECFG, TILERELEASE, TILEZERO ----

static void ldtilecfg(struct cpu *cpu, const struct insn *insn)
{
	u8 config[CONFIG_SIZE];

	check_there(cpu);
	check_available(cpu, false);
	mem_read(cpu, insn_linear(cpu, insn, CONFIG_SIZE, false), config, CONFIG_SIZE,
		 ACCESS_READ | cpu_access_of_cpl(cpu));
	if (!config_valid(config))
		cpu_gp0(cpu);
	amx_config_write(cpu, config);
	clear_data(cpu);
}

static void sttilecfg(struct cpu *cpu, const struct insn *insn)
{
	check_there(cpu);
	check_available(cpu, false);
	mem_write(cpu, insn_linear(cpu, insn, CONFIG_SIZE, true), cpu->tile_config, CONFIG_SIZE,
		  ACCESS_WRITE | cpu_access_of_cpl(cpu));
}

static void tilerelease(struct cpu *cpu, const struct insn *insn)
{
	check_there(cpu);
	check_available(cpu, false);
	memset(cpu->tile_config, 0, CONFIG_SIZE);
	clear_data(cpu);
}

static void tilezero(struct cpu *cpu, const struct insn *insn)
{
	unsigned tile = insn->op[0].reg;

	check_configured(cpu);
	if (tile >= TILES || !rows(cpu, tile))
		cpu_ud(cpu);
	check_available(cpu, true);
	zero_rows_from(cpu, tile, 0);
	zero_start_row(cpu);
}

// ---- TILELOADD, TILELOADDT1, TILESTORED ----

static void move_rows(struct cpu *cpu, const struct insn *insn, unsigned tile, bool store)
{
	unsigned bytes, row;
	unsigned access = (store ? ACCESS_WRITE : ACCESS_READ) | cpu_access_of_cpl(cpu);
	u64 stride = 0;
	struct insn first = *insn;

	check_configured(cpu);
	if (!tile_usable(cpu, tile) || cpu->tile_config[CONFIG_START_ROW] >= rows(cpu, tile))
		cpu_ud(cpu);
	check_available(cpu, true);
	if (insn->mem_index != 0xff)
		stride = cpu->gpr[insn->mem_index] * insn->mem_scale;
	first.mem_index = 0xff;
	bytes = colsb(cpu, tile);
	for (row = cpu->tile_config[CONFIG_START_ROW]; row < rows(cpu, tile); row++) {
		u64 offset = address_truncate(insn_offset(cpu, &first) + row * stride, insn->address_size);
		u64 linear = segment_linear(cpu, insn->mem_seg, offset, bytes, store);
		u8 data[ROW_BYTES] = { 0 };

		if (store) {
			mem_write(cpu, linear, cpu->tile[tile][row], bytes, access);
		} else {
			mem_read(cpu, linear, data, bytes, access);
			memcpy(cpu->tile[tile][row], data, ROW_BYTES);
			cpu->tile_data_in_use = true;
		}
		// A fault of the next row finds this one done; so does what user space answers for it.
		cpu->tile_config[CONFIG_START_ROW] = row + 1;
		cpu->replay = false;
	}
	if (!store)
		zero_rows_from(cpu, tile, row);
	zero_start_row(cpu);
}

static void tileload(struct cpu *cpu, const struct insn *insn)
{
	move_rows(cpu, insn, insn->op[0].reg, false);
}

static void tilestore(struct cpu *cpu, const struct insn *insn)
{
	move_rows(cpu, insn, insn->op[1].reg, true);
}

// ---- products ----

struct product {
	unsigned to, a, b;	// tiles
	unsigned m, k, n;	// rows of A and C; dwords of A's rows, rows of B; dwords of B's and C's rows
};

static struct product check_product(struct cpu *cpu, const struct insn *insn)
{
	struct product p = { .to = insn->op[0].reg, .a = insn->op[1].reg, .b = insn->op[2].reg };

	check_configured(cpu);
	if (p.to == p.a || p.to == p.b || p.a == p.b || !tile_usable(cpu, p.to) || !tile_usable(cpu, p.a) ||
	    !tile_usable(cpu, p.b))
		cpu_ud(cpu);
	p.m = rows(cpu, p.to);
	p.k = colsb(cpu, p.a) / 4;
	p.n = colsb(cpu, p.to) / 4;
	if (rows(cpu, p.a) != p.m || rows(cpu, p.b) != p.k || colsb(cpu, p.b) != colsb(cpu, p.to) ||
	    cpu->tile_config[CONFIG_START_ROW])
		cpu_ud(cpu);
	check_available(cpu, true);
	cpu->tile_data_in_use = true;
	return p;
}

// Row `row` of C has its sum; nothing is there beyond its dwords.
static void end_row(struct cpu *cpu, const struct product *p, unsigned row, const void *sum)
{
	u8 *to = cpu->tile[p->to][row];

	memcpy(to, sum, p->n * 4);
	memset(to + p->n * 4, 0, ROW_BYTES - p->n * 4);
}

static int widen(u8 byte, bool is_signed)
{
	return is_signed ? (signed char)byte : byte;
}

static void dot_bytes(struct cpu *cpu, const struct insn *insn, bool signed_a, bool signed_b)
{
	struct product p = check_product(cpu, insn);

	for (unsigned m = 0; m < p.m; m++) {
		const u8 *a = cpu->tile[p.a][m];
		u32 sum[ROW_BYTES / 4];

		memcpy(sum, cpu->tile[p.to][m], sizeof(sum));
		for (unsigned k = 0; k < p.k; k++)
			for (unsigned n = 0; n < p.n; n++) {
				const u8 *b = &cpu->tile[p.b][k][4 * n];

				for (unsigned i = 0; i < 4; i++)
					sum[n] += (u32)(widen(a[4 * k + i], signed_a) * widen(b[i], signed_b));
			}
		end_row(cpu, &p, m, sum);
	}
	zero_rows_from(cpu, p.to, p.m);
	zero_start_row(cpu);
}

static void tdpbssd(struct cpu *cpu, const struct insn *insn) { dot_bytes(cpu, insn, true, true); }
static void tdpbsud(struct cpu *cpu, const struct insn *insn) { dot_bytes(cpu, insn, true, false); }
static void tdpbusd(struct cpu *cpu, const struct insn *insn) { dot_bytes(cpu, insn, false, true); }
static void tdpbuud(struct cpu *cpu, const struct insn *insn) { dot_bytes(cpu, insn, false, false); }

// Round to nearest even, denormals are zeros on both sides, nothing is raised: whatever the guest's
// MXCSR says. The guest's vector registers are put away, so the host's FMA is free for use.
#define MXCSR_AMX 0x9fc0u

// sum += a * b, each fused; float32 in 32 bits.
static inline void fused(u32 *sum, u32 a, u32 b)
{
	__asm__ volatile("vmovd %0, %%xmm0; vmovd %1, %%xmm1; vmovd %2, %%xmm2; vfmadd231ss %%xmm2, %%xmm1, %%xmm0;"
			 "vmovd %%xmm0, %0" : "+m"(*sum) : "m"(a), "m"(b));
}

static inline void add(u32 *sum, u32 a)
{
	__asm__ volatile("vmovd %0, %%xmm0; vmovd %1, %%xmm1; vaddss %%xmm1, %%xmm0, %%xmm0; vmovd %%xmm0, %0"
			 : "+m"(*sum) : "m"(a));
}

static u32 float_of_bf16(const u8 *at)
{
	return (u32)at[0] << 16 | (u32)at[1] << 24;
}

static void bf16_rows(struct cpu *cpu, const struct product *p)
{
	for (unsigned m = 0; m < p->m; m++) {
		const u8 *a = cpu->tile[p->a][m];
		u32 c[ROW_BYTES / 4], pairs[ROW_BYTES / 4][2] = { { 0 } };

		memcpy(c, cpu->tile[p->to][m], sizeof(c));
		for (unsigned k = 0; k < p->k; k++)
			for (unsigned n = 0; n < p->n; n++) {
				const u8 *b = &cpu->tile[p->b][k][4 * n];

				fused(&pairs[n][0], float_of_bf16(a + 4 * k), float_of_bf16(b));
				fused(&pairs[n][1], float_of_bf16(a + 4 * k + 2), float_of_bf16(b + 2));
			}
		for (unsigned n = 0; n < p->n; n++) {
			add(&pairs[n][0], pairs[n][1]);
			add(&c[n], pairs[n][0]);
		}
		end_row(cpu, p, m, c);
	}
}

static void tdpbf16ps(struct cpu *cpu, const struct insn *insn)
{
	struct product p = check_product(cpu, insn);
	u32 old, ours = MXCSR_AMX;

	__asm__ volatile("stmxcsr %0; ldmxcsr %1" : "=m"(old) : "m"(ours) : "memory");
	bf16_rows(cpu, &p);
	__asm__ volatile("ldmxcsr %0" : : "m"(old) : "memory");
	zero_rows_from(cpu, p.to, p.m);
	zero_start_row(cpu);
}

#define ROW(name, flags, feature, handler) { ZYDIS_MNEMONIC_##name, INSN_C, flags, FEATURE_##feature, handler }

const struct insn_row rows_amx[] = {
	ROW(LDTILECFG, 0, AMX_TILE, ldtilecfg),
	ROW(STTILECFG, 0, AMX_TILE, sttilecfg),
	ROW(TILERELEASE, 0, AMX_TILE, tilerelease),
	ROW(TILEZERO, 0, AMX_TILE, tilezero),
	ROW(TILELOADD, 0, AMX_TILE, tileload),
	ROW(TILELOADDT1, 0, AMX_TILE, tileload),
	ROW(TILESTORED, 0, AMX_TILE, tilestore),
	ROW(TDPBSSD, 0, AMX_INT8, tdpbssd),
	ROW(TDPBSUD, 0, AMX_INT8, tdpbsud),
	ROW(TDPBUSD, 0, AMX_INT8, tdpbusd),
	ROW(TDPBUUD, 0, AMX_INT8, tdpbuud),
	ROW(TDPBF16PS, INSN_UNLOAD_FPU, AMX_BF16, tdpbf16ps),
	{ 0 },
};
