// SPDX-License-Identifier: MIT
// Function names out of the symbol table that a Linux kernel carries in its own memory (kallsyms), so
// that a guest kernel needs no System.map.
// The table is found by its token table, whose entries for the digits are the digits themselves. The
// arrays lie one behind the other, each aligned to 8 bytes: number of symbols, names, markers, token
// table, token index, offsets, base address. Every step is checked against another array, for the
// memory is a guest's: nothing here may be believed.
#include "base/symbols.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
	PAGE = 4096,
	SCAN_PAGES = 16384,	// 64 MiB from the kernel's text on
	TOKENS = 256,
	TOKEN_BYTES = 16384,	// of all tokens
	MARKER_EVERY = 256,	// symbols between two markers
	MAX_MARKERS = 8192,
	MAX_NAME = 512,
	LAST_NAMES = 32768,	// bytes that the names behind the last marker may have
};

struct kallsyms {
	symbols_peek *peek;
	void *opaque;
	char tokens[TOKEN_BYTES];
	uint16_t token_index[TOKENS];
	uint64_t token_table, offsets;
	uint32_t markers[MAX_MARKERS];
	unsigned marker_count;
	unsigned char *names, *names_end;
	uint32_t count; // symbols
};

static bool read_memory(const struct kallsyms *k, uint64_t address, void *data, size_t size)
{
	char *to = data;

	while (size) {
		size_t part = PAGE - (address & (PAGE - 1));

		if (part > size)
			part = size;
		if (k->peek(k->opaque, address, to, part) != part)
			return false;
		address += part;
		to += part;
		size -= part;
	}
	return true;
}

static uint64_t align8(uint64_t address) { return (address + 7) & ~7ull; }

// Is the token for '0' at `digit`? Then reads the token table and its index.
static bool read_tokens(struct kallsyms *k, uint64_t digit)
{
	static char ahead[TOKEN_BYTES];
	size_t end = 0;

	if (!read_memory(k, digit, ahead, sizeof(ahead)))
		return false;
	for (unsigned token = '0'; token < TOKENS; token++) {
		const char *nul = memchr(ahead + end, 0, sizeof(ahead) - end);

		if (!nul)
			return false;
		end = nul + 1 - ahead;
	}
	if (!read_memory(k, align8(digit + end), k->token_index, sizeof(k->token_index)) || k->token_index[0])
		return false;
	for (unsigned token = 1; token < TOKENS; token++)
		if (k->token_index[token] <= k->token_index[token - 1])
			return false;
	k->token_table = digit - k->token_index['0'];
	k->offsets = align8(align8(digit + end) + sizeof(k->token_index));
	if (k->token_index['0'] + end > sizeof(k->tokens) || k->token_index[TOKENS - 1] >= k->token_index['0'] + end)
		return false;
	return read_memory(k, k->token_table, k->tokens, k->token_index['0'] + end) && !k->tokens[k->token_index['1'] - 1];
}

static bool find_tokens(struct kallsyms *k, uint64_t text)
{
	static const char digits[20] = "0\0" "1\0" "2\0" "3\0" "4\0" "5\0" "6\0" "7\0" "8\0" "9";
	static char window[sizeof(digits) + PAGE];

	memset(window, 0xff, sizeof(digits));
	for (unsigned page = 0; page < SCAN_PAGES; page++, text += PAGE) {
		char *at = window, *end = window + sizeof(window);

		if (!read_memory(k, text, window + sizeof(digits), PAGE))
			memset(window + sizeof(digits), 0xff, PAGE);
		while ((at = memmem(at, end - at, digits, sizeof(digits)))) {
			if (read_tokens(k, text - sizeof(digits) + (at - window)))
				return true;
			at++;
		}
		memcpy(window, window + PAGE, sizeof(digits));
	}
	return false;
}

// The markers end where the token table begins; they rise from 0.
static bool find_markers(struct kallsyms *k, uint64_t *start)
{
	static uint32_t before[MAX_MARKERS];
	unsigned i = MAX_MARKERS, end;

	if (!read_memory(k, k->token_table - sizeof(before), before, sizeof(before)))
		return false;
	if (!before[i - 1])
		i--; // padding
	end = i--;
	while (i && before[i - 1] < before[i])
		i--;
	if (before[i] || end - i < 2)
		return false;
	k->marker_count = end - i;
	memcpy(k->markers, before + i, k->marker_count * sizeof(*before));
	*start = k->token_table - (MAX_MARKERS - i) * sizeof(*before);
	return true;
}

