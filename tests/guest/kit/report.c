// SPDX-License-Identifier: MIT
// TAP on the serial port, and how the guest ends: a byte to port 0x501 is its exit status.
#include "kit.h"

#define COM1 0x3f8
#define EXIT_PORT 0x501

static int count, failed;

void kit_machine_init(void);
void kit_main(void);

static void put(char c)
{
	if (c == '\n')
		put('\r');
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, c);
}

static void put_number(u64 value, unsigned base, int width, char pad)
{
	char digits[24];
	int n = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while (value /= base);
	while (n < width)
		digits[n++] = pad;
	while (n)
		put(digits[--n]);
}

/* %s %c %d %u %x %lx %lu, with a width and 0; all that the tests use. */
static void vprint(const char *format, va_list args)
{
	for (; *format; format++) {
		bool is_long = false;
		int width = 0;
		char pad = ' ';

		if (*format != '%') {
			put(*format);
			continue;
		}
		format++;
		if (*format == '0')
			pad = *format++;
		while (*format >= '0' && *format <= '9')
			width = width * 10 + *format++ - '0';
		while (*format == 'l') {
			is_long = true;
			format++;
		}
		switch (*format) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put(va_arg(args, int));
			break;
		case 'd': {
			long v = is_long ? va_arg(args, long) : va_arg(args, int);

			if (v < 0)
				put('-');
			put_number(v < 0 ? -(u64)v : (u64)v, 10, width, pad);
			break;
		}
		case 'u':
		case 'x':
			put_number(is_long ? va_arg(args, u64) : va_arg(args, u32),
				*format == 'x' ? 16 : 10, width, pad);
			break;
		default:
			put(*format);
		}
	}
}

static void print(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprint(format, args);
	va_end(args);
}

void kit_note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print("# ");
	vprint(format, args);
	put('\n');
	va_end(args);
}

const char *vector_name(u64 vector)
{
	static const char *const names[] = {
		[DE] = "#DE", [DB] = "#DB", [NMI] = "NMI", [BP] = "#BP", [OF] = "#OF", [BR] = "#BR",
		[UD] = "#UD", [NM] = "#NM", [DF] = "#DF", [TS] = "#TS", [NP] = "#NP", [SS] = "#SS",
		[GP] = "#GP", [PF] = "#PF", [MF] = "#MF", [AC] = "#AC", [MC] = "#MC", [XM] = "#XM",
		[CP] = "#CP", [DONE] = "no fault",
	};

	if (vector < sizeof(names) / sizeof(names[0]) && names[vector])
		return names[vector];
	return "an interrupt";
}

static bool result(bool good, const char *name)
{
	print("%s %d - %s\n", good ? "ok" : "not ok", ++count, name);
	failed += !good;
	return good;
}

bool kit_check(bool good, const char *file, int line, const char *expr, const char *name)
{
	if (!result(good, name)) {
		kit_note("  at %s:%d: %s", file, line, expr);
		kit_note("  the last run ended with %s (vector %lu, error %lx) at %lx:%lx, cr2 %lx, "
			"ssp %lx", vector_name(outcome.vector), outcome.vector, outcome.error, outcome.cs,
			outcome.rip, outcome.cr2, outcome.ssp);
	}
	return good;
}

bool kit_check_eq(u64 got, u64 want, const char *file, int line, const char *expr, const char *name)
{
	if (result(got == want, name))
		return true;
	kit_note("  at %s:%d: %s", file, line, expr);
	kit_note("  wanted 0x%lx", want);
	kit_note("  got    0x%lx", got);
	kit_note("  the last run ended with %s (vector %lu, error %lx) at %lx:%lx",
		vector_name(outcome.vector), outcome.vector, outcome.error, outcome.cs, outcome.rip);
	return false;
}

bool kit_check_end(u64 vector, u64 error, bool with_error, const char *file, int line, const char *name)
{
	bool good = outcome.vector == vector && (!with_error || outcome.error == error);

	if (result(good, name))
		return true;
	kit_note("  at %s:%d", file, line);
	kit_note("  wanted %s (vector %lu%s%lx)", vector_name(vector), vector,
		with_error ? ", error " : ", any error, not ", error);
	kit_note("  got    %s (vector %lu, error %lx) at %lx:%lx, cr2 %lx, ssp %lx",
		vector_name(outcome.vector), outcome.vector, outcome.error, outcome.cs, outcome.rip,
		outcome.cr2, outcome.ssp);
	return false;
}

void kit_skip(const char *name, const char *why)
{
	print("ok %d - %s # SKIP %s\n", ++count, name, why);
}

_Noreturn void kit_exit(int status)
{
	outb(EXIT_PORT, status);
	for (;;)
		__asm__ volatile("cli; hlt");
}

void kit_finish(void)
{
	if (count)
		print("1..%d\n", count);
	else
		print("1..0 # SKIP nothing to test here\n");
	kit_exit(failed ? 1 : 0);
}

void kit_main(void)
{
	outb(COM1 + 3, 3); /* 8 data bits, no parity, one stop bit */
	kit_machine_init();
	test_main();
	kit_finish();
}

void *memset(void *to, int byte, size_t n)
{
	void *d = to;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *x = a, *y = b;

	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}
