// SPDX-License-Identifier: MIT
// The guest's own machine: descriptor tables, page tables, stacks, and plain register access.
#include "kit.h"

#define POOL_PAGES 512

u64 gdt[GDT_ENTRIES] __attribute__((aligned(64)));
struct tss64 tss __attribute__((aligned(64)));
static struct {
	u64 low, high;
} idt[256] __attribute__((aligned(64)));
static u8 pool[POOL_PAGES][4096] __attribute__((aligned(4096)));
static int pool_used;
static u8 stacks[STACKS][4096] __attribute__((aligned(4096)));
static u8 interrupt_stack[2][8192] __attribute__((aligned(4096)));
static u8 ss_pages[2][SS_PAGES][4096] __attribute__((aligned(4096)));
static u64 *pml4;

extern const u8 kit_stubs[];
extern u64 kit_cr4;
extern bool kit_cet_present;
void kit_machine_init(void);

void *alloc_page(void)
{
	if (pool_used == POOL_PAGES) {
		kit_note("the kit's page pool is used up");
		kit_exit(99);
	}
	return memset(pool[pool_used++], 0, 4096);
}

u64 alloc_pages(int n)
{
	u64 first = ADDR(alloc_page());

	while (--n > 0)
		alloc_page();
	return first;
}

u64 stack_top(int which)
{
	return ADDR(stacks[which]) + 4096;
}

u64 *ss_mem(u64 va)
{
	u64 base = va >= USS_BASE ? USS_BASE : SS_BASE;

	return (u64 *)(ss_pages[base == USS_BASE][0] + (va - base));
}

u64 *pte_of(u64 va, int level)
{
	u64 *table = pml4;

	for (int l = 4;; l--) {
		u64 *entry = &table[va >> (12 + 9 * (l - 1)) & 511];

		if (l == level)
			return entry;
		if (!(*entry & PT_P))
			*entry = ADDR(alloc_page()) | PT_P | PT_W | PT_U;
		table = (u64 *)(*entry & 0xffffffffff000ull);
	}
}

void map_page(u64 va, u64 pa, u64 flags)
{
	*pte_of(va, 1) = pa | flags;
	invlpg(va);
}

void unmap_page(u64 va)
{
	*pte_of(va, 1) = 0;
	invlpg(va);
}

void set_descriptor(u16 selector, u64 raw)
{
	gdt[selector / 8] = raw;
}

u64 make_descriptor(u32 base, u32 limit, u32 access_flags)
{
	u64 access = access_flags & 0xff, flags = access_flags >> 12 & 0xf;

	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | access << 40 |
		(u64)(limit >> 16 & 0xf) << 48 | flags << 52 | (u64)(base >> 24) << 56;
}

static void gate(u64 *low, u64 *high, u64 offset, u16 selector, int ist, int dpl, int type)
{
	*low = (offset & 0xffff) | (u64)selector << 16 | (u64)ist << 32 | (u64)type << 40 |
		(u64)dpl << 45 | 1ull << 47 | (offset >> 16 & 0xffff) << 48;
	*high = offset >> 32;
}

void set_gate(int vector, const void *handler, u16 selector, int ist, int dpl, int type)
{
	gate(&idt[vector].low, &idt[vector].high, ADDR(handler), selector, ist, dpl, type);
}

void set_call_gate(u16 selector, const void *target, u16 cs, int dpl)
{
	gate(&gdt[selector / 8], &gdt[selector / 8 + 1], ADDR(target), cs, 0, dpl, 0xc);
}

void reset_gate(int vector)
{
	set_gate(vector, kit_stubs + 16 * vector, CS64, vector == DF ? 2 : 1, 3, GATE_INT);
}

