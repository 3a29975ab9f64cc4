// SPDX-License-Identifier: MIT
// CPUID: what this host and this code can offer, what a guest was given, and what it may use.
// SDM: CPUID in Vol. 2; Vol. 1 "Enumeration of Support for XSAVE Instructions and XSAVE-Supported
// Features"; api.rst for the leaves of the hypervisor.
//
// - "Offered" is a property of the host and of this code (cpuid_offers()); "has" one of the guest
//   (guest_has()). A guest has what its CPUID says and what is offered, never more.
// - What the host's units execute is offered if the host has it. What is done in C is offered
//   everywhere: CET, protection keys, paging features, supervisor-mode guards.
// - The host's own CPUID instruction is executed here and nowhere else in the engine.
#include "cpu/cpuid.h"
#include "cpu/features.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "xstate/config.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <string.h>

enum { EAX, EBX, ECX, EDX };

// Which register of which leaf a word of cpu->features is.
static const struct word {
	u32 function, index;
	u8 reg;
} words[WORD_COUNT] = {
	[WORD_1_EDX] = { 1, 0, EDX },
	[WORD_1_ECX] = { 1, 0, ECX },
	[WORD_7_0_EBX] = { 7, 0, EBX },
	[WORD_7_0_ECX] = { 7, 0, ECX },
	[WORD_7_0_EDX] = { 7, 0, EDX },
	[WORD_7_1_EAX] = { 7, 1, EAX },
	[WORD_8_1_EDX] = { 0x80000001, 0, EDX },
	[WORD_8_1_ECX] = { 0x80000001, 0, ECX },
	[WORD_D_1_EAX] = { 0xd, 1, EAX },
	[WORD_8_8_EBX] = { 0x80000008, 0, EBX },
	[WORD_6_EAX] = { 6, 0, EAX },
	[WORD_7_2_EDX] = { 7, 2, EDX },
	[WORD_5_ECX] = { 5, 0, ECX },
};

// Done in C or in the same way on every x86-64.
static const u16 emulated[] = {
	FEATURE_FPU, FEATURE_VME, FEATURE_DE, FEATURE_PSE, FEATURE_TSC, FEATURE_MSR, FEATURE_PAE,
	FEATURE_MCE, FEATURE_CX8, FEATURE_APIC, FEATURE_SEP, FEATURE_MTRR, FEATURE_PGE,
	FEATURE_MCA, FEATURE_CMOV, FEATURE_PAT, FEATURE_PSE36, FEATURE_CLFSH, FEATURE_MMX,
	FEATURE_FXSR, FEATURE_SSE, FEATURE_SSE2, FEATURE_HTT, FEATURE_SS,
	FEATURE_PCID, FEATURE_X2APIC, FEATURE_TSC_DEADLINE, FEATURE_XSAVE, FEATURE_HYPERVISOR,
	FEATURE_FSGSBASE, FEATURE_TSC_ADJUST, FEATURE_SMEP, FEATURE_ERMS, FEATURE_INVPCID,
	FEATURE_SMAP, FEATURE_UMIP, FEATURE_PKU, FEATURE_SHSTK, FEATURE_LA57, FEATURE_RDPID,
	FEATURE_SERIALIZE, FEATURE_IBT, FEATURE_SPEC_CTRL, FEATURE_STIBP, FEATURE_ARCH_CAPABILITIES,
	FEATURE_SSBD, FEATURE_SYSCALL, FEATURE_NX, FEATURE_PDPE1GB, FEATURE_RDTSCP, FEATURE_LM,
	FEATURE_LAHF_LM, FEATURE_PREFETCHW, FEATURE_XSAVEOPT, FEATURE_XSAVEC, FEATURE_XGETBV1,
	FEATURE_XSAVES, FEATURE_XSAVEERPTR, FEATURE_WBNOINVD, FEATURE_ARAT,
	FEATURE_BHI_CTRL, FEATURE_MCDT_NO, FEATURE_MOVDIRI, FEATURE_MOVDIR64B, FEATURE_CLDEMOTE,
	FEATURE_FDP_EXCPTN_ONLY, FEATURE_ZERO_FCS_FDS,
};

