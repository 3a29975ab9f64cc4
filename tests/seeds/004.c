// SPDX-License-Identifier: MIT
// Document 004, "KVM: x86: Refine xsave-managed guest register/MSR reset handling": what INIT clears of
// extended state, what survives it, and what RESET relies on. INIT and SIPI come from another vCPU.
#include "seeds.h"

#define ICR_LOW 0xfee00300u
#define ICR_HIGH 0xfee00310u

static int second;
static struct kvm_run *second_run;

// A 4-byte store to the local APIC by the first vCPU: MOV [ECX], EAX in flat mode, then OUT.
static void lapic_store(struct machine *m, uint32_t address, uint32_t value)
{
	struct kvm_regs regs;

	machine_bytes(m, 0x89, 0x01, 0xe6, 0x80);
	regs = machine_regs(m);
	regs.rax = value;
	regs.rcx = address;
	call(m->vcpu, KVM_SET_REGS, &regs);
	if (out_port(m) != 0x80)
		abort();
}

static void send(struct machine *m, uint32_t command)
{
	m->code = 0x4000;
	lapic_store(m, ICR_HIGH, 1 << 24);
	m->code = 0x4000;
	lapic_store(m, ICR_LOW, command);
}

static uint32_t mp_state(void)
{
	struct kvm_mp_state state = { 0 };

	call(second, KVM_GET_MP_STATE, &state);
	return state.mp_state;
}

static const struct { const char *name; uint32_t index; uint64_t value, after_init; } msrs[] = {
	{ "U_CET (component 11)", U_CET, 0x5, 0 },
	{ "PL3_SSP (component 11)", PL3_SSP, 0x7770, 0 },
	{ "PL0_SSP (component 12)", PL0_SSP, 0x1110, 0 },
	{ "PL1_SSP (component 12)", PL0_SSP + 1, 0x2220, 0 },
	{ "PL2_SSP (component 12)", PL0_SSP + 2, 0x3330, 0 },
	{ "S_CET", S_CET, 0x5, 0 },
	{ "INT_SSP_TAB", INT_SSP_TAB, 0x9000, 0 },
	{ "SSP", 0x4b564dff, 0x8880, 0 },
	{ "XSS", XSS, 0x1800, 0x1800 },
	{ "EFER", 0xc0000080, 0x801, 0 },
	{ "PAT", 0x277, 0x0007040600010406, 0x0007040600010406 },
	{ "LSTAR", 0xc0000082, 0x1234, 0x1234 },
};

static void fill(struct xsave_image *image)
{
	memset(image, 0, sizeof(*image));
	image->bytes[0] = 0x7f;
	image->bytes[1] = 0x02;
	memset(image->bytes + 32, 0x11, 10);
	memset(image->bytes + 160, 0x22, 256);
	image->bytes[24] = 0x80;
	image->bytes[25] = 0x9f;
	memset(image->bytes + 576, 0x33, 256);
	*xsave_word(image, 2688) = 0x55555554;
	*xsave_word(image, 512) = 7 | 1 << 9;
}

static void after_reset(int vcpu, const char *who)
{
	struct xsave_image image;
	struct kvm_xcrs xcrs;
	unsigned sum = 0;

	call(vcpu, KVM_GET_XSAVE, &image);
	for (unsigned i = 0; i < 2688; i++)
		sum += i == 0 || i == 1 || (i >= 24 && i < 32) || (i >= 464 && i < 576) ? 0 : image.bytes[i];
	is(sum, 0, "004 RESET, %s: extended state is zero", who);
	is(image.bytes[0] | image.bytes[1] << 8, 0x37f, "004 RESET, %s: with the x87 control word of an initial image", who);
	is(image.bytes[24] | image.bytes[25] << 8, 0x1f80, "004 RESET, %s: and MXCSR", who);
	call(vcpu, KVM_GET_XCRS, &xcrs);
	is(xcrs.xcrs[0].value, 1, "004 RESET, %s: XCR0 is 1", who);
	for (unsigned i = 0; i <= 8; i++)
		is(get_msr(vcpu, msrs[i].index), 0, "004 RESET, %s: %s is 0", who, msrs[i].name);
}