static void set_up_descriptors(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) table;

	gdt[CS64 / 8] = make_descriptor(0, 0xfffff, 0xa09b);
	gdt[DS0 / 8] = make_descriptor(0, 0xfffff, 0xc093);
	gdt[CS32 / 8] = make_descriptor(0, 0xfffff, 0xc09b);
	gdt[UCS32 / 8] = make_descriptor(0, 0xfffff, 0xc0fb);
	gdt[UDS / 8] = make_descriptor(0, 0xfffff, 0xc0f3);
	gdt[UCS64 / 8] = make_descriptor(0, 0xfffff, 0xa0fb);
	gdt[CS64_R1 / 8] = make_descriptor(0, 0xfffff, 0xa0bb);
	gdt[DS_R1 / 8] = make_descriptor(0, 0xfffff, 0xc0b3);
	gdt[CS64_R2 / 8] = make_descriptor(0, 0xfffff, 0xa0db);
	gdt[DS_R2 / 8] = make_descriptor(0, 0xfffff, 0xc0d3);
	gdt[CS16 / 8] = make_descriptor(0, 0xfffff, 0x809b);
	gdt[DS16 / 8] = make_descriptor(0, 0xffff, 0x0093);
	gdt[UCS16 / 8] = make_descriptor(0, 0xfffff, 0x80fb);
	gdt[TSS_SEL / 8] = make_descriptor((u32)ADDR(&tss), sizeof(tss) - 1, 0x89);
	gdt[TSS_SEL / 8 + 1] = ADDR(&tss) >> 32;
	tss.rsp[0] = stack_top(1);
	tss.rsp[1] = stack_top(2);
	tss.rsp[2] = stack_top(3);
	tss.ist[0] = ADDR(interrupt_stack[0]) + 8192;
	tss.ist[1] = ADDR(interrupt_stack[1]) + 8192;
	tss.iomap = sizeof(tss);
	for (int i = 0; i < 256; i++)
		reset_gate(i);

	table.limit = sizeof(gdt) - 1;
	table.base = ADDR(gdt);
	__asm__ volatile("lgdt %0" : : "m"(table));
	table.limit = sizeof(idt) - 1;
	table.base = ADDR(idt);
	__asm__ volatile("lidt %0" : : "m"(table));
	__asm__ volatile("pushq %0; lea 1f(%%rip), %%rax; pushq %%rax; lretq; 1:"
		: : "i"(CS64) : "rax", "memory");
	__asm__ volatile("mov %0, %%ss" : : "r"(DS0));
	__asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs" : : "r"(UDS));
	__asm__ volatile("lldt %w0" : : "r"(0));
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
}

static void set_up_paging(void)
{
	pml4 = alloc_page();
	for (u64 pa = 0; pa < 1ull << 30; pa += 1ull << 21)
		*pte_of(pa, 2) = pa | PT_P | PT_W | PT_U | PT_PS;
	for (u64 i = 0; i < SS_PAGES; i++) {
		map_page(SS_BASE + i * 4096, ADDR(ss_pages[0][i]), PT_SS);
		map_page(USS_BASE + i * 4096, ADDR(ss_pages[1][i]), PT_SS | PT_U);
	}
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 11 | 1); /* NXE, SCE */
	write_cr3(ADDR(pml4));
	write_cr0((read_cr0() | CR0_WP) & ~(u64)(CR0_AM | CR0_TS | 1u << 2));
	write_cr4(CR4_PAE | CR4_OSFXSR | 1 << 10 | CR4_DE);
	kit_cr4 = read_cr4();
}

void kit_machine_init(void)
{
	u32 r[4];

	set_up_paging();
	set_up_descriptors();
	cpuid(0, 0, r);
	if (r[0] >= 7) {
		cpuid(7, 0, r);
		has_shstk = r[2] >> 7 & 1;
		has_ibt = r[3] >> 20 & 1;
	}
	kit_cet_present = has_shstk || has_ibt;
}

void flush_tlb(void)
{
	write_cr3(read_cr3());
}

u64 rdmsr(u32 msr)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

void wrmsr(u32 msr, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

#define CR(n) \
	u64 read_cr##n(void) \
	{ \
		u64 v; \
		__asm__ volatile("mov %%cr" #n ", %0" : "=r"(v)); \
		return v; \
	}
CR(0)
CR(2)
CR(3)
CR(4)

void write_cr0(u64 v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
void write_cr3(u64 v) { __asm__ volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
void write_cr4(u64 v) { __asm__ volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
void invlpg(u64 va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

u8 inb(u16 port)
{
	u8 v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

void cpuid(u32 leaf, u32 subleaf, u32 out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
		: "a"(leaf), "c"(subleaf));
}
