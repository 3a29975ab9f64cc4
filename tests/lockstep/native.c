// SPDX-License-Identifier: MIT
// Runs a sequence on the host's silicon. The whole state goes in by rt_sigreturn from a frame of our
// making, and comes out of the frame of the signal that ends the sequence (SIGTRAP of the INT3 behind it,
// or that of the exception); the signal's trap number, error code and CR2 are the processor's own.
#include "lockstep.h"

#include <asm/prctl.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <unistd.h>

#define SW_MAGIC1 0x46505853u
#define SW_MAGIC2 0x46505845u

// What the kernel puts into bytes 464.. of the frame's extended state.
struct sw_bytes {
	u32 magic1, extended_size;
	u64 xfeatures;
	u32 xstate_size, padding[7];
};

u8 *const native_data = (u8 *)DATA_BASE;
unsigned xsave_size;
static u8 *code_alias; // writable view of the code window
static bool mode32_native;
static ucontext_t entry __attribute__((aligned(16)));
static u8 entry_xsave[XSAVE_MAX + 64] __attribute__((aligned(64)));
static struct sw_bytes sw_template;
static sigjmp_buf back;
static volatile sig_atomic_t running;
static struct state *result;
static struct sigaction engine_action[NSIG];
static stack_t engine_stack;
static u8 *alternate_stack;
static const int caught[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };

static const u8 gpr_order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

static void take_state(struct state *state, const ucontext_t *context)
{
	const greg_t *g = context->uc_mcontext.gregs;

	for (unsigned i = 0; i < 16; i++)
		state->gpr[i] = g[gpr_order[i]];
	state->rip = g[REG_RIP];
	state->rflags = g[REG_EFL];
	state->vector = g[REG_TRAPNO];
	state->error = g[REG_ERR];
	state->cr2 = g[REG_CR2];
	state->cs = g[REG_CSGSFS];
	state->ss = g[REG_CSGSFS] >> 48;
	memcpy(state->xsave, context->uc_mcontext.fpregs, xsave_size);
}

// The sequence may have left AC, NT or ID set, which C code had better not meet.
void native_caught(int sig, siginfo_t *info, void *context);
__asm__(".text\n"
	"native_handler:\n"
	"	pushq $0x202\n"
	"	popfq\n"
	"	jmp native_caught\n");
void native_handler(int sig, siginfo_t *info, void *context) __attribute__((visibility("hidden")));

__attribute__((visibility("hidden"))) void native_caught(int sig, siginfo_t *info, void *context)
{
	if (!running) {
		const ucontext_t *uc = context;

		dprintf(2, "lockstep: signal %d at %#llx outside of a sequence, address %p\n", sig,
			(unsigned long long)uc->uc_mcontext.gregs[REG_RIP], info->si_addr);
		_exit(3);
	}
	if (sig == SIGUSR1)
		memcpy(&entry, context, sizeof(entry));
	take_state(result, context);
	if (sig == SIGUSR1)
		memcpy(&sw_template, (u8 *)((ucontext_t *)context)->uc_mcontext.fpregs + 464, sizeof(sw_template));
	running = 0;
	siglongjmp(back, 1);
}

void native_enter(void *frame, u64 flags) __attribute__((noreturn, visibility("hidden")));
__asm__(".text\n"
	"native_enter:\n"
	"	pushq %rsi\n"
	"	popfq\n" // NT and ID: sigreturn leaves them as they are
	"	movq %rdi, %rsp\n"
	"	movl $15, %eax\n"
	"	syscall\n"
	"	ud2\n");

// ---- watchdog ----
static void (*expired_hook)(void *);
static void *expired_argument;
static volatile unsigned run_number;
static unsigned seen_number;
static unsigned ticks;

void tick_caught(int sig, siginfo_t *info, void *context);
__attribute__((visibility("hidden"))) void tick_caught(int sig, siginfo_t *info, void *context)
{
	if (seen_number != run_number) {
		seen_number = run_number;
		ticks = 0;
		return;
	}
	if (++ticks < 10)
		return;
	if (running) {
		take_state(result, context);
		result->ended = "endless";
		running = 0;
		siglongjmp(back, 1);
	}
	if (expired_hook)
		expired_hook(expired_argument);
}
void tick_entry(int sig, siginfo_t *info, void *context) __attribute__((visibility("hidden")));
__asm__(".text\n"
	"tick_entry:\n"
	"	pushq $0x202\n"
	"	popfq\n"
	"	jmp tick_caught\n");

void watchdog_start(void (*expired)(void *), void *argument)
{
	expired_argument = argument;
	expired_hook = expired;
	run_number++;
}

void watchdog_stop(void)
{
	expired_hook = NULL;
	run_number++;
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_sigaction = native_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	stack_t stack = { .ss_sp = alternate_stack, .ss_size = 65536 };

	sigaltstack(&stack, &engine_stack);
	for (unsigned i = 0; i < sizeof(caught) / sizeof(caught[0]); i++)
		sigaction(caught[i], &action, &engine_action[caught[i]]);
}

