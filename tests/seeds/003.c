// SPDX-License-Identifier: MIT
// Document 003, "KVM: x86: Constrain guest-supported xfeatures only at KVM_GET_XSAVE{2}": the contract of
// the XSAVE ioctls, the two before it, the three regression tests, and the scenarios of the thread.
#include "seeds.h"

#define PKRU (1ull << 9)
#define XSTATE_BV 512

static const char *const abis[] = { "over-saving", "strict", "constrained" };
enum { OVER_SAVING, STRICT, CONSTRAINED };

static void start_abi(struct machine *m, unsigned abi, unsigned without)
{
	cetkvm_set_option("kvm-abi", abis[abi]);
	start_with(m, 0, without);
}

static uint64_t host_xcr0(int kvm)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid(kvm);
	uint64_t mask = cpuid_entry(cpuid, 0xd, 0)->eax | (uint64_t)cpuid_entry(cpuid, 0xd, 0)->edx << 32;

	free(cpuid);
	return mask;
}

// CR4.OSFXSR and OSXMMEXCPT.
static void enable_sse(struct machine *m)
{
	struct kvm_sregs sregs;

	call(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr4 |= 0x600;
	call(m->vcpu, KVM_SET_SREGS, &sregs);
}

// Real mode: loads XMM0 and an x87 register with patterns, so that they are in use.
static void dirty(struct machine *m)
{
	enable_sse(m);
	memset(m->memory + 0x800, 0x5a, 16);
	// MOVUPS XMM0, [0x800]; FLD1; OUT 0x80, AL
	is(run_bytes(m, 0x0f, 0x10, 0x06, 0x00, 0x08, 0xd9, 0xe8, 0xe6, 0x80), 0x80, "(the guest loads XMM0 and ST0)");
}

// What the guest finds in XMM0: the low byte.
static int guest_looks(struct machine *m)
{
	enable_sse(m);
	memset(m->memory + 0x820, 0, 16);
	// MOVUPS [0x820], XMM0; OUT
	if (run_bytes(m, 0x0f, 0x11, 0x06, 0x20, 0x08, 0xe6, 0x80) != 0x80)
		return -1;
	return m->memory[0x820] == m->memory[0x82f] ? m->memory[0x820] : -1;
}

static struct xsave_image saved(struct machine *m)
{
	struct xsave_image image;

	if (call(m->vcpu, KVM_GET_XSAVE, &image) < 0)
		abort();
	return image;
}

static void generations(void)
{
	struct machine m;
	struct xsave_image image, before, after;

	for (unsigned abi = OVER_SAVING; abi <= CONSTRAINED; abi++) {
		start_abi(&m, abi, NO_PKU);
		dirty(&m);
		image = saved(&m);
		is(!!(*xsave_word(&image, XSTATE_BV) & PKRU), abi == OVER_SAVING,
		   "003/2 %s: KVM_GET_XSAVE %s a component of the host that the guest has not", abis[abi],
		   abi == OVER_SAVING ? "shows" : "does not show");
		is(*xsave_word(&image, XSTATE_BV) & 3, 3, "003/2 %s: x87 and SSE are shown", abis[abi]);
		*xsave_word(&image, XSTATE_BV) |= PKRU;
		before = saved(&m);
		memset(image.bytes + 160, 0x77, 16);
		is(error_of(call(m.vcpu, KVM_SET_XSAVE, &image)), abi == STRICT ? EINVAL : 0,
		   "003/2 %s: KVM_SET_XSAVE %s one", abis[abi], abi == STRICT ? "refuses" : "takes");
		after = saved(&m);
		is(!memcmp(&before, &after, 4096), abi == STRICT, "003/2 %s: %s", abis[abi],
		   abi == STRICT ? "and nothing has changed" : "and it is there");
		machine_end(&m);

		start_abi(&m, abi, 0);
		dirty(&m);
		image = saved(&m);
		ok(*xsave_word(&image, XSTATE_BV) & PKRU, "003/2 %s: a guest that has the feature has the component", abis[abi]);
		machine_end(&m);

		start_abi(&m, abi, NO_XSAVE);
		dirty(&m);
		image = saved(&m);
		is(*xsave_word(&image, XSTATE_BV) & 3, 3, "003/2 %s: x87 and SSE without XSAVE in the guest's CPUID", abis[abi]);
		is(call(m.vcpu, KVM_SET_XSAVE, &image), 0, "003/2 %s: can be set", abis[abi]);
		is(guest_looks(&m), 0x5a, "003/2 %s: and moves with the guest", abis[abi]);
		machine_end(&m);
	}
}

// The three tests that the series adds to state_test.
static void regression_tests(void)
{
	struct machine m, fresh;
	struct xsave_image image;
	uint64_t all;

	start_abi(&m, CONSTRAINED, 0);
	all = host_xcr0(m.kvm);
	dirty(&m);
	image = saved(&m);
	is(*xsave_word(&image, XSTATE_BV) & 3, 3, "003/3 state that the guest has touched is in the image");
	is(image.bytes[160], 0x5a, "003/3 with its data");

	machine_start(&fresh, 0); // no CPUID, never run
	is(error_of(call(fresh.vcpu, KVM_SET_XSAVE, &image)), 0, "003/4 an image goes into a vCPU that has no features and has never run");
	is(set_cpuid(fresh.kvm, fresh.vcpu, 0), 0, "003/4 (which then gets its CPUID)");
	is(guest_looks(&fresh), 0x5a, "003/4 and the guest finds it");
	machine_end(&fresh);

	memset(image.bytes + 576, 0, 4096 - 576);
	*xsave_word(&image, XSTATE_BV) = all;
	for (unsigned without = 0; without <= (NO_PKU | NO_XSAVE | NO_AVX); without += NO_PKU) {
		start_abi(&fresh, CONSTRAINED, without);
		is(error_of(call(fresh.vcpu, KVM_SET_XSAVE, &image)), 0,
		   "003/5 every component of the host is taken%s%s%s", without & NO_PKU ? ", no PKU" : "",
		   without & NO_XSAVE ? ", no XSAVE" : "", without & NO_AVX ? ", no AVX" : "");
		machine_end(&fresh);
	}
	all |= 1 << 17; // tile configuration is the host's; only the tiles need permission to show in CPUID
	for (unsigned bit = 0; bit < 64; bit++) {
		*xsave_word(&image, XSTATE_BV) = 1ull << bit;
		if (error_of(call(m.vcpu, KVM_SET_XSAVE, &image)) != (all >> bit & 1 ? 0 : EINVAL)) {
			ok(false, "003/5 component %u", bit);
			break;
		}
	}
	ok(true, "003/5 and none that the host has not (each bit)");
	machine_end(&m);
}

// A VMM moves a guest; what it does with an error is its own affair.
static int move(struct machine *from, struct machine *to)
{
	struct xsave_image image = saved(from);

	return error_of(call(to->vcpu, KVM_SET_XSAVE, &image));
}

static void scenarios(void)
{
	struct machine old, strict, new, third;
	struct xsave_image image;
	struct kvm_xcrs xcrs;

	start_abi(&old, OVER_SAVING, NO_PKU);
	dirty(&old);
	start_abi(&strict, STRICT, NO_PKU);
	is(move(&old, &strict), EINVAL, "003 the accident: a kernel before the limit to one with it");
	is(guest_looks(&strict), 0, "003 a VMM that ignores the error runs a guest with corrupted data");
	machine_end(&strict);

	start_abi(&new, CONSTRAINED, NO_PKU);
	is(move(&old, &new), 0, "003 the same guest to a kernel with the fix");
	is(guest_looks(&new), 0x5a, "003 goes on undisturbed");
	is(call(new.vcpu, KVM_GET_XCRS, &xcrs), 0, "003 KVM_SET_XSAVE loads data,");
	is(xcrs.xcrs[0].value, 1, "003 and enables no feature");
	image = saved(&new);
	is(*xsave_word(&image, XSTATE_BV) & PKRU, 0, "003 the superfluous component is not passed on");
	start_abi(&third, STRICT, NO_PKU);
	is(move(&new, &third), 0, "003 so that a third host, even a strict one, takes the guest");
	is(guest_looks(&third), 0x5a, "003 with all that the guest has");
	machine_end(&third);
	start_abi(&third, OVER_SAVING, NO_PKU);
	is(move(&new, &third), 0, "003 and an old one too");
	is(guest_looks(&third), 0x5a, "003 with the same");
	machine_end(&third);

	// To a host that lacks what was over-saved: nobody can tell that it is superfluous.
	image = saved(&old);
	*xsave_word(&image, XSTATE_BV) |= 3ull << 3; // MPX, which no host here has
	is(error_of(call(new.vcpu, KVM_SET_XSAVE, &image)), EINVAL, "003 what no kernel change can fix: an over-saved component that the target lacks");
	is(guest_looks(&new), 0x5a, "003 it is refused, and nothing is dropped or changed");
	machine_end(&new);
	machine_end(&old);
}

static void options(void)
{
	errno = 0;
	ok(cetkvm_set_option("kvm-abi", "lenient") < 0 && errno == EINVAL, "003 no fourth generation");
	cetkvm_set_option("kvm-abi", "constrained");
	ok(cetkvm_set_option("cet-u", "ibt") < 0 && errno == EINVAL, "002/1 the rule for CET_U is one of two");
	is(cetkvm_set_option("cet-u", "either"), 0, "002/1 one of them");
	is(cetkvm_set_option("cet-u", "shstk"), 0, "002/1 the other");
}

int main(void)
{
	generations();
	regression_tests();
	scenarios();
	options();
	return done_testing();
}
