// SPDX-License-Identifier: MIT
// Memory slots: rules, changes under a running guest, dirty log, memory that is not there.
#include "machine.h"

#include <pthread.h>
#include <unistd.h>

static int set_region(struct machine *m, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *hva)
{
	struct kvm_userspace_memory_region region = { slot, flags, gpa, size, (uintptr_t)hva };

	return call(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void test_rules(void)
{
	struct machine m;
	uint8_t *more = mmap(NULL, 0x40000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	machine_start(&m, NO_VCPU);
	is(error_of(set_region(&m, 1, 0, 0x100000, 0, more)), EINVAL, "deleting what is not there");
	is(error_of(set_region(&m, 1, 0, 0x100001, 0x1000, more)), EINVAL, "address not aligned");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x1001, more)), EINVAL, "size not aligned");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x1000, more + 1)), EINVAL, "host address not aligned");
	is(error_of(set_region(&m, 1, 4, 0x100000, 0x1000, more)), EINVAL, "unknown flag");
	is(error_of(set_region(&m, 32764, 0, 0x100000, 0x1000, more)), EINVAL, "slot number");
	is(error_of(set_region(&m, 2 << 16, 0, 0x100000, 0x1000, more)), EINVAL, "third address space");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x1000, (void *)(1ull << 63))), EINVAL, "not an address of user space");
	is(error_of(set_region(&m, 1, 0, -0x1000ull, 0x2000, more)), EINVAL, "wraps");
	is(error_of(set_region(&m, 1, 0, 1ull << 60, 0x1000, more)), EINVAL, "beyond physical addresses");
	is(error_of(set_region(&m, 1, 0, 0x10000, 0x1000, more)), EEXIST, "overlap");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x10000, more)), 0, "a slot");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x10000, more)), 0, "the same again");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x20000, more)), EINVAL, "another size");
	is(error_of(set_region(&m, 1, 0, 0x100000, 0x10000, more + 0x1000)), EINVAL, "another host address");
	is(error_of(set_region(&m, 1, KVM_MEM_READONLY, 0x100000, 0x10000, more)), EINVAL, "another protection");
	is(error_of(set_region(&m, 1, KVM_MEM_LOG_DIRTY_PAGES, 0x100000, 0x10000, more)), 0, "dirty log on");
	is(error_of(set_region(&m, 1, 0, 0x200000, 0x10000, more)), 0, "moved");
	is(error_of(set_region(&m, 2, 0, 0x208000, 0x10000, more)), EEXIST, "overlap with where it is now");
	is(error_of(set_region(&m, 2, 0, 0x100000, 0x10000, more)), 0, "an alias where it was");
	is(error_of(set_region(&m, 2, 0, 0x1ff000, 0x10000, more)), EEXIST, "cannot move into another");
	is(error_of(set_region(&m, 3, 0, 0x300000, 0x1000, (void *)0x10000)), 0, "host memory need not be there");
	is(error_of(set_region(&m, 2, 0, 0, 0, NULL)), 0, "delete");
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = more };
	is(error_of(call(m.vm, KVM_GET_DIRTY_LOG, &log)), ENOENT, "no dirty log");
	log.slot = 40000;
	is(error_of(call(m.vm, KVM_GET_DIRTY_LOG, &log)), EINVAL, "no such slot number");
	struct kvm_userspace_memory_region2 two = { .slot = 7, .guest_phys_addr = 0x400000, .memory_size = 0x1000,
		.userspace_addr = (uintptr_t)more };
	is(error_of(call(m.vm, KVM_SET_USER_MEMORY_REGION2, &two)), 0, "REGION2");
	two.flags = 4;
	is(error_of(call(m.vm, KVM_SET_USER_MEMORY_REGION2, &two)), EINVAL, "guest_memfd is not there");
	machine_end(&m);
	munmap(more, 0x40000);
}

