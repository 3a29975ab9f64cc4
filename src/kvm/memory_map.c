// SPDX-License-Identifier: MIT
// The memory map as a data structure: slots by guest-physical page, up to MAX_MEMSLOTS of them.
//
// A map never changes: memory_map_replace() makes a new one, which shares all but a few chunks of
// slots with the old. So vCPUs look slots up without a lock, and a change costs little however many
// slots there are. Who publishes a map frees the old one when nobody can be looking at it.
#include "kvm/kvm.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_MAX 128

struct slot_chunk {
	unsigned references; // of maps; changed by writers only
	unsigned count;	     // 1..CHUNK_MAX
	struct memslot slots[]; // sorted by gfn
};

struct memory_map {
	unsigned count;
	struct slot_chunk *chunks[]; // sorted
};

// The last chunk that begins at or before gfn, or the first one.
static unsigned chunk_of(const struct memory_map *map, u64 gfn)
{
	unsigned low = 0, high = map->count;

	while (high - low > 1) {
		unsigned middle = (low + high) / 2;

		if (map->chunks[middle]->slots[0].gfn <= gfn)
			low = middle;
		else
			high = middle;
	}
	return low;
}

// Number of slots of the chunk that begin at or before gfn.
static unsigned slots_up_to(const struct slot_chunk *chunk, u64 gfn)
{
	unsigned low = 0, high = chunk->count;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (chunk->slots[middle].gfn <= gfn)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

const struct memslot *memory_map_find(const struct memory_map *map, u64 gfn)
{
	const struct slot_chunk *chunk;
	unsigned n;

	if (!map || !map->count)
		return NULL;
	chunk = map->chunks[chunk_of(map, gfn)];
	n = slots_up_to(chunk, gfn);
	if (!n || gfn - chunk->slots[n - 1].gfn >= chunk->slots[n - 1].pages)
		return NULL;
	return &chunk->slots[n - 1];
}

bool memory_map_overlaps(const struct memory_map *map, u32 id, u64 gfn, u64 pages)
{
	u64 end = gfn + pages;

	if (!map || !map->count)
		return false;
	for (unsigned c = chunk_of(map, gfn); c < map->count; c++) {
		const struct slot_chunk *chunk = map->chunks[c];
		unsigned i = slots_up_to(chunk, gfn);

		for (i = i ? i - 1 : 0; i < chunk->count; i++) {
			if (chunk->slots[i].gfn >= end)
				return false;
			if (chunk->slots[i].gfn + chunk->slots[i].pages > gfn && chunk->slots[i].id != id)
				return true;
		}
	}
	return false;
}

static void drop_chunk(struct slot_chunk *chunk)
{
	if (!--chunk->references)
		free(chunk);
}

void memory_map_free(struct memory_map *map)
{
	for (unsigned i = 0; map && i < map->count; i++)
		drop_chunk(map->chunks[i]);
	free(map);
}

void memory_map_each(const struct memory_map *map, void (*visit)(const struct memslot *slot))
{
	for (unsigned c = 0; map && c < map->count; c++)
		for (unsigned i = 0; i < map->chunks[c]->count; i++)
			visit(&map->chunks[c]->slots[i]);
}

static struct slot_chunk *make_chunk(const struct memslot *slots, unsigned count)
{
	struct slot_chunk *chunk = malloc(sizeof(*chunk) + count * sizeof(*slots));

	if (!chunk)
		return NULL;
	chunk->references = 1;
	chunk->count = count;
	memcpy(chunk->slots, slots, count * sizeof(*slots));
	return chunk;
}

// A map like `old` with chunk `n` replaced by up to two others made of `slots`.
static struct memory_map *with_chunk(const struct memory_map *old, unsigned n, const struct memslot *slots,
				     unsigned count)
{
	unsigned old_count = old ? old->count : 0, parts = !count ? 0 : count <= CHUNK_MAX ? 1 : 2, done = 0;
	struct memory_map *map = malloc(sizeof(*map) + (old_count + 2) * sizeof(map->chunks[0]));

	if (!map)
		return NULL;
	map->count = 0;
	for (unsigned i = 0; i < n && i < old_count; i++)
		map->chunks[map->count++] = old->chunks[i];
	for (unsigned i = 0; i < parts; i++) {
		unsigned part = i + 1 == parts ? count - done : count / 2;
		struct slot_chunk *chunk = make_chunk(slots + done, part);

		if (!chunk) {
			if (i)
				free(map->chunks[map->count - 1]);
			free(map);
			return NULL;
		}
		map->chunks[map->count++] = chunk;
		done += part;
	}
	for (unsigned i = n + 1; i < old_count; i++)
		map->chunks[map->count++] = old->chunks[i];
	for (unsigned i = 0; i < old_count; i++)
		if (i != n)
			old->chunks[i]->references++;
	return map;
}

static struct memory_map *without(const struct memory_map *old, u64 gfn)
{
	unsigned n = chunk_of(old, gfn), at = slots_up_to(old->chunks[n], gfn) - 1, count = old->chunks[n]->count;
	struct memslot slots[CHUNK_MAX];

	memcpy(slots, old->chunks[n]->slots, count * sizeof(slots[0]));
	memmove(&slots[at], &slots[at + 1], (count - at - 1) * sizeof(slots[0]));
	return with_chunk(old, n, slots, count - 1);
}

static struct memory_map *with(const struct memory_map *old, const struct memslot *new)
{
	struct memslot slots[CHUNK_MAX + 1];
	unsigned n, at, count;

	if (!old || !old->count)
		return with_chunk(old, 0, new, 1);
	n = chunk_of(old, new->gfn);
	at = slots_up_to(old->chunks[n], new->gfn);
	count = old->chunks[n]->count;
	memcpy(slots, old->chunks[n]->slots, at * sizeof(slots[0]));
	slots[at] = *new;
	memcpy(&slots[at + 1], &old->chunks[n]->slots[at], (count - at) * sizeof(slots[0]));
	return with_chunk(old, n, slots, count + 1);
}

struct memory_map *memory_map_replace(const struct memory_map *old, const struct memslot *remove,
				      const struct memslot *insert)
{
	struct memory_map *less, *map;

	if (!remove)
		return with(old, insert);
	less = without(old, remove->gfn);
	if (!less || !insert)
		return less;
	map = with(less, insert);
	memory_map_free(less);
	return map;
}
