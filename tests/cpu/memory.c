// SPDX-License-Identifier: MIT
// Linear accesses by C code and the software TLB: page crossings, memory I/O, read-only and logged
// pages, what stays cached over which flush, EFLAGS.AC, protection keys, unmapped host memory.
#include "fixture.h"

#include <sys/mman.h>

enum { P = 1, W = 2, U = 4, A = 32, D = 64, PS = 128, G = 256 };

#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define PT 0x4000
#define DATA 0x100000
#define BASE 0x400000ull // linear; page n of it is DATA + n * 4096
#define MMIO_GPA 0x80000000ull

static u64 *pte(unsigned n) { return qword(PT + 8 * n); }

static void setup(void)
{
	fixture_reset();
	*qword(PML4) = PDPT | P | W | U;
	*qword(PDPT) = PD | P | W | U;
	*qword(PD + 8 * 2) = PT | P | W | U;
	for (unsigned n = 0; n < 16; n++)
		*pte(n) = (DATA + n * 4096) | P | W | U;
	fixture_long_mode(PML4, 3);
}

static u64 page(unsigned n) { return BASE + n * 4096; }

static void crossing(void)
{
	u64 value = 0x1122334455667788, got = 0;

	setup();
	mem_write_n(cpu, page(1) - 3, value, 8, ACCESS_USER);
	ok(!memcmp(ram + DATA + 4096 - 3, &value, 8), "a store over a page boundary");
	is(mem_read_n(cpu, page(1) - 3, 8, ACCESS_USER), value, "a load over it");
	*pte(1) = 0;
	tlb_flush_all(cpu);
	memset(ram + DATA + 4096 - 3, 0, 8);
	TRY(mem_write_n(cpu, page(1) - 3, value, 8, ACCESS_USER));
	is(outcome.vector, VECTOR_PF, "its second page is missing");
	is(outcome.address, page(1), "#PF names the second page");
	is(outcome.error, PF_W | PF_U, "error code");
	is(mem_read_n(cpu, page(1) - 3, 1, ACCESS_USER), 0, "nothing was written to the first");
	TRY(mem_read(cpu, page(1) - 3, &got, 8, ACCESS_USER));
	is(outcome.error, PF_U, "a load over it");
	*pte(0) = 0;
	tlb_flush_all(cpu);
	TRY(mem_write_n(cpu, page(1) - 3, value, 8, ACCESS_USER));
	is(outcome.address, page(1) - 3, "with both missing the first is named");
	ok(!mem_host(cpu, page(1) - 3, 8, ACCESS_USER), "mem_host() refuses crossings");
}

static void wrap(void)
{
	fixture_reset();
	cpu->cr0 = CR0_PE;
	ram[0] = 0x5a;
	seen.mmio_count = 0;
	is(mem_read_n(cpu, 0xffffffff, 2, 0) >> 8, 0x5a, "outside 64-bit mode addresses wrap at 4 GiB");
	is(seen.mmio[0].gpa, 0xffffffff, "the first byte is the last of them");
}

static void memory_io(void)
{
	setup();
	*pte(3) = MMIO_GPA | P | W | U;
	is(mem_read_n(cpu, page(3) + 8, 4, ACCESS_USER), 0xa5a5a5a5, "a load from memory I/O");
	is(seen.mmio[0].gpa, MMIO_GPA + 8, "its address");
	is(seen.mmio[0].len, 4, "its length");
	mem_write_n(cpu, page(3) + 16, 0x77, 1, ACCESS_USER);
	ok(seen.mmio_count == 2 && seen.mmio[1].write && seen.mmio[1].data[0] == 0x77, "a store to memory I/O");
	ok(!mem_host(cpu, page(3), 4, ACCESS_USER), "mem_host() knows no host address of it");
	seen.mmio_result = CPU_OPS_EXIT;
	TRY(mem_read_n(cpu, page(3), 4, ACCESS_USER));
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_OPS, "the surroundings may ask for an exit");
	seen.mmio_result = CPU_OPS_DONE;
	seen.mmio_count = 0;
	mem_write_n(cpu, page(3) - 2, 0x44332211, 4, ACCESS_USER);
	ok(ram[DATA + 3 * 4096 - 2] == 0x11 && seen.mmio_count == 1 && seen.mmio[0].len == 2 &&
	   seen.mmio[0].data[0] == 0x33, "half a store in RAM, half in memory I/O");

	*pte(4) = READONLY_PAGE | P | W | U;
	ram[READONLY_PAGE] = 0x99;
	seen.mmio_count = 0;
	is(mem_read_n(cpu, page(4), 1, ACCESS_USER), 0x99, "a load from read-only memory");
	mem_write_n(cpu, page(4), 0x11, 1, ACCESS_USER);
	ok(seen.mmio_count == 1 && seen.mmio[0].gpa == READONLY_PAGE && ram[READONLY_PAGE] == 0x99,
	   "a store to read-only memory is memory I/O");
	ok(mem_host(cpu, page(4), 1, ACCESS_USER), "loads of it keep a host address");
}

