// SPDX-License-Identifier: MIT
// What the command line asks of the VMM.
#ifndef CETKVM_VMM_VMM_H
#define CETKVM_VMM_VMM_H

#include "vmm/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Exit statuses of `cetkvm run` besides the guest's own.
#define VMM_EXIT_OK        0
#define VMM_EXIT_BAD_INPUT 2
#define VMM_EXIT_CRASHED   3   // triple fault, kernel panic, ended without saying a status
#define VMM_EXIT_FAILED    4   // KVM could not go on
#define VMM_EXIT_TIMEOUT   124
#define VMM_EXIT_SIGNAL    128 // + signal number

struct vmm_config {
	const struct kvm_backend *backend;
	const char *kernel;          // path
	const char *initrd_name;     // for messages; NULL if there is none
	const uint8_t *initrd;
	size_t initrd_size;
	const char *append;          // the whole kernel command line
	uint64_t memory_size;
	unsigned vcpus;
	const char *cpu;             // MODEL[,+feature,-feature...]
	unsigned timeout;            // seconds, 0: none
	bool no_reboot;              // a reset ends the run
	bool status_expected;        // ending without a status from the exit port is a failure
	bool own_init;               // the guest runs our init: see console.h
};

// Runs a guest to its end, through reboots. Returns the exit status of the command.
int vmm_run(const struct vmm_config *config);

// Parses "256M", "4G", "512" (MiB). Returns 0 on success.
int vmm_parse_size(const char *text, uint64_t *size);

// The list behind `--cpu list`, for this backend.
int vmm_list_cpus(const struct kvm_backend *backend);

// Checks the kernel file before anything else is done. Writes one line and returns -1 if it is none.
// *linux_kernel: it takes an initrd and a command line.
int vmm_check_kernel(const char *path, bool *linux_kernel);

// Checks --cpu before anything else is done. Writes one line and returns -1 if it cannot be parsed.
int vmm_check_cpu(const char *choice);

#endif
