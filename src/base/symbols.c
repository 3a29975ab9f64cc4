// SPDX-License-Identifier: MIT
// Symbol files: loading, and finding the symbol that covers an address.
// A file has one bias, the distance between its addresses and the guest's: 0 for a System.map or a
// fixed ELF, set by an anchor for a kernel that moved, found by comparing code for a program that
// can be loaded anywhere. Files are kept until the process ends.
#include "base/symbols.h"

#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILES 64
#define MATCH_BYTES 16

struct code {
	uint64_t address, size;
	const unsigned char *bytes;
};

struct symbol_file {
	const char *name; // without directories
	unsigned char *image; // the whole file: names and code point into it
	size_t image_size;
	struct symbol *symbols; // by address
	size_t count, room;
	struct code *code; // executable segments
	size_t code_count;
	uint64_t bias;
	bool movable; // loaded anywhere: the bias is found by comparing
	bool bias_known;
};

static struct symbol_file files[MAX_FILES];
static size_t file_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int by_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

static int add_symbol(struct symbol_file *file, uint64_t address, uint64_t size, const char *name)
{
	if (file->count == file->room) {
		size_t room = file->room ? 2 * file->room : 256;
		struct symbol *more = realloc(file->symbols, room * sizeof(*more));

		if (!more)
			return -1;
		file->symbols = more;
		file->room = room;
	}
	file->symbols[file->count++] = (struct symbol){ address, size, name };
	return 0;
}

// Lines "ffffffff81000000 T _text".
static int load_map(struct symbol_file *file)
{
	char *line = (char *)file->image, *end = line + file->image_size;

	while (line < end) {
		char *next = memchr(line, '\n', end - line), *rest;
		uint64_t address;

		if (!next)
			break;
		*next = 0;
		errno = 0;
		address = strtoull(line, &rest, 16);
		if (errno || rest != line + 16 || rest[0] != ' ' || !rest[1] || rest[2] != ' ' || !rest[3]) {
			errno = EINVAL;
			return -1;
		}
		// Absolute and per-CPU symbols are small numbers, not addresses.
		if (strchr("TtWw", rest[1]) && address >= 0x1000 && add_symbol(file, address, 0, rest + 3))
			return -1;
		line = next + 1;
	}
	// Distributions ship a System.map without symbols.
	if (file->count)
		return 0;
	errno = ENODATA;
	return -1;
}

static bool inside(const struct symbol_file *file, uint64_t offset, uint64_t size)
{
	return offset <= file->image_size && size <= file->image_size - offset;
}

static int load_elf_symbols(struct symbol_file *file, const Elf64_Ehdr *header, uint32_t type)
{
	const Elf64_Shdr *sections = (const void *)(file->image + header->e_shoff);

	for (unsigned i = 0; i < header->e_shnum; i++) {
		const Elf64_Shdr *strings;
		const Elf64_Sym *symbol;
		uint64_t n;

		if (sections[i].sh_type != type || sections[i].sh_link >= header->e_shnum)
			continue;
		strings = &sections[sections[i].sh_link];
		if (!inside(file, sections[i].sh_offset, sections[i].sh_size) ||
		    !inside(file, strings->sh_offset, strings->sh_size) || !strings->sh_size ||
		    file->image[strings->sh_offset + strings->sh_size - 1])
			continue;
		symbol = (const void *)(file->image + sections[i].sh_offset);
		n = sections[i].sh_size / sizeof(*symbol);
		for (; n; n--, symbol++) {
			if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || !symbol->st_value ||
			    symbol->st_name >= strings->sh_size)
				continue;
			if (add_symbol(file, symbol->st_value, symbol->st_size,
				       (const char *)file->image + strings->sh_offset + symbol->st_name))
				return -1;
		}
	}
	return 0;
}

static int load_elf(struct symbol_file *file)
{
	const Elf64_Ehdr *header = (const void *)file->image;
	const Elf64_Phdr *segments;

	if (file->image_size < sizeof(*header) || header->e_ident[EI_CLASS] != ELFCLASS64 ||
	    header->e_shentsize != sizeof(Elf64_Shdr) || header->e_phentsize != sizeof(Elf64_Phdr) ||
	    !inside(file, header->e_shoff, (uint64_t)header->e_shnum * sizeof(Elf64_Shdr)) ||
	    !inside(file, header->e_phoff, (uint64_t)header->e_phnum * sizeof(Elf64_Phdr)) ||
	    header->e_shoff % 8 || header->e_phoff % 8) {
		errno = EINVAL;
		return -1;
	}
	file->movable = header->e_type == ET_DYN;
	segments = (const void *)(file->image + header->e_phoff);
	file->code = calloc(header->e_phnum + 1, sizeof(*file->code));
	if (!file->code)
		return -1;
	for (unsigned i = 0; i < header->e_phnum; i++) {
		if (segments[i].p_type != PT_LOAD || !(segments[i].p_flags & PF_X) ||
		    !inside(file, segments[i].p_offset, segments[i].p_filesz))
			continue;
		file->code[file->code_count++] = (struct code){ segments[i].p_vaddr, segments[i].p_filesz,
								file->image + segments[i].p_offset };
	}
	if (load_elf_symbols(file, header, SHT_SYMTAB))
		return -1;
	// A stripped program still names what it exports.
	return file->count ? 0 : load_elf_symbols(file, header, SHT_DYNSYM);
}