// Executed by the host's units: offered where the host has them.
static const u16 executed[] = {
	FEATURE_SSE3, FEATURE_PCLMULQDQ, FEATURE_SSSE3, FEATURE_CX16, FEATURE_SSE4_1,
	FEATURE_SSE4_2, FEATURE_MOVBE, FEATURE_POPCNT, FEATURE_AES, FEATURE_RDRAND,
	FEATURE_BMI1, FEATURE_BMI2, FEATURE_RDSEED, FEATURE_ADX, FEATURE_CLFLUSHOPT,
	FEATURE_CLWB, FEATURE_SHA, FEATURE_GFNI, FEATURE_ABM,
};
static const u16 executed_avx[] = {
	FEATURE_AVX, FEATURE_FMA, FEATURE_F16C, FEATURE_AVX2, FEATURE_VAES, FEATURE_VPCLMULQDQ,
	FEATURE_AVX_VNNI,
};
// AVX-512 is not offered, whatever the host has: the translator copies no EVEX encodings.
// Work, but are not offered: a guest that believes them is slower for it, or never sleeps. FRED: there
// is no delivery of events by it, and CR4.FRED stays reserved; its IA32_FRED_SSP0 is IA32_PL0_SSP.
static const u16 on_request[] = { FEATURE_FSRM, FEATURE_MONITOR, FEATURE_MONITORX, FEATURE_MWAIT_EXTENSIONS,
				  FEATURE_MWAIT_BREAK, FEATURE_FRED };

// Tiles: offered to clients that have permission for such large state, see cpuid_supported().
static const u16 dynamic_features[] = { FEATURE_AMX_TILE, FEATURE_AMX_INT8, FEATURE_AMX_BF16, FEATURE_XFD };

// What the host is, read once.
static struct host {
	bool known;
	u32 offered[WORD_COUNT]; // without on_request and dynamic_features
	u32 dynamic[WORD_COUNT];
	u32 allowed[WORD_COUNT];
	u64 xcr0, xss;
} host;

static void host_cpuid(u32 function, u32 index, u32 out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[EAX]), "=b"(out[EBX]), "=c"(out[ECX]), "=d"(out[EDX])
			 : "a"(function), "c"(index));
}

static u64 host_xcr0(void)
{
	u32 leaf[4], low, high;

	host_cpuid(1, 0, leaf);
	if (!(leaf[ECX] >> 27 & 1))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (u64)high << 32 | low;
}

static void offer(struct host *h, const u32 *available, const u16 *list, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned n = list[i] - 1;

		if (!available || (available[n / 32] >> n % 32 & 1))
			h->offered[n / 32] |= 1u << n % 32;
	}
}
#define OFFER(h, available, list) offer(h, available, list, sizeof(list) / sizeof(list[0]))

static const struct host *the_host(void)
{
	struct host h = { .xss = XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S) };
	u32 has[WORD_COUNT], leaf[4], max_basic, max_extended;
	u64 xcr0;

	if (__atomic_load_n(&host.known, __ATOMIC_ACQUIRE))
		return &host;
	host_cpuid(0, 0, leaf);
	max_basic = leaf[EAX];
	host_cpuid(0x80000000, 0, leaf);
	max_extended = leaf[EAX];
	for (unsigned i = 0; i < WORD_COUNT; i++) {
		u32 max = words[i].function >> 31 ? max_extended : max_basic;

		host_cpuid(words[i].function, words[i].index, leaf);
		has[i] = words[i].function <= max ? leaf[words[i].reg] : 0;
	}
	xcr0 = host_xcr0();

	OFFER(&h, NULL, emulated);
	OFFER(&h, has, executed);
	h.xcr0 = XSTATE_MASK_FPSSE | XSTATE_MASK(XSTATE_PKRU);
	if (xcr0 & XSTATE_MASK(XSTATE_AVX)) {
		OFFER(&h, has, executed_avx);
		h.xcr0 |= XSTATE_MASK(XSTATE_AVX);
	}
	for (unsigned i = 0; i < sizeof(dynamic_features) / sizeof(dynamic_features[0]); i++)
		h.dynamic[(dynamic_features[i] - 1) / 32] |= 1u << (dynamic_features[i] - 1) % 32;
	for (unsigned i = 0; i < WORD_COUNT; i++)
		h.allowed[i] = h.offered[i] | h.dynamic[i];
	for (unsigned i = 0; i < sizeof(on_request) / sizeof(on_request[0]); i++)
		h.allowed[(on_request[i] - 1) / 32] |= 1u << (on_request[i] - 1) % 32;
	h.xcr0 |= XSTATE_MASK_AMX;
	// Threads that get here together store the same.
	memcpy(host.offered, h.offered, sizeof(h.offered));
	memcpy(host.dynamic, h.dynamic, sizeof(h.dynamic));
	memcpy(host.allowed, h.allowed, sizeof(h.allowed));
	host.xcr0 = h.xcr0;
	host.xss = h.xss;
	__atomic_store_n(&host.known, true, __ATOMIC_RELEASE);
	return &host;
}

