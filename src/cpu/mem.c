// SPDX-License-Identifier: MIT
// Linear memory accesses by C code.
// SDM: "Paging"; "Locked Atomic Operations" for what must be one access.
//
// An access is cut at page boundaries. Each part is found through the TLB, or is made by C: memory
// I/O, stores to read-only memory (they are memory I/O to user space) and stores to pages with
// translated code. All parts of a store are checked, first to last, before any is written.
#include "cpu/debug.h"
#include "cpu/guest_access.h"
#include "cpu/mem.h"

enum { MMIO_MAX = 8 }; // bytes of one memory I/O transaction

// Where the bytes of an access within one page are.
struct place {
	u8 *host; // NULL: memory I/O at gpa
	u64 gpa;
	bool trapped; // a store must announce itself to the translator
};

static inline struct tlb_entry *lookup(struct cpu *cpu, u64 linear, unsigned access)
{
	unsigned entries;
	struct tlb_entry *entry = tlb_select(cpu, access, &entries);
	u64 page = linear & ~0xfffull;

	entry += page >> 12 & (entries - 1);
	return (access & ACCESS_WRITE ? entry->write : entry->read) == page ? entry : NULL;
}

void *mem_host(struct cpu *cpu, u64 linear, unsigned size, unsigned access)
{
	struct tlb_entry *entry;
	u64 gpa;

	if ((linear & 0xfff) + size > 0x1000)
		return NULL;
	debug_note_data(cpu, linear, size, access);
	entry = lookup(cpu, linear, access);
	if (!entry)
		entry = tlb_fill(cpu, linear, access, &gpa);
	return entry ? (u8 *)entry->host + (linear & 0xfff) : NULL;
}

static struct place find(struct cpu *cpu, u64 linear, unsigned access)
{
	struct tlb_entry *entry = lookup(cpu, linear, access);
	struct place place = { 0 };
	unsigned flags;

	if (!entry)
		entry = tlb_fill(cpu, linear, access, &place.gpa);
	if (entry) {
		place.host = (u8 *)entry->host + (linear & 0xfff);
		place.gpa = TLB_GPA(entry) | (linear & 0xfff);
		return place;
	}
	place.host = phys_page(cpu, place.gpa, &flags);
	if (place.host && (access & ACCESS_WRITE)) {
		if (flags & PAGE_READONLY)
			place.host = NULL;
		place.trapped = true;
	}
	if (place.host)
		place.host += place.gpa & 0xfff;
	return place;
}

static void mmio(struct cpu *cpu, u64 gpa, u8 *data, unsigned size, bool write)
{
	while (size) {
		unsigned part = size < MMIO_MAX ? size : MMIO_MAX;

		cpu_check_ops(cpu, cpu->ops->mmio(cpu->opaque, gpa, data, part, write));
		gpa += part;
		data += part;
		size -= part;
	}
}

// Address of the byte `n` behind `linear`.
static u64 advance(const struct cpu *cpu, u64 linear, unsigned n, unsigned access)
{
	u64 next = linear + n;

	// System structures have 64-bit addresses in all of long mode.
	if (cpu_64bit(cpu) || (cpu_long_mode(cpu) && (access & ACCESS_IMPLICIT)))
		return next;
	return (linear >> 32) ? next : (u32)next;
}

static inline unsigned part_in_page(u64 linear, unsigned size)
{
	unsigned rest = 0x1000 - (linear & 0xfff);

	return rest < size ? rest : size;
}

// Copies by one access where the size allows it: a reader on another vCPU must not see half of it.
static bool copy_in(void *to, const void *from, unsigned size)
{
	u64 value;

	if (size != 1 && size != 2 && size != 4 && size != 8)
		return guest_copy(to, from, size);
	if (!guest_load(from, size, &value))
		return false;
	__builtin_memcpy(to, &value, size);
	return true;
}

static bool copy_out(void *to, const void *from, unsigned size)
{
	u64 value = 0;

	if (size != 1 && size != 2 && size != 4 && size != 8)
		return guest_copy(to, from, size);
	__builtin_memcpy(&value, from, size);
	return guest_store(to, size, value);
}

