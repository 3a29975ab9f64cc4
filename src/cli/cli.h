// SPDX-License-Identifier: MIT
// The parts of the cetkvm command.
#ifndef CETKVM_CLI_CLI_H
#define CETKVM_CLI_CLI_H

#include "vmm/backend.h"

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

// The line about an option that getopt_long() has not taken: its result ('?' or ':'), optopt, and the word
// it was in.
void cli_bad_option(const char *command, int result, int letter, const char *word);

// These write one line and return -1 if a value cannot be used; else 0.
int cli_bad_value(const char *option, const char *value, const char *accepted); // always
int cli_check_name(const char *option, const char *value); // of a file: not empty
int cli_check_grain(const char *value);
int cli_check_generation(const char *value); // of KVM_GET_XSAVE's contract
int cli_check_trace(const char *value);
int cli_check_symbols(const char *path);                              // it is a file
int cli_load_symbols(const struct kvm_backend *kvm, const char *path); // with symbols

#endif
