// SPDX-License-Identifier: MIT
// Every ioctl with random and nearly valid arguments, from several threads, while vCPUs run hostile code and
// their clients scribble over kvm_run. Passes if the process is still there and nothing leaked.
// Usage: test_kvm_fuzz [SECONDS [SEED]]; without SECONDS, CETKVM_FUZZ_SECONDS of the environment, else 4.
#include "machine.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static const struct {
	unsigned long number;
	unsigned size; // 0: the argument is a number
} ioctls[] = {
#define ROW(name) { name, _IOC_SIZE(name) }
	{ KVM_CHECK_EXTENSION, 0 }, { KVM_CREATE_VCPU, 0 }, { KVM_CREATE_IRQCHIP, 0 }, { KVM_SET_TSS_ADDR, 0 },
	{ KVM_SET_BOOT_CPU_ID, 0 }, { KVM_NMI, 0 }, { KVM_SET_TSC_KHZ, 0 }, { KVM_GET_TSC_KHZ, 0 },
	{ KVM_KVMCLOCK_CTRL, 0 }, { KVM_GET_API_VERSION, 0 }, { KVM_CREATE_PIT, 0 }, { KVM_SMI, 0 },
	{ KVM_SET_NR_MMU_PAGES, 0 }, { KVM_GET_STATS_FD, 0 }, { KVM_RESET_DIRTY_RINGS, 0 },
	{ KVM_GET_SUPPORTED_CPUID, 2048 }, { KVM_GET_EMULATED_CPUID, 2048 }, { KVM_GET_MSR_INDEX_LIST, 2048 },
	{ KVM_GET_MSR_FEATURE_INDEX_LIST, 2048 }, { KVM_GET_MSRS, 2048 }, { KVM_SET_MSRS, 2048 },
	{ KVM_SET_CPUID2, 4096 }, { KVM_GET_CPUID2, 4096 }, { KVM_SET_GSI_ROUTING, 4096 }, { KVM_SET_SIGNAL_MASK, 16 },
	{ KVM_GET_REG_LIST, 64 }, { KVM_GET_XSAVE2, 12288 }, { KVM_SET_XSAVE, 12288 }, { KVM_GET_XSAVE, 4096 },
	ROW(KVM_SET_USER_MEMORY_REGION), ROW(KVM_SET_USER_MEMORY_REGION2), ROW(KVM_SET_IDENTITY_MAP_ADDR),
	ROW(KVM_CREATE_PIT2), ROW(KVM_IRQ_LINE), ROW(KVM_IRQ_LINE_STATUS), ROW(KVM_GET_IRQCHIP),
	ROW(KVM_SET_IRQCHIP), ROW(KVM_GET_PIT2), ROW(KVM_SET_PIT2), ROW(KVM_REINJECT_CONTROL), ROW(KVM_SIGNAL_MSI),
	ROW(KVM_IOEVENTFD), ROW(KVM_IRQFD), ROW(KVM_REGISTER_COALESCED_MMIO), ROW(KVM_UNREGISTER_COALESCED_MMIO),
	ROW(KVM_GET_DIRTY_LOG), ROW(KVM_CLEAR_DIRTY_LOG), ROW(KVM_ENABLE_CAP), ROW(KVM_CREATE_DEVICE),
	ROW(KVM_GET_CLOCK), ROW(KVM_SET_CLOCK), ROW(KVM_GET_REGS), ROW(KVM_SET_REGS), ROW(KVM_GET_SREGS),
	ROW(KVM_SET_SREGS), ROW(KVM_GET_SREGS2), ROW(KVM_SET_SREGS2), ROW(KVM_GET_FPU), ROW(KVM_SET_FPU),
	ROW(KVM_GET_XCRS), ROW(KVM_SET_XCRS), ROW(KVM_GET_DEBUGREGS), ROW(KVM_SET_DEBUGREGS),
	ROW(KVM_GET_VCPU_EVENTS), ROW(KVM_SET_VCPU_EVENTS), ROW(KVM_GET_MP_STATE), ROW(KVM_SET_MP_STATE),
	ROW(KVM_GET_LAPIC), ROW(KVM_SET_LAPIC), ROW(KVM_INTERRUPT), ROW(KVM_SET_GUEST_DEBUG), ROW(KVM_TRANSLATE),
	ROW(KVM_GET_ONE_REG), ROW(KVM_SET_ONE_REG), ROW(KVM_X86_SETUP_MCE), ROW(KVM_X86_SET_MCE),
	ROW(KVM_TPR_ACCESS_REPORTING), ROW(KVM_SET_VAPIC_ADDR), ROW(KVM_X86_GET_MCE_CAP_SUPPORTED),
	ROW(KVM_X86_SET_MSR_FILTER), ROW(KVM_GET_DEVICE_ATTR), ROW(KVM_SET_DEVICE_ATTR), ROW(KVM_HAS_DEVICE_ATTR),
	{ KVM_GET_NESTED_STATE, 4096 }, { KVM_SET_NESTED_STATE, 4096 },
};
enum { IOCTLS = sizeof(ioctls) / sizeof(*ioctls), THREADS = 3, VCPUS = 2, POOL = 16, RING_SIZE = 65536 };

