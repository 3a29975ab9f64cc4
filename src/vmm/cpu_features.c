// SPDX-License-Identifier: MIT
// CPUID feature bits by name, CPU models, and the --cpu syntax. Bit places: Intel SDM "CPUID - CPU
// Identification", AMD APM "Obtaining Processor Information Via the CPUID Instruction".
#include "vmm/cpu_features.h"

#include "vmm/message.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define F(name, leaf, subleaf, reg, bit, needs) { name, leaf, subleaf, CPUID_##reg, bit, needs }

const struct cpu_feature cpu_features[] = {
	F("fpu", 1, 0, EDX, 0, NULL), F("vme", 1, 0, EDX, 1, NULL), F("de", 1, 0, EDX, 2, NULL),
	F("pse", 1, 0, EDX, 3, NULL), F("tsc", 1, 0, EDX, 4, NULL), F("msr", 1, 0, EDX, 5, NULL),
	F("pae", 1, 0, EDX, 6, NULL), F("mce", 1, 0, EDX, 7, NULL), F("cx8", 1, 0, EDX, 8, NULL),
	F("apic", 1, 0, EDX, 9, NULL), F("sep", 1, 0, EDX, 11, NULL), F("mtrr", 1, 0, EDX, 12, NULL),
	F("pge", 1, 0, EDX, 13, NULL), F("mca", 1, 0, EDX, 14, NULL), F("cmov", 1, 0, EDX, 15, NULL),
	F("pat", 1, 0, EDX, 16, NULL), F("pse36", 1, 0, EDX, 17, NULL), F("clflush", 1, 0, EDX, 19, NULL),
	F("mmx", 1, 0, EDX, 23, NULL), F("fxsr", 1, 0, EDX, 24, NULL), F("sse", 1, 0, EDX, 25, "fxsr"),
	F("sse2", 1, 0, EDX, 26, "sse"), F("ss", 1, 0, EDX, 27, NULL), F("ht", 1, 0, EDX, 28, NULL),

	F("pni", 1, 0, ECX, 0, "sse2"), F("pclmulqdq", 1, 0, ECX, 1, "sse2"), F("monitor", 1, 0, ECX, 3, NULL),
	F("vmx", 1, 0, ECX, 5, NULL), F("ssse3", 1, 0, ECX, 9, "pni"), F("fma", 1, 0, ECX, 12, "avx"),
	F("cx16", 1, 0, ECX, 13, NULL), F("pdcm", 1, 0, ECX, 15, NULL), F("pcid", 1, 0, ECX, 17, NULL),
	F("sse4_1", 1, 0, ECX, 19, "ssse3"), F("sse4_2", 1, 0, ECX, 20, "sse4_1"),
	F("x2apic", 1, 0, ECX, 21, "apic"), F("movbe", 1, 0, ECX, 22, NULL), F("popcnt", 1, 0, ECX, 23, NULL),
	F("tsc_deadline_timer", 1, 0, ECX, 24, "apic"), F("aes", 1, 0, ECX, 25, "sse2"),
	F("xsave", 1, 0, ECX, 26, "fxsr"), F("avx", 1, 0, ECX, 28, "xsave"), F("f16c", 1, 0, ECX, 29, "avx"),
	F("rdrand", 1, 0, ECX, 30, NULL), F("hypervisor", 1, 0, ECX, 31, NULL),

	F("arat", 6, 0, EAX, 2, NULL),

	F("fsgsbase", 7, 0, EBX, 0, NULL), F("tsc_adjust", 7, 0, EBX, 1, NULL), F("bmi1", 7, 0, EBX, 3, NULL),
	F("hle", 7, 0, EBX, 4, NULL), F("avx2", 7, 0, EBX, 5, "avx"), F("smep", 7, 0, EBX, 7, NULL),
	F("bmi2", 7, 0, EBX, 8, NULL), F("erms", 7, 0, EBX, 9, NULL), F("invpcid", 7, 0, EBX, 10, NULL),
	F("rtm", 7, 0, EBX, 11, NULL), F("mpx", 7, 0, EBX, 14, "xsave"), F("avx512f", 7, 0, EBX, 16, "avx2"),
	F("avx512dq", 7, 0, EBX, 17, "avx512f"), F("rdseed", 7, 0, EBX, 18, NULL), F("adx", 7, 0, EBX, 19, NULL),
	F("smap", 7, 0, EBX, 20, NULL), F("avx512ifma", 7, 0, EBX, 21, "avx512f"),
	F("clflushopt", 7, 0, EBX, 23, NULL), F("clwb", 7, 0, EBX, 24, NULL),
	F("avx512cd", 7, 0, EBX, 28, "avx512f"), F("sha_ni", 7, 0, EBX, 29, "sse2"),
	F("avx512bw", 7, 0, EBX, 30, "avx512f"), F("avx512vl", 7, 0, EBX, 31, "avx512f"),

	F("avx512vbmi", 7, 0, ECX, 1, "avx512bw"), F("umip", 7, 0, ECX, 2, NULL), F("pku", 7, 0, ECX, 3, "xsave"),
	F("waitpkg", 7, 0, ECX, 5, NULL), F("avx512_vbmi2", 7, 0, ECX, 6, "avx512bw"),
	F("shstk", 7, 0, ECX, 7, "xsaves"), F("gfni", 7, 0, ECX, 8, "sse2"), F("vaes", 7, 0, ECX, 9, "avx"),
	F("vpclmulqdq", 7, 0, ECX, 10, "avx"), F("avx512_vnni", 7, 0, ECX, 11, "avx512f"),
	F("avx512_bitalg", 7, 0, ECX, 12, "avx512bw"), F("avx512_vpopcntdq", 7, 0, ECX, 14, "avx512f"),
	F("la57", 7, 0, ECX, 16, NULL), F("rdpid", 7, 0, ECX, 22, NULL),
	F("bus_lock_detect", 7, 0, ECX, 24, NULL), F("cldemote", 7, 0, ECX, 25, NULL),
	F("movdiri", 7, 0, ECX, 27, NULL), F("movdir64b", 7, 0, ECX, 28, NULL), F("pks", 7, 0, ECX, 31, NULL),

	F("fsrm", 7, 0, EDX, 4, NULL), F("avx512_vp2intersect", 7, 0, EDX, 8, "avx512f"),
	F("md_clear", 7, 0, EDX, 10, NULL), F("serialize", 7, 0, EDX, 14, NULL),
	F("tsxldtrk", 7, 0, EDX, 16, NULL), F("ibt", 7, 0, EDX, 20, "xsaves"),
	F("amx_bf16", 7, 0, EDX, 22, "amx_tile"), F("avx512_fp16", 7, 0, EDX, 23, "avx512bw"),
	F("amx_tile", 7, 0, EDX, 24, "xsave"), F("amx_int8", 7, 0, EDX, 25, "amx_tile"),
	F("spec_ctrl", 7, 0, EDX, 26, NULL), F("intel_stibp", 7, 0, EDX, 27, "spec_ctrl"),
	F("flush_l1d", 7, 0, EDX, 28, NULL), F("arch_capabilities", 7, 0, EDX, 29, NULL),
	F("core_capabilities", 7, 0, EDX, 30, NULL), F("spec_ctrl_ssbd", 7, 0, EDX, 31, "spec_ctrl"),

	F("sha512", 7, 1, EAX, 0, "avx2"), F("sm3", 7, 1, EAX, 1, "avx"), F("sm4", 7, 1, EAX, 2, "avx2"),
	F("avx_vnni", 7, 1, EAX, 4, "avx2"), F("avx512_bf16", 7, 1, EAX, 5, "avx512bw"),
	F("cmpccxadd", 7, 1, EAX, 7, NULL), F("fzrm", 7, 1, EAX, 10, NULL), F("fsrs", 7, 1, EAX, 11, NULL),
	F("fsrc", 7, 1, EAX, 12, NULL), F("fred", 7, 1, EAX, 17, NULL), F("lkgs", 7, 1, EAX, 18, NULL),
	F("wrmsrns", 7, 1, EAX, 19, NULL), F("amx_fp16", 7, 1, EAX, 21, "amx_tile"),
	F("avx_ifma", 7, 1, EAX, 23, "avx2"), F("lam", 7, 1, EAX, 26, NULL),
	F("avx_vnni_int8", 7, 1, EDX, 4, "avx2"), F("avx_ne_convert", 7, 1, EDX, 5, "avx2"),
	F("avx_vnni_int16", 7, 1, EDX, 10, "avx2"), F("prefetchiti", 7, 1, EDX, 14, NULL),
	F("sss", 7, 1, EDX, 18, "shstk"),

	F("bhi_ctrl", 7, 2, EDX, 4, "spec_ctrl"), F("mcdt_no", 7, 2, EDX, 5, NULL),

	F("xsaveopt", 0xd, 1, EAX, 0, "xsave"), F("xsavec", 0xd, 1, EAX, 1, "xsave"),
	F("xgetbv1", 0xd, 1, EAX, 2, "xsave"), F("xsaves", 0xd, 1, EAX, 3, "xsavec"),
	F("xfd", 0xd, 1, EAX, 4, "xsave"),

	F("lahf_lm", 0x80000001, 0, ECX, 0, NULL), F("cmp_legacy", 0x80000001, 0, ECX, 1, NULL),
	F("svm", 0x80000001, 0, ECX, 2, NULL), F("cr8_legacy", 0x80000001, 0, ECX, 4, NULL),
	F("abm", 0x80000001, 0, ECX, 5, NULL), F("sse4a", 0x80000001, 0, ECX, 6, "pni"),
	F("misalignsse", 0x80000001, 0, ECX, 7, NULL), F("3dnowprefetch", 0x80000001, 0, ECX, 8, NULL),
	F("osvw", 0x80000001, 0, ECX, 9, NULL), F("xop", 0x80000001, 0, ECX, 11, "avx"),
	F("fma4", 0x80000001, 0, ECX, 16, "avx"), F("tbm", 0x80000001, 0, ECX, 21, NULL),
	F("topoext", 0x80000001, 0, ECX, 22, NULL), F("perfctr_core", 0x80000001, 0, ECX, 23, NULL),
	F("syscall", 0x80000001, 0, EDX, 11, NULL), F("nx", 0x80000001, 0, EDX, 20, NULL),
	F("mmxext", 0x80000001, 0, EDX, 22, "mmx"), F("fxsr_opt", 0x80000001, 0, EDX, 25, "fxsr"),
	F("pdpe1gb", 0x80000001, 0, EDX, 26, NULL), F("rdtscp", 0x80000001, 0, EDX, 27, NULL),
	F("lm", 0x80000001, 0, EDX, 29, NULL), F("3dnowext", 0x80000001, 0, EDX, 30, "mmx"),
	F("3dnow", 0x80000001, 0, EDX, 31, "mmx"),

	F("constant_tsc", 0x80000007, 0, EDX, 8, NULL),

	F("clzero", 0x80000008, 0, EBX, 0, NULL), F("xsaveerptr", 0x80000008, 0, EBX, 2, "xsave"),
	F("wbnoinvd", 0x80000008, 0, EBX, 9, NULL), F("amd_ibpb", 0x80000008, 0, EBX, 12, NULL),
	F("amd_ibrs", 0x80000008, 0, EBX, 14, NULL), F("amd_stibp", 0x80000008, 0, EBX, 15, NULL),
	F("amd_ssbd", 0x80000008, 0, EBX, 24, NULL), F("virt_ssbd", 0x80000008, 0, EBX, 25, NULL),
	F("amd_ssb_no", 0x80000008, 0, EBX, 26, NULL), F("amd_psfd", 0x80000008, 0, EBX, 28, NULL),
};

