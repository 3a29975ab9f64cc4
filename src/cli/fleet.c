// SPDX-License-Identifier: MIT
// `cetkvm fleet`: finds the description, has the guest travel, and writes the reports.
#include "cli/cli.h"

#include "fleet/fleet.h"
#include "vmm/backend.h"
#include "vmm/message.h"

#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define STATUS_UNEXPECTED 1
#define STATUS_FAILED     4
#define SUFFIX ".fleet"

enum { OPTION_JSON = 256, OPTION_HTML, OPTION_LIST, OPTION_QUIET, OPTION_HELP };

struct fleet_options {
	const char *json, *html, *what;
	bool list, quiet, help;
};

static const struct option long_options[] = {
	{ "json", required_argument, NULL, OPTION_JSON },
	{ "html", required_argument, NULL, OPTION_HTML },
	{ "list", no_argument, NULL, OPTION_LIST },
	{ "quiet", no_argument, NULL, OPTION_QUIET },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ NULL, 0, NULL, 0 },
};

static int parse_options(struct fleet_options *options, int argc, char **argv)
{
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
		switch (option) {
		case OPTION_JSON:
			options->json = optarg;
			break;
		case OPTION_HTML:
			options->html = optarg;
			break;
		case OPTION_LIST:
			options->list = true;
			break;
		case OPTION_QUIET:
			options->quiet = true;
			break;
		case OPTION_HELP:
			options->help = true;
			return 0;
		default:
			cli_bad_option("fleet", option, optopt, argv[optind - 1]);
			return -1;
		}
	}
	if (options->json && options->html && !strcmp(options->json, options->html)) {
		vmm_message("--json and --html exclude each other in '%s'; accepted are two files, or - for one of them",
			    options->json);
		return -1;
	}
	if (options->list && (argc != optind || options->json || options->html || options->quiet)) {
		vmm_message("fleet: --list stands alone; the scenario, --json, --html and --quiet do not go with it");
		return -1;
	}
	if (options->list)
		return 0;
	if (argc - optind != 1) {
		if (optind == argc)
			vmm_message("fleet: no scenario; accepted: a name of 'cetkvm fleet --list', or a file");
		else
			vmm_message("fleet: unexpected '%s'; accepted: one scenario", argv[optind + 1]);
		return -1;
	}
	options->what = argv[optind];
	return 0;
}

// The folder lies in the build tree beside us, or where it was installed in relation to us.
static int find_scenarios(char folder[PATH_MAX])
{
	static const char *const places[] = { "../../scenarios", CETKVM_SCENARIOS_FROM_BINDIR };
	char self[PATH_MAX], candidate[PATH_MAX + 256];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (length < 0)
		return -1;
	self[length] = 0;
	*strrchr(self, '/') = 0;
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(candidate, sizeof(candidate), "%s/%s", self, places[i]);
		if (realpath(candidate, folder))
			return 0;
	}
	return -1;
}

static int list_scenarios(void)
{
	char folder[PATH_MAX], pattern[PATH_MAX + 16];
	struct fleet_description *description = malloc(sizeof(*description));
	glob_t found;

	if (!description || find_scenarios(folder) < 0) {
		free(description);
		vmm_message("fleet: the folder of the scenarios is neither beside the program nor at %s from it",
			    CETKVM_SCENARIOS_FROM_BINDIR);
		return STATUS_FAILED;
	}
	snprintf(pattern, sizeof(pattern), "%s/*" SUFFIX, folder);
	if (!glob(pattern, 0, NULL, &found)) {
		for (size_t i = 0; i < found.gl_pathc; i++)
			if (!fleet_read_file(description, found.gl_pathv[i]))
				printf("%-28s %s\n", description->name, description->title);
		globfree(&found);
	}
	free(description);
	return 0;
}

