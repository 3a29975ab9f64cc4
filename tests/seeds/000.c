// SPDX-License-Identifier: MIT
// Document 000, "Enable CET Virtualization" v10: what its 27 patches promise of the processor and of
// the API. 1 to 7 are the framework's: tests/xstate/framework.c. 9 renames, 11 and 19 are seen through 20;
// 18, 22, 23, 25 and 26 are about VMX.
#include "seeds.h"

#include <sys/wait.h>
#include <unistd.h>

#define CR4_CET (1ull << 23)
#define CR4_OSXSAVE (1ull << 18)

static struct kvm_cpuid_entry2 guest_leaf(struct machine *m, uint32_t function, uint32_t index)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 100 * sizeof(cpuid->entries[0]));
	struct kvm_cpuid_entry2 entry;

	cpuid->nent = 100;
	if (call(m->vcpu, KVM_GET_CPUID2, cpuid) < 0)
		abort();
	entry = *cpuid_entry(cpuid, function, index);
	free(cpuid);
	return entry;
}

static int set_xcr0(struct machine *m, uint64_t value)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .value = value } } };

	return error_of(call(m->vcpu, KVM_SET_XCRS, &xcrs));
}

static void supported_xcr0(void)
{
	struct machine m;

	start_with(&m, 0, NO_PKU);
	is(set_xcr0(&m, 0x207), EINVAL, "000/8 the vCPU's own CPUID says what XCR0 may have: not PKRU");
	is(set_xcr0(&m, 7), 0, "000/8 but AVX");
	is(set_cpuid(m.kvm, m.vcpu, 0), 0, "000/8 another CPUID");
	is(set_xcr0(&m, 0x207), 0, "000/8 allows it");
	is(set_cpuid(m.kvm, m.vcpu, NO_XSAVE), 0, "000/8 without XSAVE");
	is(set_xcr0(&m, 3), EINVAL, "000/8 there is x87 only");
	is(set_xcr0(&m, 1), 0, "000/8 which is");
	machine_end(&m);
}

static void xss_and_cpuid(void)
{
	struct kvm_cpuid2 *cpuid;
	struct machine m;
	uint32_t base;

	start_with(&m, 0, 0);
	set_xcr0(&m, 7);
	base = guest_leaf(&m, 0xd, 1).ebx;
	is(base, 832, "000/12 size of the compacted image, x87 to AVX");
	set_msr(m.vcpu, XSS, 0x800);
	is(guest_leaf(&m, 0xd, 1).ebx, 832 + 16, "000/12 it grows when IA32_XSS is written: CET_U");
	set_msr(m.vcpu, XSS, 0x1800);
	is(guest_leaf(&m, 0xd, 1).ebx, 832 + 40, "000/12 and CET_S");
	is(guest_leaf(&m, 0xd, 0).ebx, 832, "000/12 the standard image's does not");
	flat_mode(&m, 0x600);
	// MOV ECX, XSS; MOV EAX, 0x1000; XOR EDX, EDX; WRMSR; MOV EAX, 0xD; MOV ECX, 1; CPUID; OUT
	is(run_bytes(&m, 0xb9, 0xa0, 0x0d, 0, 0, 0xb8, 0, 0x10, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xb8, 0xd, 0, 0, 0, 0xb9, 1, 0, 0, 0,
		     0x0f, 0xa2, 0xe6, 0x80), 0x80, "000/12 the guest writes it itself");
	is(machine_regs(&m).rbx, 832 + 24, "000/12 and reads CPUID");
	cpuid = supported_cpuid(m.kvm);
	is(cpuid_entry(cpuid, 0xd, 1)->ecx, 0x1800, "000/13 CPUID offers both supervisor components");
	ok(cpuid_entry(cpuid, 0xd, 11)->eax == 16 && cpuid_entry(cpuid, 0xd, 11)->ecx == 1, "000/13 sub-leaf 11");
	ok(cpuid_entry(cpuid, 0xd, 12)->eax == 24 && cpuid_entry(cpuid, 0xd, 12)->ecx == 1, "000/13 sub-leaf 12");
	ok(cpuid_entry(cpuid, 7, 0)->ecx & 1 << 7, "000/24 shadow stacks are advertised");
	ok(cpuid_entry(cpuid, 7, 0)->edx & 1 << 20, "000/24 indirect branch tracking is");
	is(cpuid_entry(cpuid, 7, 1)->edx & 1 << 18, 0, "000/24 safe supervisor shadow stacks are not");
	is(cpuid_entry(cpuid, 7, 1)->eax & 1 << 17, 0, "000/24 nor is FRED");
	free(cpuid);
	machine_end(&m);
}

