// SPDX-License-Identifier: MIT
// `cetkvm doctor`: what this machine can do, whether a program can be reached by `cetkvm exec`, and what
// there is of the KVM API.
#include "cli/cli.h"
#include "cli/find_kernel.h"
#include "cli/program.h"

#include "cetkvm/cetkvm.h"
#include "vmm/backend.h"
#include "vmm/cpuid.h"
#include "vmm/message.h"
#include "vmm/pack.h"
#include "vmm/vmm.h"

#include <cpuid.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
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

// Of what guests do not get on every host: what KVM offers on this one.
static void report_offer(const struct kvm_backend *kvm, int fd)
{
	static const struct {
		const char *feature, *words;
	} rows[] = {
		{ "avx512f", "AVX-512 for guests" },
		{ "sha_ni", "SHA instructions for guests" },
		{ "vaes", "VAES for guests" },
		{ "vpclmulqdq", "VPCLMULQDQ for guests" },
		{ "gfni", "GFNI for guests" },
	};
	struct kvm_cpuid2 *cpuid = cpuid_supported(kvm, fd);

	for (unsigned i = 0; cpuid && i < sizeof(rows) / sizeof(rows[0]); i++) {
		int feature = cpu_feature_find(rows[i].feature, (unsigned)strlen(rows[i].feature));

		say(feature >= 0 && cpuid_has_feature(cpuid, &cpu_features[feature]), rows[i].words, "");
	}
	free(cpuid);
}

static bool report_engine(void)
{
	const struct kvm_backend *kvm = kvm_backend_library();
	const char *problem = NULL;
	int fd = kvm->open();

	if (fd < 0) {
		problem = kvm->problem();
		problem = problem ? problem : strerror(errno);
	}
	say(!problem, "the built-in KVM runs on this processor", problem ? problem : "");
	if (fd >= 0) {
		report_offer(kvm, fd);
		kvm->close(fd);
	}
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

// What `cetkvm exec` needs; program may be NULL.
static bool report_exec(const char *name)
{
	static struct library library;
	static struct program program;
	bool found = library_find(&library);

	say(found, "the library that cetkvm exec loads into programs", found ? "" : library.problem);
	if (!name)
		return true;
	program_look(&program, name);
	say(!program.problem[0], "cetkvm exec can reach the program", program.problem[0] ? program.problem : program.path);
	return found && !program.problem[0];
}

static bool report_machine(void)
{
	uint32_t eax, ebx = 0, ecx = 0, edx = 0;
	bool baseline, engine;
	const char *busybox;
	int fd;

	__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
	baseline = (ebx & bit_AVX2) && (ebx & bit_BMI2) && xcr0_has(6);
	say(baseline, "AVX2 and BMI2 on this host", baseline ? "" : "cetkvm needs both (x86-64-v3)");
	engine = report_engine();
	fd = memfd_create("cetkvm-doctor", MFD_CLOEXEC);
	say(fd >= 0, "anonymous memory files", fd < 0 ? strerror(errno) : "");
	if (fd >= 0)
		close(fd);
	busybox = pack_find_busybox();
	say(busybox, "busybox for the guest's shell", busybox ? busybox : "not found; install busybox-static");
	report_kernels();
	return baseline && engine;
}

// The tables of the library, as they are.
static int list_ioctls(void)
{
	struct cetkvm_capability capability;
	struct cetkvm_ioctl row;
	const char *object = "";

	for (unsigned i = 0; !cetkvm_list_ioctl(i, &row); i++) {
		if (strcmp(object, row.object)) {
			object = row.object;
			printf("%sioctls of %s%s:\n", i ? "\n" : "", *object == '/' ? "" : "a ", object);
		}
		printf("  0x%08x %s%s%s%s%s\n", row.number, row.name, *row.needs ? ": " : "", row.needs,
		       !*row.note ? "" : *row.needs ? "; " : ": ", row.note);
	}
	puts("\ncapabilities (KVM_CHECK_EXTENSION; what is not listed is 0):");
	for (unsigned i = 0; !cetkvm_list_capability(i, &capability); i++)
		printf("  %4u %s: %ld\n", capability.number, capability.name, capability.value);
	return 0;
}

int cli_doctor(int argc, char **argv)
{
	const char *program = NULL;
	bool machine;

	if (argc == 2 && !strcmp(argv[1], "--help"))
		return cli_help(stdout, "doctor");
	if (argc == 2 && !strcmp(argv[1], "--ioctls"))
		return list_ioctls();
	if (argc > 1 && *argv[1] != '-')
		program = argv[1];
	if (argc > 2 || (argc == 2 && !program)) {
		vmm_message("doctor: unexpected '%s'; see 'cetkvm help doctor'", argv[argc - 1]);
		return CLI_BAD_INPUT;
	}
	machine = report_machine();
	return report_exec(program) && machine ? 0 : CLI_BAD_INPUT;
}
