// SPDX-License-Identifier: MIT
// The terminal: raw mode while a guest runs, the escape key, buffered output, and the loop in which
// the main thread waits for the guest's end. Lives through reboots.
#ifndef CETKVM_VMM_CONSOLE_H
#define CETKVM_VMM_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

struct console;
struct machine;

// Also takes over SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP and SIGCONT: call before any thread is made.
// own_init: the guest runs our init, which says when it takes input and must be told of its end.
struct console *console_create(unsigned timeout, bool own_init);
// Gives the terminal back as it was.
void console_destroy(struct console *console);

// From vCPU threads: a byte to show; something may have changed about wanting input.
void console_output(struct console *console, uint8_t byte);
void console_wake(struct console *console);
// The guest's terminal is ready for input held back by own_init.
void console_open_input(struct console *console);

// Serves the terminal until the machine has ended.
void console_run(struct console *console, struct machine *machine);
// Writes what is left, when no vCPU runs any more. patiently: for as long as it takes, or until a signal or
// the end of the time.
void console_drain(struct console *console, bool patiently);
// The errno of the first output that could not be written, or 0. For the thread of console_run().
int console_output_error(const struct console *console);

#endif
