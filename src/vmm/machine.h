// SPDX-License-Identifier: MIT
// One virtual machine from creation to its end. Everything a machine owns hangs off this struct,
// so a reboot is: destroy it, make another.
#ifndef CETKVM_VMM_MACHINE_H
#define CETKVM_VMM_MACHINE_H

#include "vmm/backend.h"
#include "vmm/bus.h"
#include "vmm/memory.h"
#include "vmm/vmm.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// Why a machine ended.
enum machine_end {
	MACHINE_RUNNING,
	MACHINE_POWERED_OFF,
	MACHINE_RESET,
	MACHINE_EXIT_PORT,    // the guest named an exit status
	MACHINE_TRIPLE_FAULT,
	MACHINE_PANICKED,
	MACHINE_FAILED,       // KVM could not go on
	MACHINE_USER_QUIT,
	MACHINE_SIGNAL,
	MACHINE_TIMEOUT,
};

struct vcpu {
	struct machine *machine;
	unsigned index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool thread_started;
	atomic_bool thread_ended;
};

struct serial;
struct console;
struct kernel_image;

struct machine {
	const struct vmm_config *config;
	const struct kvm_backend *kvm;
	int kvm_fd, vm_fd;
	size_t run_size;
	struct guest_memory memory;
	struct port_bus ports;
	struct vcpu *vcpus;
	unsigned vcpu_count;
	struct kvm_cpuid2 *cpuid; // the boot processor's; others differ in their APIC id

	struct serial *serial;
	struct console *console;
	void *rtc, *i8042, *pm, *pci; // owned by their files

	pthread_mutex_t end_lock;
	atomic_int end;  // enum machine_end; set once
	int end_value;   // exit status or signal, according to end
	int end_event;   // eventfd that wakes the console loop
	char panic[200]; // what the guest said when it panicked, or empty
};

// Creates the machine, loads the guest and leaves every vCPU ready to run. On failure one line has
// been written, and the status to exit with is returned; 0 on success.
int machine_create(struct machine *machine, const struct vmm_config *config, const struct kernel_image *image,
		   struct console *console);
void machine_start(struct machine *machine);
// Waits until no vCPU runs any more, after machine_stop().
void machine_join(struct machine *machine);
void machine_destroy(struct machine *machine);

// Ends the machine: the first reason stays. Callable from any thread.
void machine_stop(struct machine *machine, enum machine_end end, int value);

// Drives an interrupt line of the in-kernel interrupt controllers.
void machine_irq(struct machine *machine, unsigned gsi, bool level);

// Called with each complete line the guest wrote to its serial port.
void machine_console_line(struct machine *machine, const char *line);

#endif
