// SPDX-License-Identifier: MIT
// The terminal. Output is collected and written when a line ends, when the buffer is full, or a few
// milliseconds after its first byte. Input waits in a small queue until the guest listens.
//
// The terminal must be given back whatever happens: console_destroy() on the ordinary way, atexit()
// and handlers of deadly signals on the others. The library puts its own handlers before those, and
// calls them when a fault was not the guest's.
#include "vmm/console.h"

#include "vmm/devices.h"
#include "vmm/machine.h"
#include "vmm/message.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OUTPUT_SIZE     4096
#define INPUT_SIZE      4096
#define OUTPUT_DELAY_MS 4
#define DRAIN_MS        1000 // at the end, for output that nobody takes

#define KEY_ESCAPE      0x01 // Ctrl-A
#define KEY_END_OF_FILE 0x04 // Ctrl-D

struct console {
	pthread_mutex_t lock; // output buffer
	uint8_t output[OUTPUT_SIZE];
	unsigned output_count;

	uint8_t input[INPUT_SIZE];
	unsigned input_start, input_count;
	bool escape;           // Ctrl-A was typed
	bool input_is_terminal, input_open, own_init;
	atomic_bool held;      // until our init has set up the guest's terminal
	bool at_line_start;    // the last byte of input ended a line

	atomic_int output_error; // errno of the first output that did not get out
	atomic_bool ending;      // a vCPU that waits for its output to be taken leaves it to console_drain()
	int wake_event, flush_timer, signal_fd;
	unsigned timeout;
	struct timespec deadline;
};

static struct termios saved_terminal;
static volatile sig_atomic_t terminal_changed;

static void terminal_restore(void)
{
	if (terminal_changed) {
		terminal_changed = 0;
		tcsetattr(STDIN_FILENO, TCSANOW, &saved_terminal);
	}
}

static void terminal_die(int number)
{
	terminal_restore();
	signal(number, SIG_DFL);
	raise(number);
}

