// SPDX-License-Identifier: MIT
// KVM_IRQFD: an eventfd whose signal is an interrupt. api.rst: KVM_IRQFD.
//
// Signals come from this process, from others and from the kernel, so one thread waits for all of the
// process's irqfds with epoll. Its set has the client's own descriptors in it, not duplicates: an entry
// does not keep the eventfd open, and vanishes when its last descriptor is closed, as the kernel's
// irqfd does. Entries are edge-triggered: each signal comes out once even if the count is not read.
// It is read, as the kernel does, if the client's number still means the same file.
//
// Locks: set.lock is taken before irqchip->lock. It is held while an interrupt is made, so that there is
// none any more when a deassignment has returned.
// Deviation: an eventfd whose number in the client was closed, but which lives on under another,
// keeps its count when it is signalled.
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

struct irqfd {
	struct irqfd *next;
	struct vm *vm;
	u32 gsi;
	int fd;	      // the client's number
	int resample; // our own descriptor, or -1
	long id;      // of the eventfd
	u64 serial;
};

#define BUCKETS 256 // by serial number

static struct {
	struct lock lock;
	bool started;
	int epoll;
	u64 serial;
	unsigned count, tidy_at;
	struct irqfd *bucket[BUCKETS];
} set = { .epoll = -1, .tidy_at = 256 };

// The parent's set is shared with us, its thread is not.
void irqfd_after_fork_in_child(void)
{
	if (set.started)
		close(set.epoll);
	memset(&set, 0, sizeof(set));
	set.epoll = -1;
	set.tidy_at = 256;
}

static FILE *open_fdinfo(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	return fopen(path, "re");
}

static long identity(int fd)
{
	char line[128];
	long id = -EINVAL;
	FILE *f = open_fdinfo(fd);

	if (!f)
		return -EBADF;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "eventfd-id: %ld", &id) == 1)
			break;
	fclose(f);
	return id;
}

// Is it something else than an eventfd? Other threads may close it, and make another one of its number; in
// between the number may be that of a file which open_fdinfo() has open for yet another thread.
static bool is_other_file(int fd)
{
	char path[64], target[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof(target) - 1) > 0 && !strstr(target, "/fdinfo/") &&
	       !strstr(target, "[eventfd]");
}

// All eventfds share one inode; the kernel tells them apart only here.
long eventfd_identity(int fd)
{
	long id = -EBADF;

	for (unsigned tries = 0; tries < 10 && fcntl(fd, F_GETFD) >= 0; tries++) {
		id = identity(fd);
		if (id >= 0 || is_other_file(fd))
			return id;
	}
	return -EBADF;
}

// ---- the set. set.lock held ----
static struct irqfd *find(u64 serial)
{
	struct irqfd *e = set.bucket[serial % BUCKETS];

	while (e && e->serial != serial)
		e = e->next;
	return e;
}

// Does the client's number still mean the file that was registered under it?
static bool same_file(const struct irqfd *e)
{
	struct kcmp_epoll_slot slot = { .efd = (u32)set.epoll, .tfd = (u32)e->fd };
	pid_t pid = getpid();
	long result = syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, e->fd, &slot);

	if (result < 0 && errno != ENOENT && errno != EBADF)
		return eventfd_identity(e->fd) == e->id; // no such system call here
	return result == 0;
}

static void consume(const struct irqfd *e)
{
	u64 count;
	struct iovec vector = { &count, sizeof(count) };

	if (same_file(e))
		while (preadv2(e->fd, &vector, 1, -1, RWF_NOWAIT) == sizeof(count))
			;
}

static void update_notified_pins(struct vm *vm)
{
	u32 pins = 0;

	if (!vm->chip || !vm->chip->pic_and_ioapic)
		return;
	for (unsigned i = 0; i < BUCKETS && vm->resampler_count; i++) {
		for (const struct irqfd *e = set.bucket[i]; e; e = e->next) {
			int pin = e->vm == vm && e->resample >= 0 ? irq_pin_of_gsi(vm, e->gsi, KVM_IRQCHIP_IOAPIC) : -1;

			if (pin >= 0)
				pins |= 1u << pin;
		}
	}
	ioapic_set_notify(vm->chip, pins);
}

static bool last_resampler(const struct irqfd *which)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		for (const struct irqfd *e = set.bucket[i]; e; e = e->next)
			if (e != which && e->vm == which->vm && e->gsi == which->gsi && e->resample >= 0)
				return false;
	return true;
}

