// SPDX-License-Identifier: MIT
// `cetkvm exec`: runs a program that uses KVM, with the library that serves it (src/preload) loaded
// into it. What the library is to do goes with the environment:
//   LD_PRELOAD        the library, before what was there
//   CETKVM_OPTIONS    lines of NAME=VALUE for cetkvm_set_option()
#include "cli/cli.h"
#include "cli/program.h"

#include "vmm/backend.h"
#include "vmm/cpu_features.h"
#include "vmm/cpuid.h"
#include "vmm/message.h"
#include "vmm/vmm.h"

#include <cpuid.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct exec_options {
	const char *cpu, *policy;
	char settings[32768]; // CETKVM_OPTIONS
};

enum {
	OPTION_CPU = 256,
	OPTION_CLIENT_CPUID,
	OPTION_CPUID,
	OPTION_TRACE,
	OPTION_SYMBOLS,
	OPTION_GRAIN,
	OPTION_KVM_ABI,
	OPTION_HELP,
};

static const struct option long_options[] = {
	{ "cpu", required_argument, NULL, OPTION_CPU },
	{ "client-cpuid", no_argument, NULL, OPTION_CLIENT_CPUID },
	{ "cpuid", required_argument, NULL, OPTION_CPUID },
	{ "trace", required_argument, NULL, OPTION_TRACE },
	{ "symbols", required_argument, NULL, OPTION_SYMBOLS },
	{ "grain", required_argument, NULL, OPTION_GRAIN },
	{ "kvm-abi", required_argument, NULL, OPTION_KVM_ABI },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ NULL, 0, NULL, 0 },
};

static int add_setting(struct exec_options *options, const char *name, const char *value)
{
	size_t length = strlen(options->settings), room = sizeof(options->settings) - length;

	if (strchr(value, '\n') || (size_t)snprintf(options->settings + length, room, "%s=%s\n", name, value) >= room) {
		vmm_message("exec: the value for %s is too long or has a line break", name);
		return -1;
	}
	return 0;
}

static int take_symbols(struct exec_options *options, const char *path)
{
	char absolute[PATH_MAX];

	// Loaded here too: the program it is for could only fail later.
	if (cli_check_symbols(path) < 0 || cli_load_symbols(kvm_backend_library(), path) < 0)
		return -1;
	if (!realpath(path, absolute)) {
		vmm_message("%s: %s", path, strerror(errno));
		return -1;
	}
	return add_setting(options, "symbols", absolute);
}

static int take_option(struct exec_options *options, int option)
{
	switch (option) {
	case OPTION_CPU:
		options->cpu = optarg;
		return 0;
	case OPTION_CLIENT_CPUID:
		return add_setting(options, "client-cpuid", "on");
	case OPTION_CPUID:
		options->policy = optarg;
		return 0;
	case OPTION_TRACE:
		return cli_check_trace(optarg) < 0 ? -1 : add_setting(options, "trace-cp", "on");
	case OPTION_SYMBOLS:
		return take_symbols(options, optarg);
	case OPTION_GRAIN:
		return cli_check_grain(optarg) < 0 ? -1 : add_setting(options, "grain", optarg);
	case OPTION_KVM_ABI:
		return cli_check_generation(optarg) < 0 ? -1 : add_setting(options, "kvm-abi", optarg);
	}
	return -1;
}

// Does this machine keep every part of an XSAVE area that belongs to a feature where its guests have it?
static bool places_agree(const struct kvm_cpuid2 *cpuid, unsigned first, unsigned last)
{
	unsigned eax, ebx, ecx, edx;

	for (unsigned i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function != 0xd || e->index < first || e->index > last)
			continue;
		if (!__get_cpuid_count(0xd, e->index, &eax, &ebx, &ecx, &edx) || eax != e->eax || ebx != e->ebx)
			return false;
	}
	return true;
}

// Programs fill in leaf 0xD from CPUID instructions of their own, and look for state of the guest where
// those say it is. What is elsewhere, or not at all, is not for them unless somebody asks for it.
static const char *default_cpu(const struct kvm_cpuid2 *cpuid)
{
	static char text[64];

	snprintf(text, sizeof(text), "host%s%s", places_agree(cpuid, 5, 7) ? "" : ",-avx512f",
		 places_agree(cpuid, 9, 9) ? "" : ",-pku");
	return text;
}

// The CPU model is worked out here, where complaints reach the person who asked for it, and handed
// over as the list that KVM_GET_SUPPORTED_CPUID will give.
static int set_cpu(struct exec_options *options)
{
	const struct kvm_backend *kvm = kvm_backend_library();
	struct kvm_cpuid2 *cpuid = NULL, *emulated = NULL;
	struct cpu_choice choice;
	int result = -1, fd;
	char *text;

	if (options->cpu && cpu_choice_parse(&choice, options->cpu) < 0)
		return -1;
	fd = kvm->open();
	if (fd < 0) {
		vmm_message("%s: %s", kvm->name, kvm->problem() ? kvm->problem() : strerror(errno));
		return -1;
	}
	// AMX is in the list; clients that have not asked for permission are not told.
	(void)kvm->permit(COMPONENT_TILEDATA);
	cpuid = cpuid_supported(kvm, fd);
	emulated = cpuid_emulated(kvm, fd);
	if (cpuid && !options->cpu)
		cpu_choice_parse(&choice, default_cpu(cpuid));
	if (cpuid && emulated && !cpuid_apply_choice(cpuid, emulated, &choice, true)) {
		text = cpuid_to_text(cpuid);
		result = text ? add_setting(options, "supported-cpuid", text) : -1;
		free(text);
	}
	free(cpuid);
	free(emulated);
	kvm->close(fd);
	return result;
}

