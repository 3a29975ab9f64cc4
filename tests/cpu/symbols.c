// SPDX-License-Identifier: MIT
// Symbol files of --trace cp: System.map, position-independent programs (this one is its own guest),
// files that are none.
#include "base/symbols.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int count, failures;

static void ok(int good, const char *name, const char *got)
{
	printf("%sok %d - %s\n", good ? "" : "not ", ++count, name);
	if (!good) {
		failures++;
		printf("#   got \"%s\"\n", got);
	}
}

static int load_text(const char *text)
{
	char path[] = "/tmp/symbols-XXXXXX";
	int fd = mkstemp(path), result;

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		abort();
	close(fd);
	result = symbols_load(path);
	unlink(path);
	return result;
}

static void is_named(uint64_t address, symbols_peek *peek, const char *wanted, const char *name)
{
	char got[200];

	symbols_name(address, peek, NULL, got, sizeof(got));
	ok(wanted[0] ? !strncmp(got, wanted, strlen(wanted)) : !got[0], name, got);
}

// Reads around variables too, which is nobody's error here.
__attribute__((no_sanitize("address"))) static size_t peek_self(void *opaque, uint64_t address, void *data,
								 size_t size)
{
	for (size_t i = 0; i < size; i++)
		((volatile char *)data)[i] = ((const volatile char *)address)[i];
	return size;
}

static size_t peek_nothing(void *opaque, uint64_t address, void *data, size_t size)
{
	return 0;
}

__attribute__((noinline)) static int marked_function(int x)
{
	return x * 12345 + 678;
}

int main(void)
{
	ok(load_text("this is no map\n") < 0 && errno == EINVAL, "a text that is no System.map", strerror(errno));
	ok(load_text("ffffffffffffffff B The real System.map is elsewhere\n") < 0 && errno == ENODATA,
	   "a System.map without symbols", strerror(errno));
	ok(load_text("\177ELF and no more") < 0 && errno == EINVAL, "an ELF header cut short", strerror(errno));
	ok(symbols_load("/nonexistent/file") < 0 && errno == ENOENT, "no such file", strerror(errno));

	ok(!load_text("0000000000000000 A fixed_percpu_data\n"
		      "ffffffff81000000 T _text\n"
		      "ffffffff81000100 t first\n"
		      "ffffffff81000200 T entry_SYSCALL_64\n"
		      "ffffffff81000400 D data_is_no_code\n"
		      "ffffffff81000600 T last\n"), "a System.map", strerror(errno));
	is_named(0xffffffff81000234, NULL, " (entry_SYSCALL_64+0x34 ", "an address in it");
	is_named(0xffffffff810001ff, NULL, " (first+0xff ", "up to the next function");
	is_named(0xffffffff81000450, NULL, " (entry_SYSCALL_64+0x250 ", "data does not count");
	is_named(0xffffffff80ffffff, NULL, "", "below the first");
	is_named(0xffffffff91000000, NULL, "", "far above the last");
	symbols_set_anchor("entry_SYSCALL_64", 0xffffffffa5000200);
	is_named(0xffffffffa5000101, NULL, " (first+0x1 ", "after the kernel moved");
	is_named(0xffffffff81000101, NULL, "", "and no more where it was");

	ok(!symbols_load("/proc/self/exe"), "a position-independent program", strerror(errno));
	is_named((uint64_t)marked_function, peek_nothing, "", "whose memory cannot be read");
	is_named((uint64_t)marked_function, peek_self, " (marked_function+0x0 ", "found by its code");
	is_named((uint64_t)main + 8, peek_nothing, " (main+0x8 ", "and then known");
	is_named((uint64_t)&count, peek_self, "", "data is no code");
	ok(!kallsyms_load(0xffffffff81000000, peek_nothing, NULL), "no kallsyms where nothing can be read", "");
	printf("1..%d\n", count);
	return failures || marked_function(0) != 678;
}
