// SPDX-License-Identifier: MIT
// From the CPUID that a client submits to the one its guest gets.
//
// - A policy of the operator (option cpuid-policy) adds and removes feature bits: a guest can have CET
//   though its VMM has never heard of it.
// - Leaf 0xD describes the XSAVE area of this processor, whatever the client wrote: clients fill it in
//   by CPUID instructions of their own, which answer for the host. Offsets, sizes and attributes come
//   from the supported leaves.
// - Shadow stacks and IBT have IA32_XSS bits 11 and 12: with XSAVES the bits are added. Without it the
//   policy gives neither feature; a client that asks for them all the same gets what it asks for, as of KVM.
//
// SDM: "Enumeration of Support for XSAVE Instructions and XSAVE-Supported Features".
#include "cpu/cpuid.h"
#include "cpu/features.h"
#include "cpu/system.h"
#include "kvm/kvm.h"
#include "xstate/xstate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LEAF_7 7
#define LEAF_XSTATE 0xd
#define ECX_SHSTK (1u << 7)
#define EDX_IBT (1u << 20)
#define EAX_XSAVES (1u << 3)
#define ECX_XSAVE (1u << 26)
#define XSS_CET (XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S))

struct list {
	struct cpu_cpuid_entry *entries;
	unsigned count;
};

static struct policy_bit {
	u32 function, index;
	unsigned reg, bit; // reg: 0 EAX .. 3 EDX
	bool value;
} policy[64];
static unsigned policy_count;

int cpuid_set_policy(const char *text)
{
	struct policy_bit bits[sizeof(policy) / sizeof(policy[0])];
	unsigned count = 0, value;
	int length;

	for (; *text; text += length) {
		struct policy_bit *b = &bits[count];

		length = 0;
		if (count++ == sizeof(bits) / sizeof(bits[0]))
			return -EINVAL;
		if (sscanf(text, "%x:%x:%u:%u:%u;%n", &b->function, &b->index, &b->reg, &b->bit, &value, &length) != 5 ||
		    !length || b->reg > 3 || b->bit > 31 || value > 1)
			return -EINVAL;
		b->value = value;
	}
	memcpy(policy, bits, count * sizeof(bits[0]));
	policy_count = count;
	return 0;
}

static struct cpu_cpuid_entry *find(const struct list *list, u32 function, u32 index)
{
	for (unsigned i = 0; i < list->count; i++) {
		struct cpu_cpuid_entry *e = &list->entries[i];

		if (e->function == function && (!(e->flags & CPUID_INDEX_SIGNIFICANT) || e->index == index))
			return e;
	}
	return NULL;
}

// The entry, made empty if it is not there; NULL: no room.
static struct cpu_cpuid_entry *need(struct list *list, u32 function, u32 index)
{
	static const u32 with_index[] = { 4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f };
	struct cpu_cpuid_entry *e = find(list, function, index);

	if (e || list->count == CPU_MAX_CPUID)
		return e;
	e = &list->entries[list->count++];
	*e = (struct cpu_cpuid_entry){ .function = function, .index = index };
	for (unsigned i = 0; i < sizeof(with_index) / sizeof(with_index[0]); i++)
		if (with_index[i] == function)
			e->flags = CPUID_INDEX_SIGNIFICANT;
	return e;
}

static u32 *reg_of(struct cpu_cpuid_entry *e, unsigned reg)
{
	u32 *regs[4] = { &e->eax, &e->ebx, &e->ecx, &e->edx };

	return regs[reg];
}

static void raise_limit(struct list *list, u32 function)
{
	struct cpu_cpuid_entry *e = find(list, function & 0x80000000, 0);

	if (e && e->eax < function)
		e->eax = function;
}

static void apply_policy(struct list *list)
{
	for (unsigned i = 0; i < policy_count; i++) {
		const struct policy_bit *b = &policy[i];
		struct cpu_cpuid_entry *e = b->value ? need(list, b->function, b->index) :
						       find(list, b->function, b->index);

		if (!e)
			continue;
		*reg_of(e, b->reg) = (*reg_of(e, b->reg) & ~(1u << b->bit)) | (u32)b->value << b->bit;
		if (b->value) {
			raise_limit(list, b->function);
			// Leaf 7 tells how many parts it has.
			e = find(list, b->function, 0);
			if (b->function == LEAF_7 && e && e->eax < b->index)
				e->eax = b->index;
		}
	}
}

static bool has_cet(const struct list *list)
{
	const struct cpu_cpuid_entry *e = find(list, LEAF_7, 0);

	return e && ((e->ecx & ECX_SHSTK) || (e->edx & EDX_IBT));
}

static void repair_cet(struct list *list, const struct list *supported)
{
	struct cpu_cpuid_entry *seven = find(list, LEAF_7, 0), *one = find(list, LEAF_XSTATE, 1);
	const struct cpu_cpuid_entry *offered = find(supported, LEAF_XSTATE, 1);

	if (!has_cet(list))
		return;
	if (one && offered && (one->eax & offered->eax & EAX_XSAVES)) {
		one->ecx |= offered->ecx & XSS_CET;
	} else if (policy_count) {
		seven->ecx &= ~ECX_SHSTK;
		seven->edx &= ~EDX_IBT;
	}
}

static void repair_xsave(struct list *list, const struct list *supported)
{
	struct cpu_cpuid_entry *leaf1 = find(list, 1, 0), *zero = find(list, LEAF_XSTATE, 0), *one;
	u64 managed = 0;

	if (!leaf1 || !(leaf1->ecx & ECX_XSAVE))
		return;
	// A policy may have given XSAVE to a guest that was to have none: x87 and SSE at least.
	if (policy_count && (!zero || !(zero->eax & 1)) && (zero = need(list, LEAF_XSTATE, 0))) {
		zero->eax |= XSTATE_MASK_FPSSE;
		zero->ebx = zero->ecx = xstate_standard_size(XSTATE_MASK_FPSSE);
		raise_limit(list, LEAF_XSTATE);
	}
	one = find(list, LEAF_XSTATE, 1);
	if (zero)
		managed |= (u64)zero->edx << 32 | zero->eax;
	if (one)
		managed |= (u64)one->edx << 32 | one->ecx;
	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		const struct cpu_cpuid_entry *right = find(supported, LEAF_XSTATE, i);
		struct cpu_cpuid_entry *e = find(list, LEAF_XSTATE, i);

		if (!right)
			continue;
		if (!e && (managed >> i & 1))
			e = need(list, LEAF_XSTATE, i);
		if (e && ((managed >> i & 1) || e->eax))
			*e = *right;
	}
	// EBX is what XCR0 and XSS make of it, from moment to moment: cpuid_refresh().
	if (zero)
		zero->ecx = xstate_standard_size((u64)zero->edx << 32 | zero->eax);
}

bool cpuid_make_effective(struct cpu_cpuid_entry *entries, unsigned *count)
{
	struct cpu_cpuid_entry offered[CPU_MAX_CPUID];
	struct list list = { entries, *count };
	struct list supported = { offered, cpuid_supported_with(offered, CPU_MAX_CPUID, XSTATE_MASK(XSTATE_TILEDATA)) };
	bool cet = has_cet(&list);

	apply_policy(&list);
	repair_cet(&list, &supported);
	repair_xsave(&list, &supported);
	*count = list.count;
	return !cet && has_cet(&list);
}
