// SPDX-License-Identifier: MIT
// The report for a terminal: a line per step while it goes on, then a table with a row per component.
#include "fleet/fleet.h"

#include <string.h>

#define COLUMN    12
#define ROW_TITLE 20

static const struct fleet_host *host_of(const struct fleet_journey *journey, unsigned step)
{
	return &journey->description.hosts[journey->description.path[step]];
}

void fleet_write_progress(FILE *out, const struct fleet_journey *journey, unsigned step)
{
	const struct fleet_step *s = &journey->steps[step];
	const struct fleet_host *host = host_of(journey, step);
	char text[1024];
	unsigned used = 0;

	if (step == 0) {
		for (unsigned i = 0; i < FLEET_COMPONENTS; i++)
			used += s->fate[i] == FATE_SET;
		fprintf(out, "  1/%u  %s (%s, %s): the guest starts; %u components hold patterns\n",
			journey->description.path_length, host->name, host->cpu, fleet_generation_names[host->generation], used);
		fflush(out);
		return;
	}
	fprintf(out, "  %u/%u  %s -> %s (%s, %s): %s\n", step + 1, journey->description.path_length,
		host_of(journey, step - 1)->name, host->name, host->cpu, fleet_generation_names[host->generation],
		fleet_outcome_names[s->outcome]);
	if (*s->missing)
		fprintf(out, "         the host lacks of the guest's processor: %s\n", s->missing);
	fleet_say_refusal(journey, step, text, sizeof(text));
	if (*text)
		fprintf(out, "         %s\n", text);
	if (s->end != END_NONE) {
		fleet_say_guest(s, text, sizeof(text));
		fprintf(out, "         the guest saw: %s\n", text);
	}
	fflush(out);
}

static const char *colour_of(enum fleet_fate fate)
{
	switch (fate) {
	case FATE_KEPT:
		return "\033[32m";
	case FATE_LOST:
	case FATE_GONE:
		return "\033[33m";
	case FATE_CORRUPTED:
		return "\033[1;31m";
	case FATE_REFUSED:
		return "\033[35m";
	default:
		return "\033[2m";
	}
}

static void write_cell(FILE *out, enum fleet_fate fate, unsigned width, bool colour)
{
	const char *word = fate == FATE_UNUSED ? "-" : fleet_fate_names[fate];

	fprintf(out, "%s%-*s%s", colour ? colour_of(fate) : "", (int)width, word, colour ? "\033[0m" : "");
}

static unsigned column_width(const struct fleet_journey *journey, unsigned step)
{
	unsigned length = (unsigned)strlen(host_of(journey, step)->name) + 2;

	return length < COLUMN ? COLUMN : length;
}

static void write_differences(FILE *out, const struct fleet_journey *journey)
{
	char text[256];
	bool first = true;

	for (unsigned i = 1; i < journey->step_count; i++) {
		for (unsigned c = 0; c < FLEET_COMPONENTS; c++) {
			fleet_say_difference(&journey->steps[i], c, text, sizeof(text));
			if (!*text)
				continue;
			fprintf(out, "%s  %s on %s: %s\n", first ? "\nfirst differences, as the guest saw them\n" : "",
				fleet_components[c].title, host_of(journey, i)->name, text);
			first = false;
		}
	}
}

// Rows for the hosts [from, to).
static void write_rows(FILE *out, const struct fleet_journey *journey, unsigned from, unsigned to, bool colour)
{
	fprintf(out, "\n%-*s", ROW_TITLE, "component");
	for (unsigned i = from; i < to; i++)
		fprintf(out, "%-*s", (int)column_width(journey, i), host_of(journey, i)->name);
	fputc('\n', out);
	for (unsigned c = 0; c < FLEET_COMPONENTS; c++) {
		if (journey->steps[0].fate[c] == FATE_UNUSED)
			continue;
		fprintf(out, "%-*s", ROW_TITLE, fleet_components[c].title);
		for (unsigned i = from; i < to; i++)
			write_cell(out, journey->steps[i].fate[c], column_width(journey, i), colour);
		fputc('\n', out);
	}
}

void fleet_write_table(FILE *out, const struct fleet_journey *journey, bool colour, unsigned width)
{
	char text[1024];

	// As many hosts beside each other as there is room for, one at least.
	for (unsigned from = 0, to; from < journey->step_count; from = to) {
		unsigned used = ROW_TITLE;

		for (to = from; to < journey->step_count; to++) {
			used += column_width(journey, to);
			if (to > from && width && used > width)
				break;
		}
		write_rows(out, journey, from, to, colour);
	}
	write_differences(out, journey);
	if (journey->resumed) {
		fleet_say_guest(&journey->source, text, sizeof(text));
		fprintf(out, "\nback on %s the guest saw: %s\n", host_of(journey, journey->step_count - 2)->name, text);
	}
	fleet_say_outcome(journey, text, sizeof(text));
	fprintf(out, "\n%s: %s\n", fleet_outcome_names[journey->outcome], text);
}
