// SPDX-License-Identifier: MIT
// KVM_CHECK_EXTENSION and KVM_ENABLE_CAP. What has no row is not there: 0.
#include "cetkvm/cetkvm.h"
#include "cpu/system.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <unistd.h>

#define X2APIC_API (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
// Quirks that can be switched off. What else api.rst lists as one is not done in the first place.
#define QUIRKS \
	(KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT | \
	 KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | KVM_X86_QUIRK_FIX_HYPERCALL_INSN | KVM_X86_QUIRK_SLOT_ZAP_ALL)
#define DISABLE_EXITS \
	(KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_HLT | \
	 KVM_X86_DISABLE_EXITS_CSTATE)
#define MSR_EXITS (KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_FILTER)

static const struct {
	u32 number;
	long value;
	const char *name;
} capabilities[] = {
#define CAP(number, value) { number, value, #number }
	CAP(KVM_CAP_IRQCHIP, 1),
	CAP(KVM_CAP_MMU_SHADOW_CACHE_CONTROL, 1),
	CAP(KVM_CAP_HLT, 1),
	CAP(KVM_CAP_USER_MEMORY, 1),
	CAP(KVM_CAP_USER_MEMORY2, 1),
	CAP(KVM_CAP_SET_TSS_ADDR, 1),
	CAP(KVM_CAP_EXT_CPUID, 1),
	CAP(KVM_CAP_CLOCKSOURCE, 1),
	CAP(KVM_CAP_NR_MEMSLOTS, MAX_MEMSLOTS),
	CAP(KVM_CAP_PIT, 1),
	CAP(KVM_CAP_NOP_IO_DELAY, 1),
	CAP(KVM_CAP_MP_STATE, 1),
	CAP(KVM_CAP_COALESCED_MMIO, 2),
	CAP(KVM_CAP_COALESCED_PIO, 1),
	CAP(KVM_CAP_SYNC_MMU, 1),
	CAP(KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1),
	CAP(KVM_CAP_USER_NMI, 1),
	CAP(KVM_CAP_SET_GUEST_DEBUG, 1),
	CAP(KVM_CAP_REINJECT_CONTROL, 1),
	CAP(KVM_CAP_IRQ_ROUTING, MAX_GSI),
	CAP(KVM_CAP_IRQ_INJECT_STATUS, 1),
	CAP(KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1),
	CAP(KVM_CAP_MCE, 32),
	CAP(KVM_CAP_PIT2, 1),
	CAP(KVM_CAP_SET_BOOT_CPU_ID, 1),
	CAP(KVM_CAP_PIT_STATE2, 1),
	CAP(KVM_CAP_IRQFD, 1),
	CAP(KVM_CAP_IRQFD_RESAMPLE, 1),
	CAP(KVM_CAP_IOEVENTFD, 1),
	CAP(KVM_CAP_IOEVENTFD_ANY_LENGTH, 1),
	CAP(KVM_CAP_IOEVENTFD_NO_LENGTH, 1),
	CAP(KVM_CAP_IOAPIC_POLARITY_IGNORED, 1),
	CAP(KVM_CAP_SET_IDENTITY_MAP_ADDR, 1),
	CAP(KVM_CAP_VAPIC, 1),
	CAP(KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC),
	CAP(KVM_CAP_INTERNAL_ERROR_DATA, 1),
	CAP(KVM_CAP_VCPU_EVENTS, 1),
	CAP(KVM_CAP_DEBUGREGS, 1),
	CAP(KVM_CAP_X86_ROBUST_SINGLESTEP, 1),
	CAP(KVM_CAP_XSAVE, 1),
	CAP(KVM_CAP_XCRS, 1),
	CAP(KVM_CAP_ENABLE_CAP, 1),
	CAP(KVM_CAP_ENABLE_CAP_VM, 1),
	CAP(KVM_CAP_TSC_CONTROL, 1),
	CAP(KVM_CAP_VM_TSC_CONTROL, 1),
	CAP(KVM_CAP_VCPU_ATTRIBUTES, 1),
	CAP(KVM_CAP_GET_TSC_KHZ, 1),
	CAP(KVM_CAP_MAX_VCPUS, MAX_VCPUS),
	CAP(KVM_CAP_MAX_VCPU_ID, MAX_VCPU_ID),
	CAP(KVM_CAP_ONE_REG, 1),
	CAP(KVM_CAP_READONLY_MEM, 1),
	CAP(KVM_CAP_DIRTY_LOG_RING, 65536 * sizeof(struct kvm_dirty_gfn)),
	CAP(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 65536 * sizeof(struct kvm_dirty_gfn)),
	CAP(KVM_CAP_KVMCLOCK_CTRL, 1),
	CAP(KVM_CAP_SIGNAL_MSI, 1),
	CAP(KVM_CAP_TSC_DEADLINE_TIMER, 1),
	CAP(KVM_CAP_SYS_ATTRIBUTES, 1),
	CAP(KVM_CAP_EXT_EMUL_CPUID, 1),
	CAP(KVM_CAP_X86_SMM, 1),
	CAP(KVM_CAP_DISABLE_QUIRKS, 1),
	CAP(KVM_CAP_DISABLE_QUIRKS2, QUIRKS),
	CAP(KVM_CAP_X86_DISABLE_EXITS, DISABLE_EXITS),
	CAP(KVM_CAP_MULTI_ADDRESS_SPACE, ADDRESS_SPACES),
	CAP(KVM_CAP_CHECK_EXTENSION_VM, 1),
	CAP(KVM_CAP_SPLIT_IRQCHIP, 1),
	CAP(KVM_CAP_IMMEDIATE_EXIT, 1),
	CAP(KVM_CAP_X2APIC_API, X2APIC_API),
	CAP(KVM_CAP_GET_MSR_FEATURES, 1),
	CAP(KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS),
	CAP(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
	CAP(KVM_CAP_EXCEPTION_PAYLOAD, 1),
	CAP(KVM_CAP_X86_USER_SPACE_MSR, MSR_EXITS),
	CAP(KVM_CAP_X86_MSR_FILTER, 1),
	CAP(KVM_CAP_MSR_PLATFORM_INFO, 1),
	CAP(KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP |
		KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ),
	CAP(KVM_CAP_SREGS2, 1),
	CAP(KVM_CAP_BINARY_STATS_FD, 1),
	CAP(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1),
	CAP(KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1),
	CAP(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1),
	CAP(KVM_CAP_VM_TYPES, 1),
	CAP(KVM_CAP_X86_APIC_BUS_CYCLES_NS, APIC_BUS_CYCLE_NS),
	CAP(KVM_CAP_XSAVE2, 0), // these: see capability()
	CAP(KVM_CAP_STEAL_TIME, 0),
	CAP(KVM_CAP_NR_VCPUS, 0),
};

long capability(struct vm *vm, unsigned long number)
{
	switch (number) {
	case KVM_CAP_XSAVE2:
		return xsave_size(vm);
	case KVM_CAP_STEAL_TIME:
		return steal_time_available();
	case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
		return irq_bus_cycle(vm);
	case KVM_CAP_NR_VCPUS:
		return sysconf(_SC_NPROCESSORS_ONLN);
	}
	for (unsigned i = 0; i < sizeof(capabilities) / sizeof(*capabilities); i++)
		if (capabilities[i].number == number)
			return capabilities[i].value;
	return 0;
}

__attribute__((visibility("default"))) int cetkvm_list_capability(unsigned index, struct cetkvm_capability *out)
{
	if (index >= sizeof(capabilities) / sizeof(*capabilities)) {
		errno = ENOENT;
		return -1;
	}
	*out = (struct cetkvm_capability){ .name = capabilities[index].name, .number = capabilities[index].number,
					   .value = capability(NULL, capabilities[index].number) };
	return 0;
}

void capability_apply_quirks(struct vm *vm, struct vcpu *vcpu)
{
	vcpu->cpu->monitor_faults = vm->disabled_quirks & KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;
	vcpu->cpu->monitor_by_msr = vm->disabled_quirks & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT;
}

void capability_apply_to_chip(struct vm *vm, struct irqchip *chip)
{
	chip->x2apic_broadcast_quirk_off = vm->x2apic_api & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
	chip->lint0_quirk_off = vm->disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED;
}

static int use_x2apic_api(struct vm *vm, u64 flags)
{
	if (flags & ~(u64)X2APIC_API)
		return -EINVAL;
	lock_take(&vm->lock);
	vm->x2apic_api |= flags; // once on, it stays
	if (vm->chip)
		capability_apply_to_chip(vm, vm->chip);
	lock_release(&vm->lock);
	return 0;
}

static int disable_quirks(struct vm *vm, u64 quirks)
{
	lock_take(&vm->lock);
	vm->disabled_quirks = quirks;
	if (vm->chip)
		capability_apply_to_chip(vm, vm->chip);
	for (unsigned i = 0; i < vm_vcpu_count(vm); i++)
		capability_apply_quirks(vm, vm_vcpu(vm, i));
	lock_release(&vm->lock);
	return 0;
}

// MWAIT, PAUSE and the like never exit: they are the processor's own. HLT does without an in-kernel
// APIC. The kernel of 6.12 takes this with vCPUs there, too; later ones do not.
static int disable_exits(struct vm *vm, u64 exits)
{
	if (exits & ~(u64)DISABLE_EXITS)
		return -EINVAL;
	if (exits & KVM_X86_DISABLE_EXITS_HLT)
		vm->hlt_in_guest = true;
	return 0;
}

int capability_enable(struct vm *vm, const struct kvm_enable_cap *cap)
{
	u64 arg = cap->args[0];
	int result = 0;

	if (cap->flags)
		return -EINVAL;
	switch (cap->cap) {
	case KVM_CAP_SPLIT_IRQCHIP:
		return arg > MAX_GSI ? -EINVAL : irq_create_chip(vm, true, arg);
	case KVM_CAP_X2APIC_API:
		return use_x2apic_api(vm, arg);
	case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
		return irq_set_bus_cycle(vm, arg);
	case KVM_CAP_EXCEPTION_PAYLOAD:
		vm->exception_payload = arg;
		return 0;
	case KVM_CAP_DISABLE_QUIRKS2:
		if (arg & ~(u64)QUIRKS)
			return -EINVAL;
		// fall through
	case KVM_CAP_DISABLE_QUIRKS:
		return disable_quirks(vm, arg);
	case KVM_CAP_X86_DISABLE_EXITS:
		return disable_exits(vm, arg);
	case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
		vm->triple_fault_event = arg;
		return 0;
	case KVM_CAP_X86_USER_SPACE_MSR:
		if (arg & ~(u64)MSR_EXITS)
			return -EINVAL;
		vm->msr_exits = arg;
		return 0;
	case KVM_CAP_MSR_PLATFORM_INFO:
		vm->platform_info_denied = !arg;
		return 0;
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		if (arg & ~3ull || arg == KVM_DIRTY_LOG_INITIALLY_SET)
			return -EINVAL;
		vm->manual_dirty_protect = arg;
		return 0;
	case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
		if (arg & ~1ull)
			return -EINVAL;
		vm->exit_on_emulation_failure = arg;
		return 0;
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
		return dirty_ring_enable(vm, arg);
	case KVM_CAP_MAX_VCPU_ID:
		lock_take(&vm->lock);
		// Once, and with room for the boot processor.
		if (arg > MAX_VCPU_ID || vm->boot_cpu_id > arg || (vm->max_vcpu_id && vm->max_vcpu_id != arg))
			result = -EINVAL;
		else
			vm->max_vcpu_id = (u32)arg;
		lock_release(&vm->lock);
		return result;
	}
	return -EINVAL;
}

int capability_enable_vcpu(struct vcpu *vcpu, const struct kvm_enable_cap *cap)
{
	if (cap->flags || cap->cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
		return -EINVAL;
	vcpu->enforce_pv_features = cap->args[0];
	return 0;
}
