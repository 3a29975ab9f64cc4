// SPDX-License-Identifier: MIT
// KVM_CAP_DIRTY_LOG_RING and KVM_RESET_DIRTY_RINGS, and the memory map when it is full of slots.
#include "machine.h"

#define RING_ENTRIES 256
#define RING_BYTES (RING_ENTRIES * sizeof(struct kvm_dirty_gfn))
#define SLOT 7
#define AREA_GPA 0x100000
#define AREA_PAGES 512

static struct kvm_dirty_gfn *map_ring(int vcpu, int protection, int flags)
{
	void *ring = cetkvm_mmap(NULL, RING_BYTES, protection, flags, vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);

	return ring == MAP_FAILED ? NULL : ring;
}

static int set_region(int vm, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, void *memory)
{
	struct kvm_userspace_memory_region region = { .slot = slot, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = size, .userspace_addr = (uintptr_t)memory };

	return call(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void test_enable(void)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { 3000 } };
	struct machine m;

	machine_start(&m, NO_VCPU);
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "not a power of 2");
	cap.args[0] = 2048;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "smaller than a page");
	cap.args[0] = 2u << 20;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), E2BIG, "larger than the most");
	is(error_of(call(m.vm, KVM_RESET_DIRTY_RINGS, 0)), EINVAL, "no rings to reset");
	machine_vcpu(&m);
	cap.args[0] = RING_BYTES;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "there are vCPUs");
	ok(!map_ring(m.vcpu, PROT_READ, MAP_SHARED), "a vCPU without a ring cannot map one");
	machine_end(&m);
}

// A page a time, from AREA_GPA on, until it is told to stop by a debug port never read.
static void start_writer(struct machine *m)
{
	struct kvm_sregs sregs;

	call(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0;
	sregs.ds.limit = 0xffffffff;
	call(m->vcpu, KVM_SET_SREGS, &sregs);
	// mov ebx,AREA_GPA; mov cx,AREA_PAGES; l: mov [ebx],cl; add ebx,4096; dec cx; jnz l; hlt
	machine_bytes(m, 0x66, 0xbb, 0, 0, 0x10, 0, 0xb9, AREA_PAGES & 0xff, AREA_PAGES >> 8, 0x67, 0x88, 0x0b, 0x66, 0x81,
		      0xc3, 0, 0x10, 0, 0, 0x49, 0x75, 0xf3, 0xf4);
}

static void test_ring(void)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { RING_BYTES } };
	uint8_t *area = mmap(NULL, AREA_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static uint64_t bitmap[AREA_PAGES / 64];
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };
	unsigned seen = 0, wrong = 0, full = 0, next = 0, twice = 0, reason;
	static uint8_t count[AREA_PAGES];
	struct kvm_dirty_gfn *ring;
	struct machine m;

	machine_start(&m, NO_VCPU);
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "rings");
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "once");
	machine_vcpu(&m);
	ok(!map_ring(m.vcpu, PROT_READ, MAP_PRIVATE), "a private mapping is refused");
	ok(!map_ring(m.vcpu, PROT_READ | PROT_EXEC, MAP_SHARED), "an executable one, too");
	ring = map_ring(m.vcpu, PROT_READ | PROT_WRITE, MAP_SHARED);
	ok(ring, "mapped");
	set_region(m.vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, AREA_GPA, AREA_PAGES * 4096, area);
	is(error_of(call(m.vm, KVM_GET_DIRTY_LOG, &log)), ENXIO, "no bitmaps beside rings");
	start_writer(&m);
	while ((reason = machine_run(&m)) == KVM_EXIT_DIRTY_RING_FULL && full++ < 100) {
		is(machine_run(&m), KVM_EXIT_DIRTY_RING_FULL, "full until it is emptied");
		for (;; next++) {
			struct kvm_dirty_gfn *entry = &ring[next % RING_ENTRIES];

			if (entry->flags != KVM_DIRTY_GFN_F_DIRTY)
				break;
			wrong += entry->slot != SLOT || entry->offset >= AREA_PAGES;
			twice += count[entry->offset % AREA_PAGES]++;
			entry->flags = KVM_DIRTY_GFN_F_RESET;
			seen++;
		}
		is(call(m.vm, KVM_RESET_DIRTY_RINGS, 0), RING_ENTRIES - 64, "as many reset as there were");
	}
	is(reason, KVM_EXIT_HLT, "the guest ends");
	is(full, 2, "ring full twice");
	is(wrong, 0, "slot and offset");
	is(twice, 0, "no page twice");
	for (; ring[next % RING_ENTRIES].flags == KVM_DIRTY_GFN_F_DIRTY; next++, seen++)
		ring[next % RING_ENTRIES].flags = KVM_DIRTY_GFN_F_RESET;
	is(seen, AREA_PAGES, "every page");
	call(m.vm, KVM_RESET_DIRTY_RINGS, 0);

	// Reported again after a reset, by an entry the client has made up, too.
	start_writer(&m);
	machine_run(&m);
	ok(ring[next % RING_ENTRIES].flags == KVM_DIRTY_GFN_F_DIRTY, "a second time");
	for (unsigned i = 0; i < RING_ENTRIES; i++)
		ring[i] = (struct kvm_dirty_gfn){ .flags = KVM_DIRTY_GFN_F_RESET, .slot = 0xffffffff, .offset = ~0ull };
	ok(call(m.vm, KVM_RESET_DIRTY_RINGS, 0) > 0, "nonsense in the ring is survived");
	munmap(ring, RING_BYTES);
	machine_end(&m);
	munmap(area, AREA_PAGES * 4096);
}

