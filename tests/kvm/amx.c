// SPDX-License-Identifier: MIT
// AMX for a client: permission, what CPUID says with and without it, the larger image of
// KVM_GET_XSAVE2, and what IA32_XFD does to it.
#include "machine.h"

#include <sys/wait.h>
#include <unistd.h>

#define TILES 0x60000ull
#define PERMITTED() ({ uint64_t m_ = 0; cetkvm_arch_prctl(ARCH_GET_XCOMP_GUEST_PERM, (unsigned long)&m_); m_; })
#define REQUEST(component) error_of(cetkvm_arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM, component))

static uint64_t components(struct kvm_cpuid2 *cpuid)
{
	return cpuid_entry(cpuid, 0xd, 0)->eax;
}

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = {
		{ .nmsrs = 1 }, { .index = index, .data = value } };

	return call(fd, KVM_SET_MSRS, &msr);
}

// In a process of its own: permission is given once.
static void without_permission(void)
{
	struct machine m;
	struct kvm_cpuid2 *cpuid;
	struct kvm_xsave *image = calloc(1, 16384);

	machine_start(&m, 0);
	cpuid = supported_cpuid(m.kvm);
	is(components(cpuid) & TILES, 0, "without permission: no components");
	is(cpuid_entry(cpuid, 7, 0)->edx & 1 << 24, 0, "no AMX");
	is(call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_XSAVE2), 4096, "KVM_CAP_XSAVE2");
	is(call(m.vcpu, KVM_GET_XSAVE, image), 0, "KVM_GET_XSAVE");
	is(REQUEST(18), EBUSY, "too late to ask when there is a vCPU");
	cpuid_entry(cpuid, 0xd, 0)->eax |= TILES;
	is(error_of(call(m.vcpu, KVM_SET_CPUID2, cpuid)), EPERM, "CPUID with tiles: EPERM");
	cpuid_entry(cpuid, 0xd, 0)->eax &= ~TILES;
	is(error_of(call(m.vcpu, KVM_SET_CPUID2, cpuid)), 0, "without: fine");
	free(cpuid);
	free(image);
	machine_end(&m);
}

