// SPDX-License-Identifier: MIT
// CPUID of the guest. One socket, one thread per core, APIC id = vCPU index. Intel SDM "CPUID - CPU
// Identification" for the leaves.
#include "vmm/cpuid.h"

#include "vmm/backend.h"
#include "vmm/message.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_XSTATE       0xd
#define XSTATE_COMPONENTS 63

struct kvm_cpuid2 *cpuid_supported(const struct kvm_backend *kvm, int kvm_fd)
{
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2));
	unsigned i;

	if (!cpuid)
		return NULL;
	cpuid->nent = CPUID_ENTRIES_MAX;
	if (kvm->ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
		vmm_message("%s: KVM_GET_SUPPORTED_CPUID: %s", kvm->name, strerror(errno));
		free(cpuid);
		return NULL;
	}
	// KVM does not list these two as supported although guests get them: it serves the deadline
	// timer itself, and that there is a hypervisor is the VMM's to say.
	for (i = 0; i < cpuid->nent; i++) {
		if (cpuid->entries[i].function != 1)
			continue;
		cpuid->entries[i].ecx |= 1u << 31;
		if (kvm->ioctl(kvm_fd, KVM_CHECK_EXTENSION, (void *)(long)KVM_CAP_TSC_DEADLINE_TIMER) > 0)
			cpuid->entries[i].ecx |= 1u << 24;
	}
	return cpuid;
}

struct kvm_cpuid2 *cpuid_emulated(const struct kvm_backend *kvm, int kvm_fd)
{
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2));

	if (!cpuid)
		return NULL;
	cpuid->nent = CPUID_ENTRIES_MAX;
	if (kvm->ioctl(kvm_fd, KVM_GET_EMULATED_CPUID, cpuid) < 0)
		cpuid->nent = 0;
	return cpuid;
}

char *cpuid_to_text(const struct kvm_cpuid2 *cpuid)
{
	size_t size = cpuid->nent * 64 + 1, length = 0;
	char *text = malloc(size);

	if (!text)
		return NULL;
	*text = 0;
	for (unsigned i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		length += (size_t)snprintf(text + length, size - length, "%x:%x:%x:%x:%x:%x:%x;", e->function, e->index, e->flags,
					   e->eax, e->ebx, e->ecx, e->edx);
	}
	return text;
}

static struct kvm_cpuid_entry2 *cpuid_find(const struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t subleaf)
{
	unsigned i;

	for (i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == leaf &&
		    (!(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entry->index == subleaf))
			return (struct kvm_cpuid_entry2 *)entry;
	}
	return NULL;
}

static struct kvm_cpuid_entry2 *cpuid_add(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t subleaf, bool indexed)
{
	struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, leaf, subleaf);

	if (entry)
		return entry;
	if (cpuid->nent == CPUID_ENTRIES_MAX)
		return NULL;
	entry = &cpuid->entries[cpuid->nent++];
	memset(entry, 0, sizeof(*entry));
	entry->function = leaf;
	entry->index = subleaf;
	entry->flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
	return entry;
}

// Removes the sub-leaves [first, last] of a leaf.
static void cpuid_remove(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t first, uint32_t last)
{
	unsigned i, kept = 0;

	for (i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == leaf && entry->index >= first && entry->index <= last)
			continue;
		cpuid->entries[kept++] = *entry;
	}
	cpuid->nent = kept;
}

static uint32_t *cpuid_register(struct kvm_cpuid_entry2 *entry, enum cpuid_register reg)
{
	switch (reg) {
	case CPUID_EAX:
		return &entry->eax;
	case CPUID_EBX:
		return &entry->ebx;
	case CPUID_ECX:
		return &entry->ecx;
	default:
		return &entry->edx;
	}
}

bool cpuid_has_feature(const struct kvm_cpuid2 *cpuid, const struct cpu_feature *feature)
{
	struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, feature->leaf, feature->subleaf);

	return entry && *cpuid_register(entry, feature->reg) >> feature->bit & 1;
}

static bool cpuid_has(const struct kvm_cpuid2 *cpuid, const char *name)
{
	return cpuid_has_feature(cpuid, &cpu_features[cpu_feature_find(name, strlen(name))]);
}

