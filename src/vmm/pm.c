// SPDX-License-Identifier: MIT
// ACPI fixed hardware: PM1 event and control blocks, the power management timer, and the reset
// register. Nothing raises the SCI: there are no buttons. Source: ACPI specification, chapter
// "ACPI Hardware Specification".
#include "vmm/devices.h"
#include "vmm/machine.h"

#include <stdlib.h>
#include <time.h>

#define PM_TIMER_HZ 3579545u

#define PM1_CONTROL_SCI_ENABLE 0x0001
#define PM1_CONTROL_SLEEP_ENABLE 0x2000
#define PM1_CONTROL_SLEEP_TYPE(value) ((value) >> 10 & 7)

#define RESET_CPU 0x04 // the bit whose rise resets the processor

struct pm {
	struct machine *machine;
	atomic_uint enable, control;
	struct timespec start;
};

static uint32_t pm_timer(const struct pm *pm)
{
	struct timespec now;
	uint64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ns = (now.tv_sec - pm->start.tv_sec) * 1000000000ull + now.tv_nsec - pm->start.tv_nsec;
	return (unsigned __int128)ns * PM_TIMER_HZ / 1000000000u & 0xffffff; // a 24-bit timer
}

static uint32_t pm_read(void *opaque, uint16_t offset, unsigned size)
{
	struct pm *pm = opaque;

	switch (offset + PM1_EVENT_PORT) {
	case PM1_EVENT_PORT:
		return size == 4 ? pm->enable << 16 : 0; // status: no event is ever pending
	case PM1_EVENT_PORT + 2:
		return pm->enable;
	case PM1_CONTROL_PORT:
		return pm->control;
	case PM_TIMER_PORT:
		return pm_timer(pm);
	default:
		return 0;
	}
}

static void pm_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	struct pm *pm = opaque;

	switch (offset + PM1_EVENT_PORT) {
	case PM1_EVENT_PORT:
		if (size == 4)
			pm->enable = value >> 16;
		break;
	case PM1_EVENT_PORT + 2:
		pm->enable = value & 0xffff;
		break;
	case PM1_CONTROL_PORT:
		pm->control = (value & 0xffff & ~PM1_CONTROL_SLEEP_ENABLE) | PM1_CONTROL_SCI_ENABLE;
		if ((value & PM1_CONTROL_SLEEP_ENABLE) && PM1_CONTROL_SLEEP_TYPE(value) == SLEEP_TYPE_S5)
			machine_stop(pm->machine, MACHINE_POWERED_OFF, 0);
		break;
	}
}

static uint32_t reset_read(void *opaque, uint16_t offset, unsigned size)
{
	return 0;
}

static void reset_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	if (value & RESET_CPU)
		machine_stop(opaque, MACHINE_RESET, 0);
}

int pm_create(struct machine *machine)
{
	struct pm *pm = calloc(1, sizeof(*pm));
	struct port_device blocks = {
		.first = PM1_EVENT_PORT, .count = 12, .read = pm_read, .write = pm_write, .opaque = pm,
	};
	struct port_device reset = {
		.first = RESET_PORT, .count = 1, .read = reset_read, .write = reset_write, .opaque = machine,
	};

	if (!pm)
		return -1;
	pm->machine = machine;
	pm->control = PM1_CONTROL_SCI_ENABLE; // no legacy mode to switch from
	clock_gettime(CLOCK_MONOTONIC, &pm->start);
	machine->pm = pm;
	port_bus_add(&machine->ports, &blocks);
	port_bus_add(&machine->ports, &reset);
	return 0;
}

void pm_destroy(struct machine *machine)
{
	free(machine->pm);
	machine->pm = NULL;
}