static void drop(struct irqfd *e)
{
	struct irqfd **link = &set.bucket[e->serial % BUCKETS];
	struct vm *vm = e->vm;

	while (*link != e)
		link = &(*link)->next;
	*link = e->next;
	set.count--;
	__atomic_fetch_sub(&vm->irqfd_count, 1, __ATOMIC_SEQ_CST);
	if (e->resample >= 0) {
		close(e->resample);
		__atomic_fetch_sub(&vm->resampler_count, 1, __ATOMIC_SEQ_CST);
		update_notified_pins(vm);
		if (last_resampler(e))
			irq_set_gsi(vm, e->gsi, IRQ_SOURCE_RESAMPLE, false);
	}
	free(e);
}

static void detach(struct irqfd *e)
{
	// Another file may have the number by now.
	if (same_file(e))
		epoll_ctl(set.epoll, EPOLL_CTL_DEL, e->fd, NULL);
	drop(e);
}

// Forgets the irqfds whose eventfds are gone: those that the epoll set does not have any more.
static void tidy(void)
{
	FILE *f = open_fdinfo(set.epoll);
	bool *alive = calloc(set.count + 1, sizeof(*alive));
	struct irqfd **all = calloc(set.count + 1, sizeof(struct irqfd *));
	unsigned n = 0;
	char line[256];
	u64 serial;

	for (unsigned i = 0; all && i < BUCKETS; i++)
		for (struct irqfd *e = set.bucket[i]; e; e = e->next)
			all[n++] = e;
	while (f && alive && all && fgets(line, sizeof(line), f)) {
		const char *data = strstr(line, "data:");

		if (!data || sscanf(data, "data: %lx", &serial) != 1)
			continue;
		for (unsigned i = 0; i < n; i++)
			alive[i] |= all[i]->serial == serial;
	}
	for (unsigned i = 0; f && alive && i < n; i++)
		if (!alive[i])
			drop(all[i]);
	if (f)
		fclose(f);
	free(alive);
	free(all);
}

static struct irqfd *with_identity(long id)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		for (struct irqfd *e = set.bucket[i]; e; e = e->next)
			if (e->id == id)
				return e;
	return NULL;
}

// ---- the thread ----
static void signalled(u64 serial)
{
	struct irqfd *e;

	lock_take(&set.lock);
	e = find(serial);
	if (e) {
		consume(e);
		if (e->resample >= 0) {
			irq_set_gsi(e->vm, e->gsi, IRQ_SOURCE_RESAMPLE, true);
		} else {
			irq_set_gsi(e->vm, e->gsi, IRQ_SOURCE_USER, true);
			irq_set_gsi(e->vm, e->gsi, IRQ_SOURCE_USER, false);
		}
	}
	lock_release(&set.lock);
}

static void *irqfd_main(void *opaque)
{
	int epoll = (int)(intptr_t)opaque;
	struct epoll_event events[64];

	prctl(PR_SET_NAME, "cetkvm-irqfd");
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++)
			signalled(events[i].data.u64);
	}
	return NULL;
}

static int start(void)
{
	int result;

	if (set.started)
		return 0;
	set.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (set.epoll < 0)
		return -errno;
	set.epoll = fd_move_high(set.epoll);
	result = thread_start(irqfd_main, (void *)(intptr_t)set.epoll);
	if (result) {
		close(set.epoll);
		set.epoll = -1;
	}
	set.started = !result;
	return result;
}

// ---- KVM_IRQFD ----
static int insert(struct vm *vm, const struct kvm_irqfd *args, long id, int resample)
{
	struct irqfd *e = calloc(1, sizeof(*e));
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int result;

	if (!e)
		return -ENOMEM;
	*e = (struct irqfd){ .vm = vm, .gsi = args->gsi, .fd = (int)args->fd, .resample = resample, .id = id,
			     .serial = ++set.serial };
	e->next = set.bucket[e->serial % BUCKETS];
	set.bucket[e->serial % BUCKETS] = e;
	set.count++;
	__atomic_fetch_add(&vm->irqfd_count, 1, __ATOMIC_SEQ_CST);
	if (resample >= 0) {
		__atomic_fetch_add(&vm->resampler_count, 1, __ATOMIC_SEQ_CST);
		update_notified_pins(vm);
	}
	// What has been signalled before is reported at once.
	event.data.u64 = e->serial;
	result = epoll_ctl(set.epoll, EPOLL_CTL_ADD, e->fd, &event) < 0 ? -errno : 0;
	if (result == -EEXIST)
		result = epoll_ctl(set.epoll, EPOLL_CTL_MOD, e->fd, &event) < 0 ? -errno : 0;
	if (result == -EPERM || result == -ENOENT) // another file by now, or gone between the two
		result = -EBADF;
	if (result) {
		e->resample = -1;
		if (resample >= 0)
			__atomic_fetch_sub(&vm->resampler_count, 1, __ATOMIC_SEQ_CST);
		drop(e);
	}
	return result;
}

