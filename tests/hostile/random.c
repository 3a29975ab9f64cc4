// SPDX-License-Identifier: MIT
// A hostile guest: runs random bytes, over and over, in every ring and code size it can enter, with
// random registers, flags and CET state. What it does to itself does not matter; it must do nothing
// to the process that runs it. A timer interrupt ends loops. tests/hostile/run patches the seed in.
#include "kit.h"

#define CODE_VA 0xb8000000ull
#define DATA_VA 0xb9000000ull
#define LAPIC_VA 0xbe000000ull
#define TIMER 0x41

volatile struct {
	char magic[8];
	u64 seed;
} hostile_seed __attribute__((section(".data"))) = {"SEEDHERE", 1};

static u64 state;

static u64 next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1dull;
}

static u32 below(u32 n)
{
	return (next() >> 32) % n;
}

static u64 interesting(void)
{
	static const u64 values[] = {
		0, 1, -1ull, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
		0x8000000000000000, 0x800000000000, 0x7fffffffffff, 0xffff800000000000, 0xfee00000, 0xfec00000,
		0xa0000, 0xfffff, 0xcf8, 0x3f8, 64, 4096, 4095,
	};

	switch (below(4)) {
	case 0: return values[below(sizeof(values) / sizeof(values[0]))];
	case 1: return DATA_VA + below(0x2000) - 16;
	case 2: return below(2) ? SS_BASE + (next() & 0x7ff8) : USS_BASE + (next() & 0x7ff8);
	default: return next();
	}
}

/* One instruction-like handful of bytes. */
static int piece(u8 *to)
{
	static const u8 prefixes[] = {0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x3e, 0x64, 0x65};
	static const u8 system[][5] = {
		{3, 0x0f, 0x22, 0xc0}, {3, 0x0f, 0x22, 0xd8}, {3, 0x0f, 0x22, 0xe0}, {3, 0x0f, 0x20, 0xe0},
		{3, 0x0f, 0x23, 0xf8}, {3, 0x0f, 0x21, 0xf0}, {2, 0x0f, 0x30}, {2, 0x0f, 0x32}, {2, 0x0f, 0x05},
		{2, 0x0f, 0x07}, {2, 0x0f, 0x34}, {2, 0x0f, 0x35}, {2, 0x48, 0xcf}, {1, 0xcf}, {1, 0xcb},
		{2, 0x48, 0xcb}, {3, 0x0f, 0x01, 0x10}, {3, 0x0f, 0x01, 0x18}, {3, 0x0f, 0x00, 0xd0},
		{3, 0x0f, 0x00, 0xd8}, {3, 0x0f, 0x01, 0xf8}, {4, 0xf3, 0x0f, 0x01, 0xe8},
		{4, 0xf3, 0x0f, 0x01, 0xea}, {4, 0xf3, 0x0f, 0x01, 0x2f}, {4, 0xf3, 0x0f, 0xae, 0xe8},
		{4, 0xf3, 0x0f, 0x1e, 0xfa}, {3, 0x0f, 0xae, 0x27}, {3, 0x0f, 0xae, 0x2f}, {3, 0x0f, 0xc7, 0x2f},
		{3, 0x0f, 0xc7, 0x1f}, {3, 0x0f, 0x01, 0xd1}, {2, 0xff, 0xe7}, {2, 0xff, 0xd6}, {2, 0xcd, 0x20},
		{2, 0x0f, 0xa2}, {1, 0x9d}, {1, 0x9c}, {1, 0xf4}, {2, 0xf3, 0xa4}, {2, 0xf3, 0xaa}, {2, 0xf3, 0x6e},
		{2, 0xf3, 0x6c}, {2, 0x0f, 0x0b}, {1, 0xec}, {1, 0xee}, {2, 0x8e, 0xd0}, {2, 0x8e, 0xd8},
	};
	int n = 0;

	switch (below(8)) {
	case 0: /* a system instruction, perhaps with a prefix */
		if (below(4) == 0)
			to[n++] = prefixes[below(sizeof(prefixes))];
		{
			const u8 *s = system[below(sizeof(system) / sizeof(system[0]))];

			for (int i = 0; i < s[0]; i++)
				to[n++] = s[1 + i];
		}
		return n;
	case 1: /* two-byte opcodes */
		if (below(3) == 0)
			to[n++] = prefixes[below(sizeof(prefixes))];
		to[n++] = 0x0f;
		break;
	case 2: /* VEX */
		to[n++] = below(2) ? 0xc5 : 0xc4;
		break;
	case 3: /* three-byte opcodes */
		if (below(2))
			to[n++] = 0x66;
		to[n++] = 0x0f;
		to[n++] = below(2) ? 0x38 : 0x3a;
		break;
	case 4:
		to[n++] = 0x48 | below(8);
		break;
	case 5:
		to[n++] = prefixes[below(sizeof(prefixes))];
		break;
	default:
		break;
	}
	for (int tail = 1 + below(5); tail; tail--)
		to[n++] = next() >> 24;
	return n;
}