static bool stop;
static struct machine m;
static struct {
	int fd;
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring; // or NULL
} vcpus[VCPUS];
static uint8_t *pool; // memory that slots may be made of, and nobody else uses

struct random {
	uint64_t state;
};

static uint64_t next(struct random *r)
{
	r->state ^= r->state << 13;
	r->state ^= r->state >> 7;
	r->state ^= r->state << 17;
	return r->state;
}

static struct random seeded(uint64_t a, uint64_t b)
{
	struct random r = { (a * 0x9e3779b97f4a7c15ull ^ b * 0xd6e8feb86659fd93ull) | 1 };

	next(&r);
	return r;
}

static uint64_t interesting(struct random *r)
{
	static const uint64_t values[] = { 0, 1, 2, 3, 4, 7, 8, 24, 31, 32, 255, 256, 0x1000, 0x10000, 0xfee00000,
		0xfee00900, 0xfec00000, 0x80000011, 0x100000000, 0x7ffffffff000, ~0ull, 1ull << 63, 0x4b564d01, 0x6e0,
		0x1b, 0x9e, 0x6a0, 0x6a2, 0x6a4, 0xda0, 0x1c4, 0x2030000300000000, 0x2030000200000da0, 0x5000, 0xd01 };

	switch (next(r) % 4) {
	case 0:
		return next(r);
	case 1:
		return next(r) % 300;
	case 2:
		return 1ull << next(r) % 64;
	}
	return values[next(r) % (sizeof(values) / sizeof(*values))];
}

// What a random number is hardly ever: one that means something.
static struct kvm_enable_cap capability_to_enable(struct random *r)
{
	static const uint32_t numbers[] = { KVM_CAP_X2APIC_API, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_DISABLE_QUIRKS2,
		KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CAP_X86_USER_SPACE_MSR,
		KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		KVM_CAP_X86_APIC_BUS_CYCLES_NS, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_DIRTY_LOG_RING };
	struct kvm_enable_cap cap = { .cap = numbers[next(r) % (sizeof(numbers) / sizeof(*numbers))] };

	cap.args[0] = cap.cap == KVM_CAP_DIRTY_LOG_RING ? RING_SIZE : next(r) % 2 ? next(r) % 4 : next(r) % 256;
	return cap;
}

// What must not be random: where memory of this process is written.
static void tame(struct random *r, unsigned long number, uint64_t *buffer, int event)
{
	switch (number) {
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2: {
		struct kvm_userspace_memory_region *region = (void *)buffer;

		region->userspace_addr = next(r) % 8 ? (uintptr_t)pool : 0x10000; // there is nothing
		region->memory_size = (next(r) % (POOL + 1)) << 12;
		if (next(r) % 2) {
			region->slot %= 4;
			region->flags &= 3;
			region->guest_phys_addr = (next(r) % 64) << 12;
		}
		return;
	}
	case KVM_GET_DIRTY_LOG:
	case KVM_CLEAR_DIRTY_LOG:
	case KVM_GET_ONE_REG:
	case KVM_SET_ONE_REG:
		buffer[1] = (uintptr_t)(buffer + 512);
		return;
	case KVM_GET_DEVICE_ATTR:
	case KVM_SET_DEVICE_ATTR:
		buffer[2] = (uintptr_t)(buffer + 512);
		return;
	case KVM_X86_SET_MSR_FILTER:
		for (unsigned i = 0; i < 16; i++)
			((struct kvm_msr_filter *)buffer)->ranges[i].bitmap = (void *)(buffer + 512);
		return;
	case KVM_ENABLE_CAP:
		if (next(r) % 4)
			*(struct kvm_enable_cap *)buffer = capability_to_enable(r);
		return;
	case KVM_IOEVENTFD:
		((struct kvm_ioeventfd *)buffer)->fd = event;
		return;
	case KVM_IRQFD:
		((struct kvm_irqfd *)buffer)->fd = event;
		return;
	}
}