// Extended-state components follow from the features that own them. Sizes of the areas for the
// components enabled at run time are KVM's to fill in; the largest possible one is ours.
static void cpuid_cut_xstate(struct kvm_cpuid2 *cpuid)
{
	static const struct {
		unsigned component;
		const char *feature, *or_feature;
	} owners[] = {
		{ 2, "avx", NULL }, { 3, "mpx", NULL }, { 4, "mpx", NULL },
		{ 5, "avx512f", NULL }, { 6, "avx512f", NULL }, { 7, "avx512f", NULL },
		{ 9, "pku", NULL }, { 11, "shstk", "ibt" }, { 12, "shstk", NULL },
		{ 17, "amx_tile", NULL }, { 18, "amx_tile", NULL },
	};
	struct kvm_cpuid_entry2 *main_leaf = cpuid_find(cpuid, LEAF_XSTATE, 0);
	struct kvm_cpuid_entry2 *extended = cpuid_find(cpuid, LEAF_XSTATE, 1), *entry;
	uint64_t user, supervisor, allowed = 3;
	uint32_t size = 512 + 64;
	unsigned i;

	if (!main_leaf)
		return;
	if (!cpuid_has(cpuid, "xsave")) {
		cpuid_remove(cpuid, LEAF_XSTATE, 0, XSTATE_COMPONENTS);
		return;
	}
	for (i = 0; i < sizeof(owners) / sizeof(owners[0]); i++)
		if (cpuid_has(cpuid, owners[i].feature) ||
		    (owners[i].or_feature && cpuid_has(cpuid, owners[i].or_feature)))
			allowed |= 1ull << owners[i].component;
	user = (main_leaf->eax | (uint64_t)main_leaf->edx << 32) & allowed;
	main_leaf->eax = user;
	main_leaf->edx = user >> 32;
	supervisor = 0;
	if (extended && extended->eax & 1 << 3) {
		supervisor = (extended->ecx | (uint64_t)extended->edx << 32) & allowed;
		// Linux and KVM treat the two CET components as one: neither without the other.
		if ((supervisor & 0x1800) != 0x1800 && !cpuid_has(cpuid, "ibt"))
			supervisor &= ~0x1800ull;
	}
	if (extended) {
		extended->ecx = supervisor;
		extended->edx = supervisor >> 32;
	}
	for (i = 2; i <= XSTATE_COMPONENTS; i++) {
		entry = cpuid_find(cpuid, LEAF_XSTATE, i);
		if (!entry)
			continue;
		if (!((user | supervisor) >> i & 1))
			cpuid_remove(cpuid, LEAF_XSTATE, i, i);
		else if ((user >> i & 1) && entry->ebx + entry->eax > size)
			size = entry->ebx + entry->eax;
	}
	main_leaf = cpuid_find(cpuid, LEAF_XSTATE, 0); // removals move entries
	main_leaf->ecx = size;
}

static void cpuid_set_vendor(struct kvm_cpuid2 *cpuid, const struct cpu_model *model)
{
	static const uint32_t vendor_leaves[] = { 0, 0x80000000 };
	struct kvm_cpuid_entry2 *entry;
	char brand[48] = "";
	unsigned i;

	for (i = 0; i < 2; i++) {
		entry = cpuid_add(cpuid, vendor_leaves[i], 0, false);
		if (!entry)
			return;
		memcpy(&entry->ebx, model->vendor, 4);
		memcpy(&entry->edx, model->vendor + 4, 4);
		memcpy(&entry->ecx, model->vendor + 8, 4);
		if (vendor_leaves[i] && strcmp(model->vendor, "GenuineIntel") == 0)
			entry->ebx = entry->ecx = entry->edx = 0; // reserved there on Intel
	}
	entry = cpuid_find(cpuid, 1, 0);
	if (entry)
		entry->eax = model->signature;
	strncpy(brand, model->brand, sizeof(brand) - 1);
	for (i = 0; i < 3; i++) {
		entry = cpuid_add(cpuid, 0x80000002 + i, 0, false);
		if (entry)
			memcpy(&entry->eax, brand + 16 * i, 4), memcpy(&entry->ebx, brand + 16 * i + 4, 4),
				memcpy(&entry->ecx, brand + 16 * i + 8, 4), memcpy(&entry->edx, brand + 16 * i + 12, 4);
	}
}

