// SPDX-License-Identifier: MIT
// The page walker: every paging mode, access rights, accessed and dirty flags, #PF error codes.
// SDM: "Paging": "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging", "Access Rights",
// "Page-Fault Exceptions", "Accessed and Dirty Flags"; "Shadow Stacks" for shadow-stack pages.
//
// - A walk first reads the entries, then decides, and sets A and D only when the access is allowed.
//   They are set by compare-exchange of the whole entry; when one has changed since it was read,
//   the walk starts anew. A processor that enumerates SHSTK never sets D in an entry whose R/W is 0.
// - Paging structures that are not RAM read as not present. In read-only memory A and D stay as they
//   are.
#include "cpu/features.h"
#include "cpu/guest_access.h"
#include "cpu/mem.h"
#include "cpu/system.h"

#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_G (1ull << 8)
#define PTE_NX (1ull << 63)
#define ADDRESS_BITS 0x000ffffffffff000ull

// ---- physical accesses ----

enum page_use { USE_WALK, USE_DATA }; // data must not push the paging structures out

static struct page_cache_entry *page_cache(struct cpu *cpu, u64 gpa, enum page_use use)
{
	struct page_cache_entry *page =
		&cpu->tlb_notes.pages[use][gpa >> 12 & (PAGE_CACHE_SIZE - 1)];

	gpa &= ~0xfffull;
	if (page->gpa != gpa) {
		page->flags = 0;
		page->host = cpu->ops->map(cpu->opaque, gpa, &page->flags);
		// Memory I/O is not remembered: it may become RAM without a flush.
		page->gpa = page->host ? gpa : 1;
	}
	return page;
}

u8 *phys_page(struct cpu *cpu, u64 gpa, unsigned *flags)
{
	struct page_cache_entry *page = page_cache(cpu, gpa, USE_DATA);

	*flags = page->flags;
	return page->host;
}

#define PAGE_MARKED_DIRTY 0x100u // in page_cache_entry.flags

static void mark_dirty(struct cpu *cpu, struct page_cache_entry *page)
{
	if ((page->flags & (PAGE_LOG_DIRTY | PAGE_MARKED_DIRTY)) == PAGE_LOG_DIRTY) {
		cpu->ops->mark_dirty(cpu->opaque, page->gpa); // may leave the instruction
		page->flags |= PAGE_MARKED_DIRTY;
	}
}

void phys_mark_dirty(struct cpu *cpu, u64 gpa)
{
	mark_dirty(cpu, page_cache(cpu, gpa, USE_DATA));
}

// Memory that the client has taken away ends the instruction, or, where there is none because an ioctl asks,
// is not there.
static bool memory_is_gone(struct cpu *cpu, const u8 *host)
{
	if (cpu->unwind)
		guest_fault(cpu, host);
	return false;
}

bool phys_read64(struct cpu *cpu, u64 gpa, u64 *value)
{
	u8 *host = page_cache(cpu, gpa, USE_WALK)->host;

	return host && (guest_load64(host + (gpa & 0xfff), value) || memory_is_gone(cpu, host));
}

bool phys_read32(struct cpu *cpu, u64 gpa, u32 *value)
{
	u8 *host = page_cache(cpu, gpa, USE_WALK)->host;

	return host && (guest_load32(host + (gpa & 0xfff), value) || memory_is_gone(cpu, host));
}

// True: memory holds `desired` now, or cannot be written at all. False: it was not `expected`.
static bool update_entry(struct cpu *cpu, u64 gpa, u64 expected, u64 desired, unsigned size)
{
	struct page_cache_entry *page = page_cache(cpu, gpa, USE_WALK);
	u8 *host = page->host;
	u64 old = expected;
	u32 old32 = expected;
	bool done;

	if (!host || (page->flags & PAGE_READONLY))
		return true;
	mark_dirty(cpu, page);
	jit_page_written(cpu, gpa, size);
	host += gpa & 0xfff;
	done = size == 8 ? guest_cmpxchg64(host, &old, desired) : guest_cmpxchg32(host, &old32, desired);
	if (!done)
		guest_fault(cpu, host);
	return size == 8 ? old == expected : old32 == (u32)expected;
}

bool phys_cmpxchg(struct cpu *cpu, u64 gpa, u64 expected, u64 desired, unsigned size)
{
	struct page_cache_entry *page = page_cache(cpu, gpa, USE_WALK);

	return page->host && !(page->flags & PAGE_READONLY) &&
	       update_entry(cpu, gpa, expected, desired, size);
}

