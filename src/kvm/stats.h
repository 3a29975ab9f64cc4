// SPDX-License-Identifier: MIT
// Counters that clients can read (stats.c). Names are KVM's where they count what KVM's count.
#ifndef CETKVM_KVM_STATS_H
#define CETKVM_KVM_STATS_H

#include "cpu/cpu.h"

#define VCPU_COUNTERS(C) \
	C(exits)	    /* times the vCPU stopped executing guest code */ \
	C(io_exits)	    /* port accesses left to user space */ \
	C(mmio_exits)	    /* memory accesses left to user space */ \
	C(signal_exits)	    /* KVM_RUN ended by a signal */ \
	C(irq_window_exits) \
	C(halt_exits)	    /* HLT executed */ \
	C(halt_wakeup)	    /* sleeps that ended with something to do */ \
	C(hypercalls) \
	C(irq_injections) \
	C(insn_emulation_fail)
#define VM_COUNTERS(C) C(remote_tlb_flush) /* times all vCPUs had to forget their translations */

#define COUNTER(name) u64 name;
struct vcpu_counters { VCPU_COUNTERS(COUNTER) };
struct vm_counters { VM_COUNTERS(COUNTER) };
#undef COUNTER

#endif
