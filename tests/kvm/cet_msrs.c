// SPDX-License-Identifier: MIT
// Every CET MSR and IA32_XSS, with every class of value, by guest, KVM_SET_MSRS and ONE_REG, under every
// setting of CPUID that matters: against one table of rules. Cases are computed from the rows.
#include "machine.h"

#define REG_MSR(index) (0x2030000200000000ull | (index))
#define REG_SSP 0x2030000300000000ull
#define KVM_SSP 0x4b564dff

// What a guest has.
enum { SHSTK = 1, IBT = 2, XSAVES = 4, LM = 8, FRED = 16, LA57 = 64 };
static const struct setting {
	const char *name;
	unsigned has;
} settings[] = {
	{ "all", SHSTK | IBT | XSAVES | LM },
	{ "all with LA57", SHSTK | IBT | XSAVES | LM | LA57 },
	{ "SHSTK only", SHSTK | XSAVES | LM },
	{ "IBT only", IBT | XSAVES | LM },
	{ "no CET", XSAVES | LM },
	{ "no XSAVES", SHSTK | IBT | LM },
	{ "no 64-bit mode", SHSTK | IBT | XSAVES },
	{ "FRED only", FRED | XSAVES | LM },
	{ "nothing", 0 },
};

enum {
	ALIGNED4 = 1,  // bits 1:0 are reserved
	CANONICAL = 2,
	CET_BITS = 4,  // the rules of U_CET and S_CET
	WRITE_LM = 8,  // writes need 64-bit mode in CPUID
	XSS_BITS = 16, // CET_U and CET_S are all there is
	NO_GUEST = 32, // the guest has no such MSR
	UNLISTED = 64, // not in the save list: without its feature an error even for 0
};

static const struct row {
	const char *name;
	uint32_t index;
	unsigned exists_with; // any of these features
	unsigned rules;
	uint64_t sample; // a good value
} rows[] = {
	{ "U_CET", 0x6a0, SHSTK | IBT, CET_BITS, 0 },
	{ "S_CET", 0x6a2, SHSTK | IBT, CET_BITS, 0 },
	{ "PL0_SSP (FRED_SSP0)", 0x6a4, SHSTK | FRED, ALIGNED4 | CANONICAL, 0x7ffffffffff8 },
	{ "PL1_SSP", 0x6a5, SHSTK, ALIGNED4 | CANONICAL, 0xffff800000000004 },
	{ "PL2_SSP", 0x6a6, SHSTK, ALIGNED4 | CANONICAL, 0xfffffffffffffffc },
	{ "PL3_SSP", 0x6a7, SHSTK, ALIGNED4 | CANONICAL, 0x1000 },
	{ "INT_SSP_TAB", 0x6a8, SHSTK, CANONICAL | WRITE_LM, 0xffff800000000001 },
	{ "XSS", 0xda0, XSAVES, XSS_BITS, 0x1800 },
	{ "GUEST_SSP", KVM_SSP, SHSTK, ALIGNED4 | CANONICAL | NO_GUEST | UNLISTED, 0x7ffffffffff8 },
};
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

// ---- the rules ----
enum who { GUEST, HOST };

static bool canonical(unsigned has, uint64_t value, enum who who)
{
	// As wide as the processor can have it, though the guest runs with 48 bits; the host may restore 57.
	unsigned shift = who == HOST || (has & LA57) ? 7 : 16;

	return (uint64_t)((int64_t)(value << shift) >> shift) == value;
}

static bool value_good(const struct row *row, unsigned has, uint64_t value, enum who who)
{
	if ((row->rules & ALIGNED4) && (value & 3))
		return false;
	if ((row->rules & CANONICAL) && !canonical(has, value, who))
		return false;
	if ((row->rules & WRITE_LM) && !(has & LM))
		return false;
	if (row->rules & XSS_BITS)
		return !(value & ~0x1800ull);
	if (row->rules & CET_BITS) {
		if (value & 0x3c0) // 9:6
			return false;
		if ((value & 3) && !(has & SHSTK))
			return false;
		if ((value & ~3ull) && !(has & IBT)) // 5:2, 63:10
			return false;
		if ((value & 0xc00) == 0xc00) // suppressed and waiting
			return false;
		// The guest's WRMSR wants a canonical base, KVM's own check bits 13:12 clear.
		return who == HOST ? !(value & 0x3000) : canonical(has, value & ~0xfffull, GUEST);
	}
	return true;
}

