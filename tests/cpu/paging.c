// SPDX-License-Identifier: MIT
// The page walker against the rules of "Access Rights", "Page-Fault Exceptions", "Accessed and
// Dirty Flags" and of shadow-stack pages: each permission combination is a row, and a sweep over all
// of them is compared with the rules written down a second time.
#include "fixture.h"

enum { P = 1, W = 2, U = 4, A = 32, D = 64, PS = 128, G = 256 };
#define NX (1ull << 63)
#define KEY(n) ((u64)(n) << 59)

// Tables of the 4-level tests, and the page they map LINEAR to.
#define PML5 0x8000
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define PT 0x4000
#define PAGE 0x5000
#define LINEAR 0x00007123456789abull
#define INDEX(level) (LINEAR >> (12 + 9 * ((level) - 1)) & 511)

static void map_page(u64 upper, u64 leaf)
{
	*qword(PML4 + 8 * INDEX(4)) = PDPT | P | W | U;
	*qword(PDPT + 8 * INDEX(3)) = PD | P | W | U;
	*qword(PD + 8 * INDEX(2)) = PT | upper;
	*qword(PT + 8 * INDEX(1)) = PAGE | leaf;
}

// ---- single rules ----

enum { WP = 1, SMEP = 2, SMAP = 4, AC = 8, PKE = 16, NOCET = 32, NXE = 64 };
#define R ACCESS_READ
#define WR ACCESS_WRITE
#define X ACCESS_FETCH
#define USR ACCESS_USER
#define SS ACCESS_SS
#define IMPL ACCESS_IMPLICIT
#define ALLOWED 0x10000u