static void save_list(void)
{
	static const uint32_t wanted[] = { XSS, U_CET, S_CET, PL0_SSP, PL0_SSP + 1, PL0_SSP + 2, PL3_SSP, INT_SSP_TAB };
	struct { struct kvm_msr_list list; uint32_t more[512]; } l = { .list.nmsrs = 512 };
	struct machine m;

	machine_start(&m, NO_VCPU);
	call(m.kvm, KVM_GET_MSR_INDEX_LIST, &l);
	for (unsigned i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
		unsigned found = 0;

		for (unsigned k = 0; k < l.list.nmsrs; k++)
			found += l.list.indices[k] == wanted[i];
		is(found, 1, "000/%u MSR %#x is to be saved", wanted[i] == XSS ? 14 : 17, wanted[i]);
	}
	machine_end(&m);
}

// MSRs that XSAVE manages lie in the guest's image when its state is not loaded.
static void managed_msrs(void)
{
	struct xsave_image image;
	struct machine m;

	start_with(&m, 0, 0);
	set_msr(m.vcpu, U_CET, 5);
	set_msr(m.vcpu, PL0_SSP, 0x1110);
	set_msr(m.vcpu, PL3_SSP, 0x4440);
	call(m.vcpu, KVM_GET_XSAVE, &image); // puts the state into memory
	is(get_msr(m.vcpu, PL3_SSP), 0x4440, "000/15 PL3_SSP is read back after KVM_GET_XSAVE");
	call(m.vcpu, KVM_GET_XSAVE, &image);
	ok(set_msr(m.vcpu, PL0_SSP, 0x1120), "000/15 written after it");
	memset(image.bytes + 160, 0x44, 16);
	image.bytes[512] |= 2;
	call(m.vcpu, KVM_SET_XSAVE, &image);
	is(get_reg(m.vcpu, REG_MSR(PL0_SSP)), 0x1120, "000/15 KVM_SET_XSAVE leaves supervisor components alone");
	call(m.vcpu, KVM_SET_XSAVE, &image);
	is(set_reg(m.vcpu, REG_MSR(U_CET), 1), 0, "000/15 written between KVM_SET_XSAVE and KVM_RUN");
	flat_mode(&m, 0x600);
	memset(m.memory + 0x840, 0, 16);
	// MOV ECX, U_CET; RDMSR; MOV EBX, EAX; MOV ECX, PL0_SSP; RDMSR; MOVUPS [0x840], XMM0; OUT
	is(run_bytes(&m, 0xb9, 0xa0, 6, 0, 0, 0x0f, 0x32, 0x89, 0xc3, 0xb9, 0xa4, 6, 0, 0, 0x0f, 0x32, 0x0f, 0x11, 0x05, 0x40, 8, 0, 0,
		     0xe6, 0x80), 0x80, "(the guest looks)");
	is(machine_regs(&m).rbx, 1, "000/15 the guest finds what the MSR ioctl wrote");
	is((uint32_t)machine_regs(&m).rax, 0x1120, "000/15 both of it");
	is(m.memory[0x840], 0x44, "000/15 and what KVM_SET_XSAVE loaded");
	machine_end(&m);
}

