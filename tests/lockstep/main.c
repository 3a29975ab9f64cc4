// SPDX-License-Identifier: MIT
// lockstep: random sequences on silicon and on our processor in both grains, compared completely.
#include "lockstep.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
	u64 seed, count, index;
	bool one, forever, every_form, mode32, native_only, list, verbose, keep_going, segments, code16, far;
	u64 drop;
	int class;
	bool all;
	unsigned report;
} options = { .seed = 1, .count = 1000, .class = -1, .report = 10 };

static struct engine *engine[2];
static const char *const grain_names[2] = { "block grain", "single grain" };
static u64 differences, sequences, endless, unstable;

// Runs the program on silicon and on one engine (or on silicon again); true if they differ.
static bool differs(const struct program *p, unsigned grain, struct state *native, u8 *native_copy,
		    struct state *other, u8 **other_data)
{
	struct rng rng = { p->seed + p->index };

	native_run(p, native);
	if (native->ended)
		return false; // it does not end: nothing to compare
	if (options.native_only) {
		memcpy(native_copy, native_data, DATA_SIZE);
		native_run(p, other);
		*other_data = native_data;
		return states_differ(p, native, native_copy, other, native_data);
	}
	engine_run(engine[grain], p, other, &rng);
	*other_data = engine_data(engine[grain]);
	return states_differ(p, native, native_data, other, *other_data);
}

static void drop(struct program *p, unsigned n)
{
	memset(p->code + p->insn[n].offset, 0x90, p->insn[n].length);
}

// The host's kernel does not preserve everything across a context switch (FCS and FDS of x87): only what
// stays different counts.
static bool still_differs(const struct program *p, unsigned grain)
{
	static struct state a, b;
	static u8 copy[DATA_SIZE];
	u8 *data;

	for (unsigned i = 0; i < 5; i++)
		if (!differs(p, grain, &a, copy, &b, &data)) {
			unstable++;
			return false;
		}
	return true;
}

static u64 minimize(struct program *p, unsigned grain)
{
	static struct state a, b;
	static u8 copy[DATA_SIZE];
	static struct program trial;
	u64 dropped = 0;
	u8 *data;

	for (unsigned n = 0; n < p->count; n++) {
		trial = *p;
		drop(&trial, n);
		if (differs(&trial, grain, &a, copy, &b, &data)) {
			*p = trial;
			dropped |= 1ull << n;
		}
	}
	return dropped;
}

static void report(const struct program *program, unsigned grain)
{
	static struct program p;
	static struct state a, b;
	static u8 copy[DATA_SIZE];
	u8 *data;
	u64 dropped;

	p = *program;
	dropped = minimize(&p, grain) | options.drop;
	printf("# difference between silicon and the %s\n", options.native_only ? "same silicon" : grain_names[grain]);
	print_program(&p);
	if (differs(&p, grain, &a, copy, &b, &data))
		print_difference(&p, "silicon", &a, options.native_only ? copy : native_data, "cetkvm", &b,
				 data);
	else
		printf("#   (only after the sequences before it)\n");
	printf("#   again: lockstep --class %s --mode %d --seed %lu --index %lu --drop 0x%lx\n",
	       p.far ? "far" : p.class < 0 ? "mixed" : classes[p.class].name, p.code16 ? 16 : p.mode32 ? 32 : 64, p.seed, p.index, dropped);
	fflush(stdout);
}

static void one_sequence(int class, u64 index)
{
	static struct program p;
	static struct state native, other[2];
	struct rng rng = { options.seed + index };

	p.code16 = p.segments = p.far = false;
	if (options.far)
		generate_far(&p, options.seed, index, options.mode32);
	else if (options.code16)
		generate16(&p, options.seed, index);
	else
		generate(&p, class, options.seed, index, options.mode32);
	if (options.segments && !options.code16 && !options.far) {
		struct rng choice = { options.seed * 31 + index };

		segments_random(&p, &choice);
	}
	if (!p.count)
		return;
	for (unsigned n = 0; n < p.count; n++)
		if (options.drop >> n & 1)
			drop(&p, n);
	if (options.verbose)
		print_program(&p);
	native_run(&p, &native);
	sequences++;
	if (native.ended) {
		endless++;
		return;
	}
	if (options.verbose)
		printf("#   vector %u error %x rip %lx\n", native.vector, native.error, native.rip);
	for (unsigned n = 0; n < p.count && !p.code16 && !p.far; n++)
		coverage_count(p.insn[n].form, native.rip > p.start + p.insn[n].offset);
	if (options.native_only) {
		static u8 copy[DATA_SIZE];

		memcpy(copy, native_data, DATA_SIZE);
		native_run(&p, &other[0]);
		if (states_differ(&p, &native, copy, &other[0], native_data) && still_differs(&p, 0)) {
			differences++;
			if (differences <= options.report)
				report(&p, 0);
		}
		return;
	}
	for (unsigned grain = 0; grain < 2; grain++) {
		struct rng again = rng;

		engine_run(engine[grain], &p, &other[grain], &again);
		if (!states_differ(&p, &native, native_data, &other[grain], engine_data(engine[grain])) ||
		    !still_differs(&p, grain))
			continue;
		differences++;
		if (differences <= options.report)
			report(&p, grain);
		break;
	}
}

