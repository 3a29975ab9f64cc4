// SPDX-License-Identifier: MIT
// The report as one page: no script, no font, nothing from elsewhere. Colours have words beside them.
#include "fleet/fleet.h"

#include <string.h>

// Contrast of text to its ground is above 7:1 in both schemes.
static const char style[] =
	":root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1c1e21;--dim:#62676e;--line:#d5d8dc;--card:#fff;"
	"--kept:#d9f0dd;--keptf:#12522a;--lost:#fdeabc;--lostf:#6a4400;--corrupted:#f9cfcf;--corruptedf:#860f14;"
	"--refused:#e6dbf8;--refusedf:#4a2391;--stayed:#e9ebee;--stayedf:#484d54;--set:#d8e8fa;--setf:#123f74}\n"
	"@media(prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e6e8ea;--dim:#9ea4ac;--line:#363b42;--card:#1e2125;"
	"--kept:#173f27;--keptf:#a9e4bb;--lost:#4b3806;--lostf:#fbdc91;--corrupted:#5f171b;--corruptedf:#ffc8c8;"
	"--refused:#3a2765;--refusedf:#dccbff;--stayed:#2a2e34;--stayedf:#b4bac2;--set:#17375c;--setf:#b9d8fb}}\n"
	"*{box-sizing:border-box}\n"
	"body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:72rem;background:var(--bg);color:var(--fg);"
	"font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}\n"
	"h1{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}\n"
	"p{margin:.4rem 0;max-width:46rem}.dim{color:var(--dim)}code{font:.86em ui-monospace,monospace}\n"
	".result{border-left:.4rem solid;padding:.5rem .9rem;margin:1rem 0;border-radius:.3rem}\n"
	".tag{display:inline-block;padding:0 .55em;border-radius:.3rem;font-weight:600;font-size:.88rem}\n"
	".kept,.intact{background:var(--kept);color:var(--keptf)}.lost,.gone{background:var(--lost);color:var(--lostf)}\n"
	".corrupted,.crashed{background:var(--corrupted);color:var(--corruptedf)}\n"
	".refused{background:var(--refused);color:var(--refusedf)}\n"
	".stayed,.unused,.unvisited{background:var(--stayed);color:var(--stayedf)}.set,.start{background:var(--set);color:var(--setf)}\n"
	".path{display:flex;flex-wrap:wrap;align-items:stretch;gap:.5rem 0;list-style:none;margin:0;padding:0}\n"
	".path li{display:flex;align-items:center;flex:1 1 15rem;min-width:0;max-width:24rem}.path li:first-child{max-width:21.5rem}\n"
	".host{flex:1;min-width:0;align-self:stretch;background:var(--card);border:1px solid var(--line);border-radius:.5rem;"
	"padding:.7rem .8rem;font-size:.9rem}\n"
	".host b{display:block;font-size:1.05rem}.host dl{margin:.4rem 0 .6rem;display:grid;grid-template-columns:auto 1fr;gap:0 .6rem}\n"
	".host dt{color:var(--dim)}.host dd{margin:0}\n"
	".arrow{flex:none;width:2.2rem;height:1.6rem;margin:0 .15rem;fill:none;stroke:var(--dim);stroke-width:2}\n"
	".cut{stroke:var(--corruptedf)}\n"
	".wide{overflow-x:auto;border:1px solid var(--line);border-radius:.5rem;background:var(--card)}\n"
	"table{border-collapse:collapse;width:100%;font-size:.92rem}\n"
	"th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\n"
	"tbody tr:last-child>*{border-bottom:0}td{border-left:2px solid var(--card);font-weight:600;"
	"white-space:nowrap}\n"
	"th:first-child{position:sticky;left:0;background:var(--card);min-width:13rem}\n"
	"thead th{white-space:nowrap}thead th+th{width:10rem}tbody th{font-weight:400}tbody th small{display:block;color:var(--dim);font-size:.8rem}\n"
	"ul.legend{list-style:none;padding:0;display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:.35rem 1.2rem;"
	"font-size:.9rem;margin:0}\n"
	".legend .tag{min-width:6.2rem;text-align:center;margin-right:.5rem}.legend li{display:flex;align-items:baseline}\n"
	".events{padding-left:1.4rem;margin:.3rem 0}.events>li{margin:.7rem 0}.events p{margin:.2rem 0;max-width:60rem}\n"
	".differences{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.3rem 0;font-size:.9rem}"
	".differences dt{color:var(--dim)}.differences dd{margin:0}\n"
	"@media(max-width:34rem){.path{flex-direction:column}.path li,.path li:first-child{flex-direction:column;max-width:none;flex-basis:auto}"
	".host{width:100%}.arrow{transform:rotate(90deg);margin:.3rem}tbody th small{display:none}th:first-child{min-width:6rem}th,td{padding:.3rem .4rem}}\n"
	"@media print{body{max-width:none}.wide{overflow:visible}}\n";

