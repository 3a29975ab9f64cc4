// SPDX-License-Identifier: MIT
// The board's devices under a hostile guest: two vCPUs' worth of random port accesses, of every width, and
// input meanwhile. Whatever the guest does, nothing outside the devices changes, interrupt lines change
// level each time they are driven, and a value is no wider than its access. The sanitized builds judge
// the rest. Usage: ports [ACCESSES [SEED]]
#include "vmm/console.h"
#include "vmm/devices.h"
#include "vmm/machine.h"

#include "../lib/tap.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MEMORY_SIZE (16ull << 20)
#define THREADS     2

static struct machine machine;
static unsigned long accesses;
static atomic_int wrong_lines, wrong_values, raised, running = THREADS;
static int line_level; // the devices' own lock orders this

static int fake_ioctl(int fd, unsigned long request, void *argument)
{
	const struct kvm_irq_level *line = argument;

	if (request != KVM_IRQ_LINE || line->irq != SERIAL_IRQ || (int)line->level == line_level)
		wrong_lines++;
	raised += line->level;
	line_level = (int)line->level;
	return 0;
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull;
}

static void *hammer(void *argument)
{
	static const uint16_t ports[] = { 0x20, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0xf4, 0xf7, SERIAL_PORT, SERIAL_PORT + 1,
					  SERIAL_PORT + 4, SERIAL_PORT + 7, EXIT_PORT, PANIC_PORT, PM1_EVENT_PORT,
					  PM1_CONTROL_PORT, PM_TIMER_PORT, 0xcf8, RESET_PORT, 0xcfc, 0xcff, 0xffff };
	uint64_t state = (uintptr_t)argument;

	for (unsigned long i = 0; i < accesses; i++) {
		uint64_t r = random_next(&state);
		uint16_t port = r & 1 ? SERIAL_PORT + (r >> 8 & 7) : ports[(r >> 8) % (sizeof(ports) / sizeof(ports[0]))];
		unsigned size = 1u << (r >> 20) % 3;
		uint32_t mask = size == 4 ? ~0u : (1u << 8 * size) - 1;

		if (r & 2)
			port_bus_write(&machine.ports, port, (uint32_t)(r >> 32) & mask, size);
		else if (port == RESET_PORT && port_bus_read(&machine.ports, port, size))
			wrong_values++; // it reads as 0
		else
			(void)port_bus_read(&machine.ports, port, size);
		if (!(i % 64))
			machine.end = MACHINE_RUNNING;
	}
	running--;
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct vmm_config config = { .memory_size = MEMORY_SIZE, .vcpus = THREADS };
	static const struct kvm_backend backend = { .name = "fake", .ioctl = fake_ioctl };
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, state = seed;
	pthread_t threads[THREADS];
	int output = dup(STDOUT_FILENO), quiet = open("/dev/null", O_RDWR | O_CLOEXEC);
	unsigned taken = 0;

	accesses = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000000;
	dup2(quiet, STDIN_FILENO);
	dup2(quiet, STDOUT_FILENO);
	machine.config = &config;
	machine.kvm = &backend;
	machine.end = MACHINE_RUNNING;
	machine.end_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	machine.console = console_create(0, true);
	pthread_mutex_init(&machine.end_lock, NULL);
	if (!machine.console || guest_memory_create(&machine.memory, MEMORY_SIZE) < 0 || serial_create(&machine) < 0 ||
	    rtc_create(&machine) < 0 || i8042_create(&machine) < 0 || pm_create(&machine) < 0 || pci_create(&machine) < 0)
		return 1;
	exit_ports_create(&machine);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, hammer, (void *)(uintptr_t)(seed * 2 + i + 1));
	while (running) {
		uint64_t bytes = random_next(&state);

		if (serial_wants_input(&machine))
			taken += (unsigned)serial_input(&machine, (uint8_t *)&bytes, sizeof(bytes));
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	dup2(output, STDOUT_FILENO);
	is(wrong_lines, 0, "only the serial port's line is driven, and changes each time");
	ok(raised > 0, "and it is");
	is(wrong_values, 0, "what can only be written reads as 0");
	ok(taken > 0, "input gets in meanwhile");
	is(port_bus_read(&machine.ports, 0x5555, 1), 0xffffffff, "a port of nobody's floats");
	// Back to what a driver does: still a 16550A, an 8042 and a host bridge.
	port_bus_write(&machine.ports, SERIAL_PORT + 3, 0x03, 1);
	port_bus_write(&machine.ports, SERIAL_PORT + 7, 0xa5, 1);
	is(port_bus_read(&machine.ports, SERIAL_PORT + 7, 1), 0xa5, "the serial port still works");
	port_bus_write(&machine.ports, 0x64, 0xaa, 1);
	is(port_bus_read(&machine.ports, 0x60, 1), 0x55, "so does the keyboard controller");
	port_bus_write(&machine.ports, 0xcf8, 0x80000000u, 4);
	is(port_bus_read(&machine.ports, 0xcfc, 4) & 0xffff, 0x1b36, "and PCI configuration");
	serial_destroy(&machine);
	rtc_destroy(&machine);
	i8042_destroy(&machine);
	pm_destroy(&machine);
	pci_destroy(&machine);
	console_destroy(machine.console);
	guest_memory_destroy(&machine.memory);
	return done_testing();
}
