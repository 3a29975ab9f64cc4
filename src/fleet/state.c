// SPDX-License-Identifier: MIT
// Reading, loading and comparing a vCPU's state.
// api.rst: KVM_GET_XSAVE2, KVM_GET_MSR_INDEX_LIST, KVM_GET_ONE_REG.
#include "fleet/state.h"

#include "vmm/message.h"

#include <errno.h>
#include <string.h>

// Of newer kernels' headers.
#define REG_GUEST_SSP 0x2030000300000000ull
#define XSTATE_BV_AT  512

static int failed(const struct vcpu_handle *vcpu, const char *what)
{
	vmm_message("fleet: %s: %s: %s", vcpu->kvm->name, what, strerror(errno));
	return -1;
}

static bool contains(const uint32_t *list, uint32_t count, uint32_t index)
{
	for (uint32_t i = 0; i < count; i++)
		if (list[i] == index)
			return true;
	return false;
}

// MSRs that describe the processor are the VMM's configuration, not the guest's state.
static int read_lists(const struct vcpu_handle *vcpu, uint32_t *list, uint32_t *count)
{
	struct {
		struct kvm_msr_list header;
		uint32_t indices[STATE_MSRS_MAX];
	} all, features;

	all.header.nmsrs = features.header.nmsrs = STATE_MSRS_MAX;
	if (vcpu->kvm->ioctl(vcpu->kvm_fd, KVM_GET_MSR_INDEX_LIST, &all) < 0)
		return failed(vcpu, "KVM_GET_MSR_INDEX_LIST");
	if (vcpu->kvm->ioctl(vcpu->kvm_fd, KVM_GET_MSR_FEATURE_INDEX_LIST, &features) < 0)
		features.header.nmsrs = 0;
	*count = 0;
	for (uint32_t i = 0; i < all.header.nmsrs; i++)
		if (!contains(features.indices, features.header.nmsrs, all.indices[i]))
			list[(*count)++] = all.indices[i];
	return 0;
}

static int read_msrs(const struct vcpu_handle *vcpu, struct vcpu_state *state)
{
	uint32_t list[STATE_MSRS_MAX], count;
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} one;

	if (read_lists(vcpu, list, &count) < 0)
		return -1;
	state->msr_count = 0;
	for (uint32_t i = 0; i < count; i++) {
		memset(&one, 0, sizeof(one));
		one.header.nmsrs = 1;
		one.entry.index = list[i];
		if (vcpu->kvm->ioctl(vcpu->fd, KVM_GET_MSRS, &one) == 1)
			state->msrs[state->msr_count++] = one.entry;
	}
	return 0;
}

int state_read(const struct vcpu_handle *vcpu, struct vcpu_state *state)
{
	const struct kvm_backend *kvm = vcpu->kvm;
	struct kvm_one_reg ssp = { .id = REG_GUEST_SSP, .addr = (uintptr_t)&state->ssp };
	int size = kvm->ioctl(vcpu->vm_fd, KVM_CHECK_EXTENSION, (void *)(uintptr_t)KVM_CAP_XSAVE2);
	bool big = size > (int)sizeof(struct kvm_xsave);

	memset(state, 0, sizeof(*state));
	if (size > STATE_XSAVE_MAX) {
		errno = E2BIG;
		return failed(vcpu, "KVM_CAP_XSAVE2");
	}
	if (kvm->ioctl(vcpu->fd, KVM_GET_SREGS, &state->sregs) < 0)
		return failed(vcpu, "KVM_GET_SREGS");
	if (kvm->ioctl(vcpu->fd, KVM_GET_REGS, &state->regs) < 0)
		return failed(vcpu, "KVM_GET_REGS");
	if (kvm->ioctl(vcpu->fd, big ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, state->xsave) < 0)
		return failed(vcpu, big ? "KVM_GET_XSAVE2" : "KVM_GET_XSAVE");
	if (kvm->ioctl(vcpu->fd, KVM_GET_XCRS, &state->xcrs) < 0)
		return failed(vcpu, "KVM_GET_XCRS");
	if (kvm->ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &state->events) < 0)
		return failed(vcpu, "KVM_GET_VCPU_EVENTS");
	if (kvm->ioctl(vcpu->fd, KVM_GET_MP_STATE, &state->mp_state) < 0)
		return failed(vcpu, "KVM_GET_MP_STATE");
	if (kvm->ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &state->debugregs) < 0)
		return failed(vcpu, "KVM_GET_DEBUGREGS");
	// A guest without shadow stacks has no such register.
	state->has_ssp = kvm->ioctl(vcpu->fd, KVM_GET_ONE_REG, &ssp) == 0;
	return read_msrs(vcpu, state);
}

