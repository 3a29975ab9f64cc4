// SPDX-License-Identifier: MIT
// The report for programs: one JSON object (RFC 8259). cetkvm-fleet(1) describes it. 64-bit numbers are
// strings in hexadecimal, for readers that have only floating-point numbers.
#include "fleet/fleet.h"

#include <errno.h>
#include <string.h>

static void put_string(FILE *out, const char *text)
{
	fputc('"', out);
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			fprintf(out, "\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			fprintf(out, "\\u%04x", *c);
		else
			fputc(*c, out);
	}
	fputc('"', out);
}

static void member(FILE *out, const char *indent, const char *name, const char *value)
{
	fprintf(out, "%s\"%s\": ", indent, name);
	put_string(out, value);
}

static void put_list(FILE *out, const char *commas)
{
	char copy[FLEET_LINE_MAX], *rest = copy, *item;
	bool more = false;

	snprintf(copy, sizeof(copy), "%s", commas);
	fputc('[', out);
	while ((item = strsep(&rest, ","))) {
		if (!*item)
			continue;
		fputs(more ? ", " : "", out);
		put_string(out, item);
		more = true;
	}
	fputc(']', out);
}

static void put_host(FILE *out, const struct fleet_host *host)
{
	bool more = false;

	member(out, "    { ", "name", host->name);
	member(out, ", ", "cpu", host->cpu);
	member(out, ", ", "kvm", fleet_generation_names[host->generation]);
	member(out, ", ", "vmm", host->carries_on ? "carries-on" : "stops");
	fputs(", \"forgets\": [", out);
	for (unsigned i = 0; i < PIECES; i++) {
		if (!(host->forgets >> i & 1))
			continue;
		fputs(more ? ", " : "", out);
		put_string(out, fleet_pieces[i].word);
		more = true;
	}
	fputs("] }", out);
}

static void put_component(FILE *out, const struct fleet_step *s, unsigned c, bool first)
{
	const struct fleet_finding *f = &s->report.found[c];
	char text[256];

	member(out, "        { ", "name", fleet_components[c].word);
	member(out, ", ", "fate", fleet_fate_names[s->fate[c]]);
	if (!first) {
		member(out, ", ", "guest", s->report.checked && f->verdict <= FLEET_OFF ? fleet_verdict_names[f->verdict] : "unknown");
		member(out, ", ", "ioctls", fleet_view_names[s->view[c]]);
		fleet_say_difference(s, c, text, sizeof(text));
		if (*text) {
			member(out, ", ", "difference", text);
			fprintf(out, ", \"left\": \"0x%llx\", \"found\": \"0x%llx\"", (unsigned long long)f->wanted,
				(unsigned long long)f->found);
		}
	}
	fputs(" }", out);
}

static void put_step(FILE *out, const struct fleet_journey *journey, const struct fleet_step *s, unsigned index, bool first)
{
	const struct fleet_description *d = &journey->description;
	char text[1024];

	member(out, "    { ", "host", d->hosts[d->path[index]].name);
	member(out, ", ", "outcome", fleet_outcome_names[s->outcome]);
	fputs(",\n      \"missing_features\": ", out);
	put_list(out, s->missing);
	fprintf(out, ",\n      \"xstate_bv\": \"0x%llx\", \"not_the_guests\": \"0x%llx\", \"not_the_hosts\": \"0x%llx\",\n      "
		     "\"refused\": ", (unsigned long long)s->image, (unsigned long long)s->surplus,
		(unsigned long long)s->unsupported);
	if (s->failed < 0) {
		fputs("null", out);
	} else {
		member(out, "{ ", "ioctl", fleet_pieces[s->failed].ioctl);
		member(out, ", ", "error", strerrorname_np(s->pieces[s->failed].error));
		if (s->failed == PIECE_MSRS)
			fprintf(out, ", \"msr\": \"0x%x\"", s->pieces[s->failed].msr);
		fputs(" }", out);
	}
	fputs(",\n      \"guest\": ", out);
	if (first) {
		fputs("null", out);
	} else {
		member(out, "{ ", "end", fleet_end_names[s->end]);
		fleet_say_guest(s, text, sizeof(text));
		member(out, ", ", "saw", text);
		if (s->end == END_EXCEPTION)
			fprintf(out, ", \"exception\": %u, \"error_code\": \"0x%llx\", \"rip\": \"0x%llx\", \"cr2\": \"0x%llx\"",
				s->report.exception - 1, (unsigned long long)s->report.error,
				(unsigned long long)s->report.rip, (unsigned long long)s->report.cr2);
		if (s->end != END_NONE)
			fprintf(out, ", \"open_calls\": %u, \"returned\": %u", s->report.depth + s->report.user_depth,
				s->report.returned + s->report.user_returned);
		fputs(" }", out);
	}
	fputs(",\n      \"components\": [\n", out);
	for (unsigned c = 0; c < FLEET_COMPONENTS; c++) {
		put_component(out, s, c, first);
		fputs(c + 1 < FLEET_COMPONENTS ? ",\n" : "\n", out);
	}
	fputs("      ] }", out);
}

void fleet_write_json(FILE *out, const struct fleet_journey *journey)
{
	const struct fleet_description *d = &journey->description;
	char text[1024];

	member(out, "{\n  ", "scenario", d->name);
	member(out, ",\n  ", "title", d->title);
	member(out, ",\n  ", "about", d->about);
	member(out, ",\n  ", "guest_cpu", *d->guest_cpu ? d->guest_cpu : d->hosts[d->path[0]].cpu);
	fputs(",\n  \"hosts\": [\n", out);
	for (unsigned i = 0; i < d->host_count; i++) {
		put_host(out, &d->hosts[i]);
		fputs(i + 1 < d->host_count ? ",\n" : "\n", out);
	}
	fputs("  ],\n  \"path\": [", out);
	for (unsigned i = 0; i < d->path_length; i++) {
		fputs(i ? ", " : "", out);
		put_string(out, d->hosts[d->path[i]].name);
	}
	fputs("],\n  \"steps\": [\n", out);
	for (unsigned i = 0; i < journey->step_count; i++) {
		put_step(out, journey, &journey->steps[i], i, !i);
		fputs(i + 1 < journey->step_count ? ",\n" : "\n", out);
	}
	fputs("  ],\n  \"back_on_source\": ", out);
	if (journey->resumed) {
		fputc('\n', out);
		put_step(out, journey, &journey->source, journey->step_count - 2, false);
	} else {
		fputs("null", out);
	}
	member(out, ",\n  ", "outcome", fleet_outcome_names[journey->outcome]);
	fleet_say_outcome(journey, text, sizeof(text));
	member(out, ",\n  ", "summary", text);
	if (d->expected >= 0)
		member(out, ",\n  ", "expected", fleet_outcome_names[d->expected]);
	else
		fputs(",\n  \"expected\": null", out);
	fputs("\n}\n", out);
}
