// SPDX-License-Identifier: MIT
// One host of the path: a process of its own that has a virtual machine.
#ifndef CETKVM_FLEET_HOST_H
#define CETKVM_FLEET_HOST_H

#include "fleet/state.h"
#include "vmm/cpuid.h"

#include <sys/types.h>

// What the processes share: the guest on its way, and what is to be reported.
struct transit {
	struct fleet_step steps[FLEET_PATH_MAX], source;
	struct vcpu_state state;
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES_MAX];
	} cpuid;
	uint8_t memory[FLEET_MEMORY_SIZE];
};

// Orders to a host, and its answers, a byte each.
#define HOST_DEPART 'd' // run the guest to the point where it is moved, and read its state into transit
#define HOST_RESUME 'r' // the guest stays after all: run it until it has checked itself
#define HOST_END    'x'
#define HOST_READY  'R' // there, with a guest that has checked itself (but on the first host)
#define HOST_STOPS  'S' // something was refused; this host has no guest
#define HOST_DONE   'D'
#define HOST_DIED   'X' // the guest did not reach the point
#define HOST_FAILED 'F' // a message has been written
#define HOST_BAD    'B' // so has it, and it is about the description

struct host_process {
	pid_t pid;
	int orders, answers;
};

// Starts the host of path[position]. 0, or -1 after one line has been written.
int host_start(struct host_process *process, const struct fleet_description *description, unsigned position,
	       struct transit *transit);
// Waits for an answer; HOST_FAILED if the process is gone.
int host_answer(struct host_process *process);
void host_order(struct host_process *process, char order);
void host_stop(struct host_process *process);

#endif