// Raw input, so that every key goes to the guest. Output processing stays: our own messages and a
// guest that writes bare newlines look right.
static bool terminal_set_raw(void)
{
	static const int deadly[] = { SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE };
	struct sigaction action = { .sa_handler = terminal_die, .sa_flags = SA_NODEFER };
	struct termios raw;
	static bool registered;
	unsigned i;

	// A background process would be stopped for touching the terminal.
	if (!isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) != getpgrp())
		return false;
	if (!terminal_changed && tcgetattr(STDIN_FILENO, &saved_terminal) < 0)
		return false;
	if (!registered) {
		atexit(terminal_restore);
		for (i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
			sigaction(deadly[i], &action, NULL);
		registered = true;
	}
	raw = saved_terminal;
	raw.c_iflag &= ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	raw.c_lflag &= ~(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
	raw.c_cflag &= ~(CSIZE | PARENB);
	raw.c_cflag |= CS8;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	terminal_changed = 1;
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	return true;
}

void console_wake(struct console *console)
{
	uint64_t one = 1;

	if (write(console->wake_event, &one, sizeof(one)) < 0)
		return; // the counter is full: it is awake already
}

// Writes as much as one write() takes; it may wait. False: it was interrupted, or none can be taken now.
static bool console_write_locked(struct console *console)
{
	ssize_t n = write(STDOUT_FILENO, console->output, console->output_count);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return false;
	if (n < 0) {
		if (!console->output_error)
			console->output_error = errno;
		console_wake(console);
		n = console->output_count; // lost
	}
	console->output_count -= n;
	memmove(console->output, console->output + n, console->output_count);
	return true;
}

// On a vCPU's thread, which waits until its output is taken, or the machine ends: then kicks interrupt it.
static void console_flush_locked(struct console *console)
{
	struct pollfd wait = { .fd = STDOUT_FILENO, .events = POLLOUT };

	while (console->output_count && !console->ending)
		if (!console_write_locked(console))
			poll(&wait, 1, -1);
	if (console->output_count == OUTPUT_SIZE)
		console->output_count = 0; // and there is no room for more
}

// On the console's thread, which must not wait: false if there is something left.
static bool console_try_flush(struct console *console)
{
	struct pollfd wait = { .fd = STDOUT_FILENO, .events = POLLOUT };
	bool done;

	if (pthread_mutex_trylock(&console->lock))
		return false; // a vCPU is at it
	// A pipe that can be written takes the whole buffer; a terminal is waited for.
	while (console->output_count && poll(&wait, 1, 0) > 0 && console_write_locked(console))
		;
	done = !console->output_count;
	pthread_mutex_unlock(&console->lock);
	return done;
}

static void console_flush_soon(struct console *console)
{
	const struct itimerspec delay = { .it_value.tv_nsec = OUTPUT_DELAY_MS * 1000000 };

	timerfd_settime(console->flush_timer, 0, &delay, NULL);
}

void console_output(struct console *console, uint8_t byte)
{
	pthread_mutex_lock(&console->lock);
	console->output[console->output_count++] = byte;
	if (byte == '\n' || console->output_count == OUTPUT_SIZE)
		console_flush_locked(console);
	else if (console->output_count == 1)
		console_flush_soon(console);
	pthread_mutex_unlock(&console->lock);
}

void console_open_input(struct console *console)
{
	console->held = false;
	console_wake(console);
}

static void console_queue(struct console *console, uint8_t byte)
{
	if (console->input_count < INPUT_SIZE)
		console->input[(console->input_start + console->input_count++) % INPUT_SIZE] = byte;
}

// Ctrl-A x ends the run, Ctrl-A Ctrl-A (or Ctrl-A a) types a Ctrl-A.
static void console_key(struct console *console, struct machine *machine, uint8_t key)
{
	if (!console->escape && key == KEY_ESCAPE) {
		console->escape = true;
		return;
	}
	if (console->escape) {
		console->escape = false;
		if (key == 'x' || key == 'X' || key == 'q')
			machine_stop(machine, MACHINE_USER_QUIT, 0);
		else if (key == KEY_ESCAPE || key == 'a')
			console_queue(console, KEY_ESCAPE);
		return;
	}
	console_queue(console, key);
}

// The guest's terminal takes Ctrl-D for the end only at the start of a line; elsewhere the first one
// hands over the unfinished line.
static void console_end_of_input(struct console *console)
{
	console->input_open = false;
	if (!console->own_init || console->input_is_terminal)
		return;
	console_queue(console, KEY_END_OF_FILE);
	if (!console->at_line_start)
		console_queue(console, KEY_END_OF_FILE);
}

static void console_read_input(struct console *console, struct machine *machine)
{
	uint8_t data[512];
	size_t room = INPUT_SIZE - console->input_count;
	ssize_t n, i;

	// Two places are kept for the end-of-input keys.
	n = read(STDIN_FILENO, data, room - 2 < sizeof(data) ? room - 2 : sizeof(data));
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		console_end_of_input(console);
		return;
	}
	for (i = 0; i < n; i++) {
		if (console->input_is_terminal)
			console_key(console, machine, data[i]);
		else
			console_queue(console, data[i]);
		console->at_line_start = data[i] == '\n';
	}
}

static void console_feed(struct console *console, struct machine *machine)
{
	while (!console->held && console->input_count && serial_wants_input(machine)) {
		unsigned run = INPUT_SIZE - console->input_start, taken;

		if (run > console->input_count)
			run = console->input_count;
		taken = serial_input(machine, console->input + console->input_start, run);
		console->input_start = (console->input_start + taken) % INPUT_SIZE;
		console->input_count -= taken;
		if (!taken)
			return;
	}
}

static int console_wait_ms(const struct console *console)
{
	struct timespec now;
	int64_t ms;

	if (!console->timeout)
		return -1;
	clock_gettime(CLOCK_MONOTONIC, &now);
	ms = (console->deadline.tv_sec - now.tv_sec) * 1000ll + (console->deadline.tv_nsec - now.tv_nsec) / 1000000 + 1;
	return ms < 0 ? 0 : ms > 1000000 ? 1000000 : ms;
}

static void console_take_terminal(struct console *console)
{
	if (isatty(STDIN_FILENO))
		console->input_is_terminal = console->input_open = terminal_set_raw();
}

// Stopped, the process leaves the terminal as it was; going on, it takes it again if it may.
static void console_stop_process(struct console *console)
{
	sigset_t stop;

	terminal_restore();
	sigemptyset(&stop);
	sigaddset(&stop, SIGTSTP);
	raise(SIGTSTP);
	pthread_sigmask(SIG_UNBLOCK, &stop, NULL); // here it stops, unless nobody could let it go on
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	console_take_terminal(console);
}