// Random words are hardly ever a mode that a processor can be in.
static void make_mode(struct random *r, int fd, struct kvm_sregs *sregs)
{
	static const struct { uint64_t cr0, cr4, efer; } modes[] = {
		{ 0x60000010, 0, 0 }, { 0x60000011, 0, 0 }, { 0xe0000011, 0, 0 }, { 0xe0000011, 0x20, 0 },
		{ 0xe0000011, 0x20, 0x500 }, { 0xe0010011, 0x8000a0, 0xd00 },
	};
	unsigned mode = next(r) % (sizeof(modes) / sizeof(*modes));

	if (call(fd, KVM_GET_SREGS, sregs))
		return;
	sregs->cr0 = modes[mode].cr0;
	sregs->cr3 = (next(r) % 64) << 12;
	sregs->cr4 = modes[mode].cr4;
	sregs->efer = modes[mode].efer;
	sregs->cs.l = sregs->efer && next(r) % 2;
}

// An array's length is in its first word: mostly one that fits.
static bool counted(unsigned long number)
{
	return number == KVM_SET_MSRS || number == KVM_GET_MSRS || number == KVM_SET_CPUID2 || number == KVM_GET_CPUID2 ||
	       number == KVM_SET_GSI_ROUTING || number == KVM_GET_SUPPORTED_CPUID;
}

static void close_if_new(unsigned long number, int result)
{
	if (result > 2 && number == KVM_CREATE_VCPU)
		cetkvm_close(result);
	if (result > 2 && number == KVM_GET_STATS_FD)
		close(result); // a file of its own
}

static void *fuzz(void *opaque)
{
	struct random r = seeded((uintptr_t)opaque, 1);
	uint64_t *buffer = aligned_alloc(64, 16384);
	int event = eventfd(0, EFD_NONBLOCK);

	memset(buffer, 0, 16384);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned n = next(&r) % IOCTLS, words = ioctls[n].size / 8 + 1;
		int vcpu = vcpus[next(&r) % VCPUS].fd, fds[] = { m.kvm, m.vm, vcpu, m.vm, vcpu };
		int fd = fds[next(&r) % 5];
		unsigned long number = ioctls[n].number;
		uint64_t value = 1;

		if (next(&r) % 64 == 0) { // some other number, of any size
			number = _IOC(next(&r) % 4, next(&r) % 16 ? KVMIO : next(&r) & 255, next(&r) & 255,
				      (next(&r) % 4096) & ~7u);
			if ((uint32_t)number == KVM_RUN || _IOC_NR(number) == 0x46 || _IOC_NR(number) == 0x49)
				continue; // memory regions have addresses
			words = 512;
		}
		if (!ioctls[n].size) {
			close_if_new(number, call(fd, number, interesting(&r)));
			continue;
		}
		// Often what the last call left there, with a few words changed.
		if (next(&r) % 4 == 0)
			memset(buffer, 0, 16384);
		for (unsigned i = next(&r) % 5; i; i--)
			buffer[next(&r) % words] = interesting(&r);
		if (counted(number) && next(&r) % 8)
			*(uint32_t *)buffer = next(&r) % 40;
		tame(&r, number, buffer, event);
		if ((number == KVM_SET_SREGS || number == KVM_SET_SREGS2) && next(&r) % 4)
			make_mode(&r, fd, (struct kvm_sregs *)buffer);
		if (next(&r) % 50 == 0)
			value = interesting(&r);
		close_if_new(number, call(fd, number, value == 1 ? (void *)buffer : (void *)value));
		if (next(&r) % 64 == 0)
			(void)!write(event, &(uint64_t){ 1 }, 8);
	}
	close(event);
	free(buffer);
	return NULL;
}