// Text between tags and in quoted attributes.
static void put(FILE *out, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '&':
			fputs("&amp;", out);
			break;
		case '<':
			fputs("&lt;", out);
			break;
		case '>':
			fputs("&gt;", out);
			break;
		case '"':
			fputs("&quot;", out);
			break;
		case '\'':
			fputs("&#39;", out);
			break;
		default:
			fputc(*text, out);
		}
	}
}

static void element(FILE *out, const char *open, const char *text, const char *close)
{
	fputs(open, out);
	put(out, text);
	fputs(close, out);
}

static const struct fleet_host *host_of(const struct fleet_journey *journey, unsigned step)
{
	return &journey->description.hosts[journey->description.path[step]];
}

static const char *word_of_step(const struct fleet_journey *journey, unsigned step)
{
	if (step >= journey->step_count)
		return "unvisited";
	return step ? fleet_outcome_names[journey->steps[step].outcome] : "start";
}

static void put_tag(FILE *out, const char *word)
{
	fprintf(out, "<span class=\"tag %s\">%s</span>", word, word);
}

static void put_host(FILE *out, const struct fleet_journey *journey, unsigned step)
{
	const struct fleet_host *host = host_of(journey, step);
	bool more = false;

	element(out, "<div class=\"host\"><b>", host->name, "</b><dl><dt>CPU</dt><dd><code>");
	element(out, "", host->cpu, "</code></dd><dt>KVM</dt><dd>");
	element(out, "", fleet_generation_names[host->generation], "</dd><dt>VMM</dt><dd>");
	fputs(host->carries_on ? "carries on after an error" : "stops at an error", out);
	for (unsigned i = 0; i < PIECES; i++) {
		if (!(host->forgets >> i & 1))
			continue;
		element(out, more ? ", " : "; forgets ", fleet_pieces[i].word, "");
		more = true;
	}
	fputs("</dd></dl>", out);
	put_tag(out, word_of_step(journey, step));
	fputs("</div>", out);
}

// An arrow to the next host; a broken one where the guest did not get through.
static void put_arrow(FILE *out, const struct fleet_journey *journey, unsigned to)
{
	bool through = to < journey->step_count && journey->steps[to].outcome != OUTCOME_REFUSED;

	if (through)
		fputs("<svg class=\"arrow\" viewBox=\"0 0 36 24\" role=\"img\" aria-label=\"moves to\">"
		      "<path d=\"M2 12h30M24 5l8 7-8 7\"/></svg>", out);
	else
		fputs("<svg class=\"arrow cut\" viewBox=\"0 0 36 24\" role=\"img\" aria-label=\"does not get to\">"
		      "<path d=\"M2 12h9M25 12h9M14 5l8 14M22 5l-8 14\"/></svg>", out);
}

static void put_path(FILE *out, const struct fleet_journey *journey)
{
	const struct fleet_description *d = &journey->description;

	fputs("<h2>The path</h2>\n<ol class=\"path\">\n", out);
	for (unsigned i = 0; i < d->path_length; i++) {
		fputs("<li>", out);
		if (i)
			put_arrow(out, journey, i);
		put_host(out, journey, i);
		fputs("</li>\n", out);
	}
	element(out, "</ol>\n<p class=\"dim\">The guest is shown the processor <code>",
		*d->guest_cpu ? d->guest_cpu : d->hosts[d->path[0]].cpu, "</code> all the way.</p>\n");
}

