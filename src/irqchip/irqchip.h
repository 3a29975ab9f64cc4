// SPDX-License-Identifier: MIT
// The interrupt controllers of one virtual machine: a local APIC per vCPU, and (unless they live in
// user space) one I/O APIC, a pair of 8259s and an 8254. What a processor is, is unknown here: a
// vCPU is an opaque pointer that the callbacks take.
//
// Who may touch what:
//   a local APIC's registers    its vCPU's thread, or a thread that keeps the vCPU from running
//   its IRR and TMR             anybody, by atomic operations
//   everything else             under irqchip->lock
// So a vCPU reads its APIC, signals EOI and sends interrupts without a lock. Callbacks may be
// called with the lock held.
#ifndef CETKVM_IRQCHIP_IRQCHIP_H
#define CETKVM_IRQCHIP_IRQCHIP_H

#include "base/futex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// What has arrived at a vCPU.
enum irqchip_wake {
	WAKE_IRQ = 1, // ask lapic_interrupt() and pic_pending()
	WAKE_NMI = 2,
	WAKE_INIT_SIPI = 4, // look at lapic->pending
	WAKE_SMI = 8,
};

struct irqchip_ops {
	// Nanoseconds of a clock that does not jump.
	uint64_t (*now)(void *vm);
	// When the vCPU's time-stamp counter reaches `tsc`, by that clock (the past, if it has).
	uint64_t (*tsc_to_time)(void *vcpu, uint64_t tsc);
	// From any thread.
	void (*wake)(void *vcpu, unsigned what);
	// The vCPU's APIC timer expires at `deadline` (0: never). Called by whoever owns the APIC's
	// registers. lapic_timer_poll() wants to be called then.
	void (*lapic_timer)(void *vcpu, uint64_t deadline);
	// The same for the 8254: pit_timer() wants to be called then. With the lock held.
	void (*pit_timer)(void *vm, uint64_t deadline);
	// The 8254 drives its interrupt line (GSI 0). Returns >0 if somebody took it.
	int (*pit_irq)(void *vm, bool level);
	// A pin of the I/O APIC (chip 2) or an 8259 (0, 1) was acknowledged by EOI. Without the lock: the
	// callee may lower the line.
	void (*acked)(void *vm, unsigned chip, unsigned pin);
	// EOI of a vector that eoi_exit_bitmap names (I/O APIC in user space).
	void (*eoi_exit)(void *vcpu, uint8_t vector);
};

// ---- messages to local APICs ----
enum delivery_mode {
	DELIVER_FIXED, DELIVER_LOWEST, DELIVER_SMI, DELIVER_RESERVED, DELIVER_NMI, DELIVER_INIT,
	DELIVER_SIPI, DELIVER_EXTINT,
};
enum shorthand { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

struct apic_message {
	uint32_t destination;
	uint8_t vector;
	uint8_t mode;	   // enum delivery_mode
	uint8_t shorthand; // enum shorthand
	bool logical;
	bool level;	   // trigger mode
	bool assert;	   // level of INIT
	bool msi_redirection_hint;
};

// ---- local APIC ----
#define APIC_BUS_CYCLE_NS 1 // unless said otherwise
#define APIC_ID 0x20
#define APIC_LVR 0x30
#define APIC_TPR 0x80
#define APIC_PPR 0xa0
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_TMR 0x180
#define APIC_IRR 0x200
#define APIC_ESR 0x280
#define APIC_ICR 0x300
#define APIC_ICR2 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_THERMAL 0x330
#define APIC_LVT_PERF 0x340
#define APIC_LVT_LINT0 0x350
#define APIC_LVT_LINT1 0x360
#define APIC_LVT_ERROR 0x370
#define APIC_TMICT 0x380
#define APIC_TMCCT 0x390
#define APIC_TDCR 0x3e0
#define APIC_SELF_IPI 0x3f0
#define APIC_REGS_SIZE 0x400

#define APIC_BASE_BSP (1u << 8)
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)
#define APIC_DEFAULT_BASE 0xfee00000u

enum { LAPIC_PENDING_INIT = 1, LAPIC_PENDING_SIPI = 2 };

struct irqchip;

struct lapic {
	struct irqchip *chip;
	void *vcpu;
	uint32_t id; // the vCPU's number: initial and x2APIC ID
	uint64_t base; // IA32_APIC_BASE
	uint64_t base_reserved; // bits of it above the physical address width
	// What the guest's CPUID offers.
	bool has_x2apic, has_tsc_deadline;
	uint8_t regs[APIC_REGS_SIZE] __attribute__((aligned(64)));