// Code that has much to do with the outside, and bytes that are anything.
static void hostile_code(struct random *r, uint8_t *p, unsigned size)
{
	static const uint8_t pieces[][4] = {
		{ 0xe4, 0x60, 0x90, 0x90 }, { 0xe6, 0x20, 0x90, 0x90 }, { 0xfb, 0x90, 0xfa, 0xfb }, { 0x0f, 0xa2, 0x90, 0x90 },
		{ 0x0f, 0x32, 0x90, 0x90 }, { 0x0f, 0x30, 0x90, 0x90 }, { 0x0f, 0x01, 0xc1, 0x90 }, { 0xf4, 0x90, 0x90, 0x90 },
		{ 0xa1, 0x00, 0x00, 0x90 }, { 0xa3, 0x10, 0x00, 0x90 }, { 0xf3, 0x6d, 0x90, 0x90 }, { 0xf3, 0x6f, 0x90, 0x90 },
		{ 0x0f, 0x20, 0xc0, 0x90 }, { 0x0f, 0x22, 0xc0, 0x90 }, { 0x0f, 0x22, 0xe0, 0x90 }, { 0x0f, 0xc7, 0x1e, 0x00 },
		{ 0xcd, 0x13, 0xcf, 0x90 }, { 0x8e, 0xd8, 0x8e, 0xc0 }, { 0x0f, 0xae, 0x06, 0x00 }, { 0xf0, 0xff, 0x06, 0x00 },
	};

	for (unsigned i = 0; i + 4 <= size; i += 4)
		if (next(r) % 3) {
			memcpy(p + i, pieces[next(r) % (sizeof(pieces) / 4)], 4);
		} else {
			uint32_t any = (uint32_t)next(r);

			memcpy(p + i, &any, 4);
		}
}

