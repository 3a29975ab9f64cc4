// SPDX-License-Identifier: MIT
// Every ioctl, one row each: number, the kind of descriptor it is for, what it needs, and who does it.
// The number tells the size of the argument and which way it is copied.
//
// A handler gets the argument as a copy of ours; what it leaves there is copied back if the number
// says so. Handlers for arrays of variable length (ARRAY) use the client's pointer themselves.
#include "cetkvm/cetkvm.h"
#include "cpu/fpu.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct call {
	struct vm *vm;	   // NULL on the system's descriptor
	struct vcpu *vcpu; // NULL but on a vCPU's, whose mutex is held
	void *arg;	   // our copy
	void *client;	   // the client's pointer
	unsigned long value; // the argument as a number
};

enum needs {
	ARRAY = 1,	// the argument is of variable length
	LAPIC = 2,	// -EINVAL without an in-kernel local APIC
	FULL_CHIP = 4,	// -ENXIO without in-kernel PIC and I/O APIC
	NO_ARG = 8,	// -EINVAL unless the argument is 0
	ANY_CHIP = 16,	// -ENXIO without in-kernel local APICs
};

typedef long ioctl_handler(struct call *call);

struct ioctl_row {
	u32 number;
	u8 kind;
	const char *name;
	ioctl_handler *handler;
	u8 needs;
	const char *note; // for people, or NULL
};

#define HANDLER(name) static long name(struct call *c)

// ---- system ----
HANDLER(get_api_version) { return KVM_API_VERSION; }
HANDLER(create_vm) { return c->value > 0xffffffffu ? -EINVAL : vm_create((u32)c->value); }
HANDLER(get_vcpu_mmap_size) { return 3 * PAGE_SIZE; }
HANDLER(check_extension) { return capability(c->vm, c->value); }
HANDLER(get_supported_cpuid) { return cpuid_supported_ioctl(c->client); }
HANDLER(get_emulated_cpuid) { return cpuid_emulated_ioctl(c->client); }
HANDLER(get_msr_index_list) { return msr_list_ioctl(c->client, false); }
HANDLER(get_msr_feature_list) { return msr_list_ioctl(c->client, true); }
HANDLER(get_feature_msrs) { return msrs_ioctl(NULL, c->client, false); }

HANDLER(get_mce_cap)
{
	*(u64 *)c->arg = MCE_CAP_SUPPORTED;
	return 0;
}

// Of the system there is one attribute: the components that guests can have with permission.
static long system_attribute(const struct kvm_device_attr *attr, bool get)
{
	u64 supported = xsave_supported();

	if (attr->group || attr->attr != KVM_X86_XCOMP_GUEST_SUPP)
		return -ENXIO;
	return get ? copy_to_client((void *)attr->addr, &supported, sizeof(supported)) : 0;
}

HANDLER(get_system_attr) { return system_attribute(c->arg, true); }
HANDLER(has_system_attr) { return system_attribute(c->arg, false); }

// ---- VM ----
HANDLER(set_user_memory_region) { return memslot_set(c->vm, c->arg); }

HANDLER(set_user_memory_region2)
{
	const struct kvm_userspace_memory_region2 *r = c->arg;
	struct kvm_userspace_memory_region plain = { .slot = r->slot, .flags = r->flags,
		.guest_phys_addr = r->guest_phys_addr, .memory_size = r->memory_size,
		.userspace_addr = r->userspace_addr };

	return memslot_set(c->vm, &plain);
}

// Memory that KVM would need for real mode on some processors.
HANDLER(set_tss_addr) { return c->value > (u32)-(3 * PAGE_SIZE) ? -EINVAL : 0; }
HANDLER(set_identity_map_addr) { return vm_vcpu_count(c->vm) ? -EINVAL : 0; }

// There are no shadow pages to limit: the number is kept for who asks.
HANDLER(set_nr_mmu_pages)
{
	if (c->value < 64)
		return -EINVAL;
	c->vm->nr_mmu_pages = c->value;
	return 0;
}