static void put_matrix(FILE *out, const struct fleet_journey *journey)
{
	fputs("<h2>What became of its state</h2>\n<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">component</th>",
	      out);
	for (unsigned i = 0; i < journey->step_count; i++)
		element(out, "<th scope=\"col\">", host_of(journey, i)->name, "</th>");
	fputs("</tr></thead>\n<tbody>\n", out);
	for (unsigned c = 0; c < FLEET_COMPONENTS; c++) {
		if (journey->steps[0].fate[c] == FATE_UNUSED)
			continue;
		element(out, "<tr><th scope=\"row\">", fleet_components[c].title, "<small>");
		element(out, "", fleet_components[c].explained, "</small></th>");
		for (unsigned i = 0; i < journey->step_count; i++) {
			const char *word = fleet_fate_names[journey->steps[i].fate[c]];

			fprintf(out, "<td class=\"%s\">%s</td>", word, word);
		}
		fputs("</tr>\n", out);
	}
	fputs("</tbody></table></div>\n", out);
}

static void put_differences(FILE *out, const struct fleet_step *s)
{
	char text[256];
	bool any = false;

	for (unsigned c = 0; c < FLEET_COMPONENTS; c++) {
		fleet_say_difference(s, c, text, sizeof(text));
		if (!*text)
			continue;
		if (!any)
			fputs("<p>First differences:</p>\n<dl class=\"differences\">", out);
		element(out, "<dt>", fleet_components[c].title, "</dt>");
		element(out, "<dd><code>", text, "</code></dd>\n");
		any = true;
	}
	fputs(any ? "</dl>" : "", out);
}

static void put_events(FILE *out, const struct fleet_journey *journey)
{
	char text[1024];

	fputs("<h2>Step by step</h2>\n<ol class=\"events\">\n", out);
	for (unsigned i = 0; i < journey->step_count; i++) {
		const struct fleet_step *s = &journey->steps[i];

		element(out, "<li><b>", host_of(journey, i)->name, "</b> ");
		put_tag(out, word_of_step(journey, i));
		if (!i)
			fputs("<p>The guest starts, leaves its patterns and stops inside nested calls.</p>", out);
		if (*s->missing)
			element(out, "<p>The host lacks of the guest's processor: <code>", s->missing, "</code></p>");
		fleet_say_refusal(journey, i, text, sizeof(text));
		if (*text)
			element(out, "<p>", text, "</p>");
		if (i && s->end != END_NONE) {
			fleet_say_guest(s, text, sizeof(text));
			element(out, "<p>The guest saw: ", text, "</p>");
		}
		put_differences(out, s);
		fputs("</li>\n", out);
	}
	if (journey->resumed) {
		fleet_say_guest(&journey->source, text, sizeof(text));
		element(out, "<li><b>", host_of(journey, journey->step_count - 2)->name, "</b> ");
		put_tag(out, fleet_outcome_names[journey->source.outcome]);
		element(out, "<p>The guest goes on where it was, and saw: ", text, "</p></li>\n");
	}
	fputs("</ol>\n", out);
}

static void put_legend(FILE *out)
{
	static const struct {
		const char *word, *meaning;
	} rows[] = {
		{ "set", "the guest left a pattern in it, on the first host" },
		{ "kept", "the guest finds what it left" },
		{ "lost", "switched off, or back in its initial state in a guest that ended" },
		{ "corrupted", "there and in use, and not what the guest left" },
		{ "refused", "KVM did not take it, and the VMM stopped" },
		{ "stayed", "not moved, because something else was refused" },
		{ "gone", "had been lost on a host before" },
	};

	fputs("<h2>Legend</h2>\n<ul class=\"legend\">\n", out);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		fputs("<li>", out);
		put_tag(out, rows[i].word);
		element(out, "<span>", rows[i].meaning, "</span></li>\n");
	}
	fputs("</ul>\n", out);
}

void fleet_write_html(FILE *out, const struct fleet_journey *journey)
{
	const struct fleet_description *d = &journey->description;
	const char *title = *d->title ? d->title : d->name, *word = fleet_outcome_names[journey->outcome];
	char text[1024];

	element(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
		     "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>", title,
		" - cetkvm fleet</title>\n<style>\n");
	fprintf(out, "%s</style>\n</head>\n<body>\n", style);
	element(out, "<header><p class=\"dim\">cetkvm fleet: ", d->name, "</p>\n");
	element(out, "<h1>", title, "</h1>\n");
	if (*d->about)
		element(out, "<p>", d->about, "</p>\n");
	fleet_say_outcome(journey, text, sizeof(text));
	fprintf(out, "<p class=\"result %s\"><strong>%s</strong> ", word, word);
	element(out, "", text, "</p></header>\n<main>\n");
	put_path(out, journey);
	put_matrix(out, journey);
	put_legend(out);
	put_events(out, journey);
	fputs("</main>\n</body>\n</html>\n", out);
}
