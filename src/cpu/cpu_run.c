// SPDX-License-Identifier: MIT
// The run loop: requests, pending events, one block after another.
//
// cpu_run() lives on the thread's stack. Exceptions raised anywhere below it come back to its
// sigsetjmp(); translated code is entered through jit->enter and comes back when it needs the loop.
#include "base/log.h"
#include "cpu/debug.h"
#include "cpu/fpu.h"
#include "cpu/guest_access.h"
#include "cpu/jit_translate.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "cpu/transfer.h"

#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SIGNAL_STACK (256u << 10) // below struct cpu: for signals that arrive in translated code

struct cpu *cpu_create(const struct cpu_ops *ops, void *opaque, struct vm_code *vm)
{
	size_t size = (sizeof(struct cpu) + 4095) & ~(size_t)4095;
	u8 *area = mmap(NULL, SIGNAL_STACK + size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct cpu *cpu;

	if (area == MAP_FAILED)
		return NULL;
	mprotect(area, 4096, PROT_NONE);
	cpu = (struct cpu *)(area + SIGNAL_STACK);
	cpu->ops = ops;
	cpu->opaque = opaque;
	if (jit_create(cpu, vm) < 0) {
		jit_destroy(cpu);
		munmap(area, SIGNAL_STACK + size);
		errno = ENOMEM;
		return NULL;
	}
	jit_install_signal_handlers();
	cpu->linear_bits = 48;
	tlb_init(cpu);
	cpu_reset(cpu, false);
	tlb_flush_all(cpu);
	cpu->jit->mode_stale = true;
	return cpu;
}

void cpu_destroy(struct cpu *cpu)
{
	size_t size = (sizeof(struct cpu) + 4095) & ~(size_t)4095;

	jit_destroy(cpu);
	munmap((u8 *)cpu - SIGNAL_STACK, SIGNAL_STACK + size);
}

// ---- leaving the current instruction ----

void cpu_unwind(struct cpu *cpu)
{
	BUG_ON(!cpu->unwind);
	siglongjmp(*cpu->unwind, 1);
}

void cpu_abort(struct cpu *cpu, enum cpu_exit exit)
{
	cpu->exit = exit;
	cpu_unwind(cpu);
}

static void raise_event(struct cpu *cpu, enum vector vector, bool has_error, u32 error, u64 payload)
{
	cpu->event = (struct pending_event){ .valid = true, .vector = vector, .has_error = has_error,
					     .error = error, .payload = payload };
	cpu_unwind(cpu);
}

void cpu_raise(struct cpu *cpu, enum vector vector)
{
	raise_event(cpu, vector, false, 0, 0);
	__builtin_unreachable();
}

void cpu_raise_error(struct cpu *cpu, enum vector vector, u32 error)
{
	raise_event(cpu, vector, true, error, 0);
	__builtin_unreachable();
}

void cpu_raise_pf(struct cpu *cpu, u64 linear, u32 error)
{
	raise_event(cpu, VECTOR_PF, true, error, linear);
	__builtin_unreachable();
}

void cpu_check_ops(struct cpu *cpu, enum cpu_ops_result result)
{
	if (result == CPU_OPS_GP)
		cpu_gp0(cpu);
	if (result == CPU_OPS_EXIT)
		cpu_abort(cpu, CPU_EXIT_OPS);
}

// ---- the loop ----

static void accept_external(struct cpu *cpu, bool nmi, u8 vector)
{
	cpu->external.nmi = nmi;
	cpu->external.vector = vector;
	cpu->external.valid = true;
}

static void deliver_external(struct cpu *cpu)
{
	cpu->delivering = 0;
	cpu->halted = false;
	cpu->external.underway = true;
	event_deliver(cpu, cpu->external.vector, cpu->external.nmi ? EVENT_NMI : EVENT_EXTERNAL, false, 0);
	cpu->external.valid = cpu->external.underway = false;
}

// Handles requests. False: leave cpu_run() with cpu->exit.
static bool serve_requests(struct cpu *cpu)
{
	u32 request = __atomic_exchange_n(&cpu->request, 0, __ATOMIC_SEQ_CST);
	bool shadow = cpu->interrupt_shadow;

	if (request & REQ_CODE)
		jit_handle_code_requests(cpu);
	if (request & REQ_TLB_FLUSH)
		cpu_memory_map_changed(cpu);
	if (request & REQ_KICK) {
		cpu_request(cpu, request & ~(u32)(REQ_KICK | REQ_CODE | REQ_TLB_FLUSH));
		cpu->exit = CPU_EXIT_KICK;
		return false;
	}
	if ((request & REQ_TIMER) && cpu->ops->timer)
		cpu->ops->timer(cpu->opaque);
	if (request & REQ_INIT_SIPI) {
		// It may have been nothing: the others are looked at next.
		cpu_request(cpu, request & (REQ_IRQ | REQ_NMI | REQ_SMI));
		if (!cpu->ops->init_sipi(cpu->opaque)) {
			cpu->exit = CPU_EXIT_OPS;
			return false;
		}
		return true;
	}
	// Whoever takes the block away asks for all of them.
	if (cpu->guest_debug & KVM_GUESTDBG_BLOCKIRQ)
		return true;
	// Nothing but SMM itself holds an SMI back.
	if (cpu->smi_pending && !cpu->smm) {
		cpu_request(cpu, request & REQ_IRQ);
		smm_enter(cpu);
		return true;
	}
	if (cpu->nmi_pending && !cpu->nmi_masked && !shadow) {
		cpu->nmi_masked = true;
		if (__atomic_sub_fetch(&cpu->nmi_pending, 1, __ATOMIC_SEQ_CST) || (request & REQ_IRQ))
			cpu_request(cpu, REQ_IRQ);
		accept_external(cpu, true, VECTOR_NMI);
		return true;
	}
	if ((request & REQ_IRQ) || cpu->irq_wait) {
		if ((cpu->rflags & FLAG_IF) && !shadow) {
			int vector = cpu->ops->interrupt(cpu->opaque, true);

			cpu->irq_wait = 0;
			if (vector >= 0) {
				cpu_request(cpu, REQ_IRQ); // there may be another one
				accept_external(cpu, false, vector);
			}
		} else {
			cpu->irq_wait = cpu->ops->interrupt(cpu->opaque, false) >= 0;
		}
	}
	return true;
}

static void debug_trace(struct cpu *cpu)
{
	ZydisDisassembledInstruction d;
	char text[128] = "?";
	u8 bytes[15] = { 0 };
	u64 linear = cpu->rip + (cpu_64bit(cpu) ? 0 : cpu->seg[SEG_CS].base), gpa;
	u8 *page = mem_code_page(cpu, linear, &gpa);

	cpu_fpu_unload(cpu);
	if (page)
		memcpy(bytes, page + (linear & 0xfff), 4096 - (linear & 0xfff) < 15 ? 4096 - (linear & 0xfff) : 15);
	if (ZYAN_SUCCESS(ZydisDisassembleIntel(cpu_64bit(cpu) ? ZYDIS_MACHINE_MODE_LONG_64 :
		cpu->seg[SEG_CS].attributes & SEG_DB ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16,
		cpu->rip, bytes, 15, &d)))
		snprintf(text, sizeof(text), "%s", d.text);
	fprintf(stderr, "%016lx %-40s a=%lx c=%lx d=%lx b=%lx sp=%lx bp=%lx si=%lx di=%lx 8=%lx 9=%lx 10=%lx 11=%lx 12=%lx 13=%lx 14=%lx 15=%lx f=%lx ssp=%lx\n",
		cpu->rip, text, cpu->gpr[0], cpu->gpr[1], cpu->gpr[2], cpu->gpr[3], cpu->gpr[4], cpu->gpr[5],
		cpu->gpr[6], cpu->gpr[7], cpu->gpr[8], cpu->gpr[9], cpu->gpr[10], cpu->gpr[11], cpu->gpr[12],
		cpu->gpr[13], cpu->gpr[14], cpu->gpr[15], cpu_rflags(cpu), cpu->ssp);
}

static bool debug_tracing;

__attribute__((constructor)) static void look_for_tracing(void)
{
	debug_tracing = getenv("CETKVM_DEBUG_TRACE");
}

typedef u64 enter_function(struct cpu *cpu, const u8 *entry);

// Behind an instruction: what of #DB has come together. MOV SS and POP SS hold data breakpoints back
// for one instruction, and there is no single-step trap behind them.
static void debug_boundary(struct cpu *cpu, bool step)
{
	struct jit *jit = cpu->jit;

	if (cpu->mov_ss_shadow)
		return;
	if (step)
		jit->debug_bits |= DR6_BS;
	if (jit->debug_bits)
		debug_trap(cpu, jit->debug_bits);
	jit->debug_bits = 0;
}

// Has the single instruction at `rip` branched? REP leaves RIP where it is. Deviation: a branch to the
// next instruction does not show.
static bool branched(const struct cpu *cpu, u64 rip, unsigned length, bool branch)
{
	u64 next = cpu_64bit(cpu) ? rip + length : (u32)(rip + length);

	return cpu->rip != next && (cpu->rip != rip || branch);
}

// TF steps from branch to branch under DEBUGCTL.BTF; a debugger's step does not.
static bool steps_branches(const struct cpu *cpu)
{
	return (cpu->debugctl & DEBUGCTL_BTF) && !(cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
}

// Runs blocks until something needs the loop.
static void run_blocks(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	u32 mode = jit_mode(cpu);
	bool step = (cpu->rflags & FLAG_TF) || (cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
	bool shadow = cpu->interrupt_shadow || cpu->mov_ss_shadow, debug = jit_debug_begin(cpu);
	bool single = cpu->single_grain || step || shadow || debug || jit->slow_once || cpu->replay ||
		      (mode & (MODE_SINGLE | MODE_SLOWMEM));
	bool by_branch = steps_branches(cpu), branch;
	unsigned length;
	u64 rip;
	struct block *b;

	if (debug_tracing) {
		single = true;
		debug_trace(cpu);
	}
	if (debug) {
		debug_check_code(cpu);
		if (debug_wants_data(cpu))
			mode |= MODE_SLOWMEM;
	}
	if (jit->slow_once)
		mode |= MODE_SLOWMEM;
	if (single)
		mode |= MODE_SINGLE;
	jit->slow_once = false;
	jit->single_running = single;
	jit->slow_active = 0;
	jit->saved_valid = false;
	cpu->watch_bits = 0;
	b = jit_get_block(cpu, mode);
	rip = cpu->rip;
	length = b->length;
	branch = b->branch;
	jit_enter_mode(cpu, mode);
	cpu->interrupt_shadow = cpu->mov_ss_shadow = cpu->step_canceled = false;
	if (single)
		cpu->rflags &= ~(u64)FLAG_RF;
	if (!cpu->fpu_loaded)
		cpu_fpu_load(cpu);
	cpu->watch_data = debug && debug_wants_data(cpu);
	((enter_function *)jit->enter)(cpu, jit->rx + b->code);
	ENTER_C(cpu);
	jit->debug_bits |= cpu->watch_bits;
	if (cpu->debug_taken) {
		// One #DB for both: a second one would find the handler's stack in use.
		cpu->debug_taken = false;
		if (jit->debug_bits)
			debug_deliver(cpu, jit->debug_bits);
		jit->debug_bits = 0;
	}
	cpu->watch_data = false;
	jit->single_running = false;
	cpu->replay = false;
	if (!cpu_64bit(cpu))
		cpu->rip = (u32)cpu->rip;
	if (step && by_branch)
		step = branched(cpu, rip, length, branch);
	if (step || jit->debug_bits)
		debug_boundary(cpu, step && !cpu->step_canceled);
}

enum cpu_exit cpu_run(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;
	sigjmp_buf buf;

	cpu->exit = 0;
	cpu->unwind = &buf;
	jit_running = cpu;
	__atomic_store_n(&jit->in_guest, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&jit->flush_requested, __ATOMIC_SEQ_CST))
		cpu_request(cpu, REQ_CODE);
	cpu_fpu_enter(cpu);
	if (sigsetjmp(buf, 0)) {
		ENTER_C(cpu);
		jit->single_running = cpu->watch_data = false;
		if (cpu->event.valid) {
			jit->debug_bits = 0;
			// An exception in an interrupt's delivery takes its place: the two are handled serially.
			if (cpu->external.underway)
				cpu->external.valid = cpu->external.underway = false;
		}
	}
	while (!cpu->exit) {
		if (cpu->event.valid) {
			cpu->halted = false;
			cpu->replay = false;
			if (!event_deliver_pending(cpu)) {
				cpu->exit = CPU_EXIT_SHUTDOWN;
				break;
			}
			continue;
		}
		if (cpu->external.valid && (cpu->external.underway || (!jit->slow_once && !cpu->replay))) {
			deliver_external(cpu);
			cpu->replay = false;
			continue;
		}
		if ((__atomic_load_n(&cpu->request, __ATOMIC_RELAXED) || (cpu->irq_wait && (cpu->rflags & FLAG_IF))) && !jit->slow_once &&
		    !cpu->replay) {
			cpu->delivering = 0;
			if (!serve_requests(cpu))
				break;
			if (cpu->event.valid || cpu->external.valid)
				continue;
		}
		if (cpu->halted) {
			cpu->exit = CPU_EXIT_HLT;
			break;
		}
		cpu->delivering = 0;
		run_blocks(cpu);
	}
	jit->stat_exits++;
	cpu_fpu_leave(cpu);
	__atomic_store_n(&jit->in_guest, 0, __ATOMIC_SEQ_CST);
	jit_running = NULL;
	cpu->unwind = NULL;
	return cpu->exit;
}