static void release_signals(void)
{
	for (unsigned i = 0; i < sizeof(caught) / sizeof(caught[0]); i++)
		sigaction(caught[i], &engine_action[caught[i]], NULL);
	sigaltstack(&engine_stack, NULL);
}

static void *map_at(u64 address, u64 size, int prot, int fd)
{
	void *p = mmap((void *)address, size, prot, (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) |
		       (address ? MAP_FIXED_NOREPLACE : 0), fd, 0);

	if (p == MAP_FAILED || (address && p != (void *)address)) {
		perror("lockstep: mmap");
		exit(2);
	}
	return p;
}

void native_init(bool mode32)
{
	struct sigaction action = { .sa_sigaction = native_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	struct sigaction alarm = { .sa_sigaction = tick_entry, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART };
	struct itimerval timer = { { 0, 50000 }, { 0, 50000 } };
	struct state state;
	u32 low, high;
	int fd = memfd_create("code", 0);

	// x87, SSE, AVX, and the three components of AVX-512; whatever else the host has stays initial.
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	xsave_size = (low & 0xe0) == 0xe0 ? 2688 : 832;
	mode32_native = mode32;
	map_at(DATA_BASE, DATA_SIZE, PROT_READ | PROT_WRITE, -1);
	if (fd < 0 || ftruncate(fd, CODE_SIZE)) {
		perror("lockstep: memfd");
		exit(2);
	}
	code_alias = map_at(0, CODE_SIZE, PROT_READ | PROT_WRITE, fd);
	map_at(CODE_BASE, CODE_SIZE, PROT_READ | PROT_EXEC, fd);
	memset(code_alias, 0xcc, CODE_SIZE);
	alternate_stack = map_at(0, 65536, PROT_READ | PROT_WRITE, -1);
	syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
	if (mode32) // flat data segments for compatibility mode; 64-bit code does not care
		__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(USER_DS));
	// A frame as the kernel makes them is the model of ours.
	result = &state;
	catch_signals();
	sigaction(SIGUSR1, &action, NULL);
	running = 1;
	if (!sigsetjmp(back, 0))
		raise(SIGUSR1);
	release_signals();
	sigaction(SIGALRM, &alarm, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	entry.uc_stack = (stack_t){ .ss_sp = alternate_stack, .ss_size = 65536 };
	sigdelset(&entry.uc_sigmask, SIGUSR1);
}

static void prepare_entry(const struct program *p)
{
	greg_t *g = entry.uc_mcontext.gregs;
	struct sw_bytes *sw = (struct sw_bytes *)(entry_xsave + 464);
	u32 magic2 = SW_MAGIC2;

	for (unsigned i = 0; i < 16; i++)
		g[gpr_order[i]] = p->state.gpr[i];
	g[REG_RIP] = p->state.rip;
	g[REG_EFL] = p->state.rflags;
	g[REG_CSGSFS] = (u64)USER_DS << 48 | (p->mode32 ? USER_CS32 : USER_CS64);
	if (p->segments) {
		segments_load_native(p);
		if (p->mode32)
			g[REG_CSGSFS] = (u64)LDT_SELECTOR(LDT_SS) << 48 | LDT_SELECTOR(LDT_CS);
	}
	memcpy(entry_xsave, p->state.xsave, xsave_size);
	*sw = sw_template;
	sw->magic1 = SW_MAGIC1;
	sw->xfeatures &= xsave_size > 832 ? 0xe7 : 7;
	sw->xstate_size = xsave_size;
	sw->extended_size = xsave_size + 4;
	memcpy(entry_xsave + xsave_size, &magic2, 4);
	entry.uc_mcontext.fpregs = (void *)entry_xsave;
}

// Linux hides kernel mappings: user accesses to its half always look like protection faults.
static void unmask_kernel_half(struct state *end)
{
	if (end->vector == 14 && end->cr2 >= 0x7ffffffff000)
		end->error |= 1;
	if (end->vector != 14)
		end->cr2 = 0;
}

void native_run(const struct program *p, struct state *end)
{
	static u64 dirty_from, dirty_size;
	u64 offset = p->start - CODE_BASE, size = p->size;

	if (offset + size > CODE_SIZE)
		size = CODE_SIZE - offset;
	memset(code_alias + dirty_from, 0xcc, dirty_size);
	memcpy(code_alias + offset, p->code, size);
	dirty_from = offset;
	dirty_size = size;
	mprotect(native_data + DATA_RW_SIZE, DATA_SIZE - DATA_RW_SIZE, PROT_READ | PROT_WRITE);
	memcpy(native_data, p->data, DATA_SIZE);
	mprotect(native_data + DATA_RW_SIZE, DATA_SIZE - DATA_RW_SIZE, PROT_READ);
	catch_signals();
	prepare_entry(p);
	end->ended = NULL;
	result = end;
	run_number++;
	if (!sigsetjmp(back, 0)) {
		running = 1;
		native_enter(&entry, (p->state.rflags & ~0x100ull) | 2);
	}
	release_signals();
	run_number++;
	unmask_kernel_half(end);
}
