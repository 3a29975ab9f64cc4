// SPDX-License-Identifier: MIT
// TAP for tests in C.
#ifndef TESTS_LIB_TAP_H
#define TESTS_LIB_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static unsigned tap_tests, tap_failures;

static bool tap_line(bool good, const char *format, va_list args)
{
	printf("%sok %u - ", good ? "" : "not ", ++tap_tests);
	vprintf(format, args);
	putchar('\n');
	tap_failures += !good;
	return good;
}

static inline __attribute__((format(printf, 2, 3))) bool ok(bool good, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	tap_line(good, format, args);
	va_end(args);
	fflush(stdout);
	return good;
}

static inline __attribute__((format(printf, 3, 4))) bool is(long long got, long long wanted, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	tap_line(got == wanted, format, args);
	va_end(args);
	if (got != wanted)
		printf("#   got %lld (%#llx), wanted %lld (%#llx)\n", got, got, wanted, wanted);
	fflush(stdout);
	return got == wanted;
}

static inline int done_testing(void)
{
	printf("1..%u\n", tap_tests);
	return tap_failures != 0;
}

#endif
