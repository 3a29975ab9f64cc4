// SPDX-License-Identifier: MIT
// The software TLB: which host page a linear page is, and what may be done to it without asking.
// SDM: "Caching Translation Information".
//
// - An entry answers for one 4-KiB page; its tags are valid only if an access of that kind needs
//   nothing but the access: A and D are set, the page is RAM, a write needs no trap.
// - There is one table for each set of access rights (tlb_select()). A change of CR0.WP, CR4 or
//   EFER.NXE that means different rights flushes.
// - Entries belong to the current address space or are global: MOV CR3 drops the former, also when
//   PCIDs would let them live on (allowed: a processor may forget translations at any time).
// - With SMAP, user pages are in the supervisor table only while EFLAGS.AC is set at CPL < 3;
//   tlb_drop_ac() takes them out again. Translated code so needs no table of its own for AC.
// - A flush costs what was filled since the last one.
// - The page cache in front of ops->map lives by the same rules as the TLB entries: it goes with
//   tlb_flush_all(), which follows every change of the memory map.
#include "cpu/mem.h"

#include <string.h>

// The tables lie behind one another, so that an entry has one number.
static inline struct tlb_entry *entry_at(struct cpu *cpu, unsigned number)
{
	return (struct tlb_entry *)((u8 *)cpu + offsetof(struct cpu, tlb_k)) + number;
}

static inline unsigned number_of(struct cpu *cpu, const struct tlb_entry *entry)
{
	return entry - entry_at(cpu, 0);
}

#define AT(table, number) \
	_Static_assert(offsetof(struct cpu, table) == \
		       offsetof(struct cpu, tlb_k) + (number) * sizeof(struct tlb_entry), "TLB layout")
AT(tlb_u, 1 << TLB_K_BITS);
AT(tlb_ssk, 2 * (1 << TLB_K_BITS));
AT(tlb_ssu, 2 * (1 << TLB_K_BITS) + (1 << TLB_SS_BITS));
enum { FIRST_CODE = 2 * (1 << TLB_K_BITS) + 2 * (1 << TLB_SS_BITS) };
_Static_assert(FIRST_CODE % 64 == 0, "tlb_drop_code()");
AT(tlb_code, 2 * (1 << TLB_K_BITS) + 2 * (1 << TLB_SS_BITS));
_Static_assert(TLB_K_BITS == TLB_U_BITS, "TLB layout");

// The pages that kernels map large are few and their own; hashing keeps the INVLPG of everybody
// else's pages cheap.
enum { LARGE_2M, LARGE_1G };

static u64 large_hash(u64 linear, unsigned kind)
{
	return (linear >> (kind == LARGE_1G ? 30 : 21)) * 0x9e3779b97f4a7c15ull;
}

static bool set_has(const u64 *set, unsigned bit) { return set[bit / 64] >> bit % 64 & 1; }
static void set_add(u64 *set, unsigned bit) { set[bit / 64] |= 1ull << bit % 64; }

static void note_large(struct cpu *cpu, unsigned number, u64 linear, unsigned kind)
{
	u64 hash = large_hash(linear, kind);

	set_add(cpu->tlb_notes.large[linear >> 63][kind].data, hash >> 55);
	if (number >= FIRST_CODE)
		set_add(cpu->tlb_notes.large[linear >> 63][kind].code, hash >> 56);
}

static void note_filled(struct cpu *cpu, unsigned number, u64 linear, u64 gpa)
{
	struct tlb_notes *notes = &cpu->tlb_notes;
	unsigned kind = gpa & TLB_GLOBAL;

	notes->filled[kind][number / 64] |= 1ull << number % 64;
	notes->filled_words[kind][number / 64 / 64] |= 1ull << number / 64 % 64;
	if (gpa & (TLB_LARGE_2M | TLB_LARGE_1G))
		note_large(cpu, number, linear, !(gpa & TLB_LARGE_2M));
	if (gpa & TLB_PROTECTION_KEY)
		notes->protection_keys = true;
}

static void drop(struct cpu *cpu, struct tlb_entry *entry)
{
	entry->read = entry->write = TLB_NONE(number_of(cpu, entry));
}