static u32 reg_of(const struct cpu_cpuid_entry *entry, unsigned reg)
{
	return reg == EAX ? entry->eax : reg == EBX ? entry->ebx : reg == ECX ? entry->ecx : entry->edx;
}

static bool host_offers(const struct xstate_cpuid_bit *bit, const void *opaque)
{
	for (unsigned i = 0; i < WORD_COUNT; i++)
		if (words[i].function == bit->leaf && words[i].index == bit->subleaf && words[i].reg == bit->reg)
			return host.offered[i] >> bit->bit & 1;
	return false;
}

static void withdraw(unsigned feature)
{
	unsigned n = feature - 1;

	host.offered[n / 32] &= ~(1u << n % 32);
	host.allowed[n / 32] &= ~(1u << n % 32);
}

// KVM offers CET whole or not at all: without XSAVES, or where its host does not keep both components, neither
// half of it; without either half, neither component.
static void settle_cet(void)
{
	const u64 both = XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S);
	struct xstate_processor processor = { .xcr0 = host.xcr0, .xss = host.xss, .has = host_offers };
	struct xstate_configs configs;

	processor.xsave = cpuid_offers(FEATURE_XSAVE);
	processor.xsaves = processor.xsave && cpuid_offers(FEATURE_XSAVES);
	xstate_configure(&configs, &processor, CET_U_WITH_SHSTK);
	if ((configs.xss & both) == both)
		return;
	withdraw(FEATURE_SHSTK);
	withdraw(FEATURE_IBT);
	host.xss &= ~both;
}

void cpuid_limit_host(const struct cpu_cpuid_entry *entries, unsigned count)
{
	u64 xcr0 = XSTATE_MASK_FPSSE, xss = 0;

	the_host();
	for (unsigned i = 0; i < WORD_COUNT; i++) {
		u32 left = 0;

		for (unsigned k = 0; k < count; k++)
			if (entries[k].function == words[i].function && entries[k].index == words[i].index)
				left = reg_of(&entries[k], words[i].reg);
		host.offered[i] &= left;
		host.dynamic[i] &= left;
		host.allowed[i] &= left;
	}
	for (unsigned k = 0; k < count; k++) {
		if (entries[k].function != 0xd)
			continue;
		if (entries[k].index == 0)
			xcr0 |= (u64)entries[k].edx << 32 | entries[k].eax;
		if (entries[k].index == 1)
			xss |= (u64)entries[k].edx << 32 | entries[k].ecx;
	}
	host.xcr0 &= xcr0;
	host.xss &= xss;
	settle_cet();
}

u64 cpuid_offered_xss(void)
{
	return the_host()->xss;
}

bool cpuid_offers(unsigned feature)
{
	unsigned n = feature - 1;

	return !feature || (the_host()->allowed[n / 32] >> n % 32 & 1);
}

const char *cpu_host_problem(void)
{
	static const struct {
		u8 word, bit;
		const char *problem;
	} needed[] = {
#define NEED(word, bit, name) { word, bit, "this processor has no " name "; cetkvm needs x86-64-v3 (AVX2, BMI2)" }
		NEED(WORD_1_ECX, 13, "CMPXCHG16B"), NEED(WORD_1_ECX, 23, "POPCNT"),
		NEED(WORD_1_ECX, 20, "SSE4.2"),	    NEED(WORD_1_ECX, 26, "XSAVE"),
		NEED(WORD_1_ECX, 22, "MOVBE"),	    NEED(WORD_1_ECX, 28, "AVX"),
		NEED(WORD_1_ECX, 12, "FMA"),	    NEED(WORD_1_ECX, 29, "F16C"),
		NEED(WORD_7_0_EBX, 3, "BMI1"),	    NEED(WORD_7_0_EBX, 5, "AVX2"),
		NEED(WORD_7_0_EBX, 8, "BMI2"),	    NEED(WORD_8_1_ECX, 0, "LAHF in 64-bit mode"),
		NEED(WORD_8_1_ECX, 5, "LZCNT"),
	};
	u32 leaf[4];

	for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		const struct word *word = &words[needed[i].word];

		host_cpuid(word->function & 0x80000000, 0, leaf);
		if (leaf[EAX] < word->function)
			return needed[i].problem;
		host_cpuid(word->function, word->index, leaf);
		if (!(leaf[word->reg] >> needed[i].bit & 1))
			return needed[i].problem;
	}
	if (!(host_xcr0() & XSTATE_MASK(XSTATE_AVX)))
		return "the operating system has not enabled AVX; cetkvm needs AVX2";
	return NULL;
}

