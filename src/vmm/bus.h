// SPDX-License-Identifier: MIT
// Which device answers at which I/O port. Devices of this board have ports only; memory-mapped
// accesses that reach the VMM find nobody and read as all ones.
#ifndef CETKVM_VMM_BUS_H
#define CETKVM_VMM_BUS_H

#include <stdint.h>

#define BUS_DEVICES 16

struct port_device {
	uint16_t first, count;
	// Offsets are relative to first. size is 1, 2 or 4. Called from any vCPU's thread.
	uint32_t (*read)(void *opaque, uint16_t offset, unsigned size);
	void (*write)(void *opaque, uint16_t offset, uint32_t value, unsigned size);
	void *opaque;
};

struct port_bus {
	struct port_device devices[BUS_DEVICES];
	unsigned count;
};

// first..first+count-1 must not overlap what is there already.
void port_bus_add(struct port_bus *bus, const struct port_device *device);
uint32_t port_bus_read(const struct port_bus *bus, uint16_t port, unsigned size);
void port_bus_write(const struct port_bus *bus, uint16_t port, uint32_t value, unsigned size);

#endif
