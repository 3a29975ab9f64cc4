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
	// What was typed, or what a guest said, stays on the line and moves no cursor.
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0)
		return; // nobody listens
}