static int assign(struct vm *vm, const struct kvm_irqfd *args)
{
	bool resamples = args->flags & KVM_IRQFD_FLAG_RESAMPLE;
	int result, resample = -1;
	long id;

	if (!vm->chip)
		return -EAGAIN;
	if (resamples && !vm->chip->pic_and_ioapic)
		return -EINVAL;
	id = eventfd_identity((int)args->fd);
	if (id < 0)
		return (int)id;
	if (resamples) {
		long other = eventfd_identity((int)args->resamplefd);

		if (other < 0)
			return (int)other;
		resample = fcntl((int)args->resamplefd, F_DUPFD_CLOEXEC, 512);
		if (resample < 0)
			return -errno;
	}
	lock_take(&set.lock);
	result = start();
	if (!result && with_identity(id)) {
		// Identities are used again: it may be that of an eventfd which is gone.
		tidy();
		if (with_identity(id))
			result = -EBUSY;
	}
	if (!result && set.count >= set.tidy_at) {
		tidy();
		set.tidy_at = set.count * 2 < 256 ? 256 : set.count * 2;
	}
	if (!result)
		result = insert(vm, args, id, resample);
	lock_release(&set.lock);
	if (result && resample >= 0)
		close(resample);
	return result;
}

static int deassign(struct vm *vm, const struct kvm_irqfd *args)
{
	long id = eventfd_identity((int)args->fd);

	if (id < 0)
		return (int)id;
	lock_take(&set.lock);
	for (unsigned i = 0; i < BUCKETS; i++) {
		for (struct irqfd *e = set.bucket[i], *next; e; e = next) {
			next = e->next;
			if (e->vm == vm && e->id == id && e->gsi == args->gsi)
				detach(e);
		}
	}
	lock_release(&set.lock);
	return 0;
}

int irqfd_set(struct vm *vm, const struct kvm_irqfd *args)
{
	if (args->flags & ~(u32)(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE))
		return -EINVAL;
	return args->flags & KVM_IRQFD_FLAG_DEASSIGN ? deassign(vm, args) : assign(vm, args);
}

// On a vCPU's thread, without the controllers' lock.
void irqfd_acked(struct vm *vm, unsigned chip, unsigned pin)
{
	u64 one = 1;

	if (!__atomic_load_n(&vm->resampler_count, __ATOMIC_SEQ_CST))
		return;
	lock_take(&set.lock);
	for (unsigned i = 0; i < BUCKETS; i++) {
		for (const struct irqfd *e = set.bucket[i]; e; e = e->next) {
			if (e->vm != vm || e->resample < 0 || irq_pin_of_gsi(vm, e->gsi, chip) != (int)pin)
				continue;
			irq_set_gsi(vm, e->gsi, IRQ_SOURCE_RESAMPLE, false);
			raw_write(e->resample, &one, sizeof(one));
		}
	}
	lock_release(&set.lock);
}

void irqfd_routing_changed(struct vm *vm)
{
	if (!__atomic_load_n(&vm->resampler_count, __ATOMIC_SEQ_CST))
		return;
	lock_take(&set.lock);
	update_notified_pins(vm);
	lock_release(&set.lock);
}

void irqfd_release(struct vm *vm)
{
	// A child after fork has the memory of its parent's machines, and a set of its own.
	if (vm->process_generation != fd_process_generation() ||
	    !__atomic_load_n(&vm->irqfd_count, __ATOMIC_SEQ_CST))
		return;
	lock_take(&set.lock);
	for (unsigned i = 0; i < BUCKETS; i++) {
		for (struct irqfd *e = set.bucket[i], *next; e; e = next) {
			next = e->next;
			if (e->vm == vm)
				detach(e);
		}
	}
	lock_release(&set.lock);
}