HANDLER(get_nr_mmu_pages) { return (long)(c->vm->nr_mmu_pages & 0x7fffffff); }

HANDLER(set_boot_cpu_id)
{
	long result = 0;

	lock_take(&c->vm->lock);
	if (c->value >= (c->vm->max_vcpu_id ? c->vm->max_vcpu_id : MAX_VCPU_ID))
		result = -EINVAL;
	else if (c->vm->vcpu_count)
		result = -EBUSY;
	else
		c->vm->boot_cpu_id = (u32)c->value;
	lock_release(&c->vm->lock);
	return result;
}

HANDLER(create_irqchip) { return irq_create_chip(c->vm, false, IOAPIC_PINS); }

HANDLER(create_pit2)
{
	const struct kvm_pit_config *config = c->arg;
	struct irqchip *chip = c->vm->chip;
	long result = -EEXIST;

	if (!chip || !chip->pic_and_ioapic)
		return -ENOENT;
	lock_take(&c->vm->lock);
	if (!__atomic_load_n(&chip->pit.present, __ATOMIC_ACQUIRE)) {
		pit_create(chip, config->flags & KVM_PIT_SPEAKER_DUMMY);
		result = 0;
	}
	lock_release(&c->vm->lock);
	return result;
}

HANDLER(create_pit)
{
	struct kvm_pit_config config = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct call with = *c;

	with.arg = &config;
	return create_pit2(&with);
}

HANDLER(irq_line)
{
	struct kvm_irq_level *line = c->arg;

	// Nobody listens to a GSI without a route: status -1.
	line->status = irq_set_gsi(c->vm, line->irq, IRQ_SOURCE_USER, line->level);
	return 0;
}

HANDLER(get_irqchip)
{
	struct kvm_irqchip *state = c->arg;

	switch (state->chip_id) {
	case KVM_IRQCHIP_PIC_MASTER:
	case KVM_IRQCHIP_PIC_SLAVE:
		pic_get_state(c->vm->chip, state->chip_id, &state->chip.pic);
		return 0;
	case KVM_IRQCHIP_IOAPIC:
		ioapic_get_state(c->vm->chip, &state->chip.ioapic);
		return 0;
	}
	return -EINVAL;
}

HANDLER(set_irqchip)
{
	struct kvm_irqchip state;

	// Its number says that it is a read.
	if (copy_from_client(&state, c->client, sizeof(state)))
		return -EFAULT;
	switch (state.chip_id) {
	case KVM_IRQCHIP_PIC_MASTER:
	case KVM_IRQCHIP_PIC_SLAVE:
		pic_set_state(c->vm->chip, state.chip_id, &state.chip.pic);
		return 0;
	case KVM_IRQCHIP_IOAPIC:
		ioapic_set_state(c->vm->chip, &state.chip.ioapic);
		return 0;
	}
	return -EINVAL;
}

static bool has_pit(const struct vm *vm)
{
	return vm->chip && __atomic_load_n(&vm->chip->pit.present, __ATOMIC_ACQUIRE);
}

HANDLER(get_pit2)
{
	if (!has_pit(c->vm))
		return -ENXIO;
	pit_get_state(c->vm->chip, c->arg);
	return 0;
}

HANDLER(set_pit2)
{
	if (!has_pit(c->vm))
		return -ENXIO;
	return pit_set_state(c->vm->chip, c->arg) ? 0 : -EINVAL;
}

HANDLER(reinject_control)
{
	struct kvm_reinject_control control;

	// Its number says that it has no argument.
	if (copy_from_client(&control, c->client, sizeof(control)))
		return -EFAULT;
	if (!has_pit(c->vm))
		return -ENXIO;
	pit_set_reinject(c->vm->chip, control.pit_reinject);
	return 0;
}

