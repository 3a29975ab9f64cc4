// SPDX-License-Identifier: MIT
// Guest RAM: allocation and bounds-checked access.
#include "vmm/memory.h"

#include "vmm/message.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int guest_memory_create(struct guest_memory *memory, uint64_t size)
{
	memory->size = size;
	memory->low_size = size < MEMORY_HOLE_START ? size : MEMORY_HOLE_START;
	memory->high_size = size - memory->low_size;
	// Pages come as the guest touches them: a big idle guest costs little.
	memory->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory->host == MAP_FAILED) {
		memory->host = NULL;
		vmm_message("cannot reserve %llu MiB of guest memory: %s; give less with --mem", (unsigned long long)(size >> 20),
			    strerror(errno));
		return -1;
	}
	return 0;
}

void guest_memory_destroy(struct guest_memory *memory)
{
	if (memory->host)
		munmap(memory->host, memory->size);
	memory->host = NULL;
}

void *guest_memory_at(const struct guest_memory *memory, uint64_t address, uint64_t length)
{
	if (address < memory->low_size && length <= memory->low_size - address)
		return memory->host + address;
	if (address >= MEMORY_HOLE_END && address - MEMORY_HOLE_END < memory->high_size &&
	    length <= memory->high_size - (address - MEMORY_HOLE_END))
		return memory->host + memory->low_size + (address - MEMORY_HOLE_END);
	return NULL;
}

bool guest_memory_write(const struct guest_memory *memory, uint64_t address, const void *from, uint64_t length)
{
	void *to = guest_memory_at(memory, address, length);

	if (!to)
		return false;
	memcpy(to, from, length);
	return true;
}