static bool cpuid_is_intel(const struct kvm_cpuid2 *cpuid)
{
	struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, 0, 0);

	return entry && !memcmp(&entry->ebx, "Genu", 4);
}

// Leaf 4, "Deterministic Cache Parameters", for Intel models; a cache of each kind of the model's class.
static void cpuid_set_intel_caches(struct kvm_cpuid2 *cpuid)
{
	static const struct {
		uint32_t type_level, ways, sets;
	} caches[] = {
		{ 1 | 1 << 5, 12, 64 }, { 2 | 1 << 5, 8, 64 }, { 3 | 2 << 5, 16, 2048 }, { 3 | 3 << 5, 15, 32768 },
	};
	struct kvm_cpuid_entry2 *entry;
	unsigned i;

	cpuid_remove(cpuid, 4, 0, 0xffffffff);
	for (i = 0; i <= sizeof(caches) / sizeof(caches[0]); i++) {
		entry = cpuid_add(cpuid, 4, i, true);
		if (!entry || i == sizeof(caches) / sizeof(caches[0]))
			return; // the last sub-leaf stays zero: no more caches
		entry->eax = caches[i].type_level | 1 << 8;
		entry->ebx = (caches[i].ways - 1) << 22 | (64 - 1);
		entry->ecx = caches[i].sets - 1;
	}
}

// Leaves that would promise what the model does not have, or what belongs to another vendor.
static void cpuid_cut_leaves(struct kvm_cpuid2 *cpuid)
{
	struct kvm_cpuid_entry2 *entry;
	uint32_t basic = 0, extended = 0x80000000;
	unsigned i;

	cpuid_remove(cpuid, 5, 0, 0xffffffff);    // MONITOR/MWAIT
	cpuid_remove(cpuid, 0xa, 0, 0xffffffff);  // performance monitoring
	cpuid_remove(cpuid, 0x12, 0, 0xffffffff); // SGX
	cpuid_remove(cpuid, 0x14, 0, 0xffffffff); // processor trace
	if (!cpuid_has(cpuid, "amx_tile")) {
		cpuid_remove(cpuid, 0x1d, 0, 0xffffffff);
		cpuid_remove(cpuid, 0x1e, 0, 0xffffffff);
	}
	if (cpuid_is_intel(cpuid)) {
		for (i = 0x80000009; i <= 0x80000030; i++)
			cpuid_remove(cpuid, i, 0, 0xffffffff);
		cpuid_remove(cpuid, 0x80000005, 0, 0xffffffff);
		cpuid_set_intel_caches(cpuid);
	}
	for (i = 0; i < cpuid->nent; i++) {
		uint32_t leaf = cpuid->entries[i].function;

		if (leaf < 0x40000000 && leaf > basic)
			basic = leaf;
		if (leaf >= 0x80000000 && leaf < 0x80000100 && leaf > extended)
			extended = leaf;
	}
	entry = cpuid_find(cpuid, 0, 0);
	if (entry)
		entry->eax = basic < 0xb ? 0xb : basic;
	entry = cpuid_find(cpuid, 0x80000000, 0);
	if (entry)
		entry->eax = extended;
}

// A feature word keeps only the bits that the choice allows. Leaves without names are left alone.
static void cpuid_cut_features(struct kvm_cpuid2 *cpuid, const struct cpu_choice *choice)
{
	unsigned i, k;

	for (i = 0; i < cpu_feature_count; i++) {
		const struct cpu_feature *word = &cpu_features[i];
		struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, word->leaf, word->subleaf);
		uint32_t allowed = choice->model->features ? 0 : 0xffffffff;

		if (!entry)
			continue;
		for (k = 0; k < cpu_feature_count; k++) {
			const struct cpu_feature *feature = &cpu_features[k];

			if (feature->leaf != word->leaf || feature->subleaf != word->subleaf || feature->reg != word->reg)
				continue;
			if (choice->wanted[k])
				allowed |= 1u << feature->bit;
			if (choice->refused[k])
				allowed &= ~(1u << feature->bit);
		}
		*cpuid_register(entry, word->reg) &= allowed;
	}
}

