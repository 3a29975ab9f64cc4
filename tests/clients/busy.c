// SPDX-License-Identifier: MIT
// For guests that are moved while they run: keeps patterns in every x87, SSE and AVX register, computes
// with them, and looks after each round whether all is as it must be. Where the kernel has user shadow
// stacks it does so at the bottom of a recursion whose returns are on one.
// Where /dev/cpu/*/msr is, IA32_S_CET has to stay as it was found, so that the kernel's IBT is not lost.
// In the end two children do what shadow stack and IBT forbid, and have to die of it.
// Usage: busy SECONDS. Ends earlier when there is a line on standard input, or on SIGTERM. Prints a line now
// and then; the last one is "busy: good ..." if nothing was ever wrong.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARCH_SHSTK_ENABLE 0x5001
#define ARCH_SHSTK_SHSTK 1
#define DEPTH 200
#define TURNS 20000u
#define CONTROL 0x0c7f // x87: round to zero, double precision
#define MXCSR 0x7f80   // SSE: round to zero

static bool avx;
static uint64_t rounds, wrong;
static volatile uint64_t depth_seen;
static volatile sig_atomic_t told_to_end;

#define MSR_U_CET 0x6a0
#define MSR_S_CET 0x6a2
#define ENDBR_EN 4
#define SURVIVED 7 // exit status of a child that was not stopped
#define CPUS 8
static uint64_t s_cet[CPUS];
static int msr_file[CPUS];

#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH_BUT_LAST(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14)
#define STR2(x) #x
#define STR(x) STR2(x)
#define LOAD_SSE(n) "movdqa 64 + 32 * " STR(n) "(%1), %%xmm" STR(n) "\n"
#define ADD_SSE(n) "paddq %%xmm15, %%xmm" STR(n) "\n"
#define STORE_SSE(n) "movdqa %%xmm" STR(n) ", 64 + 32 * " STR(n) "(%1)\n"
#define LOAD_AVX(n) "vmovdqa 64 + 32 * " STR(n) "(%1), %%ymm" STR(n) "\n"
#define ADD_AVX(n) "vpaddq %%ymm15, %%ymm" STR(n) ", %%ymm" STR(n) "\n"
#define STORE_AVX(n) "vmovdqa %%ymm" STR(n) ", 64 + 32 * " STR(n) "(%1)\n"
// Eight turns of the x87 stack's top bring it back; in each two registers change their signs twice.
#define X87_LOAD \
	"fnstcw 576(%1); stmxcsr 580(%1); fldcw 584(%1); ldmxcsr 588(%1)\n" \
	"fildq 56(%1); fildq 48(%1); fildq 40(%1); fildq 32(%1); fildq 24(%1); fildq 16(%1); fildq 8(%1); fildq (%1)\n"
#define X87_TURN "fchs; fincstp; fchs; fdecstp; fchs; fincstp; fchs\n"
#define X87_STORE \
	"fistpq (%1); fistpq 8(%1); fistpq 16(%1); fistpq 24(%1); fistpq 32(%1); fistpq 40(%1); fistpq 48(%1)\n" \
	"fistpq 56(%1); fnstcw 592(%1); stmxcsr 596(%1); fldcw 576(%1); ldmxcsr 580(%1)\n"
#define CLOBBERS \
	"memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
		"xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", \
		"st(7)"

struct area {
	int64_t x87[8];		// 0
	uint64_t vector[16][4]; // 64
	uint16_t old_control, pad0;
	uint32_t old_mxcsr; // 580
	uint16_t control, pad1;
	uint32_t mxcsr; // 588
	uint16_t control_after, pad2;
	uint32_t mxcsr_after; // 596
} __attribute__((aligned(32)));
_Static_assert(offsetof(struct area, old_control) == 576 && offsetof(struct area, mxcsr_after) == 596, "");

static void compute(struct area *a)
{
	uint32_t turns = TURNS;

	if (avx)
		__asm__ volatile(X87_LOAD EACH(LOAD_AVX) "1:\n" EACH_BUT_LAST(ADD_AVX) X87_TURN
				 "dec %0; jnz 1b\n" EACH(STORE_AVX) X87_STORE "vzeroupper\n"
				 : "+r"(turns) : "r"(a) : CLOBBERS);
	else
		__asm__ volatile(X87_LOAD EACH(LOAD_SSE) "1:\n" EACH_BUT_LAST(ADD_SSE) X87_TURN
				 "dec %0; jnz 1b\n" EACH(STORE_SSE) X87_STORE
				 : "+r"(turns) : "r"(a) : CLOBBERS);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

static void check(bool good, const char *what, int n)
{
	if (good)
		return;
	if (wrong++ < 10)
		printf("busy: WRONG: %s %d in round %llu\n", what, n, (unsigned long long)rounds);
	fflush(stdout);
}

static void one_round(void)
{
	struct area before, after;

	memset(&before, 0, sizeof(before));
	for (int i = 0; i < 8; i++)
		before.x87[i] = (int64_t)mix(rounds * 8 + i) >> 2;
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++)
			before.vector[i][k] = mix(rounds * 64 + i * 4 + k);
	before.control = CONTROL;
	before.mxcsr = MXCSR;
	after = before;
	compute(&after);
	for (int i = 0; i < 8; i++)
		check(after.x87[i] == before.x87[i], "x87 register", i);
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < (avx ? 4 : 2); k++)
			check(after.vector[i][k] == before.vector[i][k] + (i < 15 ? TURNS * before.vector[15][k] : 0),
			      k < 2 ? "SSE register" : "upper half of AVX register", i);
	check(after.control_after == CONTROL, "x87 control word", after.control_after);
	check((after.mxcsr_after & ~0x3fu) == MXCSR, "MXCSR", (int)after.mxcsr_after);
	rounds++;
}

