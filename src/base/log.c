// SPDX-License-Identifier: MIT
// Messages to the person at the terminal. Not for hot paths: printf may use vector registers.
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void log_warn(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("cetkvm: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

void log_bug(const char *file, int line, const char *expression)
{
	fprintf(stderr, "cetkvm: internal error at %s:%d: %s\n", file, line, expression);
	abort();
}