void tlb_init(struct cpu *cpu)
{
	// In fresh memory all tags are 0. That is the tag of a page that selects a table's first entry.
	drop(cpu, cpu->tlb_k);
	drop(cpu, cpu->tlb_u);
	drop(cpu, cpu->tlb_ssk);
	drop(cpu, cpu->tlb_ssu);
	drop(cpu, cpu->tlb_code[0]);
	drop(cpu, cpu->tlb_code[1]);
}

// A supervisor access that SMAP lets through because of EFLAGS.AC.
static bool tlb_ac_access(const struct cpu *cpu, unsigned access)
{
	return (cpu->rflags & FLAG_AC) && (cpu->cr4 & CR4_SMAP) && cpu->cpl != 3 &&
	       !(access & (ACCESS_IMPLICIT | ACCESS_USER | ACCESS_SS | ACCESS_FETCH));
}

void tlb_drop_ac(struct cpu *cpu)
{
	struct tlb_notes *notes = &cpu->tlb_notes;
	unsigned count = cpu->tlb_ac_count;

	cpu->tlb_ac_count = 0;
	tlb_forget_stack(cpu);
	if (count > TLB_AC_MAX) {
		for (unsigned i = 0; i < 1 << TLB_K_BITS; i++)
			if (cpu->tlb_k[i].gpa & TLB_AC)
				drop(cpu, &cpu->tlb_k[i]);
		return;
	}
	for (unsigned i = 0; i < count; i++)
		if (cpu->tlb_k[notes->ac_entries[i]].gpa & TLB_AC)
			drop(cpu, &cpu->tlb_k[notes->ac_entries[i]]);
}

struct tlb_entry *tlb_select(struct cpu *cpu, unsigned access, unsigned *entries)
{
	if (access & ACCESS_FETCH) {
		*entries = 1 << TLB_CODE_BITS;
		return cpu->tlb_code[!!(access & ACCESS_USER)];
	}
	if (access & ACCESS_SS) {
		*entries = 1 << TLB_SS_BITS;
		return access & ACCESS_USER ? cpu->tlb_ssu : cpu->tlb_ssk;
	}
	if (access & ACCESS_USER) {
		*entries = 1 << TLB_U_BITS;
		return cpu->tlb_u;
	}
	if (cpu->tlb_ac_count && !tlb_ac_access(cpu, access))
		tlb_drop_ac(cpu);
	*entries = 1 << TLB_K_BITS;
	return cpu->tlb_k;
}

static void note_ac(struct cpu *cpu, unsigned number)
{
	if (cpu->tlb_ac_count < TLB_AC_MAX)
		cpu->tlb_notes.ac_entries[cpu->tlb_ac_count] = number;
	if (cpu->tlb_ac_count <= TLB_AC_MAX)
		cpu->tlb_ac_count++;
}

// What user code may do to a page of its own, the supervisor may under EFLAGS.AC: copy the entry.
static bool fill_ac(struct cpu *cpu, struct tlb_entry *entry, u64 page, unsigned access)
{
	const struct tlb_entry *user = &cpu->tlb_u[page >> 12 & ((1 << TLB_U_BITS) - 1)];

	if ((access & ACCESS_WRITE ? user->write : user->read) != page)
		return false;
	*entry = *user;
	entry->gpa |= TLB_AC;
	note_filled(cpu, number_of(cpu, entry), page, entry->gpa);
	note_ac(cpu, number_of(cpu, entry));
	return true;
}

struct tlb_entry *tlb_fill(struct cpu *cpu, u64 linear, unsigned access, u64 *gpa)
{
	unsigned entries, flags;
	struct tlb_entry *entry = tlb_select(cpu, access, &entries);
	u64 page = linear & ~0xfffull, none, tag_write;
	bool ac = tlb_ac_access(cpu, access);
	struct walk walk;
	u8 *host;

	entry += page >> 12 & (entries - 1);
	tag_write = none = TLB_NONE(number_of(cpu, entry));
	if (ac && fill_ac(cpu, entry, page, access))
		return entry;
	// Segmentation has checked what it makes; bases of descriptor tables may be wider (cpu_canonical_base()).
	if (cpu_long_mode(cpu) && !cpu_canonical(cpu, linear))
		cpu_gp0(cpu);
	if (!paging_walk(cpu, linear, access, &walk))
		cpu_raise_pf(cpu, linear, walk.error);
	*gpa = walk.gpa;
	host = phys_page(cpu, walk.gpa & ~0xfffull, &flags);
	if (!host)
		return NULL;

