// SPDX-License-Identifier: MIT
// A busy guest that checks itself: shadow stacks and IBT in ring 0 and ring 3, a timer and exceptions on
// interrupt stacks, patterns in every register that a move to another machine must carry. It never
// ends; what it finds wrong it reports once.
#include "kit.h"

#include "shared.h"

#define INFO ((volatile struct info *)INFO_AT)
#define LAPIC 0xfee00000ull
#define TIMER_VECTOR 0x40
#define DEMAND_VA FREE_VA_HIGH
#define KERNEL_CET (CET_SHSTK_EN | CET_ENDBR_EN | CET_WRSS_EN | CET_NO_TRACK_EN)
#define USER_CET (CET_SHSTK_EN | CET_WRSS_EN | CET_ENDBR_EN | CET_NO_TRACK_EN)
#define XCR0_PLAIN 0x207ull
#define XCR0_TILES (3ull << 17)
#define STACK_SIZE 16384

/* Shadow-stack pages: 0 for entries from ring 3, 1 to 4 for interrupt stacks, 6 for the start. */
#define TOKEN(page) (SS_BASE + (page) * 0x1000ull + 0xff8)
#define USER_SSP (USS_BASE + 0xff8)
#define OTHER_SSP (USS_BASE + 0x3ff8)

enum { IST_TIMER = 1, IST_NMI, IST_INJECTED, IST_DEBUG };

static u8 kernel_stack[STACK_SIZE] __attribute__((aligned(4096)));
static u8 user_stack[STACK_SIZE] __attribute__((aligned(4096)));
static u8 ist_stack[4][STACK_SIZE] __attribute__((aligned(4096)));
static u64 ssp_table[8] __attribute__((aligned(64)));
static u8 xsave_area[12288] __attribute__((aligned(64)));
static bool has_tiles;
static u64 xcr0_wanted = XCR0_PLAIN;
static u8 string_a[20000], string_b[20000];
static volatile u64 user_rsp;
static u8 demand_memory[4096] __attribute__((aligned(4096)));
static u64 last_tsc, *demand_page;
u64 syscall_stack;

_Noreturn static void fail(int line, const char *what, u64 wanted, u64 got)
{
	if (!INFO->failed_line) {
		INFO->failed_line = line;
		INFO->wanted = wanted;
		INFO->got = got;
		for (int i = 0; i < 63 && what[i]; i++)
			INFO->failed[i] = what[i];
	}
	for (;;)
		__asm__ volatile("out %%al, %%dx" : : "a"(1), "d"(FAIL_PORT));
}
#define MUST(got, wanted) \
	do { \
		u64 got_ = (u64)(got), wanted_ = (u64)(wanted); \
		if (got_ != wanted_) \
			fail(__LINE__, #got, wanted_, got_); \
	} while (0)

/* ---- entries ---- */
/* What the stubs leave on the stack. */
struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error, rip, cs, rflags, rsp, ss;
};
void handle(struct frame *f);
u64 handle_syscall(u64 number, u64 argument);

