// SPDX-License-Identifier: MIT
// What the subcommands' options have in common: the lines about wrong ones, and values that more than
// one of them takes.
#include "cli/cli.h"

#include "vmm/message.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYMBOLS "--symbols needs a System.map or a vmlinux"

void cli_bad_option(const char *command, int result, int letter, const char *word)
{
	if (result == ':')
		vmm_message("%s: option '%s' needs a value; see 'cetkvm %s --help'", command, word, command);
	else if (letter > 0 && letter < 256) // one of several letters behind a hyphen, perhaps
		vmm_message("%s: unknown option '-%c'; see 'cetkvm %s --help'", command, letter, command);
	else if (letter)
		vmm_message("%s: option '%.*s' takes no value; see 'cetkvm %s --help'", command, (int)strcspn(word, "="),
			    word, command);
	else
		vmm_message("%s: unknown option '%s'; see 'cetkvm %s --help'", command, word, command);
}

int cli_bad_value(const char *option, const char *value, const char *accepted)
{
	vmm_message("%s %s: not valid; accepted is %s", option, *value ? value : "''", accepted);
	return -1;
}

int cli_check_name(const char *option, const char *value)
{
	return *value ? 0 : cli_bad_value(option, value, "the name of a file");
}

int cli_check_grain(const char *value)
{
	if (strcmp(value, "block") && strcmp(value, "single"))
		return cli_bad_value("--grain", value, "block or single");
	return 0;
}

int cli_check_generation(const char *value)
{
	if (strcmp(value, "over-saving") && strcmp(value, "strict") && strcmp(value, "constrained"))
		return cli_bad_value("--kvm-abi", value, "over-saving, strict or constrained");
	return 0;
}

int cli_check_trace(const char *value)
{
	return strcmp(value, "cp") ? cli_bad_value("--trace", value, "cp") : 0;
}

int cli_check_symbols(const char *path)
{
	struct stat status;

	if (cli_check_name("--symbols", path) < 0)
		return -1;
	if (stat(path, &status) < 0 || access(path, R_OK)) {
		vmm_message("%s: %s; " SYMBOLS, path, strerror(errno));
		return -1;
	}
	if (!S_ISREG(status.st_mode)) {
		vmm_message("%s: not a regular file; " SYMBOLS, path);
		return -1;
	}
	return 0;
}

int cli_load_symbols(const struct kvm_backend *kvm, const char *path)
{
	if (!kvm->set_option("symbols", path))
		return 0;
	if (errno == EINVAL || errno == ENODATA)
		vmm_message("%s: no symbols in it; " SYMBOLS " with them (Debian's System.map is an empty stand-in)", path);
	else
		vmm_message("%s: %s; " SYMBOLS, path, strerror(errno));
	return -1;
}