const unsigned cpu_feature_count = sizeof(cpu_features) / sizeof(cpu_features[0]);
static_assert(sizeof(cpu_features) / sizeof(cpu_features[0]) <= CPU_FEATURES_MAX, "CPU_FEATURES_MAX is too small");

#define FEATURES_BASE \
	"fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 " \
	"ht pni cx16 hypervisor lahf_lm syscall nx lm tsc_deadline_timer x2apic arat constant_tsc tsc_adjust "
#define FEATURES_V2 FEATURES_BASE "ssse3 sse4_1 sse4_2 popcnt "
#define FEATURES_V3 \
	FEATURES_V2 "pclmulqdq fma movbe aes xsave avx f16c rdrand abm bmi1 avx2 bmi2 fsgsbase smep erms invpcid pcid " \
	"xsaveopt rdtscp pdpe1gb 3dnowprefetch "

const struct cpu_model cpu_models[] = {
	{ "sapphirerapids",
	  "Intel server of 2023, the first with shadow stacks and IBT; cut to what this host can run (default)",
	  FEATURES_V3
	  "rdseed adx smap clflushopt clwb sha_ni umip pku shstk gfni vaes vpclmulqdq rdpid bus_lock_detect cldemote "
	  "movdiri movdir64b fsrm md_clear serialize ibt spec_ctrl intel_stibp flush_l1d arch_capabilities "
	  "spec_ctrl_ssbd bhi_ctrl mcdt_no xsavec xgetbv1 xsaves xfd wbnoinvd fzrm fsrs fsrc avx_vnni "
	  "avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg "
	  "avx512_vpopcntdq avx512_fp16 avx512_bf16 amx_bf16 amx_tile amx_int8",
	  "GenuineIntel", 0x000806f8, "Intel Xeon Processor (SapphireRapids, cetkvm)" },
	{ "skylake", "Intel server of 2017, without CET",
	  FEATURES_V3 "rdseed adx smap clflushopt clwb pku xsavec xgetbv1 xsaves md_clear spec_ctrl intel_stibp "
	  "spec_ctrl_ssbd arch_capabilities avx512f avx512dq avx512cd avx512bw avx512vl",
	  "GenuineIntel", 0x00050654, "Intel Xeon Processor (Skylake, cetkvm)" },
	{ "x86-64-v3", "the psABI's third level, without CET: AVX2, BMI2, FMA", FEATURES_V3, NULL, 0, NULL },
	{ "x86-64-v2", "the psABI's second level: SSE4.2, POPCNT", FEATURES_V2, NULL, 0, NULL },
	{ "x86-64", "the psABI's baseline: SSE2", FEATURES_BASE, NULL, 0, NULL },
	{ "host", "everything that KVM supports, as it says it", NULL, NULL, 0, NULL },
};