static void *runner(void *opaque)
{
	unsigned n = (uintptr_t)opaque & 15;
	struct random r = seeded((uintptr_t)opaque >> 4, n + 100);
	struct kvm_run *run = vcpus[n].run;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		call(vcpus[n].fd, KVM_RUN, 0);
		for (unsigned i = 0; i < 8; i++)
			((uint8_t *)run)[4096 + i] = next(&r);
		memcpy(run->mmio.data, (uint8_t *)run + 4096, 8);
		__atomic_store_n(&run->immediate_exit, next(&r) % 8 == 0, __ATOMIC_RELAXED);
		run->request_interrupt_window = next(&r) % 8 == 0;
		if (vcpus[n].ring) {
			struct kvm_dirty_gfn *entry = &vcpus[n].ring[next(&r) % (RING_SIZE / sizeof(*entry))];

			*entry = (struct kvm_dirty_gfn){ next(&r) % 4, next(&r) % 4, next(&r) % 32 };
			for (unsigned i = next(&r) % 64; i; i--)
				vcpus[n].ring[i].flags = KVM_DIRTY_GFN_F_RESET;
		}
		if (next(&r) % 16 == 0)
			run->kvm_dirty_regs = next(&r) % 16;
		if (next(&r) % 16 == 0)
			run->kvm_valid_regs = next(&r) % 16;
		if (next(&r) % 8 == 0) { // back to somewhere
			struct kvm_regs regs = { .rflags = 2, .rip = 0x5000 + next(&r) % 4096, .rsp = 0x1000,
				.rdx = next(&r), .rcx = next(&r) % 8 ? next(&r) % 64 : next(&r), .rsi = next(&r) };
			struct kvm_sregs sregs;

			call(vcpus[n].fd, KVM_SET_REGS, &regs);
			if (next(&r) % 4 == 0 && call(vcpus[n].fd, KVM_GET_SREGS, &sregs) == 0) {
				sregs.cr0 = 0x60000010;
				sregs.cr4 = sregs.efer = 0;
				sregs.cs.base = sregs.cs.selector = 0;
				sregs.cs.limit = 0xffff;
				sregs.cs.l = sregs.cs.db = 0;
				call(vcpus[n].fd, KVM_SET_SREGS, &sregs);
			}
		}
	}
	return NULL;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static unsigned entries(const char *path)
{
	DIR *dir = opendir(path);
	unsigned n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

static void round_of(uint64_t seed, unsigned number)
{
	pthread_t threads[THREADS + VCPUS];
	struct random r = seeded(seed, number);
	double end = seconds() + 0.5;

	__atomic_store_n(&stop, false, __ATOMIC_RELAXED);
	machine_start(&m, NO_VCPU | (number % 2 ? IRQCHIP : 0));
	for (unsigned i = next(&r) % 8; i; i--) { // before the first vCPU, when more can be had
		struct kvm_enable_cap cap = capability_to_enable(&r);

		call(m.vm, KVM_ENABLE_CAP, &cap);
	}
	machine_vcpu(&m);
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xfb, 0xa1, 0, 0, 0xe4, 0x60, 0xe6, 0x20, 0x40, 0xf4, 0xeb, 0xf5);
	hostile_code(&r, m.memory + m.code + 0x20, 0x1000 - 0x20);
	hostile_code(&r, pool, POOL << 12);
	vcpus[0].fd = m.vcpu;
	vcpus[0].run = m.run;
	for (unsigned i = 1; i < VCPUS; i++) {
		vcpus[i].fd = call(m.vm, KVM_CREATE_VCPU, i);
		vcpus[i].run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpus[i].fd, 0);
		if (vcpus[i].run == MAP_FAILED)
			abort();
	}
	for (unsigned i = 0; i < VCPUS; i++) {
		vcpus[i].ring = cetkvm_mmap(NULL, RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpus[i].fd,
					    KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
		if (vcpus[i].ring == MAP_FAILED)
			vcpus[i].ring = NULL;
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, fuzz, (void *)(uintptr_t)(seed * 1000003 + number * 17 + i + 1));
	for (unsigned i = 0; i < VCPUS; i++)
		pthread_create(&threads[THREADS + i], NULL, runner, (void *)(uintptr_t)((seed + number) << 4 | i));
	while (seconds() < end)
		usleep(20000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < 1000; i++) {
		for (unsigned n = 0; n < VCPUS; n++) {
			__atomic_store_n(&vcpus[n].run->immediate_exit, 1, __ATOMIC_RELAXED);
			cetkvm_kick(vcpus[n].fd);
		}
		usleep(100);
	}
	for (unsigned i = 0; i < THREADS + VCPUS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < VCPUS; i++)
		if (vcpus[i].ring)
			munmap(vcpus[i].ring, RING_SIZE);
	for (unsigned i = 1; i < VCPUS; i++) {
		munmap(vcpus[i].run, 3 * 4096);
		cetkvm_close(vcpus[i].fd);
	}
	machine_end(&m);
}

// How long to go on. Exits with status 2 if `text`, which `name` gave, is no time.
static double duration(const char *name, const char *text)
{
	char *rest;
	double value = strtod(text, &rest);

	if (rest != text && !*rest && value > 0 && value <= 86400)
		return value;
	fprintf(stderr, "test_kvm_fuzz: %s: '%s' is no time to run: more than 0 and up to 86400 seconds are accepted\n",
		name, text);
	exit(2);
}

int main(int argc, char **argv)
{
	const char *wanted = getenv("CETKVM_FUZZ_SECONDS");
	double time_to_run = argc > 1 ? duration("SECONDS", argv[1]) :
			     wanted   ? duration("CETKVM_FUZZ_SECONDS", wanted) :
					4;
	double end = seconds() + time_to_run;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);
	unsigned rounds = 0, fds = 0, tasks = 0;

	printf("# seed %llu\n", (unsigned long long)seed);
	pool = mmap(NULL, (POOL + 1) << 12, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	while (seconds() < end) {
		round_of(seed, rounds++);
		if (rounds == 2)
			fds = entries("/proc/self/fd"), tasks = entries("/proc/self/task");
	}
	ok(rounds > 0, "%u machines", rounds);
	// All irqfds of the process share one thread and its epoll, which may have come since.
	ok(!fds || entries("/proc/self/fd") <= fds + 1, "no descriptor is left over (%u then, %u now)", fds,
	   entries("/proc/self/fd"));
	ok(!fds || entries("/proc/self/task") <= tasks + 1, "no thread is left over");
	return done_testing();
}
