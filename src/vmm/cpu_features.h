// SPDX-License-Identifier: MIT
// Names of CPUID feature bits, as /proc/cpuinfo spells them, and the CPU models made of them.
#ifndef CETKVM_VMM_CPU_FEATURES_H
#define CETKVM_VMM_CPU_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

struct cpu_feature {
	const char *name;
	uint32_t leaf, subleaf;
	enum cpuid_register reg;
	unsigned bit;
	const char *needs; // a feature without which this one is taken away, or NULL
};

struct cpu_model {
	const char *name, *description;
	const char *features;    // space separated; NULL: whatever KVM supports
	const char *vendor;      // 12 characters; NULL: as KVM says
	uint32_t signature;      // CPUID.1:EAX; with vendor only
	const char *brand;
};

extern const struct cpu_feature cpu_features[];
extern const unsigned cpu_feature_count;
extern const struct cpu_model cpu_models[];
extern const unsigned cpu_model_count;

#define CPU_MODEL_DEFAULT "sapphirerapids"
#define CPU_FEATURES_MAX  256

// Index into cpu_features, or -1. Knows /proc/cpuinfo's synthetic names too (user_shstk).
int cpu_feature_find(const char *name, unsigned length);
const struct cpu_model *cpu_model_find(const char *name, unsigned length);

// What "MODEL,+feature,-feature" asks for.
struct cpu_choice {
	const struct cpu_model *model;
	bool wanted[CPU_FEATURES_MAX];  // by the model or by +feature
	bool demanded[CPU_FEATURES_MAX]; // by +feature: an error if KVM does not have it
	bool refused[CPU_FEATURES_MAX]; // by -feature, directly or for want of what it needs
};

// Returns -1, and what is wrong with it, if the text names what does not exist.
int cpu_choice_read(struct cpu_choice *choice, const char *text, char *problem, size_t size);
// The same for --cpu: writes one line.
int cpu_choice_parse(struct cpu_choice *choice, const char *text);
// Does it ask for the feature, by the model or by name?
bool cpu_choice_wants(const struct cpu_choice *choice, const char *feature);

#endif