const unsigned cpu_model_count = sizeof(cpu_models) / sizeof(cpu_models[0]);

static bool name_is(const char *name, const char *text, unsigned length)
{
	return strlen(name) == length && !strncmp(name, text, length);
}

int cpu_feature_find(const char *name, unsigned length)
{
	unsigned i;

	if (name_is("user_shstk", name, length))
		return cpu_feature_find("shstk", 5);
	if (name_is("nonstop_tsc", name, length))
		return cpu_feature_find("constant_tsc", 12);
	for (i = 0; i < cpu_feature_count; i++)
		if (name_is(cpu_features[i].name, name, length))
			return i;
	return -1;
}

const struct cpu_model *cpu_model_find(const char *name, unsigned length)
{
	unsigned i;

	for (i = 0; i < cpu_model_count; i++)
		if (name_is(cpu_models[i].name, name, length))
			return &cpu_models[i];
	return NULL;
}

static void cpu_choice_add_list(struct cpu_choice *choice, const char *names)
{
	while (*names) {
		unsigned length = strcspn(names, " ");
		int index = cpu_feature_find(names, length);

		if (length) {
			assert(index >= 0); // the lists above name only what the table has
			choice->wanted[index] = true;
		}
		names += length + (names[length] == ' ');
	}
}

static int cpu_choice_change(struct cpu_choice *choice, const char *item, unsigned length, char *problem, size_t size)
{
	int index;

	if (length < 2 || (*item != '+' && *item != '-')) {
		snprintf(problem, size, "'%.*s' is neither +feature nor -feature; see 'cetkvm run --cpu list'",
			 (int)length, item);
		return -1;
	}
	index = cpu_feature_find(item + 1, length - 1);
	if (index < 0) {
		snprintf(problem, size, "unknown CPU feature '%.*s'; see 'cetkvm run --cpu list'", (int)length - 1,
			 item + 1);
		return -1;
	}
	choice->wanted[index] = choice->demanded[index] = *item == '+';
	choice->refused[index] = *item == '-';
	return 0;
}

