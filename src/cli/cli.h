// SPDX-License-Identifier: MIT
// The parts of the cetkvm command.
#ifndef CETKVM_CLI_CLI_H
#define CETKVM_CLI_CLI_H

#include <stdio.h>

#define CLI_BAD_INPUT 2

// Subcommands: argv[0] is the subcommand's name. They return the exit status.
int cli_run(int argc, char **argv);
int cli_exec(int argc, char **argv);
int cli_fleet(int argc, char **argv);
int cli_doctor(int argc, char **argv);

// Texts. topic NULL: the overview. cli_help returns -1 if there is no such topic.
int cli_help(FILE *output, const char *topic);
void cli_version(void);

#endif
