// SPDX-License-Identifier: MIT
// Litmus tests: memory ordering and LOCK between vCPUs on threads, self- and cross-modifying code.
// SDM: "Memory Ordering", "Locked Atomic Operations", "Handling Self- and Cross-Modifying Code".
// Prints TAP. Usage: litmus [ROUNDS]
#include "machine.h"

#include "cpu/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

unsigned xsave_size = 832;

#define CODE(name) \
	extern const u8 litmus_##name[], litmus_##name##_end[]; \
	__asm__("")
CODE(store_buffering); CODE(store_buffering_mfence); CODE(store_buffering_locked); CODE(message_passing);
CODE(load_buffering); CODE(message_passing_string); CODE(lock_inc); CODE(lock_xadd); CODE(cmpxchg);
CODE(cmpxchg16b); CODE(spinlock); CODE(self_modifying); CODE(self_modifying_straight);
CODE(self_modifying_string); CODE(cross_modifying);

#define SHARED (MACHINE_SHARED_BASE + 256)
#define RESULTS (SHARED + 0x40000)
#define ITERATIONS 512

static struct machine machine;
static unsigned test_number, failed;

struct run {
	struct cpu *cpu;
	struct state end;
};

static void *vcpu_thread(void *argument)
{
	struct run *run = argument;
	enum cpu_exit exit = cpu_run(run->cpu);

	cpu_fpu_unload(run->cpu);
	memset(&run->end, 0, sizeof(run->end));
	if (exit == CPU_EXIT_HLT)
		machine_take_exception(&machine, run->cpu, &run->end);
	else
		run->end.ended = "unexpected exit";
	return NULL;
}

// Runs one piece of code on `vcpus` vCPUs at once; false when one of them did not come to its INT3.
static bool run(const u8 *code, const u8 *end, unsigned vcpus, u64 iterations, u64 counter, bool single,
		u64 *rax)
{
	pthread_t threads[MACHINE_CPUS];
	static struct run runs[MACHINE_CPUS];
	bool fine = true;

	memset(machine.ram + MACHINE_SHARED, 0, MACHINE_SHARED_SIZE);
	memset(machine.ram + MACHINE_CODE, 0xcc, CODE_SIZE);
	memcpy(machine.ram + MACHINE_CODE + 64, code, end - code);
	for (unsigned i = 0; i < vcpus; i++) {
		struct cpu *cpu = machine.cpu[i];

		for (unsigned page = 0; page < CODE_PAGES; page++)
			jit_page_written(cpu, MACHINE_CODE + page * 4096, 4096);
		cpu->single_grain = single;
		memset(cpu->gpr, 0, sizeof(cpu->gpr));
		cpu->gpr[RSP] = RESULTS - 64 - i * 64;
		cpu->gpr[RDI] = SHARED;
		cpu->gpr[RSI] = RESULTS + i * ITERATIONS * 8;
		cpu->gpr[RCX] = iterations;
		cpu->gpr[RDX] = i;
		cpu->gpr[RBP] = vcpus;
		cpu->gpr[R8] = counter;
		machine_user_mode(cpu, CODE_BASE + 64, 0x202, false);
		runs[i].cpu = cpu;
		pthread_create(&threads[i], NULL, vcpu_thread, &runs[i]);
	}
	for (unsigned i = 0; i < vcpus; i++) {
		pthread_join(threads[i], NULL);
		if (runs[i].end.ended || runs[i].end.vector != 3) {
			printf("# vCPU %u: %s, vector %u error %x cr2 %lx at %lx\n", i,
			       runs[i].end.ended ? runs[i].end.ended : "exception", runs[i].end.vector,
			       runs[i].end.error, runs[i].end.cr2, runs[i].end.rip);
			fine = false;
		}
		rax[i] = machine.cpu[i]->gpr[RAX];
	}
	return fine;
}

static void verdict(bool good, const char *name, const char *detail)
{
	printf("%s %u - %s%s%s\n", good ? "ok" : "not ok", ++test_number, name, *detail ? ": " : "", detail);
	fflush(stdout);
	failed += !good;
}

static u64 result(unsigned vcpu, unsigned i)
{
	u64 value;

	memcpy(&value, machine.ram + MACHINE_SHARED + (RESULTS - MACHINE_SHARED_BASE) +
	       (vcpu * ITERATIONS + i) * 8, 8);
	return value;
}

// Ordering tests: outcomes of each iteration; `bad` says which pair must not be seen.
static void ordering(const char *name, const u8 *code, const u8 *end, bool (*bad)(u64 r0, u64 r1), unsigned rounds)
{
	u64 rax[MACHINE_CPUS], wrong = 0, total = 0, both_zero = 0;
	char detail[120];
	bool fine = true;

	for (unsigned round = 0; round < rounds && fine; round++) {
		fine = run(code, end, 2, ITERATIONS, 0, false, rax);
		for (unsigned i = 0; i < ITERATIONS; i++) {
			u64 r0 = result(0, i), r1 = result(1, i);

			total++;
			both_zero += !r0 && !r1;
			wrong += bad && bad(r0, r1);
		}
	}
	snprintf(detail, sizeof(detail), "%lu of %lu outcomes forbidden, %lu both zero", wrong, total, both_zero);
	verdict(fine && !wrong, name, detail);
}

