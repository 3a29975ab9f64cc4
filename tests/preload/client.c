// SPDX-License-Identifier: MIT
// A KVM client as simple as can be: its guest writes a text to a port. Usage: client TEXT
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MEMORY_SIZE 0x10000

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}
#define CHECK(call) check(call, #call)

int main(int argc, char **argv)
{
	// mov $0x3f8, %dx; again: lodsb; out %al, %dx; loop again; hlt
	static const uint8_t code[] = { 0xba, 0xf8, 0x03, 0xac, 0xee, 0xe2, 0xfc, 0xf4 };
	const char *text = argc > 1 ? argv[1] : "-";
	int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC)), vm, vcpu;
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE };
	struct kvm_regs regs = { .rip = 0x1000, .rsi = 0x2000, .rflags = 2, .rcx = strlen(text) };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	uint8_t *memory;

	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return 1;
	vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
	memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(memory + 0x1000, code, sizeof(code));
	memcpy(memory + 0x2000, text, strlen(text));
	region.userspace_addr = (uintptr_t)memory;
	CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
	run = mmap(NULL, (size_t)CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		return 1;
	CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
	for (;;) {
		CHECK(ioctl(vcpu, KVM_RUN, 0));
		if (run->exit_reason != KVM_EXIT_IO)
			break;
		putchar(*((char *)run + run->io.data_offset));
	}
	return run->exit_reason != KVM_EXIT_HLT;
}
