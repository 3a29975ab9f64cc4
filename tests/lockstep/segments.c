// SPDX-License-Identifier: MIT
// Segments of an LDT for 32-bit code, the same on the host and in the guest: what they allow is near the
// edges of the data window, so that limits and types are met as often as pages.
#include "lockstep.h"

#include <asm/ldt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct ldt_segment random_segment(struct rng *rng)
{
	static const u16 shift[] = { 0, 0, 1, 4, 0x10, 0x7f3 };
	u32 page = (DATA_BASE >> 12) + below(rng, DATA_PAGES + 2) - 1, base = shift[below(rng, 6)];

	switch (below(rng, 5)) {
	case 0: // up to a page of the window
		return (struct ldt_segment){ .base = base, .limit = page, .pages = true, .big = true };
	case 1: // from there on
		return (struct ldt_segment){ .base = base, .limit = page, .pages = true, .big = true, .expand_down = true };
	case 2: // 64 KiB and less, from the window on
		return (struct ldt_segment){ .base = DATA_BASE + base, .limit = below(rng, 0x4000) };
	case 3:
		return (struct ldt_segment){ .base = DATA_BASE + base, .limit = below(rng, 0x4000), .expand_down = true,
					     .big = chance(rng, 30) };
	default: // flat
		return (struct ldt_segment){ .limit = 0xfffff, .pages = true, .big = chance(rng, 90) };
	}
}

void segments_random(struct program *p, struct rng *rng)
{
	p->segments = true;
	for (unsigned n = LDT_DS; n <= LDT_SS; n++) {
		p->ldt[n] = random_segment(rng);
		p->ldt[n].read_only = n != LDT_SS && chance(rng, 15);
	}
	p->ldt[LDT_CS] = (struct ldt_segment){ .limit = (CODE_BASE >> 12) + below(rng, 2), .pages = true, .big = true,
					       .code = true };
	// Programs begin within the limit: the host's kernel could not get there.
	if (p->start >> 12 > p->ldt[LDT_CS].limit)
		p->ldt[LDT_CS].limit = p->start >> 12;
}

void segments_load_native(const struct program *p)
{
	for (unsigned n = LDT_DS; n < (p->far ? LDT_ALL : LDT_SEGMENTS); n++) {
		const struct ldt_segment *s = &p->ldt[n];
		struct user_desc desc = { .entry_number = n, .base_addr = s->base, .limit = s->limit,
					  .seg_32bit = s->big, .contents = s->code ? 2 + s->conforming : s->expand_down,
					  .seg_not_present = s->absent,
					  .read_exec_only = s->read_only, .limit_in_pages = s->pages };

		if (syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc))) {
			perror("lockstep: modify_ldt");
			exit(2);
		}
	}
	__asm__ volatile("mov %0, %%ds; mov %1, %%es" : : "r"(LDT_SELECTOR(LDT_DS)), "r"(LDT_SELECTOR(LDT_ES)));
}