// What needs a refused feature is refused too, until nothing changes.
static void cpu_choice_close(struct cpu_choice *choice)
{
	bool changed = true;
	unsigned i;

	while (changed) {
		changed = false;
		for (i = 0; i < cpu_feature_count; i++) {
			const char *needs = cpu_features[i].needs;

			if (!needs || choice->refused[i] || !choice->refused[cpu_feature_find(needs, strlen(needs))])
				continue;
			choice->refused[i] = changed = true;
		}
	}
}

int cpu_choice_read(struct cpu_choice *choice, const char *text, char *problem, size_t size)
{
	unsigned length = strcspn(text, ","), i;
	const char *item;

	memset(choice, 0, sizeof(*choice));
	if (*text == '+' || *text == '-') {
		choice->model = cpu_model_find(CPU_MODEL_DEFAULT, strlen(CPU_MODEL_DEFAULT));
		length = 0;
	} else {
		choice->model = cpu_model_find(text, length);
	}
	if (!choice->model) {
		snprintf(problem, size, "unknown CPU model '%.*s'; see 'cetkvm run --cpu list'", (int)length, text);
		return -1;
	}
	if (choice->model->features)
		cpu_choice_add_list(choice, choice->model->features);
	item = !length ? text : text[length] ? text + length + 1 : NULL;
	for (; item; item = item[length] ? item + length + 1 : NULL) {
		length = strcspn(item, ",");
		if (cpu_choice_change(choice, item, length, problem, size) < 0)
			return -1;
	}
	cpu_choice_close(choice);
	for (i = 0; i < cpu_feature_count; i++)
		if (choice->demanded[i] && choice->refused[i]) {
			snprintf(problem, size, "+%s needs %s, which is taken away", cpu_features[i].name,
				 cpu_features[i].needs);
			return -1;
		}
	return 0;
}

bool cpu_choice_wants(const struct cpu_choice *choice, const char *feature)
{
	int i = cpu_feature_find(feature, strlen(feature));

	return i >= 0 && choice->wanted[i] && !choice->refused[i];
}

int cpu_choice_parse(struct cpu_choice *choice, const char *text)
{
	char problem[256];

	if (!cpu_choice_read(choice, text, problem, sizeof(problem)))
		return 0;
	vmm_message("--cpu: %s", problem);
	return -1;
}
