// SPDX-License-Identifier: MIT
// Messages to the person at the terminal, and fatal internal errors.
#ifndef CETKVM_BASE_LOG_H
#define CETKVM_BASE_LOG_H

#include <stdint.h>

// Writes one line "cetkvm: ..." to standard error.
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

// For broken invariants of our own only, never for anything a guest or a client can cause.
void log_bug(const char *file, int line, const char *expression) __attribute__((noreturn));

#define BUG_ON(expression) \
	do { \
		if (__builtin_expect(!!(expression), 0)) \
			log_bug(__FILE__, __LINE__, #expression); \
	} while (0)

#endif
