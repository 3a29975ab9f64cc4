// SPDX-License-Identifier: MIT
// For the tests named after the mailing-list documents this project started from: "003/2 ..." is patch 2
// of document 003. A machine, its CPUID with chosen features, MSRs, and flat 32-bit code with CET.
#ifndef TESTS_SEEDS_H
#define TESTS_SEEDS_H

#include "../kvm/machine.h"

#define U_CET 0x6a0
#define S_CET 0x6a2
#define PL0_SSP 0x6a4
#define PL3_SSP 0x6a7
#define INT_SSP_TAB 0x6a8
#define XSS 0xda0
#define REG_SSP 0x2030000300000000ull
#define REG_MSR(index) (0x2030000200000000ull | (index))

enum { NO_SHSTK = 1, NO_IBT = 2, NO_PKU = 4, NO_XSAVE = 8, NO_AVX = 16 };

static inline int set_cpuid(int kvm, int vcpu, unsigned without)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(kvm);
	int result;

	if (without & NO_SHSTK)
		cpuid_entry(cpuid, 7, 0)->ecx &= ~(1u << 7);
	if (without & NO_IBT)
		cpuid_entry(cpuid, 7, 0)->edx &= ~(1u << 20);
	if (without & NO_PKU) {
		cpuid_entry(cpuid, 7, 0)->ecx &= ~(1u << 3);
		cpuid_entry(cpuid, 0xd, 0)->eax &= ~(1u << 9);
	}
	if (without & NO_AVX) {
		cpuid_entry(cpuid, 1, 0)->ecx &= ~(1u << 28);
		cpuid_entry(cpuid, 0xd, 0)->eax &= ~0xe4u;
	}
	if (without & NO_XSAVE)
		cpuid_entry(cpuid, 1, 0)->ecx &= ~(1u << 26);
	result = call(vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return result;
}

static inline void start_with(struct machine *m, unsigned flags, unsigned without)
{
	machine_start(m, flags);
	if (set_cpuid(m->kvm, m->vcpu, without) < 0)
		abort();
}

static inline bool set_msr(int vcpu, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 },
									       { .index = index, .data = value } };

	return call(vcpu, KVM_SET_MSRS, &msr) == 1;
}

static inline uint64_t get_msr(int vcpu, uint32_t index)
{
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = index } };

	return call(vcpu, KVM_GET_MSRS, &msr) == 1 ? msr.entry.data : 0xbadbadbadbadbad;
}

static inline int set_reg(int vcpu, uint64_t id, uint64_t value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)&value };

	return error_of(call(vcpu, KVM_SET_ONE_REG, &reg));
}

static inline uint64_t get_reg(int vcpu, uint64_t id)
{
	uint64_t value = 0xbadbadbadbadbad;
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)&value };

	call(vcpu, KVM_GET_ONE_REG, &reg);
	return value;
}

struct xsave_image {
	uint8_t bytes[4096] __attribute__((aligned(64)));
};

static inline uint64_t *xsave_word(struct xsave_image *image, unsigned offset)
{
	return (uint64_t *)(image->bytes + offset);
}

// 32-bit code without paging, CR0.WP set: CET works there, and needs no page tables.
static inline void flat_mode(struct machine *m, uint64_t cr4)
{
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_segment data = code;
	struct kvm_sregs sregs;

	data.selector = 16;
	data.type = 3;
	if (call(m->vcpu, KVM_GET_SREGS, &sregs) < 0)
		abort();
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.ss = data;
	sregs.cr0 = 0x10031; // WP NE ET PE
	sregs.cr4 = cr4;
	// Descriptors and gates: GDT at 0x2000, IDT at 0x2800; vector n leads to OUT to port 0x90 + n.
	*(uint64_t *)(m->memory + 0x2008) = 0x00cf9b000000ffff;
	*(uint64_t *)(m->memory + 0x2010) = 0x00cf93000000ffff;
	sregs.gdt = (struct kvm_dtable){ .base = 0x2000, .limit = 23 };
	sregs.idt = (struct kvm_dtable){ .base = 0x2800, .limit = 22 * 8 - 1 };
	for (unsigned i = 0; i < 22; i++) {
		uint8_t *handler = m->memory + 0x3000 + 16 * i;

		*(uint64_t *)(m->memory + 0x2800 + 8 * i) = (0x3000 + 16 * i) | 8 << 16 | 0x8eull << 40;
		memcpy(handler, "\xf3\x0f\x1e\xfb\xe6", 5); // ENDBR32; OUT
		handler[5] = 0x90 + i;
		memcpy(handler + 6, "\xf4", 1);
	}
	if (call(m->vcpu, KVM_SET_SREGS, &sregs) < 0)
		abort();
}

// Runs code until OUT; the port. 0x90 + n is exception n, other ports are the code's own.
static inline int out_port(struct machine *m)
{
	int reason = machine_run(m);

	return reason == KVM_EXIT_IO ? m->run->io.port : -1000 - reason;
}
#define FAULT(vector) (0x90 + (vector))
#define run_bytes(m, ...) (machine_bytes(m, __VA_ARGS__), out_port(m))

#endif
