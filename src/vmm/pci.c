// SPDX-License-Identifier: MIT
// No PCI: the configuration address register is not there, so a guest that writes and reads it back
// knows at once and does not scan. POST codes (0x80) are accepted and dropped.
#include "vmm/devices.h"
#include "vmm/machine.h"

static uint32_t nothing_read(void *opaque, uint16_t offset, unsigned size)
{
	return 0xffffffffu;
}

static void nothing_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
}

void pci_create(struct machine *machine)
{
	const struct port_device devices[] = {
		{ 0xcf8, 1, nothing_read, nothing_write, NULL },
		{ 0xcfc, 4, nothing_read, nothing_write, NULL },
		{ 0x80, 1, nothing_read, nothing_write, NULL },
	};
	unsigned i;

	for (i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
		port_bus_add(&machine->ports, &devices[i]);
}