HANDLER(set_gsi_routing)
{
	struct kvm_irq_routing routing;
	struct kvm_irq_routing_entry *entries;
	long result;
	size_t size;

	memcpy(&routing, c->arg, sizeof(routing));
	if (!c->vm->chip || routing.nr > MAX_GSI || routing.flags)
		return -EINVAL;
	size = routing.nr * sizeof(*entries);
	entries = malloc(size + 1);
	if (!entries)
		return -ENOMEM;
	result = copy_from_client(entries, client_at(c->client, sizeof(routing)), size);
	if (!result)
		result = irq_set_routing(c->vm, entries, routing.nr);
	free(entries);
	return result;
}

HANDLER(signal_msi)
{
	const struct kvm_msi *msi = c->arg;
	int n;

	if (!c->vm->chip || msi->flags || !irq_msi_valid(c->vm, msi->address_hi))
		return -EINVAL;
	vm_code_client_wrote(c->vm->code);
	n = apic_send_msi(c->vm->chip, msi->address_lo | (u64)msi->address_hi << 32, msi->data,
			  c->vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS);
	return n < 0 ? 0 : n;
}

HANDLER(ioeventfd) { return ioeventfd_set(c->vm, c->arg); }
HANDLER(irqfd) { return irqfd_set(c->vm, c->arg); }
HANDLER(register_coalesced) { return coalesced_zone_set(c->vm, c->arg, true); }
HANDLER(unregister_coalesced) { return coalesced_zone_set(c->vm, c->arg, false); }
HANDLER(create_vcpu) { return c->value > 0xffffffffu ? -EINVAL : vcpu_create(c->vm, (u32)c->value); }
HANDLER(get_dirty_log) { return memslot_get_dirty_log(c->vm, c->arg); }
HANDLER(clear_dirty_log) { return memslot_clear_dirty_log(c->vm, c->arg); }
HANDLER(get_vm_stats) { return stats_vm_fd(c->vm); }
HANDLER(get_vcpu_stats) { return stats_vcpu_fd(c->vcpu); }
HANDLER(reset_dirty_rings) { return dirty_rings_reset(c->vm); }
HANDLER(enable_cap) { return capability_enable(c->vm, c->arg); }
HANDLER(set_msr_filter) { return msr_filter_set(c->vm, c->arg); }
HANDLER(create_device) { return -ENODEV; }

