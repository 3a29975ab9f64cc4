// SPDX-License-Identifier: MIT
// PCI configuration mechanism #1 with a host bridge alone on bus 0. Linux complains loudly when there
// is no way to reach configuration space at all; with a bridge it finds nothing else, quickly.
// POST codes (0x80) are accepted and dropped. Source: PCI Local Bus Specification 3.0,
// "Configuration Space".
#include "vmm/devices.h"
#include "vmm/machine.h"

#include <stdlib.h>

#define ADDRESS_PORT 0xcf8
#define DATA_PORT    0xcfc

#define ADDRESS_ENABLE    0x80000000u
#define ADDRESS_FUNCTION  0x00ffff00u // bus, device and function

#define HOST_BRIDGE_ID    0x00081b36u // "generic host bridge"
#define HOST_BRIDGE_CLASS 0x06000000u

struct pci {
	atomic_uint address;
};

static uint32_t pci_config(uint32_t address)
{
	if (!(address & ADDRESS_ENABLE) || address & ADDRESS_FUNCTION)
		return 0xffffffffu; // nobody there
	switch (address & 0xfc) {
	case 0x00:
		return HOST_BRIDGE_ID;
	case 0x08:
		return HOST_BRIDGE_CLASS;
	default:
		return 0;
	}
}

static uint32_t address_read(void *opaque, uint16_t offset, unsigned size)
{
	struct pci *pci = opaque;

	return size == 4 ? pci->address : 0xffffffffu;
}

static void address_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	struct pci *pci = opaque;

	if (size == 4) // narrower ones are not configuration accesses
		pci->address = value;
}

static uint32_t data_read(void *opaque, uint16_t offset, unsigned size)
{
	struct pci *pci = opaque;

	return pci_config(pci->address) >> 8 * offset;
}

static void data_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	// Nothing in the bridge can be changed.
}

static uint32_t post_read(void *opaque, uint16_t offset, unsigned size)
{
	return 0xffffffffu;
}

static void post_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
}

int pci_create(struct machine *machine)
{
	struct pci *pci = calloc(1, sizeof(*pci));
	const struct port_device devices[] = {
		{ ADDRESS_PORT, 1, address_read, address_write, pci },
		{ DATA_PORT, 4, data_read, data_write, pci },
		{ 0x80, 1, post_read, post_write, NULL },
	};
	unsigned i;

	if (!pci)
		return -1;
	machine->pci = pci;
	for (i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
		port_bus_add(&machine->ports, &devices[i]);
	return 0;
}

void pci_destroy(struct machine *machine)
{
	free(machine->pci);
	machine->pci = NULL;
}
