// SPDX-License-Identifier: MIT
// A run from the checked command line to the exit status: machines one after the other until one
// ends without rebooting.
#include "vmm/vmm.h"

#include "vmm/console.h"
#include "vmm/cpuid.h"
#include "vmm/kernel.h"
#include "vmm/machine.h"
#include "vmm/message.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int vmm_parse_size(const char *text, uint64_t *size)
{
	unsigned shift = 20;
	char *end;
	uint64_t value;

	if (!isdigit((unsigned char)*text))
		return -1;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return -1;
	switch (toupper((unsigned char)*end)) {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	case 'T':
		shift = 40;
		break;
	case 0:
		end--;
		break;
	default:
		return -1;
	}
	end++;
	if ((*end == 'i' || *end == 'I') && (end[1] == 'B' || end[1] == 'b'))
		end += 2;
	else if (*end == 'B' || *end == 'b')
		end++;
	if (*end || value > UINT64_MAX >> shift)
		return -1;
	*size = value << shift;
	return 0;
}

int vmm_check_kernel(const char *path, bool *linux_kernel)
{
	struct kernel_image image;

	if (kernel_open(&image, path) < 0)
		return -1;
	*linux_kernel = image.kind == KERNEL_BZIMAGE || image.kind == KERNEL_VMLINUX;
	kernel_close(&image);
	return 0;
}

int vmm_check_cpu(const char *choice)
{
	struct cpu_choice parsed;

	return cpu_choice_parse(&parsed, choice);
}

static bool ended_by_itself(const struct machine *machine)
{
	return machine->end != MACHINE_SIGNAL && machine->end != MACHINE_TIMEOUT && machine->end != MACHINE_USER_QUIT &&
	       machine->end != MACHINE_FAILED;
}

// The status of the whole command, with a line about every end that is not an ordinary one.
static int status_of_end(struct machine *machine)
{
	const struct vmm_config *config = machine->config;

	switch ((enum machine_end)machine->end) {
	case MACHINE_EXIT_PORT:
		return machine->end_value;
	case MACHINE_POWERED_OFF:
	case MACHINE_RESET:
	case MACHINE_PANICKED:
		if (machine->panic[0] || machine->end == MACHINE_PANICKED) {
			vmm_message("guest crashed: %s", machine->panic[0] ? machine->panic : "it announced a panic");
			return VMM_EXIT_CRASHED;
		}
		if (config->status_expected) {
			vmm_message("the guest %s before the program had ended",
				    machine->end == MACHINE_RESET ? "rebooted" : "powered off");
			return VMM_EXIT_CRASHED;
		}
		return VMM_EXIT_OK;
	case MACHINE_TRIPLE_FAULT:
		return VMM_EXIT_CRASHED;
	case MACHINE_SIGNAL:
		vmm_message("ended by signal %d (%s)", machine->end_value, strsignal(machine->end_value));
		return VMM_EXIT_SIGNAL + machine->end_value;
	case MACHINE_TIMEOUT:
		vmm_message("the guest did not end within %u second%s (--timeout)", config->timeout,
			    config->timeout == 1 ? "" : "s");
		return VMM_EXIT_TIMEOUT;
	case MACHINE_USER_QUIT:
		return config->status_expected ? VMM_EXIT_SIGNAL + SIGINT : VMM_EXIT_OK;
	default:
		return VMM_EXIT_FAILED;
	}
}

static int run_machines(const struct vmm_config *config, const struct kernel_image *image, struct console *console)
{
	struct machine machine;
	bool again;
	int status;

	do {
		again = false;
		status = machine_create(&machine, config, image, console);
		kernel_forget_pages(image);
		if (!status) {
			machine_start(&machine);
			console_run(console, &machine);
			machine_join(&machine);
			console_drain(console, ended_by_itself(&machine));
			again = machine.end == MACHINE_RESET && !config->no_reboot && !machine.panic[0];
			if (!again)
				status = status_of_end(&machine);
			if (console_output_error(console) && console_output_error(console) != EPIPE) {
				vmm_message("standard output: %s; what the guest wrote is lost", strerror(console_output_error(console)));
				status = VMM_EXIT_FAILED;
			}
		}
		machine_destroy(&machine);
	} while (again);
	return status;
}

int vmm_run(const struct vmm_config *config)
{
	struct kernel_image image;
	struct console *console;
	int status;

	if (kernel_open(&image, config->kernel) < 0)
		return VMM_EXIT_BAD_INPUT;
	if (strlen(config->append) > kernel_command_line_max(&image)) {
		vmm_message("%s: the command line has %zu characters; this kernel accepts %zu", config->kernel,
			    strlen(config->append), kernel_command_line_max(&image));
		kernel_close(&image);
		return VMM_EXIT_BAD_INPUT;
	}
	console = console_create(config->timeout, config->own_init);
	if (!console) {
		kernel_close(&image);
		return VMM_EXIT_FAILED;
	}
	status = run_machines(config, &image, console);
	console_destroy(console);
	kernel_close(&image);
	return status;
}

static void print_feature_list(const struct kvm_cpuid2 *supported, const struct kvm_cpuid2 *emulated)
{
	unsigned i, column = 0;

	for (i = 0; i < cpu_feature_count; i++) {
		char text[64];
		const char *before = "", *after = "";

		if (supported && !cpuid_has_feature(supported, &cpu_features[i])) {
			bool possible = emulated && cpuid_has_feature(emulated, &cpu_features[i]);

			before = possible ? "[" : "(";
			after = possible ? "]" : ")";
		}
		snprintf(text, sizeof(text), "%s%s%s", before, cpu_features[i].name, after);
		column += printf(column ? " %s" : "  %s", text);
		if (column > 90 || i + 1 == cpu_feature_count) {
			putchar('\n');
			column = 0;
		}
	}
}

int vmm_list_cpus(const struct kvm_backend *backend)
{
	struct kvm_cpuid2 *supported = NULL, *emulated = NULL;
	int fd = backend->open();
	unsigned i;

	if (fd >= 0) {
		supported = cpuid_supported(backend, fd);
		emulated = cpuid_emulated(backend, fd);
		backend->close(fd);
	}
	printf("CPU models:\n");
	for (i = 0; i < cpu_model_count; i++)
		printf("  %-16s %s\n", cpu_models[i].name, cpu_models[i].description);
	printf("\nFeatures for +feature and -feature%s:\n",
	       supported ? "; (in parentheses): not possible on this host, [in brackets]: only on request" : "");
	print_feature_list(supported, emulated);
	if (!supported)
		printf("\n%s cannot be opened here: which features it has is unknown.\n", backend->name);
	free(supported);
	free(emulated);
	return 0;
}