// The width of linear addresses, which goes with 5-level paging.
static void cpuid_set_linear_width(struct kvm_cpuid2 *cpuid)
{
	struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, 0x80000008, 0);

	if (entry && !cpuid_has(cpuid, "la57"))
		entry->eax = (entry->eax & ~0xff00u) | 48 << 8;
}

// AMD repeats many bits of leaf 1 EDX in leaf 0x80000001 EDX; Intel does not.
static void cpuid_set_amd_copies(struct kvm_cpuid2 *cpuid)
{
	const uint32_t shared = 0x0183f3ff;
	struct kvm_cpuid_entry2 *basic = cpuid_find(cpuid, 1, 0), *extended = cpuid_find(cpuid, 0x80000001, 0);

	if (!basic || !extended)
		return;
	extended->edx &= ~shared;
	if (!cpuid_is_intel(cpuid))
		extended->edx |= basic->edx & shared;
}

int cpuid_apply_choice(struct kvm_cpuid2 *cpuid, const struct kvm_cpuid2 *emulated, const struct cpu_choice *choice,
		       bool any_vendor)
{
	unsigned i;

	for (i = 0; i < cpu_feature_count; i++) {
		const struct cpu_feature *feature = &cpu_features[i];
		struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, feature->leaf, feature->subleaf);

		if (!choice->demanded[i] || cpuid_has_feature(cpuid, feature))
			continue;
		if (!entry || !cpuid_has_feature(emulated, feature)) {
			vmm_message("--cpu: this host or KVM cannot offer '%s'; see 'cetkvm run --cpu list'", feature->name);
			return -1;
		}
		*cpuid_register(entry, feature->reg) |= 1u << feature->bit;
	}
	cpuid_cut_features(cpuid, choice);
	if (choice->model->vendor && any_vendor)
		cpuid_set_vendor(cpuid, choice->model);
	cpuid_set_amd_copies(cpuid);
	cpuid_set_linear_width(cpuid);
	cpuid_cut_xstate(cpuid);
	if (choice->model->features)
		cpuid_cut_leaves(cpuid);
	return 0;
}

static unsigned bits_for(unsigned count)
{
	unsigned bits = 0;

	while (1u << bits < count)
		bits++;
	return bits;
}

// Leaves 0xb and 0x1f, "Extended Topology Enumeration": a level of one thread, a level of cores.
static void cpuid_set_extended_topology(struct kvm_cpuid2 *cpuid, uint32_t leaf, unsigned index, unsigned count)
{
	struct kvm_cpuid_entry2 *entry;
	unsigned level;

	cpuid_remove(cpuid, leaf, 0, 0xffffffff);
	for (level = 0; level < 3; level++) {
		entry = cpuid_add(cpuid, leaf, level, true);
		if (!entry)
			return;
		entry->edx = index;
		entry->ecx = level | (level < 2 ? level + 1 : 0) << 8;
		if (level < 2) {
			entry->eax = level ? bits_for(count) : 0;
			entry->ebx = level ? count : 1;
		}
	}
}

void cpuid_set_topology(struct kvm_cpuid2 *cpuid, unsigned index, unsigned count)
{
	struct kvm_cpuid_entry2 *entry = cpuid_find(cpuid, 1, 0);
	unsigned i;

	if (entry) {
		entry->ebx = (entry->ebx & 0x0000ffff) | index << 24 | count << 16;
		entry->edx = (entry->edx & ~(1u << 28)) | (count > 1 ? 1u << 28 : 0);
	}
	for (i = 0; i < cpuid->nent; i++) {
		entry = &cpuid->entries[i];
		if (entry->function == 4 && entry->eax & 0x1f) {
			unsigned sharing = (entry->eax >> 5 & 7) == 3 ? (1u << bits_for(count)) - 1 : 0;

			entry->eax = (entry->eax & 0x3fff) | sharing << 14 | ((1u << bits_for(count)) - 1) << 26;
		}
		if (entry->function == 0x80000008 && !cpuid_is_intel(cpuid))
			entry->ecx = bits_for(count) << 12 | (count - 1);
		if (entry->function == 0x8000001e)
			entry->eax = index, entry->ebx = index, entry->ecx = 0;
	}
	if (cpuid_find(cpuid, 0x1f, 0))
		cpuid_set_extended_topology(cpuid, 0x1f, index, count);
	cpuid_set_extended_topology(cpuid, 0xb, index, count);
}
