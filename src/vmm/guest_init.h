// SPDX-License-Identifier: MIT
// The first program in a guest made by pack.c, and the file in which it finds its orders: strings
// each ended by a NUL byte. The first is two letters and the terminal's rows and columns; then the
// program's path, its arguments, an empty string, its environment, an empty string.
#ifndef CETKVM_VMM_GUEST_INIT_H
#define CETKVM_VMM_GUEST_INIT_H

#define INIT_ORDERS "/.cetkvm"

#define INIT_ECHO          'e' // somebody types: the terminal echoes
#define INIT_NO_ECHO       'n'
#define INIT_COOKED_OUTPUT 'c' // newlines become CR LF
#define INIT_RAW_OUTPUT    'r' // output goes to a file or pipe as it is

#define INIT_EMPTY_STRING "\1" // stands for an empty argument

#define INIT_EXIT_PORT 0x501

#ifndef GUEST_INIT_SOURCE
extern const unsigned char guest_init_program[];
extern const unsigned long guest_init_program_size;
#endif

#endif