static bool write_good(const struct row *row, unsigned has, uint64_t value, enum who who)
{
	if (who == GUEST && (row->rules & NO_GUEST))
		return false;
	if (!(row->exists_with & has))
		return who == HOST && !(row->rules & UNLISTED) && !value;
	return value_good(row, has, value, who);
}

static bool read_good(const struct row *row, unsigned has, enum who who)
{
	if (who == GUEST)
		return (row->exists_with & has) && !(row->rules & NO_GUEST);
	return (row->exists_with & has) || !(row->rules & UNLISTED);
}

// ---- values: all classes ----
static unsigned make_values(uint64_t *values)
{
	static const uint64_t more[] = {
		0, 0xc00, 0x1800, 0x1801, 0x3f, 0x1003, 0x7ffffffff000, 0x7ffffffffffc, 0x800000000000, 0xffff7ffffffffffc,
		0xffff800000000000, 0xffff800000000400, 0xffffffffffffffff, 0xfffffffffffffffc, 0xfffffffffffff000,
		0xffffffffffffc43f, 0xff00000000000000, 0xfeffffffffffc000, 0x00fffffffffff000, 0x0100000000000000,
		0x37, 0x403, 0x803, 0x4000, 0x5000, 0x6000,
	};
	unsigned n = 0;

	for (unsigned i = 0; i < COUNT(more); i++)
		values[n++] = more[i];
	for (unsigned i = 0; i < 64; i++)
		values[n++] = 1ull << i;
	for (unsigned i = 1; i < 64; i++) // sign-extended at each width
		values[n++] = ~0ull << i;
	return n;
}

// ---- the ways ----
struct msrs {
	struct kvm_msrs header;
	struct kvm_msr_entry entry;
};

static bool host_msr(struct machine *m, uint32_t index, uint64_t *value, bool write)
{
	struct msrs msrs = { .header.nmsrs = 1, .entry = { .index = index, .data = *value } };
	int n = call(m->vcpu, write ? KVM_SET_MSRS : KVM_GET_MSRS, &msrs);

	*value = msrs.entry.data;
	return n == 1;
}

static bool one_reg(struct machine *m, uint32_t index, uint64_t *value, bool write)
{
	struct kvm_one_reg reg = { .id = index == KVM_SSP ? REG_SSP : REG_MSR(index), .addr = (uintptr_t)value };
	int result = call(m->vcpu, write ? KVM_SET_ONE_REG : KVM_GET_ONE_REG, &reg);

	if (result < 0 && errno != EINVAL)
		printf("# ONE_REG %#x: errno %d\n", index, errno);
	return result == 0;
}

#define WRMSR_AT 0x5000
#define RDMSR_AT 0x5010

// Real mode: the instruction, then OUT to 0x80; #GP goes to an OUT to 0x81.
static void guest_start(struct machine *m)
{
	memcpy(m->memory + WRMSR_AT, "\x0f\x30\xe6\x80", 4);
	memcpy(m->memory + RDMSR_AT, "\x0f\x32\xe6\x80", 4);
	memcpy(m->memory + 0x3000, "\xe6\x81", 2);
	memcpy(m->memory + 13 * 4, "\x00\x30\x00\x00", 4);
}

static bool guest_msr(struct machine *m, uint32_t index, uint64_t *value, bool write)
{
	struct kvm_regs regs = { .rflags = 2, .rsp = 0x1000, .rip = write ? WRMSR_AT : RDMSR_AT, .rcx = index,
				 .rax = (uint32_t)*value, .rdx = *value >> 32 };

	if (call(m->vcpu, KVM_SET_REGS, &regs) < 0 || machine_run(m) != KVM_EXIT_IO) {
		printf("# no answer from the guest: exit %u\n", m->run->exit_reason);
		return false;
	}
	call(m->vcpu, KVM_GET_REGS, &regs);
	*value = (uint32_t)regs.rax | regs.rdx << 32;
	return m->run->io.port == 0x80;
}