static bool bad_both_zero(u64 r0, u64 r1) { return !r0 && !r1; }
static bool bad_both_one(u64 r0, u64 r1) { return r0 && r1; }
static bool bad_message(u64 r0, u64 r1) { return r1 >> 8 && !(r1 & 0xff); }
static bool bad_vector_message(u64 r0, u64 r1) { return r1 >> 16 && (r1 & 0xffff) != 0xffff; }

static void counting(const char *name, const u8 *code, const u8 *end, u64 counter, unsigned vcpus, u64 each,
		     bool single)
{
	u64 rax[MACHINE_CPUS], sum = 0, want = vcpus * each;
	bool fine = run(code, end, vcpus, each, counter, single, rax);
	char text[160], detail[80];

	memcpy(&sum, machine.ram + MACHINE_SHARED + (counter - MACHINE_SHARED_BASE), 4);
	snprintf(text, sizeof(text), "%s, %u vCPUs, counter at +%lx%s", name, vcpus, counter & 0xfff,
		 single ? ", single grain" : "");
	snprintf(detail, sizeof(detail), "%lu of %lu", sum, want);
	verdict(fine && sum == want, text, detail);
}

static void modifying(const char *name, const u8 *code, const u8 *end, unsigned vcpus, bool single)
{
	u64 rax[MACHINE_CPUS], n = 2000, want = n * (n + 1) / 2;
	bool fine = run(code, end, vcpus, n, 0, single, rax);
	char detail[80], text[120];

	snprintf(text, sizeof(text), "%s%s", name, single ? ", single grain" : "");
	snprintf(detail, sizeof(detail), "sum %lu, wanted %lu", rax[vcpus - 1], want);
	verdict(fine && rax[vcpus - 1] == want, text, detail);
}

#define PIECE(name) litmus_##name, litmus_##name##_end

int main(int argc, char **argv)
{
	unsigned rounds = argc > 1 ? atoi(argv[1]) : 20;
	u64 each = 2500 * (u64)rounds;
	static const struct { u64 offset; const char *what; } places[] = {
		{ 0x400, "aligned" }, { 0x43e, "across a line" }, { 0xffe, "across a page" },
	};

	alarm(240); // a vCPU that spins for ever is a failure, not a hang
	machine_create(&machine, MACHINE_CPUS, MACHINE_CODE_WRITABLE);
	for (int single = 0; single < 2; single++) {
		modifying("self-modifying code", PIECE(self_modifying), 1, single);
		modifying("self-modifying code without a branch", PIECE(self_modifying_straight), 1, single);
		modifying("self-modifying code by REP MOVSB", PIECE(self_modifying_string), 1, single);
		modifying("cross-modifying code", PIECE(cross_modifying), 2, single);
	}
	ordering("store buffering", PIECE(store_buffering), NULL, rounds);
	ordering("store buffering with MFENCE", PIECE(store_buffering_mfence), bad_both_zero, rounds);
	ordering("store buffering with XCHG", PIECE(store_buffering_locked), bad_both_zero, rounds);
	ordering("load buffering", PIECE(load_buffering), bad_both_one, rounds);
	ordering("message passing", PIECE(message_passing), bad_message, rounds);
	ordering("message passing by vector store", PIECE(message_passing_string), bad_vector_message, rounds);
	for (unsigned vcpus = 2; vcpus <= MACHINE_CPUS; vcpus++) {
		for (unsigned i = 0; i < 3; i++) {
			counting("LOCK INC", PIECE(lock_inc), MACHINE_SHARED_BASE + 0x2000 + places[i].offset, vcpus,
				 i == 2 ? each / 25 : each, false);
			counting("LOCK XADD", PIECE(lock_xadd), MACHINE_SHARED_BASE + 0x2000 + places[i].offset, vcpus,
				 i == 2 ? each / 25 : each, false);
		}
		counting("LOCK INC", PIECE(lock_inc), MACHINE_SHARED_BASE + 0x2ffe, vcpus, each / 25, true);
		counting("LOCK CMPXCHG", PIECE(cmpxchg), MACHINE_SHARED_BASE + 0x2400, vcpus, each, false);
		counting("LOCK CMPXCHG", PIECE(cmpxchg), MACHINE_SHARED_BASE + 0x2ffc, vcpus, each / 25, false);
		counting("LOCK CMPXCHG16B", PIECE(cmpxchg16b), MACHINE_SHARED_BASE + 0x2400, vcpus, each, false);
		counting("spin lock", PIECE(spinlock), MACHINE_SHARED_BASE + 0x2400, vcpus, each / 5, false);
	}
	printf("1..%u\n", test_number);
	return failed ? 1 : 0;
}
