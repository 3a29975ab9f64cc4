// SPDX-License-Identifier: MIT
// Guest RAM: one range from 0 up to at most 3 GiB, and what does not fit there from 4 GiB up. The
// gigabyte between belongs to devices, the local APICs, the I/O APIC and KVM's own pages.
#ifndef CETKVM_VMM_MEMORY_H
#define CETKVM_VMM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_HOLE_START 0xc0000000ull
#define MEMORY_HOLE_END   0x100000000ull

struct guest_memory {
	uint8_t *host;       // one mapping: low part first, high part right behind it
	uint64_t size;
	uint64_t low_size;   // [0, low_size)
	uint64_t high_size;  // [4 GiB, 4 GiB + high_size)
};

int guest_memory_create(struct guest_memory *memory, uint64_t size);
void guest_memory_destroy(struct guest_memory *memory);

// Host address of a range, or NULL if any byte of it is not RAM.
void *guest_memory_at(const struct guest_memory *memory, uint64_t address, uint64_t length);

// Copies into guest RAM; false if the range is not RAM.
bool guest_memory_write(const struct guest_memory *memory, uint64_t address, const void *from, uint64_t length);

#endif