	// Timer. deadline: next expiry, 0 when stopped. period: of the periodic mode.
	uint64_t deadline, period;
	uint64_t tsc_deadline; // IA32_TSC_DEADLINE
	uint32_t error_pending; // bits for the ESR at its next write

	_Atomic uint32_t pending; // LAPIC_PENDING_*
	_Atomic uint8_t sipi_vector;
	uint32_t arbitration; // lowest-priority interrupts got so far
	uint64_t eoi_exit_bitmap[4];
};

// RESET, or INIT when `init`: IA32_APIC_BASE survives INIT.
void lapic_reset(struct lapic *lapic, bool init);

static inline bool lapic_enabled(const struct lapic *lapic)
{
	return __atomic_load_n(&lapic->base, __ATOMIC_RELAXED) & APIC_BASE_ENABLE;
}

static inline bool lapic_x2apic(const struct lapic *lapic)
{
	return (__atomic_load_n(&lapic->base, __ATOMIC_RELAXED) & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) ==
	       (APIC_BASE_ENABLE | APIC_BASE_X2APIC);
}

// Registers as memory sees them (xAPIC mode). Any offset and length within the page.
void lapic_read(struct lapic *lapic, unsigned offset, unsigned length, void *data);
void lapic_write(struct lapic *lapic, unsigned offset, unsigned length, const void *data);
// Registers as MSRs 0x800..0x8ff. false: #GP.
bool lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value);
// May IA32_APIC_BASE change from `old` to `value`, wherever the APIC is? `reserved`: bits that the guest's
// processor has not. `host`: transitions that only RESET makes are allowed.
bool apic_base_valid(uint64_t old, uint64_t value, uint64_t reserved, bool host);
// IA32_APIC_BASE. false: #GP or -EINVAL.
bool lapic_set_base(struct lapic *lapic, uint64_t value, bool host);
// IA32_TSC_DEADLINE: reads 0 and ignores writes in other timer modes.
uint64_t lapic_tsc_deadline(struct lapic *lapic);
void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t value);

// With the I/O APIC in user space: whose EOI it wants to hear of, if they are level-triggered. From any
// thread, one at a time. Vectors that are pending or in service stay in the set.
void lapic_set_eoi_exits(struct lapic *lapic, const uint64_t vectors[4]);

uint64_t lapic_cr8(const struct lapic *lapic);
void lapic_set_cr8(struct lapic *lapic, uint64_t value);

// Highest deliverable vector or -1; `acknowledge` moves it from IRR to ISR.
int lapic_interrupt(struct lapic *lapic, bool acknowledge);
// Does this vCPU take what the 8259 offers (LINT0 as ExtINT, or APIC disabled on the boot CPU)?
bool lapic_accepts_pic(const struct lapic *lapic);
// Local interrupt of another source (LVT register offset). False when masked.
bool lapic_local(struct lapic *lapic, unsigned lvt);

// Injects what the timer owes at `now`. Returns the next deadline or 0.
uint64_t lapic_timer_poll(struct lapic *lapic, uint64_t now);
// The guest's TSC was changed under IA32_TSC_DEADLINE.
void lapic_tsc_changed(struct lapic *lapic);

// struct kvm_lapic_state. `wide_id`: the ID register of x2APIC mode holds all 32 bits. Set: false
// if the image is not acceptable.
void lapic_get_state(struct lapic *lapic, void *regs, bool wide_id);
bool lapic_set_state(struct lapic *lapic, const void *regs, bool wide_id);

// Does the message reach this APIC?
bool lapic_matches(const struct lapic *target, const struct lapic *source,
		   const struct apic_message *message);
// Sends to all that match. Returns the number of APICs reached, -1 if none exists, 0 if refused.
int apic_send(struct irqchip *chip, struct lapic *source, const struct apic_message *message);
// A message-signalled interrupt by its address and data.
int apic_send_msi(struct irqchip *chip, uint64_t address, uint32_t data, bool x2apic_format);

// ---- 8259 pair ----
struct pic {
	uint8_t last_irr, irr, imr, isr;
	uint8_t priority_add; // number of the highest-priority input
	uint8_t irq_base;
	uint8_t read_isr, poll, special_mask;
	uint8_t init_state; // 0 operating, 1..3 waiting for ICW2..4
	uint8_t auto_eoi, rotate_on_auto_eoi, special_fully_nested;
	uint8_t init4;
	uint8_t elcr;
};

