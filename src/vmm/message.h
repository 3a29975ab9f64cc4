// SPDX-License-Identifier: MIT
// Lines for the person at the terminal. The VMM uses nothing of the engine, so it has its own.
#ifndef CETKVM_VMM_MESSAGE_H
#define CETKVM_VMM_MESSAGE_H

// Writes one line "cetkvm: ..." to standard error, in one write so that threads do not interleave.
void vmm_message(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