static void with_permission(void)
{
	struct machine m, other;
	struct kvm_cpuid2 *cpuid;
	uint8_t *image = calloc(1, 16384), *back = calloc(1, 16384);
	uint64_t *bv = (uint64_t *)(image + 512), *back_bv = (uint64_t *)(back + 512);
	struct kvm_xcrs xcrs;
	long size;

	is(REQUEST(18), 0, "permission");
	is(PERMITTED() & TILES, TILES, "is given");
	is(REQUEST(18), 0, "asking again is fine");
	machine_start(&m, 0);
	is(REQUEST(18), 0, "with a vCPU, too: nothing changes");
	size = call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_XSAVE2);
	is(size, 2816 + 8192, "KVM_CAP_XSAVE2");
	is(call(m.vcpu, KVM_GET_XSAVE, image), 0, "KVM_GET_XSAVE until the CPUID is set");
	cpuid = supported_cpuid(m.kvm);
	is(components(cpuid) & TILES, TILES, "the components");
	is(cpuid_entry(cpuid, 7, 0)->edx >> 22 & 0xf & ~2, 0xd, "AMX-BF16, AMX-TILE, AMX-INT8");
	is(cpuid_entry(cpuid, 0xd, 18)->ebx, 2816, "place of XTILEDATA");
	is(cpuid_entry(cpuid, 0xd, 0)->ecx, size, "size of all");
	ok(cpuid_entry(cpuid, 0x1d, 1) && cpuid_entry(cpuid, 0x1e, 0), "the palette and the unit");
	is(call(m.vcpu, KVM_SET_CPUID2, cpuid), 0, "set");
	is(error_of(call(m.vcpu, KVM_GET_XSAVE, image)), EINVAL, "KVM_GET_XSAVE: too small now");

	// Tiles from user space and back.
	is(call(m.vcpu, KVM_GET_XSAVE2, image), 0, "KVM_GET_XSAVE2");
	is(*bv & TILES, 0, "initial");
	*bv |= TILES | 3;
	memset(image + 2752, 0, 64);
	image[2752] = 1;
	for (unsigned i = 0; i < 8; i++) {
		image[2752 + 16 + 2 * i] = 64;
		image[2752 + 48 + i] = 16;
	}
	memset(image + 2816, 0xa5, 8192);
	is(call(m.vcpu, KVM_SET_XSAVE, image), 0, "KVM_SET_XSAVE");
	call(m.vcpu, KVM_GET_XCRS, &xcrs);
	xcrs.xcrs[0].value = 7 | TILES;
	is(call(m.vcpu, KVM_SET_XCRS, &xcrs), 0, "XCR0");
	xcrs.xcrs[0].value = 7 | 1 << 17;
	is(error_of(call(m.vcpu, KVM_SET_XCRS, &xcrs)), EINVAL, "one of the two alone");
	machine_bytes(&m, 0xf4);
	is(machine_run(&m), KVM_EXIT_HLT, "the guest runs");
	call(m.vcpu, KVM_GET_XSAVE2, back);
	ok((*back_bv & TILES) == TILES && !memcmp(image + 2752, back + 2752, 64 + 8192), "and they are still there");
	// A configuration that cannot be becomes the initial one.
	image[2752] = 3;
	call(m.vcpu, KVM_SET_XSAVE, image);
	machine_bytes(&m, 0xf4);
	machine_run(&m);
	call(m.vcpu, KVM_GET_XSAVE2, back);
	is(*back_bv & TILES, 1 << 18, "a configuration with palette 3");
	// What IA32_XFD disables is lost.
	is(set_msr(m.vcpu, 0x1c4, 1 << 18), 1, "IA32_XFD");
	is(set_msr(m.vcpu, 0x1c4, 1 << 17), 0, "cannot disable XTILECFG");
	call(m.vcpu, KVM_GET_XSAVE2, back);
	is(*back_bv & TILES, 0, "disabled data is gone");
	call(m.vcpu, KVM_SET_XSAVE, image);
	call(m.vcpu, KVM_GET_XSAVE2, back);
	is(*back_bv & 1 << 18, 0, "and cannot be set");
	machine_end(&m);

	// A vCPU without AMX in the same process takes the smaller image, and refuses the components.
	machine_start(&other, 0);
	cpuid_entry(cpuid, 0xd, 0)->eax &= ~TILES;
	call(other.vcpu, KVM_SET_CPUID2, cpuid);
	is(call(other.vcpu, KVM_GET_XSAVE, back), 0, "a vCPU without AMX: KVM_GET_XSAVE");
	*bv = TILES | 3;
	is(error_of(call(other.vcpu, KVM_SET_XSAVE, image)), EINVAL, "tiles for it: EINVAL");
	machine_end(&other);
	free(cpuid);
	free(image);
	free(back);
}

int main(void)
{
	int kvm = cetkvm_open(), status;
	uint64_t supported = 0;
	struct kvm_device_attr attr = { .attr = KVM_X86_XCOMP_GUEST_SUPP, .addr = (uintptr_t)&supported };

	is(call(kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_SYS_ATTRIBUTES), 1, "KVM_CAP_SYS_ATTRIBUTES");
	is(call(kvm, KVM_HAS_DEVICE_ATTR, &attr), 0, "KVM_X86_XCOMP_GUEST_SUPP");
	is(call(kvm, KVM_GET_DEVICE_ATTR, &attr), 0, "its value");
	is(supported & TILES, TILES, "has AMX, permission or not");
	attr.attr = 1;
	is(error_of(call(kvm, KVM_GET_DEVICE_ATTR, &attr)), ENXIO, "another attribute");
	attr.attr = 0;
	attr.group = 3;
	is(error_of(call(kvm, KVM_HAS_DEVICE_ATTR, &attr)), ENXIO, "another group");
	is(PERMITTED() & TILES, 1 << 17, "no permission for the data to begin with");
	is(REQUEST(17), EOPNOTSUPP, "XTILECFG needs none");
	is(REQUEST(2), EOPNOTSUPP, "nor AVX");
	is(REQUEST(64), EINVAL, "no such component");
	is(error_of(cetkvm_arch_prctl(0x1002, 0)), ENOSYS, "another operation");
	cetkvm_close(kvm);
	fflush(stdout);
	if (!fork()) {
		without_permission();
		printf("# child has run %u\n", tap_tests);
		fflush(stdout);
		_exit(tap_failures ? 255 : (int)tap_tests);
	}
	wait(&status);

	tap_failures += !WIFEXITED(status) || WEXITSTATUS(status) == 255;
	tap_tests = (unsigned)WEXITSTATUS(status);
	with_permission();
	return done_testing();
}
