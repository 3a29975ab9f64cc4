// SPDX-License-Identifier: MIT
// Programs that `cetkvm exec` is to reach: can they be? And what reaches them.
#ifndef CETKVM_CLI_PROGRAM_H
#define CETKVM_CLI_PROGRAM_H

#include <limits.h>
#include <stdbool.h>

struct program {
	char path[PATH_MAX];	// the program as execvp() finds it
	char problem[PATH_MAX + 256]; // empty: nothing is known against it
};

// The library that `cetkvm exec` loads into programs. false: `problem` says why there is none to be used.
struct library {
	char path[PATH_MAX];
	char problem[PATH_MAX + 256];
};
bool library_find(struct library *library);

// Finds a command as the shell does, and looks whether a library can be loaded into it.
void program_look(struct program *program, const char *command);

#endif