static bool phys_copy(struct cpu *cpu, u64 gpa, void *data, unsigned size, bool write)
{
	u8 *bytes = data;

	while (size) {
		unsigned part = 0x1000 - (gpa & 0xfff);
		struct page_cache_entry *page = page_cache(cpu, gpa, USE_DATA);
		u8 *host = page->host + (gpa & 0xfff);

		part = part < size ? part : size;
		if (!page->host || (write && (page->flags & PAGE_READONLY)))
			return false;
		if (write) {
			mark_dirty(cpu, page);
			jit_page_written(cpu, gpa, part);
		}
		if (write ? !guest_copy(host, bytes, part) : !guest_copy(bytes, host, part))
			guest_fault(cpu, host);
		gpa += part;
		bytes += part;
		size -= part;
	}
	return true;
}

bool phys_read(struct cpu *cpu, u64 gpa, void *data, unsigned size)
{
	return phys_copy(cpu, gpa, data, size, false);
}

bool phys_write(struct cpu *cpu, u64 gpa, const void *data, unsigned size)
{
	return phys_copy(cpu, gpa, (void *)data, size, true);
}

// ---- PAE's four top entries ----

bool cpu_pae_paging(const struct cpu *cpu)
{
	return (cpu->cr0 & CR0_PG) && (cpu->cr4 & CR4_PAE) && !cpu_long_mode(cpu);
}

static u64 above_phys_bits(const struct cpu *cpu)
{
	return ADDRESS_BITS & ~((1ull << cpu->phys_bits) - 1);
}

int cpu_load_pdptrs(struct cpu *cpu)
{
	u64 reserved = 0x1e6 | above_phys_bits(cpu) | 0xfffull << 52, pdptr[4];

	for (unsigned i = 0; i < 4; i++) {
		if (!phys_read64(cpu, (cpu->cr3 & 0xffffffe0) + 8 * i, &pdptr[i]))
			return -22; // EINVAL
		if ((pdptr[i] & PTE_P) && (pdptr[i] & reserved))
			return -22;
	}
	for (unsigned i = 0; i < 4; i++)
		cpu->pdptr[i] = pdptr[i];
	return 0;
}

// ---- the walk ----

enum { MAX_LEVELS = 5 };

// What reading the entries found. Rights are those of the whole path.
struct path {
	u64 entry[MAX_LEVELS], gpa[MAX_LEVELS]; // from the leaf (0) upwards
	unsigned count, entry_size;
	bool upper_writable; // R/W of all entries but the leaf
	bool leaf_writable, user, no_execute, leaf_dirty;
};

// 1: found; 0: not present; -1: reserved bit.
static int read_path64(struct cpu *cpu, u64 linear, struct path *path, struct walk *walk)
{
	bool pae = !cpu_long_mode(cpu);
	u64 reserved = above_phys_bits(cpu) | (cpu->efer & EFER_NX ? 0 : PTE_NX);
	u64 table = cpu->cr3 & ADDRESS_BITS, rights = PTE_W | PTE_U, entry, upper = PTE_W;
	unsigned level = cpu->cr4 & CR4_LA57 ? 5 : 4, shift;
	bool no_execute = false;

	if (pae) {
		entry = cpu->pdptr[linear >> 30 & 3];
		if (!(entry & PTE_P))
			return 0;
		table = entry & ADDRESS_BITS;
		reserved |= 0x7ffull << 52;
		level = 2;
	}
	path->entry_size = 8;
	path->count = level;
	for (;; level--) {
		u64 gpa;

		shift = 12 + 9 * (level - 1);
		gpa = table + (linear >> shift & 0x1ff) * 8;
		path->gpa[level - 1] = gpa;
		if (!phys_read64(cpu, gpa, &entry) || !(entry & PTE_P))
			return 0;
		path->entry[level - 1] = entry;
		if (entry & reserved)
			return -1;
		rights &= entry;
		no_execute |= entry >> 63;
		if (level == 1)
			break;
		if (entry & PTE_PS) {
			if (level > 3 || (level == 3 && !guest_has(cpu, FEATURE_PDPE1GB)))
				return -1;
			// Bit 12 is PAT; the others below the page's address are reserved.
			if (entry & ((1ull << shift) - 1) & ~0x1fffull)
				return -1;
			break;
		}
		upper &= entry;
		table = entry & ADDRESS_BITS;
	}
	for (unsigned i = level - 1; level > 1 && i < path->count; i++) {
		path->entry[i - (level - 1)] = path->entry[i];
		path->gpa[i - (level - 1)] = path->gpa[i];
	}
	path->count -= level - 1;
	path->upper_writable = upper;
	path->leaf_writable = entry & PTE_W;
	path->leaf_dirty = entry & PTE_D;
	path->user = rights & PTE_U;
	path->no_execute = no_execute;
	walk->page_size = 1ull << shift;
	walk->gpa = (entry & ADDRESS_BITS & ~(walk->page_size - 1)) | (linear & (walk->page_size - 1));
	walk->global = (entry & PTE_G) && (cpu->cr4 & CR4_PGE);
	walk->protection_key = path->user && !pae && (cpu->cr4 & CR4_PKE) ? entry >> 59 & 15 : 0;
	return 1;
}