static void control_registers(void)
{
	static const uint8_t set_cet[] = { 0x0f, 0x20, 0xe0, 0x0d, 0, 0, 0x80, 0, 0x0f, 0x22, 0xe0, 0xe6, 0x80 }; // CR4 |= CET; OUT
	static const uint8_t clear_wp[] = { 0x0f, 0x20, 0xc0, 0x25, 0xff, 0xff, 0xfe, 0xff, 0x0f, 0x22, 0xc0, 0xe6, 0x80 };
	struct kvm_sregs sregs;
	struct machine m;

	start_with(&m, 0, 0);
	flat_mode(&m, 0);
	machine_code(&m, set_cet, sizeof(set_cet));
	is(out_port(&m), 0x80, "000/16 CR4.CET with CR0.WP");
	machine_code(&m, clear_wp, sizeof(clear_wp));
	is(out_port(&m), FAULT(13), "000/16 CR0.WP cannot be cleared then");
	flat_mode(&m, 0);
	machine_code(&m, clear_wp, sizeof(clear_wp));
	is(out_port(&m), 0x80, "000/16 without CR4.CET it can");
	machine_code(&m, set_cet, sizeof(set_cet));
	is(out_port(&m), FAULT(13), "000/16 CR4.CET cannot be set then");
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	is(sregs.cr4 & CR4_CET, 0, "000/16 and is not");
	sregs.cr4 |= CR4_CET;
	is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), 0, "000/16 KVM_SET_SREGS does not enforce the pair");
	machine_end(&m);
	for (unsigned without = 0; without <= (NO_SHSTK | NO_IBT); without++) {
		start_with(&m, 0, without);
		call(m.vcpu, KVM_GET_SREGS, &sregs);
		sregs.cr0 |= 0x10000;
		sregs.cr4 = CR4_CET;
		is(error_of(call(m.vcpu, KVM_SET_SREGS, &sregs)), without == (NO_SHSTK | NO_IBT) ? EINVAL : 0,
		   "000/16 KVM_SET_SREGS with CR4.CET, %s shadow stacks, %s tracking", without & NO_SHSTK ? "no" : "with",
		   without & NO_IBT ? "no" : "with");
		flat_mode(&m, 0);
		machine_code(&m, set_cet, sizeof(set_cet));
		is(out_port(&m), without == (NO_SHSTK | NO_IBT) ? FAULT(13) : 0x80, "000/16 the same by the guest");
		machine_end(&m);
	}
}

// Which MSR exists with which feature: the whole table is tests/kvm/cet_msrs.c.
static void msrs_by_feature(void)
{
	struct machine m;
	uint64_t list[3] = { 2 };

	start_with(&m, 0, NO_SHSTK);
	ok(set_msr(m.vcpu, U_CET, 4), "000/20 with tracking alone: U_CET takes ENDBR_EN");
	ok(!set_msr(m.vcpu, U_CET, 1), "000/20 and not SHSTK_EN");
	ok(!set_msr(m.vcpu, PL3_SSP, 0x1000), "000/20 there is no PL3_SSP");
	is(set_reg(m.vcpu, REG_SSP, 0x1000), EINVAL, "000/20 and no SSP");
	is(call(m.vcpu, KVM_GET_REG_LIST, list), 0, "000 the list of registers");
	is(list[0], 0, "000 is empty");
	machine_end(&m);
	start_with(&m, 0, NO_IBT);
	ok(set_msr(m.vcpu, S_CET, 1) && !set_msr(m.vcpu, S_CET, 4), "000/20 with shadow stacks alone: S_CET takes SHSTK_EN, not ENDBR_EN");
	is(set_reg(m.vcpu, REG_SSP, 0x1004), 0, "000 SSP goes through KVM_SET_ONE_REG");
	is(get_reg(m.vcpu, REG_SSP), 0x1004, "000 and comes back through KVM_GET_ONE_REG");
	is(set_reg(m.vcpu, REG_SSP, 0x1002), EINVAL, "000 not misaligned");
	list[0] = 1;
	is(call(m.vcpu, KVM_GET_REG_LIST, list), 0, "000 the list of registers");
	ok(list[0] == 1 && list[1] == REG_SSP, "000 has it");
	machine_end(&m);
}

