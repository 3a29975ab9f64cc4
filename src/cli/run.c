// SPDX-License-Identifier: MIT
// `cetkvm run`: checks the options, gathers what goes into the guest, and hands over to the VMM.
// Whatever is wrong with the input is one line on standard error and exit status 2.
#include "cli/cli.h"
#include "cli/find_kernel.h"

#include "vmm/cpu_features.h"
#include "vmm/message.h"
#include "vmm/pack.h"
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIST_MAX 256

#define MEMORY_DEFAULT (512ull << 20)
#define MEMORY_MIN     (2ull << 20)
#define MEMORY_MAX     (1ull << 40)
#define VCPUS_MAX      254
#define TIMEOUT_MAX    100000000 // three years

struct run_options {
	const char *kernel, *initrd, *append, *device, *trace, *symbols, *grain, *kvm_abi;
	char **program;              // PROGRAM ARGUMENT... NULL
	char *environment[LIST_MAX]; // NAME=VALUE
	char *files[LIST_MAX];       // HOST[:GUEST]
	unsigned environment_count, file_count;
	bool verbose, shell, help, list_cpus;
	struct vmm_config config;
};

enum {
	OPTION_KERNEL = 256, OPTION_INITRD, OPTION_APPEND, OPTION_MEM, OPTION_SMP, OPTION_CPU, OPTION_PROGRAM, OPTION_ENV,
	OPTION_ADD, OPTION_TRACE, OPTION_SYMBOLS, OPTION_DEVICE, OPTION_GRAIN, OPTION_KVM_ABI, OPTION_TIMEOUT, OPTION_NO_REBOOT,
	OPTION_VERBOSE, OPTION_SHELL, OPTION_HELP,
};

static const struct option long_options[] = {
	{ "kernel", required_argument, NULL, OPTION_KERNEL },
	{ "initrd", required_argument, NULL, OPTION_INITRD },
	{ "append", required_argument, NULL, OPTION_APPEND },
	{ "mem", required_argument, NULL, OPTION_MEM },
	{ "smp", required_argument, NULL, OPTION_SMP },
	{ "cpu", required_argument, NULL, OPTION_CPU },
	{ "program", required_argument, NULL, OPTION_PROGRAM },
	{ "env", required_argument, NULL, OPTION_ENV },
	{ "add", required_argument, NULL, OPTION_ADD },
	{ "trace", required_argument, NULL, OPTION_TRACE },
	{ "symbols", required_argument, NULL, OPTION_SYMBOLS },
	{ "device", required_argument, NULL, OPTION_DEVICE },
	{ "grain", required_argument, NULL, OPTION_GRAIN },
	{ "kvm-abi", required_argument, NULL, OPTION_KVM_ABI },
	{ "timeout", required_argument, NULL, OPTION_TIMEOUT },
	{ "no-reboot", no_argument, NULL, OPTION_NO_REBOOT },
	{ "verbose", no_argument, NULL, OPTION_VERBOSE },
	{ "shell", no_argument, NULL, OPTION_SHELL },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ NULL, 0, NULL, 0 },
};

// A decimal number within bounds, and nothing behind it.
static int parse_number(const char *text, unsigned long low, unsigned long high, unsigned *value)
{
	unsigned long number;
	char *end;

	errno = 0;
	number = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || number < low || number > high)
		return -1;
	*value = number;
	return 0;
}

static int parse_memory(const char *text, uint64_t *size)
{
	if (vmm_parse_size(text, size) < 0 || *size > MEMORY_MAX)
		return cli_bad_value("--mem", text, "a size such as 256M or 4G, up to 1T");
	if (*size < MEMORY_MIN || *size % 4096)
		return cli_bad_value("--mem", text, "at least 2M, in whole pages of 4K");
	return 0;
}

static int append_to_list(char **list, unsigned *count, char *value, const char *option)
{
	if (*count == LIST_MAX - 1) {
		vmm_message("%s: more than %d of them", option, LIST_MAX - 1);
		return -1;
	}
	list[(*count)++] = value;
	return 0;
}

