// SPDX-License-Identifier: MIT
// The code cache of a vCPU and the VM-wide knowledge of which pages hold code.
//
// The cache is one memory object mapped twice: writable here, executable there; never both in one
// mapping. Blocks are found by guest-physical address and mode. Direct jumps are chained within a
// guest page only, so dropping all blocks of a page leaves no chain into them.
//
// A page from which somebody translated is not writable through any vCPU's TLB. Before a vCPU reads
// code bytes it announces itself in the page's `code` mask and has every `writer` drop its writable
// TLB entries; a writer announces itself before it looks at `code`. One of the two sees the other.
//
// The first vCPUs of a VM have a bit of those masks each, further ones share the last bits: whoever sets
// such a bit counts the others behind it in, and only a writer, who has all of them drop the page, clears it.
#include "base/log.h"
#include "cpu/jit.h"
#include "cpu/mem.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CACHE_SIZE (20u << 20)
#define LEAF_BITS 14
#define OWN_BITS 24 // vCPUs with a bit of their own
#define TOP_BITS 18 // guest-physical addresses up to 2^(12+14+18) = 16 TiB

struct page_users {
	u32 code;   // vCPUs that translated from the page
	u32 writer; // vCPUs that may have it writable in a TLB
};

struct leaf {
	struct leaf *next;
	struct page_users users[1 << LEAF_BITS];
};

struct vm_code {
	struct leaf *top[1 << TOP_BITS];
	struct leaf *leaves; // all of them
	pthread_mutex_t lock; // list of vCPUs; queues
	struct jit *first;
	unsigned next_index;
	u32 split_lock; // held by a vCPU in a locked access that crosses a page
	u64 epoch;	// see jit_stale.c
};

u64 *vm_code_epoch(struct vm_code *vm)
{
	return &vm->epoch;
}

struct vm_code *vm_code_create(void)
{
	struct vm_code *vm = mmap(NULL, sizeof(*vm), PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (vm == MAP_FAILED)
		return NULL;
	pthread_mutex_init(&vm->lock, NULL);
	return vm;
}

void vm_code_destroy(struct vm_code *vm)
{
	for (struct leaf *leaf = vm->leaves, *next; leaf; leaf = next) {
		next = leaf->next;
		munmap(leaf, sizeof(*leaf));
	}
	pthread_mutex_destroy(&vm->lock);
	munmap(vm, sizeof(*vm));
}

// NULL: out of memory or beyond what is tracked; the page then counts as one that nobody may cache.
static struct page_users *page_users(struct vm_code *vm, u64 gpa)
{
	u64 page = gpa >> 12;
	struct leaf **slot, *leaf, *fresh;