static void test_many_slots(void)
{
	int most;
	struct machine m;
	unsigned failed = 0;
	uint8_t *area = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	machine_start(&m, 0);
	most = call(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	is(most, 32764, "slots at most");
	area[0] = 0x5a;
	for (int i = 1; i < most; i++) // in no order
		failed += set_region(m.vm, i, 0, 0x1000000 + (uint64_t)(i * 7919ull % 32771) * 0x2000, 4096, area) < 0;
	is(failed, 0, "so many set");
	is(error_of(set_region(m.vm, most, 0, 0x100000000, 4096, area)), EINVAL, "one more");
	is(error_of(set_region(m.vm, 1, 0, 0x1000000 + 2 * 7919 * 0x2000, 4096, area)), EEXIST, "onto another");
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0;
	sregs.ds.limit = 0xffffffff;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	for (unsigned i = 1; i < (unsigned)most; i += 997) {
		uint32_t gpa = 0x1000000 + (i * 7919ull % 32771) * 0x2000;

		// mov al,[gpa]; out 0x80,al; mov al,[gpa+0x1000]
		machine_bytes(&m, 0x67, 0xa0, gpa, gpa >> 8, gpa >> 16, gpa >> 24, 0xe6, 0x80, 0x67, 0xa0, gpa, (gpa >> 8) + 0x10,
			      gpa >> 16, gpa >> 24);
		failed += machine_run(&m) != KVM_EXIT_IO || ((uint8_t *)m.run)[4096] != 0x5a;
		failed += machine_run(&m) != KVM_EXIT_MMIO;
	}
	is(failed, 0, "each at its place, nothing between them");
	for (int i = 1; i < most; i++)
		failed += set_region(m.vm, (unsigned)(i * 31ull % 32764), 0, 0, 0, NULL) < 0;
	is(failed, 0, "all deleted");
	is(error_of(set_region(m.vm, 5, 0, 0, 0, NULL)), EINVAL, "which can be done once");
	machine_end(&m);
	munmap(area, 4096);
}

int main(void)
{
	test_enable();
	test_ring();
	test_many_slots();
	return done_testing();
}