#define POLICY_SIZE 16384

// False if the text gets too long.
static bool add_policy_bit(char *text, const struct cpu_feature *feature, bool value)
{
	size_t length, room;

	// What a feature needs comes with it.
	if (value && feature->needs &&
	    !add_policy_bit(text, &cpu_features[cpu_feature_find(feature->needs, strlen(feature->needs))], true))
		return false;
	length = strlen(text);
	room = POLICY_SIZE - length;
	return (size_t)snprintf(text + length, room, "%x:%x:%u:%u:%u;", feature->leaf, feature->subleaf, feature->reg,
				feature->bit, value) < room;
}

// One item of --cpuid, added to the policy.
static int take_policy_item(char *text, const struct kvm_backend *kvm, const struct kvm_cpuid2 *cpuid, const char *item,
			    int length)
{
	int feature = length > 1 ? cpu_feature_find(item + 1, (unsigned)length - 1) : -1;

	if ((*item != '+' && *item != '-') || feature < 0) {
		vmm_message("--cpuid '%.*s': not +FEATURE or -FEATURE; 'cetkvm exec --cpu list' lists the features", length,
			    item);
		return -1;
	}
	if (*item == '+' && !cpuid_has_feature(cpuid, &cpu_features[feature])) {
		vmm_message("--cpuid '%.*s': %s cannot do that on this host; see 'cetkvm exec --cpu list'", length, item,
			    kvm->name);
		return -1;
	}
	if (!add_policy_bit(text, &cpu_features[feature], *item == '+')) {
		vmm_message("--cpuid '%.*s': one feature too many; accepted is each feature once", length, item);
		return -1;
	}
	return 0;
}

// "+shstk,-avx2": changes to what the program gives its guests.
static int set_policy(struct exec_options *options)
{
	const struct kvm_backend *kvm = kvm_backend_library();
	static char text[POLICY_SIZE];
	const char *item = options->policy;
	struct kvm_cpuid2 *cpuid;
	int fd = kvm->open(), result = -1;

	cpuid = fd < 0 ? NULL : cpuid_supported(kvm, fd);
	if (!cpuid)
		vmm_message("%s: %s", kvm->name, strerror(errno));
	while (cpuid) {
		size_t length = strcspn(item, ",");

		result = take_policy_item(text, kvm, cpuid, item, (int)length);
		if (result < 0 || !item[length])
			break;
		item += length + 1;
	}
	free(cpuid);
	if (fd >= 0)
		kvm->close(fd);
	return result < 0 ? -1 : add_setting(options, "cpuid-policy", text);
}

// Puts a name before those that are in a list of the dynamic linker's.
static int set_first(const char *variable, const char *name)
{
	const char *before = getenv(variable);
	char *list;
	int result;

	if (asprintf(&list, "%s%s%s", name, before && *before ? ":" : "", before ? before : "") < 0)
		return -1;
	result = setenv(variable, list, 1);
	free(list);
	return result;
}

static int set_environment(const struct exec_options *options)
{
	static struct library library;
	const char *name = library.path;
	int result;

	if (!library_find(&library)) {
		vmm_message("exec: %s", library.problem);
		return -1;
	}
	result = setenv("CETKVM_OPTIONS", options->settings, 1);
	// A blank ends a name in LD_PRELOAD, but not in LD_LIBRARY_PATH.
	if (strchr(library.path, ' ')) {
		char *slash = strrchr(library.path, '/');

		*slash = 0;
		result |= set_first("LD_LIBRARY_PATH", library.path);
		name = slash + 1;
	}
	if (result || set_first("LD_PRELOAD", name)) {
		vmm_message("exec: %s", strerror(errno));
		return -1;
	}
	return 0;
}

static int parse_options(struct exec_options *options, int argc, char **argv, bool *help)
{
	int option;

	opterr = 0;
	*help = false;
	while ((option = getopt_long(argc, argv, "+:", long_options, NULL)) != -1) {
		if (option == '?' || option == ':') {
			cli_bad_option("exec", option, optopt, argv[optind - 1]);
			return -1;
		}
		if (option == OPTION_HELP) {
			*help = true;
			return 0;
		}
		if (take_option(options, option) < 0)
			return -1;
	}
	if (optind == argc) {
		vmm_message("exec: no command; accepted: cetkvm exec [OPTION...] [--] COMMAND [ARGUMENT...]");
		return -1;
	}
	return 0;
}

int cli_exec(int argc, char **argv)
{
	static struct exec_options options;
	static struct program program;
	const char *problem;
	bool help;

	if (parse_options(&options, argc, argv, &help) < 0)
		return CLI_BAD_INPUT;
	if (help)
		return cli_help(stdout, "exec");
	if (options.cpu && (!strcmp(options.cpu, "list") || !strcmp(options.cpu, "help")))
		return vmm_list_cpus(kvm_backend_library());
	program_look(&program, argv[optind]);
	if (program.problem[0]) {
		vmm_message("exec: %s", program.problem);
		return CLI_BAD_INPUT;
	}
	problem = kvm_backend_library()->problem();
	if (problem) {
		vmm_message("exec: %s", problem);
		return CLI_BAD_INPUT;
	}
	if (set_cpu(&options) < 0 || (options.policy && set_policy(&options) < 0) || set_environment(&options) < 0)
		return CLI_BAD_INPUT;
	execvp(argv[optind], argv + optind);
	vmm_message("exec: %s: %s", argv[optind], strerror(errno));
	return CLI_BAD_INPUT;
}
