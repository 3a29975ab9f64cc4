// SPDX-License-Identifier: MIT
// The KVM ABI: the system's <linux/kvm.h>, what newer kernels added to it, and its sizes checked.
#ifndef CETKVM_KVM_ABI_H
#define CETKVM_KVM_ABI_H

#include <linux/kvm.h>
#include <linux/types.h>

#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
struct kvm_userspace_memory_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
#endif
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif
#ifndef KVM_CLOCK_REALTIME
#define KVM_CLOCK_REALTIME (1 << 2)
#define KVM_CLOCK_HOST_TSC (1 << 3)
#endif

#ifndef ARCH_GET_XCOMP_GUEST_PERM
#define ARCH_GET_XCOMP_GUEST_PERM 0x1024
#define ARCH_REQ_XCOMP_GUEST_PERM 0x1025
#endif
#ifndef KVM_CAP_SYS_ATTRIBUTES
#define KVM_CAP_SYS_ATTRIBUTES 209
#endif
#ifndef KVM_X86_XCOMP_GUEST_SUPP
#define KVM_X86_XCOMP_GUEST_SUPP 0
#endif
#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7)
#endif

#define KVM_REG_ARCH_X86 0x2000000000000000ull
#define KVM_REG_X86_TYPE_MSR 2
#define KVM_REG_X86_TYPE_KVM 3
#define KVM_REG_X86_GUEST_SSP 0x2030000300000000ull
#define MSR_KVM_INTERNAL_GUEST_SSP 0x4b564dffu

#define MSR_KVM_WALL_CLOCK_OLD 0x11
#define MSR_KVM_SYSTEM_TIME_OLD 0x12
#define MSR_KVM_WALL_CLOCK 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME 0x4b564d01u
#define MSR_KVM_ASYNC_PF 0x4b564d02u
#define MSR_KVM_STEAL 0x4b564d03u
#define MSR_KVM_EOI 0x4b564d04u
#define MSR_KVM_POLL 0x4b564d05u
#define MSR_KVM_ASYNC_PF_INTERRUPT 0x4b564d06u
#define MSR_KVM_ASYNC_PF_ACKNOWLEDGE 0x4b564d07u

// CPUID 0x40000001.EAX
#define PV_CLOCKSOURCE (1u << 0)
#define PV_NOP_IO_DELAY (1u << 1)
#define PV_CLOCKSOURCE2 (1u << 3)
#define PV_ASYNC_PF (1u << 4)
#define PV_STEAL_TIME (1u << 5)
#define PV_EOI (1u << 6)
#define PV_UNHALT (1u << 7)
#define PV_SEND_IPI (1u << 11)
#define PV_POLL_CONTROL (1u << 12)
#define PV_SCHED_YIELD (1u << 13)
#define PV_ASYNC_PF_INT (1u << 14)
#define PV_CLOCKSOURCE_STABLE (1u << 24)

#define ABI_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)
ABI_SIZE(struct kvm_regs, 144);
ABI_SIZE(struct kvm_sregs, 312);
ABI_SIZE(struct kvm_sregs2, 320);
ABI_SIZE(struct kvm_fpu, 416);
ABI_SIZE(struct kvm_lapic_state, 1024);
ABI_SIZE(struct kvm_vcpu_events, 64);
ABI_SIZE(struct kvm_debugregs, 128);
ABI_SIZE(struct kvm_xcrs, 392);
ABI_SIZE(struct kvm_irqchip, 520);
ABI_SIZE(struct kvm_pit_state2, 112);
ABI_SIZE(struct kvm_clock_data, 48);
ABI_SIZE(struct kvm_msi, 32);
ABI_SIZE(struct kvm_irqfd, 32);
ABI_SIZE(struct kvm_ioeventfd, 64);
ABI_SIZE(struct kvm_userspace_memory_region, 32);
ABI_SIZE(struct kvm_userspace_memory_region2, 160);
ABI_SIZE(struct kvm_irq_routing_entry, 48);
ABI_SIZE(struct kvm_cpuid_entry2, 40);
ABI_SIZE(struct kvm_guest_debug, 72);
ABI_SIZE(struct kvm_translation, 24);
ABI_SIZE(struct kvm_enable_cap, 104);
ABI_SIZE(struct kvm_coalesced_mmio, 24);
_Static_assert(__builtin_offsetof(struct kvm_run, kvm_valid_regs) == 288, "kvm_run");

#endif