// A shadow stack in flat mode: pages are of no concern, it lies at 0x9000.
static void with_shadow_stack(struct machine *m, uint64_t s_cet)
{
	flat_mode(m, 0x600 | CR4_CET);
	set_msr(m->vcpu, S_CET, s_cet);
	set_reg(m->vcpu, REG_SSP, 0x9000);
}

static void live_shadow_stack(void)
{
	struct machine m, next;
	struct kvm_regs regs;
	struct kvm_sregs sregs;

	start_with(&m, 0, 0);
	with_shadow_stack(&m, 1);
	// CALL +3; OUT 0x80; HLT; OUT 0x81; RET
	is(run_bytes(&m, 0xe8, 3, 0, 0, 0, 0xe6, 0x80, 0xf4, 0xe6, 0x81, 0xc3), 0x81, "000 a guest is stopped within a call");
	is(get_reg(m.vcpu, REG_SSP), 0x8ffc, "000 its shadow stack has one return address");
	is(*(uint32_t *)(m.memory + 0x8ffc), m.code + 5, "000 this one");
	m.run->immediate_exit = 1;
	call(m.vcpu, KVM_RUN, 0);

	start_with(&next, 0, 0);
	memcpy(next.memory, m.memory, MEMORY_SIZE);
	call(m.vcpu, KVM_GET_REGS, &regs);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	call(next.vcpu, KVM_SET_REGS, &regs);
	call(next.vcpu, KVM_SET_SREGS, &sregs);
	set_msr(next.vcpu, S_CET, get_msr(m.vcpu, S_CET));
	is(set_reg(next.vcpu, REG_SSP, get_reg(m.vcpu, REG_SSP)), 0, "000 SSP moves to another machine");
	is(out_port(&next), 0x80, "000 where the guest returns from its call");
	is(get_reg(next.vcpu, REG_SSP), 0x9000, "000 and its shadow stack is empty");
	call(next.vcpu, KVM_SET_REGS, &regs);
	set_reg(next.vcpu, REG_SSP, 0x8ff8);
	is(out_port(&next), FAULT(21), "000 with another SSP the return is #CP");
	machine_end(&next);
	machine_end(&m);
}

static void smm(void)
{
	struct kvm_userspace_memory_region region = { .slot = 1u << 16, .guest_phys_addr = 0x30000, .memory_size = 0x10000 };
	uint8_t *smram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct machine m;

	start_with(&m, IRQCHIP, 0);
	region.userspace_addr = (uintptr_t)smram;
	is(call(m.vm, KVM_SET_USER_MEMORY_REGION, &region), 0, "(SMRAM)");
	with_shadow_stack(&m, 1);
	memcpy(smram + 0x8000, "\xe6\x85\x0f\xaa", 4); // OUT 0x85; RSM
	machine_bytes(&m, 0xe8, 3, 0, 0, 0, 0xe6, 0x80, 0xf4, 0x90, 0xc3);
	is(call(m.vcpu, KVM_SMI, 0), 0, "000/21 an SMI while a shadow stack is live");
	is(out_port(&m), 0x85, "000/21 its handler runs");
	is(*(uint64_t *)(smram + 0xff18), 0x9000, "000/21 SSP lies in the save area at SMBASE + 0xFF18");
	*(uint64_t *)(smram + 0xff18) = 0x9100;
	is(out_port(&m), 0x80, "000/21 RSM");
	is(get_reg(m.vcpu, REG_SSP), 0x9100, "000/21 loads SSP from there");
	machine_end(&m);
	munmap(smram, 0x10000);
}