	if (access & ACCESS_WRITE) {
		// Else loads may still use the entry; stores come here each time.
		if (!(flags & PAGE_READONLY) && jit_page_writable(cpu, walk.gpa & ~0xfffull, host)) {
			phys_mark_dirty(cpu, walk.gpa);
			tag_write = page;
		}
	}

	entry->read = page;
	entry->write = tag_write;
	entry->host = (u64)host;
	entry->gpa = (walk.gpa & ~0xfffull) | (walk.global ? TLB_GLOBAL : 0) |
		     (walk.page_size == 2 << 20   ? TLB_LARGE_2M
		      : walk.page_size > 2 << 20 ? TLB_LARGE_1G
						 : 0) |
		     (walk.protection_key ? TLB_PROTECTION_KEY : 0);
	note_filled(cpu, number_of(cpu, entry), linear, entry->gpa);
	if (ac && walk.user) {
		entry->gpa |= TLB_AC;
		note_ac(cpu, number_of(cpu, entry));
	}
	return (access & ACCESS_WRITE) && tag_write == none ? NULL : entry;
}

void *mem_code_page(struct cpu *cpu, u64 linear, u64 *gpa)
{
	unsigned access = ACCESS_FETCH | cpu_access_of_cpl(cpu);
	struct tlb_entry *entry =
		&cpu->tlb_code[cpu->cpl == 3][linear >> 12 & ((1 << TLB_CODE_BITS) - 1)];

	if (entry->read != (linear & ~0xfffull)) {
		if (cpu_long_mode(cpu) && !cpu_canonical(cpu, linear))
			cpu_gp0(cpu);
		entry = tlb_fill(cpu, linear, access, gpa);
		if (!entry)
			return NULL;
		if (cpu->jit)
			jit_check_code_page(cpu, TLB_GPA(entry), (void *)entry->host);
	}
	*gpa = TLB_GPA(entry);
	return (void *)entry->host;
}

void tlb_drop_code(struct cpu *cpu)
{
	struct tlb_notes *notes = &cpu->tlb_notes;

	for (unsigned word = FIRST_CODE / 64; word < sizeof(notes->filled[0]) / sizeof(u64); word++)
		for (u64 bits = notes->filled[0][word] | notes->filled[1][word]; bits; bits &= bits - 1)
			drop(cpu, entry_at(cpu, word * 64 + __builtin_ctzll(bits)));
}

// Drops all entries of one kind: 0 of the address space, 1 global.
static void flush_kind(struct cpu *cpu, unsigned kind)
{
	struct tlb_notes *notes = &cpu->tlb_notes;

	for (unsigned i = 0; i < sizeof(notes->filled_words[0]) / sizeof(u64); i++) {
		u64 words = notes->filled_words[kind][i];

		notes->filled_words[kind][i] = 0;
		for (; words; words &= words - 1) {
			unsigned word = i * 64 + __builtin_ctzll(words);
			u64 bits = notes->filled[kind][word];

			notes->filled[kind][word] = 0;
			for (; bits; bits &= bits - 1) {
				struct tlb_entry *entry =
					entry_at(cpu, word * 64 + __builtin_ctzll(bits));

				// Its place may have been taken by an entry of the other kind.
				if ((entry->gpa & TLB_GLOBAL) == kind)
					drop(cpu, entry);
			}
		}
	}
}

void tlb_flush_all(struct cpu *cpu)
{
	struct tlb_notes *notes = &cpu->tlb_notes;

	flush_kind(cpu, 0);
	flush_kind(cpu, 1);
	for (unsigned i = 0; i < PAGE_CACHE_SIZE; i++)
		notes->pages[0][i].gpa = notes->pages[1][i].gpa = 1;
	memset(notes->large, 0, sizeof(notes->large));
	cpu->tlb_ac_count = 0;
	notes->protection_keys = false;
	jit_tlb_flushed(cpu, true);
}

void tlb_flush_nonglobal(struct cpu *cpu)
{
	flush_kind(cpu, 0);
	jit_tlb_flushed(cpu, false);
}

