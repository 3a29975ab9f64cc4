// SPDX-License-Identifier: MIT
// Statistics for user space. api.rst: KVM_GET_STATS_FD.
//
// The descriptor is a read-only file of its own: header, name, descriptions, and a page with the
// counters, which is the memory we count in from then on. So reading is live, costs us nothing, and
// goes on when the machine is gone.
#include "kvm/stats.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NAME_SIZE 48
#define DESCRIPTION_SIZE (sizeof(struct kvm_stats_desc) + NAME_SIZE)

#define NAME(name) #name,
static const char *const vcpu_names[] = { VCPU_COUNTERS(NAME) };
static const char *const vm_names[] = { VM_COUNTERS(NAME) };
#undef NAME
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
_Static_assert(sizeof(struct vcpu_counters) == COUNT(vcpu_names) * sizeof(u64), "a name for each");

// What comes before the counters: at most a page.
static void describe(u8 *page, const char *id, const char *const *names, unsigned count)
{
	struct kvm_stats_header header = { .name_size = NAME_SIZE, .num_desc = count, .id_offset = sizeof(header),
		.desc_offset = sizeof(header) + NAME_SIZE, .data_offset = PAGE_SIZE };

	memcpy(page, &header, sizeof(header));
	snprintf((char *)page + header.id_offset, NAME_SIZE, "%s", id);
	for (unsigned i = 0; i < count; i++) {
		struct kvm_stats_desc d = { .size = 1, .offset = i * sizeof(u64),
			.flags = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10 };
		u8 *at = page + header.desc_offset + i * DESCRIPTION_SIZE;

		memcpy(at, &d, sizeof(d));
		snprintf((char *)at + sizeof(d), NAME_SIZE, "%s", names[i]);
	}
}
_Static_assert(sizeof(struct kvm_stats_header) + NAME_SIZE + COUNT(vcpu_names) * DESCRIPTION_SIZE <= PAGE_SIZE,
	       "a page");

// Makes the file; *counters, `size` bytes, move into it. Its descriptor, to be kept, or -errno.
static int make_file(const char *id, const char *const *names, unsigned count, void **counters)
{
	int fd = memory_file("kvm-stats", 2 * PAGE_SIZE);
	u8 *area;

	if (fd < 0)
		return fd;
	area = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED) {
		close(fd);
		return -ENOMEM;
	}
	describe(area, id, names, count);
	memcpy(area + PAGE_SIZE, *counters, count * sizeof(u64));
	munmap(area, PAGE_SIZE);
	*counters = area + PAGE_SIZE;
	return fd_move_high(fd);
}

// A descriptor with a position of its own, which cannot write.
static int open_again(int fd)
{
	char path[64];
	int copy;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	copy = open(path, O_RDONLY | O_CLOEXEC);
	return copy < 0 ? -errno : copy;
}

int stats_vcpu_fd(struct vcpu *vcpu)
{
	void *counters = vcpu->counters;
	char id[NAME_SIZE];
	int fd;

	if (vcpu->stats_fd < 0) {
		snprintf(id, sizeof(id), "kvm-%d/vcpu-%u", getpid(), vcpu->id);
		fd = make_file(id, vcpu_names, COUNT(vcpu_names), &counters);
		if (fd < 0)
			return fd;
		vcpu->counters = counters;
		vcpu->stats_fd = fd;
	}
	return open_again(vcpu->stats_fd);
}

int stats_vm_fd(struct vm *vm)
{
	void *counters;
	char id[NAME_SIZE];
	int fd = 0;

	lock_take(&vm->slots_lock);
	counters = vm->counters;
	if (vm->stats_fd < 0) {
		snprintf(id, sizeof(id), "kvm-%d", getpid());
		fd = make_file(id, vm_names, COUNT(vm_names), &counters);
		if (fd >= 0) {
			vm->counters = counters;
			vm->stats_fd = fd;
		}
	}
	lock_release(&vm->slots_lock);
	return fd < 0 ? fd : open_again(vm->stats_fd);
}

void stats_close(int fd, void *counters)
{
	if (fd < 0)
		return;
	close(fd);
	munmap(counters, PAGE_SIZE);
}