bool pic_owns_port(uint16_t port);
uint8_t pic_port_read(struct irqchip *chip, uint16_t port);
void pic_port_write(struct irqchip *chip, uint16_t port, uint8_t value);
// pin 0..15. Returns >0 delivered, 0 coalesced, <0 masked.
int pic_set_irq(struct irqchip *chip, unsigned pin, unsigned source, bool level);
bool pic_pending(struct irqchip *chip);
// INTA: the vector; acknowledges. The caller saw pic_pending(); may be spurious.
int pic_acknowledge(struct irqchip *chip);
// struct kvm_pic_state
void pic_get_state(struct irqchip *chip, unsigned which, void *state);
void pic_set_state(struct irqchip *chip, unsigned which, const void *state);

// ---- I/O APIC ----
#define IOAPIC_PINS 24
#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_SIZE 0x100u

struct ioapic {
	uint64_t base; // read without lock
	uint32_t select, id;
	uint32_t irr; // pins asserted
	uint32_t delivered; // of them, edges that have been sent: no news after a restore
	uint32_t notify; // see ioapic_set_notify()
	uint64_t redirection[IOAPIC_PINS];
	uint64_t vectors[4]; // whose EOI interests us; read without lock
};

void ioapic_read(struct irqchip *chip, unsigned offset, unsigned length, void *data);
void ioapic_write(struct irqchip *chip, unsigned offset, unsigned length, const void *data);
int ioapic_set_irq(struct irqchip *chip, unsigned pin, unsigned source, bool level);
void ioapic_eoi(struct irqchip *chip, uint8_t vector);
void ioapic_update_vectors(struct irqchip *chip); // after a change of pit.reinject, with the lock held
// Of which pins ops->acked() wants to hear also when they are edge-triggered.
void ioapic_set_notify(struct irqchip *chip, uint32_t pins);
// struct kvm_ioapic_state. Set: the image's pins that are asserted are delivered.
void ioapic_get_state(struct irqchip *chip, void *state);
void ioapic_set_state(struct irqchip *chip, const void *state);

// ---- 8254 ----
struct pit_channel {
	uint32_t count; // 1..0x10000
	uint16_t latched_count;
	uint8_t count_latched, status_latched, status;
	uint8_t read_state, write_state, write_latch;
	uint8_t rw_mode, mode, bcd, gate;
	uint64_t loaded_at;
};

struct pit {
	bool present, speaker_port, speaker_data, hpet_legacy;
	bool reinject;	  // ticks the guest has not taken are delivered later
	bool in_service;  // a tick was delivered and not yet acknowledged
	uint32_t pending; // ticks owed; read without lock
	uint64_t period, next; // of channel 0
	struct pit_channel channel[3];
};

bool pit_owns_port(const struct irqchip *chip, uint16_t port);
uint8_t pit_port_read(struct irqchip *chip, uint16_t port);
void pit_port_write(struct irqchip *chip, uint16_t port, uint8_t value);
void pit_create(struct irqchip *chip, bool speaker_port);
void pit_set_reinject(struct irqchip *chip, bool reinject);
void pit_timer(struct irqchip *chip, uint64_t now);
void pit_acked(struct irqchip *chip);
// struct kvm_pit_state2
void pit_get_state(struct irqchip *chip, void *state);
bool pit_set_state(struct irqchip *chip, const void *state);

// ---- all of them ----
struct irqchip {
	const struct irqchip_ops *ops;
	void *vm;
	struct lock lock;
	bool pic_and_ioapic; // else they are in user space (split)
	_Atomic bool x2apic_broadcast_quirk_off;
	_Atomic bool lint0_quirk_off; // RESET and INIT leave the boot processor's LINT0 masked, too
	uint64_t bus_cycle_ns; // a tick of the APIC timers' undivided clock
	struct pic pics[2];
	uint8_t pic_output;  // INTR of the first 8259; read without lock
	uint32_t pic_lines[16], ioapic_lines[IOAPIC_PINS]; // asserting sources, a bit each
	struct ioapic ioapic;
	struct pit pit;
	// Local APICs, never removed while the machine lives. count is published last.
	struct lapic **lapics;
	unsigned lapic_count;
};

// Where a pin's level comes from: interrupts lines are shared by these.
enum { IRQ_SOURCE_USER, IRQ_SOURCE_RESAMPLE, IRQ_SOURCE_PIT };

struct irqchip *irqchip_create(const struct irqchip_ops *ops, void *vm, unsigned max_lapics,
			       bool pic_and_ioapic);
void irqchip_destroy(struct irqchip *chip);
// A LAPIC in RESET state, or NULL.
struct lapic *lapic_create(struct irqchip *chip, void *vcpu, uint32_t id, bool boot_cpu);
void lapic_destroy(struct lapic *lapic);
// From now on messages can reach it. Callers take turns.
void lapic_publish(struct lapic *lapic);

#endif
