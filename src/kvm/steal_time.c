// SPDX-License-Identifier: MIT
// Steal time: how long the vCPU's thread could have run and did not, told to the guest in a structure
// of its memory. msr.rst: MSR_KVM_STEAL_TIME.
//
// The kernel's own account is in /proc/thread-self/schedstat (its second number). It is read at most
// once in 100 microseconds, by the vCPU's thread, while the guest's vector state may be live: by system
// calls of our own.
#include "kvm/kvm.h"

#include <fcntl.h>

#define INTERVAL_NS 100000ull
#define STEAL_VALID_BITS (~63ull)
#define STEAL_ENABLED 1

// The fields of struct kvm_steal_time that are ours.
struct steal_area {
	u64 steal;
	u32 version, flags;
	u8 preempted;
};
_Static_assert(offsetof(struct steal_area, preempted) == 16, "kvm_steal_time");

// ns; false: this system does not say.
static bool run_delay(u64 *delay)
{
	char text[96];
	static const char path[] = "/proc/thread-self/schedstat";
	long fd = raw_syscall6(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0), n, i = 0;
	u64 value = 0;

	if (fd < 0)
		return false;
	n = raw_syscall6(SYS_read, fd, (long)text, sizeof(text), 0, 0, 0);
	raw_syscall6(SYS_close, fd, 0, 0, 0, 0, 0);
	while (i < n && text[i] != ' ')
		i++;
	if (++i >= n)
		return false;
	for (; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		value = value * 10 + (u64)(text[i] - '0');
	*delay = value;
	return true;
}

bool steal_time_available(void)
{
	u64 delay;

	return run_delay(&delay);
}

void steal_time_request(struct vcpu *vcpu)
{
	__atomic_store_n(&vcpu->steal_stale, 1, __ATOMIC_SEQ_CST);
}

void steal_time_update(struct vcpu *vcpu)
{
	u64 gpa = vcpu->steal_time_msr & STEAL_VALID_BITS, now, delay;
	struct steal_area area;

	if (!(vcpu->steal_time_msr & STEAL_ENABLED))
		return;
	now = clock_now();
	if (now - vcpu->steal_updated < INTERVAL_NS && !__atomic_exchange_n(&vcpu->steal_stale, 0, __ATOMIC_SEQ_CST))
		return;
	vcpu->steal_updated = now;
	if (!run_delay(&delay) || !guest_read(vcpu, gpa, &area, sizeof(area)))
		return;
	// Odd: being written.
	area.version = (area.version + 1) | 1;
	if (!guest_write(vcpu, gpa + offsetof(struct steal_area, version), &area.version, sizeof(area.version)))
		return;
	// Another thread may run the vCPU now, whose account is smaller.
	if (delay > vcpu->steal_last)
		area.steal += delay - vcpu->steal_last;
	vcpu->steal_last = delay;
	area.preempted = 0;
	guest_write(vcpu, gpa, &area.steal, sizeof(area.steal));
	guest_write(vcpu, gpa + offsetof(struct steal_area, preempted), &area.preempted, sizeof(area.preempted));
	area.version++;
	guest_write(vcpu, gpa + offsetof(struct steal_area, version), &area.version, sizeof(area.version));
}
