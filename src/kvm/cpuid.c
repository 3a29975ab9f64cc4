// SPDX-License-Identifier: MIT
// CPUID for user space: KVM_GET_SUPPORTED_CPUID, KVM_{SET,GET}_CPUID2. The processor knows what the
// leaves mean (src/cpu/cpuid.c); here are the ABI and its rules.
#include "cpu/features.h"
#include "cpu/system.h"
#include "kvm/generation.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TSC_DEADLINE_TIMER (1u << 24) // leaf 1, ECX

static void to_abi(const struct cpu_cpuid_entry *from, struct kvm_cpuid_entry2 *to)
{
	*to = (struct kvm_cpuid_entry2){ .function = from->function, .index = from->index,
		.flags = from->flags, .eax = from->eax, .ebx = from->ebx, .ecx = from->ecx, .edx = from->edx };
}

static void from_abi(const struct kvm_cpuid_entry2 *from, struct cpu_cpuid_entry *to)
{
	*to = (struct cpu_cpuid_entry){ .function = from->function, .index = from->index,
		.flags = from->flags, .eax = from->eax, .ebx = from->ebx, .ecx = from->ecx, .edx = from->edx };
}

static int put_entries(void *client, const struct cpu_cpuid_entry *entries, unsigned count)
{
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 *out;
	int result = copy_from_client(&header, client, sizeof(header));

	if (result)
		return result;
	// The client's count stays as it was: that is how it finds out.
	if (header.nent < count)
		return -E2BIG;
	out = calloc(count + 1, sizeof(*out));
	if (!out)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++)
		to_abi(&entries[i], &out[i]);
	result = copy_to_client(client_at(client, sizeof(header)), out, count * sizeof(*out));
	free(out);
	header.nent = count;
	return result ? result : copy_to_client(client, &header.nent, sizeof(header.nent));
}

// What the operator wants clients to be told instead; count 0: nothing.
static struct cpu_cpuid_entry wanted[CPU_MAX_CPUID];
static unsigned wanted_count;

static int parse_entries(const char *text, struct cpu_cpuid_entry *entries)
{
	unsigned count = 0;
	int length;

	for (; *text; text += length) {
		struct cpu_cpuid_entry *e = &entries[count];

		length = 0;
		if (count == CPU_MAX_CPUID)
			return -EINVAL;
		if (sscanf(text, "%x:%x:%x:%x:%x:%x:%x;%n", &e->function, &e->index, &e->flags, &e->eax, &e->ebx, &e->ecx,
			   &e->edx, &length) != 7 || !length)
			return -EINVAL;
		count++;
	}
	return (int)count;
}

int cpuid_set_supported(const char *text)
{
	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	int count = parse_entries(text, entries);

	if (count < 0)
		return count;
	memcpy(wanted, entries, (unsigned)count * sizeof(*entries));
	wanted_count = (unsigned)count;
	return 0;
}

// AMX is for processes that have permission for its state.
static void take_tiles_away(struct cpu_cpuid_entry *entries, unsigned *count)
{
	unsigned n = 0;

	for (unsigned i = 0; i < *count; i++) {
		struct cpu_cpuid_entry e = entries[i];

		if (e.function == 0x1d || e.function == 0x1e ||
		    (e.function == 0xd && (e.index == XSTATE_TILECFG || e.index == XSTATE_TILEDATA)))
			continue;
		if (e.function == 7 && e.index == 0)
			e.edx &= ~(1u << 22 | 1u << 24 | 1u << 25);
		if (e.function == 0xd && e.index == 0) {
			e.eax &= ~(u32)XSTATE_MASK_AMX;
			e.ecx = xstate_standard_size(e.eax);
		}
		if (e.function == 0xd && e.index == 1)
			e.eax &= ~(1u << 4);
		entries[n++] = e;
	}
	*count = n;
}

// What the host turned out not to offer, although its description has it.
static void take_cet_away(struct cpu_cpuid_entry *entries, unsigned *count)
{
	unsigned n = 0;

	for (unsigned i = 0; i < *count; i++) {
		struct cpu_cpuid_entry e = entries[i];

		if (e.function == 0xd && (e.index == XSTATE_CET_U || e.index == XSTATE_CET_S))
			continue;
		if (e.function == 7 && e.index == 0) {
			e.ecx &= ~(1u << 7);
			e.edx &= ~(1u << 20);
		}
		if (e.function == 0xd && e.index == 1)
			e.ecx &= ~(u32)(XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S));
		entries[n++] = e;
	}
	*count = n;
}

