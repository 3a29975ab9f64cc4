// SPDX-License-Identifier: MIT
// Ioctls with random and nearly valid arguments, from several threads, with vCPUs running. Passes if
// the process is still there. Usage: test_kvm_fuzz [SECONDS [SEED]]
#include "machine.h"

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
	{ KVM_GET_SUPPORTED_CPUID, 2048 }, { KVM_GET_MSR_INDEX_LIST, 2048 }, { KVM_GET_MSR_FEATURE_INDEX_LIST, 2048 },
	{ KVM_GET_MSRS, 2048 }, { KVM_SET_MSRS, 2048 }, { KVM_SET_CPUID2, 4096 }, { KVM_GET_CPUID2, 4096 },
	{ KVM_SET_GSI_ROUTING, 4096 }, { KVM_SET_SIGNAL_MASK, 16 }, { KVM_GET_REG_LIST, 64 },
	{ KVM_GET_XSAVE2, 12288 }, { KVM_SET_XSAVE, 12288 }, { KVM_GET_XSAVE, 4096 },
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
	ROW(KVM_GET_ONE_REG), ROW(KVM_SET_ONE_REG), ROW(KVM_X86_SETUP_MCE), ROW(KVM_TPR_ACCESS_REPORTING),
	ROW(KVM_SET_VAPIC_ADDR), ROW(KVM_X86_GET_MCE_CAP_SUPPORTED), ROW(KVM_X86_SET_MSR_FILTER),
};
enum { IOCTLS = sizeof(ioctls) / sizeof(*ioctls), THREADS = 3 };

static bool stop;
static struct machine m;
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

static uint64_t interesting(struct random *r)
{
	static const uint64_t values[] = { 0, 1, 2, 3, 4, 7, 8, 24, 31, 32, 255, 256, 0x1000, 0x10000, 0xfee00000,
		0xfee00900, 0xfec00000, 0x80000011, 0x100000000, 0x7ffffffff000, ~0ull, 1ull << 63, 0x4b564d01, 0x6e0 };

	switch (next(r) % 4) {
	case 0:
		return next(r);
	case 1:
		return next(r) % 300;
	}
	return values[next(r) % (sizeof(values) / sizeof(*values))];
}

static void *fuzz(void *opaque)
{
	struct random r = { (uintptr_t)opaque };
	uint64_t *buffer = aligned_alloc(64, 16384);
	int event = eventfd(0, EFD_NONBLOCK);

	memset(buffer, 0, 16384);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned n = next(&r) % IOCTLS, words = ioctls[n].size / 8 + 1;
		int fds[] = { m.kvm, m.vm, m.vcpu, m.vm, m.vcpu }, fd = fds[next(&r) % 5];
		int result;

		if (!ioctls[n].size) {
			result = call(fd, ioctls[n].number, interesting(&r));
			if (result > 2 && ioctls[n].number == KVM_CREATE_VCPU)
				cetkvm_close(result);
			continue;
		}
		// Often what the last call left there, with a few words changed.
		if (next(&r) % 4 == 0)
			memset(buffer, 0, 16384);
		for (unsigned i = next(&r) % 5; i; i--)
			buffer[next(&r) % words] = interesting(&r);
		if (ioctls[n].number == KVM_SET_USER_MEMORY_REGION || ioctls[n].number == KVM_SET_USER_MEMORY_REGION2) {
			struct kvm_userspace_memory_region *region = (void *)buffer;

			// Anything else would let the guest write over this program.
			region->userspace_addr = (uintptr_t)pool;
			region->memory_size = (next(&r) % 17) << 12;
		}
		if (ioctls[n].number == KVM_GET_DIRTY_LOG || ioctls[n].number == KVM_CLEAR_DIRTY_LOG)
			buffer[1] = (uintptr_t)(buffer + 512);
		if (ioctls[n].number == KVM_GET_ONE_REG || ioctls[n].number == KVM_SET_ONE_REG)
			buffer[1] = (uintptr_t)(buffer + 512);
		if (ioctls[n].number == KVM_IOEVENTFD)
			((struct kvm_ioeventfd *)buffer)->fd = event;
		if (ioctls[n].number == KVM_IRQFD)
			((struct kvm_irqfd *)buffer)->fd = event;
		call(fd, ioctls[n].number, next(&r) % 50 ? (void *)buffer : (void *)interesting(&r));
	}
	close(event);
	free(buffer);
	return NULL;
}

static void *runner(void *opaque)
{
	struct random r = { (uintptr_t)opaque };

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		machine_run(&m);
		for (unsigned i = 0; i < 8; i++)
			((uint8_t *)m.run)[4096 + i] = next(&r);
		memcpy(m.run->mmio.data, (uint8_t *)m.run + 4096, 8);
		__atomic_store_n(&m.run->immediate_exit, next(&r) % 8 == 0, __ATOMIC_RELAXED);
		m.run->request_interrupt_window = next(&r) % 8 == 0;
		if (next(&r) % 16 == 0)
			m.run->kvm_dirty_regs = next(&r) % 16;
	}
	return NULL;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	double end = seconds() + (argc > 1 ? atof(argv[1]) : 4);
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);
	unsigned rounds = 0;

	printf("# seed %llu\n", (unsigned long long)seed);
	pool = mmap(NULL, 0x11000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	while (seconds() < end) {
		pthread_t threads[THREADS + 1];
		double round = seconds() + 0.5;

		__atomic_store_n(&stop, false, __ATOMIC_RELAXED);
		machine_start(&m, rounds % 2 ? IRQCHIP : 0);
		machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xfb, 0xa1, 0, 0, 0xe4, 0x60, 0xe6, 0x20, 0x40, 0xf4, 0xeb, 0xf5);
		memcpy(pool, m.memory, 0x10000);
		for (unsigned i = 0; i < THREADS; i++)
			pthread_create(&threads[i], NULL, fuzz, (void *)(uintptr_t)(seed * 1000003 + rounds * 17 + i + 1));
		pthread_create(&threads[THREADS], NULL, runner, (void *)(uintptr_t)(seed + rounds + 1));
		while (seconds() < round)
			usleep(20000);
		__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
		for (unsigned i = 0; i < 1000; i++) {
			__atomic_store_n(&m.run->immediate_exit, 1, __ATOMIC_RELAXED);
			cetkvm_kick(m.vcpu);
			usleep(100);
		}
		for (unsigned i = 0; i <= THREADS; i++)
			pthread_join(threads[i], NULL);
		machine_end(&m);
		rounds++;
	}
	ok(rounds > 0, "%u machines", rounds);
	return done_testing();
}