// ---- KVM_GET_SUPPORTED_CPUID ----

struct list {
	struct cpu_cpuid_entry *entries;
	unsigned count, max;
	bool tiles; // AMX is offered
};

static void add(struct list *list, u32 function, u32 index, bool significant, const u32 *regs)
{
	if (list->count < list->max)
		list->entries[list->count] = (struct cpu_cpuid_entry){
			function, index, significant ? CPUID_INDEX_SIGNIFICANT : 0,
			regs[EAX], regs[EBX], regs[ECX], regs[EDX] };
	list->count++;
}

// Registers that are feature words are replaced by what is offered.
static void offered_words(const struct list *list, u32 function, u32 index, u32 *regs)
{
	const struct host *h = the_host();

	for (unsigned i = 0; i < WORD_COUNT; i++)
		if (words[i].function == function && words[i].index == index)
			regs[words[i].reg] = h->offered[i] | (list->tiles ? h->dynamic[i] : 0);
}

static void add_caches(struct list *list, bool amd)
{
	u32 regs[4], zero[4] = { 0 };

	if (amd) {
		add(list, 2, 0, false, zero);
		return; // AMD's cache leaves are 0x80000005 and 6
	}
	host_cpuid(2, 0, regs);
	add(list, 2, 0, false, regs);
	for (unsigned i = 0; i < 8; i++) {
		host_cpuid(4, i, regs);
		regs[EAX] &= 0x3fff; // the topology is not the host's
		add(list, 4, i, true, regs);
		if (!(regs[EAX] & 0x1f))
			break;
	}
}

static void add_xsave(struct list *list)
{
	const struct host *h = the_host();
	u64 xcr0 = list->tiles ? h->xcr0 : h->xcr0 & ~XSTATE_MASK_AMX, all = xcr0 | h->xss;
	u32 sub0[4] = { xcr0, xstate_standard_size(1), xstate_standard_size(xcr0), xcr0 >> 32 };
	u32 sub1[4] = { 0, xstate_compacted_size(1), h->xss, h->xss >> 32 };

	offered_words(list, 0xd, 1, sub1);

	if (!cpuid_offers(FEATURE_XSAVE))
		return;
	add(list, 0xd, 0, true, sub0);
	add(list, 0xd, 1, true, sub1);
	for (unsigned i = 2; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = xstate_component(i);

		if (all >> i & 1)
			add(list, 0xd, i, true,
			    (u32[]){ c->size, c->offset,
				     c->supervisor | c->align64 << 1 | c->xfd << 2, 0 });
	}
}

// The one palette, and the unit that multiplies tiles.
static void add_tiles(struct list *list)
{
	add(list, 0x1d, 0, true, (u32[]){ 1 /* the highest palette */, 0, 0, 0 });
	add(list, 0x1d, 1, true,
	    (u32[]){ 8192 | 1024 << 16 /* bytes of all tiles, of one */, 64 | 8 << 16 /* bytes of a row; tiles */,
		     16 /* rows */, 0 });
	add(list, 0x1e, 0, true, (u32[]){ 0, 16 | 64 << 8 /* most rows, most bytes of a column */, 0, 0 });
}

static void add_hypervisor(struct list *list)
{
	u32 features = 1u << KVM_FEATURE_CLOCKSOURCE | 1u << KVM_FEATURE_NOP_IO_DELAY |
		       1u << KVM_FEATURE_CLOCKSOURCE2 | 1u << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT;
	u32 signature[4] = { KVM_CPUID_FEATURES, 0, 0, 0 };

	memcpy(&signature[EBX], KVM_SIGNATURE, 12);
	add(list, KVM_CPUID_SIGNATURE, 0, false, signature);
	add(list, KVM_CPUID_FEATURES, 0, false, (u32[]){ features, 0, 0, 0 });
}