static void dirty_logging(void)
{
	setup();
	*pte(5) = DIRTY_PAGE | P | W | U;
	mem_read_n(cpu, page(5), 8, ACCESS_USER);
	is(seen.dirty, 0, "a load does not mark the page dirty");
	mem_write_n(cpu, page(5), 1, 8, ACCESS_USER);
	mem_write_n(cpu, page(5) + 8, 1, 8, ACCESS_USER);
	ok(seen.dirty == 1 && seen.dirty_gpa == DIRTY_PAGE, "stores do, once");
	tlb_flush_nonglobal(cpu);
	mem_write_n(cpu, page(5) + 8, 1, 8, ACCESS_USER);
	is(seen.dirty, 1, "and not again while the memory map stays");
	tlb_flush_all(cpu);
	mem_write_n(cpu, page(5) + 8, 1, 8, ACCESS_USER);
	is(seen.dirty, 2, "but again behind a change of it");
}

// Is the translation of page n still in the TLB? The page table says something else meanwhile.
static bool cached(unsigned n, unsigned access)
{
	u64 entry = *pte(n);
	bool hit;

	*pte(n) = 0;
	TRY(mem_host(cpu, page(n), 1, access));
	hit = outcome.vector == NO_EXCEPTION;
	*pte(n) = entry;
	return hit;
}

static void flushes(void)
{
	setup();
	*pte(1) |= G;
	mem_host(cpu, page(0), 1, ACCESS_USER);
	mem_host(cpu, page(1), 1, ACCESS_USER);
	ok(cached(0, ACCESS_USER) && cached(1, ACCESS_USER), "translations are remembered");
	ok(!cached(0, ACCESS_USER | ACCESS_WRITE), "those of loads not for stores");
	mem_host(cpu, page(0), 1, ACCESS_USER | ACCESS_WRITE);
	ok(cached(0, ACCESS_USER | ACCESS_WRITE), "then for stores");
	tlb_flush_nonglobal(cpu);
	ok(!cached(0, ACCESS_USER) && cached(1, ACCESS_USER), "global ones survive tlb_flush_nonglobal()");
	mem_host(cpu, page(0), 1, ACCESS_USER);
	tlb_flush_page(cpu, page(1) + 5);
	ok(cached(0, ACCESS_USER) && !cached(1, ACCESS_USER), "tlb_flush_page() drops one, also a global one");
	mem_host(cpu, page(1), 1, ACCESS_USER);
	tlb_flush_all(cpu);
	ok(!cached(0, ACCESS_USER) && !cached(1, ACCESS_USER), "tlb_flush_all() drops all");
}

static bool __attribute__((noinline)) faults(u64 linear, unsigned access)
{
	TRY(mem_host(cpu, linear, 1, access));
	return outcome.vector == VECTOR_PF;
}

static void large_page_flush(void)
{
	u64 linear = 0x600000;
	unsigned left = 0;

	setup();
	*qword(PD + 8 * 3) = 0x200000 | P | W | U | PS;
	for (unsigned n = 0; n < 4; n++)
		mem_host(cpu, linear + n * 0x20000, 1, ACCESS_USER);
	mem_host(cpu, page(0), 1, ACCESS_USER);
	*qword(PD + 8 * 3) = 0;
	tlb_flush_page(cpu, linear + 0x123000);
	for (unsigned n = 0; n < 4; n++)
		left += !faults(linear + n * 0x20000, ACCESS_USER);
	is(left, 0, "tlb_flush_page() drops every piece of a 2-MiB page");
	ok(cached(0, ACCESS_USER), "and no other");
}