static const struct rule {
	const char *name;
	unsigned control;
	u32 pkru;
	u64 upper, leaf;
	unsigned access;
	u32 error; // or ALLOWED
} rules[] = {
	{ "user read of a user page", WP, 0, P | W | U, P | U, R | USR, ALLOWED },
	{ "user read of a supervisor page", WP, 0, P | W | U, P | W, R | USR, PF_P | PF_U },
	{ "user read under a supervisor directory", WP, 0, P | W, P | U, R | USR, PF_P | PF_U },
	{ "user read of nothing", WP, 0, P | W | U, 0, R | USR, PF_U },
	{ "user write of nothing", WP, 0, P | W | U, W | U, WR | USR, PF_U | PF_W },
	{ "user write of a read-only page", WP, 0, P | W | U, P | U, WR | USR, PF_P | PF_W | PF_U },
	{ "user write under a read-only directory", WP, 0, P | U, P | W | U, WR | USR, PF_P | PF_W | PF_U },
	{ "user write of a writable page", WP, 0, P | W | U, P | W | U, WR | USR, ALLOWED },
	{ "user write of a read-only page, WP clear", 0, 0, P | W | U, P | U, WR | USR, PF_P | PF_W | PF_U },
	{ "user fetch", NXE, 0, P | W | U, P | U, X | USR, ALLOWED },
	{ "user fetch of an NX page", NXE, 0, P | W | U, P | U | NX, X | USR, PF_P | PF_U | PF_I },
	{ "user fetch under an NX directory", NXE, 0, P | W | U | NX, P | U, X | USR, PF_P | PF_U | PF_I },
	{ "fetch of nothing without NXE and SMEP has no I/D bit", 0, 0, P | W | U, 0, X | USR, PF_U },
	{ "fetch of nothing with SMEP has the I/D bit", SMEP, 0, P | W | U, 0, X, PF_I },
	{ "NX bit without NXE is reserved", 0, 0, P | W | U, P | U | NX, R | USR, PF_P | PF_U | PF_RSVD },
	{ "supervisor read of a supervisor page", WP, 0, P | W, P, R, ALLOWED },
	{ "supervisor write of a read-only page", WP, 0, P | W, P, WR, PF_P | PF_W },
	{ "supervisor write of a read-only page, WP clear", 0, 0, P | W, P, WR, ALLOWED },
	{ "supervisor read of a user page", WP, 0, P | W | U, P | U, R, ALLOWED },
	{ "supervisor read of a user page under SMAP", WP | SMAP, 0, P | W | U, P | U, R, PF_P },
	{ "the same with EFLAGS.AC", WP | SMAP | AC, 0, P | W | U, P | U, R, ALLOWED },
	{ "implicit access ignores EFLAGS.AC", WP | SMAP | AC, 0, P | W | U, P | U, R | IMPL, PF_P },
	{ "supervisor write of a user page under SMAP", WP | SMAP, 0, P | W | U, P | W | U, WR, PF_P | PF_W },
	{ "SMAP does not guard supervisor pages", WP | SMAP, 0, P | W, P | W | U, WR, ALLOWED },
	{ "supervisor fetch of a user page", NXE, 0, P | W | U, P | U, X, ALLOWED },
	{ "supervisor fetch of a user page under SMEP", SMEP, 0, P | W | U, P | U, X, PF_P | PF_I },
	{ "supervisor fetch of a supervisor page under SMEP", SMEP, 0, P | W, P | U, X, ALLOWED },
	{ "SMAP does not concern fetches", SMAP, 0, P | W | U, P | U, X, ALLOWED },
	{ "reserved address bit", WP, 0, P | W | U, P | U | 1ull << 51, R, PF_P | PF_RSVD },
	{ "reserved bit wins over rights", WP, 0, P | W | U, P | 1ull << 51, WR | USR, PF_P | PF_W | PF_U | PF_RSVD },
	{ "key without access, user read", WP | PKE, 1u << 6, P | W | U, P | U | KEY(3), R | USR, PF_P | PF_U | PF_PK },
	{ "key of another page", WP | PKE, 1u << 6, P | W | U, P | U | KEY(2), R | USR, ALLOWED },
	{ "key without access, supervisor read", WP | PKE, 1u << 6, P | W | U, P | U | KEY(3), R, PF_P | PF_PK },
	{ "key does not concern fetches", WP | PKE, 1u << 6, P | W | U, P | U | KEY(3), X | USR, ALLOWED },
	{ "key does not concern supervisor pages", WP | PKE, 1u << 6, P | W, P | U | KEY(3), R, ALLOWED },
	{ "write-disabled key, user read", WP | PKE, 2u << 6, P | W | U, P | W | U | KEY(3), R | USR, ALLOWED },
	{ "write-disabled key, user write", WP | PKE, 2u << 6, P | W | U, P | W | U | KEY(3), WR | USR, PF_P | PF_W | PF_U | PF_PK },
	{ "write-disabled key, supervisor write", WP | PKE, 2u << 6, P | W | U, P | W | U | KEY(3), WR, PF_P | PF_W | PF_PK },
	{ "write-disabled key, supervisor write, WP clear", PKE, 2u << 6, P | W | U, P | W | U | KEY(3), WR, ALLOWED },
	{ "keys are off without CR4.PKE", WP, 1u << 6, P | W | U, P | U | KEY(3), R | USR, ALLOWED },
	{ "user shadow-stack read", WP, 0, P | W | U, P | U | D, R | USR | SS, ALLOWED },
	{ "user shadow-stack write", WP, 0, P | W | U, P | U | D, WR | USR | SS, ALLOWED },
	{ "shadow-stack read of a writable page", WP, 0, P | W | U, P | W | U | D, R | USR | SS, PF_P | PF_U | PF_SS },
	{ "shadow-stack write of a writable page", WP, 0, P | W | U, P | W | U | D, WR | USR | SS, PF_P | PF_W | PF_U | PF_SS },
	{ "shadow-stack read of a clean read-only page", WP, 0, P | W | U, P | U, R | USR | SS, PF_P | PF_U | PF_SS },
	{ "shadow-stack page under a read-only directory", WP, 0, P | U, P | U | D, R | USR | SS, PF_P | PF_U | PF_SS },
	{ "shadow-stack access of nothing", WP, 0, P | W | U, 0, WR | USR | SS, PF_W | PF_U | PF_SS },
	{ "supervisor shadow-stack access to a user page", WP, 0, P | W | U, P | U | D, R | SS, PF_P | PF_SS },
	{ "user shadow-stack access to a supervisor page", WP, 0, P | W, P | U | D, R | USR | SS, PF_P | PF_U | PF_SS },
	{ "supervisor shadow-stack write", WP, 0, P | W, P | D, WR | SS, ALLOWED },
	{ "ordinary read of a shadow-stack page", WP, 0, P | W | U, P | U | D, R | USR, ALLOWED },
	{ "ordinary write of a shadow-stack page", WP, 0, P | W | U, P | U | D, WR | USR, PF_P | PF_W | PF_U },
	{ "ordinary supervisor write of a shadow-stack page", WP, 0, P | W, P | D, WR, PF_P | PF_W },
	{ "shadow-stack access and a key without access", WP | PKE, 1u << 6, P | W | U, P | U | D | KEY(3), R | USR | SS, PF_P | PF_U | PF_SS | PF_PK },
	{ "shadow-stack read and a write-disabled key", WP | PKE, 2u << 6, P | W | U, P | U | D | KEY(3), R | USR | SS, ALLOWED },
	{ "shadow-stack write and a write-disabled key", WP | PKE, 2u << 6, P | W | U, P | U | D | KEY(3), WR | USR | SS, PF_P | PF_W | PF_U | PF_SS | PF_PK },
};