static void add_extended(struct list *list, bool amd)
{
	u32 regs[4], max = amd ? 0x80000021 : 0x80000008;

	host_cpuid(0x80000000, 0, regs);
	regs[EAX] = max;
	add(list, 0x80000000, 0, false, regs);
	for (u32 function = 0x80000001; function <= 0x80000006; function++) {
		host_cpuid(function, 0, regs);
		if (function == 0x80000001) {
			regs[EBX] = 0;
			offered_words(list, function, 0, regs);
			// AMD repeats leaf 1 here.
			if (amd)
				regs[EDX] |= the_host()->offered[WORD_1_EDX] & 0x0183f3ff;
		}
		add(list, function, 0, false, regs);
	}
	add(list, 0x80000007, 0, false, (u32[]){ 0, 0, 0, 1u << 8 /* invariant TSC */ });
	memset(regs, 0, sizeof(regs));
	// Linux takes this width, not LA57, for which of its own addresses are canonical.
	regs[EAX] = CPUID_PHYS_BITS | (the_host()->offered[WORD_7_0_ECX] >> 16 & 1 ? 57 : 48) << 8;
	offered_words(list, 0x80000008, 0, regs);
	add(list, 0x80000008, 0, false, regs);
	if (amd) // Translated returns are no speculation targets of the guest's, nor its buffers shared.
		add(list, 0x80000021, 0, false,
		    (u32[]){ 1u << 2 /* LFENCE serializes */ | 1u << 6 /* null selector clears base */ |
				     1u << 29 /* SRSO_NO */,
			     0, 1u << 1 | 1u << 2 | 1u << 7 /* TSA_SQ_NO, L1_NO, FILL_NO */, 0 });
}

unsigned cpuid_supported(struct cpu_cpuid_entry *entries, unsigned max)
{
	return cpuid_supported_with(entries, max, 0);
}

bool cpuid_host_is_amd(void)
{
	u32 regs[4];

	host_cpuid(0, 0, regs);
	return regs[EBX] == 0x68747541 /* "Auth" */ || regs[EBX] == 0x6f677948 /* "Hygo" */;
}

unsigned cpuid_supported_with(struct cpu_cpuid_entry *entries, unsigned max, u64 dynamic)
{
	struct list list = { entries, 0, max, dynamic & the_host()->xcr0 & XSTATE_MASK(XSTATE_TILEDATA) };
	u32 regs[4], zero[4] = { 0 };
	bool amd = cpuid_host_is_amd();

	host_cpuid(0, 0, regs);
	regs[EAX] = list.tiles ? 0x1e : 0xd;
	add(&list, 0, 0, false, regs);

	host_cpuid(1, 0, regs);
	regs[EBX] = 8 << 8; // CLFLUSH: 64 bytes; APIC id and topology are the VMM's
	offered_words(&list, 1, 0, regs);
	add(&list, 1, 0, false, regs);
	add_caches(&list, amd);
	add(&list, 5, 0, false, zero);
	memset(regs, 0, sizeof(regs));
	offered_words(&list, 6, 0, regs);
	add(&list, 6, 0, false, regs);
	memset(regs, 0, sizeof(regs));
	offered_words(&list, 7, 0, regs);
	regs[EAX] = 2;
	add(&list, 7, 0, true, regs);
	memset(regs, 0, sizeof(regs));
	offered_words(&list, 7, 1, regs);
	add(&list, 7, 1, true, regs);
	memset(regs, 0, sizeof(regs));
	offered_words(&list, 7, 2, regs);
	add(&list, 7, 2, true, regs);
	add(&list, 0xb, 0, true, zero);
	add_xsave(&list);
	if (list.tiles)
		add_tiles(&list);
	add_hypervisor(&list);
	add_extended(&list, amd);
	return list.count;
}