__asm__(".pushsection .text\n"
	".macro STUB name, vector, with_error\n"
	"\\name: endbr64\n"
	".if !\\with_error\n pushq $0\n .endif\n"
	"pushq $\\vector\n jmp common\n"
	".endm\n"
	"STUB stub_de, 0, 0\n STUB stub_db, 1, 0\n STUB stub_nmi, 2, 0\n STUB stub_xm, 19, 0\n STUB stub_ud, 6, 0\n"
	"STUB stub_nm, 7, 0\n STUB stub_df, 8, 1\n STUB stub_gp, 13, 1\n STUB stub_pf, 14, 1\n STUB stub_cp, 21, 1\n"
	"STUB stub_ss, 12, 1\n STUB stub_timer, 0x40, 0\n"
	"common: pushq %rax; pushq %rcx; pushq %rdx; pushq %rbx; pushq %rbp; pushq %rsi; pushq %rdi\n"
	"pushq %r8; pushq %r9; pushq %r10; pushq %r11; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
	"cld; movq %rsp, %rdi; movq %rsp, %rbp; andq $-16, %rsp; call handle; movq %rbp, %rsp\n"
	"popq %r15; popq %r14; popq %r13; popq %r12; popq %r11; popq %r10; popq %r9; popq %r8\n"
	"popq %rdi; popq %rsi; popq %rbp; popq %rbx; popq %rdx; popq %rcx; popq %rax\n"
	"addq $16, %rsp; iretq\n"
	/* rax: number, rdi: argument. Interrupts are off by FMASK until there is a shadow stack. */
	"entry_syscall: endbr64\n"
	"movq %rsp, user_rsp(%rip)\n"
	"movq syscall_stack(%rip), %rsp\n"
	"setssbsy\n"
	"pushq user_rsp(%rip); pushq %rcx; pushq %r11\n"
	"movq %rdi, %rsi; movq %rax, %rdi; subq $8, %rsp\n"
	"sti; call handle_syscall; cli\n"
	"addq $8, %rsp; popq %r11; popq %rcx; popq %rdx\n"
	/* The token is free again, and SSP 0, before SYSRET loads PL3_SSP. */
	"movq pl0_token(%rip), %rsi; clrssbsy (%rsi); jc bad_token\n"
	"movq %rdx, %rsp; xorl %edx, %edx; xorl %esi, %esi\n"
	"sysretq\n"
	"bad_token: ud2\n"
	".popsection\n");
u64 pl0_token = TOKEN(0);
LABEL(stub_de); LABEL(stub_db); LABEL(stub_nmi); LABEL(stub_xm); LABEL(stub_ud); LABEL(stub_nm);
LABEL(stub_df); LABEL(stub_gp); LABEL(stub_pf); LABEL(stub_cp); LABEL(stub_ss); LABEL(stub_timer);
LABEL(entry_syscall);

static u32 lapic_read(u32 offset) { return *(volatile u32 *)(LAPIC + offset); }
static void lapic_write(u32 offset, u32 value) { *(volatile u32 *)(LAPIC + offset) = value; }

static u64 random_state = 88172645463325252ull;
static u64 kernel_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Calls deep enough to be caught in the middle of. */
static __attribute__((noinline)) u64 tree(u64 n)
{
	u64 left;

	if (n < 2)
		return n;
	left = tree(n - 1);
	return left + tree(n - 2);
}

static void handle_user_fault(struct frame *f)
{
	INFO->faults++;
	switch (f->vector) {
	case UD:
	case DE:
		f->rip += 2; /* UD2; DIV %ecx */
		return;
	case CP:
		if (f->error != CP_NEAR_RET)
			fail(__LINE__, "#CP", CP_NEAR_RET, f->error);
		INFO->cps++;
		f->rip += 1; /* RET */
		f->rsp += 8;
		return;
	case PF:
		if (read_cr2() != DEMAND_VA + 8)
			break;
		*demand_page = ADDR(demand_memory) | PT_P | PT_U | PT_W;
		return;
	}
	fail(__LINE__, "exception in ring 3", f->vector, f->rip);
}

void handle(struct frame *f)
{
	switch (f->vector) {
	case NMI:
		MUST(tree(5), 5);
		INFO->nmis++;
		return;
	case XM:
		MUST(tree(6), 8);
		INFO->injected++;
		return;
	case TIMER_VECTOR:
		MUST(tree(7), 13);
		INFO->timer_ticks++;
		lapic_write(0xb0, 0);
		lapic_write(0x380, 100000 + kernel_random() % 900000);
		return;
	}
	if ((f->cs & 3) != 3)
		fail(__LINE__, "exception in ring 0", f->vector << 32 | f->error, f->rip);
	handle_user_fault(f);
}