	if (page >> (LEAF_BITS + TOP_BITS))
		return NULL;
	slot = &vm->top[page >> LEAF_BITS];
	leaf = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
	if (!leaf) {
		fresh = mmap(NULL, sizeof(*leaf), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (fresh == MAP_FAILED)
			return NULL;
		if (__atomic_compare_exchange_n(slot, &leaf, fresh, false, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE)) {
			leaf = fresh;
			fresh->next = __atomic_load_n(&vm->leaves, __ATOMIC_RELAXED);
			while (!__atomic_compare_exchange_n(&vm->leaves, &fresh->next, fresh, true,
							    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
				;
		} else {
			munmap(fresh, sizeof(*fresh));
		}
	}
	return &leaf->users[page & ((1 << LEAF_BITS) - 1)];
}

static void *reserve(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int jit_create(struct cpu *cpu, struct vm_code *vm)
{
	struct jit *jit = reserve(sizeof(*jit));
	int fd;

	if (!jit)
		return -1;
	cpu->jit = jit;
	jit->cpu = cpu;
	jit->vm = vm;
	jit->size = CACHE_SIZE;
	fd = memfd_create("cetkvm-code", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, jit->size) < 0) {
		if (fd >= 0)
			close(fd);
		munmap(jit, sizeof(*jit));
		return -1;
	}
	jit->rw = mmap(NULL, jit->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	jit->rx = mmap(NULL, jit->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	jit->block_max = 1 << 18;
	jit->blocks = reserve(jit->block_max * sizeof(*jit->blocks));
	jit->point_max = 1 << 21;
	jit->points = reserve(jit->point_max * sizeof(*jit->points));
	jit->mem_max = 1 << 21;
	jit->mems = reserve(jit->mem_max * sizeof(*jit->mems));
	jit->call_max = 1 << 18;
	jit->calls = reserve(jit->call_max * sizeof(*jit->calls));
	jit->recipe_max = 1 << 19;
	jit->recipes = reserve(jit->recipe_max * sizeof(*jit->recipes));
	jit->decoded = reserve(JIT_DECODED_SIZE);
	jit->page_max = 1 << 16;
	jit->pages = reserve(jit->page_max * sizeof(*jit->pages));
	if (jit->rw == MAP_FAILED || jit->rx == MAP_FAILED || !jit->blocks || !jit->points ||
	    !jit->mems || !jit->calls || !jit->pages || !jit->recipes || !jit->decoded)
		return -1; // the VM is about to be torn down by the caller
	jit_make_thunks(jit);
	// An entry of zeros is as good as a free one, where RIP 0 is not looked for.
	for (unsigned class = 0; class < 2; class++) {
		memset(cpu->jump[class], 0xff, sizeof(cpu->jump[class][0]));
		memset(cpu->jump_ibt[class], 0xff, sizeof(cpu->jump_ibt[class][0]));
	}
	pthread_mutex_lock(&vm->lock);
	jit->bit_shared = vm->next_index >= OWN_BITS;
	jit->bit = 1u << (jit->bit_shared ? OWN_BITS + vm->next_index % (32 - OWN_BITS) : vm->next_index);
	vm->next_index++;
	jit->vm_next = vm->first;
	vm->first = jit;
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

void jit_destroy(struct cpu *cpu)
{
	struct jit *jit = cpu->jit, **p;

	if (!jit)
		return;
	pthread_mutex_lock(&jit->vm->lock);
	for (p = &jit->vm->first; *p; p = &(*p)->vm_next)
		if (*p == jit) {
			*p = jit->vm_next;
			break;
		}
	pthread_mutex_unlock(&jit->vm->lock);
	munmap(jit->rw, jit->size);
	munmap((void *)jit->rx, jit->size);
	munmap(jit->blocks, jit->block_max * sizeof(*jit->blocks));
	munmap(jit->points, jit->point_max * sizeof(*jit->points));
	munmap(jit->mems, jit->mem_max * sizeof(*jit->mems));
	munmap(jit->calls, jit->call_max * sizeof(*jit->calls));
	munmap(jit->recipes, jit->recipe_max * sizeof(*jit->recipes));
	munmap(jit->decoded, JIT_DECODED_SIZE);
	munmap(jit->pages, jit->page_max * sizeof(*jit->pages));
	munmap(jit, sizeof(*jit));
	cpu->jit = NULL;
}

void jit_empty_jumps(struct cpu *cpu, unsigned class)
{
	// All ones is the RIP of an entry that is free, which a guest may well jump to: where that RIP
	// would be looked for, a free entry has RIP 0, which is looked for elsewhere.
	const u32 hash = 0xffffffffu * 0x9e3779b1u;
	struct jit *jit = cpu->jit;

	memset(jit->jump_pages[class], 0, sizeof(jit->jump_pages[class]));
	if (jit->jump_logged[class] <= JUMP_LOG) {
		for (u32 i = 0; i < jit->jump_logged[class]; i++) {
			struct jump_entry *entry = jit->jump_log[class][i];
			bool victim = entry >= &jit->victim[class][0] &&
				      entry < &jit->victim[class][1 << VICTIM_BITS];

			memset(entry, victim ? 0 : 0xff, sizeof(*entry));
		}
	} else {
		memset(jit->victim[class], 0, sizeof(jit->victim[class]));
		memset(cpu->jump[class], 0xff, sizeof(cpu->jump[class]));
		memset(cpu->jump_ibt[class], 0xff, sizeof(cpu->jump_ibt[class]));
	}
	jit->jump_logged[class] = 0;
	cpu->jump[class][hash >> (32 - JUMP_BITS)].rip = 0;
	cpu->jump_ibt[class][hash >> (32 - JUMP_IBT_BITS)].rip = 0;
}

void jit_log_jump(struct jit *jit, unsigned class, struct jump_entry *entry)
{
	if (jit->jump_logged[class] < JUMP_LOG)
		jit->jump_log[class][jit->jump_logged[class]] = entry;
	if (jit->jump_logged[class] <= JUMP_LOG)
		jit->jump_logged[class]++;
}

void jit_clear_jumps(struct cpu *cpu)
{
	jit_empty_jumps(cpu, 0);
	jit_empty_jumps(cpu, 1);
	cpu->jit->kernel_jump_local = false;
}

// Called by the TLB's flushes: jumps are cached by linear address.
void jit_tlb_flushed(struct cpu *cpu, bool global)
{
	tlb_forget_stack(cpu);
	if (!cpu->jit)
		return;
	jit_empty_jumps(cpu, 1);
	if (global || cpu->jit->kernel_jump_local) {
		jit_empty_jumps(cpu, 0);
		cpu->jit->kernel_jump_local = false;
	}
}

// Which linear pages may have jumps cached: a small filter, so that INVLPG of data costs nothing.
static unsigned jump_filter(u64 linear)
{
	return (u32)((u32)(linear >> 12) * 0x9e3779b1u) >> 20;
}

void jit_note_jump(struct jit *jit, unsigned class, u64 rip)
{
	unsigned n = jump_filter(rip);

	jit->jump_pages[class][n / 64] |= 1ull << (n % 64);
}

void jit_tlb_flushed_page(struct cpu *cpu, u64 linear)
{
	unsigned n = jump_filter(linear);

	tlb_forget_stack(cpu);
	for (unsigned class = 0; cpu->jit && class < 2; class++)
		if (cpu->jit->jump_pages[class][n / 64] >> (n % 64) & 1)
			jit_empty_jumps(cpu, class);
}

static u32 hash_block(u64 gpa, u32 mode)
{
	return (u32)((gpa * 0x9e3779b97f4a7c15ull ^ mode * 0x85ebca6bull) >> 40) &
	       ((1 << JIT_HASH_BITS) - 1);
}

static u32 hash_page(u64 gpa)
{
	return (u32)((gpa >> 12) * 0x9e3779b1u) >> (32 - JIT_PAGE_HASH_BITS);
}

struct block *jit_find(struct jit *jit, u64 gpa, u32 mode)
{
	u32 *link = &jit->hash[hash_block(gpa, mode)];

	while (*link) {
		struct block *b = &jit->blocks[*link - 1];

		if (b->dead) { // code that is written often would make the chain long
			*link = b->hash_next;
			continue;
		}
		if (b->gpa == gpa && b->mode == mode)
			return b;
		link = &b->hash_next;
	}
	return NULL;
}

static struct code_page *find_page(struct jit *jit, u64 gpa, bool make)
{
	u32 *head = &jit->page_hash[hash_page(gpa)];
	struct code_page *page;

	gpa &= ~0xfffull;
	for (u32 n = *head; n; n = jit->pages[n - 1].next)
		if (jit->pages[n - 1].gpa == gpa)
			return &jit->pages[n - 1];
	if (!make)
		return NULL;
	page = &jit->pages[jit->page_count++];
	*page = (struct code_page){ .gpa = gpa, .next = *head };
	*head = jit->page_count;
	return page;
}

// This vCPU has no code of the page any more.
static void take_back(struct jit *jit, struct page_users *users)
{
	if (users && !jit->bit_shared)
		__atomic_fetch_and(&users->code, ~jit->bit, __ATOMIC_SEQ_CST);
}

// Of a mask of vCPUs: those that may be others.
static u32 others(const struct jit *jit, u32 mask)
{
	return jit->bit_shared ? mask : mask & ~jit->bit;
}

// Forgets every block. Nothing of the cache may be running: callers are in C, and what they return
// into is either a fresh look-up or an exit.
void jit_flush(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;

	for (u32 i = 0; i < jit->page_count; i++)
		take_back(jit, page_users(jit->vm, jit->pages[i].gpa));
	memset(jit->hash, 0, sizeof(jit->hash));
	memset(jit->page_hash, 0, sizeof(jit->page_hash));
	jit->block_count = jit->point_count = jit->mem_count = jit->call_count = 0;
	jit->recipe_count = 0;
	jit->page_count = 0;
	jit->next = jit->first;
	jit->stat_flushes++;
	jit_clear_jumps(cpu);
}

// Empties the cache when the largest block might not fit. Before a page is announced as code: a flush takes
// such announcements back.
void jit_make_room(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;

	// Room for the largest block: see jit_block.c.
	if (jit->next + (64 << 10) > jit->rw + jit->size || jit->block_count + 1 >= jit->block_max ||
	    jit->point_count + 256 >= jit->point_max || jit->mem_count + 1024 >= jit->mem_max ||
	    jit->call_count + 512 >= jit->call_max || jit->page_count + 2 >= jit->page_max ||
	    jit->recipe_count + 256 >= jit->recipe_max)
		jit_flush(cpu);
}

struct block *jit_new_block(struct cpu *cpu, u64 gpa, u32 mode)
{
	struct jit *jit = cpu->jit;
	struct block *b = &jit->blocks[jit->block_count];

	*b = (struct block){ .gpa = gpa, .mode = mode, .first_point = jit->point_count };
	return b;
}

struct code_page *jit_find_page(struct jit *jit, u64 gpa)
{
	return find_page(jit, gpa, false);
}

void jit_publish_block(struct jit *jit, struct block *b, const u8 *host, const u8 *second)
{
	u32 *head = &jit->hash[hash_block(b->gpa, b->mode)];
	struct code_page *page = find_page(jit, b->gpa, true);
	unsigned offset = b->gpa & 0xfff, length = b->length, rest = 4096 - offset;

	jit->block_count++;
	b->hash_next = *head;
	*head = jit->block_count;
	b->page_next = page->first_block;
	page->first_block = jit->block_count;
	jit_note_code(page, host, offset, length < rest ? length : rest);
	// A block that crosses into a second page goes with either of them.
	if (b->gpa2) {
		page = find_page(jit, b->gpa2, true);
		b->cross_next = page->first_cross;
		page->first_cross = jit->block_count;
		if (length > rest)
			jit_note_code(page, second, 0, length - rest);
	}
	jit->stat_blocks++;
}

// Blocks lie in the cache in the order of their numbers.
struct block *jit_block_of_pc(struct jit *jit, u64 pc)
{
	u64 offset = pc - (u64)jit->rx;
	u32 low = 0, high = jit->block_count;

	if (offset >= jit->size)
		return NULL;
	while (low < high) {
		u32 mid = (low + high) / 2;
		struct block *b = &jit->blocks[mid];

		if (offset < b->code)
			high = mid;
		else if (offset >= b->code + b->code_size)
			low = mid + 1;
		else
			return b;
	}
	return NULL;
}

struct point *jit_point_of_pc(struct jit *jit, struct block *b, u64 pc)
{
	u32 offset = pc - (u64)jit->rx;
	struct point *found = NULL;

	for (u32 i = 0; i < b->points; i++) {
		struct point *p = &jit->points[b->first_point + i];

		if (p->code > offset)
			break;
		found = p;
	}
	return found;
}

void jit_invalidate_page(struct cpu *cpu, u64 gpa)
{
	struct jit *jit = cpu->jit;
	struct code_page *page = find_page(jit, gpa, false);

	take_back(jit, page_users(jit->vm, gpa));
	if (page)
		jit_drop_blocks(cpu, page);
}

// Forgets the blocks of a page; it still counts as one that holds code.
void jit_drop_blocks(struct cpu *cpu, struct code_page *page)
{
	struct jit *jit = cpu->jit;

	for (u32 n = page->first_block; n; n = jit->blocks[n - 1].page_next)
		jit->blocks[n - 1].dead = true;
	for (u32 n = page->first_cross; n; n = jit->blocks[n - 1].cross_next)
		jit->blocks[n - 1].dead = true;
	page->first_block = page->first_cross = 0;
	page->chunks = page->hash = 0;
	jit_clear_jumps(cpu);
	// A dead block may be running and chained to itself: have it leave at its next entry.
	cpu_request(cpu, REQ_EVENT);
}

enum { STALE_MAX = sizeof(((struct jit *)0)->stale_pages) / sizeof(u64) };

void jit_handle_code_requests(struct cpu *cpu)
{
	struct jit *jit = cpu->jit;

	if (!__atomic_load_n(&jit->flush_requested, __ATOMIC_SEQ_CST))
		return;
	pthread_mutex_lock(&jit->vm->lock);
	if (jit->stale_count > STALE_MAX) {
		jit_flush(cpu);
		tlb_flush_all(cpu);
	} else {
		for (u32 i = 0; i < jit->stale_count; i++) {
			jit_invalidate_page(cpu, jit->stale_pages[i]);
			tlb_drop_writable(cpu, jit->stale_pages[i]);
		}
	}
	jit->stale_count = 0;
	__atomic_store_n(&jit->flush_requested, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&jit->vm->lock);
}

// vm->lock held.
static void note_stale(struct jit *jit, u64 gpa)
{
	gpa &= ~0xfffull;
	for (u32 i = 0; i < jit->stale_count && i < STALE_MAX; i++)
		if (jit->stale_pages[i] == gpa)
			return;
	if (jit->stale_count < STALE_MAX)
		jit->stale_pages[jit->stale_count] = gpa;
	if (jit->stale_count <= STALE_MAX)
		jit->stale_count++;
}

// Has the other vCPUs of `mask` drop their translations and writable TLB entries of a page; waits until they
// have, or are out of guest code.
static void shake_others(struct cpu *cpu, u64 gpa, u32 mask, bool wait)
{
	struct jit *jit = cpu->jit;

	pthread_mutex_lock(&jit->vm->lock);
	for (struct jit *other = jit->vm->first; other; other = other->vm_next)
		if (other != jit && (mask & other->bit)) {
			note_stale(other, gpa);
			__atomic_store_n(&other->flush_requested, 1, __ATOMIC_SEQ_CST);
			cpu_request(other->cpu, REQ_CODE);
		}
	if (wait)
		for (struct jit *other = jit->vm->first; other; other = other->vm_next) {
			if (other == jit || !(mask & other->bit))
				continue;
			for (unsigned spin = 0; __atomic_load_n(&other->in_guest, __ATOMIC_SEQ_CST) &&
			     __atomic_load_n(&other->flush_requested, __ATOMIC_SEQ_CST); spin++) {
				pthread_mutex_unlock(&jit->vm->lock);
				jit_handle_code_requests(cpu);
				if (spin > 100)
					sched_yield();
				else
					__builtin_ia32_pause();
				pthread_mutex_lock(&jit->vm->lock);
			}
		}
	pthread_mutex_unlock(&jit->vm->lock);
}

void jit_page_gets_code(struct cpu *cpu, u64 gpa)
{
	struct jit *jit = cpu->jit;
	struct page_users *users = page_users(jit->vm, gpa);
	u32 writers;

	// A shared bit may be of one who still waits for writers.
	if (!users || (!jit->bit_shared && (__atomic_load_n(&users->code, __ATOMIC_RELAXED) & jit->bit)))
		return;
	__atomic_fetch_or(&users->code, jit->bit, __ATOMIC_SEQ_CST);
	writers = __atomic_exchange_n(&users->writer, 0, __ATOMIC_SEQ_CST);
	if (writers & jit->bit)
		tlb_drop_writable(cpu, gpa);
	if (others(jit, writers))
		shake_others(cpu, gpa, others(jit, writers), true);
	// The wait may have served a request that emptied this vCPU's cache.
	__atomic_fetch_or(&users->code, jit->bit, __ATOMIC_SEQ_CST);
}

bool jit_page_writable(struct cpu *cpu, u64 gpa, void *host_page)
{
	struct page_users *users;

	if (!cpu->jit)
		return true;
	users = page_users(cpu->jit->vm, gpa);
	if (!users)
		return false;
	if (!(__atomic_load_n(&users->writer, __ATOMIC_RELAXED) & cpu->jit->bit))
		__atomic_fetch_or(&users->writer, cpu->jit->bit, __ATOMIC_SEQ_CST);
	return !__atomic_load_n(&users->code, __ATOMIC_SEQ_CST);
}

// Own blocks after a write to their page: only those that hold the written bytes have to go, as long as that
// is rare.
static void own_page_written(struct cpu *cpu, u64 gpa, unsigned size)
{
	struct jit *jit = cpu->jit;
	struct code_page *page = find_page(jit, gpa, false);
	bool hit = !page || jit->bit_shared || page->first_cross || ++page->slow_writes > 64;

	for (u32 n = page ? page->first_block : 0; n && !hit; n = jit->blocks[n - 1].page_next) {
		struct block *b = &jit->blocks[n - 1];

		hit = gpa < b->gpa + b->length && gpa + size > b->gpa;
	}
	if (!hit)
		return;
	if (page)
		page->slow_writes = 0;
	jit_invalidate_page(cpu, gpa);
}

void jit_page_written(struct cpu *cpu, u64 gpa, unsigned size)
{
	struct jit *jit = cpu->jit;
	struct page_users *users;
	u32 code;

	if (!jit || !(users = page_users(jit->vm, gpa)))
		return;
	__atomic_fetch_or(&users->writer, jit->bit, __ATOMIC_SEQ_CST);
	code = __atomic_load_n(&users->code, __ATOMIC_SEQ_CST);
	if (code & jit->bit)
		own_page_written(cpu, gpa, size);
	code = others(jit, code);
	if (code) {
		__atomic_fetch_and(&users->code, ~code, __ATOMIC_SEQ_CST);
		shake_others(cpu, gpa, code, false);
	}
}

// A locked access across a page is made in pieces by C. They exclude each other. Deviation: they do not
// exclude accesses of other vCPUs which lie within one page.
void jit_split_lock(struct jit *jit)
{
	unsigned tries = 0;

	if (jit->split_locked)
		return;
	while (__atomic_exchange_n(&jit->vm->split_lock, 1, __ATOMIC_ACQUIRE))
		if (++tries % 64 == 0)
			sched_yield();
		else
			__builtin_ia32_pause();
	jit->split_locked = true;
}

void jit_split_unlock(struct jit *jit)
{
	if (!jit->split_locked)
		return;
	jit->split_locked = false;
	__atomic_store_n(&jit->vm->split_lock, 0, __ATOMIC_RELEASE);
}
