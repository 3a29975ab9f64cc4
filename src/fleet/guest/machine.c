// SPDX-License-Identifier: MIT
// The guest's machine: features, descriptor and page tables, exceptions, CET. A program in ring 3 makes
// a system call inside nested calls; the kernel leaves patterns, nests calls of its own, and is moved.
// SDM: "Shadow Stacks", "Supervisor Shadow Stack Token", "Interrupt Stack Table".
#include "guest.h"

#define DEPTH 8
#define USER_DEPTH 4 // as entry.S has it

#define PAGE 4096
#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull

#define CS64 0x08
#define DATA 0x10
#define USER_DATA 0x1b
#define USER_CS64 0x23
#define TSS_SELECTOR 0x28
#define SYSTEM_CALL 0x30

struct guest_features has;
volatile u64 recover_rip;

static u64 pml4[512] __attribute__((aligned(PAGE))), pdpt[512] __attribute__((aligned(PAGE))),
	directory[512] __attribute__((aligned(PAGE))), table[512] __attribute__((aligned(PAGE)));
// For system calls, exceptions and double faults; on either kind of stack.
enum { STACK_SYSTEM_CALL, STACK_EXCEPTION, STACK_DOUBLE_FAULT, STACKS };
static u64 shadow_stacks[STACKS][512] __attribute__((aligned(PAGE))), user_shadow_stack[512] __attribute__((aligned(PAGE)));
static u8 stacks[STACKS][PAGE] __attribute__((aligned(PAGE)));
static u64 ssp_table[8] __attribute__((aligned(64)));
const u64 ssp_table_address = (u64)ssp_table;

static u64 gdt[7];
static struct {
	u64 low, high;
} idt[SYSTEM_CALL + 1];
static struct {
	u32 reserved0;
	u64 rsp[3], reserved1, ist[7], reserved2;
	u16 reserved3, iomap;
} __attribute__((packed)) tss;

extern const u8 exception_stubs[], kernel_entry[], user_main[], user_stack_top[], user_start[], user_end[];
void fleet_move(void);
void guest_main(void);
void guest_step(void);
void die(const u64 *frame, u64 cr4);

void *memset(void *to, int value, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((volatile u8 *)to)[i] = (u8)value;
	return to;
}

void say(u32 what)
{
	__asm__ volatile("outl %0, %1" : : "a"(what), "d"((u16)FLEET_PORT) : "memory");
}

static void find_features(void)
{
	u32 r[4], max;

	cpuid(0, 0, r);
	max = r[0];
	cpuid(1, 0, r);
	has.xsave = r[2] >> 26 & 1;
	if (max >= 7) {
		cpuid(7, 0, r);
		has.fsgsbase = r[1] & 1;
		has.pku = r[2] >> 3 & 1;
		has.shstk = r[2] >> 7 & 1;
		has.ibt = r[3] >> 20 & 1;
	}
	cpuid(0x80000001, 0, r);
	has.rdtscp = r[3] >> 27 & 1;
	if (!has.xsave || max < 0xd)
		return;
	cpuid(0xd, 0, r);
	has.xcr0 = (u64)r[3] << 32 | r[0];
	cpuid(0xd, 1, r);
	has.xsaves = r[0] >> 3 & 1;
	has.xss = has.xsaves ? r[2] & 0x1800 : 0;
	for (u32 i = 2; i < 32; i++) {
		cpuid(0xd, i, r);
		has.component_size[i] = r[0];
		has.component_offset[i] = r[1];
	}
}

static void set_gate(unsigned vector, u64 to, u64 stack, u64 type)
{
	idt[vector].low = (to & 0xffff) | CS64 << 16 | stack << 32 | type << 40 | (to >> 16 & 0xffff) << 48;
	idt[vector].high = to >> 32;
}

static void make_descriptors(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer;
	u64 base = (u64)&tss;

	gdt[CS64 / 8] = 0x00af9b000000ffff;
	gdt[DATA / 8] = 0x00cf93000000ffff;
	gdt[USER_DATA / 8] = 0x00cff3000000ffff;
	gdt[USER_CS64 / 8] = 0x00affb000000ffff;
	gdt[TSS_SELECTOR / 8] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
	gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
	tss.rsp[0] = (u64)stacks[STACK_SYSTEM_CALL] + PAGE;
	tss.ist[0] = (u64)stacks[STACK_EXCEPTION] + PAGE;
	tss.ist[1] = (u64)stacks[STACK_DOUBLE_FAULT] + PAGE;
	tss.iomap = sizeof(tss);
	for (unsigned i = 0; i < 32; i++)
		set_gate(i, (u64)exception_stubs + 16 * i, i == 8 ? 2 : 1, 0x8e);
	set_gate(SYSTEM_CALL, (u64)kernel_entry, 0, 0xee);
	pointer.limit = sizeof(gdt) - 1;
	pointer.base = (u64)gdt;
	__asm__ volatile("lgdt %0" : : "m"(pointer));
	pointer.limit = sizeof(idt) - 1;
	pointer.base = (u64)idt;
	__asm__ volatile("lidt %0" : : "m"(pointer));
	__asm__ volatile("pushq %0; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1:" : : "i"(CS64) : "rax", "memory");
	__asm__ volatile("movl %0, %%ds; movl %0, %%es; movl %0, %%ss; movl %0, %%fs; movl %0, %%gs" : : "r"(DATA));
	__asm__ volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}