/* ---- ring 0's share of the work ---- */
static const struct { u32 msr; u64 value; } patterns[] = {
	{ MSR_PL1_SSP, 0xffffa00000001234 }, { MSR_PL2_SSP, 0x00005a5a5a5a5a5c }, { MSR_FS_BASE, 0x1122334455 },
	{ MSR_KERNEL_GS_BASE, 0xffff808182838485 }, { 0xc0000103, 0x5c5c },
	{ MSR_SYSENTER_ESP, 0x90000010 }, /* processors of AMD's keep 32 bits */
	{ MSR_CSTAR, 0xffff900000000cc0 }, { 0x277, 0x0007040600010406 }, { MSR_XSS, 0x1800 },
	{ MSR_S_CET, KERNEL_CET }, { MSR_U_CET, USER_CET },
};

static void check_machine(void)
{
	u64 value, tsc, low, high;

	for (unsigned i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		value = rdmsr(patterns[i].msr);
		if (value != patterns[i].value)
			fail(__LINE__, "MSR", patterns[i].value, value);
	}
	MUST(rdmsr(MSR_INT_SSP_TAB), ADDR(ssp_table));
	MUST(rdmsr(MSR_PL0_SSP), TOKEN(0));
	__asm__ volatile("mov %%dr0, %0" : "=r"(value));
	MUST(value, 0x123456789ab0);
	__asm__ volatile("mov %%dr3, %0" : "=r"(value));
	MUST(value, 0xfedcba9876f0);
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	MUST(low, xcr0_wanted);
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	tsc = low | high << 32;
	if (tsc < last_tsc)
		fail(__LINE__, "TSC went backwards", last_tsc, tsc);
	last_tsc = tsc;
	for (int i = 1; i <= 3; i++)
		MUST(ssp_table[i], TOKEN(i));
}

/* All of user state through XSAVES and XRSTORS, with other values in the registers between. */
static void check_xsaves(void)
{
	u64 user_cet = rdmsr(MSR_U_CET), pl3 = rdmsr(MSR_PL3_SSP);

	__asm__ volatile("cli; xsaves64 %0; vzeroall; fninit" : "+m"(xsave_area) : "a"(~0u), "d"(~0u));
	wrmsr(MSR_PL3_SSP, 0x7770);
	wrmsr(MSR_PL1_SSP, 0x8880);
	wrmsr(MSR_U_CET, 0);
	__asm__ volatile("xrstors64 %0; sti" : : "m"(xsave_area), "a"(~0u), "d"(~0u));
	MUST(rdmsr(MSR_U_CET), user_cet);
	MUST(rdmsr(MSR_PL3_SSP), pl3);
	MUST(*(u64 *)(xsave_area + 520), xcr0_wanted | 0x1800 | 1ull << 63);
	/* CET_U lies behind AVX and PKRU. */
	MUST(*(u64 *)(xsave_area + 840), user_cet);
	MUST(*(u64 *)(xsave_area + 848), pl3);
	MUST(*(u64 *)(xsave_area + 864), rdmsr(MSR_PL1_SSP));
}

static void wait_for_timer(void)
{
	u64 ticks = INFO->timer_ticks;

	while (INFO->timer_ticks == ticks)
		__asm__ volatile("sti; hlt");
}

static u64 do_io(void)
{
	u32 value;

	__asm__ volatile("inl %%dx, %%eax" : "=a"(value) : "d"(IN_PORT));
	MUST(value, (u32)(INFO->io_in * 7 + 1));
	INFO->io_in++;
	__asm__ volatile("outl %%eax, %%dx" : : "a"((u32)(INFO->io_out * 5 + 3)), "d"(OUT_PORT));
	for (unsigned i = 0; i < 3; i++) {
		value = *(volatile u32 *)(MMIO_AT + 16 * i);
		MUST(value, mmio_value(MMIO_AT + 16 * i, INFO->mmio));
		INFO->mmio++;
	}
	return value;
}

enum { SYS_CHECK, SYS_XSAVES, SYS_SLEEP, SYS_IO, SYS_UNMAP, SYS_COUNT };

u64 handle_syscall(u64 number, u64 argument)
{
	INFO->syscalls++;
	MUST(tree(argument % 6 + 4), argument % 6 + 4 == 4 ? 3 : tree(argument % 6 + 3) + tree(argument % 6 + 2));
	switch (number) {
	case SYS_CHECK: check_machine(); break;
	case SYS_XSAVES: check_xsaves(); break;
	case SYS_SLEEP: wait_for_timer(); break;
	case SYS_IO: do_io(); break;
	case SYS_UNMAP:
		*demand_page = 0;
		invlpg(DEMAND_VA);
		break;
	}
	return argument * 3 + number;
}

