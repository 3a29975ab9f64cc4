// SPDX-License-Identifier: MIT
// Many machines and many vCPUs, and what is left of them: memory, descriptors, threads, mappings.
//
// usage: test_kvm_scale [MACHINES]     how many are created and destroyed, 1000 unless given
#include "machine.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

// Sanitizers map and keep memory of their own.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

struct usage {
	unsigned descriptors, threads, mappings;
	long resident; // KiB
};

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n - 2;
}

static struct usage usage(void)
{
	struct usage u = { .descriptors = entries("/proc/self/fd") - 1, .threads = entries("/proc/self/task") };
	FILE *f = fopen("/proc/self/maps", "r");
	int c;

	while (f && (c = getc(f)) != EOF)
		u.mappings += c == '\n';
	if (f)
		fclose(f);
	f = fopen("/proc/self/statm", "r");
	if (f && fscanf(f, "%*d %ld", &u.resident) == 1)
		u.resident *= 4;
	if (f)
		fclose(f);
	return u;
}

// From create to destroy; the guest makes a port-I/O exit and halts.
static bool life(void)
{
	struct machine m;
	bool good;

	machine_start(&m, IRQCHIP);
	machine_bytes(&m, 0xe6, 0x80, 0xeb, 0xfc);
	good = machine_run(&m) == KVM_EXIT_IO && machine_run(&m) == KVM_EXIT_IO;
	machine_end(&m);
	return good;
}

static void test_lives(unsigned machines)
{
	struct usage before, after;
	unsigned good = 0;

	for (unsigned i = 0; i < 100; i++)
		life();
	before = usage();
	for (unsigned i = 0; i < machines; i++)
		good += life();
	after = usage();
	is(good, machines, "%u machines created, run and destroyed", machines);
	is(after.descriptors, before.descriptors, "no descriptor is left");
	is(after.threads, before.threads, "no thread");
	ok(after.mappings == before.mappings || SANITIZED, "no mapping");
	ok(after.resident - before.resident < 2048 || SANITIZED, "no memory (%ld KiB more than after the first 100)",
	   after.resident - before.resident);
	printf("# %u descriptors, %u threads, %u mappings, %ld KiB resident\n", after.descriptors, after.threads,
	       after.mappings, after.resident);
}

static void test_at_once(void)
{
	enum { N = 200 };
	struct machine *m = calloc(N, sizeof(*m));
	struct usage before = usage(), during, after;
	unsigned good = 0;

	for (unsigned i = 0; i < N; i++) {
		machine_start(&m[i], IRQCHIP);
		machine_bytes(&m[i], 0xe6, 0x80, 0xeb, 0xfc);
	}
	for (unsigned turn = 0; turn < 3; turn++)
		for (unsigned i = 0; i < N; i++)
			good += machine_run(&m[i]) == KVM_EXIT_IO;
	during = usage();
	is(good, 3 * N, "%u machines at once, taking turns", N);
	is(during.threads, before.threads, "they need no threads of their own");
	for (unsigned i = 0; i < N; i++)
		machine_end(&m[i]);
	after = usage();
	printf("# %ld KiB resident for each\n", (during.resident - before.resident) / N);
	is(after.descriptors, before.descriptors, "all descriptors are closed");
	ok(after.mappings == before.mappings || SANITIZED, "all mappings are gone");
	free(m);
}

// ---- 1024 vCPUs, of which each runs on a thread of its own for a while ----
struct one {
	int fd;
	struct kvm_run *run;
	int result;
};

static void *one_main(void *opaque)
{
	struct one *one = opaque;
	struct kvm_regs regs = { .rip = 0x5000, .rflags = 2 };
	struct kvm_sregs sregs;

	call(one->fd, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	call(one->fd, KVM_SET_SREGS, &sregs);
	call(one->fd, KVM_SET_REGS, &regs);
	one->result = call(one->fd, KVM_RUN, 0) < 0 ? -errno : (int)one->run->exit_reason;
	return NULL;
}

static void test_vcpus(void)
{
	enum { N = 1024, AT_ONCE = 16 };
	struct one *ones = calloc(N, sizeof(*ones));
	struct machine m;
	struct usage before = usage(), during, after;
	pthread_t threads[AT_ONCE];
	unsigned created = 0, mapped = 0, ran = 0;

	machine_start(&m, IRQCHIP | NO_VCPU);
	memcpy(m.memory + 0x5000, "\xe6\x80\xf4", 3);
	for (unsigned i = 0; i < N; i++) {
		ones[i].fd = call(m.vm, KVM_CREATE_VCPU, i * 4 + (i & 3));
		created += ones[i].fd >= 0;
		ones[i].run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ones[i].fd, 0);
		mapped += ones[i].run != MAP_FAILED;
	}
	is(created, N, "%u vCPUs", N);
	is(mapped, N, "and their mappings");
	is(error_of(call(m.vm, KVM_CREATE_VCPU, 4001)), EINVAL, "no more");
	during = usage();
	is(during.descriptors - before.descriptors, N + 2, "a descriptor each, one for the machine and one for KVM");
	for (unsigned i = 0; i < N; i++) {
		struct kvm_mp_state state = { KVM_MP_STATE_RUNNABLE };

		call(ones[i].fd, KVM_SET_MP_STATE, &state);
	}
	for (unsigned i = 0; i < N; i += AT_ONCE) {
		for (unsigned j = 0; j < AT_ONCE; j++)
			pthread_create(&threads[j], NULL, one_main, &ones[i + j]);
		for (unsigned j = 0; j < AT_ONCE; j++)
			pthread_join(threads[j], NULL);
	}
	for (unsigned i = 0; i < N; i++)
		ran += ones[i].result == KVM_EXIT_IO;
	is(ran, N, "each runs");
	during = usage();
	printf("# %ld KiB resident for each vCPU that ran\n", (during.resident - before.resident) / N);
	for (unsigned i = 0; i < N; i++) {
		munmap(ones[i].run, 3 * 4096);
		cetkvm_close(ones[i].fd);
	}
	m.vcpu = -1;
	machine_end(&m);
	after = usage();
	is(after.descriptors, before.descriptors, "all descriptors are closed");
	ok(after.mappings < before.mappings + 40 || SANITIZED, "their mappings are gone"); // thread stacks are kept by libc
	free(ones);
}

int main(int argc, char **argv)
{
	int machines = argc > 1 ? atoi(argv[1]) : 1000;
	struct rlimit limit;

	if (machines < 1) {
		fprintf(stderr, "test_kvm_scale: %s: a number of machines from 1 up is wanted\n", argv[1]);
		return 2;
	}
	// As clients with many vCPUs do.
	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < 1200) {
		limit.rlim_cur = limit.rlim_max < 1200 ? limit.rlim_max : 1200;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	test_lives((unsigned)machines);
	test_at_once();
	test_vcpus();
	return done_testing();
}
