// SPDX-License-Identifier: MIT
// Names for addresses of the guest, out of System.map files and the symbol tables of ELF files.
#ifndef CETKVM_BASE_SYMBOLS_H
#define CETKVM_BASE_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct symbol {
	uint64_t address, size;
	const char *name;
};

// Adds a System.map or an ELF file (vmlinux, a program). 0, or -1 with errno (EINVAL: neither; ENODATA:
// no symbols in it).
int symbols_load(const char *path);

// The file which has symbol `name` has it at `address` in the guest: all of its symbols move by the
// same distance. Nothing happens when no file has the symbol. Meant for a kernel moved by KASLR.
void symbols_set_anchor(const char *name, uint64_t address);

// Reads up to `size` guest bytes within one page; returns how many.
typedef size_t symbols_peek(void *opaque, uint64_t address, void *data, size_t size);

// Adds symbols at the addresses they have in the guest, allocated with malloc(), names included; they
// belong to the callee then. 0, or -1 with errno.
int symbols_adopt(const char *file, struct symbol *symbols, size_t count);

// Finds the symbol table that a Linux kernel keeps in memory, at or above `text`, and adds its functions
// as a file "kernel". False: there is none that can be read. (kallsyms.c)
bool kallsyms_load(uint64_t text, symbols_peek *peek, void *opaque);

// Writes " (name+0x12 file)" into buf, or "". Position-independent programs are found by comparing the
// guest's bytes around `address` with the file's at the same page offset.
void symbols_name(uint64_t address, symbols_peek *peek, void *opaque, char *buf, size_t n);

#endif
