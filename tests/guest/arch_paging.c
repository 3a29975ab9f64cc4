// SPDX-License-Identifier: MIT
// Paging without CET: #PF codes for each kind of page, access, ring and control bit; reserved bits;
// A and D; INVLPG and what the TLB may remember; accesses that cross pages.
#include "kit.h"

#define AT FREE_VA
#define CODE_AT (FREE_VA + 0x10000)

CODE(load, "mov (%rdi), %rax");
CODE(store, "mov %rax, (%rdi)");
CODE(rmw, "addq $1, (%rdi)");
CODE(locked, "lock incq (%rdi)");
CODE(jump, "jmp *%rdi");
CODE(push, "push %rax");
CODE(pop, "pop %rax");
CODE(stac_load, "stac; mov (%rdi), %rax; clac");
CODE(stac_store, "stac; mov %rax, (%rdi); clac");
CODE(load16, "movdqu (%rdi), %xmm0; movq %xmm0, %rax");
CODE(store8_cross, "mov %rax, (%rdi)");
CODE(movs, "movsq");
CODE(cmpxchg16, "lock cmpxchg16b (%rdi)");

static void test_rights(void)
{
	static const struct {
		const u8 *code;
		bool user;
		u64 leaf;
		u64 error; /* ~0: no fault */
		const char *name;
	} rows[] = {
		{load, false, 0, 0, "read in ring 0, not present"},
		{store, false, 0, PF_W, "write in ring 0, not present"},
		{load, true, 0, PF_U, "read in ring 3, not present"},
		{store, true, 0, PF_W | PF_U, "write in ring 3, not present"},
		{load, true, PT_P | PT_W, PF_P | PF_U, "read in ring 3 of a supervisor page"},
		{store, true, PT_P | PT_W, PF_P | PF_W | PF_U, "write in ring 3 to a supervisor page"},
		{store, true, PT_P | PT_U, PF_P | PF_W | PF_U, "write in ring 3 to a read-only page"},
		{rmw, true, PT_P | PT_U, PF_P | PF_W | PF_U, "read-modify-write in ring 3 of a read-only page"},
		{rmw, true, 0, PF_W | PF_U, "read-modify-write in ring 3, not present: a write"},
		{locked, true, PT_P | PT_U, PF_P | PF_W | PF_U, "LOCK INC in ring 3 of a read-only page"},
		{load, true, PT_P | PT_U, ~0ull, "read in ring 3 of a read-only user page"},
		{store, false, PT_P, PF_P | PF_W, "write in ring 0 to a read-only page, WP=1"},
		{store, false, PT_P | PT_U, PF_P | PF_W, "write in ring 0 to a read-only user page, WP=1"},
		{store, false, PT_P | PT_W, ~0ull, "write in ring 0 to a writable page"},
		{load, false, PT_P | PT_U, ~0ull, "read in ring 0 of a user page, SMAP=0"},
		{load, true, PT_P | PT_U | PT_W | 1ull << 51, PF_P | PF_U | PF_RSVD, "read, a reserved bit is set"},
		{store, false, PT_P | PT_W | 1ull << 51, PF_P | PF_W | PF_RSVD, "write, a reserved bit is set"},
		{load, true, PT_P | PT_U | PT_W | PT_NX, ~0ull, "read of an NX page"},
		{push, true, PT_P | PT_U, PF_P | PF_W | PF_U, "PUSH to a read-only page"},
		{pop, true, 0, PF_U, "POP from a page that is not there"},
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct run r = rows[i].user ? run_user(rows[i].code) : run_default(rows[i].code);

		map_page(AT, stack_top(5) - 4096, rows[i].leaf);
		r.gpr[RDI] = AT + 0x18;
		if (rows[i].code == push)
			r.gpr[RSP] = AT + 0x20;
		if (rows[i].code == pop)
			r.gpr[RSP] = AT + 0x18;
		run(&r);
		if (rows[i].error == ~0ull)
			CHECK_DONE(rows[i].name);
		else if (CHECK_FAULT(PF, rows[i].error, rows[i].name))
			CHECK_EQ(outcome.cr2, AT + 0x18, "its CR2");
	}
	write_cr0(read_cr0() & ~(u64)CR0_WP);
	struct run r = run_default(store);
	map_page(AT, stack_top(5) - 4096, PT_P);
	r.gpr[RDI] = AT + 0x18;
	run(&r);
	CHECK_DONE("write in ring 0 to a read-only page, WP=0");
	r = run_user(store);
	r.gpr[RDI] = AT + 0x18;
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "write in ring 3 to a read-only page, WP=0");
	write_cr0(read_cr0() | CR0_WP);
	unmap_page(AT);
}