// Many slots stay sorted whatever the order they come in.
static void test_many(void)
{
	enum { N = 200 };
	struct machine m;
	uint8_t *area = mmap(NULL, N * 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned failed = 0;

	machine_start(&m, 0);
	for (unsigned i = 0; i < N; i++) {
		unsigned k = i * 77 % N;

		area[k * 0x1000] = k;
		failed += set_region(&m, 1 + k, 0, 0x40000 + k * 0x2000, 0x1000, area + k * 0x1000) < 0;
	}
	is(failed, 0, "%u slots", N);
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0;
	sregs.ds.limit = 0xffffffff;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	// mov al,[ebx]; out 0x80,al; add ebx,0x2000; dec cx; jnz
	machine_bytes(&m, 0xb9, N, 0, 0x66, 0xbb, 0, 0, 4, 0, 0x67, 0x8a, 0x03, 0xe6, 0x80, 0x66, 0x81, 0xc3, 0, 0x20, 0, 0,
		      0xe2, 0xf2, 0xf4);
	for (unsigned i = 0; machine_run(&m) == KVM_EXIT_IO; i++)
		failed += ((uint8_t *)m.run)[4096] != (uint8_t)i;
	is(failed, 0, "each at its place");
	machine_end(&m);
	munmap(area, N * 0x1000);
}

static void test_dirty(void)
{
	struct machine m;
	uint64_t bitmap[1] = { 0 };
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bitmap };

	machine_start(&m, 0);
	is(set_region(&m, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, MEMORY_SIZE, m.memory), 0, "dirty log of slot 0");
	// mov [0x2000],al; out; mov [0x2004],al; mov [0x3000],al; out; mov [0x2000],al; hlt
	machine_bytes(&m, 0xa2, 0x00, 0x20, 0xe6, 0x80, 0xa2, 0x04, 0x20, 0xa2, 0x00, 0x30, 0xe6, 0x80, 0xa2, 0x00, 0x20, 0xf4);
	machine_run(&m);
	is(call(m.vm, KVM_GET_DIRTY_LOG, &log), 0, "get");
	is(bitmap[0], 1 << 2, "the page written");
	machine_run(&m);
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 3 << 2, "written again, and another");
	machine_run(&m);
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 1 << 2, "and once more");
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 0, "getting it clears it");
	machine_end(&m);

	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 3 } };
	struct kvm_clear_dirty_log clear = { .slot = 0, .num_pages = 32, .dirty_bitmap = bitmap };
	machine_start(&m, 0);
	is(error_of(call(m.vm, KVM_CLEAR_DIRTY_LOG, &clear)), ENOENT, "clearing by hand a slot without a log");
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "switch it on");
	set_region(&m, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, MEMORY_SIZE, m.memory);
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 0xffffffff, "initially all set");
	clear.first_page = 1;
	is(error_of(call(m.vm, KVM_CLEAR_DIRTY_LOG, &clear)), EINVAL, "first page not a multiple of 64");
	clear.first_page = 0;
	clear.num_pages = 31;
	is(error_of(call(m.vm, KVM_CLEAR_DIRTY_LOG, &clear)), EINVAL, "neither 64 nor to the end");
	clear.num_pages = 32;
	is(call(m.vm, KVM_CLEAR_DIRTY_LOG, &clear), 0, "clear all");
	machine_bytes(&m, 0xa2, 0x00, 0x20, 0xf4);
	machine_run(&m);
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 1 << 2, "one is dirty");
	call(m.vm, KVM_GET_DIRTY_LOG, &log);
	is(bitmap[0], 1 << 2, "and stays so");
	machine_end(&m);
}

static void test_absent(void)
{
	struct machine m;
	uint8_t *page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	machine_start(&m, 0);
	set_region(&m, 1, 0, 0xd0000, 0x1000, page);
	// mov ax,0xd000; mov ds,ax; mov al,[0]; inc byte [1]; hlt
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa0, 0, 0, 0xfe, 0x06, 1, 0, 0xf4);
	mprotect(page, 0x1000, PROT_NONE);
	is(machine_run(&m), -EFAULT, "reading memory that cannot be read");
	is(machine_regs(&m).rip, m.code + 5, "RIP stays");
	mprotect(page, 0x1000, PROT_READ);
	is(machine_run(&m), -EFAULT, "writing memory that cannot be written");
	is(machine_regs(&m).rip, m.code + 8, "RIP stays");
	mprotect(page, 0x1000, PROT_READ | PROT_WRITE);
	page[1] = 6;
	is(machine_run(&m), KVM_EXIT_HLT, "it goes on when it is there");
	is(page[1], 7, "done once");
	machine_end(&m);

	machine_start(&m, 0);
	set_region(&m, 1, KVM_MEM_READONLY, 0xd0000, 0x1000, page);
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa0, 1, 0, 0xfe, 0x06, 1, 0, 0xf4);
	is(machine_run(&m), KVM_EXIT_MMIO, "a write to a read-only slot exits");
	ok(m.run->mmio.is_write && m.run->mmio.phys_addr == 0xd0001 && m.run->mmio.data[0] == 8, "as memory I/O");
	is(machine_regs(&m).rax & 0xff, 7, "reads do not");
	is(machine_run(&m), KVM_EXIT_HLT, "and goes on");
	is(page[1], 7, "unchanged");
	machine_end(&m);

	// Code: out 0x80,al; inc ax; jmp to the start.
	memcpy(page, "\xe6\x80\x40\xeb\xfb", 5);
	machine_start(&m, 0);
	set_region(&m, 1, 0, 0xd0000, 0x1000, page);
	machine_bytes(&m, 0xea, 0, 0, 0, 0xd0); // jmp 0xd000:0
	mprotect(page, 0x1000, PROT_NONE);
	is(machine_run(&m), -EFAULT, "executing memory that cannot be read");
	is(machine_regs(&m).rip, 0, "RIP stays");
	mprotect(page, 0x1000, PROT_READ);
	is(machine_run(&m), KVM_EXIT_IO, "it goes on when it is there");
	mprotect(page, 0x1000, PROT_NONE);
	is(machine_run(&m), -EFAULT, "executing what has run before, and cannot be read any more");
	mprotect(page, 0x1000, PROT_READ);
	is(machine_run(&m), KVM_EXIT_IO, "and on again");
	is(machine_regs(&m).rax, 1, "with the next access: the one before is not made again");
	machine_end(&m);
	munmap(page, 0x1000);

	// Nothing at all.
	machine_start(&m, 0);
	set_region(&m, 0, 0, 0, 0, NULL);
	m.code = 0x4000;
	machine_bytes(&m, 0xf4);
	int reason = machine_run(&m);
	ok(reason == KVM_EXIT_INTERNAL_ERROR || reason == KVM_EXIT_SHUTDOWN, "no memory to execute (%d)", reason);
	machine_end(&m);
}