// Length of the compressed name at `name`, and where it starts; NULL: beyond the end.
static const unsigned char *name_at(const struct kallsyms *k, const unsigned char *name, unsigned *length)
{
	if (name + 2 > k->names_end)
		return NULL;
	*length = *name++;
	if (*length & 0x80)
		*length = (*length & 0x7f) | *name++ << 7;
	return *length && name + *length <= k->names_end ? name : NULL;
}

// Do the names start here? Each marker must be met.
static bool names_fit(const struct kallsyms *k, const unsigned char *start, uint32_t count)
{
	const unsigned char *name = start;

	for (uint32_t i = 0; i < count; i++) {
		unsigned length;

		if (i % MARKER_EVERY == 0 && (uint64_t)(name - start) != k->markers[i / MARKER_EVERY])
			return false;
		name = name_at(k, name, &length);
		if (!name)
			return false;
		name += length;
	}
	return true;
}

static bool find_names(struct kallsyms *k, uint64_t markers, unsigned char **memory)
{
	size_t least = k->markers[k->marker_count - 1], size = align8(least + LAST_NAMES);

	if (least > 1u << 28)
		return false;
	*memory = malloc(size);
	if (!*memory || !read_memory(k, markers - size, *memory, size))
		return false;
	k->names_end = *memory + size;
	for (unsigned char *start = *memory + 8; start + least < k->names_end; start += 8) {
		uint32_t count;

		memcpy(&count, start - 8, sizeof(count));
		if ((count + MARKER_EVERY - 1) / MARKER_EVERY != k->marker_count || !names_fit(k, start, count))
			continue;
		k->names = start;
		k->count = count;
		return true;
	}
	return false;
}

// Expands a name into `to`; its first character is the symbol's type. Returns its length, 0: bad.
static size_t expand(const struct kallsyms *k, const unsigned char *name, unsigned length, char *to)
{
	size_t n = 0;

	for (unsigned i = 0; i < length; i++) {
		const char *token = k->tokens + k->token_index[name[i]];
		size_t part = strlen(token);

		if (n + part >= MAX_NAME)
			return 0;
		memcpy(to + n, token, part);
		n += part;
	}
	to[n] = 0;
	return n;
}

static bool add_all(const struct kallsyms *k, const int32_t *offsets, uint64_t base)
{
	const unsigned char *name = k->names;
	struct symbol *symbols = malloc(k->count * sizeof(*symbols));
	size_t count = 0;
	char text[MAX_NAME];

	for (uint32_t i = 0; symbols && i < k->count; i++) {
		unsigned length;
		size_t n;

		name = name_at(k, name, &length);
		n = name ? expand(k, name, length, text) : 0;
		if (!n)
			break;
		name += length;
		// Numbers that are not negative are per-CPU addresses.
		if (!strchr("tTwW", text[0]) || offsets[i] >= 0)
			continue;
		symbols[count] = (struct symbol){ .address = base - 1 - (int64_t)offsets[i], .name = strdup(text + 1) };
		if (symbols[count].name)
			count++;
	}
	if (symbols && count && !symbols_adopt("kernel", symbols, count))
		return true;
	free(symbols);
	return false;
}

bool kallsyms_load(uint64_t text, symbols_peek *peek, void *opaque)
{
	struct kallsyms *k = calloc(1, sizeof(*k));
	unsigned char *names = NULL;
	int32_t *offsets = NULL;
	uint64_t markers, base;
	bool good = false;

	if (!k)
		return false;
	k->peek = peek;
	k->opaque = opaque;
	if (find_tokens(k, text & ~(uint64_t)(PAGE - 1)) && find_markers(k, &markers) &&
	    find_names(k, markers, &names)) {
		offsets = malloc(k->count * sizeof(*offsets));
		good = offsets && read_memory(k, k->offsets, offsets, k->count * sizeof(*offsets)) &&
		       read_memory(k, align8(k->offsets + k->count * sizeof(*offsets)), &base, sizeof(base)) &&
		       base >> 47 == 0x1ffff && add_all(k, offsets, base);
	}
	free(offsets);
	free(names);
	free(k);
	return good;
}