static void set_control(unsigned control, u32 pkru)
{
	u64 cr4 = CR4_PAE | CR4_PGE | CR4_OSXSAVE | CR4_OSFXSR;

	cr4 |= (control & SMEP ? CR4_SMEP : 0) | (control & SMAP ? CR4_SMAP : 0) |
	       (control & PKE ? CR4_PKE : 0) | (control & WP ? CR4_CET : 0);
	cpu->cr4 = cr4;
	cpu->cr0 = (cpu->cr0 & ~(u64)CR0_WP) | (control & WP ? CR0_WP : 0);
	cpu->efer = (cpu->efer & ~(u64)EFER_NX) | (control & NXE ? EFER_NX : 0);
	cpu->rflags = (cpu->rflags & ~(u64)FLAG_AC) | (control & AC ? FLAG_AC : 0);
	cpu->pkru = pkru;
	tlb_flush_all(cpu);
}

static void check_rules(void)
{
	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		const struct rule *r = &rules[i];
		struct walk walk;
		bool allowed;

		map_page(r->upper, r->leaf);
		cpu->cpl = r->access & USR ? 3 : 0;
		set_control(r->control, r->pkru);
		allowed = paging_walk(cpu, LINEAR, r->access, &walk);
		is(allowed ? ALLOWED : walk.error, r->error, "%s", r->name);
		if (allowed && walk.gpa != (PAGE | (LINEAR & 0xfff)))
			is(walk.gpa, PAGE | (LINEAR & 0xfff), "%s: address", r->name);
	}
}

// ---- the same, a second time, for all combinations ----

// Denied, and the error code, as the SDM's lists read.
static bool expected(unsigned control, u32 pkru, u64 upper, u64 leaf, unsigned access, u32 *error)
{
	bool user_page = upper & leaf & U, w = upper & leaf & W, user = access & USR, wr = access & WR;
	bool nx = (upper | leaf) & NX, data = !(access & X), deny = false, pk = false;
	unsigned ad = pkru >> 2 * (leaf >> 59 & 15) & 1, wd = pkru >> (2 * (leaf >> 59 & 15) + 1) & 1;

	*error = (wr ? PF_W : 0) | (user ? PF_U : 0) | (access & SS ? PF_SS : 0) |
		 (!data && (control & (NXE | SMEP)) ? PF_I : 0);
	if (!(upper & P))
		return true;
	if (nx && !(control & NXE) && (upper & NX)) {
		*error |= PF_P | PF_RSVD;
		return true;
	}
	if (!(leaf & P))
		return true;
	if (nx && !(control & NXE)) {
		*error |= PF_P | PF_RSVD;
		return true;
	}
	if (access & SS) {
		deny = !(upper & W) || (leaf & W) || !(leaf & D) || user_page != user;
	} else if (!data) {
		deny = nx || (user && !user_page) || (!user && user_page && (control & SMEP));
	} else {
		if (user && !user_page)
			deny = true;
		if (!user && user_page && (control & SMAP) && (!(control & AC) || (access & IMPL)))
			deny = true;
		if (wr && !w && (user || (control & WP)))
			deny = true;
	}
	if (data && user_page && (control & PKE))
		pk = ad || (wr && wd && (user || (control & WP)));
	*error |= PF_P | (pk ? PF_PK : 0);
	return deny || pk;
}