int cpuid_set_host(const char *text)
{
	int result;

	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	int count = parse_entries(text, entries);

	if (count <= 0)
		return -EINVAL;
	if (vm_ever_created())
		return -EBUSY;
	cpuid_limit_host(entries, (unsigned)count);
	guest_fpu_forget_configs();
	result = cpuid_set_supported(text);
	if (!result && !cpuid_offers(FEATURE_SHSTK) && !cpuid_offers(FEATURE_IBT))
		take_cet_away(wanted, &wanted_count);
	return result;
}

int cpuid_supported_ioctl(void *client)
{
	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	u64 permitted = guest_fpu_permitted();
	unsigned count = cpuid_supported_with(entries, CPU_MAX_CPUID, permitted);

	if (wanted_count) {
		memcpy(entries, wanted, sizeof(entries));
		count = wanted_count;
		if (!(permitted & XSTATE_MASK(XSTATE_TILEDATA)))
			take_tiles_away(entries, &count);
	} else {
		for (unsigned i = 0; i < count; i++)
			if (entries[i].function == KVM_CPUID_FEATURES)
				entries[i].eax |= PV_UNHALT | PV_POLL_CONTROL | PV_SEND_IPI | PV_SCHED_YIELD |
						  (steal_time_available() ? PV_STEAL_TIME : 0);
	}
	// Whether there is a local APIC in the kernel is the client's choice, and without one nothing serves
	// the deadline: KVM_CAP_TSC_DEADLINE_TIMER is where this feature is announced.
	for (unsigned i = 0; i < count; i++)
		if (entries[i].function == 1)
			entries[i].ecx &= ~TSC_DEADLINE_TIMER;
	return put_entries(client, entries, count);
}

static int check_padding(const void *client)
{
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entry;
	int result = copy_from_client(&header, client, sizeof(header));

	for (unsigned i = 0; !result && i < header.nent && i < CPU_MAX_CPUID; i++) {
		result = copy_from_client(&entry, client_at(client, sizeof(header) + i * sizeof(entry)), sizeof(entry));
		if (!result && (entry.padding[0] || entry.padding[1] || entry.padding[2]))
			result = -EINVAL;
	}
	return result;
}

int cpuid_emulated_ioctl(void *client)
{
	struct cpu_cpuid_entry entries[CPU_MAX_CPUID];
	int result = check_padding(client);

	return result ? result : put_entries(client, entries, cpuid_emulated(entries, CPU_MAX_CPUID));
}

void cpuid_limit_new(struct vcpu *vcpu)
{
	if (wanted_count)
		cpuid_limit(vcpu->cpu, wanted, wanted_count);
}

int cpuid_get_ioctl(struct vcpu *vcpu, void *client)
{
	cpuid_refresh(vcpu->cpu);
	return put_entries(client, vcpu->cpu->cpuid, vcpu->cpu->cpuid_count);
}

// Where the leaves of KVM's paravirtual features begin, or NULL: the signature decides.
static struct cpu_cpuid_entry *features_leaf(struct cpu_cpuid_entry *entries, unsigned count)
{
	u32 base = 0;

	for (unsigned i = 0; i < count && !base; i++) {
		const struct cpu_cpuid_entry *e = &entries[i];
		u32 signature[3] = { e->ebx, e->ecx, e->edx };

		if (e->function >= 0x40000000 && e->function < 0x40010000 && !(e->function & 0xff) &&
		    !memcmp(signature, KVM_SIGNATURE, 12))
			base = e->function;
	}
	for (unsigned i = 0; base && i < count; i++)
		if (entries[i].function == (base | (KVM_CPUID_FEATURES & 0xff)))
			return &entries[i];
	return NULL;
}

static void conclude(struct vcpu *vcpu)
{
	struct cpu *cpu = vcpu->cpu;
	const struct cpu_cpuid_entry *leaf = features_leaf(cpu->cpuid, cpu->cpuid_count);

	generation_after_cpuid(vcpu);
	vcpu->pv_features = leaf ? leaf->eax : 0;
	if (!vcpu->lapic)
		return;
	vcpu->lapic->has_x2apic = guest_has(cpu, FEATURE_X2APIC);
	vcpu->lapic->has_tsc_deadline = guest_has(cpu, FEATURE_TSC_DEADLINE);
	vcpu->lapic->base_reserved = ~((1ull << cpu->phys_bits) - 1);
}

