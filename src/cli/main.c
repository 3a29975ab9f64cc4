// SPDX-License-Identifier: MIT
// The cetkvm command: picks the subcommand.
#include "cli/cli.h"

#include "vmm/message.h"

#include <string.h>

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "run", cli_run },
	{ "exec", cli_exec },
	{ "fleet", cli_fleet },
	{ "doctor", cli_doctor },
};

static int command_help(const char *topic)
{
	if (!cli_help(stdout, topic))
		return 0;
	vmm_message("help: there is no command '%s'; see 'cetkvm --help'", topic);
	return CLI_BAD_INPUT;
}

static int unexpected(const char *after, const char *word)
{
	vmm_message("unexpected '%s' behind %s; see 'cetkvm --help'", word, after);
	return CLI_BAD_INPUT;
}

int main(int argc, char **argv)
{
	unsigned i;

	if (argc < 2) {
		vmm_message("no command; accepted are run, exec, fleet, doctor and help, see 'cetkvm --help'");
		return CLI_BAD_INPUT;
	}
	if (!strcmp(argv[1], "help") && argc == 3)
		return command_help(argv[2]);
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
		return argc > 2 ? unexpected(argv[1], argv[argc - 1]) : command_help(NULL);
	if (!strcmp(argv[1], "--version")) {
		if (argc > 2)
			return unexpected(argv[1], argv[2]);
		cli_version();
		return 0;
	}
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	vmm_message("there is no command '%s'; see 'cetkvm --help'", argv[1]);
	return CLI_BAD_INPUT;
}