static void sweep(void)
{
	static const unsigned accesses[] = { R, WR, X, R | USR, WR | USR, X | USR, R | IMPL, WR | IMPL,
					     R | SS, WR | SS, R | SS | USR, WR | SS | USR };
	static const u64 uppers[] = { 0, P, P | W, P | U, P | W | U, P | W | U | NX };
	unsigned wrong = 0, count = 0;

	for (unsigned control = 0; control < 128; control++) {
		for (unsigned n = 0; n < 64 * 4; n++) {
			u64 leaf = (n & 1 ? P : 0) | (n & 2 ? W : 0) | (n & 4 ? U : 0) | (n & 8 ? D : 0) |
				   (n & 16 ? NX : 0) | (n & 32 ? KEY(5) : 0);
			u32 pkru = (n >> 6) << 10;

			if (control & NOCET)
				continue;
			for (unsigned a = 0; a < sizeof(accesses) / sizeof(accesses[0]); a++)
				for (unsigned u = 0; u < sizeof(uppers) / sizeof(uppers[0]); u++) {
					struct walk walk = { 0 };
					u32 error;
					bool denied = expected(control, pkru, uppers[u], leaf,
							       accesses[a], &error);

					map_page(uppers[u], leaf);
					cpu->cpl = accesses[a] & USR ? 3 : 0;
					cpu->cr4 = CR4_PAE | CR4_PGE | (control & SMEP ? CR4_SMEP : 0) |
						   (control & SMAP ? CR4_SMAP : 0) |
						   (control & PKE ? CR4_PKE : 0);
					cpu->cr0 = CR0_PE | CR0_PG | (control & WP ? CR0_WP : 0);
					cpu->efer = EFER_LMA | EFER_LME | (control & NXE ? EFER_NX : 0);
					cpu->rflags = control & AC ? FLAG_AC | 2 : 2;
					cpu->pkru = pkru;
					count++;
					if (paging_walk(cpu, LINEAR, accesses[a], &walk) == denied ||
					    (denied && walk.error != error)) {
						if (!wrong++)
							printf("#   control %#x pkru %#x upper %#llx leaf %#llx access %#x: wanted %s %#x, got %#x\n",
							       control, pkru, (unsigned long long)uppers[u],
							       (unsigned long long)leaf, accesses[a],
							       denied ? "#PF" : "allowed", error, walk.error);
					}
				}
		}
	}
	is(wrong, 0, "%u combinations of rights, controls and accesses", count);
}

// ---- accessed and dirty ----

static void accessed_dirty(void)
{
	struct walk walk;

	set_control(WP | NXE, 0);
	cpu->cpl = 0;
	map_page(P | W | U, P | W);
	paging_walk(cpu, LINEAR, R, &walk);
	is(*qword(PML4 + 8 * INDEX(4)) & (A | D), A, "a read sets A in the PML4E");
	is(*qword(PD + 8 * INDEX(2)) & (A | D), A, "a read sets A in the PDE");
	is(*qword(PT + 8 * INDEX(1)) & (A | D), A, "a read sets A and not D in the PTE");
	ok(!walk.writable, "a clean page is not writable without another walk");
	paging_walk(cpu, LINEAR, WR, &walk);
	is(*qword(PT + 8 * INDEX(1)) & (A | D), A | D, "a write sets D in the PTE");
	is(*qword(PD + 8 * INDEX(2)) & (A | D), A, "a write sets no D in the PDE");
	ok(walk.writable, "a dirty page is writable");

	map_page(P | W | U, P);
	paging_walk(cpu, LINEAR, WR, &walk);
	is(*qword(PT + 8 * INDEX(1)) & (A | D), 0, "a denied write sets neither A nor D");
	is(*qword(PD + 8 * INDEX(2)) & A, 0, "nor A above");
	set_control(NXE, 0);
	ok(paging_walk(cpu, LINEAR, WR, &walk), "with WP clear the write is allowed");
	is(*qword(PT + 8 * INDEX(1)) & (A | D), A, "and a processor with shadow stacks sets no D where R/W is 0");
	fixture_without(FEATURE_SHSTK);
	paging_walk(cpu, LINEAR, WR, &walk);
	is(*qword(PT + 8 * INDEX(1)) & (A | D), A | D, "one without them does");

	fixture_reset();
	fixture_long_mode(PML4, 0);
	map_page(P | W | U, P | W);
	paging_translate(cpu, LINEAR, &walk);
	is(*qword(PT + 8 * INDEX(1)) & (A | D), 0, "paging_translate() sets nothing");
	is(walk.gpa, PAGE | (LINEAR & 0xfff), "and finds the page");
}