/* ---- ring 3 ---- */
static void user_fail(int line, const char *what, u64 wanted, u64 got)
{
	if (!INFO->failed_line) {
		INFO->wanted = wanted;
		INFO->got = got;
		for (int i = 0; i < 63 && what[i]; i++)
			INFO->failed[i] = what[i];
		INFO->failed_line = line;
	}
	__asm__ volatile("hlt"); /* #GP: the kernel tells the client */
}
#define USER_MUST(got, wanted) \
	do { \
		u64 got_ = (u64)(got), wanted_ = (u64)(wanted); \
		if (got_ != wanted_) \
			user_fail(__LINE__, #got, wanted_, got_); \
	} while (0)

static void syscall2(u64 number, u64 argument)
{
	u64 result = number, rdi = argument;

	__asm__ volatile("syscall" : "+a"(result), "+D"(rdi) : : "rcx", "r11", "rdx", "rsi", "r8", "r9", "r10", "memory");
	USER_MUST(result, argument * 3 + number);
}

static u64 user_seed = 1;
static u64 user_random(void)
{
	user_seed = user_seed * 6364136223846793005ull + 1442695040888963407ull;
	return user_seed >> 16;
}

static __attribute__((noinline)) u64 add3(u64 x) { return x + 3; }
static __attribute__((noinline)) u64 twice(u64 x) { return x * 2; }
static __attribute__((noinline)) u64 flip(u64 x) { return ~x; }
static u64 (*volatile functions[3])(u64) = { add3, twice, flip };

static void indirect_calls(void)
{
	u64 x = 5, y = 5;

	for (unsigned i = 0; i < 60; i++) {
		x = functions[i % 3](x);
		y = i % 3 == 0 ? y + 3 : i % 3 == 1 ? y * 2 : ~y;
	}
	USER_MUST(x, y);
	/* Indirect jumps, tracked and not. */
	for (unsigned i = 0; i < 20; i++) {
		x = 0;
		__asm__ volatile("lea 1f(%%rip), %%rcx; jmp *%%rcx; ud2; 1: endbr64; inc %0\n\t"
				 "lea 2f(%%rip), %%rcx; notrack jmp *%%rcx; ud2; 2: inc %0" : "+r"(x) : : "rcx");
		USER_MUST(x, 2);
	}
}

/* To another shadow stack and back, as a user-space scheduler does it. */
static void pivot(void)
{
	u64 ssp, after;

	__asm__ volatile("rdsspq %0" : "=r"(ssp));
	__asm__ volatile("rstorssp (%0); saveprevssp" : : "r"(OTHER_SSP - 8) : "memory", "cc");
	__asm__ volatile("rdsspq %0" : "=r"(after));
	USER_MUST(after, OTHER_SSP);
	__asm__ volatile("call 1f; jmp 2f; 1: call 3f; ret; 3: ret; 2:" : : : "memory");
	/* The restore token that SAVEPREVSSP left on the first. */
	__asm__ volatile("rstorssp (%0); saveprevssp" : : "r"(ssp - 8) : "memory", "cc");
	__asm__ volatile("rdsspq %0" : "=r"(after));
	USER_MUST(after, ssp);
}

static void strings(void)
{
	u64 n = 3000 + user_random() % 16000;
	u8 byte = (u8)user_random();
	void *d = string_a, *s = string_a;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	n = ADDR(d) - ADDR(string_a);
	for (u64 i = 0; i < n; i += 97)
		string_a[i] = (u8)i;
	u64 count = n;
	d = string_b;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(count) : : "memory");
	USER_MUST(count, 0);
	count = n;
	d = string_b;
	s = string_a;
	__asm__ volatile("repe cmpsb" : "+D"(d), "+S"(s), "+c"(count) : : "memory", "cc");
	USER_MUST(count, 0);
	USER_MUST(ADDR(s) - ADDR(string_a), n);
	USER_MUST(string_b[0] | string_b[97], 97);
}

