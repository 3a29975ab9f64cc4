// SPDX-License-Identifier: MIT
// Time: the host's TSC is the only clock. Nanoseconds, guest TSCs and kvmclock are functions of it,
// so reading the time is never a system call and every clock a guest sees agrees with the others.
// api.rst: KVM_SET_CLOCK, KVM_SET_TSC_KHZ; "KVM-specific MSRs" (msr.rst) for the clock page.
#include "kvm/kvm.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define RATIO_BITS 48

static u64 host_hz, tsc_base, mult; // ns = (tsc - tsc_base) * mult >> 32

static u64 rdtsc(void)
{
	return __builtin_ia32_rdtsc();
}

// The kernel tells its own conversion factor to whoever may open a performance counter.
static u64 hz_from_kernel(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY, .exclude_kernel = 1, .exclude_hv = 1 };
	int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	struct perf_event_mmap_page *page;
	u64 hz = 0;

	if (fd < 0)
		return 0;
	page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED) {
		if (page->cap_user_time && page->time_mult)
			hz = (u64)(((unsigned __int128)NS_PER_S << page->time_shift) / page->time_mult);
		munmap(page, PAGE_SIZE);
	}
	close(fd);
	return hz;
}

static void sample(u64 *tsc, u64 *ns)
{
	u64 best = ~0ull;

	for (int i = 0; i < 8; i++) {
		struct timespec t;
		u64 before = rdtsc(), after;

		clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		after = rdtsc();
		if (after - before < best) {
			best = after - before;
			*tsc = before + (after - before) / 2;
			*ns = (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec;
		}
	}
}

static u64 hz_measured(void)
{
	u64 tsc0, tsc1, ns0, ns1;
	struct timespec wait = { 0, 20000000 };

	sample(&tsc0, &ns0);
	nanosleep(&wait, NULL);
	sample(&tsc1, &ns1);
	return (u64)((unsigned __int128)(tsc1 - tsc0) * NS_PER_S / (ns1 - ns0));
}

static void calibrate(void)
{
	u64 hz = hz_from_kernel();

	if (!hz)
		hz = hz_measured();
	mult = (u64)(((unsigned __int128)NS_PER_S << 32) / hz);
	tsc_base = rdtsc() - hz; // clock_now() is never 0
	host_hz = hz;
}

void clock_calibrate(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, calibrate);
}

u32 clock_host_tsc_khz(void)
{
	return (u32)((host_hz + 500) / 1000);
}

static u64 ns_of_tsc(u64 tsc)
{
	return (u64)((unsigned __int128)(tsc - tsc_base) * mult >> 32);
}

u64 clock_now(void)
{
	return ns_of_tsc(rdtsc());
}

// ---- guest TSC ----
static u64 scaled(const struct vcpu *vcpu, u64 host)
{
	return vcpu->tsc_ratio ? (u64)((unsigned __int128)host * vcpu->tsc_ratio >> RATIO_BITS) : host;
}

static u64 tsc_at(const struct vcpu *vcpu, u64 host)
{
	return scaled(vcpu, host) + vcpu->tsc_offset;
}

u64 clock_guest_tsc(struct vcpu *vcpu)
{
	return tsc_at(vcpu, rdtsc());
}

u64 clock_ops_tsc(void *opaque)
{
	return clock_guest_tsc(opaque);
}

u64 clock_tsc_to_time(void *opaque, u64 tsc)
{
	struct vcpu *vcpu = opaque;
	u64 host = rdtsc(), now = tsc_at(vcpu, host);
	u64 hz = (u64)vcpu->tsc_khz * 1000;
	u64 ticks = tsc - now;

	if ((s64)ticks <= 0)
		return ns_of_tsc(host);
	if (!vcpu->tsc_ratio)
		hz = host_hz;
	// A deadline centuries away is as good as none, but must not wrap.
	if (ticks > hz * 1000000)
		ticks = hz * 1000000;
	return ns_of_tsc(host) + (u64)((unsigned __int128)ticks * NS_PER_S / hz);
}

static void set_offset(struct vcpu *vcpu, u64 offset)
{
	__atomic_store_n(&vcpu->tsc_offset, offset, __ATOMIC_RELAXED);
	if (vcpu->lapic)
		lapic_tsc_changed(vcpu->lapic);
	clock_request_update(vcpu);
}

// What the next vCPU is compared with. vm->lock held.
static void remember(struct vm *vm, const struct vcpu *vcpu, u64 offset, u64 value, u64 host)
{
	vm->tsc_last_offset = offset;
	vm->tsc_last_value = value;
	vm->tsc_last_host = host;
	vm->tsc_last_khz = vcpu->tsc_khz;
}

// A VMM writes the same TSC to one vCPU after another: time passes meanwhile, yet it means the same
// instant. A value within a second of what the last write makes the TSC now takes that write's
// offset, as does 0 (a vCPU that is plugged in). The first write by user space restores a machine's
// state, and says nothing about the vCPUs that were only created.
static void synchronize_tsc(struct vcpu *vcpu, u64 value, bool user)
{
	struct vm *vm = vcpu->vm;
	u64 host, offset, expected, distance, second = (u64)vcpu->tsc_khz * 1000;
	bool same;

	lock_take(&vm->lock);
	host = rdtsc();
	offset = value - scaled(vcpu, host);
	expected = vm->tsc_last_value + scaled(vcpu, host - vm->tsc_last_host);
	distance = value > expected ? value - expected : expected - value;
	same = value == 0 || (vm->tsc_user_set && distance < second);
	vm->tsc_user_set |= user;
	if (same && vcpu->tsc_khz == vm->tsc_last_khz)
		offset = vm->tsc_last_offset;
	else
		remember(vm, vcpu, offset, value, host);
	lock_release(&vm->lock);
	set_offset(vcpu, offset);
}