void mem_read(struct cpu *cpu, u64 linear, void *data, unsigned size, unsigned access)
{
	u8 *bytes = data;

	access &= ~ACCESS_WRITE;
	debug_note_data(cpu, linear, size, access);
	while (size) {
		unsigned part = part_in_page(linear, size);
		struct place place = find(cpu, linear, access);

		if (!place.host)
			mmio(cpu, place.gpa, bytes, part, false);
		else if (!copy_in(bytes, place.host, part))
			guest_fault(cpu, place.host);
		linear = advance(cpu, linear, part, access);
		bytes += part;
		size -= part;
	}
}

static void store(struct cpu *cpu, const struct place *place, const u8 *data, unsigned size)
{
	if (!place->host) {
		mmio(cpu, place->gpa, (u8 *)data, size, true);
		return;
	}
	if (place->trapped) {
		phys_mark_dirty(cpu, place->gpa);
		jit_page_written(cpu, place->gpa, size);
	}
	if (!copy_out(place->host, data, size))
		guest_fault(cpu, place->host);
}

void mem_probe_write(struct cpu *cpu, u64 linear, unsigned size, unsigned access)
{
	while (size) {
		unsigned part = part_in_page(linear, size);

		find(cpu, linear, access | ACCESS_WRITE);
		linear = advance(cpu, linear, part, access);
		size -= part;
	}
}

void mem_write(struct cpu *cpu, u64 linear, const void *data, unsigned size, unsigned access)
{
	const u8 *bytes = data;
	unsigned part = part_in_page(linear, size);
	struct place place;

	access |= ACCESS_WRITE;
	debug_note_data(cpu, linear, size, access);
	if (part == size) {
		place = find(cpu, linear, access);
		store(cpu, &place, bytes, size);
		return;
	}
	mem_probe_write(cpu, linear, size, access);
	while (size) {
		place = find(cpu, linear, access);
		store(cpu, &place, bytes, part);
		linear = advance(cpu, linear, part, access);
		bytes += part;
		size -= part;
		part = part_in_page(linear, size);
	}
}

u64 mem_read_n(struct cpu *cpu, u64 linear, unsigned size, unsigned access)
{
	void *host = mem_host(cpu, linear, size, access & ~ACCESS_WRITE);
	u64 value = 0;

	if (!host)
		mem_read(cpu, linear, &value, size, access);
	else if (!guest_load(host, size, &value))
		guest_fault(cpu, host);
	return value;
}

void mem_write_n(struct cpu *cpu, u64 linear, u64 value, unsigned size, unsigned access)
{
	struct tlb_entry *entry = NULL;

	access |= ACCESS_WRITE;
	debug_note_data(cpu, linear, size, access);
	if ((linear & 0xfff) + size <= 0x1000)
		entry = lookup(cpu, linear, access);
	if (!entry) {
		mem_write(cpu, linear, &value, size, access);
	} else {
		void *host = (u8 *)entry->host + (linear & 0xfff);

		if (!guest_store(host, size, value))
			guest_fault(cpu, host);
	}
}

u64 mem_cmpxchg64(struct cpu *cpu, u64 linear, u64 expected, u64 desired, unsigned access)
{
	struct place place = find(cpu, linear, access | ACCESS_WRITE);
	u64 old = expected;

	debug_note_data(cpu, linear, sizeof(old), access | ACCESS_WRITE);
	if (!place.host) {
		// Locked accesses to memory I/O are not atomic for anybody.
		mmio(cpu, place.gpa, (u8 *)&old, sizeof(old), false);
		mmio(cpu, place.gpa, (u8 *)(old == expected ? &desired : &old), sizeof(old), true);
		return old;
	}
	if (place.trapped) {
		phys_mark_dirty(cpu, place.gpa);
		jit_page_written(cpu, place.gpa, sizeof(old));
	}
	if (!guest_cmpxchg64(place.host, &old, desired))
		guest_fault(cpu, place.host);
	return old;
}