static void check_registers(void)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debug;

	call(second, KVM_GET_REGS, &regs);
	call(second, KVM_GET_SREGS, &sregs);
	call(second, KVM_GET_DEBUGREGS, &debug);
	is(sregs.cr0, 0x10, "004 INIT: CR0 has ET, and CD and NW as they were (0)");
	is(sregs.cr2 | sregs.cr3 | sregs.cr4, 0, "004 INIT: CR2, CR3 and CR4 are 0");
	ok(regs.rflags == 2 && regs.rip == 0xfff0 && !regs.rax && !regs.r15, "004 INIT: RIP, RFLAGS, registers");
	ok(regs.rdx != 0, "004 INIT: RDX has the processor's signature");
	ok(sregs.cs.selector == 0xf000 && sregs.cs.base == 0xffff0000, "004 INIT: CS");
	ok(debug.dr6 == 0xffff0ff0 && debug.dr7 == 0x400 && !debug.db[0], "004 INIT: debug registers");
}

static void init_by_another(struct machine *m)
{
	struct xsave_image image, back;
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .value = 0x207 } } };
	struct kvm_mp_state running = { KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs sregs;
	struct kvm_debugregs debug = { .db = { 0x1234 }, .dr6 = 0xffff0ff1, .dr7 = 0x401 };

	fill(&image);
	is(call(second, KVM_SET_MP_STATE, &running), 0, "(the second vCPU is made to run)");
	for (unsigned i = 0; i < sizeof(msrs) / sizeof(*msrs); i++)
		if (!set_msr(second, msrs[i].index, msrs[i].value))
			ok(false, "%s can be set", msrs[i].name);
	is(call(second, KVM_SET_XCRS, &xcrs), 0, "(with XCR0)");
	is(call(second, KVM_SET_XSAVE, &image), 0, "(and extended state)");
	call(second, KVM_GET_SREGS, &sregs);
	sregs.cr0 = 0x10033;
	sregs.cr4 = 0x40000;
	sregs.cr2 = 0x1234;
	call(second, KVM_SET_SREGS, &sregs);
	call(second, KVM_SET_DEBUGREGS, &debug);

	send(m, 0xc500); // INIT, assert, level
	is(mp_state(), KVM_MP_STATE_INIT_RECEIVED, "004 INIT from another vCPU has arrived");
	check_registers();
	for (unsigned i = 0; i < sizeof(msrs) / sizeof(*msrs); i++)
		is(get_msr(second, msrs[i].index), msrs[i].after_init, "004 INIT %s %s", msrs[i].after_init ? "keeps" : "clears", msrs[i].name);
	call(second, KVM_GET_XCRS, &xcrs);
	is(xcrs.xcrs[0].value, 0x207, "004 INIT keeps XCR0");
	call(second, KVM_GET_XSAVE, &back);
	ok(!memcmp(back.bytes, image.bytes, 2) && !memcmp(back.bytes + 32, image.bytes + 32, 10), "004 INIT keeps x87");
	ok(!memcmp(back.bytes + 160, image.bytes + 160, 256), "004 INIT keeps SSE");
	is(back.bytes[24] | back.bytes[25] << 8, 0x9f80, "004 INIT keeps MXCSR");
	ok(!memcmp(back.bytes + 576, image.bytes + 576, 256), "004 INIT keeps AVX");
	is(*xsave_word(&back, 2688), 0x55555554, "004 INIT keeps PKRU");
}

