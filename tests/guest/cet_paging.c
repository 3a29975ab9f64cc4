// SPDX-License-Identifier: MIT
// Shadow-stack pages: every kind of page met by every kind of access, in both rings, with the exact
// #PF error code; large pages; upper entries; the A and D bits.
#include "kit.h"

#define AT FREE_VA
#define LARGE 0xc0000000ull /* a 2 MiB page */

CODE(load, "mov (%rdi), %rax");
CODE(store, "mov %rax, (%rdi)");
CODE(ss_load, "mov $0, %eax; incsspq %rax");
CODE(ss_store, "wrssq %rax, (%rdi)");
CODE(wruss, "wrussq %rax, (%rdi)");
CODE(ss_lock, "rstorssp (%rdi)");
CODE(rmw, "lock addq $0, (%rdi)");

/* A page kind: leaf bits without P. */
static const struct {
	const char *name;
	u64 leaf;
	bool writable, dirty, user;
} kinds[] = {
	{"shadow-stack page, supervisor", PT_D, false, true, false},
	{"shadow-stack page, user", PT_D | PT_U, false, true, true},
	{"read-only clean page, supervisor", 0, false, false, false},
	{"read-only clean page, user", PT_U, false, false, true},
	{"writable dirty page, supervisor", PT_W | PT_D, true, true, false},
	{"writable dirty page, user", PT_W | PT_D | PT_U, true, true, true},
	{"writable clean page, supervisor", PT_W, true, false, false},
	{"writable clean page, user", PT_W | PT_U, true, false, true},
};

enum access { LOAD, STORE, SS_STORE, SS_LOCK, WRUSS };
static const char *const access_names[] = {"read", "write", "WRSS", "RSTORSSP", "WRUSS"};

static char text[160];

static const char *label(const char *access, bool user, const char *kind)
{
	const char *parts[] = {access, user ? " in ring 3, " : " in ring 0, ", kind};
	char *to = text;

	for (int i = 0; i < 3; i++)
		for (const char *s = parts[i]; *s;)
			*to++ = *s++;
	*to = 0;
	return text;
}

/* What the manual says must come of it: DONE, or #PF with this code. */
static u64 expected(enum access access, bool user, int kind, u64 *error)
{
	bool ss = access >= SS_STORE, as_user = user || access == WRUSS;
	bool write = access != LOAD;
	bool fault;

	if (ss)
		fault = kinds[kind].writable || !kinds[kind].dirty || kinds[kind].user != as_user;
	else
		fault = (as_user && !kinds[kind].user) || (write && !kinds[kind].writable);
	*error = PF_P | (write ? PF_W : 0) | (as_user ? PF_U : 0) | (ss ? PF_SS : 0);
	return fault ? PF : DONE;
}

static void test_matrix(void)
{
	u64 frame = ADDR(alloc_page());
	u64 *content = (u64 *)frame;

	for (int kind = 0; kind < (int)(sizeof(kinds) / sizeof(kinds[0])); kind++)
		for (int user = 0; user < 2; user++)
			for (enum access access = LOAD; access <= WRUSS; access++) {
				static const u8 *const code[] = {load, store, ss_store, ss_lock, wruss};
				struct run r = user ? run_ss3(code[access]) : run_ss0(code[access]);
				u64 error, vector = expected(access, user, kind, &error);

				if (access == WRUSS && user)
					continue;
				if (user)
					r.u_cet |= CET_WRSS_EN;
				else
					r.s_cet |= CET_WRSS_EN;
				map_page(AT, frame, kinds[kind].leaf | PT_P | PT_A);
				content[1] = 0;
				content[2] = (AT + 24) | 1;
				r.gpr[RDI] = AT + (access == SS_LOCK ? 16 : 8);
				r.gpr[RAX] = 0x5555;
				run(&r);
				const char *name = label(access_names[access], user, kinds[kind].name);
				if (vector == DONE)
					CHECK_DONE(name);
				else if (CHECK_FAULT(PF, error, name))
					CHECK(outcome.cr2 == r.gpr[RDI] && content[1] == 0, "it changes nothing");
			}
	unmap_page(AT);
}

static void test_reads(void)
{
	struct run r = run_ss3(ss_load);

	/* INCSSPQ 0 reads at SSP: a plain shadow-stack read, no W in the code. */
	r.pl3_ssp = AT + 8;
	static const struct {
		u64 leaf;
		const char *name;
	} rows[] = {
		{PT_P | PT_U | PT_W | PT_D, "shadow-stack read of a writable page"},
		{PT_P | PT_U, "shadow-stack read of a read-only clean page"},
		{PT_P | PT_D, "shadow-stack read in ring 3 of a supervisor shadow-stack page"},
	};
	for (int i = 0; i < 3; i++) {
		map_page(AT, stack_top(5) - 4096, rows[i].leaf);
		run(&r);
		CHECK_FAULT(PF, PF_P | PF_U | PF_SS, rows[i].name);
	}
	unmap_page(AT);
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_SS, "shadow-stack read of a page that is not there");
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_D);
	run(&r);
	CHECK_DONE("shadow-stack read of a user shadow-stack page");
	CHECK_EQ(*pte_of(AT, 1) & PT_A, PT_A, "sets A");
	unmap_page(AT);
}

