// SPDX-License-Identifier: MIT
// What the API costs: the round trip of a KVM_RUN that ends in a port-I/O exit, and the whole life of a
// small machine (create, one vCPU, run to an exit, destroy). Medians; prints, asserts nothing.
//
// usage: exits [--device] [BATCHES] [MACHINES]
// --device: by /dev/kvm as a client of `cetkvm exec` does, instead of libcetkvm's functions.
#include "cetkvm/cetkvm.h"
#include "kvm/abi.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY 0x10000
#define TRIPS 1000 // round trips a batch

static uint8_t *memory;

// How KVM is reached.
static int open_device(void) { return open("/dev/kvm", O_RDWR | O_CLOEXEC); }
static struct {
	int (*open)(void);
	int (*ioctl)(int, unsigned long, ...);
	void *(*mmap)(void *, size_t, int, int, int, off_t);
	int (*close)(int);
} api = { cetkvm_open, cetkvm_ioctl, cetkvm_mmap, cetkvm_close };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(const char *what, int result)
{
	if (result >= 0)
		return;
	perror(what);
	exit(1);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values, unsigned count)
{
	qsort(values, count, sizeof(*values), compare);
	return values[count / 2];
}

struct machine {
	int vm, vcpu;
	struct kvm_run *run;
};

// 64-bit mode with paging, as most guests run: the first 2 MiB mapped to themselves by tables at 0x4000.
static void long_mode(struct kvm_sregs *s)
{
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	uint64_t tables[3] = { 0x5003, 0x6003, 0x83 }; // PML4, PDPT, a 2-MiB page

	for (unsigned i = 0; i < 3; i++)
		memcpy(memory + 0x4000 + i * 0x1000, &tables[i], 8);
	s->cs = code;
	s->ds = s->es = s->ss = data;
	s->cr3 = 0x4000;
	s->cr4 = 1 << 5;
	s->cr0 = 0x80000001;
	s->efer = 0x500;
}

static void start(struct machine *m, int kvm, bool paging)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory };
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2, .rdx = 0x80 };
	struct kvm_sregs sregs;

	check("KVM_CREATE_VM", m->vm = api.ioctl(kvm, KVM_CREATE_VM, 0));
	check("KVM_SET_USER_MEMORY_REGION", api.ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region));
	check("KVM_CREATE_VCPU", m->vcpu = api.ioctl(m->vm, KVM_CREATE_VCPU, 0));
	m->run = api.mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	check("mmap of the vCPU", m->run == MAP_FAILED ? -1 : 0);
	check("KVM_GET_SREGS", api.ioctl(m->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	if (paging)
		long_mode(&sregs);
	check("KVM_SET_SREGS", api.ioctl(m->vcpu, KVM_SET_SREGS, &sregs));
	check("KVM_SET_REGS", api.ioctl(m->vcpu, KVM_SET_REGS, &regs));
}

static void run(struct machine *m)
{
	check("KVM_RUN", api.ioctl(m->vcpu, KVM_RUN, 0));
	if (m->run->exit_reason == KVM_EXIT_IO)
		return;
	fprintf(stderr, "exits: exit reason %u where port I/O was expected\n", m->run->exit_reason);
	exit(1);
}

static void stop(struct machine *m)
{
	munmap(m->run, 3 * 4096);
	api.close(m->vcpu);
	api.close(m->vm);
}

static double round_trips(int kvm, const uint8_t *code, size_t size, unsigned batches)
{
	double *times = calloc(batches, sizeof(*times)), result;
	struct machine m;

	memcpy(memory + 0x1000, code, size);
	start(&m, kvm, true);
	for (unsigned i = 0; i < TRIPS; i++)
		run(&m);
	for (unsigned i = 0; i < batches; i++) {
		double begin = now();

		for (unsigned j = 0; j < TRIPS; j++)
			run(&m);
		times[i] = (now() - begin) / TRIPS;
	}
	stop(&m);
	result = median(times, batches);
	free(times);
	return result;
}

static double lives(int kvm, unsigned machines)
{
	double *times = calloc(machines, sizeof(*times)), result;

	for (unsigned i = 0; i < machines; i++) {
		double begin = now();
		struct machine m;

		start(&m, kvm, false);
		run(&m);
		stop(&m);
		times[i] = now() - begin;
	}
	result = median(times, machines);
	free(times);
	return result;
}

int main(int argc, char **argv)
{
	// fninit, as every operating system does; out dx,al; jmp back to that
	static const uint8_t out[] = { 0xdb, 0xe3, 0xee, 0xeb, 0xfd };
	static const uint8_t in[] = { 0xdb, 0xe3, 0xec, 0xeb, 0xfd };
	bool device = argc > 1 && !strcmp(argv[1], "--device");
	unsigned batches = argc > 1 + device ? (unsigned)atoi(argv[1 + device]) : 201;
	unsigned machines = argc > 2 + device ? (unsigned)atoi(argv[2 + device]) : 201;
	double begin = now();
	int kvm;

	if (!batches || !machines) {
		fprintf(stderr, "exits: arguments are [--device] and two numbers from 1 up: [BATCHES] [MACHINES]\n");
		return 2;
	}
	if (device) {
		api.open = open_device;
		api.ioctl = ioctl;
		api.mmap = mmap;
		api.close = close;
	}
	check("open", kvm = api.open());
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check("mmap", memory == MAP_FAILED ? -1 : 0);
	printf("exit_out_us %.6f\n", round_trips(kvm, out, sizeof(out), batches) * 1e6);
	printf("exit_in_us %.6f\n", round_trips(kvm, in, sizeof(in), batches) * 1e6);
	printf("machine_ms %.6f\n", lives(kvm, machines) * 1e3);
	api.close(kvm);
	printf("exits %.6f\n", now() - begin);
	return 0;
}