/* Patterns in general, vector and x87 registers and control words, work between, then a look. */
static u8 vectors[16][32] __attribute__((aligned(64))), vectors_back[16][32] __attribute__((aligned(64)));
static u64 x87_values[6], x87_back[6];

/* Tiles stay loaded from here to check_tiles(), through whatever comes between. */
static u8 tiles[8][1024] __attribute__((aligned(64))), tiles_back[8][1024] __attribute__((aligned(64)));
static const struct {
	u8 palette, start_row, reserved[14];
	u16 bytes[8], more[8];
	u8 rows[8], more_rows[8];
} tile_config __attribute__((aligned(64))) = { .palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
	.rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };

#define EACH_TILE(instruction) ".irp n, 0,1,2,3,4,5,6,7\n\t " instruction "\n\t .endr\n\t"

static void load_tiles(void)
{
	u64 seed = user_random();

	if (!has_tiles)
		return;
	for (unsigned i = 0; i < 8; i++)
		for (unsigned k = 0; k < 1024; k += 8)
			*(u64 *)&tiles[i][k] = seed += 0x9e3779b97f4a7c15ull;
	__asm__ volatile("ldtilecfg %0\n\t" EACH_TILE("tileloadd 1024*\\n(%1,%2,1), %%tmm\\n")
			 : : "m"(tile_config), "r"(tiles), "r"(64ull) : "memory");
}

static void check_tiles(void)
{
	u8 config[64];

	if (!has_tiles)
		return;
	__asm__ volatile("sttilecfg %0\n\t" EACH_TILE("tilestored %%tmm\\n, 1024*\\n(%1,%2,1)")
			 : "=m"(config) : "r"(tiles_back), "r"(64ull) : "memory");
	USER_MUST(memcmp(config, &tile_config, 64), 0);
	for (unsigned i = 0; i < 8; i++)
		USER_MUST(memcmp(tiles[i], tiles_back[i], 1024), 0);
	if (user_random() & 1)
		__asm__ volatile("tilerelease");
}

static void registers(void)
{
	u32 mxcsr = 0x1f80 | (user_random() & 0xe040), mxcsr_back;
	u16 fcw = 0x37f & ~0xc00, fcw_back;
	u64 seed = user_random(), sum;

	fcw |= (user_random() & 3) << 10;
	for (unsigned i = 0; i < 512; i++)
		vectors[i / 32][i % 32] = (u8)(seed >> (i % 40)) ^ i;
	for (unsigned i = 0; i < 6; i++)
		x87_values[i] = (user_random() & 0xffffffffffull) + 1;
	__asm__ volatile(
		"fninit; fldcw %[fcw]; ldmxcsr %[mxcsr]\n\t"
		"fildll (%[x]); fildll 8(%[x]); fildll 16(%[x]); fildll 24(%[x]); fildll 32(%[x]); fildll 40(%[x])\n\t"
		".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t vmovdqa 32*\\n(%[v]), %%ymm\\n\n\t .endr\n\t"
		: : [fcw] "m"(fcw), [mxcsr] "m"(mxcsr), [x] "r"(x87_values), [v] "r"(vectors) : "memory");
	sum = tree(11);
	__asm__ volatile(
		"mov %[s], %%r8; lea 1(%[s]), %%r9; lea 2(%[s]), %%r10; lea 3(%[s]), %%r11\n\t"
		"lea 4(%[s]), %%r12; lea 5(%[s]), %%r13; lea 6(%[s]), %%r14; lea 7(%[s]), %%r15; lea 8(%[s]), %%rbx\n\t"
		"mov $3000, %%ecx; 1: lea (%%rcx), %%rdx; add %%rdx, %[sum]; sub %%rdx, %[sum]; dec %%ecx; jnz 1b\n\t"
		"sub %[s], %%r8; sub %[s], %%r9; sub %[s], %%r10; sub %[s], %%r11; sub %[s], %%r12; sub %[s], %%r13\n\t"
		"sub %[s], %%r14; sub %[s], %%r15; sub %[s], %%rbx\n\t"
		"add %%r8, %[sum]; add %%r9, %[sum]; add %%r10, %[sum]; add %%r11, %[sum]; add %%r12, %[sum]\n\t"
		"add %%r13, %[sum]; add %%r14, %[sum]; add %%r15, %[sum]; add %%rbx, %[sum]"
		: [sum] "+D"(sum) : [s] "S"(seed)
		: "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rbx", "rcx", "rdx", "cc");
	__asm__ volatile(
		".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t vmovdqa %%ymm\\n, 32*\\n(%[v])\n\t .endr\n\t"
		"fistpll 40(%[x]); fistpll 32(%[x]); fistpll 24(%[x]); fistpll 16(%[x]); fistpll 8(%[x]); fistpll (%[x])\n\t"
		"fnstcw %[fcw]; stmxcsr %[mxcsr]"
		: [fcw] "=m"(fcw_back), [mxcsr] "=m"(mxcsr_back) : [x] "r"(x87_back), [v] "r"(vectors_back) : "memory");
	USER_MUST(sum, 89 + 36);
	USER_MUST(fcw_back, fcw);
	USER_MUST(mxcsr_back, mxcsr);
	for (unsigned i = 0; i < 6; i++)
		USER_MUST(x87_back[i], x87_values[i]);
	for (unsigned i = 0; i < 16; i++)
		USER_MUST(memcmp(vectors[i], vectors_back[i], 32), 0);
}