static unsigned char *read_whole(const char *path, size_t *size)
{
	FILE *stream = fopen(path, "rb");
	unsigned char *image = NULL;
	size_t room = 0, n;

	if (!stream)
		return NULL;
	*size = 0;
	do {
		if (*size == room) {
			unsigned char *more = realloc(image, room = room ? 2 * room : 1 << 20);

			if (!more)
				goto fail;
			image = more;
		}
		n = fread(image + *size, 1, room - *size, stream);
		*size += n;
	} while (n);
	if (ferror(stream))
		goto fail;
	fclose(stream);
	return image;
fail:
	free(image);
	fclose(stream);
	return NULL;
}

int symbols_load(const char *path)
{
	struct symbol_file file = { 0 };
	const char *slash = strrchr(path, '/');
	int failed;

	if (file_count == MAX_FILES) {
		errno = ENOSPC;
		return -1;
	}
	file.image = read_whole(path, &file.image_size);
	if (!file.image)
		return -1;
	file.name = strdup(slash ? slash + 1 : path);
	if (file.image_size >= SELFMAG && !memcmp(file.image, ELFMAG, SELFMAG))
		failed = load_elf(&file);
	else
		failed = load_map(&file);
	if (failed || !file.name) {
		int error = errno;

		free(file.symbols);
		free(file.code);
		free(file.image);
		free((char *)file.name);
		errno = error;
		return -1;
	}
	qsort(file.symbols, file.count, sizeof(*file.symbols), by_address);
	pthread_mutex_lock(&lock);
	files[file_count++] = file;
	pthread_mutex_unlock(&lock);
	return 0;
}

int symbols_adopt(const char *name, struct symbol *symbols, size_t count)
{
	struct symbol_file file = { .name = name, .symbols = symbols, .count = count, .bias_known = true };

	if (file_count == MAX_FILES) {
		errno = ENOSPC;
		return -1;
	}
	qsort(symbols, count, sizeof(*symbols), by_address);
	pthread_mutex_lock(&lock);
	files[file_count++] = file;
	pthread_mutex_unlock(&lock);
	return 0;
}

void symbols_set_anchor(const char *name, uint64_t address)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < file_count; i++) {
		struct symbol_file *file = &files[i];

		if (file->bias_known || file->movable)
			continue;
		for (size_t j = 0; j < file->count; j++) {
			if (strcmp(file->symbols[j].name, name))
				continue;
			file->bias = address - file->symbols[j].address;
			break;
		}
		file->bias_known = true;
	}
	pthread_mutex_unlock(&lock);
}

// Is `address` in code of this movable file? The guest's bytes there must be the file's at the same
// place of a page, and nowhere else in the file.
static bool find_bias(struct symbol_file *file, uint64_t address, symbols_peek *peek, void *opaque)
{
	unsigned char bytes[MATCH_BYTES];
	uint64_t start = address & ~(uint64_t)(MATCH_BYTES - 1);
	unsigned matches = 0;

	if (!peek || peek(opaque, start, bytes, sizeof(bytes)) != sizeof(bytes))
		return false;
	for (size_t i = 0; i < file->code_count; i++) {
		const struct code *code = &file->code[i];
		uint64_t at = (start - code->address) & 0xfff;

		for (; at + sizeof(bytes) <= code->size; at += 0x1000) {
			if (memcmp(code->bytes + at, bytes, sizeof(bytes)))
				continue;
			file->bias = start - (code->address + at);
			matches++;
		}
	}
	file->bias_known = matches == 1;
	return file->bias_known;
}

static bool covers(const struct symbol_file *file, uint64_t address)
{
	for (size_t i = 0; i < file->code_count; i++)
		if (address - file->code[i].address < file->code[i].size)
			return true;
	return !file->code_count;
}

static const struct symbol *find_symbol(const struct symbol_file *file, uint64_t address)
{
	size_t low = 0, high = file->count;

	if (!covers(file, address))
		return NULL;
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (file->symbols[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return NULL;
	// Without sizes nothing tells where the last function of a file ends.
	if (low == file->count && !file->symbols[low - 1].size && address - file->symbols[low - 1].address > 0x10000)
		return NULL;
	// Behind a function whose size is known comes something without a name.
	if (file->symbols[low - 1].size && address - file->symbols[low - 1].address >= file->symbols[low - 1].size)
		return NULL;
	return &file->symbols[low - 1];
}

void symbols_name(uint64_t address, symbols_peek *peek, void *opaque, char *buf, size_t n)
{
	buf[0] = 0;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < file_count; i++) {
		struct symbol_file *file = &files[i];
		const struct symbol *symbol = NULL;

		if (!file->movable || file->bias_known)
			symbol = find_symbol(file, address - file->bias);
		// Another process may have the same program elsewhere.
		if (!symbol && file->movable && find_bias(file, address, peek, opaque))
			symbol = find_symbol(file, address - file->bias);
		if (!symbol)
			continue;
		snprintf(buf, n, " (%s+0x%llx %s)", symbol->name,
			 (unsigned long long)(address - file->bias - symbol->address), file->name);
		break;
	}
	pthread_mutex_unlock(&lock);
}