// Drops what was cut from the large page around `linear`: entries with `flag` set whose address
// agrees with it above bit `shift`. Rare, so it looks at everything that is filled.
static void flush_large(struct cpu *cpu, u64 linear, unsigned shift, u64 flag)
{
	struct tlb_notes *notes = &cpu->tlb_notes;

	for (unsigned word = 0; word < sizeof(notes->filled[0]) / sizeof(u64); word++) {
		u64 bits = notes->filled[0][word] | notes->filled[1][word];

		for (; bits; bits &= bits - 1) {
			struct tlb_entry *entry = entry_at(cpu, word * 64 + __builtin_ctzll(bits));

			if ((entry->gpa & flag) && !((entry->read ^ linear) >> shift))
				drop(cpu, entry);
		}
	}
}

static void flush_page_of(struct cpu *cpu, struct tlb_entry *table, unsigned bits, u64 page)
{
	struct tlb_entry *entry = &table[page >> 12 & ((1u << bits) - 1)];

	if (entry->read == page)
		drop(cpu, entry);
}

void tlb_flush_page(struct cpu *cpu, u64 linear)
{
	struct tlb_notes *notes = &cpu->tlb_notes;
	u64 page = linear & ~0xfffull;
	bool code = false;

	flush_page_of(cpu, cpu->tlb_k, TLB_K_BITS, page);
	flush_page_of(cpu, cpu->tlb_u, TLB_U_BITS, page);
	flush_page_of(cpu, cpu->tlb_ssk, TLB_SS_BITS, page);
	flush_page_of(cpu, cpu->tlb_ssu, TLB_SS_BITS, page);
	flush_page_of(cpu, cpu->tlb_code[0], TLB_CODE_BITS, page);
	flush_page_of(cpu, cpu->tlb_code[1], TLB_CODE_BITS, page);

	for (unsigned kind = LARGE_2M; kind <= LARGE_1G; kind++) {
		u64 hash = large_hash(linear, kind);

		if (set_has(notes->large[linear >> 63][kind].data, hash >> 55))
			flush_large(cpu, linear, kind == LARGE_2M ? 21 : 30,
				    kind == LARGE_2M ? TLB_LARGE_2M : TLB_LARGE_1G);
		code |= set_has(notes->large[linear >> 63][kind].code, hash >> 56);
	}
	if (code)
		jit_tlb_flushed(cpu, true);
	else
		jit_tlb_flushed_page(cpu, linear);
}

void tlb_drop_writable(struct cpu *cpu, u64 gpa)
{
	struct tlb_notes *notes = &cpu->tlb_notes;

	for (unsigned word = 0; word < sizeof(notes->filled[0]) / sizeof(u64); word++) {
		u64 bits = notes->filled[0][word] | notes->filled[1][word];

		for (; bits; bits &= bits - 1) {
			unsigned number = word * 64 + __builtin_ctzll(bits);
			struct tlb_entry *entry = entry_at(cpu, number);

			if (((entry->gpa ^ gpa) & ~0xfffull) == 0)
				entry->write = TLB_NONE(number);
		}
	}
	tlb_forget_stack(cpu);
}

void cpu_set_pkru(struct cpu *cpu, u32 value)
{
	u32 changed = cpu->pkru ^ value;

	cpu->pkru = value;
	tlb_forget_stack(cpu);
	if (!changed || !(cpu->cr4 & CR4_PKE))
		return;
	// Nearly all pages have key 0, and nearly no guest takes rights to it away.
	if (changed & 3) {
		tlb_flush_all(cpu);
	} else if (cpu->tlb_notes.protection_keys) {
		struct tlb_notes *notes = &cpu->tlb_notes;

		for (unsigned word = 0; word < sizeof(notes->filled[0]) / sizeof(u64); word++) {
			u64 bits = notes->filled[0][word] | notes->filled[1][word];

			for (; bits; bits &= bits - 1) {
				struct tlb_entry *entry =
					entry_at(cpu, word * 64 + __builtin_ctzll(bits));

				if (entry->gpa & TLB_PROTECTION_KEY)
					drop(cpu, entry);
			}
		}
		notes->protection_keys = false;
	}
}
