// SPDX-License-Identifier: MIT
// ACPI tables of the board.
#ifndef CETKVM_VMM_ACPI_H
#define CETKVM_VMM_ACPI_H

#include "vmm/memory.h"

// Writes all tables below 1 MiB and returns the physical address of the RSDP.
uint64_t acpi_write_tables(const struct guest_memory *memory, unsigned vcpus);

#endif