static int load_msrs(const struct vcpu_handle *vcpu, const struct vcpu_state *state, uint32_t *msr)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[STATE_MSRS_MAX];
	} all = { .header.nmsrs = 0 };
	uint32_t list[STATE_MSRS_MAX], count;
	int done;

	if (read_lists(vcpu, list, &count) < 0)
		return EIO;
	// What was 0 and does not exist here is left out, as VMMs do. Anything else is KVM's to judge.
	for (uint32_t i = 0; i < state->msr_count; i++)
		if (state->msrs[i].data || contains(list, count, state->msrs[i].index))
			all.entries[all.header.nmsrs++] = state->msrs[i];
	done = vcpu->kvm->ioctl(vcpu->fd, KVM_SET_MSRS, &all);
	if (done < 0)
		return errno;
	// It stops at the first that is refused and returns how many were taken: an error all the same.
	if (done == (int)all.header.nmsrs)
		return 0;
	*msr = all.entries[done].index;
	return EINVAL;
}

int state_load(const struct vcpu_handle *vcpu, const struct vcpu_state *state, enum fleet_piece piece, uint32_t *msr)
{
	struct kvm_one_reg ssp = { .id = REG_GUEST_SSP, .addr = (uintptr_t)&state->ssp };
	const struct {
		unsigned long request;
		const void *argument;
	} plain[PIECES] = {
		[PIECE_SREGS] = { KVM_SET_SREGS, &state->sregs },
		[PIECE_REGS] = { KVM_SET_REGS, &state->regs },
		[PIECE_XSAVE] = { KVM_SET_XSAVE, state->xsave },
		[PIECE_XCRS] = { KVM_SET_XCRS, &state->xcrs },
		[PIECE_SSP] = { KVM_SET_ONE_REG, &ssp },
		[PIECE_EVENTS] = { KVM_SET_VCPU_EVENTS, &state->events },
		[PIECE_MP_STATE] = { KVM_SET_MP_STATE, &state->mp_state },
		[PIECE_DEBUGREGS] = { KVM_SET_DEBUGREGS, &state->debugregs },
	};

	*msr = 0;
	if (piece == PIECE_MSRS)
		return load_msrs(vcpu, state, msr);
	if (piece == PIECE_SSP && !state->has_ssp)
		return 0;
	if (piece == PIECE_SREGS) // without an APIC of KVM's, CR8 goes with kvm_run
		vcpu->run->cr8 = state->sregs.cr8;
	return vcpu->kvm->ioctl(vcpu->fd, plain[piece].request, (void *)plain[piece].argument) < 0 ? errno : 0;
}

uint64_t state_image(const struct vcpu_state *state)
{
	uint64_t xstate_bv;

	memcpy(&xstate_bv, state->xsave + XSTATE_BV_AT, sizeof(xstate_bv));
	return xstate_bv;
}

// ---- comparing ----