static void console_take_signal(struct console *console, struct machine *machine)
{
	struct signalfd_siginfo info;

	if (read(console->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGTSTP)
		console_stop_process(console);
	else if (info.ssi_signo == SIGCONT)
		console_take_terminal(console); // after SIGSTOP, which cannot be seen, or out of the background
	else
		machine_stop(machine, MACHINE_SIGNAL, info.ssi_signo);
}

// A guest whose output nobody takes need not go on: as other programs, the run ends by SIGPIPE.
static void console_check_output(struct console *console, struct machine *machine)
{
	if (console->output_error == EPIPE)
		machine_stop(machine, MACHINE_SIGNAL, SIGPIPE);
	else if (console->output_error)
		machine_stop(machine, MACHINE_FAILED, 0);
}

int console_output_error(const struct console *console)
{
	return console->output_error;
}

void console_run(struct console *console, struct machine *machine)
{
	enum { WAIT_END, WAIT_WAKE, WAIT_FLUSH, WAIT_SIGNAL, WAIT_INPUT, WAITS };
	struct pollfd wait[WAITS] = {
		{ .fd = machine->end_event, .events = POLLIN },
		{ .fd = console->wake_event, .events = POLLIN },
		{ .fd = console->flush_timer, .events = POLLIN },
		{ .fd = console->signal_fd, .events = POLLIN },
		{ .fd = STDIN_FILENO, .events = POLLIN },
	};
	uint64_t count;

	console->ending = false;
	console->held = console->own_init;
	if (!console->input_open)
		console_end_of_input(console); // a rebooted guest has to learn it too
	while (machine->end == MACHINE_RUNNING) {
		wait[WAIT_INPUT].fd =
			console->input_open && console->input_count < INPUT_SIZE - 3 ? STDIN_FILENO : -1;
		if (poll(wait, WAITS, console_wait_ms(console)) < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		if (console->timeout && console_wait_ms(console) == 0)
			machine_stop(machine, MACHINE_TIMEOUT, 0);
		if (wait[WAIT_WAKE].revents && read(console->wake_event, &count, sizeof(count)) < 0)
			continue;
		if (wait[WAIT_FLUSH].revents && read(console->flush_timer, &count, sizeof(count)) > 0 &&
		    !console_try_flush(console))
			console_flush_soon(console);
		if (wait[WAIT_SIGNAL].revents)
			console_take_signal(console, machine);
		console_check_output(console, machine);
		if (wait[WAIT_INPUT].fd >= 0 && wait[WAIT_INPUT].revents)
			console_read_input(console, machine);
		console_feed(console, machine);
	}
	console->ending = true;
}

void console_drain(struct console *console, bool patiently)
{
	struct pollfd wait[] = { { .fd = STDOUT_FILENO, .events = POLLOUT }, { .fd = console->signal_fd, .events = POLLIN } };

	while (!console_try_flush(console)) {
		int ready = poll(wait, 2, patiently ? console_wait_ms(console) : DRAIN_MS);

		if ((ready == 0 && (!patiently || console_wait_ms(console) == 0)) || (ready > 0 && wait[1].revents))
			return;
	}
}

struct console *console_create(unsigned timeout, bool own_init)
{
	struct console *console = calloc(1, sizeof(*console));
	sigset_t signals;

	if (!console)
		return NULL;
	pthread_mutex_init(&console->lock, NULL);
	console->own_init = own_init;
	console->at_line_start = true;
	console->input_open = true;
	console->timeout = timeout;
	clock_gettime(CLOCK_MONOTONIC, &console->deadline);
	console->deadline.tv_sec += timeout;
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGQUIT);
	sigaddset(&signals, SIGTSTP);
	sigaddset(&signals, SIGCONT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	console->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	console->wake_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	console->flush_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (console->signal_fd < 0 || console->wake_event < 0 || console->flush_timer < 0) {
		vmm_message("cannot set up the console: %s", strerror(errno));
		free(console);
		return NULL;
	}
	console_take_terminal(console);
	return console;
}

void console_destroy(struct console *console)
{
	terminal_restore();
	close(console->signal_fd);
	close(console->wake_event);
	close(console->flush_timer);
	free(console);
}