static void test_fetch(void)
{
	u8 *code = alloc_page();
	struct run r = run_user(jump);

	code[0] = 0xcd;
	code[1] = 0x20;
	r.gpr[RDI] = CODE_AT;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_I, "fetch in ring 3, not present");
	CHECK(outcome.rip == CODE_AT && outcome.cr2 == CODE_AT, "RIP and CR2 are the target");
	map_page(CODE_AT, ADDR(code), PT_P | PT_U | PT_NX);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U | PF_I, "fetch in ring 3 from an NX page");
	map_page(CODE_AT, ADDR(code), PT_P);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_U | PF_I, "fetch in ring 3 from a supervisor page");
	map_page(CODE_AT, ADDR(code), PT_P | PT_U);
	run(&r);
	CHECK(outcome.vector == DONE && outcome.rip == CODE_AT + 2, "fetch in ring 3 from a user page");
	r = run_default(jump);
	r.gpr[RDI] = CODE_AT;
	run(&r);
	CHECK_DONE("fetch in ring 0 from a user page, SMEP=0");
	map_page(CODE_AT, ADDR(code), PT_P | PT_U | PT_NX);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_I, "fetch in ring 0 from an NX page");

	/* An instruction that begins on one page and ends on the next. */
	map_page(CODE_AT, ADDR(code), PT_P | PT_U);
	code[4094] = 0x48;
	code[4095] = 0x89; /* mov %rax, %rbx: the last byte is on the next page */
	r = run_user(jump);
	r.gpr[RDI] = CODE_AT + 4094;
	run(&r);
	CHECK_FAULT(PF, PF_U | PF_I, "fetch of an instruction whose tail is not there");
	CHECK(outcome.rip == CODE_AT + 4094 && outcome.cr2 == CODE_AT + 4096, "RIP at its start, CR2 at its tail");
	u8 *next = alloc_page();
	memcpy(next, "\xc3\xcd\x20", 3);
	map_page(CODE_AT + 4096, ADDR(next), PT_P | PT_U);
	r.gpr[RAX] = 0x1234;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RBX] == 0x1234, "an instruction across two pages");
	u8 *other = alloc_page();
	memcpy(other, "\xc1\xcd\x20", 3); /* now the tail makes it mov %rax, %rcx */
	map_page(CODE_AT + 4096, ADDR(other), PT_P | PT_U);
	r.gpr[RBX] = 0;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RCX] == 0x1234 && outcome.gpr[RBX] == 0,
		"... whose second page is mapped anew");
	unmap_page(CODE_AT);
	unmap_page(CODE_AT + 4096);
}

/* SMEP and SMAP need code on supervisor pages: an alias of the guest, supervisor only. */
#define ALIAS 0x40000000ull

static void test_smep_smap(void)
{
	u32 a[4];
	struct run r;
	u8 *code = alloc_page();

	cpuid(7, 0, a);
	if (!(a[1] >> 7 & 1) || !(a[1] >> 20 & 1)) {
		kit_skip("SMEP and SMAP", "the processor has none");
		return;
	}
	/* From here on the kit itself runs on user pages: make the whole identity map supervisor. */
	for (u64 va = 0; va < 1ull << 30; va += 1ull << 21)
		*pte_of(va, 2) &= ~PT_U;
	flush_tlb();
	code[0] = 0xcd;
	code[1] = 0x20;
	map_page(CODE_AT, ADDR(code), PT_P | PT_U);
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_W);

	r = run_default(jump);
	r.gpr[RDI] = CODE_AT;
	r.cr4 = CR4_SMEP;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_I, "SMEP: fetch in ring 0 from a user page");
	r = run_default(load);
	r.gpr[RDI] = AT;
	r.cr4 = CR4_SMAP;
	run(&r);
	CHECK_FAULT(PF, PF_P, "SMAP: read in ring 0 of a user page");
	r.rip = ADDR(store);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W, "SMAP: write in ring 0 to a user page");
	r.rip = ADDR(stac_load);
	run(&r);
	CHECK_DONE("SMAP: read with AC=1");
	r.rip = ADDR(stac_store);
	run(&r);
	CHECK_DONE("SMAP: write with AC=1");
	r.rip = ADDR(load);
	r.rflags |= FL_AC;
	run(&r);
	CHECK_DONE("SMAP: AC may come from POPF");
	r.rflags = FL_FIXED;
	r.cr4 = 0;
	run(&r);
	CHECK_DONE("without SMAP the read is allowed");
	for (u64 va = 0; va < 1ull << 30; va += 1ull << 21)
		*pte_of(va, 2) |= PT_U;
	flush_tlb();
	unmap_page(AT);
	unmap_page(CODE_AT);
}

