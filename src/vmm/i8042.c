// SPDX-License-Identifier: MIT
// An 8042 with neither keyboard nor mouse: enough for its self test, the A20 line, and the pulse on
// the reset line that PCs reboot by. Port 0x92 offers the same two lines.
#include "vmm/devices.h"
#include "vmm/machine.h"

#include <pthread.h>
#include <stdlib.h>

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM      0x04
#define STATUS_UNLOCKED    0x10

#define COMMAND_READ_CONFIG   0x20
#define COMMAND_WRITE_CONFIG  0x60
#define COMMAND_TEST_AUX      0xa9
#define COMMAND_SELF_TEST     0xaa
#define COMMAND_TEST_KEYBOARD 0xab
#define COMMAND_READ_OUTPUT   0xd0
#define COMMAND_WRITE_OUTPUT  0xd1
#define COMMAND_PULSE         0xf0 // low nibble: lines to pulse, active low; line 0 is reset

#define OUTPUT_RESET_HIGH 0x01
#define OUTPUT_A20        0x02

struct i8042 {
	pthread_mutex_t lock;
	struct machine *machine;
	bool output_full;
	uint8_t output, command, config;
};

static void i8042_answer(struct i8042 *kbd, uint8_t byte)
{
	kbd->output = byte;
	kbd->output_full = true;
}

static void i8042_command(struct i8042 *kbd, uint8_t command)
{
	kbd->command = 0;
	switch (command) {
	case COMMAND_READ_CONFIG:
		i8042_answer(kbd, kbd->config);
		break;
	case COMMAND_WRITE_CONFIG:
	case COMMAND_WRITE_OUTPUT:
		kbd->command = command;
		break;
	case COMMAND_SELF_TEST:
		i8042_answer(kbd, 0x55);
		break;
	case COMMAND_TEST_KEYBOARD:
		i8042_answer(kbd, 0x00);
		break;
	case COMMAND_TEST_AUX:
		i8042_answer(kbd, 0xff);
		break;
	case COMMAND_READ_OUTPUT:
		i8042_answer(kbd, OUTPUT_RESET_HIGH | OUTPUT_A20);
		break;
	default:
		if ((command & 0xf0) == COMMAND_PULSE && !(command & 1))
			machine_stop(kbd->machine, MACHINE_RESET, 0);
		break;
	}
}

static void i8042_data(struct i8042 *kbd, uint8_t byte)
{
	if (kbd->command == COMMAND_WRITE_CONFIG)
		kbd->config = byte;
	else if (kbd->command == COMMAND_WRITE_OUTPUT && !(byte & OUTPUT_RESET_HIGH))
		machine_stop(kbd->machine, MACHINE_RESET, 0);
	kbd->command = 0;
}

static uint32_t i8042_read(void *opaque, uint16_t offset, unsigned size)
{
	struct i8042 *kbd = opaque;
	uint8_t value = 0;

	pthread_mutex_lock(&kbd->lock);
	if (offset == 0) {
		value = kbd->output;
		kbd->output_full = false;
	} else if (offset == 4) {
		value = STATUS_SYSTEM | STATUS_UNLOCKED | (kbd->output_full ? STATUS_OUTPUT_FULL : 0);
	} else {
		value = 0xff; // 0x61 is the timer's, 0x62 and 0x63 are nobody's
	}
	pthread_mutex_unlock(&kbd->lock);
	return value;
}

static void i8042_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	struct i8042 *kbd = opaque;

	pthread_mutex_lock(&kbd->lock);
	if (offset == 0)
		i8042_data(kbd, value);
	else if (offset == 4)
		i8042_command(kbd, value);
	pthread_mutex_unlock(&kbd->lock);
}

static uint32_t port92_read(void *opaque, uint16_t offset, unsigned size)
{
	return OUTPUT_A20;
}

static void port92_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	if (value & 1)
		machine_stop(opaque, MACHINE_RESET, 0);
}

int i8042_create(struct machine *machine)
{
	struct i8042 *kbd = calloc(1, sizeof(*kbd));
	struct port_device keyboard = {
		.first = 0x60, .count = 5, .read = i8042_read, .write = i8042_write, .opaque = kbd,
	};
	struct port_device port92 = {
		.first = 0x92, .count = 1, .read = port92_read, .write = port92_write, .opaque = machine,
	};

	if (!kbd)
		return -1;
	pthread_mutex_init(&kbd->lock, NULL);
	kbd->machine = machine;
	machine->i8042 = kbd;
	port_bus_add(&machine->ports, &keyboard);
	port_bus_add(&machine->ports, &port92);
	return 0;
}

void i8042_destroy(struct machine *machine)
{
	free(machine->i8042);
	machine->i8042 = NULL;
}