// ---- page sizes and modes ----

static void large_pages(void)
{
	struct walk walk;

	*qword(PML4 + 8 * INDEX(4)) = PDPT | P | W | U;
	*qword(PDPT + 8 * INDEX(3)) = PD | P | W | U;
	*qword(PD + 8 * INDEX(2)) = 0x40000000 | P | W | PS | G;
	ok(paging_walk(cpu, LINEAR, R, &walk), "2-MiB page");
	is(walk.gpa, 0x40000000 | (LINEAR & 0x1fffff), "its address");
	is(walk.page_size, 2 << 20, "its size");
	ok(walk.global, "it is global");
	*qword(PD + 8 * INDEX(2)) = 0x40001000 | P | W | PS;
	ok(paging_walk(cpu, LINEAR, R, &walk), "bit 12 of a large page is PAT");
	is(walk.gpa, 0x40000000 | (LINEAR & 0x1fffff), "and no address bit");
	*qword(PD + 8 * INDEX(2)) = 0x40002000 | P | W | PS;
	ok(!paging_walk(cpu, LINEAR, R, &walk) && walk.error == (PF_P | PF_RSVD), "bit 13 is reserved");
	paging_walk(cpu, LINEAR, WR, &walk);

	*qword(PDPT + 8 * INDEX(3)) = 0x80000000 | P | W | PS;
	ok(paging_walk(cpu, LINEAR, WR, &walk), "1-GiB page");
	is(walk.gpa, 0x80000000 | (LINEAR & 0x3fffffff), "its address");
	is(*qword(PDPT + 8 * INDEX(3)) & (A | D), A | D, "A and D of a large page are in its entry");
	*qword(PDPT + 8 * INDEX(3)) = 0x80200000 | P | W | PS;
	ok(!paging_walk(cpu, LINEAR, R, &walk) && walk.error == (PF_P | PF_RSVD), "bit 21 of it is reserved");
	*qword(PDPT + 8 * INDEX(3)) = 0x80000000 | P | W | PS;
	fixture_without(FEATURE_PDPE1GB);
	ok(!paging_walk(cpu, LINEAR, R, &walk) && walk.error == (PF_P | PF_RSVD), "PS is reserved without 1-GiB pages");
	*qword(PML4 + 8 * INDEX(4)) = PDPT | P | W | U | PS;
	ok(!paging_walk(cpu, LINEAR, R, &walk) && walk.error == (PF_P | PF_RSVD), "PS is reserved in a PML4E");
}

static void five_levels(void)
{
	u64 linear = 0x00ff123456789abcull;
	struct walk walk;

	*qword(PML5 + 8 * (linear >> 48 & 511)) = PML4 | P | W | U;
	*qword(PML4 + 8 * (linear >> 39 & 511)) = PDPT | P | W | U;
	*qword(PDPT + 8 * (linear >> 30 & 511)) = PD | P | W | U;
	*qword(PD + 8 * (linear >> 21 & 511)) = PT | P | W | U;
	*qword(PT + 8 * (linear >> 12 & 511)) = PAGE | P | W | U;
	cpu->cr4 |= CR4_LA57;
	cpu->linear_bits = 57;
	cpu->cr3 = PML5;
	ok(paging_walk(cpu, linear, WR, &walk), "5-level paging");
	is(walk.gpa, PAGE | (linear & 0xfff), "its address");
	is(*qword(PML5 + 8 * (linear >> 48 & 511)) & A, A, "A in the PML5E");
}