// A word without a slash is one of the scenarios that come along, if there is such a one; else a file.
static int read_description(struct fleet_description *description, const char *what)
{
	char folder[PATH_MAX], path[PATH_MAX + 512];

	if (!strchr(what, '/') && strlen(what) < 256 && !find_scenarios(folder)) {
		snprintf(path, sizeof(path), "%s/%s" SUFFIX, folder, what);
		if (!access(path, R_OK))
			return fleet_read_file(description, path);
		if (access(what, F_OK)) {
			vmm_message("fleet: '%s' is neither a scenario nor a file; accepted: a name of 'cetkvm fleet --list', or a file",
				    what);
			return -1;
		}
	}
	return fleet_read_file(description, what);
}

static bool quiet;

static void tell(const struct fleet_journey *journey, unsigned step)
{
	const struct fleet_description *d = &journey->description;

	if (quiet)
		return;
	if (!step)
		printf("%s%s%s\n\n", d->name, *d->title ? ": " : "", d->title);
	fleet_write_progress(stdout, journey, step);
}

// Opened before the guest starts: a report that cannot be written is told at once.
static int open_report(FILE **file, const char *path, const char *option)
{
	*file = NULL;
	if (!path)
		return 0;
	*file = strcmp(path, "-") ? fopen(path, "we") : stdout;
	if (*file)
		return 0;
	vmm_message("%s %s: %s; a file that can be written is needed, or - for standard output", option,
		    *path ? path : "''", strerror(errno));
	return -1;
}

static int write_report(FILE *file, const char *path, const struct fleet_journey *journey,
			void (*write_it)(FILE *, const struct fleet_journey *))
{
	if (!file)
		return 0;
	write_it(file, journey);
	if ((file == stdout ? fflush(file) : fclose(file)) == 0)
		return 0;
	vmm_message("fleet: %s: %s", path, strerror(errno));
	return -1;
}

// Columns of the terminal; 0 if standard output is none.
static unsigned terminal_width(void)
{
	struct winsize size;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 ? 0 : size.ws_col;
}

static int travel(const struct fleet_options *options, struct fleet_journey *journey)
{
	const struct fleet_description *d = &journey->description;
	FILE *json, *html;

	if (open_report(&json, options->json, "--json") < 0 || open_report(&html, options->html, "--html") < 0)
		return CLI_BAD_INPUT;
	// A report on standard output stands alone there.
	quiet = options->quiet || json == stdout || html == stdout;
	if (fleet_travel(journey, tell) < 0)
		return journey->bad_input ? CLI_BAD_INPUT : STATUS_FAILED;
	if (!quiet)
		fleet_write_table(stdout, journey, isatty(STDOUT_FILENO) && !getenv("NO_COLOR"), terminal_width());
	if (write_report(json, options->json, journey, fleet_write_json) < 0 ||
	    write_report(html, options->html, journey, fleet_write_html) < 0)
		return STATUS_FAILED;
	if (d->expected >= 0 && d->expected != (int)journey->outcome) {
		vmm_message("fleet: %s: the outcome is '%s'; expected is '%s'", d->name, fleet_outcome_names[journey->outcome],
			    fleet_outcome_names[d->expected]);
		return STATUS_UNEXPECTED;
	}
	return 0;
}

int cli_fleet(int argc, char **argv)
{
	struct fleet_options options = { 0 };
	struct fleet_journey *journey;
	const char *problem;
	int status;

	if (parse_options(&options, argc, argv) < 0)
		return CLI_BAD_INPUT;
	if (options.help)
		return cli_help(stdout, "fleet");
	if (options.list)
		return list_scenarios();
	journey = calloc(1, sizeof(*journey));
	if (!journey || read_description(&journey->description, options.what) < 0) {
		free(journey);
		return CLI_BAD_INPUT;
	}
	problem = kvm_backend_library()->problem();
	if (problem)
		vmm_message("fleet: %s", problem);
	status = problem ? STATUS_FAILED : travel(&options, journey);
	free(journey);
	return status;
}