// A slot comes and goes while a vCPU reads through it: it sees memory or memory I/O, never stale memory.
static volatile bool stop;
static unsigned mmio_exits, bad_values;

static void *reader(void *opaque)
{
	struct machine *m = opaque;

	while (!stop) {
		int reason = machine_run(m);

		if (reason == KVM_EXIT_MMIO) {
			m->run->mmio.data[0] = 1;
			mmio_exits++;
		} else if (reason == KVM_EXIT_IO) {
			bad_values++;
		} else if (reason != -EINTR) {
			printf("# exit %d\n", reason);
			return NULL;
		}
	}
	return NULL;
}

static void test_changes(void)
{
	struct machine m;
	pthread_t thread;
	uint8_t *page;

	machine_start(&m, 0);
	// mov ax,0xd000; mov ds,ax; 1: mov al,[0]; cmp al,1; je 1b; out 0x80,al; jmp 1b
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa0, 0, 0, 0x3c, 1, 0x74, 0xf9, 0xe6, 0x80, 0xeb, 0xf5);
	pthread_create(&thread, NULL, reader, &m);
	for (unsigned i = 0; i < 300; i++) {
		page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		page[0] = 1;
		if (set_region(&m, 1, 0, 0xd0000, 0x1000, page) < 0)
			break;
		usleep(50);
		if (set_region(&m, 1, 0, 0xd0000, 0, page) < 0)
			break;
		// From here on nobody may see it.
		page[0] = 2;
		munmap(page, 0x1000);
		usleep(50);
	}
	stop = true;
	m.run->immediate_exit = 1;
	cetkvm_kick(m.vcpu);
	pthread_join(thread, NULL);
	ok(mmio_exits > 0, "memory I/O while it is gone (%u)", mmio_exits);
	is(bad_values, 0, "never the old memory");
	machine_end(&m);
}

// ioctls that look at guest memory themselves: page-directory pointers for KVM_SET_SREGS, page tables for
// KVM_TRANSLATE.
static void test_looked_at_by_ioctls(void)
{
	uint64_t *tables = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_translation translation = { .linear_address = 0x345678 };
	struct kvm_sregs sregs;
	struct kvm_sregs2 with_pointers;
	struct machine m;

	machine_start(&m, 0);
	machine_bytes(&m, 0xf4);
	is(machine_run(&m), KVM_EXIT_HLT, "a guest has used its memory");
	is(set_region(&m, 0, 0, 0, 0, NULL), 0, "which goes");
	is(set_region(&m, 1, 0, 0x100000, 0x2000, tables), 0, "for other memory");
	tables[0] = 0x101001;
	tables[512] = 0x83; // 2 MiB, identical
	tables[513] = 0x200083;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr0 = 0x80000011;
	sregs.cr4 = 0x20;
	sregs.cr3 = 0x100000;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "PAE paging");
	call(m.vcpu, KVM_GET_SREGS2, &with_pointers);
	is(with_pointers.pdptrs[0], 0x101001, "its pointers come from memory");
	is(call(m.vcpu, KVM_TRANSLATE, &translation), 0, "KVM_TRANSLATE");
	is(translation.physical_address, 0x345678, "follows the tables");

	munmap(tables, 0x2000);
	is(call(m.vcpu, KVM_TRANSLATE, &translation), 0, "with the tables' host memory gone");
	is(translation.valid, 0, "there is no translation");
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "KVM_SET_SREGS takes what cannot be read");
	machine_end(&m);
}

int main(void)
{
	alarm(100);
	test_looked_at_by_ioctls();
	test_rules();
	test_many();
	test_dirty();
	test_absent();
	test_changes();
	return done_testing();
}