static void pae(void)
{
	u32 linear = 0xc1234567;
	struct walk walk;

	fixture_reset();
	*qword(PDPT + 24) = PD | P;
	*qword(PD + 8 * (linear >> 21 & 511)) = PT | P | W | U;
	*qword(PT + 8 * (linear >> 12 & 511)) = 0x123456000 | P | W;
	cpu->cr3 = PDPT;
	is(cpu_set_cr4(cpu, CR4_PAE, BY_GUEST), 0, "CR4.PAE");
	is(cpu_set_cr0(cpu, CR0_PE | CR0_PG | CR0_WP, BY_GUEST), 0, "PAE paging with the PDPTRs loaded");
	ok(paging_walk(cpu, linear, WR, &walk), "PAE paging");
	is(walk.gpa, 0x123456000 | (linear & 0xfff), "its address");
	*qword(PDPT + 24) = 0;
	ok(paging_walk(cpu, linear, R, &walk), "the PDPTRs are in registers: memory may change");
	*qword(PT + 8 * (linear >> 12 & 511)) |= 1ull << 52;
	ok(!paging_walk(cpu, linear, R, &walk) && walk.error == (PF_P | PF_RSVD), "bit 52 is reserved in PAE paging");
	*qword(PDPT + 24) = PD | P | W;
	is(cpu_set_cr3(cpu, PDPT, BY_GUEST), (u64)-EINVAL, "a reserved bit in a PDPTE refuses MOV CR3");
	*qword(PDPT + 24) = 0;
	is(cpu_set_cr3(cpu, PDPT, BY_GUEST), 0, "a PDPTE that is not present does not");
	ok(!paging_walk(cpu, linear, R, &walk) && walk.error == 0, "it gives #PF");
}

static void two_levels(void)
{
	u32 linear = 0x80123456;
	struct walk walk;

	fixture_reset();
	*dword(PD + 4 * (linear >> 22)) = PT | P | W | U;
	*dword(PT + 4 * (linear >> 12 & 0x3ff)) = PAGE | P | W;
	cpu->cr3 = PD;
	cpu_set_cr0(cpu, CR0_PE | CR0_PG | CR0_WP, BY_GUEST);
	ok(paging_walk(cpu, linear, WR, &walk), "32-bit paging");
	is(walk.gpa, PAGE | (linear & 0xfff), "its address");
	is(*dword(PT + 4 * (linear >> 12 & 0x3ff)) & (A | D), A | D, "A and D in the PTE");
	is(*dword(PT + 4 * (linear >> 12 & 0x3ff) + 4), 0, "and nothing behind it");
	ok(!paging_walk(cpu, linear, WR | USR, &walk) && walk.error == (PF_P | PF_W | PF_U), "rights");

	*dword(PD + 4 * (linear >> 22)) = PT | P | W | PS;
	ok(paging_walk(cpu, linear, R, &walk) && walk.page_size == 4096, "PS without CR4.PSE is a table");
	*dword(PD + 4 * (linear >> 22)) = 0x40000000 | 3 << 13 | P | W | PS;
	cpu->cr4 |= CR4_PSE;
	ok(paging_walk(cpu, linear, WR, &walk), "4-MiB page");
	is(walk.gpa, 0x340000000 | (linear & 0x3fffff), "PSE-36 address");
	is(*dword(PD + 4 * (linear >> 22)) & D, D, "D in the PDE");
	*dword(PD + 4 * (linear >> 22)) |= 1 << 21;
	ok(!paging_walk(cpu, linear, R, &walk) && walk.error == (PF_P | PF_RSVD), "bit 21 is reserved");
	cpu->phys_bits = 36;
	*dword(PD + 4 * (linear >> 22)) = 0x40000000 | 1 << 17 | P | W | PS;
	ok(!paging_walk(cpu, linear, R, &walk) && walk.error == (PF_P | PF_RSVD), "so is what the processor has no address bits for");
}

int main(void)
{
	fixture_reset();
	fixture_long_mode(PML4, 0);
	check_rules();
	sweep();
	fixture_reset();
	fixture_long_mode(PML4, 0);
	accessed_dirty();
	large_pages();
	fixture_reset();
	fixture_long_mode(PML4, 0);
	five_levels();
	pae();
	two_levels();
	return done_testing();
}