static void make_paging(void)
{
	for (u64 i = 0; i < 512; i++)
		table[i] = i * PAGE | PTE_P | PTE_W | PTE_A | PTE_D;
	for (u64 page = (u64)user_start; page < (u64)user_end; page += PAGE)
		table[page / PAGE] |= PTE_U;
	if (has.shstk)
		table[(u64)user_shadow_stack / PAGE] = (u64)user_shadow_stack | PTE_P | PTE_U | PTE_A | PTE_D;
	// Shadow-stack pages: read-only and dirty. Tokens first, for nothing else can write there then.
	for (unsigned i = 0; i < STACKS; i++) {
		shadow_stacks[i][511] = (u64)&shadow_stacks[i][511];
		if (has.shstk)
			table[(u64)shadow_stacks[i] / PAGE] &= ~PTE_W;
	}
	ssp_table[1] = (u64)&shadow_stacks[STACK_EXCEPTION][511];
	ssp_table[2] = (u64)&shadow_stacks[STACK_DOUBLE_FAULT][511];
	directory[0] = (u64)table | PTE_P | PTE_W | PTE_U;
	pdpt[0] = (u64)directory | PTE_P | PTE_W | PTE_U;
	pml4[0] = (u64)pdpt | PTE_P | PTE_W | PTE_U;
	WRITE_CR(3, pml4);
	WRITE_CR(0, READ_CR(0) | 1u << 16); // WP
}

void machine_init(void)
{
	u64 cr4 = READ_CR(4) | CR4_OSFXSR | CR4_OSXMMEXCPT;

	find_features();
	make_descriptors();
	make_paging();
	if (has.xsave)
		cr4 |= CR4_OSXSAVE;
	if (has.pku)
		cr4 |= CR4_PKE;
	WRITE_CR(4, cr4);
	if (has.xsave)
		__asm__ volatile("xsetbv" : : "c"(0), "a"((u32)has.xcr0), "d"((u32)(has.xcr0 >> 32)));
	if (has.xsaves)
		wrmsr(MSR_XSS, has.xss);
}

// Inlined into a function that does not return: its caller's return address is on no shadow stack.
static inline __attribute__((always_inline)) void cet_on(void)
{
	u32 bits = (has.shstk ? CET_SHSTK_EN : 0) | (has.ibt ? CET_ENDBR_EN : 0);
	u32 user = (has.shstk ? CET_WRSS_EN : 0) | (has.ibt ? CET_NO_TRACK : 0);

	if (!bits)
		return;
	WRITE_CR(4, READ_CR(4) | CR4_CET);
	wrmsr(MSR_U_CET, bits | user);
	if (!has.shstk) {
		wrmsr(MSR_S_CET, bits);
		return;
	}
	wrmsr(MSR_INT_SSP_TAB, (u64)ssp_table);
	wrmsr(MSR_PL3_SSP, (u64)&user_shadow_stack[512]);
	wrmsr(MSR_PL0_SSP, (u64)&shadow_stacks[STACK_SYSTEM_CALL][511]);
	__asm__ volatile("wrmsr; setssbsy" : : "c"(MSR_S_CET), "a"(bits), "d"(0) : "memory");
}

static __attribute__((noinline)) void moved_here(void)
{
	u64 cr4;

	fleet_move();
	cr4 = READ_CR(4);
	// Probing may fault, and faults leave nothing on a shadow stack that is off.
	WRITE_CR(4, cr4 & ~(u64)CR4_CET);
	check_all(cr4);
	WRITE_CR(4, cr4);
}

// Leaves a call open at each level, so that the shadow stack has something to lose.
static __attribute__((noinline)) void descend(unsigned levels)
{
	if (levels)
		descend(levels - 1);
	else
		moved_here();
	REPORT->returned++;
	__asm__ volatile("" : : : "memory");
}

// A system call: the report of the step before is complete now that the user's calls have returned.
void guest_step(void)
{
	static u32 step;

	if (step++) {
		REPORT->user_returned = user_returned;
		check_user();
		say(FLEET_REPORTED);
	}
	memset(REPORT, 0, sizeof(*REPORT));
	user_returned = 0;
	REPORT->step = step;
	REPORT->depth = DEPTH + 1;
	REPORT->user_depth = USER_DEPTH;
	check_prepare(step);
	descend(DEPTH);
}

void guest_main(void)
{
	machine_init();
	cet_on();
	// No call and no return from here: IRET leaves the shadow stack as the first system call wants it.
	__asm__ volatile("pushq %0; pushq %1; pushq $2; pushq %2; pushq %3; iretq"
			 :
			 : "i"(USER_DATA), "r"(user_stack_top), "i"(USER_CS64), "r"(user_main)
			 : "memory");
	__builtin_unreachable();
}

// The end, from an exception: on a stack of its own and with CET off. frame: vector, error, RIP...
void die(const u64 *frame, u64 cr4)
{
	struct fleet_report *report = REPORT;

	report->exception = 1 + (u32)frame[0];
	report->error = frame[1];
	report->rip = frame[2];
	report->cr2 = READ_CR(2);
	if (!report->checked)
		check_all(cr4);
	report->user_returned = user_returned;
	if (frame[3] & 3)
		check_user();
	for (;;)
		say(FLEET_DYING);
}