static int check_entries(const struct cpu_cpuid_entry *entries, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned linear = entries[i].eax >> 8 & 0xff;

		// A linear address width nobody has would make every address wrong.
		if (entries[i].function == 0x80000008 && linear != 48 && linear != 57 && linear != 0)
			return -EINVAL;
	}
	return 0;
}

// User components that the guest's CPUID enumerates.
static u64 components_of(const struct cpu_cpuid_entry *entries, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (entries[i].function == 0xd && entries[i].index == 0)
			return (u64)entries[i].edx << 32 | entries[i].eax;
	return 0;
}

// Bits that follow the state do not count.
static bool same_but_for_state(struct cpu_cpuid_entry a, struct cpu_cpuid_entry b)
{
	struct cpu_cpuid_entry *both[2] = { &a, &b };

	for (unsigned i = 0; i < 2; i++) {
		struct cpu_cpuid_entry *e = both[i];

		if (e->function == 1) {
			e->ecx &= ~(1u << 27); // OSXSAVE
			e->edx &= ~(1u << 9);  // APIC
		} else if (e->function == 7 && !e->index) {
			e->ecx &= ~(1u << 4); // OSPKE
		} else if (e->function == 0xd && e->index <= 1) {
			e->ebx = 0;
		}
	}
	return !memcmp(&a, &b, sizeof(a));
}

static bool submitted_before(const struct vcpu *vcpu, const struct cpu_cpuid_entry *entries, unsigned count)
{
	return count == vcpu->cpuid_count && (!count || !memcmp(entries, vcpu->cpuid, count * sizeof(*entries)));
}

static bool in_force(const struct vcpu *vcpu, const struct cpu_cpuid_entry *entries, unsigned count)
{
	if (count != vcpu->cpu->cpuid_count)
		return false;
	for (unsigned i = 0; i < count; i++)
		if (!same_but_for_state(entries[i], vcpu->cpu->cpuid[i]))
			return false;
	return true;
}

static int read_entries(const void *client, struct cpu_cpuid_entry *own, unsigned *count)
{
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 *entries;
	int result = copy_from_client(&header, client, sizeof(header));

	if (result)
		return result;
	if (header.nent > CPU_MAX_CPUID)
		return -E2BIG;
	entries = calloc(header.nent + 1, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	result = copy_from_client(entries, client_at(client, sizeof(header)), header.nent * sizeof(*entries));
	for (unsigned i = 0; !result && i < header.nent; i++)
		from_abi(&entries[i], &own[i]);
	*count = header.nent;
	free(entries);
	return result;
}

int cpuid_set_ioctl(struct vcpu *vcpu, const void *client)
{
	struct cpu_cpuid_entry own[CPU_MAX_CPUID], *copy, *leaf;
	unsigned submitted, count;
	int result = read_entries(client, own, &submitted);
	bool hidden_cet;

	if (result)
		return result;
	copy = malloc(submitted * sizeof(*copy) + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, own, submitted * sizeof(*copy));
	count = submitted;
	hidden_cet = cpuid_make_effective(own, &count);
	leaf = features_leaf(own, count);
	if (leaf && vcpu->vm->hlt_in_guest)
		leaf->eax &= ~PV_UNHALT;
	// What guests have seen does not change any more; saying the same again is fine.
	if (vcpu->has_run) {
		if (!submitted_before(vcpu, copy, submitted) && !in_force(vcpu, own, count))
			result = -EINVAL;
		goto out;
	}
	result = check_entries(own, count);
	if (!result)
		result = guest_fpu_enable(vcpu, components_of(own, count));
	if (!result)
		result = cpuid_set(vcpu->cpu, own, count);
	if (result)
		goto out;
	free(vcpu->cpuid);
	vcpu->hidden_cet = hidden_cet;
	vcpu->cpuid = copy;
	vcpu->cpuid_count = submitted;
	copy = NULL;
	conclude(vcpu);
out:
	free(copy);
	return result;
}
