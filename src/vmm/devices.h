// SPDX-License-Identifier: MIT
// The board's devices. Each file claims its ports and keeps its state in the machine.
#ifndef CETKVM_VMM_DEVICES_H
#define CETKVM_VMM_DEVICES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct machine;

int serial_create(struct machine *machine);
void serial_destroy(struct machine *machine);
// Bytes from the terminal. Returns how many were taken; the rest must be offered again later.
size_t serial_input(struct machine *machine, const uint8_t *data, size_t length);
// True when serial_input() would take at least one byte.
bool serial_wants_input(struct machine *machine);

int rtc_create(struct machine *machine);
void rtc_destroy(struct machine *machine);
int i8042_create(struct machine *machine);
void i8042_destroy(struct machine *machine);
int pm_create(struct machine *machine);
void pm_destroy(struct machine *machine);
void exit_ports_create(struct machine *machine);
int pci_create(struct machine *machine);
void pci_destroy(struct machine *machine);

// Ports that the ACPI tables name.
#define PM1_EVENT_PORT   0x600
#define PM1_CONTROL_PORT 0x604
#define PM_TIMER_PORT    0x608
#define RESET_PORT       0xcf9
#define RESET_VALUE      0x06
#define SLEEP_TYPE_S5    5
#define PANIC_PORT       0x505
#define EXIT_PORT        0x501
#define SCI_IRQ          9
#define SERIAL_PORT      0x3f8
#define SERIAL_IRQ       4

#endif