static void faults(void)
{
	u64 before = INFO->faults, one = 0;

	__asm__ volatile("ud2");
	__asm__ volatile("xor %%ecx, %%ecx; div %%ecx" : : : "ecx", "eax", "edx", "cc");
	*(volatile u64 *)(DEMAND_VA + 8) = 0x1234;
	USER_MUST(*(volatile u64 *)(DEMAND_VA + 8), 0x1234);
	syscall2(SYS_UNMAP, before);
	/* A return to where no call came from: #CP, and the kernel steps over it. */
	__asm__ volatile("call 1f; nop; 1: addq $8, (%%rsp); ret; incq %0; incsspq %0" : "+a"(one) : : "memory", "cc");
	USER_MUST(INFO->faults, before + 4);
}

_Noreturn void user_main(void);
_Noreturn void user_main(void)
{
	for (;;) {
		load_tiles();
		indirect_calls();
		registers();
		syscall2(SYS_CHECK, user_random() & 0xffff);
		pivot();
		strings();
		faults();
		syscall2(SYS_XSAVES, user_random() & 0xffff);
		registers();
		check_tiles();
		syscall2(SYS_IO, user_random() & 0xffff);
		if (INFO->iterations % 8 == 0)
			syscall2(SYS_SLEEP, 9);
		INFO->iterations++;
	}
}

/* ---- start ---- */
static void set_gates(void)
{
	static const struct { u8 vector; const u8 *stub; u8 ist; } gates[] = {
		{ DE, stub_de, 0 }, { DB, stub_db, IST_DEBUG }, { NMI, stub_nmi, IST_NMI }, { XM, stub_xm, IST_INJECTED },
		{ UD, stub_ud, 0 }, { NM, stub_nm, 0 }, { DF, stub_df, IST_DEBUG }, { SS, stub_ss, 0 }, { GP, stub_gp, 0 },
		{ PF, stub_pf, 0 }, { CP, stub_cp, 0 }, { TIMER_VECTOR, stub_timer, IST_TIMER },
	};

	for (unsigned i = 0; i < sizeof(gates) / sizeof(gates[0]); i++)
		set_gate(gates[i].vector, gates[i].stub, CS64, gates[i].ist, 0, GATE_INT);
	for (int i = 0; i < 4; i++) {
		tss.ist[i] = ADDR(ist_stack[i]) + STACK_SIZE;
		ssp_table[i + 1] = TOKEN(i + 1);
		*ss_mem(TOKEN(i + 1)) = TOKEN(i + 1);
	}
	tss.rsp[0] = ADDR(kernel_stack) + STACK_SIZE;
	syscall_stack = tss.rsp[0];
	*ss_mem(TOKEN(0)) = TOKEN(0);
	*ss_mem(TOKEN(6)) = TOKEN(6);
	/* The other user shadow stack, waiting with a restore token. */
	*ss_mem(OTHER_SSP - 8) = OTHER_SSP | 1;
}