// Returns from every level must find their addresses on the shadow stack.
__attribute__((noinline, optimize("no-optimize-sibling-calls"))) static uint64_t descend(unsigned depth)
{
	uint64_t sum;

	if (!depth) {
		one_round();
		return 1;
	}
	sum = descend(depth - 1) + depth;
	depth_seen = depth;
	return sum;
}

static void on_term(int number)
{
	(void)number;
	told_to_end = 1;
}

static void find_ibt(void)
{
	char path[32];

	for (int cpu = 0; cpu < CPUS; cpu++) {
		snprintf(path, sizeof(path), "/dev/cpu/%d/msr", cpu);
		msr_file[cpu] = open(path, O_RDONLY);
		if (msr_file[cpu] >= 0 && pread(msr_file[cpu], &s_cet[cpu], 8, MSR_S_CET) == 8)
			printf("busy: CPU %d has S_CET %#llx\n", cpu, (unsigned long long)s_cet[cpu]);
	}
}

static void check_ibt(void)
{
	uint64_t now;

	for (int cpu = 0; cpu < CPUS; cpu++)
		if (msr_file[cpu] >= 0 && pread(msr_file[cpu], &now, 8, MSR_S_CET) == 8)
			check(now == s_cet[cpu], "S_CET of CPU", cpu);
}

#define EXIT_SURVIVED "mov $60, %%eax; mov $7, %%edi; syscall"
_Static_assert(SURVIVED == 7 && SYS_exit == 60, "EXIT_SURVIVED");

static void return_elsewhere(void)
{
	__asm__ volatile("call 1f; ud2\n 1: lea 2f(%%rip), %%rax; mov %%rax, (%%rsp); ret\n 2: " EXIT_SURVIVED : : : "memory");
}

// The kernel has IBT for itself only: this process turns it on for its own CPU behind the kernel's back.
static void jump_elsewhere(void)
{
	int cpu = sched_getcpu();
	cpu_set_t one;
	char path[32];
	uint64_t value;
	int file;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	snprintf(path, sizeof(path), "/dev/cpu/%d/msr", cpu);
	file = open(path, O_RDWR);
	if (file < 0 || sched_setaffinity(0, sizeof(one), &one) || pread(file, &value, 8, MSR_U_CET) != 8)
		return;
	value |= ENDBR_EN;
	register long offset __asm__("r10") = MSR_U_CET;

	// Nothing of the C library runs from here on: it may have no ENDBR64.
	__asm__ volatile("syscall; lea 1f(%%rip), %%rax; jmp *%%rax\n 1: " EXIT_SURVIVED
			 :
			 : "a"((long)SYS_pwrite64), "D"((long)file), "S"(&value), "d"(8l), "r"(offset)
			 : "rcx", "r11", "memory");
}

static void forbidden(const char *what, void (*act)(void))
{
	int status = 0;
	pid_t child = fork();

	if (!child) {
		act();
		_exit(1);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		printf("busy: %s: no child\n", what);
	else if (WIFSIGNALED(status))
		printf("busy: %s: signal %d\n", what, WTERMSIG(status));
	else
		printf("busy: %s: status %d\n", what, WEXITSTATUS(status));
}

static bool told_on_stdin(void)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	char byte;

	return poll(&in, 1, 0) == 1 && read(0, &byte, 1) == 1;
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 10;
	struct timespec begin, now, said;
	long status;

	signal(SIGTERM, on_term);
	find_ibt();
	avx = __builtin_cpu_supports("avx2");
	// In line: the return address of a function would not be on the shadow stack.
	__asm__ volatile("syscall" : "=a"(status)
			 : "a"((long)SYS_arch_prctl), "D"((long)ARCH_SHSTK_ENABLE), "S"((long)ARCH_SHSTK_SHSTK)
			 : "rcx", "r11", "memory");
	printf("busy: begins, %s, shadow stack %s\n", avx ? "AVX" : "SSE", status ? "off" : "on");
	fflush(stdout);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	said = begin;
	do {
		uint64_t sum = descend(DEPTH);

		check(sum == 1 + DEPTH * (DEPTH + 1ull) / 2, "sum of the recursion", (int)sum);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - said.tv_sec + (now.tv_nsec - said.tv_nsec) / 1e9 >= 0.3) {
			printf("busy: %llu rounds\n", (unsigned long long)rounds);
			fflush(stdout);
			said = now;
			check_ibt();
			if (told_on_stdin())
				break;
		}
	} while (now.tv_sec - begin.tv_sec + (now.tv_nsec - begin.tv_nsec) / 1e9 < seconds && !told_to_end);
	if (!status) {
		forbidden("a return to another place", return_elsewhere);
		forbidden("a jump to no ENDBR64", jump_elsewhere);
	}
	printf("busy: %s after %llu rounds, %llu wrong\n", wrong ? "bad" : "good", (unsigned long long)rounds,
	       (unsigned long long)wrong);
	fflush(stdout);
	_exit(wrong != 0);
}