static const struct way {
	const char *name;
	enum who who;
	bool (*access)(struct machine *m, uint32_t index, uint64_t *value, bool write);
} ways[] = { { "guest", GUEST, guest_msr }, { "KVM_SET_MSRS", HOST, host_msr }, { "ONE_REG", HOST, one_reg } };

static void clear(struct machine *m, const struct row *row)
{
	uint64_t zero = 0;

	host_msr(m, row->index, &zero, true);
}

// One row under one setting by one way: every value. What is refused changes nothing.
static void test_row(struct machine *m, const struct row *row, const struct setting *setting, const struct way *way)
{
	uint64_t values[256], back, previous, value;
	unsigned count = make_values(values), wrong = 0;
	bool exists = row->exists_with & setting->has;

	values[count++] = row->sample;
	clear(m, row);
	back = 0;
	if (way->access(m, row->index, &back, false) != read_good(row, setting->has, way->who) ||
	    (read_good(row, setting->has, way->who) && back)) {
		printf("# reading: wrong, or not 0: %#llx\n", (unsigned long long)back);
		wrong++;
	}
	previous = 0;
	for (unsigned i = 0; i < count; i++) {
		bool wanted = write_good(row, setting->has, values[i], way->who);

		value = values[i];
		if (way->access(m, row->index, &value, true) != wanted) {
			printf("# value %#llx: %s, should not be\n", (unsigned long long)values[i], wanted ? "refused" : "taken");
			wrong++;
		}
		if (wanted && exists)
			previous = values[i];
		if (exists && (!host_msr(m, row->index, &back, false) || back != previous)) {
			printf("# after %#llx: holds %#llx, wanted %#llx\n", (unsigned long long)values[i],
			       (unsigned long long)back, (unsigned long long)previous);
			wrong++;
			previous = back;
		}
	}
	clear(m, row);
	is(wrong, 0, "%s, %s, %s: %u values", row->name, setting->name, way->name, count);
}

static void set_cpuid(struct machine *m, unsigned has)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(m->kvm);
	struct kvm_cpuid_entry2 *e = cpuid_entry(cpuid, 7, 0);

	if (!(has & SHSTK))
		e->ecx &= ~(1u << 7);
	if (!(has & LA57))
		e->ecx &= ~(1u << 16);
	if (!(has & IBT))
		e->edx &= ~(1u << 20);
	if (!(has & XSAVES))
		cpuid_entry(cpuid, 0xd, 1)->eax &= ~(1u << 3);
	if (!(has & LM))
		cpuid_entry(cpuid, 0x80000001, 0)->edx &= ~(1u << 29);
	if (has & FRED)
		cpuid_entry(cpuid, 7, 1)->eax |= 1u << 17;
	if (call(m->vcpu, KVM_SET_CPUID2, cpuid) < 0)
		abort();
	free(cpuid);
}

static void save_list(struct machine *m)
{
	struct { struct kvm_msr_list list; uint32_t more[512]; } l = { .list.nmsrs = 512 };

	if (call(m->kvm, KVM_GET_MSR_INDEX_LIST, &l) < 0)
		abort();
	for (unsigned i = 0; i < COUNT(rows); i++) {
		unsigned found = 0;

		for (unsigned k = 0; k < l.list.nmsrs; k++)
			found += l.list.indices[k] == rows[i].index;
		is(found, !(rows[i].rules & UNLISTED), "%s in the save list", rows[i].name);
	}
}

int main(void)
{
	for (unsigned i = 0; i < COUNT(settings); i++) {
		struct machine m;

		machine_start(&m, IRQCHIP);
		set_cpuid(&m, settings[i].has);
		guest_start(&m);
		if (!i)
			save_list(&m);
		for (unsigned r = 0; r < COUNT(rows); r++)
			for (unsigned w = 0; w < COUNT(ways); w++)
				test_row(&m, &rows[r], &settings[i], &ways[w]);
		machine_end(&m);
	}
	return done_testing();
}