void clock_set_tsc(struct vcpu *vcpu, u64 value, enum who who)
{
	if (who == BY_HOST)
		synchronize_tsc(vcpu, value, true);
	else
		set_offset(vcpu, value - scaled(vcpu, rdtsc()));
}

void clock_set_tsc_offset(struct vcpu *vcpu, u64 offset)
{
	struct vm *vm = vcpu->vm;
	u64 host;

	lock_take(&vm->lock);
	host = rdtsc();
	vm->tsc_user_set = true;
	remember(vm, vcpu, offset, scaled(vcpu, host) + offset, host);
	lock_release(&vm->lock);
	set_offset(vcpu, offset);
}

bool clock_tsc_khz_valid(u64 khz)
{
	return khz < 0x7fffffff;
}

static void set_khz(struct vcpu *vcpu, u32 khz)
{
	u32 host = clock_host_tsc_khz();
	u64 difference = khz > host ? khz - host : host - khz;

	vcpu->tsc_khz = khz;
	// Within 250 parts per million it is the same clock.
	vcpu->tsc_ratio = difference * 4000 <= host ? 0 :
		(u64)(((unsigned __int128)khz << RATIO_BITS) / host);
}

int clock_set_tsc_khz(struct vcpu *vcpu, u64 khz)
{
	if (!clock_tsc_khz_valid(khz))
		return -EINVAL;
	set_khz(vcpu, khz ? (u32)khz : clock_host_tsc_khz());
	if (vcpu->lapic)
		lapic_tsc_changed(vcpu->lapic);
	clock_request_update(vcpu);
	return 0;
}

void clock_vm_init(struct vm *vm)
{
	vm->tsc_khz = clock_host_tsc_khz();
	vm->clock_offset = -(s64)clock_now();
}

void clock_vcpu_init(struct vcpu *vcpu)
{
	set_khz(vcpu, vcpu->vm->tsc_khz);
}

void clock_vcpu_created(struct vcpu *vcpu)
{
	synchronize_tsc(vcpu, 0, false);
}

// ---- kvmclock ----
u64 clock_kvmclock(struct vm *vm)
{
	return clock_now() + (u64)__atomic_load_n(&vm->clock_offset, __ATOMIC_RELAXED);
}

struct clock_page {
	u32 version, pad;
	u64 tsc_timestamp, system_time;
	u32 tsc_to_system_mul;
	signed char tsc_shift;
	u8 flags, pad2[2];
};
_Static_assert(sizeof(struct clock_page) == 32, "pvclock ABI");
#define CLOCK_TSC_STABLE 1
#define CLOCK_GUEST_STOPPED 2

struct wall_clock {
	u32 version, sec, nsec;
};

// ns = (ticks << shift or >> -shift) * mul >> 32
static void time_scale(u64 hz, u32 *mul, signed char *shift)
{
	*shift = 0;
	while (hz > 2 * NS_PER_S) {
		hz >>= 1;
		(*shift)--;
	}
	while (hz <= NS_PER_S) {
		hz <<= 1;
		(*shift)++;
	}
	*mul = (u32)((NS_PER_S << 32) / hz);
}

void clock_request_update(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->clock_stale, 1, __ATOMIC_SEQ_CST);
}

void clock_request_update_all(struct vm *vm)
{
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++) {
		clock_request_update(vm_vcpu(vm, i));
		cpu_request(vm_vcpu(vm, i)->cpu, REQ_TIMER);
	}
}

void clock_update(struct vcpu *vcpu)
{
	struct clock_page page = { 0 };
	u64 gpa = vcpu->system_time_msr & ~1ull, host, now;
	u64 hz = vcpu->tsc_ratio ? (u64)vcpu->tsc_khz * 1000 : host_hz;

	if (!__atomic_exchange_n(&vcpu->clock_stale, 0, __ATOMIC_SEQ_CST) || !(vcpu->system_time_msr & 1))
		return;
	host = rdtsc();
	now = ns_of_tsc(host) + (u64)__atomic_load_n(&vcpu->vm->clock_offset, __ATOMIC_RELAXED);
	// Odd: being written.
	vcpu->pvclock_version = (vcpu->pvclock_version + 1) | 1;
	page.version = vcpu->pvclock_version;
	page.tsc_timestamp = tsc_at(vcpu, host);
	page.system_time = now;
	time_scale(hz, &page.tsc_to_system_mul, &page.tsc_shift);
	page.flags = CLOCK_TSC_STABLE | (vcpu->guest_stopped ? CLOCK_GUEST_STOPPED : 0);
	vcpu->guest_stopped = false;
	if (!guest_write(vcpu, gpa, &page, sizeof(page)))
		return;
	vcpu->pvclock_version++;
	guest_write(vcpu, gpa, &vcpu->pvclock_version, sizeof(vcpu->pvclock_version));
}

void clock_write_wall(struct vcpu *vcpu, u64 gpa)
{
	struct wall_clock wall;
	struct timespec t;
	u64 ns;
	u32 version = 0;

	// The wall time at which kvmclock was 0.
	raw_syscall6(SYS_clock_gettime, CLOCK_REALTIME, (long)&t, 0, 0, 0, 0);
	ns = (u64)t.tv_sec * NS_PER_S + (u64)t.tv_nsec - clock_kvmclock(vcpu->vm);
	if (!guest_read(vcpu, gpa, &version, sizeof(version)))
		return;
	wall.version = (version + 2) & ~1u;
	wall.sec = (u32)(ns / NS_PER_S);
	wall.nsec = (u32)(ns % NS_PER_S);
	guest_write(vcpu, gpa, &wall, sizeof(wall));
}
