// SPDX-License-Identifier: MIT
// Ports by which a guest ends the run or says that it is dying. cetkvm-run(1) documents them.
//   0x501  the low byte written is the exit status of `cetkvm run`; reading it says that the guest's
//          terminal is set up, and opens the gate for input if the command line closed it
//   0xf4   kvm-unit-tests' and QEMU's isa-debug-exit: status = value * 2 + 1
//   0x505  pvpanic: bit 0 announces a panic
#include "vmm/console.h"
#include "vmm/devices.h"
#include "vmm/machine.h"

#define DEBUG_EXIT_PORT 0xf4

#define PVPANIC_PANICKED     0x01
#define PVPANIC_CRASH_LOADED 0x02

static uint32_t exit_port_read(void *opaque, uint16_t offset, unsigned size)
{
	struct machine *machine = opaque;

	console_open_input(machine->console);
	return 0;
}

static uint32_t debug_exit_read(void *opaque, uint16_t offset, unsigned size)
{
	return 0;
}

static void exit_port_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	machine_stop(opaque, MACHINE_EXIT_PORT, value & 0xff);
}

static void debug_exit_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	machine_stop(opaque, MACHINE_EXIT_PORT, (value << 1 | 1) & 0xff);
}

static uint32_t pvpanic_read(void *opaque, uint16_t offset, unsigned size)
{
	return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	if (value & PVPANIC_PANICKED)
		machine_stop(opaque, MACHINE_PANICKED, 0);
}

void exit_ports_create(struct machine *machine)
{
	const struct port_device devices[] = {
		{ EXIT_PORT, 1, exit_port_read, exit_port_write, machine },
		{ DEBUG_EXIT_PORT, 4, debug_exit_read, debug_exit_write, machine },
		{ PANIC_PORT, 1, pvpanic_read, pvpanic_write, machine },
	};
	unsigned i;

	for (i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
		port_bus_add(&machine->ports, &devices[i]);
}