/* 16-bit code: counts, stays a while, and leaves. */
static void set_smm_handler(void)
{
	static const u8 code[] = { 0x66, 0x67, 0xff, 0x05, 0, 0, 0, 0, 0xb9, 0, 2, 0xe2, 0xfe, 0x0f, 0xaa };
	u32 address = INFO_AT + offsetof(struct info, smis);

	memcpy((void *)SMM_HANDLER_AT, code, sizeof(code));
	memcpy((void *)(SMM_HANDLER_AT + 4), &address, 4);
}

void test_main(void)
{
	struct info *info = (struct info *)INFO_AT;
	u32 leaf[4];

	cpuid(7, 0, leaf);
	has_tiles = leaf[3] >> 24 & 1;
	if (has_tiles)
		xcr0_wanted |= XCR0_TILES;
	if (!has_shstk || !has_ibt)
		fail(__LINE__, "no CET", 1, 0);
	map_page(LAPIC, LAPIC, PT_P | PT_W);
	map_page(MMIO_AT, MMIO_AT, PT_P | PT_W);
	map_page(DEMAND_VA, 0, 0);
	demand_page = pte_of(DEMAND_VA, 1);
	set_gates();
	set_smm_handler();
	info->timer_stack = ADDR(ist_stack[0]);
	info->nmi_stack = ADDR(ist_stack[1]);
	info->injected_stack = ADDR(ist_stack[2]);
	info->stack_size = STACK_SIZE;

	write_cr4(read_cr4() | CR4_OSXSAVE | CR4_FSGSBASE | CR4_CET);
	__asm__ volatile("xsetbv" : : "c"(0), "a"((u32)xcr0_wanted), "d"(0));
	wrmsr(MSR_STAR, (u64)(UCS32 & ~3u) << 48 | (u64)CS64 << 32);
	wrmsr(MSR_LSTAR, ADDR(entry_syscall));
	wrmsr(MSR_FMASK, FL_IF | FL_DF | FL_TF);
	wrmsr(MSR_INT_SSP_TAB, ADDR(ssp_table));
	wrmsr(MSR_PL0_SSP, TOKEN(6));
	wrmsr(MSR_PL3_SSP, USER_SSP);
	for (unsigned i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
		if (patterns[i].msr != MSR_S_CET)
			wrmsr(patterns[i].msr, patterns[i].value);
	__asm__ volatile("mov %0, %%dr0" : : "r"(0x123456789ab0));
	__asm__ volatile("mov %0, %%dr3" : : "r"(0xfedcba9876f0));

	lapic_write(0xf0, 0x1ff);
	lapic_write(0x3e0, 0xb);
	lapic_write(0x320, TIMER_VECTOR);
	lapic_write(0x380, 50000);
	MUST(lapic_read(0x320), TIMER_VECTOR);
	info->magic = INFO_MAGIC;

	/* From here on no call of ours returns. */
	__asm__ volatile(
		"movl $0x6a2, %%ecx; movl %[cet], %%eax; xorl %%edx, %%edx; wrmsr; setssbsy\n\t"
		"movl $0x6a4, %%ecx; movl %[token], %%eax; xorl %%edx, %%edx; wrmsr\n\t"
		"pushq %[ss]; pushq %[rsp]; pushq $0x202; pushq %[cs]; pushq %[rip]; iretq"
		: : [cet] "i"(KERNEL_CET), [token] "i"((u32)TOKEN(0)), [ss] "i"(UDS), [cs] "i"(UCS64),
		[rsp] "r"(ADDR(user_stack) + STACK_SIZE - 8), [rip] "r"(ADDR(user_main)) : "rax", "rcx", "rdx", "memory");
	__builtin_unreachable();
}
