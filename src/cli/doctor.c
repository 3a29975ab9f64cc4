// SPDX-License-Identifier: MIT
// `cetkvm doctor`: what this machine can do.
#include "cli/cli.h"
#include "cli/find_kernel.h"

#include "vmm/backend.h"
#include "vmm/message.h"
#include "vmm/pack.h"
#include "vmm/vmm.h"

#include <cpuid.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KERNELS_MAX 32

static bool xcr0_has(uint32_t bits)
{
	uint32_t low, high, eax, ebx, ecx, edx;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
		return false;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & bits) == bits;
}

static void say(bool good, const char *what, const char *detail)
{
	printf("%-4s %s%s%s\n", good ? "ok" : "--", what, *detail ? ": " : "", detail);
}

// What guests get only if this host has it.
static void report_vectors(void)
{
	uint32_t eax, ebx = 0, ecx = 0, edx = 0;

	__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
	say((ebx & bit_AVX512F) && xcr0_has(0xe6), "AVX-512 for guests", "");
	say(ebx & bit_SHA, "SHA instructions for guests", "");
	say((ecx & bit_VAES) && (ecx & bit_VPCLMULQDQ), "VAES and VPCLMULQDQ for guests", "");
	say(ecx & bit_GFNI, "GFNI for guests", "");
}

static bool report_engine(void)
{
	const struct kvm_backend *kvm = kvm_backend_library();
	const char *problem = NULL;
	int fd = kvm->open();

	if (fd < 0) {
		problem = kvm->problem();
		problem = problem ? problem : strerror(errno);
	} else {
		kvm->close(fd);
	}
	say(!problem, "the built-in KVM runs on this processor", problem ? problem : "");
	return !problem;
}

static void report_kernels(void)
{
	static struct found_kernel kernels[KERNELS_MAX];
	size_t count = find_kernels(kernels, KERNELS_MAX), i;

	if (!count)
		say(false, "kernels in /boot", "none; name one with --kernel");
	for (i = 0; i < count; i++)
		say(kernels[i].shadow_stack && kernels[i].readable, kernels[i].path,
		    !kernels[i].shadow_stack ? "without shadow stacks for programs" :
		    !kernels[i].readable     ? "not readable by you" :
					       "has shadow stacks for programs");
}

int cli_doctor(int argc, char **argv)
{
	uint32_t eax, ebx = 0, ecx = 0, edx = 0;
	bool baseline, engine;
	const char *busybox;
	int fd;

	if (argc > 1) {
		if (!strcmp(argv[1], "--help"))
			return cli_help(stdout, "doctor");
		vmm_message("doctor: unexpected '%s'; see 'cetkvm help doctor'", argv[1]);
		return CLI_BAD_INPUT;
	}
	__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
	baseline = (ebx & bit_AVX2) && (ebx & bit_BMI2) && xcr0_has(6);
	say(baseline, "AVX2 and BMI2 on this host", baseline ? "" : "cetkvm needs both (x86-64-v3)");
	engine = report_engine();
	report_vectors();
	fd = memfd_create("cetkvm-doctor", MFD_CLOEXEC);
	say(fd >= 0, "anonymous memory files", fd < 0 ? strerror(errno) : "");
	if (fd >= 0)
		close(fd);
	busybox = pack_find_busybox();
	say(busybox, "busybox for the guest's shell", busybox ? busybox : "not found; install busybox-static");
	report_kernels();
	return baseline && engine ? 0 : CLI_BAD_INPUT;
}
