// SPDX-License-Identifier: MIT
// Which device answers at which I/O port.
#include "vmm/bus.h"

#include <assert.h>
#include <stddef.h>

void port_bus_add(struct port_bus *bus, const struct port_device *device)
{
	unsigned i;

	assert(bus->count < BUS_DEVICES);
	for (i = 0; i < bus->count; i++)
		assert(device->first >= bus->devices[i].first + bus->devices[i].count ||
		       bus->devices[i].first >= device->first + device->count);
	bus->devices[bus->count++] = *device;
}

static const struct port_device *port_bus_find(const struct port_bus *bus, uint16_t port)
{
	unsigned i;

	for (i = 0; i < bus->count; i++)
		if (port >= bus->devices[i].first && port - bus->devices[i].first < bus->devices[i].count)
			return &bus->devices[i];
	return NULL;
}

uint32_t port_bus_read(const struct port_bus *bus, uint16_t port, unsigned size)
{
	const struct port_device *device = port_bus_find(bus, port);

	return device ? device->read(device->opaque, port - device->first, size) : 0xffffffffu;
}

void port_bus_write(const struct port_bus *bus, uint16_t port, uint32_t value, unsigned size)
{
	const struct port_device *device = port_bus_find(bus, port);

	if (device)
		device->write(device->opaque, port - device->first, value, size);
}