// The guest's own look: code at the SIPI's vector.
static void sipi(struct machine *m)
{
	static const uint8_t code[] = {
		0x66, 0xb9, 0xa7, 0x06, 0, 0, 0x0f, 0x32, 0x66, 0x09, 0xd0, 0x66, 0x89, 0xc3, // PL3_SSP to EBX
		0x66, 0xb9, 0xa0, 0x0d, 0, 0, 0x0f, 0x32, 0x66, 0x89, 0xc6,		      // XSS to ESI
		0x66, 0xb8, 0x00, 0x06, 0, 0, 0x0f, 0x22, 0xe0,				      // CR4.OSFXSR
		0x0f, 0x11, 0x06, 0x40, 0x08,						      // MOVUPS [0x840], XMM0
		0xe6, 0x80,
	};
	struct kvm_regs regs;
	struct kvm_sregs sregs;

	memcpy(m->memory + 0x7000, code, sizeof(code));
	send(m, 0x0607);
	is(call(second, KVM_RUN, 0), 0, "004 SIPI: the vCPU runs");
	is(second_run->exit_reason, KVM_EXIT_IO, "004 SIPI: its code");
	call(second, KVM_GET_REGS, &regs);
	call(second, KVM_GET_SREGS, &sregs);
	ok(sregs.cs.selector == 0x700 && sregs.cs.base == 0x7000, "004 SIPI: at its vector");
	is(regs.rbx, 0, "004 the guest finds PL3_SSP cleared");
	is(regs.rsi, 0x1800, "004 the guest finds XSS kept");
	ok(m->memory[0x840] == 0x22 && m->memory[0x84f] == 0x22, "004 the guest finds its XMM0 kept");
	is(mp_state(), KVM_MP_STATE_RUNNABLE, "004 SIPI: runnable");
}

// What a client does to reset a guest: everything by ioctls, then a waiting state or a running one.
static void client_reset(void)
{
	struct kvm_mp_state state = { KVM_MP_STATE_UNINITIALIZED };
	struct xsave_image zero = { 0 };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .value = 1 } } };

	set_msr(second, PL3_SSP, 0x7770);
	set_msr(second, U_CET, 1);
	is(call(second, KVM_SET_MP_STATE, &state), 0, "004 KVM_SET_MP_STATE");
	is(get_msr(second, PL3_SSP), 0x7770, "004 it clears nothing: that is INIT's work");
	is(mp_state(), KVM_MP_STATE_UNINITIALIZED, "004 and reads back");
	for (unsigned i = 0; i <= 8; i++)
		if (!set_msr(second, msrs[i].index, 0))
			ok(false, "%s can be reset", msrs[i].name);
	is(call(second, KVM_SET_XSAVE, &zero), 0, "004 a client's reset: an image of nothing");
	is(call(second, KVM_SET_XCRS, &xcrs), 0, "004 XCR0");
	after_reset(second, "by a client");
	state.mp_state = KVM_MP_STATE_SIPI_RECEIVED + 7;
	is(error_of(call(second, KVM_SET_MP_STATE, &state)), EINVAL, "004 an unknown state");
}

// A client that has never heard of CET: its reset names none of CET's registers.
static void old_client_reset(void)
{
	struct machine m;
	struct kvm_sregs reset, sregs;

	start_with(&m, 0, 0);
	call(m.vcpu, KVM_GET_SREGS, &reset);
	reset.cs.selector = 0xf000;
	reset.cs.base = 0xffff0000;
	flat_mode(&m, 0x800000);
	for (unsigned i = 0; i <= 8; i++)
		set_msr(m.vcpu, msrs[i].index, msrs[i].value);
	is(call(m.vcpu, KVM_SET_SREGS, &reset), 0, "(a machine that is restored into the reset state)");
	is(get_msr(m.vcpu, PL3_SSP), 0x7770, "004 a machine that has not run keeps what was restored");
	flat_mode(&m, 0x800000);
	is(run_bytes(&m, 0xf3, 0x0f, 0x1e, 0xfb, 0xe6, 0x80), 0x80, "(the guest runs)");
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "004 special registers that are no reset");
	is(get_msr(m.vcpu, PL3_SSP), 0x7770, "004 change nothing of CET");
	is(call(m.vcpu, KVM_SET_SREGS, &reset), 0, "004 a client's reset that does not name CET");
	for (unsigned i = 0; i <= 8; i++)
		is(get_msr(m.vcpu, msrs[i].index), 0, "004 clears %s", msrs[i].name);
	machine_end(&m);
}

int main(void)
{
	struct machine m;

	start_with(&m, IRQCHIP, 0);
	second = call(m.vm, KVM_CREATE_VCPU, 1);
	second_run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
	if (set_cpuid(m.kvm, second, 0) < 0)
		abort();
	after_reset(second, "a new vCPU");
	flat_mode(&m, 0);
	init_by_another(&m);
	sipi(&m);
	client_reset();
	old_client_reset();
	munmap(second_run, 3 * 4096);
	cetkvm_close(second);
	machine_end(&m);
	return done_testing();
}
