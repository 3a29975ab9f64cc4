// SPDX-License-Identifier: MIT
// What a boot loader leaves behind: boot_params, command line, page tables, descriptor tables, and
// the first vCPU's registers.
#ifndef CETKVM_VMM_BOOT_H
#define CETKVM_VMM_BOOT_H

#include "vmm/kernel.h"

struct machine;

// Writes the tables into guest memory. rsdp: physical address of ACPI's root pointer.
void boot_prepare_memory(struct machine *machine, const struct kernel_image *image,
			 const struct kernel_placement *placement, uint64_t rsdp);

// Sets the registers of the boot processor. Writes one line and returns -1 on failure.
int boot_set_registers(struct machine *machine, const struct kernel_image *image,
		       const struct kernel_placement *placement);

#endif
