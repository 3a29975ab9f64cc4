// SPDX-License-Identifier: MIT
// The guest's first program: mounts the usual file systems, runs one program on the serial console
// in a session of its own, and tells the VMM its exit status through the exit port. It is linked
// without any library, so it runs on every x86-64 Linux, and uses no stack protector for it has no
// thread block.
#define GUEST_INIT_SOURCE
#include "guest_init.h"

#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/reboot.h>
#include <linux/wait.h>
#include <stddef.h>
#include <stdint.h>

#define TERMINAL "/dev/ttyS0"

#define ORDERS_SIZE    (128 * 1024)
#define STRINGS_MAX    (ORDERS_SIZE / 2 + 2) // none is shorter than two bytes; and the ends of two lists
#define STATUS_NO_EXEC 127

void guest_init_main(void) __attribute__((noreturn, used));

// The stack is aligned as a function called from nowhere expects it.
__asm__(".globl _start\n"
	"_start:\n"
	"	endbr64\n"
	"	xor %ebp, %ebp\n"
	"	and $-16, %rsp\n"
	"	call guest_init_main\n"
	"	ud2\n");

static long call6(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

#define CALL(number, a, b, c) call6(number, (long)(a), (long)(b), (long)(c), 0, 0)

static size_t length_of(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static void say(const char *text)
{
	CALL(__NR_write, 2, text, length_of(text));
}

// Ends the machine. Should the port not be there, power-off is the next best.
static void finish(unsigned status) __attribute__((noreturn));

static void finish(unsigned status)
{
	CALL(__NR_ioctl, 1, TCSBRK, 1); // waits until output is sent
	if (CALL(__NR_iopl, 3, 0, 0) == 0)
		__asm__ volatile("outb %b0, %w1" : : "a"(status), "Nd"((uint16_t)INIT_EXIT_PORT));
	say("init: cannot report the exit status: no access to I/O ports\n");
	CALL(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF);
	for (;;)
		CALL(__NR_pause, 0, 0, 0);
}

// Input that was waiting for the terminal may come now. The program itself gets no ports.
static void ask_for_input(void)
{
	uint8_t ignored;

	if (CALL(__NR_iopl, 3, 0, 0) == 0)
		__asm__ volatile("inb %w1, %b0" : "=a"(ignored) : "Nd"((uint16_t)INIT_EXIT_PORT));
	CALL(__NR_iopl, 0, 0, 0);
}

static void mount_one(const char *type, const char *where)
{
	CALL(__NR_mkdir, where, 0755, 0);
	call6(__NR_mount, (long)type, (long)where, (long)type, 0, 0);
}

static void mount_all(void)
{
	mount_one("devtmpfs", "/dev");
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	// /tmp and /run are in memory as they are, and what was packed there must stay visible.
	mount_one("devpts", "/dev/pts");
	mount_one("tmpfs", "/dev/shm");
	CALL(__NR_symlink, "/proc/self/fd", "/dev/fd", 0);
	CALL(__NR_symlink, "/proc/self/fd/0", "/dev/stdin", 0);
	CALL(__NR_symlink, "/proc/self/fd/1", "/dev/stdout", 0);
	CALL(__NR_symlink, "/proc/self/fd/2", "/dev/stderr", 0);
}

static unsigned number(const char **text)
{
	unsigned value = 0;

	while (**text == ' ')
		++*text;
	while (**text >= '0' && **text <= '9')
		value = value * 10 + *(*text)++ - '0';
	return value;
}

// The serial terminal as standard input, output and error.
static void open_terminal(const char *modes)
{
	const char *sizes = modes + 2;
	uint16_t window[4] = { 0 };
	struct termios terminal;
	long fd = CALL(__NR_open, TERMINAL, O_RDWR, 0);

	if (fd < 0)
		return; // the console that the kernel opened has to do
	window[0] = number(&sizes);
	window[1] = number(&sizes);
	CALL(__NR_ioctl, fd, TIOCSWINSZ, window);
	if (CALL(__NR_ioctl, fd, TCGETS, &terminal) == 0) {
		// Input from a pipe comes fast: the line discipline must be able to stop it.
		if (modes[0] == INIT_NO_ECHO) {
			terminal.c_lflag &= ~(ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE);
			terminal.c_cflag |= CRTSCTS;
		}
		if (modes[1] == INIT_RAW_OUTPUT)
			terminal.c_oflag &= ~OPOST;
		CALL(__NR_ioctl, fd, TCSETS, &terminal);
	}
	CALL(__NR_dup2, fd, 0, 0);
	CALL(__NR_dup2, fd, 1, 0);
	CALL(__NR_dup2, fd, 2, 0);
	if (fd > 2)
		CALL(__NR_close, fd, 0, 0);
}

static char orders[ORDERS_SIZE];
static char *strings[STRINGS_MAX];

// Splits the orders into strings from *at on, up to an empty one. Returns where they begin.
static char **take_list(char **at, char *end, unsigned *used)
{
	char **list = strings + *used;

	while (*at < end && **at) {
		char *text = *at;

		*at += length_of(text) + 1;
		if (text[0] == INIT_EMPTY_STRING[0] && !text[1])
			text[0] = 0;
		strings[(*used)++] = text;
	}
	strings[(*used)++] = NULL;
	++*at;
	return list;
}

static unsigned run_program(const char *path, char **arguments, char **environment)
{
	int status = 0;
	long child = CALL(__NR_fork, 0, 0, 0), ended;

	if (child == 0) {
		CALL(__NR_setsid, 0, 0, 0);
		CALL(__NR_ioctl, 0, TIOCSCTTY, 0);
		CALL(__NR_chdir, "/root", 0, 0);
		CALL(__NR_execve, path, arguments, environment);
		say("init: cannot run ");
		say(path);
		say("\n");
		CALL(__NR_exit, STATUS_NO_EXEC, 0, 0);
	}
	if (child < 0)
		return STATUS_NO_EXEC;
	do // orphans are reaped too
		ended = call6(__NR_wait4, -1, (long)&status, 0, 0, 0);
	while (ended != child && (ended > 0 || ended == -4));
	return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

void guest_init_main(void)
{
	char *at = orders, *end, *modes, *path, **arguments, **environment;
	unsigned used = 0;
	long fd, n;

	mount_all();
	fd = CALL(__NR_open, INIT_ORDERS, O_RDONLY, 0);
	n = fd < 0 ? 0 : CALL(__NR_read, fd, orders, sizeof(orders) - 1);
	CALL(__NR_close, fd, 0, 0);
	CALL(__NR_unlink, INIT_ORDERS, 0, 0);
	if (n <= 0) {
		say("init: no orders\n");
		finish(STATUS_NO_EXEC);
	}
	end = orders + n;
	modes = at;
	at += length_of(at) + 1;
	path = at;
	at += length_of(at) + 1;
	arguments = take_list(&at, end, &used);
	environment = take_list(&at, end, &used);
	open_terminal(modes);
	ask_for_input();
	finish(run_program(path, arguments, environment));
}