static bool run_class(int class, u64 first, u64 count)
{
	u64 differences_before = differences, sequences_before = sequences, endless_before = endless;
	struct timespec t0, t1;

	clock_gettime(CLOCK_MONOTONIC, &t0);
	for (u64 i = first; i < first + count && differences - differences_before < options.report; i++)
		one_sequence(class, i);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	printf("%s - %s %d-bit: %lu sequences, seed %lu, index %lu.., %lu endless, %lu differ (%.1f s)\n",
	       differences == differences_before ? "ok" : "not ok", options.far ? "far" : class < 0 ? "mixed" : classes[class].name,
	       options.code16 ? 16 : options.mode32 ? 32 : 64, sequences - sequences_before, options.seed, first,
	       endless - endless_before, differences - differences_before,
	       t1.tv_sec - t0.tv_sec + (t1.tv_nsec - t0.tv_nsec) / 1e9);
	fflush(stdout);
	return differences == differences_before;
}

static bool takes_part(unsigned class)
{
	static const char *const flat_only[] = {
		"x87env", "fxsave", // what is ignored of their images is known by linear address
		"trap",		    // whether UD0 and UD1 have a ModRM byte differs, and so whether it is fetched
	};

	for (unsigned i = 0; options.segments && i < sizeof(flat_only) / sizeof(flat_only[0]); i++)
		if (!strcmp(classes[class].name, flat_only[i]))
			return false;
	return (classes[class].modes & (options.mode32 ? 2 : 1)) && class_templates[class].count;
}

static void usage(void)
{
	printf("usage: lockstep [--class NAME|mixed|far|all] [--mode 64|32|16] [--segments] [--seed N] [--count N] [--index N [--drop MASK]]\n"
	       "                [--forever] [--report N] [--forms] [--native-only] [--fip] [--verbose] [--list]\n"
	       "Runs N random sequences of each class on the host's silicon and on cetkvm's processor in both grains,\n"
	       "and compares all state (x87's last instruction and operand pointers only with --fip). \n"
	       "--segments: 32-bit code in segments of an LDT, with limits. Exit status: 0 no difference, 1 differences, 2 trouble.\n");
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "class", 1, 0, 'c' }, { "mode", 1, 0, 'm' }, { "seed", 1, 0, 's' }, { "count", 1, 0, 'n' },
		{ "index", 1, 0, 'i' }, { "drop", 1, 0, 'd' }, { "forever", 0, 0, 'f' }, { "report", 1, 0, 'r' },
		{ "forms", 0, 0, 'F' }, { "native-only", 0, 0, 'N' }, { "fip", 0, 0, 'I' },
		{ "segments", 0, 0, 'S' }, { "verbose", 0, 0, 'v' }, { "list", 0, 0, 'l' }, { "help", 0, 0, 'h' }, { 0 },
	};
	int c;

	options.all = true;
	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (c) {
		case 'c':
			options.all = !strcmp(optarg, "all");
			options.far = !strcmp(optarg, "far");
			if (options.far)
				break;
			options.class = class_by_name(optarg);
			if (options.class < 0 && !options.all && strcmp(optarg, "mixed")) {
				fprintf(stderr, "lockstep: no class '%s'; see --list\n", optarg);
				exit(2);
			}
			break;
		case 'm':
			options.code16 = atoi(optarg) == 16;
			options.mode32 = options.code16 || atoi(optarg) == 32;
			break;
		case 's': options.seed = strtoull(optarg, NULL, 0); break;
		case 'n': options.count = strtoull(optarg, NULL, 0); break;
		case 'i': options.index = strtoull(optarg, NULL, 0); options.one = true; break;
		case 'd': options.drop = strtoull(optarg, NULL, 0); break;
		case 'f': options.forever = true; break;
		case 'r': options.report = atoi(optarg); break;
		case 'F': options.every_form = true; break;
		case 'N': options.native_only = true; break;
		case 'I': ignore_fip = false; break;
		case 'S': options.segments = options.mode32 = true; break;
		case 'v': options.verbose = true; break;
		case 'l': options.list = true; break;
		case 'h': usage(); exit(0);
		default: usage(); exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	u64 first = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse(argc, argv);
	if (options.list) {
		classes_list();
		return 0;
	}
	templates_build(options.mode32);
	if (options.code16) {
		ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16);
		options.class = -1;
		options.all = false;
	}
	native_init(options.mode32);
	if (!options.native_only)
		for (unsigned grain = 0; grain < 2; grain++)
			engine[grain] = engine_create(grain == 1, options.mode32);
	if (options.one) {
		first = options.index;
		options.count = 1;
	}
	do {
		if (!options.all)
			run_class(options.class, first, options.count);
		else
			for (int class = -1; class < (int)class_count; class++)
				if (class < 0 || takes_part(class))
					run_class(class, first, options.count);
		first += options.count;
	} while (options.forever && differences < options.report);
	coverage_print(options.every_form);
	printf("# %lu sequences, %lu differences, %lu that did not last\n", sequences, differences, unstable);
	return differences ? 1 : 0;
}
