// SPDX-License-Identifier: MIT
// Lines for the person at the terminal.
#include "vmm/message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void vmm_message(const char *format, ...)
{
	char line[2048] = "cetkvm: ";
	size_t length = strlen(line);
	va_list args;

	va_start(args, format);
	vsnprintf(line + length, sizeof(line) - length - 1, format, args);
	va_end(args);
	length = strlen(line);
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0)
		return; // nobody listens
}