static void test_accessed_dirty(void)
{
	struct run r = run_user(load);

	map_page(AT, stack_top(5) - 4096, PT_P | PT_U | PT_W);
	*pte_of(AT, 2) &= ~PT_A;
	flush_tlb();
	r.gpr[RDI] = AT;
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & (PT_A | PT_D), PT_A, "a read sets A only");
	CHECK_EQ(*pte_of(AT, 2) & PT_A, PT_A, "in the upper entry too");
	r.rip = ADDR(store);
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & (PT_A | PT_D), PT_A | PT_D, "a write after a read sets D");
	*pte_of(AT, 1) &= ~(PT_A | PT_D);
	invlpg(AT);
	run(&r);
	CHECK_EQ(*pte_of(AT, 1) & (PT_A | PT_D), PT_A | PT_D, "a write sets A and D again after INVLPG");
	map_page(AT, stack_top(5) - 4096, PT_P | PT_U);
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "INVLPG makes a lost right count");
	*pte_of(AT, 1) = (stack_top(5) - 4096) | PT_P | PT_U | PT_W;
	run(&r);
	CHECK_DONE("a right gained counts without INVLPG after the fault");

	/* Another page at the same address. */
	u64 one = ADDR(alloc_page()), two = ADDR(alloc_page());
	*(u64 *)one = 1;
	*(u64 *)two = 2;
	r = run_user(load);
	r.gpr[RDI] = AT;
	map_page(AT, one, PT_P | PT_U);
	run(&r);
	map_page(AT, two, PT_P | PT_U);
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 2, "INVLPG: the new page is read");
	*pte_of(AT, 1) = one | PT_P | PT_U;
	write_cr3(read_cr3());
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 1, "MOV to CR3: the new page is read");
	unmap_page(AT);
}

static void test_crossing(void)
{
	u64 a = ADDR(alloc_page()), b = ADDR(alloc_page());
	struct run r = run_user(store8_cross);

	map_page(AT, b, PT_P | PT_U | PT_W);
	map_page(AT + 4096, a, PT_P | PT_U | PT_W); /* not in physical order */
	r.gpr[RDI] = AT + 4093;
	r.gpr[RAX] = 0x1122334455667788;
	run(&r);
	CHECK_DONE("a store across two pages");
	CHECK(*(u8 *)(b + 4093) == 0x88 && *(u8 *)(b + 4095) == 0x66 && *(u8 *)a == 0x55 &&
		*(u8 *)(a + 4) == 0x11, "each byte goes where it belongs");
	r.rip = ADDR(load);
	r.gpr[RAX] = 0;
	run(&r);
	CHECK_EQ(outcome.gpr[RAX], 0x1122334455667788, "a load across two pages");
	r.rip = ADDR(locked);
	run(&r);
	CHECK(outcome.vector == DONE && *(u8 *)(b + 4093) == 0x89, "LOCK INC across two pages");
	map_page(AT + 4096, a, PT_P | PT_U);
	r.rip = ADDR(store8_cross);
	r.gpr[RAX] = 0;
	run(&r);
	CHECK_FAULT(PF, PF_P | PF_W | PF_U, "a store whose second page is read-only");
	CHECK_EQ(outcome.cr2, AT + 4096, "CR2 is the second page");
	CHECK_EQ(*(u8 *)(b + 4093), 0x89, "nothing is written to the first");
	unmap_page(AT + 4096);
	r.rip = ADDR(load16);
	r.gpr[RDI] = AT + 4088;
	run(&r);
	CHECK(outcome.vector == PF && outcome.cr2 == AT + 4096, "a 16-byte load whose second page is not there");
	map_page(AT + 4096, a, PT_P | PT_U);
	run(&r);
	CHECK_DONE("a 16-byte load across two pages");
	r = run_user(movs);
	r.gpr[RSI] = AT + 4092;
	r.gpr[RDI] = AT;
	run(&r);
	CHECK(outcome.vector == DONE && outcome.gpr[RSI] == AT + 4100 && outcome.gpr[RDI] == AT + 8, "MOVSQ across two pages");
	r = run_user(cmpxchg16);
	r.gpr[RDI] = AT + 8;
	run(&r);
	CHECK_FAULT(GP, 0, "CMPXCHG16B of an address that is not 16-aligned");
	unmap_page(AT);
	unmap_page(AT + 4096);
}

static void test_canonical(void)
{
	struct run r = run_user(load);

	r.gpr[RDI] = 0x800000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "read of a non-canonical address");
	r.gpr[RDI] = 0x7fffffffffff;
	run(&r);
	CHECK(outcome.vector == PF || outcome.vector == GP, "read across the end of the canonical half");
	r.gpr[RDI] = 0xffff7ffffffffff8;
	run(&r);
	CHECK_FAULT(GP, 0, "read just below the upper half");
	r.gpr[RDI] = 0xffff800000000000;
	run(&r);
	CHECK_FAULT(PF, PF_U, "the first address of the upper half is canonical");
	r = run_user(push);
	r.gpr[RSP] = 0x8000000000000000;
	run(&r);
	CHECK_FAULT(SS, 0, "PUSH to a non-canonical address is #SS(0)");
	r = run_user(jump);
	r.gpr[RDI] = 0x800000000000;
	run(&r);
	CHECK_FAULT(GP, 0, "JMP to a non-canonical address");
	CHECK(outcome.rip >= ADDR(jump) && outcome.rip < ADDR(jump_end), "faults at the JMP");
}

void test_main(void)
{
	test_rights();
	test_fetch();
	test_smep_smap();
	test_accessed_dirty();
	test_crossing();
	test_canonical();
}