HANDLER(get_clock)
{
	struct kvm_clock_data *data = c->arg;
	struct timespec t;

	memset(data, 0, sizeof(*data));
	data->clock = clock_kvmclock(c->vm);
	data->host_tsc = __builtin_ia32_rdtsc();
	clock_gettime(CLOCK_REALTIME, &t);
	data->realtime = (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
	data->flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
	return 0;
}

HANDLER(set_clock)
{
	const struct kvm_clock_data *data = c->arg;
	u64 clock = data->clock, now;
	struct timespec t;

	if (data->flags & ~(u32)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC))
		return -EINVAL;
	if (data->flags & KVM_CLOCK_REALTIME) {
		// The time the machine was on its way counts.
		clock_gettime(CLOCK_REALTIME, &t);
		now = (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
		if (now > data->realtime)
			clock += now - data->realtime;
	}
	__atomic_store_n(&c->vm->clock_offset, (s64)(clock - clock_now()), __ATOMIC_SEQ_CST);
	clock_request_update_all(c->vm);
	return 0;
}

HANDLER(vm_get_tsc_khz) { return c->vm->tsc_khz; }

HANDLER(vm_set_tsc_khz)
{
	u32 khz = (u32)c->value;
	long result = -EINVAL;

	if (!clock_tsc_khz_valid(khz))
		return -EINVAL;
	lock_take(&c->vm->lock);
	if (!c->vm->vcpu_count) {
		c->vm->tsc_khz = khz ? khz : clock_host_tsc_khz();
		result = 0;
	}
	lock_release(&c->vm->lock);
	return result;
}

// ---- vCPU ----
HANDLER(run) { return vcpu_run(c->vcpu); }
HANDLER(get_regs) { regs_get(c->vcpu, c->arg); return 0; }
HANDLER(set_regs) { regs_set(c->vcpu, c->arg); return 0; }
HANDLER(get_sregs) { sregs_get(c->vcpu, c->arg); return 0; }
HANDLER(set_sregs) { return sregs_set(c->vcpu, c->arg); }
HANDLER(get_sregs2) { sregs2_get(c->vcpu, c->arg); return 0; }
HANDLER(set_sregs2) { return sregs2_set(c->vcpu, c->arg); }
HANDLER(set_cpuid2) { return cpuid_set_ioctl(c->vcpu, c->client); }
HANDLER(get_cpuid2) { return cpuid_get_ioctl(c->vcpu, c->client); }
HANDLER(get_msrs) { return msrs_ioctl(c->vcpu, c->client, false); }
HANDLER(set_msrs) { return msrs_ioctl(c->vcpu, c->client, true); }
HANDLER(get_fpu) { return fpu_ioctl_get(c->vcpu, c->arg); }
HANDLER(set_fpu) { return fpu_ioctl_set(c->vcpu, c->arg); }
HANDLER(get_xsave) { return xsave_get(c->vcpu, c->client, false); }
HANDLER(get_xsave2) { return xsave_get(c->vcpu, c->client, true); }
HANDLER(set_xsave) { return xsave_set(c->vcpu, c->client); }
HANDLER(get_xcrs) { xcrs_get(c->vcpu, c->arg); return 0; }
HANDLER(set_xcrs) { return xcrs_set(c->vcpu, c->arg); }
HANDLER(get_debugregs) { debugregs_get(c->vcpu, c->arg); return 0; }
HANDLER(set_debugregs) { return debugregs_set(c->vcpu, c->arg); }
HANDLER(get_events) { events_get(c->vcpu, c->arg); return 0; }
HANDLER(set_events) { return events_set(c->vcpu, c->arg); }
HANDLER(set_guest_debug) { return guest_debug_set(c->vcpu, c->arg); }
HANDLER(do_translate) { translate(c->vcpu, c->arg); return 0; }
HANDLER(get_one_reg) { return one_reg(c->vcpu, c->arg, false); }
HANDLER(set_one_reg) { return one_reg(c->vcpu, c->arg, true); }
HANDLER(get_reg_list) { return reg_list(c->vcpu, c->client); }
HANDLER(vcpu_enable_cap) { return capability_enable_vcpu(c->vcpu, c->arg); }
HANDLER(get_tsc_khz) { return c->vcpu->tsc_khz; }
HANDLER(setup_mce) { return cpu_setup_mce(c->vcpu->cpu, *(u64 *)c->arg); }
HANDLER(set_mce) { return mce_set(c->vcpu, c->arg); }

HANDLER(get_mp_state)
{
	((struct kvm_mp_state *)c->arg)->mp_state = mp_state_get(c->vcpu);
	return 0;
}

HANDLER(set_mp_state) { return mp_state_set(c->vcpu, ((struct kvm_mp_state *)c->arg)->mp_state); }

HANDLER(get_lapic)
{
	memset(c->arg, 0, sizeof(struct kvm_lapic_state));
	lapic_get_state(c->vcpu->lapic, c->arg, c->vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS);
	return 0;
}

HANDLER(set_lapic)
{
	bool wide = c->vm->x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS;

	return lapic_set_state(c->vcpu->lapic, c->arg, wide) ? 0 : -EINVAL;
}

HANDLER(interrupt)
{
	const struct kvm_interrupt *irq = c->arg;

	if (irq->irq >= 256)
		return -EINVAL;
	if (c->vcpu->lapic && c->vm->chip->pic_and_ioapic)
		return -ENXIO;
	if (c->vcpu->lapic && c->vcpu->queued_interrupt >= 0)
		return -EEXIST;
	c->vcpu->queued_interrupt = (int)irq->irq;
	cpu_request(c->vcpu->cpu, REQ_IRQ);
	return 0;
}

HANDLER(nmi) { vcpu_wake(c->vcpu, WAKE_NMI); return 0; }
HANDLER(smi) { vcpu_wake(c->vcpu, WAKE_SMI); return 0; }

HANDLER(set_signal_mask)
{
	struct kvm_signal_mask mask;
	u64 signals;

	if (!c->client) {
		c->vcpu->signal_mask_set = false;
		return 0;
	}
	if (copy_from_client(&mask, c->client, sizeof(mask)))
		return -EFAULT;
	if (mask.len != 8)
		return -EINVAL;
	if (copy_from_client(&signals, client_at(c->client, sizeof(mask)), 8))
		return -EFAULT;
	c->vcpu->signal_mask_value = signals;
	c->vcpu->signal_mask_set = true;
	return 0;
}

HANDLER(set_tsc_khz)
{
	return clock_set_tsc_khz(c->vcpu, (u32)c->value);
}

HANDLER(kvmclock_ctrl)
{
	if (!(c->vcpu->system_time_msr & 1))
		return -EINVAL;
	c->vcpu->guest_stopped = true;
	clock_request_update(c->vcpu);
	return 0;
}

// ---- attributes: KVM_VCPU_TSC_CTRL is the only group ----
static long tsc_attribute(struct call *c, bool set)
{
	const struct kvm_device_attr *attr = c->arg;
	u64 offset = c->vcpu->tsc_offset;
	void *client = (void *)attr->addr;

	if (attr->flags || attr->group != KVM_VCPU_TSC_CTRL || attr->attr != KVM_VCPU_TSC_OFFSET)
		return -ENXIO;
	if (!set)
		return copy_to_client(client, &offset, sizeof(offset));
	if (copy_from_client(&offset, client, sizeof(offset)))
		return -EFAULT;
	clock_set_tsc_offset(c->vcpu, offset);
	return 0;
}

HANDLER(get_device_attr) { return tsc_attribute(c, false); }
HANDLER(set_device_attr) { return tsc_attribute(c, true); }

HANDLER(has_device_attr)
{
	const struct kvm_device_attr *attr = c->arg;

	return attr->flags || attr->group != KVM_VCPU_TSC_CTRL || attr->attr != KVM_VCPU_TSC_OFFSET ? -ENXIO : 0;
}

// The guest's task priority is never reported to user space, and needs no help from it.
HANDLER(tpr_access_reporting) { return ((const struct kvm_tpr_access_ctl *)c->arg)->flags ? -EINVAL : 0; }
HANDLER(set_vapic_addr) { return 0; }

#define SYSTEM(request, ...) { .kind = FD_SYSTEM, .number = request, .name = #request, .handler = __VA_ARGS__ },
#define VM(request, ...) { .kind = FD_VM, .number = request, .name = #request, .handler = __VA_ARGS__ },
#define VCPU(request, ...) { .kind = FD_VCPU, .number = request, .name = #request, .handler = __VA_ARGS__ },
#define NOTE(text) .note = (text)
#define NEEDS(what) .needs = (what)
static const struct ioctl_row rows[] = {
	SYSTEM(KVM_GET_API_VERSION, get_api_version, NEEDS(NO_ARG))
	SYSTEM(KVM_CREATE_VM, create_vm, NOTE("type 0 only"))
	SYSTEM(KVM_GET_VCPU_MMAP_SIZE, get_vcpu_mmap_size, NEEDS(NO_ARG))
	SYSTEM(KVM_CHECK_EXTENSION, check_extension)
	SYSTEM(KVM_GET_SUPPORTED_CPUID, get_supported_cpuid, NEEDS(ARRAY))
	SYSTEM(KVM_GET_EMULATED_CPUID, get_emulated_cpuid, NEEDS(ARRAY), NOTE("features that are there on request only"))
	SYSTEM(KVM_GET_MSR_INDEX_LIST, get_msr_index_list, NEEDS(ARRAY))
	SYSTEM(KVM_GET_MSR_FEATURE_INDEX_LIST, get_msr_feature_list, NEEDS(ARRAY))
	SYSTEM(KVM_GET_MSRS, get_feature_msrs, NEEDS(ARRAY))
	SYSTEM(KVM_X86_GET_MCE_CAP_SUPPORTED, get_mce_cap)
	SYSTEM(KVM_GET_DEVICE_ATTR, get_system_attr, NOTE("KVM_X86_XCOMP_GUEST_SUPP"))
	SYSTEM(KVM_HAS_DEVICE_ATTR, has_system_attr)

	VM(KVM_CHECK_EXTENSION, check_extension)
	VM(KVM_SET_USER_MEMORY_REGION, set_user_memory_region)
	VM(KVM_SET_USER_MEMORY_REGION2, set_user_memory_region2)
	VM(KVM_SET_TSS_ADDR, set_tss_addr, NOTE("checked; real mode needs no such memory here"))
	VM(KVM_SET_IDENTITY_MAP_ADDR, set_identity_map_addr, NOTE("checked; real mode needs no such memory here"))
	VM(KVM_SET_NR_MMU_PAGES, set_nr_mmu_pages, NOTE("kept; there are no shadow pages"))
	VM(KVM_GET_NR_MMU_PAGES, get_nr_mmu_pages, NOTE("what was set"))
	VM(KVM_SET_BOOT_CPU_ID, set_boot_cpu_id)
	VM(KVM_CREATE_IRQCHIP, create_irqchip)
	VM(KVM_CREATE_PIT, create_pit)
	VM(KVM_CREATE_PIT2, create_pit2)
	VM(KVM_IRQ_LINE, irq_line, NEEDS(ANY_CHIP))
	VM(KVM_IRQ_LINE_STATUS, irq_line, NEEDS(ANY_CHIP))
	VM(KVM_GET_IRQCHIP, get_irqchip, NEEDS(FULL_CHIP))
	VM(KVM_SET_IRQCHIP, set_irqchip, NEEDS(FULL_CHIP | ARRAY))
	VM(KVM_GET_PIT2, get_pit2)
	VM(KVM_SET_PIT2, set_pit2)
	VM(KVM_REINJECT_CONTROL, reinject_control, NEEDS(ARRAY))
	VM(KVM_SET_GSI_ROUTING, set_gsi_routing)
	VM(KVM_SIGNAL_MSI, signal_msi)
	VM(KVM_IOEVENTFD, ioeventfd)
	VM(KVM_IRQFD, irqfd)
	VM(KVM_REGISTER_COALESCED_MMIO, register_coalesced)
	VM(KVM_UNREGISTER_COALESCED_MMIO, unregister_coalesced)
	VM(KVM_CREATE_VCPU, create_vcpu)
	VM(KVM_GET_DIRTY_LOG, get_dirty_log)
	VM(KVM_CLEAR_DIRTY_LOG, clear_dirty_log)
	VM(KVM_GET_STATS_FD, get_vm_stats)
	VM(KVM_RESET_DIRTY_RINGS, reset_dirty_rings)
	VM(KVM_ENABLE_CAP, enable_cap)
	VM(KVM_X86_SET_MSR_FILTER, set_msr_filter)
	VM(KVM_CREATE_DEVICE, create_device, NOTE("there are no device types: ENODEV"))
	VM(KVM_GET_CLOCK, get_clock)
	VM(KVM_SET_CLOCK, set_clock)
	VM(KVM_GET_TSC_KHZ, vm_get_tsc_khz)
	VM(KVM_SET_TSC_KHZ, vm_set_tsc_khz)

	VCPU(KVM_RUN, run, NEEDS(NO_ARG))
	VCPU(KVM_GET_REGS, get_regs)
	VCPU(KVM_SET_REGS, set_regs)
	VCPU(KVM_GET_SREGS, get_sregs)
	VCPU(KVM_SET_SREGS, set_sregs)
	VCPU(KVM_GET_SREGS2, get_sregs2)
	VCPU(KVM_SET_SREGS2, set_sregs2)
	VCPU(KVM_SET_CPUID2, set_cpuid2, NEEDS(ARRAY))
	VCPU(KVM_GET_CPUID2, get_cpuid2, NEEDS(ARRAY))
	VCPU(KVM_GET_MSRS, get_msrs, NEEDS(ARRAY))
	VCPU(KVM_SET_MSRS, set_msrs, NEEDS(ARRAY))
	VCPU(KVM_GET_FPU, get_fpu)
	VCPU(KVM_SET_FPU, set_fpu)
	VCPU(KVM_GET_XSAVE, get_xsave, NEEDS(ARRAY))
	VCPU(KVM_GET_XSAVE2, get_xsave2, NEEDS(ARRAY))
	VCPU(KVM_SET_XSAVE, set_xsave, NEEDS(ARRAY))
	VCPU(KVM_GET_XCRS, get_xcrs)
	VCPU(KVM_SET_XCRS, set_xcrs)
	VCPU(KVM_GET_DEBUGREGS, get_debugregs)
	VCPU(KVM_SET_DEBUGREGS, set_debugregs)
	VCPU(KVM_GET_VCPU_EVENTS, get_events)
	VCPU(KVM_SET_VCPU_EVENTS, set_events)
	VCPU(KVM_GET_MP_STATE, get_mp_state)
	VCPU(KVM_SET_MP_STATE, set_mp_state)
	VCPU(KVM_GET_LAPIC, get_lapic, NEEDS(LAPIC))
	VCPU(KVM_SET_LAPIC, set_lapic, NEEDS(LAPIC))
	VCPU(KVM_INTERRUPT, interrupt)
	VCPU(KVM_NMI, nmi)
	VCPU(KVM_SMI, smi)
	VCPU(KVM_SET_SIGNAL_MASK, set_signal_mask, NEEDS(ARRAY))
	VCPU(KVM_SET_GUEST_DEBUG, set_guest_debug)
	VCPU(KVM_TRANSLATE, do_translate)
	VCPU(KVM_GET_ONE_REG, get_one_reg)
	VCPU(KVM_SET_ONE_REG, set_one_reg)
	VCPU(KVM_GET_REG_LIST, get_reg_list, NEEDS(ARRAY))
	VCPU(KVM_ENABLE_CAP, vcpu_enable_cap)
	VCPU(KVM_SET_TSC_KHZ, set_tsc_khz)
	VCPU(KVM_GET_TSC_KHZ, get_tsc_khz)
	VCPU(KVM_KVMCLOCK_CTRL, kvmclock_ctrl)
	VCPU(KVM_GET_STATS_FD, get_vcpu_stats)
	VCPU(KVM_GET_DEVICE_ATTR, get_device_attr)
	VCPU(KVM_SET_DEVICE_ATTR, set_device_attr)
	VCPU(KVM_HAS_DEVICE_ATTR, has_device_attr)
	VCPU(KVM_X86_SETUP_MCE, setup_mce)
	VCPU(KVM_X86_SET_MCE, set_mce)
	VCPU(KVM_TPR_ACCESS_REPORTING, tpr_access_reporting, NEEDS(LAPIC), NOTE("accepted; there is nothing to report"))
	VCPU(KVM_SET_VAPIC_ADDR, set_vapic_addr, NEEDS(LAPIC), NOTE("accepted; the guest needs no help with its task priority"))
};

// ---- the table for people ----
__attribute__((visibility("default"))) int cetkvm_list_ioctl(unsigned index, struct cetkvm_ioctl *out)
{
	static const char *const objects[] = { [FD_SYSTEM] = "/dev/kvm", [FD_VM] = "machine", [FD_VCPU] = "vCPU" };
	const struct ioctl_row *row;

	if (index >= sizeof(rows) / sizeof(*rows)) {
		errno = ENOENT;
		return -1;
	}
	row = &rows[index];
	*out = (struct cetkvm_ioctl){ .name = row->name, .number = row->number, .note = row->note ? row->note : "",
		.object = objects[row->kind],
		.needs = row->needs & LAPIC	? "needs an in-kernel local APIC" :
			 row->needs & FULL_CHIP ? "needs an in-kernel PIC and I/O APIC" :
			 row->needs & ANY_CHIP	? "needs an in-kernel interrupt controller" :
						  "" };
	return 0;
}

// ---- dispatch ----
static const struct ioctl_row *find(enum fd_kind kind, u32 number)
{
	// Mostly it is the same as before: KVM_RUN.
	static __thread const struct ioctl_row *last __attribute__((tls_model("initial-exec")));

	if (last && last->number == number && last->kind == kind)
		return last;
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (rows[i].number == number && rows[i].kind == kind)
			return last = &rows[i];
	return NULL;
}

static long check_needs(const struct ioctl_row *row, const struct call *c)
{
	if ((row->needs & NO_ARG) && c->value)
		return -EINVAL;
	if ((row->needs & LAPIC) && !c->vcpu->lapic)
		return -EINVAL;
	if ((row->needs & ANY_CHIP) && !c->vm->chip)
		return -ENXIO;
	if ((row->needs & FULL_CHIP) && !(c->vm->chip && c->vm->chip->pic_and_ioapic))
		return -ENXIO;
	return 0;
}

static long copy_and_handle(const struct ioctl_row *row, struct call *c)
{
	u64 buffer[1088 / 8];
	unsigned size = row->needs & ARRAY ? 0 : _IOC_SIZE(row->number);
	long result = check_needs(row, c);

	if (result)
		return result;
	if (size > sizeof(buffer))
		return -EINVAL;
	c->arg = buffer;
	if (size && (_IOC_DIR(row->number) & _IOC_WRITE)) {
		if (copy_from_client(buffer, c->client, size))
			return -EFAULT;
	} else {
		memset(buffer, 0, size);
	}
	result = row->handler(c);
	if (result >= 0 && size && (_IOC_DIR(row->number) & _IOC_READ) && copy_to_client(c->client, buffer, size))
		return -EFAULT;
	return result;
}

static long dispatch(const struct file *file, u32 number, unsigned long value)
{
	enum fd_kind kind = file_kind(file);
	struct call c = { .client = (void *)value, .value = value };
	const struct ioctl_row *row = find(kind, number);
	long result;

	if (kind == FD_VCPU) {
		c.vcpu = file_object(file);
		c.vm = c.vcpu->vm;
	} else if (kind == FD_VM) {
		c.vm = file_object(file);
	}
	if (c.vm && c.vm->process_generation != fd_process_generation())
		return -EIO;
	if (!row)
		return kind == FD_VM ? -ENOTTY : -EINVAL;
	if (!c.vcpu)
		return copy_and_handle(row, &c);
	signals_let_faults_come();
	if (number == KVM_RUN)
		signals_enter_run(c.vcpu);
	lock_take(&c.vcpu->mutex);
	result = copy_and_handle(row, &c);
	lock_release(&c.vcpu->mutex);
	if (number == KVM_RUN)
		signals_leave_run();
	return result;
}

__attribute__((visibility("default"))) int cetkvm_ioctl(int fd, unsigned long request, ...)
{
	struct fpu_thread_state registers;
	struct file *file;
	unsigned long value;
	va_list args;
	long result;

	// To the client this is a system call: every register is as before, those that C may use too.
	fpu_thread_save(&registers);
	signals_enter();
	file = file_get(fd);
	va_start(args, request);
	value = va_arg(args, unsigned long);
	va_end(args);
	if (!file) {
		// Not ours: what the kernel says of a file that has no ioctls, or of no file at all.
		result = fcntl(fd, F_GETFD) < 0 ? -EBADF : -ENOTTY;
	} else {
		result = dispatch(file, (u32)request, value);
		file_put(file);
	}
	signals_leave();
	if (result < 0)
		errno = (int)-result;
	fpu_thread_restore(&registers);
	return result < 0 ? -1 : (int)result;
}

__attribute__((visibility("default"))) const char *cetkvm_host_problem(void)
{
	return cpu_host_problem();
}

__attribute__((visibility("default"))) int cetkvm_open(void)
{
	int fd;

	if (cpu_host_problem()) {
		errno = ENODEV;
		return -1;
	}
	signals_enter();
	clock_calibrate();
	fd = memory_file("kvm", 0);
	if (fd >= 0)
		fd = fd_install(fd, FD_SYSTEM, NULL);
	signals_leave();
	if (fd >= 0)
		return fd;
	errno = -fd;
	return -1;
}