static int take_choice(struct run_options *options, int option)
{
	switch (option) {
	case OPTION_CPU:
		options->config.cpu = optarg;
		options->list_cpus = !strcmp(optarg, "list") || !strcmp(optarg, "help");
		return options->list_cpus ? 0 : vmm_check_cpu(optarg);
	case OPTION_ENV:
		if (!strchr(optarg, '=') || *optarg == '=')
			return cli_bad_value("--env", optarg, "NAME=VALUE");
		return append_to_list(options->environment, &options->environment_count, optarg, "--env");
	case OPTION_TRACE:
		options->trace = optarg;
		return cli_check_trace(optarg);
	case OPTION_GRAIN:
		options->grain = optarg;
		return cli_check_grain(optarg);
	case OPTION_KVM_ABI:
		options->kvm_abi = optarg;
		return cli_check_generation(optarg);
	case OPTION_SMP:
		if (parse_number(optarg, 1, VCPUS_MAX, &options->config.vcpus) < 0)
			return cli_bad_value("--smp", optarg, "a number from 1 to 254");
		return 0;
	case OPTION_TIMEOUT:
		if (parse_number(optarg, 1, TIMEOUT_MAX, &options->config.timeout) < 0)
			return cli_bad_value("--timeout", optarg, "a number of seconds from 1 to 100000000");
		return 0;
	}
	return -1;
}

static int take_option(struct run_options *options, int option)
{
	switch (option) {
	case OPTION_KERNEL:
		options->kernel = optarg;
		return cli_check_name("--kernel", optarg);
	case OPTION_INITRD:
		options->initrd = optarg;
		return cli_check_name("--initrd", optarg);
	case OPTION_APPEND:
		options->append = optarg;
		return 0;
	case OPTION_MEM:
		return parse_memory(optarg, &options->config.memory_size);
	case OPTION_ADD:
		return append_to_list(options->files, &options->file_count, optarg, "--add");
	case OPTION_SYMBOLS:
		options->symbols = optarg;
		return cli_check_symbols(optarg);
	case OPTION_DEVICE:
		options->device = optarg;
		return cli_check_name("--device", optarg);
	case OPTION_NO_REBOOT:
		options->config.no_reboot = true;
		return 0;
	case OPTION_VERBOSE:
		options->verbose = true;
		return 0;
	case OPTION_SHELL:
		options->shell = true;
		return 0;
	case OPTION_HELP:
		options->help = true;
		return 0;
	default:
		return take_choice(options, option);
	}
}

static int parse_options(struct run_options *options, int argc, char **argv)
{
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "+:", long_options, NULL)) != -1) {
		if (option == '?' || option == ':') {
			cli_bad_option("run", option, optopt, argv[optind - 1]);
			return -1;
		}
		if (option == OPTION_PROGRAM) {
			if (!*optarg)
				return cli_bad_value("--program", optarg, "a program of this host, then its arguments");
			// The program's arguments are whatever follows, options or not.
			options->program = argv + optind - 1;
			options->program[0] = optarg;
			return 0;
		}
		if (take_option(options, option) < 0)
			return -1;
		if (options->help || options->list_cpus)
			return 0;
	}
	if (optind < argc) {
		vmm_message("run: unexpected '%s'; a kernel is named with --kernel, see 'cetkvm run --help'", argv[optind]);
		return -1;
	}
	return 0;
}

static int check_together(const struct run_options *options)
{
	if (options->program && options->initrd) {
		vmm_message("--program and --initrd exclude each other: the program comes in an initrd of its own");
		return -1;
	}
	if (options->program && options->shell) {
		vmm_message("--program and --shell exclude each other: one of them runs in the guest");
		return -1;
	}
	if (options->initrd && (options->shell || options->environment_count || options->file_count)) {
		vmm_message("--shell, --env and --add are for the initrd that cetkvm makes; they do not go with --initrd");
		return -1;
	}
	if (options->device && (options->trace || options->symbols || options->grain || options->kvm_abi)) {
		vmm_message("--trace, --symbols, --grain and --kvm-abi are for the built-in KVM; they do not go with --device");
		return -1;
	}
	return 0;
}

