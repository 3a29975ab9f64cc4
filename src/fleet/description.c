// SPDX-License-Identifier: MIT
// The description of a fleet: one statement a line, words apart by blanks, # begins a comment.
// cetkvm-fleet(5) is the reference. Whatever is wrong is one line that names the file, the line, the
// word, and what is accepted in its place.
#include "fleet/fleet.h"

#include "vmm/message.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS_MAX     64
#define FILE_SIZE_MAX (1u << 20)

struct parser {
	struct fleet_description *d;
	unsigned line;
	char text[FLEET_LINE_MAX];
	char *words[WORDS_MAX];
	unsigned count;
	bool seen_guest, seen_path, seen_title, seen_expect;
};

static int bad(const struct parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int bad(const struct parser *p, const char *format, ...)
{
	char problem[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(problem, sizeof(problem), format, args);
	va_end(args);
	if (p->line)
		vmm_message("%s:%u: %s", p->d->file, p->line, problem);
	else
		vmm_message("%s: %s", p->d->file, problem);
	return -1;
}

// The index of a word in a list, or -1 and the message that lists it.
static int word_of(const struct parser *p, const char *word, const char *what, const char *const *list, unsigned count)
{
	char accepted[512] = "";

	for (unsigned i = 0; i < count; i++) {
		size_t length = strlen(accepted);

		if (!strcmp(word, list[i]))
			return (int)i;
		snprintf(accepted + length, sizeof(accepted) - length, "%s%s", i ? ", " : "", list[i]);
	}
	return bad(p, "'%s' is no %s; accepted: %s", word, what, accepted);
}

static int take_cpu(const struct parser *p, const char *word, char *to, size_t size)
{
	struct cpu_choice choice;
	char problem[256], models[256] = "";

	if (cpu_choice_read(&choice, word, problem, sizeof(problem)) < 0) {
		for (unsigned i = 0; i < cpu_model_count; i++) {
			size_t length = strlen(models);

			snprintf(models + length, sizeof(models) - length, "%s%s", i ? ", " : "", cpu_models[i].name);
		}
		return bad(p, "'%s': %s; accepted: a model (%s), then ,+FEATURE and ,-FEATURE", word, problem, models);
	}
	snprintf(to, size, "%s", word);
	return 0;
}

static int find_host(const struct fleet_description *d, const char *name)
{
	for (unsigned i = 0; i < d->host_count; i++)
		if (!strcmp(d->hosts[i].name, name))
			return (int)i;
	return -1;
}

static int take_forgets(struct parser *p, struct fleet_host *host, char *word)
{
	// Without SREGS and REGS there is nothing that could run.
	const char *list[PIECES];
	char *rest = word, *item;
	unsigned count = 0;
	int index;

	for (unsigned i = PIECE_XSAVE; i < PIECES; i++)
		list[count++] = fleet_pieces[i].word;
	while ((item = strsep(&rest, ","))) {
		index = word_of(p, item, "piece of state that a VMM can forget", list, count);
		if (index < 0)
			return -1;
		host->forgets |= 1u << (PIECE_XSAVE + index);
	}
	return 0;
}

static int take_host(struct parser *p)
{
	static const char *const keys[] = { "cpu", "kvm", "vmm", "forgets" };
	static const char *const policies[] = { "stops", "carries-on" };
	struct fleet_host *host = &p->d->hosts[p->d->host_count];
	unsigned seen = 0;
	int key, value;

	if (p->count < 2)
		return bad(p, "'host' needs a name; accepted: host NAME [cpu CPU] [kvm GENERATION] [vmm POLICY] [forgets PIECES]");
	if (strspn(p->words[1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(p->words[1]) ||
	    strlen(p->words[1]) > FLEET_NAME_MAX)
		return bad(p, "'%s' is no name for a host; accepted: up to %d letters, digits, '.', '_' and '-'", p->words[1],
			   FLEET_NAME_MAX);
	if (find_host(p->d, p->words[1]) >= 0)
		return bad(p, "there is a host '%s' already, in line %u; accepted: another name", p->words[1],
			   p->d->hosts[find_host(p->d, p->words[1])].line);
	if (p->d->host_count == FLEET_HOSTS_MAX)
		return bad(p, "'%s' is one host too many; accepted: up to %d", p->words[1], FLEET_HOSTS_MAX);
	memset(host, 0, sizeof(*host));
	snprintf(host->name, sizeof(host->name), "%s", p->words[1]);
	snprintf(host->cpu, sizeof(host->cpu), "%s", CPU_MODEL_DEFAULT);
	host->generation = KVM_CONSTRAINED;
	host->line = p->line;
	for (unsigned i = 2; i < p->count; i += 2) {
		key = word_of(p, p->words[i], "word of a host", keys, 4);
		if (key < 0)
			return -1;
		if (seen >> key & 1)
			return bad(p, "'%s' is said twice; accepted: once a host", p->words[i]);
		seen |= 1u << key;
		if (i + 1 == p->count)
			return bad(p, "'%s' needs a value behind it; accepted: %s", p->words[i],
				   key == 0 ? "a CPU model" : key == 1 ? "over-saving, strict, constrained" :
				   key == 2 ? "stops, carries-on" : "xsave, xcrs, msrs, ssp, events, mp-state, debugregs");
		switch (key) {
		case 0:
			if (take_cpu(p, p->words[i + 1], host->cpu, sizeof(host->cpu)) < 0)
				return -1;
			break;
		case 1:
			value = word_of(p, p->words[i + 1], "generation of KVM", fleet_generation_names, KVM_GENERATIONS);
			if (value < 0)
				return -1;
			host->generation = (enum fleet_generation)value;
			break;
		case 2:
			value = word_of(p, p->words[i + 1], "policy of a VMM", policies, 2);
			if (value < 0)
				return -1;
			host->carries_on = value;
			break;
		default:
			if (take_forgets(p, host, p->words[i + 1]) < 0)
				return -1;
		}
	}
	p->d->host_count++;
	return 0;
}

static int take_path(struct parser *p)
{
	char names[FLEET_HOSTS_MAX * (FLEET_NAME_MAX + 2) + 1] = "";

	if (p->seen_path)
		return bad(p, "'path' is said twice; accepted: once");
	p->seen_path = true;
	if (p->count < 3)
		return bad(p, "'path' needs two hosts at least; accepted: path HOST HOST...");
	if (p->count - 1 > FLEET_PATH_MAX)
		return bad(p, "'%s' makes the path too long; accepted: up to %d hosts", p->words[FLEET_PATH_MAX + 1],
			   FLEET_PATH_MAX);
	for (unsigned i = 1; i < p->count; i++) {
		int index = find_host(p->d, p->words[i]);

		if (index < 0) {
			for (unsigned k = 0; k < p->d->host_count; k++) {
				size_t length = strlen(names);

				snprintf(names + length, sizeof(names) - length, "%s%s", k ? ", " : "", p->d->hosts[k].name);
			}
			return bad(p, "'%s' is no host described above; accepted: %s", p->words[i],
				   *names ? names : "none, for no host is described above");
		}
		p->d->path[p->d->path_length++] = (unsigned)index;
	}
	return 0;
}

static int take_guest(struct parser *p)
{
	if (p->seen_guest)
		return bad(p, "'guest' is said twice; accepted: once");
	p->seen_guest = true;
	if (p->count != 2)
		return bad(p, "'guest' takes one word; accepted: guest CPU, as in 'guest sapphirerapids,-pku'");
	p->d->guest_line = p->line;
	return take_cpu(p, p->words[1], p->d->guest_cpu, sizeof(p->d->guest_cpu));
}

static int take_expect(struct parser *p)
{
	if (p->seen_expect)
		return bad(p, "'expect' is said twice; accepted: once");
	p->seen_expect = true;
	if (p->count != 2)
		return bad(p, "'expect' takes one word; accepted: intact, refused, corrupted, crashed");
	p->d->expected = word_of(p, p->words[1], "outcome", fleet_outcome_names, OUTCOMES);
	return p->d->expected < 0 ? -1 : 0;
}

// A text goes to the end of the line, its # included.
static int take_text(struct parser *p, const char *text, bool title)
{
	size_t length = strlen(p->d->about);

	text += strspn(text, " \t");
	if (title) {
		if (p->seen_title)
			return bad(p, "'title' is said twice; accepted: once");
		p->seen_title = true;
		snprintf(p->d->title, sizeof(p->d->title), "%s", text);
		return 0;
	}
	if (strlen(text) + 2 > sizeof(p->d->about) - length)
		return bad(p, "'about': the lines of it are too long together; accepted: up to %zu characters",
			   sizeof(p->d->about) - 1);
	snprintf(p->d->about + length, sizeof(p->d->about) - length, "%s%s", length ? " " : "", text);
	return 0;
}

// Text that any report can show: valid UTF-8 without control characters.
static bool printable(const char *text)
{
	const unsigned char *c = (const unsigned char *)text;

	while (*c) {
		unsigned more = *c < 0x80 ? 0 : *c >= 0xc2 && *c < 0xe0 ? 1 : *c >= 0xe0 && *c < 0xf0 ? 2 :
				*c >= 0xf0 && *c < 0xf5 ? 3 : 9;
		unsigned first = *c++;

		if (more == 9 || (more == 0 && (first < 0x20 || first == 0x7f) && first != '\t'))
			return false;
		for (unsigned i = 0; i < more; i++, c++) {
			if ((*c & 0xc0) != 0x80)
				return false;
			// Overlong, surrogates, beyond U+10FFFF.
			if (!i && ((first == 0xe0 && *c < 0xa0) || (first == 0xed && *c >= 0xa0) ||
				   (first == 0xf0 && *c < 0x90) || (first == 0xf4 && *c >= 0x90)))
				return false;
		}
	}
	return true;
}

static int take_line(struct parser *p, const char *line, size_t length)
{
	static const char *const statements[] = { "title", "about", "guest", "host", "path", "expect" };
	char copy[FLEET_LINE_MAX], *rest, *word, *comment;
	int statement;

	if (length && line[length - 1] == '\r')
		length--;
	if (length >= sizeof(copy))
		return bad(p, "the line has %zu characters; accepted: up to %zu", length, sizeof(copy) - 1);
	memcpy(copy, line, length);
	copy[length] = 0;
	if (strlen(copy) != length || !printable(copy))
		return bad(p, "the line is not text; accepted: UTF-8 without control characters");
	memcpy(p->text, copy, sizeof(copy));
	rest = p->text + strspn(p->text, " \t");
	if (!*rest || *rest == '#')
		return 0;
	word = rest + strcspn(rest, " \t");
	if ((word - rest == 5 && (!strncmp(rest, "title", 5) || !strncmp(rest, "about", 5))))
		return take_text(p, word, *rest == 't');
	comment = strchr(rest, '#');
	if (comment)
		*comment = 0;
	p->count = 0;
	while ((word = strsep(&rest, " \t"))) {
		if (!*word)
			continue;
		if (p->count == WORDS_MAX)
			return bad(p, "'%s' is one word too many; accepted: up to %d a line", word, WORDS_MAX);
		p->words[p->count++] = word;
	}
	statement = word_of(p, p->words[0], "statement", statements, 6);
	switch (statement) {
	case 2:
		return take_guest(p);
	case 3:
		return take_host(p);
	case 4:
		return take_path(p);
	case 5:
		return take_expect(p);
	}
	return -1;
}

// file.fleet in whatever folder: "file".
static void name_of(struct fleet_description *d)
{
	const char *slash = strrchr(d->file, '/');
	char *dot;

	snprintf(d->name, sizeof(d->name), "%s", slash ? slash + 1 : d->file);
	dot = strrchr(d->name, '.');
	if (dot && dot != d->name && !strcmp(dot, ".fleet"))
		*dot = 0;
}

int fleet_parse(struct fleet_description *d, const char *file, const char *text, size_t size)
{
	struct parser p = { .d = d };
	size_t at = 0;

	memset(d, 0, sizeof(*d));
	d->expected = -1;
	snprintf(d->file, sizeof(d->file), "%s", file);
	name_of(d);
	while (at < size) {
		const char *end = memchr(text + at, '\n', size - at);
		size_t length = end ? (size_t)(end - text) - at : size - at;

		p.line++;
		if (take_line(&p, text + at, length) < 0)
			return -1;
		at += length + 1;
	}
	if (!p.seen_path) {
		p.line = 0;
		return bad(&p, "there is no 'path'; accepted: path HOST HOST...");
	}
	return 0;
}

int fleet_read_file(struct fleet_description *d, const char *path)
{
	struct stat status;
	char *text;
	ssize_t size, n;
	int fd, result;

	if (strlen(path) >= sizeof(d->file) || !printable(path)) {
		vmm_message("fleet: the file name is too long or has control characters");
		return -1;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0 || S_ISDIR(status.st_mode)) {
		vmm_message("%s: %s; a fleet is described in a text file", path,
			    fd < 0 ? strerror(errno) : "it is a directory");
		if (fd >= 0)
			close(fd);
		return -1;
	}
	text = malloc(FILE_SIZE_MAX + 1);
	for (size = 0; text && size <= FILE_SIZE_MAX; size += n) {
		n = read(fd, text + size, FILE_SIZE_MAX + 1 - (size_t)size);
		if (n <= 0)
			break;
	}
	close(fd);
	if (!text || size > FILE_SIZE_MAX) {
		vmm_message("%s: it has more than %u bytes; a fleet is described in a small text file", path, FILE_SIZE_MAX);
		free(text);
		return -1;
	}
	result = fleet_parse(d, path, text, (size_t)size);
	free(text);
	return result;
}
