// SPDX-License-Identifier: MIT
// Runs a sequence on our processor: a small machine in long mode with Linux's selectors, the windows at
// the same linear addresses as on the host, CPL 3, and an IDT whose gates all lead to a HLT at CPL 0.
#include "lockstep.h"

#include "machine.h"

#include "cpu/mem.h"
#include "cpu/transfer.h"

#include <stdlib.h>
#include <string.h>

struct engine {
	struct machine machine;
	struct cpu *cpu;
	u64 dirty_from, dirty_size;
	bool mode32;
};

struct engine *engine_create(bool single_grain, bool mode32)
{
	struct engine *e = calloc(1, sizeof(*e));

	machine_create(&e->machine, 1, MACHINE_CODE_READONLY);
	e->cpu = e->machine.cpu[0];
	e->cpu->single_grain = single_grain;
	e->mode32 = mode32;
	memset(e->machine.ram + MACHINE_CODE, 0xcc, CODE_SIZE);
	return e;
}

u8 *engine_data(struct engine *e)
{
	return e->machine.ram + MACHINE_DATA;
}

static void kick(void *cpu)
{
	cpu_request(cpu, REQ_KICK);
}

static void place(struct engine *e, const struct program *p)
{
	u8 *code = e->machine.ram + MACHINE_CODE;
	u64 offset = p->start - CODE_BASE, size = p->size;

	if (offset + size > CODE_SIZE)
		size = CODE_SIZE - offset;
	memset(code + e->dirty_from, 0xcc, e->dirty_size);
	memcpy(code + offset, p->code, size);
	e->dirty_from = offset;
	e->dirty_size = size;
	for (unsigned i = 0; i < CODE_PAGES; i++)
		jit_page_written(e->cpu, MACHINE_CODE + i * 4096, 4096);
	memcpy(engine_data(e), p->data, DATA_SIZE);
}

void engine_run(struct engine *e, const struct program *p, struct state *end, struct rng *rng)
{
	struct cpu *cpu = e->cpu;
	enum cpu_exit exit;

	place(e, p);
	if (chance(rng, 12))
		tlb_flush_all(cpu);
	else if (chance(rng, 12))
		tlb_flush_page(cpu, DATA_BASE + 4096 * below(rng, DATA_PAGES));
	memcpy(cpu->gpr, p->state.gpr, sizeof(cpu->gpr));
	machine_user_mode(cpu, p->state.rip, p->state.rflags, p->mode32);
	if (p->segments)
		machine_load_segments(&e->machine, cpu, p);
	memcpy(cpu->fpstate, p->state.xsave, xsave_size);
	end->ended = NULL;
	watchdog_start(kick, cpu);
	exit = cpu_run(cpu);
	cpu_fpu_unload(cpu);
	watchdog_stop();
	memcpy(end->gpr, cpu->gpr, sizeof(end->gpr));
	memcpy(end->xsave, cpu->fpstate, xsave_size);
	end->rip = cpu->rip;
	end->rflags = cpu_rflags(cpu);
	end->vector = end->error = end->cr2 = 0;
	switch (exit) {
	case CPU_EXIT_HLT: machine_take_exception(&e->machine, cpu, end); break;
	case CPU_EXIT_KICK: end->ended = "endless"; break;
	case CPU_EXIT_SHUTDOWN: end->ended = "shutdown"; break;
	case CPU_EXIT_EMULATION: end->ended = "emulation error"; break;
	default: end->ended = "unexpected exit"; break;
	}
}