// Whatever way an instruction is executed, the rules hold.
static void no_way_round(void)
{
	static const uint8_t bad_return[] = { 0xe8, 3, 0, 0, 0, 0xe6, 0x80, 0xf4, 0x83, 0x04, 0x24, 0x01, 0xc3 }; // CALL; ADD [ESP], 1; RET
	static const uint8_t bad_jump[] = { 0xb8, 0x10, 0x50, 0, 0, 0xff, 0xe0 }; // MOV EAX, 0x5010; JMP EAX
	struct kvm_guest_debug step = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	static const char *const names[] = { "in a block", "single-stepped", "one instruction a block" };
	struct machine m;

	for (unsigned way = 0; way < 3; way++) {
		int port;

		cetkvm_set_option("grain", way == 2 ? "single" : "block");
		start_with(&m, 0, 0);
		if (way == 1)
			call(m.vcpu, KVM_SET_GUEST_DEBUG, &step);
		with_shadow_stack(&m, 1);
		machine_code(&m, bad_return, sizeof(bad_return));
		while ((port = out_port(&m)) == -1000 - KVM_EXIT_DEBUG)
			;
		is(port, FAULT(21), "000/27 a return to elsewhere, %s: #CP", names[way]);
		with_shadow_stack(&m, 4);
		m.code = 0x4000;
		machine_code(&m, bad_jump, sizeof(bad_jump));
		memcpy(m.memory + 0x5010, "\xe6\x82", 2);
		while ((port = out_port(&m)) == -1000 - KVM_EXIT_DEBUG)
			;
		is(port, FAULT(21), "000/27 a jump to a place without ENDBR, %s: #CP", names[way]);
		machine_end(&m);
	}
	cetkvm_set_option("grain", "block");

	// Operands that are no memory: the target and the return address come from user space.
	start_with(&m, 0, 0);
	with_shadow_stack(&m, 5);
	memcpy(m.memory + 0x6010, "\xe6\x82", 2);
	machine_bytes(&m, 0xff, 0x25, 0x00, 0x00, 0x00, 0xd0); // JMP [0xD0000000]
	is(machine_run(&m), KVM_EXIT_MMIO, "000/27 an indirect jump through memory I/O asks user space");
	memcpy(m.run->mmio.data, "\x10\x60\0\0", 4);
	is(out_port(&m), FAULT(21), "000/27 and is tracked: #CP");
	with_shadow_stack(&m, 5);
	memcpy(m.memory + 0x6010, "\xf3\x0f\x1e\xfb\xe6\x82", 6);
	machine_bytes(&m, 0xff, 0x15, 0x00, 0x00, 0x00, 0xd0); // CALL [0xD0000000]
	is(machine_run(&m), KVM_EXIT_MMIO, "000/27 a call through memory I/O");
	memcpy(m.run->mmio.data, "\x10\x60\0\0", 4);
	is(out_port(&m), 0x82, "000/27 to an ENDBR arrives");
	is(*(uint32_t *)(m.memory + 0x8ffc), m.code + 6, "000/27 with its return address on the shadow stack");
	machine_end(&m);
}

// "FRED_SSP0 follows either feature": the plan for the two series.
static void fred_ssp0(void)
{
	struct kvm_cpuid2 *cpuid;
	struct machine m;

	machine_start(&m, 0);
	cpuid = supported_cpuid(m.kvm);
	cpuid_entry(cpuid, 7, 0)->ecx &= ~(1u << 7);
	cpuid_entry(cpuid, 7, 0)->edx &= ~(1u << 20);
	cpuid_entry(cpuid, 7, 1)->eax |= 1u << 17;
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	ok(set_msr(m.vcpu, PL0_SSP, 0x1000) && get_msr(m.vcpu, PL0_SSP) == 0x1000, "000 FRED_SSP0 is there with FRED and without CET");
	ok(!set_msr(m.vcpu, PL0_SSP + 1, 0x1000), "000 PL1_SSP is not");
	flat_mode(&m, 0);
	// MOV ECX, PL0_SSP; RDMSR; OUT
	is(run_bytes(&m, 0xb9, 0xa4, 6, 0, 0, 0x0f, 0x32, 0xe6, 0x80), 0x80, "000 the guest reads it");
	is((uint32_t)machine_regs(&m).rax, 0x1000, "000 the same register");
	free(cpuid);
	machine_end(&m);
	start_with(&m, 0, NO_SHSTK | NO_IBT);
	ok(!set_msr(m.vcpu, PL0_SSP, 0x1000), "000 without either it is not there");
	flat_mode(&m, 0);
	is(run_bytes(&m, 0xb9, 0xa4, 6, 0, 0, 0x0f, 0x32, 0xe6, 0x80), FAULT(13), "000 for the guest neither");
	machine_end(&m);
}

