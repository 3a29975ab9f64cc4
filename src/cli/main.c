// SPDX-License-Identifier: MIT
// The cetkvm command: picks the subcommand.
#include "cli/cli.h"

#include "vmm/message.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define STATUS_NOT_WRITTEN 4 // as for other reports

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

// A descriptor that was closed would be the next file's, and guests' output would go there. What is run
// by exec finds them closed again.
static void fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

// What was said on standard output has to have got there.
static int finish(int status)
{
	if (!fflush(stdout) && !ferror(stdout))
		return status;
	vmm_message("standard output: %s", strerror(errno));
	return status ? status : STATUS_NOT_WRITTEN;
}

static int unexpected(const char *after, const char *word)
{
	vmm_message("unexpected '%s' behind %s; see 'cetkvm --help'", word, after);
	return CLI_BAD_INPUT;
}

int main(int argc, char **argv)
{
	unsigned i;

	fill_standard_descriptors();
	if (argc < 2) {
		vmm_message("no command; accepted are run, exec, fleet, doctor and help, see 'cetkvm --help'");
		return CLI_BAD_INPUT;
	}
	if (!strcmp(argv[1], "help") && argc == 3)
		return finish(command_help(argv[2]));
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
		return argc > 2 ? unexpected(argv[1], argv[argc - 1]) : finish(command_help(NULL));
	if (!strcmp(argv[1], "--version")) {
		if (argc > 2)
			return unexpected(argv[1], argv[2]);
		cli_version();
		return finish(0);
	}
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(argv[1], commands[i].name))
			return finish(commands[i].run(argc - 1, argv + 1));
	vmm_message("there is no command '%s'; see 'cetkvm --help'", argv[1]);
	return CLI_BAD_INPUT;
}