static int set_library_options(const struct run_options *options, const struct kvm_backend *backend)
{
	const struct {
		const char *name, *value, *option;
	} settings[] = {
		{ "trace-cp", options->trace ? "on" : NULL, "--trace cp" },
		{ "grain", options->grain, "--grain" },
		{ "kvm-abi", options->kvm_abi, "--kvm-abi" },
	};
	unsigned i;

	for (i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (settings[i].value && backend->set_option(settings[i].name, settings[i].value) < 0) {
			vmm_message("%s %s: %s", settings[i].option, settings[i].value, strerror(errno));
			return -1;
		}
	if (options->symbols && cli_load_symbols(backend, options->symbols) < 0)
		return -1;
	// A vmlinux or a flat guest names itself; Linux in a bzImage does so out of its own memory.
	if (options->trace)
		backend->set_option("symbols", options->kernel);
	return 0;
}

// For --trace cp: the names in the program and its libraries. Files without any are no error.
static void load_program_symbols(const struct run_options *options, const struct initramfs *fs)
{
	char program[PATH_MAX];
	size_t i;

	if (pack_find_program(options->program[0], program) < 0)
		return;
	options->config.backend->set_option("symbols", program);
	for (i = 0; i < fs->path_count; i++)
		if (strstr(fs->paths[i], ".so") && strcmp(fs->paths[i], "/etc/ld.so.cache"))
			options->config.backend->set_option("symbols", fs->paths[i]);
}

static int map_initrd(const char *path, struct vmm_config *config)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe is refused below, not waited for
	struct stat status;
	void *data;

	if (fd < 0 || fstat(fd, &status) < 0) {
		vmm_message("%s: %s; --initrd needs a readable file", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!S_ISREG(status.st_mode) || !status.st_size) {
		vmm_message("%s: %s; --initrd needs a cpio archive, compressed or not", path,
			    S_ISREG(status.st_mode) ? "an empty file" : "not a regular file");
		close(fd);
		return -1;
	}
	data = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (data == MAP_FAILED) {
		vmm_message("%s: cannot map the file: %s", path, strerror(errno));
		return -1;
	}
	config->initrd = data;
	config->initrd_size = status.st_size;
	config->initrd_name = path;
	return 0;
}

static int build_initramfs(struct run_options *options, struct initramfs *fs)
{
	struct pack_request request = {
		.arguments = options->program,
		.environment = options->environment,
		.extra_files = options->files,
		.busybox = pack_find_busybox(),
	};

	if (pack_initramfs(fs, &request) < 0)
		return -1;
	options->config.initrd = fs->data;
	options->config.initrd_size = fs->size;
	options->config.initrd_name = options->program ? "program" : "shell";
	options->config.status_expected = options->program != NULL;
	options->config.own_init = true;
	if (options->program)
		options->config.no_reboot = true;
	if (!request.busybox && options->verbose)
		vmm_message("no busybox on this host: the guest has no shell and no tools");
	return 0;
}

// A program's output is not mixed with the kernel's, and a panic ends the run.
static char *make_command_line(const struct run_options *options)
{
	const char *before = options->append ? "" : "console=ttyS0";
	char *text;

	if (options->program)
		before = options->verbose ? "console=ttyS0 panic=-1 " : "console=ttyS0 quiet loglevel=1 panic=-1 ";
	if (asprintf(&text, "%s%s", before, options->append ? options->append : "") >= 0)
		return text;
	vmm_message("out of memory");
	return NULL;
}

static int prepare(struct run_options *options, struct initramfs *fs)
{
	struct vmm_config *config = &options->config;
	bool linux_kernel;

	if (!options->kernel) {
		options->kernel = find_default_kernel();
		if (!options->kernel)
			return -1;
		if (!options->program || options->verbose)
			vmm_message("using %s", options->kernel);
	}
	if (vmm_check_kernel(options->kernel, &linux_kernel) < 0)
		return -1;
	if (!linux_kernel && (options->program || options->shell || options->environment_count || options->file_count)) {
		vmm_message("%s: not Linux; --program, --shell, --env and --add need a Linux kernel", options->kernel);
		return -1;
	}
	config->kernel = options->kernel;
	config->backend = options->device ? kvm_backend_device(options->device) : kvm_backend_library();
	if (!options->device && set_library_options(options, config->backend) < 0)
		return -1;
	if (options->initrd) {
		if (map_initrd(options->initrd, config) < 0)
			return -1;
	} else if (linux_kernel) {
		if (build_initramfs(options, fs) < 0)
			return -1;
		if (options->program && options->trace)
			load_program_symbols(options, fs);
	}
	config->append = make_command_line(options);
	return config->append ? 0 : -1;
}

int cli_run(int argc, char **argv)
{
	static struct run_options options = {
		.config = { .memory_size = MEMORY_DEFAULT, .vcpus = 1, .cpu = CPU_MODEL_DEFAULT },
	};
	struct initramfs fs = { 0 };
	int status = CLI_BAD_INPUT;

	if (parse_options(&options, argc, argv) < 0)
		return CLI_BAD_INPUT;
	if (options.help)
		return cli_help(stdout, "run");
	if (options.list_cpus)
		return vmm_list_cpus(options.device ? kvm_backend_device(options.device) : kvm_backend_library());
	if (check_together(&options) < 0)
		return CLI_BAD_INPUT;
	if (!prepare(&options, &fs))
		status = vmm_run(&options.config);
	initramfs_destroy(&fs);
	free((char *)options.config.append);
	return status;
}