static void test_upper_entries(void)
{
	struct run r = run_ss3(ss_store);
	u64 *upper;

	r.u_cet |= CET_WRSS_EN;
	r.gpr[RDI] = AT + 8;
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_D);
	for (int level = 2; level <= 4; level++) {
		static const char *const names[] = {
			"shadow-stack page under a read-only PDE", "... under a read-only PDPTE",
			"... under a read-only PML4E"};
		/* Level 4 also maps the guest itself, which then may only be read: CR0.WP off does not
		 * help with CET, so that level has a region of its own. */
		u64 va = level == 4 ? FREE_VA_HIGH : AT;

		map_page(va, stack_top(5) - 4096, PT_P | PT_U | PT_D);
		r.gpr[RDI] = va + 8;
		run(&r);
		CHECK_DONE("WRSS with writable upper entries");
		if (level == 3) {
			/* The PDPTE covers 1 GiB from 2 GiB, where the kit's shadow stacks are too. */
			continue;
		}
		upper = pte_of(va, level);
		*upper &= ~PT_W;
		flush_tlb();
		run(&r);
		CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, names[level - 2]);
		*upper |= PT_W;
		flush_tlb();
	}
	upper = pte_of(AT, 2);
	*upper &= ~PT_U;
	flush_tlb();
	r.gpr[RDI] = AT + 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "user shadow-stack page under a supervisor PDE");
	r = run_ss0(ss_store);
	r.s_cet |= CET_WRSS_EN;
	r.gpr[RDI] = AT + 8;
	run(&r);
	CHECK_DONE("the same is a supervisor shadow-stack page");
	*upper |= PT_U;
	flush_tlb();
	unmap_page(AT);
	unmap_page(FREE_VA_HIGH);
}

static void test_large_page(void)
{
	struct run r = run_ss3(ss_store);
	u64 frame = 0x4000000; /* 64 MiB: nothing of the guest is there */

	r.u_cet |= CET_WRSS_EN;
	r.gpr[RDI] = LARGE + 0x12348;
	r.gpr[RAX] = 0x77;
	*pte_of(LARGE, 2) = frame | PT_P | PT_U | PT_D | PT_A | PT_PS;
	flush_tlb();
	run(&r);
	CHECK_DONE("WRSS to a 2 MiB shadow-stack page");
	CHECK_EQ(*(u64 *)(frame + 0x12348), 0x77, "stores");
	*pte_of(LARGE, 2) = frame | PT_P | PT_U | PT_A | PT_PS;
	flush_tlb();
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRSS to a 2 MiB page with D=0");
	*pte_of(LARGE, 2) = frame | PT_P | PT_U | PT_A | PT_D | PT_W | PT_PS;
	flush_tlb();
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRSS to a writable 2 MiB page");
	*pte_of(LARGE, 2) = 0;
	flush_tlb();
}

static void test_dirty(void)
{
	struct run r = run_ss3(ss_store);

	/* With CET the processor does not set D where the page is not writable. */
	r.u_cet |= CET_WRSS_EN;
	r.gpr[RDI] = AT + 8;
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U);
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & PT_D, 0, "a shadow-stack write that faults sets no D");
	r = run_ss3(store);
	r.gpr[RDI] = AT + 8;
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & PT_D, 0, "an ordinary write that faults sets no D");
	r.rip = ADDR(rmw);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "a locked read-modify-write of a read-only page");
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_W);
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & (PT_A | PT_D), PT_A | PT_D, "a write to a writable page sets A and D");

	/* The TLB tells the kinds apart: a page that was just written is still no shadow stack, and the
	 * page turned into one is still no place for stores. */
	r = run_ss3(ss_store);
	r.u_cet |= CET_WRSS_EN;
	r.gpr[RDI] = AT + 8;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U | PF_SS, "WRSS to a page just written");
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_D);
	run(&r);
	CHECK_DONE("the page becomes a shadow stack");
	r.rip = ADDR(store);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "a store to a page just written by WRSS");
	r.rip = ADDR(load);
	run(&r);
	CHECK_DONE("a load from it");
	unmap_page(AT);
}

void test_main(void)
{
	if (!has_shstk)
		return;
	test_matrix();
	test_reads();
	test_upper_entries();
	test_large_page();
	test_dirty();
}