// The words of `on_request`, in the order of their leaves.
unsigned cpuid_emulated(struct cpu_cpuid_entry *entries, unsigned max)
{
	static const struct { u32 function; bool significant; } leaves[] = { { 1, false }, { 5, false }, { 7, true },
									     { 0x80000001, false } };
	struct list list = { entries, 0, max, false };

	for (unsigned leaf = 0; leaf < sizeof(leaves) / sizeof(leaves[0]); leaf++) {
		u32 regs[4] = { 0 };

		for (unsigned i = 0; i < sizeof(on_request) / sizeof(on_request[0]); i++) {
			const struct word *word = &words[(on_request[i] - 1) / 32];

			if (word->function == leaves[leaf].function)
				regs[word->reg] |= 1u << (on_request[i] - 1) % 32;
		}
		add(&list, leaves[leaf].function, 0, leaves[leaf].significant, regs);
	}
	return list.count;
}

// ---- the guest's ----

struct cpu_cpuid_entry *cpuid_find(struct cpu *cpu, u32 function, u32 index)
{
	for (unsigned i = 0; i < cpu->cpuid_count; i++) {
		struct cpu_cpuid_entry *entry = &cpu->cpuid[i];

		if (entry->function == function &&
		    (!(entry->flags & CPUID_INDEX_SIGNIFICANT) || entry->index == index))
			return entry;
	}
	return NULL;
}

static u64 cr4_reserved(const struct cpu *cpu)
{
	static const struct {
		u16 feature, alternative;
		u32 bits;
	} rows[] = {
		{ FEATURE_VME, 0, CR4_VME | CR4_PVI },	{ FEATURE_TSC, 0, CR4_TSD },
		{ FEATURE_DE, 0, CR4_DE },		{ FEATURE_PSE, 0, CR4_PSE },
		{ FEATURE_PAE, 0, CR4_PAE },		{ FEATURE_MCE, 0, CR4_MCE },
		{ FEATURE_PGE, 0, CR4_PGE },		{ FEATURE_FXSR, 0, CR4_OSFXSR },
		{ FEATURE_SSE, 0, CR4_OSXMMEXCPT },	{ FEATURE_UMIP, 0, CR4_UMIP },
		{ FEATURE_LA57, 0, CR4_LA57 },		{ FEATURE_FSGSBASE, 0, CR4_FSGSBASE },
		{ FEATURE_PCID, 0, CR4_PCIDE },		{ FEATURE_XSAVE, 0, CR4_OSXSAVE },
		{ FEATURE_SMEP, 0, CR4_SMEP },		{ FEATURE_SMAP, 0, CR4_SMAP },
		{ FEATURE_PKU, 0, CR4_PKE },		{ FEATURE_SHSTK, FEATURE_IBT, CR4_CET },
	};
	u64 allowed = CR4_PCE;

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (guest_has(cpu, rows[i].feature) ||
		    (rows[i].alternative && guest_has(cpu, rows[i].alternative)))
			allowed |= rows[i].bits;
	return ~allowed;
}

static void draw_conclusions(struct cpu *cpu)
{
	const struct host *h = the_host();
	const struct cpu_cpuid_entry *entry;

	for (unsigned i = 0; i < WORD_COUNT; i++) {
		entry = cpuid_find(cpu, words[i].function, words[i].index);
		cpu->features[i] = entry ? reg_of(entry, words[i].reg) & h->allowed[i] : 0;
		// Before KVM_SET_CPUID2 a processor does all it can, though it enumerates nothing.
		if (!cpu->cpuid_count)
			cpu->features[i] = h->offered[i];
	}
	cpu->phys_bits = guest_has(cpu, FEATURE_PAE) ? 36 : 32;
	entry = cpuid_find(cpu, 0x80000008, 0);
	if (entry && (entry->eax & 0xff))
		cpu->phys_bits = entry->eax & 0xff;
	if (cpu->phys_bits < 32)
		cpu->phys_bits = 32;
	if (cpu->phys_bits > 52)
		cpu->phys_bits = 52;
	cpu->linear_bits = cpu->cr4 & CR4_LA57 ? 57 : 48;

	cpu->xcr0_supported = cpu->xss_supported = 0;
	entry = cpuid_find(cpu, 0xd, 0);
	if (entry && guest_has(cpu, FEATURE_XSAVE))
		cpu->xcr0_supported = ((u64)entry->edx << 32 | entry->eax) & h->xcr0;
	entry = cpuid_find(cpu, 0xd, 1);
	if (entry && guest_has(cpu, FEATURE_XSAVES))
		cpu->xss_supported = ((u64)entry->edx << 32 | entry->ecx) & h->xss;
	cpu->cr4_reserved = cr4_reserved(cpu);
}