enum fleet_component state_msr_component(uint32_t msr)
{
	switch (msr) {
	case 0x6a0: // IA32_U_CET
	case 0x6a7: // IA32_PL3_SSP
		return FLEET_CET_U;
	case 0x6a4: // IA32_PL0_SSP to IA32_PL2_SSP
	case 0x6a5:
	case 0x6a6:
		return FLEET_CET_S;
	case 0x6a2: // IA32_S_CET
	case 0x6a8: // IA32_INTERRUPT_SSP_TABLE_ADDR
		return FLEET_S_CET;
	case 0xda0: // IA32_XSS
		return FLEET_XCR0;
	default:
		return FLEET_MSRS;
	}
}

static uint64_t msr_value(const struct vcpu_state *state, uint32_t index)
{
	for (uint32_t i = 0; i < state->msr_count; i++)
		if (state->msrs[i].index == index)
			return state->msrs[i].data;
	return 0;
}

static bool same_msrs(const struct vcpu_state *a, const struct vcpu_state *b, enum fleet_component component)
{
	// Of the others, those that the guest has set; clocks go on.
	static const uint32_t guests[] = { 0x174, 0x175, 0x176, 0x277, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084,
					   0xc0000102, 0xc0000103, 0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8,
					   0xda0 };

	for (unsigned i = 0; i < sizeof(guests) / sizeof(guests[0]); i++)
		if (state_msr_component(guests[i]) == component && msr_value(a, guests[i]) != msr_value(b, guests[i]))
			return false;
	return true;
}

// Offsets of the standard format: SDM "XSAVE-Managed State", and CPUID leaf 0xD for the rest; these
// have been the same on every processor that has them.
static bool same_xsave(const struct vcpu_state *a, const struct vcpu_state *b, enum fleet_component component)
{
	static const struct {
		enum fleet_component component;
		unsigned from, size;
	} ranges[] = {
		{ FLEET_X87, 0, 5 }, { FLEET_X87, 32, 128 }, { FLEET_SSE, 24, 4 }, { FLEET_SSE, 160, 256 },
		{ FLEET_AVX, 576, 256 }, { FLEET_AVX512, 1088, 1600 }, { FLEET_PKRU, 2688, 4 }, { FLEET_AMX, 2752, 8256 },
	};

	for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
		if (ranges[i].component == component &&
		    memcmp(a->xsave + ranges[i].from, b->xsave + ranges[i].from, ranges[i].size))
			return false;
	return true;
}

bool state_same(const struct vcpu_state *a, const struct vcpu_state *b, enum fleet_component component)
{
	const struct kvm_sregs *s = &a->sregs, *t = &b->sregs;

	switch (component) {
	case FLEET_GPRS:
		return !memcmp(&a->regs, &b->regs, sizeof(a->regs));
	case FLEET_SEGMENTS:
		return s->fs.base == t->fs.base && s->gs.base == t->gs.base && !memcmp(&s->gdt, &t->gdt, sizeof(s->gdt)) &&
		       !memcmp(&s->idt, &t->idt, sizeof(s->idt)) && !memcmp(&s->cs, &t->cs, sizeof(s->cs));
	case FLEET_CONTROL:
		return s->cr0 == t->cr0 && s->cr2 == t->cr2 && s->cr3 == t->cr3 && s->cr4 == t->cr4 && s->cr8 == t->cr8 &&
		       s->efer == t->efer;
	case FLEET_DEBUG:
		return !memcmp(&a->debugregs, &b->debugregs, sizeof(a->debugregs));
	case FLEET_XCR0:
		return a->xcrs.xcrs[0].value == b->xcrs.xcrs[0].value && same_msrs(a, b, component);
	case FLEET_MSRS:
	case FLEET_CET_U:
	case FLEET_CET_S:
	case FLEET_S_CET:
		return same_msrs(a, b, component);
	case FLEET_USER_STACK:
		return same_msrs(a, b, FLEET_CET_U);
	case FLEET_SHADOW_STACK:
		return (a->has_ssp ? a->ssp : 0) == (b->has_ssp ? b->ssp : 0);
	default:
		return same_xsave(a, b, component);
	}
}