static int read_path32(struct cpu *cpu, u64 linear, struct path *path, struct walk *walk)
{
	u32 pde, pte;

	path->entry_size = 4;
	path->gpa[1] = (cpu->cr3 & 0xfffff000) + (linear >> 22 & 0x3ff) * 4;
	if (!phys_read32(cpu, path->gpa[1], &pde) || !(pde & PTE_P))
		return 0;
	walk->protection_key = 0;
	path->no_execute = false;
	if ((pde & PTE_PS) && (cpu->cr4 & CR4_PSE)) {
		// PSE-36: bits 20:13 are address bits 39:32 as far as the processor has them.
		unsigned high = guest_has(cpu, FEATURE_PSE36) && cpu->phys_bits > 32 ?
					cpu->phys_bits - 32 : 0;
		u64 high_mask = (1ull << (high > 8 ? 8 : high)) - 1;

		if (pde & (1u << 21 | (~(high_mask << 13) & 0x1fe000)))
			return -1;
		path->entry[0] = pde;
		path->gpa[0] = path->gpa[1];
		path->count = 1;
		path->upper_writable = true;
		path->user = pde & PTE_U;
		walk->page_size = 4 << 20;
		walk->gpa = (u64)(pde >> 13 & high_mask) << 32 | (pde & 0xffc00000) |
			    (linear & 0x3fffff);
		pte = pde;
	} else {
		path->entry[1] = pde;
		path->gpa[0] = (pde & 0xfffff000) + (linear >> 12 & 0x3ff) * 4;
		if (!phys_read32(cpu, path->gpa[0], &pte) || !(pte & PTE_P))
			return 0;
		path->entry[0] = pte;
		path->count = 2;
		path->upper_writable = pde & PTE_W;
		path->user = pde & pte & PTE_U;
		walk->page_size = 4096;
		walk->gpa = (pte & 0xfffff000) | (linear & 0xfff);
	}
	path->leaf_writable = pte & PTE_W;
	path->leaf_dirty = pte & PTE_D;
	walk->global = (pte & PTE_G) && (cpu->cr4 & CR4_PGE);
	return 1;
}

static int read_path(struct cpu *cpu, u64 linear, struct path *path, struct walk *walk)
{
	return cpu->cr4 & CR4_PAE ? read_path64(cpu, linear, path, walk)
				  : read_path32(cpu, linear, path, walk);
}

// ---- access rights ----

static bool shadow_stack_page(const struct path *path)
{
	return path->upper_writable && !path->leaf_writable && path->leaf_dirty;
}

// May a store with these access bits be made, protection keys aside?
static bool write_allowed(const struct cpu *cpu, const struct path *path, unsigned access)
{
	if (path->upper_writable && path->leaf_writable)
		return true;
	return !(access & ACCESS_USER) && !(cpu->cr0 & CR0_WP);
}

// Protection keys guard user pages against data accesses, in long mode.
static bool key_denies(const struct cpu *cpu, const struct path *path, const struct walk *walk,
		       unsigned access)
{
	unsigned rights = cpu->pkru >> 2 * walk->protection_key;

	if (!path->user || !(cpu->cr4 & CR4_PKE) || !cpu_long_mode(cpu) || (access & ACCESS_FETCH))
		return false;
	return (rights & 1) || ((rights & 2) && (access & ACCESS_WRITE) &&
				((access & ACCESS_USER) || (cpu->cr0 & CR0_WP)));
}