// Hosts that have less: each in a process of its own, as machines keep the host that they were made on.
static unsigned offered_on(const char *without)
{
	static char text[16384];
	int pipes[2], kvm;
	unsigned got = ~0u;
	size_t length = 0;

	if (pipe(pipes))
		return ~0u;
	if (fork()) {
		close(pipes[1]);
		if (read(pipes[0], &got, sizeof(got)) != sizeof(got))
			got = ~0u;
		close(pipes[0]);
		wait(NULL);
		return got;
	}
	kvm = cetkvm_open();
	struct kvm_cpuid2 *cpuid = supported_cpuid(kvm);
	if (strstr(without, "shstk"))
		cpuid_entry(cpuid, 7, 0)->ecx &= ~(1u << 7);
	if (strstr(without, "ibt"))
		cpuid_entry(cpuid, 7, 0)->edx &= ~(1u << 20);
	if (strstr(without, "xsaves"))
		cpuid_entry(cpuid, 0xd, 1)->eax &= ~(1u << 3);
	if (strstr(without, "cet-s"))
		cpuid_entry(cpuid, 0xd, 1)->ecx &= ~(1u << 12);
	for (unsigned i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		length += (size_t)sprintf(text + length, "%x:%x:%x:%x:%x:%x:%x;", e->function, e->index, e->flags, e->eax, e->ebx,
					  e->ecx, e->edx);
	}
	got = 0;
	if (!cetkvm_set_option("host-cpuid", text)) {
		cpuid = supported_cpuid(kvm);
		got = (cpuid_entry(cpuid, 7, 0)->ecx >> 7 & 1) | (cpuid_entry(cpuid, 7, 0)->edx >> 20 & 1) << 1 |
		      (cpuid_entry(cpuid, 0xd, 1)->ecx == 0x1800) << 2 | (cpuid_entry(cpuid, 0xd, 11) != NULL) << 3;
		struct { struct kvm_msr_list list; uint32_t more[512]; } l = { .list.nmsrs = 512 };
		call(kvm, KVM_GET_MSR_INDEX_LIST, &l);
		for (unsigned i = 0; i < l.list.nmsrs; i++)
			got |= l.list.indices[i] == U_CET ? 16 : l.list.indices[i] == PL3_SSP ? 32 :
			       l.list.indices[i] == XSS ? 64 : 0;
	}
	if (write(pipes[1], &got, sizeof(got)) != sizeof(got))
		_exit(1);
	_exit(0);
}

static void hosts(void)
{
	is(offered_on(""), 127, "000/24 a host with all of CET: features, components, MSRs");
	is(offered_on("shstk"), 0, "000/24 a host without shadow stacks keeps no CET state, so it offers no tracking either");
	is(offered_on("xsaves"), 0, "000/24 a host without XSAVES offers neither");
	is(offered_on("cet-s"), 0, "000/24 nor one whose IA32_XSS has not both components");
	is(offered_on("shstk ibt"), 0, "000/24 a host without CET has no components and no MSRs of it; 000/14 nor has it IA32_XSS to save");
	is(offered_on("ibt"), 127 & ~2, "000/24 a host without tracking offers shadow stacks");
}

int main(void)
{
	hosts();
	supported_xcr0();
	xss_and_cpuid();
	save_list();
	managed_msrs();
	control_registers();
	msrs_by_feature();
	live_shadow_stack();
	smm();
	no_way_round();
	fred_ssp0();
	return done_testing();
}