static void smap(void)
{
	setup();
	cpu->cpl = 0;
	cpu_set_cr4(cpu, cpu->cr4 | CR4_SMAP, BY_GUEST);
	TRY(mem_host(cpu, page(0), 1, 0));
	is(outcome.error, PF_P, "SMAP denies supervisor access to a user page");
	cpu->rflags |= FLAG_AC;
	TRY(mem_host(cpu, page(0), 1, ACCESS_WRITE));
	is(outcome.vector, (u64)NO_EXCEPTION, "EFLAGS.AC allows it");
	ok(cpu->tlb_ac_count != 0, "which is noted");
	TRY(mem_host(cpu, page(0), 1, ACCESS_WRITE | ACCESS_IMPLICIT));
	is(outcome.vector, VECTOR_PF, "but not for implicit accesses, whatever the TLB holds");
	TRY(mem_host(cpu, page(0), 1, ACCESS_WRITE));
	cpu->rflags &= ~(u64)FLAG_AC;
	tlb_drop_ac(cpu);
	TRY(mem_host(cpu, page(0), 1, 0));
	is(outcome.vector, VECTOR_PF, "with EFLAGS.AC clear it is denied again");
	ok(cpu->tlb_k[page(0) >> 12 & ((1 << TLB_K_BITS) - 1)].read != page(0),
	   "translated code does not find it either");

	// The short cut through the user's entry gives no more than the page tables do.
	cpu->cpl = 3;
	*pte(1) = (DATA + 4096) | P | U;
	mem_host(cpu, page(1), 1, ACCESS_USER);
	cpu->cpl = 0;
	cpu->rflags |= FLAG_AC;
	TRY(mem_host(cpu, page(1), 1, 0));
	is(outcome.vector, (u64)NO_EXCEPTION, "a user's load entry serves the supervisor's loads");
	TRY(mem_host(cpu, page(1), 1, ACCESS_WRITE));
	is(outcome.error, PF_P | PF_W, "not its stores");
}

static void keys(void)
{
	setup();
	cpu_set_cr4(cpu, cpu->cr4 | CR4_PKE, BY_GUEST);
	*pte(0) |= 3ull << 59;
	mem_host(cpu, page(0), 1, ACCESS_USER);
	mem_host(cpu, page(1), 1, ACCESS_USER);
	cpu_set_pkru(cpu, 1 << 6);
	TRY(mem_host(cpu, page(0), 1, ACCESS_USER));
	is(outcome.error, PF_P | PF_U | PF_PK, "a change of PKRU is seen at once");
	ok(cached(1, ACCESS_USER), "pages of key 0 stay");
	cpu_set_pkru(cpu, 1);
	TRY(mem_host(cpu, page(1), 1, ACCESS_USER));
	is(outcome.error, PF_P | PF_U | PF_PK, "unless key 0 loses its rights");
	TRY(mem_host(cpu, page(0), 1, ACCESS_USER));
	is(outcome.vector, (u64)NO_EXCEPTION, "and rights come back");
}

static void shadow_stack(void)
{
	u64 old;

	setup();
	*pte(2) = (DATA + 2 * 4096) | P | U | D;
	mem_write_n(cpu, page(2), 41, 8, ACCESS_USER | ACCESS_SS);
	is(*qword(DATA + 2 * 4096), 41, "a shadow-stack store");
	TRY(mem_write_n(cpu, page(2), 1, 8, ACCESS_USER));
	is(outcome.error, PF_P | PF_W | PF_U, "an ordinary store is refused in spite of it");
	TRY(mem_read_n(cpu, page(0), 8, ACCESS_USER | ACCESS_SS));
	is(outcome.error, PF_P | PF_U | PF_SS, "a shadow-stack load of an ordinary page is refused");
	old = mem_cmpxchg64(cpu, page(2), 41, 42, ACCESS_USER | ACCESS_SS);
	ok(old == 41 && *qword(DATA + 2 * 4096) == 42, "compare-exchange, equal");
	old = mem_cmpxchg64(cpu, page(2), 41, 43, ACCESS_USER | ACCESS_SS);
	ok(old == 42 && *qword(DATA + 2 * 4096) == 42, "compare-exchange, different");
}

static void host_fault(void)
{
	setup();
	mem_read_n(cpu, page(7), 8, ACCESS_USER);
	mprotect(ram + DATA + 7 * 4096, 4096, PROT_NONE);
	TRY(mem_read_n(cpu, page(7), 8, ACCESS_USER));
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_FAULT, "host memory that is gone is an exit");
	is(cpu->fault_hva, (u64)ram + DATA + 7 * 4096, "which names it");
	TRY(mem_write_n(cpu, page(7), 1, 8, ACCESS_USER));
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_FAULT, "for stores");
	TRY(mem_cmpxchg64(cpu, page(7), 1, 1, ACCESS_USER));
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_FAULT, "and for compare-exchange");
	mprotect(ram + DATA + 7 * 4096, 4096, PROT_READ | PROT_WRITE);
	mprotect(ram + PT, 4096, PROT_NONE);
	tlb_flush_all(cpu);
	TRY(mem_read_n(cpu, page(7), 8, ACCESS_USER));
	ok(outcome.vector == ABORTED && outcome.exit == CPU_EXIT_FAULT, "page tables may be gone too");
	mprotect(ram + PT, 4096, PROT_READ | PROT_WRITE);
}

int main(void)
{
	crossing();
	wrap();
	memory_io();
	dirty_logging();
	flushes();
	large_page_flush();
	smap();
	keys();
	shadow_stack();
	host_fault();
	return done_testing();
}