void cpuid_limit(struct cpu *cpu, const struct cpu_cpuid_entry *entries, unsigned count)
{
	for (unsigned i = 0; i < WORD_COUNT; i++) {
		u32 allowed = 0;

		for (unsigned n = 0; n < count; n++)
			if (entries[n].function == words[i].function && entries[n].index == words[i].index)
				allowed = reg_of(&entries[n], words[i].reg);
		cpu->features[i] &= allowed;
	}
	cpu->cr4_reserved = cr4_reserved(cpu);
}

static void set_bit(u32 *reg, unsigned bit, bool value)
{
	*reg = (*reg & ~(1u << bit)) | (u32)value << bit;
}

void cpuid_refresh(struct cpu *cpu)
{
	struct cpu_cpuid_entry *entry = cpuid_find(cpu, 1, 0);
	u64 apic_base = 0;

	if (entry) {
		set_bit(&entry->ecx, 27, cpu->cr4 & CR4_OSXSAVE);
		if (cpu->monitor_by_msr) {
			set_bit(&entry->ecx, 3, cpu->misc_enable & MISC_ENABLE_MWAIT);
			set_bit(&cpu->features[WORD_1_ECX], 3, cpu->misc_enable & MISC_ENABLE_MWAIT);
		}
		if (cpu->ops->rdmsr(cpu->opaque, MSR_APIC_BASE, &apic_base, BY_HOST) == CPU_OPS_DONE)
			set_bit(&entry->edx, 9, apic_base >> 11 & 1);
	}
	entry = cpuid_find(cpu, 7, 0);
	if (entry)
		set_bit(&entry->ecx, 4, cpu->cr4 & CR4_PKE);
	entry = cpuid_find(cpu, 0xd, 0);
	if (entry && guest_has(cpu, FEATURE_XSAVE))
		entry->ebx = xstate_standard_size(cpu->xcr0);
	entry = cpuid_find(cpu, 0xd, 1);
	if (entry && (entry->eax & (1u << 1 | 1u << 3)))
		entry->ebx = xstate_compacted_size(cpu->xcr0 | cpu->xss);
}

int cpuid_set(struct cpu *cpu, const struct cpu_cpuid_entry *entries, unsigned count)
{
	if (count > CPU_MAX_CPUID)
		return -E2BIG;
	if (count)
		memcpy(cpu->cpuid, entries, count * sizeof(*entries));
	cpu->cpuid_count = count;
	draw_conclusions(cpu);
	cpuid_refresh(cpu);
	cpu_mode_changed(cpu);
	return 0;
}

// The leaf that answers for one which is not there, or NULL for zeros.
static struct cpu_cpuid_entry *out_of_range(struct cpu *cpu, u32 function, u32 index)
{
	struct cpu_cpuid_entry *basic = cpuid_find(cpu, 0, 0), *class;

	// AMD's processors answer with zeros, Intel's with the highest basic leaf.
	if (!basic || basic->ebx == 0x68747541 || basic->ebx == 0x6f677948)
		return NULL;
	if (function >= 0x40000000 && function <= 0x4fffffff)
		class = cpuid_find(cpu, function & 0xffffff00, 0);
	else if (function >= 0xc0000000)
		class = cpuid_find(cpu, 0xc0000000, 0);
	else
		class = cpuid_find(cpu, function & 0x80000000, 0);
	if (class && function <= class->eax)
		return NULL;
	return cpuid_find(cpu, basic->eax, index);
}

void cpuid_query(struct cpu *cpu, u32 function, u32 index, u32 out[4])
{
	const struct cpu_cpuid_entry *entry = cpuid_find(cpu, function, index);

	if (!entry)
		entry = out_of_range(cpu, function, index);
	if (entry) {
		out[EAX] = entry->eax;
		out[EBX] = entry->ebx;
		out[ECX] = entry->ecx;
		out[EDX] = entry->edx;
		return;
	}
	memset(out, 0, 4 * sizeof(out[0]));
	// Topology leaves answer every index with the index and the x2APIC id.
	if (function == 0xb || function == 0x1f) {
		entry = cpuid_find(cpu, function, 0);
		if (entry) {
			out[ECX] = index & 0xff;
			out[EDX] = entry->edx;
		}
	}
}