static volatile u32 *const lapic = (u32 *)LAPIC_VA;

static void arm_timer(void)
{
	lapic[0xb0 / 4] = 0;          /* EOI of the last one */
	lapic[0x380 / 4] = 20000;     /* initial count */
}

static void set_up_timer(void)
{
	map_page(LAPIC_VA, 0xfee00000, PT_P | PT_W | 1 << 4 | 1 << 3);
	wrmsr(0x1b, 0xfee00000 | 1 << 11 | 1 << 8);
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	lapic[0xf0 / 4] = 0x1ff;
	lapic[0x80 / 4] = 0;
	lapic[0x3e0 / 4] = 0xb;       /* divide by 1 */
	lapic[0x320 / 4] = TIMER;     /* one shot */
}

void test_main(void)
{
	static const u16 selectors[][2] = {
		{CS64, DS0}, {UCS64, UDS}, {UCS64, UDS}, {UCS32, UDS}, {UCS32, UDS}, {CS32, DS0}, {CS64_R1, DS_R1},
		{UCS16, UDS}, {CS16, DS0}, {UCS64, UDS},
	};
	u8 *code = (u8 *)alloc_pages(2);
	u64 data = alloc_pages(2);

	state = hostile_seed.seed * 0x9e3779b97f4a7c15ull | 1;
	for (int i = 0; i < 2; i++) {
		map_page(CODE_VA + i * 4096, ADDR(code) + i * 4096, PT_P | PT_U | PT_W);
		map_page(DATA_VA + i * 4096, data + i * 4096, PT_P | PT_U | PT_W);
	}
	/* Ring 3 sees only its own pages, so that it does not end the show too soon. */
	for (u64 va = 0; va < 1ull << 30; va += 1ull << 21)
		*pte_of(va, 2) &= ~PT_U;
	flush_tlb();
	set_up_timer();
	for (u64 round = 0;; round++) {
		const u16 *s = selectors[below(sizeof(selectors) / sizeof(selectors[0]))];
		struct run r = run_default((void *)CODE_VA);
		u32 offset = below(3) ? below(64) : 4096 - 8 + below(8);

		for (u32 n = offset; n < offset + 64;)
			n += piece(code + n);
		for (int i = 0; i < 16; i++)
			r.gpr[i] = interesting();
		if (below(2))
			r.gpr[RSP] = DATA_VA + 0x1000;
		r.rip = CODE_VA + offset;
		r.cs = s[0];
		r.ss = s[1];
		r.rflags = FL_FIXED | FL_IF | (next() & FL_ARITH) | (below(16) ? 0 : FL_TF) | (below(16) ? 0 : FL_AC) |
			(below(4) ? 0 : FL_DF);
		if (has_cet && below(2)) {
			r.cet = 1;
			r.u_cet = next() & 0x3f & (has_shstk ? ~0 : ~3) & (has_ibt ? ~0 : 3);
			r.s_cet = (s[0] & 3) && below(2) ? CET_SHSTK_EN * has_shstk : 0;
			r.u_cet |= below(4) ? 0 : DATA_VA;
		}
		if (below(64) == 0)
			write_cr0(read_cr0() ^ (below(2) ? CR0_TS : CR0_AM));
		arm_timer();
		run(&r);
	}
}
