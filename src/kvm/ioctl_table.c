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
	u8 kind, needs;
	ioctl_handler *handler;
	const char *note; // for people, or NULL
	const char *name;
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
	u64 cap = MCE_CAP_SUPPORTED;

	return copy_to_client(c->client, &cap, sizeof(cap));
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

HANDLER(set_tss_addr)
{
	if (c->value > 0xffffffffu - 3 * PAGE_SIZE)
		return -EINVAL;
	c->vm->tss_addr = c->value;
	return 0;
}

HANDLER(set_identity_map_addr)
{
	if (vm_vcpu_count(c->vm))
		return -EINVAL;
	memcpy(&c->vm->identity_map_addr, c->arg, 8);
	return 0;
}

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

	if (!c->client) {
		c->vcpu->signal_mask_set = false;
		return 0;
	}
	if (copy_from_client(&mask, c->client, sizeof(mask)))
		return -EFAULT;
	if (mask.len != 8)
		return -EINVAL;
	if (copy_from_client(&c->vcpu->signal_mask_value, client_at(c->client, sizeof(mask)), 8))
		return -EFAULT;
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
HANDLER(accept) { return 0; }

#define ROW(number, ...) { number, __VA_ARGS__, .name = #number }
static const struct ioctl_row rows[] = {
	ROW(KVM_GET_API_VERSION, FD_SYSTEM, NO_ARG, get_api_version),
	ROW(KVM_CREATE_VM, FD_SYSTEM, 0, create_vm, "type 0 only"),
	ROW(KVM_GET_VCPU_MMAP_SIZE, FD_SYSTEM, NO_ARG, get_vcpu_mmap_size),
	ROW(KVM_CHECK_EXTENSION, FD_SYSTEM, 0, check_extension),
	ROW(KVM_GET_SUPPORTED_CPUID, FD_SYSTEM, ARRAY, get_supported_cpuid),
	ROW(KVM_GET_EMULATED_CPUID, FD_SYSTEM, ARRAY, get_emulated_cpuid, "features that are there on request only"),
	ROW(KVM_GET_MSR_INDEX_LIST, FD_SYSTEM, ARRAY, get_msr_index_list),
	ROW(KVM_GET_MSR_FEATURE_INDEX_LIST, FD_SYSTEM, ARRAY, get_msr_feature_list),
	ROW(KVM_GET_MSRS, FD_SYSTEM, ARRAY, get_feature_msrs),
	ROW(KVM_X86_GET_MCE_CAP_SUPPORTED, FD_SYSTEM, ARRAY, get_mce_cap),
	ROW(KVM_GET_DEVICE_ATTR, FD_SYSTEM, 0, get_system_attr, "KVM_X86_XCOMP_GUEST_SUPP"),
	ROW(KVM_HAS_DEVICE_ATTR, FD_SYSTEM, 0, has_system_attr),

	ROW(KVM_CHECK_EXTENSION, FD_VM, 0, check_extension),
	ROW(KVM_SET_USER_MEMORY_REGION, FD_VM, 0, set_user_memory_region),
	ROW(KVM_SET_USER_MEMORY_REGION2, FD_VM, 0, set_user_memory_region2),
	ROW(KVM_SET_TSS_ADDR, FD_VM, 0, set_tss_addr, "kept; real mode needs no such memory here"),
	ROW(KVM_SET_IDENTITY_MAP_ADDR, FD_VM, 0, set_identity_map_addr, "kept; real mode needs no such memory here"),
	ROW(KVM_SET_NR_MMU_PAGES, FD_VM, 0, set_nr_mmu_pages, "kept; there are no shadow pages"),
	ROW(KVM_GET_NR_MMU_PAGES, FD_VM, 0, get_nr_mmu_pages, "what was set"),
	ROW(KVM_SET_BOOT_CPU_ID, FD_VM, 0, set_boot_cpu_id),
	ROW(KVM_CREATE_IRQCHIP, FD_VM, 0, create_irqchip),
	ROW(KVM_CREATE_PIT, FD_VM, 0, create_pit),
	ROW(KVM_CREATE_PIT2, FD_VM, 0, create_pit2),
	ROW(KVM_IRQ_LINE, FD_VM, ANY_CHIP, irq_line),
	ROW(KVM_IRQ_LINE_STATUS, FD_VM, ANY_CHIP, irq_line),
	ROW(KVM_GET_IRQCHIP, FD_VM, FULL_CHIP, get_irqchip),
	ROW(KVM_SET_IRQCHIP, FD_VM, FULL_CHIP | ARRAY, set_irqchip),
	ROW(KVM_GET_PIT2, FD_VM, 0, get_pit2),
	ROW(KVM_SET_PIT2, FD_VM, 0, set_pit2),
	ROW(KVM_REINJECT_CONTROL, FD_VM, ARRAY, reinject_control),
	ROW(KVM_SET_GSI_ROUTING, FD_VM, 0, set_gsi_routing),
	ROW(KVM_SIGNAL_MSI, FD_VM, 0, signal_msi),
	ROW(KVM_IOEVENTFD, FD_VM, 0, ioeventfd),
	ROW(KVM_IRQFD, FD_VM, 0, irqfd),
	ROW(KVM_REGISTER_COALESCED_MMIO, FD_VM, 0, register_coalesced),
	ROW(KVM_UNREGISTER_COALESCED_MMIO, FD_VM, 0, unregister_coalesced),
	ROW(KVM_CREATE_VCPU, FD_VM, 0, create_vcpu),
	ROW(KVM_GET_DIRTY_LOG, FD_VM, 0, get_dirty_log),
	ROW(KVM_CLEAR_DIRTY_LOG, FD_VM, 0, clear_dirty_log),
	ROW(KVM_GET_STATS_FD, FD_VM, 0, get_vm_stats),
	ROW(KVM_RESET_DIRTY_RINGS, FD_VM, 0, reset_dirty_rings),
	ROW(KVM_ENABLE_CAP, FD_VM, 0, enable_cap),
	ROW(KVM_X86_SET_MSR_FILTER, FD_VM, 0, set_msr_filter),
	ROW(KVM_CREATE_DEVICE, FD_VM, 0, create_device, "there are no device types: ENODEV"),
	ROW(KVM_GET_CLOCK, FD_VM, 0, get_clock),
	ROW(KVM_SET_CLOCK, FD_VM, 0, set_clock),
	ROW(KVM_GET_TSC_KHZ, FD_VM, 0, vm_get_tsc_khz),
	ROW(KVM_SET_TSC_KHZ, FD_VM, 0, vm_set_tsc_khz),

	ROW(KVM_RUN, FD_VCPU, NO_ARG, run),
	ROW(KVM_GET_REGS, FD_VCPU, 0, get_regs),
	ROW(KVM_SET_REGS, FD_VCPU, 0, set_regs),
	ROW(KVM_GET_SREGS, FD_VCPU, 0, get_sregs),
	ROW(KVM_SET_SREGS, FD_VCPU, 0, set_sregs),
	ROW(KVM_GET_SREGS2, FD_VCPU, 0, get_sregs2),
	ROW(KVM_SET_SREGS2, FD_VCPU, 0, set_sregs2),
	ROW(KVM_SET_CPUID2, FD_VCPU, ARRAY, set_cpuid2),
	ROW(KVM_GET_CPUID2, FD_VCPU, ARRAY, get_cpuid2),
	ROW(KVM_GET_MSRS, FD_VCPU, ARRAY, get_msrs),
	ROW(KVM_SET_MSRS, FD_VCPU, ARRAY, set_msrs),
	ROW(KVM_GET_FPU, FD_VCPU, 0, get_fpu),
	ROW(KVM_SET_FPU, FD_VCPU, 0, set_fpu),
	ROW(KVM_GET_XSAVE, FD_VCPU, ARRAY, get_xsave),
	ROW(KVM_GET_XSAVE2, FD_VCPU, ARRAY, get_xsave2),
	ROW(KVM_SET_XSAVE, FD_VCPU, ARRAY, set_xsave),
	ROW(KVM_GET_XCRS, FD_VCPU, 0, get_xcrs),
	ROW(KVM_SET_XCRS, FD_VCPU, 0, set_xcrs),
	ROW(KVM_GET_DEBUGREGS, FD_VCPU, 0, get_debugregs),
	ROW(KVM_SET_DEBUGREGS, FD_VCPU, 0, set_debugregs),
	ROW(KVM_GET_VCPU_EVENTS, FD_VCPU, 0, get_events),
	ROW(KVM_SET_VCPU_EVENTS, FD_VCPU, 0, set_events),
	ROW(KVM_GET_MP_STATE, FD_VCPU, 0, get_mp_state),
	ROW(KVM_SET_MP_STATE, FD_VCPU, 0, set_mp_state),
	ROW(KVM_GET_LAPIC, FD_VCPU, LAPIC, get_lapic),
	ROW(KVM_SET_LAPIC, FD_VCPU, LAPIC, set_lapic),
	ROW(KVM_INTERRUPT, FD_VCPU, 0, interrupt),
	ROW(KVM_NMI, FD_VCPU, 0, nmi),
	ROW(KVM_SMI, FD_VCPU, 0, smi),
	ROW(KVM_SET_SIGNAL_MASK, FD_VCPU, ARRAY, set_signal_mask),
	ROW(KVM_SET_GUEST_DEBUG, FD_VCPU, 0, set_guest_debug),
	ROW(KVM_TRANSLATE, FD_VCPU, 0, do_translate),
	ROW(KVM_GET_ONE_REG, FD_VCPU, 0, get_one_reg),
	ROW(KVM_SET_ONE_REG, FD_VCPU, 0, set_one_reg),
	ROW(KVM_GET_REG_LIST, FD_VCPU, ARRAY, get_reg_list),
	ROW(KVM_ENABLE_CAP, FD_VCPU, 0, vcpu_enable_cap),
	ROW(KVM_SET_TSC_KHZ, FD_VCPU, 0, set_tsc_khz),
	ROW(KVM_GET_TSC_KHZ, FD_VCPU, 0, get_tsc_khz),
	ROW(KVM_KVMCLOCK_CTRL, FD_VCPU, 0, kvmclock_ctrl),
	ROW(KVM_GET_STATS_FD, FD_VCPU, 0, get_vcpu_stats),
	ROW(KVM_GET_DEVICE_ATTR, FD_VCPU, 0, get_device_attr),
	ROW(KVM_SET_DEVICE_ATTR, FD_VCPU, 0, set_device_attr),
	ROW(KVM_HAS_DEVICE_ATTR, FD_VCPU, 0, has_device_attr),
	ROW(KVM_X86_SETUP_MCE, FD_VCPU, 0, setup_mce),
	ROW(KVM_X86_SET_MCE, FD_VCPU, 0, set_mce),
	ROW(KVM_TPR_ACCESS_REPORTING, FD_VCPU, LAPIC, accept, "accepted; there is nothing to report"),
	ROW(KVM_SET_VAPIC_ADDR, FD_VCPU, LAPIC, accept, "accepted; the guest needs no help with its task priority"),
};

// ---- the table for people ----
__attribute__((visibility("default"))) int cetkvm_list_ioctl(unsigned index, struct cetkvm_ioctl *out)
{
	static const char *const objects[] = { [FD_SYSTEM] = "/dev/kvm", [FD_VM] = "machine", [FD_VCPU] = "vCPU" };
	const struct ioctl_row *row = &rows[index];

	if (index >= sizeof(rows) / sizeof(*rows)) {
		errno = ENOENT;
		return -1;
	}
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