static bool access_allowed(const struct cpu *cpu, const struct path *path, unsigned access)
{
	if (access & ACCESS_SS)
		// Of the same privilege: a user page for user accesses, and no other.
		return shadow_stack_page(path) && path->user == !!(access & ACCESS_USER);
	if (access & ACCESS_FETCH)
		return access & ACCESS_USER ? path->user && !path->no_execute
					    : !path->no_execute &&
						      !(path->user && (cpu->cr4 & CR4_SMEP));
	if (access & ACCESS_USER) {
		if (!path->user)
			return false;
	} else if (path->user && (cpu->cr4 & CR4_SMAP) &&
		   (!(cpu->rflags & FLAG_AC) || (access & ACCESS_IMPLICIT) || cpu->cpl == 3)) {
		// Accesses of supervisor kind made at CPL 3 are implicit ones.
		return false;
	}
	return !(access & ACCESS_WRITE) || write_allowed(cpu, path, access);
}

static u32 error_code(const struct cpu *cpu, unsigned access)
{
	u32 error = 0;

	if (access & ACCESS_WRITE)
		error |= PF_W;
	if (access & ACCESS_USER)
		error |= PF_U;
	if (access & ACCESS_SS)
		error |= PF_SS;
	if ((access & ACCESS_FETCH) &&
	    ((cpu->cr4 & CR4_SMEP) || ((cpu->cr4 & CR4_PAE) && (cpu->efer & EFER_NX))))
		error |= PF_I;
	return error;
}

// Sets the accessed flags of the path and, for a store, the leaf's dirty flag. False: an entry
// has changed meanwhile.
static bool set_accessed_dirty(struct cpu *cpu, struct path *path, unsigned access)
{
	for (unsigned i = path->count; i--;) {
		u64 entry = path->entry[i], wanted = entry | PTE_A;

		if (i == 0 && (access & ACCESS_WRITE) &&
		    ((entry & PTE_W) || !guest_has(cpu, FEATURE_SHSTK)))
			wanted |= PTE_D;
		if (wanted != entry &&
		    !update_entry(cpu, path->gpa[i], entry, wanted, path->entry_size))
			return false;
		if (i == 0)
			path->leaf_dirty = wanted & PTE_D;
	}
	return true;
}

static void walk_identity(struct walk *walk, u64 linear)
{
	walk->gpa = linear & 0xffffffff;
	walk->page_size = 4096;
	walk->global = walk->shadow_stack = false;
	walk->user = walk->writable = true;
	walk->protection_key = 0;
	walk->error = 0;
}

bool paging_walk(struct cpu *cpu, u64 linear, unsigned access, struct walk *walk)
{
	struct path path;
	bool denied, key;
	int found;

	if (!(cpu->cr0 & CR0_PG)) {
		walk_identity(walk, linear);
		return true;
	}
	do {
		found = read_path(cpu, linear, &path, walk);
		if (found <= 0) {
			walk->error = error_code(cpu, access) | (found ? PF_P | PF_RSVD : 0);
			return false;
		}
		denied = !access_allowed(cpu, &path, access);
		key = key_denies(cpu, &path, walk, access);
		if (denied || key) {
			walk->error = error_code(cpu, access) | PF_P | (key ? PF_PK : 0);
			return false;
		}
	} while (!set_accessed_dirty(cpu, &path, access));

	walk->user = path.user;
	walk->shadow_stack = shadow_stack_page(&path);
	walk->writable = path.leaf_dirty &&
			 (access & ACCESS_SS ? walk->shadow_stack
					     : write_allowed(cpu, &path, access)) &&
			 !key_denies(cpu, &path, walk, access | ACCESS_WRITE);
	walk->error = 0;
	return true;
}

bool paging_translate(struct cpu *cpu, u64 linear, struct walk *walk)
{
	struct path path;
	int found;

	if (!(cpu->cr0 & CR0_PG)) {
		walk_identity(walk, linear);
		return true;
	}
	found = read_path(cpu, linear, &path, walk);
	if (found <= 0) {
		walk->error = found ? PF_P | PF_RSVD : 0;
		return false;
	}
	walk->user = path.user;
	walk->shadow_stack = shadow_stack_page(&path);
	walk->writable = path.upper_writable && path.leaf_writable;
	walk->error = 0;
	return true;
}
