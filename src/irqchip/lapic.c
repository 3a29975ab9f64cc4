// SPDX-License-Identifier: MIT
// The local APIC: its registers, priorities, acceptance and end of interrupts.
// SDM: "Advanced Programmable Interrupt Controller (APIC)": "Local APIC", "Handling Interrupts",
// "Extended XAPIC (x2APIC)".
//
// All but lapic_accept() and what it calls runs on the vCPU's own thread (or while it stands still).
// Deviations, as KVM has them: the arbitration priority register and remote reads are not there;
// the APIC bus has no errors but illegal vectors.
#include "irqchip/lapic_regs.h"

#include <stdlib.h>
#include <string.h>

#define LAPIC_VERSION 0x00050014u // integrated, LVT entries 0..5

// ---- bitmaps and priorities ----
static int highest(const struct lapic *lapic, unsigned bitmap)
{
	for (int i = 7; i >= 0; i--) {
		uint32_t w = lapic_get(lapic, bitmap + i * 0x10);

		if (w)
			return i * 32 + 31 - __builtin_clz(w);
	}
	return -1;
}

static uint32_t update_ppr(struct lapic *lapic)
{
	uint32_t tpr = lapic_get(lapic, APIC_TPR);
	int isr = highest(lapic, APIC_ISR);
	uint32_t isrv = isr < 0 ? 0 : isr;
	uint32_t ppr = (tpr & 0xf0) >= (isrv & 0xf0) ? tpr & 0xff : isrv & 0xf0;

	lapic_put(lapic, APIC_PPR, ppr);
	return ppr;
}

static void look_again(struct lapic *lapic)
{
	lapic->chip->ops->wake(lapic->vcpu, WAKE_IRQ);
}

int lapic_interrupt(struct lapic *lapic, bool acknowledge)
{
	int vector;
	uint32_t ppr;

	if (!lapic_enabled(lapic))
		return -1;
	vector = highest(lapic, APIC_IRR);
	if (vector < 0)
		return -1;
	ppr = update_ppr(lapic);
	if ((vector & 0xf0) <= (int)(ppr & 0xf0))
		return -1;
	if (acknowledge) {
		uint32_t bit = 1u << (vector & 31);

		__atomic_fetch_and(lapic_bitmap_word(lapic, APIC_IRR, vector), ~bit, __ATOMIC_SEQ_CST);
		*lapic_bitmap_word(lapic, APIC_ISR, vector) |= bit;
		update_ppr(lapic);
	}
	return vector;
}

bool lapic_accept(struct lapic *lapic, uint8_t vector, bool level)
{
	uint32_t bit = 1u << (vector & 31), old;
	uint32_t *tmr = lapic_bitmap_word(lapic, APIC_TMR, vector);

	if (!lapic_software_enabled(lapic))
		return false;
	if (vector < 16) {
		__atomic_fetch_or(&lapic->error_pending, ESR_RECEIVE_ILLEGAL_VECTOR, __ATOMIC_RELAXED);
		return false;
	}
	if (level)
		__atomic_fetch_or(tmr, bit, __ATOMIC_SEQ_CST);
	else if (__atomic_load_n(tmr, __ATOMIC_RELAXED) & bit)
		__atomic_fetch_and(tmr, ~bit, __ATOMIC_SEQ_CST);
	old = __atomic_fetch_or(lapic_bitmap_word(lapic, APIC_IRR, vector), bit, __ATOMIC_SEQ_CST);
	lapic->chip->ops->wake(lapic->vcpu, WAKE_IRQ);
	return !(old & bit);
}

static void end_of_interrupt(struct lapic *lapic)
{
	int vector = highest(lapic, APIC_ISR);
	struct irqchip *chip = lapic->chip;
	uint64_t *exits;

	if (vector < 0)
		return;
	*lapic_bitmap_word(lapic, APIC_ISR, vector) &= ~(1u << (vector & 31));
	update_ppr(lapic);
	if (chip->pic_and_ioapic) {
		if (__atomic_load_n(&chip->ioapic.vectors[vector / 64], __ATOMIC_SEQ_CST) >> (vector % 64) & 1)
			ioapic_eoi(chip, vector);
	} else if (lapic_bit(lapic, APIC_TMR, vector)) {
		exits = &lapic->eoi_exit_bitmap[vector / 64];
		if (__atomic_load_n(exits, __ATOMIC_SEQ_CST) >> (vector % 64) & 1)
			chip->ops->eoi_exit(lapic->vcpu, vector);
	}
	if (highest(lapic, APIC_IRR) >= 0)
		look_again(lapic);
}

void lapic_set_eoi_exits(struct lapic *lapic, const uint64_t vectors[4])
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t busy = 0;

		for (unsigned v = i * 64; v < i * 64 + 64; v++)
			if (lapic_bit(lapic, APIC_IRR, v) || lapic_bit(lapic, APIC_ISR, v))
				busy |= 1ull << v % 64;
		busy &= __atomic_load_n(&lapic->eoi_exit_bitmap[i], __ATOMIC_SEQ_CST);
		__atomic_store_n(&lapic->eoi_exit_bitmap[i], vectors[i] | busy, __ATOMIC_SEQ_CST);
	}
}

uint64_t lapic_cr8(const struct lapic *lapic)
{
	return lapic_get(lapic, APIC_TPR) >> 4 & 15;
}

static void set_tpr(struct lapic *lapic, uint32_t value)
{
	lapic_put(lapic, APIC_TPR, value & 0xff);
	update_ppr(lapic);
	if (highest(lapic, APIC_IRR) >= 0)
		look_again(lapic);
}

void lapic_set_cr8(struct lapic *lapic, uint64_t value)
{
	set_tpr(lapic, (value & 15) << 4);
}

// ---- local vector table ----
static const struct lvt {
	uint16_t offset;
	uint32_t writable;
} lvts[] = {
	{ APIC_LVT_TIMER, 0xff | LVT_MASKED | LVT_TIMER_MODE },
	{ APIC_LVT_THERMAL, 0x7ff | LVT_MASKED },
	{ APIC_LVT_PERF, 0x7ff | LVT_MASKED },
	{ APIC_LVT_LINT0, 0x7ff | LVT_MASKED | LVT_LEVEL | 1u << 13 },
	{ APIC_LVT_LINT1, 0x7ff | LVT_MASKED | LVT_LEVEL | 1u << 13 },
	{ APIC_LVT_ERROR, 0xff | LVT_MASKED },
};

bool lapic_local(struct lapic *lapic, unsigned lvt)
{
	uint32_t entry = lapic_get(lapic, lvt);

	if (!lapic_enabled(lapic) || (entry & LVT_MASKED))
		return false;
	switch (LVT_MODE(entry)) {
	case DELIVER_FIXED:
		lapic_accept(lapic, entry & 0xff, false);
		return true;
	case DELIVER_NMI:
		lapic->chip->ops->wake(lapic->vcpu, WAKE_NMI);
		return true;
	case DELIVER_SMI:
		lapic->chip->ops->wake(lapic->vcpu, WAKE_SMI);
		return true;
	}
	return false;
}

bool lapic_accepts_pic(const struct lapic *lapic)
{
	uint32_t lint0 = lapic_get(lapic, APIC_LVT_LINT0);

	// Disabled, LINT0 is the processor's INTR pin.
	if (!lapic_enabled(lapic))
		return __atomic_load_n(&lapic->base, __ATOMIC_RELAXED) & APIC_BASE_BSP;
	return !(lint0 & LVT_MASKED) && LVT_MODE(lint0) == DELIVER_EXTINT;
}

static void write_svr(struct lapic *lapic, uint32_t value)
{
	lapic_put(lapic, APIC_SVR, value & (0xff | SVR_ENABLE));
	if (value & SVR_ENABLE)
		return;
	for (unsigned i = 0; i < sizeof(lvts) / sizeof(*lvts); i++)
		lapic_put(lapic, lvts[i].offset, lapic_get(lapic, lvts[i].offset) | LVT_MASKED);
}

static void write_lvt(struct lapic *lapic, const struct lvt *lvt, uint32_t value)
{
	uint32_t old = lapic_get(lapic, lvt->offset);

	value &= lvt->writable;
	if (lvt->offset == APIC_LVT_TIMER && !lapic->has_tsc_deadline)
		value &= ~LVT_TIMER_TSC_DEADLINE;
	if (!lapic_software_enabled(lapic))
		value |= LVT_MASKED;
	lapic_put(lapic, lvt->offset, value);
	if (lvt->offset == APIC_LVT_TIMER && ((old ^ value) & LVT_TIMER_MODE)) {
		lapic_timer_new_mode(lapic, old);
	}
	if (lvt->offset == APIC_LVT_LINT0)
		look_again(lapic); // the 8259 may be heard now
}

// ---- interrupt command ----
static void send(struct lapic *lapic, uint32_t icr, uint32_t destination)
{
	struct apic_message message = {
		.destination = destination,
		.vector = icr & 0xff,
		.mode = icr >> 8 & 7,
		.logical = icr >> 11 & 1,
		.assert = icr >> 14 & 1,
		.level = icr >> 15 & 1,
		.shorthand = icr >> 18 & 3,
	};

	if (message.vector < 16 && message.mode <= DELIVER_LOWEST)
		__atomic_fetch_or(&lapic->error_pending, ESR_SEND_ILLEGAL_VECTOR, __ATOMIC_RELAXED);
	else
		apic_send(lapic->chip, lapic, &message);
}

// ---- registers common to both interfaces ----
static bool readable(unsigned offset)
{
	if (offset >= APIC_ISR && offset < APIC_IRR + 0x80)
		return true;
	for (unsigned i = 0; i < sizeof(lvts) / sizeof(*lvts); i++)
		if (offset == lvts[i].offset)
			return true;
	switch (offset) {
	case APIC_ID: case APIC_LVR: case APIC_TPR: case APIC_PPR: case APIC_LDR: case APIC_SVR:
	case APIC_ESR: case APIC_ICR: case APIC_TMICT: case APIC_TMCCT: case APIC_TDCR:
		return true;
	}
	return false;
}

static uint32_t read_register(struct lapic *lapic, unsigned offset)
{
	switch (offset) {
	case APIC_PPR:
		return update_ppr(lapic);
	case APIC_TMCCT:
		return lapic_timer_count(lapic);
	}
	return lapic_get(lapic, offset);
}

// false: there is no such register, or it cannot be written.
static bool write_register(struct lapic *lapic, unsigned offset, uint32_t value)
{
	uint32_t count;

	for (unsigned i = 0; i < sizeof(lvts) / sizeof(*lvts); i++) {
		if (offset == lvts[i].offset) {
			write_lvt(lapic, &lvts[i], value);
			return true;
		}
	}
	switch (offset) {
	case APIC_TPR:
		set_tpr(lapic, value);
		return true;
	case APIC_EOI:
		end_of_interrupt(lapic);
		return true;
	case APIC_SVR:
		write_svr(lapic, value);
		return true;
	case APIC_ESR:
		lapic_put(lapic, APIC_ESR,
			  __atomic_exchange_n(&lapic->error_pending, 0, __ATOMIC_RELAXED));
		return true;
	case APIC_TMICT:
		if ((lapic_get(lapic, APIC_LVT_TIMER) & LVT_TIMER_MODE) == LVT_TIMER_TSC_DEADLINE)
			return true;
		lapic_put(lapic, APIC_TMICT, value);
		lapic_timer_restart(lapic);
		return true;
	case APIC_TDCR:
		// The count goes on from where it is, at the new rate.
		count = lapic_timer_count(lapic);
		lapic_put(lapic, APIC_TDCR, value & 0xb);
		if (lapic->deadline)
			lapic_timer_restart(lapic);
		lapic_timer_set_count(lapic, count);
		return true;
	}
	return false;
}

// ---- xAPIC: memory ----
void lapic_read(struct lapic *lapic, unsigned offset, unsigned length, void *data)
{
	uint32_t value = 0;
	unsigned reg = offset & ~0xfu;

	memset(data, 0, length);
	// Only the 32 bits at the start of each 16 bytes exist, whole or in part.
	if ((offset & 0xf) + length > 4)
		return;
	if (reg == APIC_ICR2 || reg == APIC_DFR)
		value = lapic_get(lapic, reg);
	else if (readable(reg))
		value = read_register(lapic, reg);
	memcpy(data, (uint8_t *)&value + (offset & 0xf), length);
}

void lapic_write(struct lapic *lapic, unsigned offset, unsigned length, const void *data)
{
	uint32_t value;

	if (length != 4 || (offset & 0xf))
		return;
	memcpy(&value, data, 4);
	switch (offset) {
	case APIC_ID:
		lapic_put(lapic, APIC_ID, value & 0xff000000u);
		break;
	case APIC_LDR:
		lapic_put(lapic, APIC_LDR, value & 0xff000000u);
		break;
	case APIC_DFR:
		lapic_put(lapic, APIC_DFR, value | 0x0fffffffu);
		break;
	case APIC_ICR2:
		lapic_put(lapic, APIC_ICR2, value & 0xff000000u);
		break;
	case APIC_ICR:
		value &= ~ICR_BUSY;
		lapic_put(lapic, APIC_ICR, value);
		send(lapic, value, lapic_get(lapic, APIC_ICR2) >> 24);
		break;
	default:
		if (!write_register(lapic, offset, value))
			__atomic_fetch_or(&lapic->error_pending, ESR_ILLEGAL_REGISTER, __ATOMIC_RELAXED);
	}
}

// ---- x2APIC: MSRs ----
bool lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value)
{
	unsigned offset = (msr - 0x800) << 4;

	if (!lapic_x2apic(lapic) || offset >= APIC_REGS_SIZE || !readable(offset))
		return false;
	*value = read_register(lapic, offset);
	if (offset == APIC_ICR)
		*value |= (uint64_t)lapic_get(lapic, APIC_ICR2) << 32;
	return true;
}

// Bits that must be zero in a write; registers without a row cannot be written.
static uint64_t x2apic_reserved(unsigned offset)
{
	for (unsigned i = 0; i < sizeof(lvts) / sizeof(*lvts); i++)
		if (offset == lvts[i].offset)
			return ~(uint64_t)(lvts[i].writable | LVT_PENDING | LVT_REMOTE_IRR);
	switch (offset) {
	case APIC_TPR:
	case APIC_SELF_IPI:
		return ~0xffull;
	case APIC_EOI:
	case APIC_ESR:
		return ~0ull;
	case APIC_SVR:
		return ~(uint64_t)(0xff | SVR_ENABLE | SVR_NO_EOI_BROADCAST | 1u << 9);
	case APIC_TMICT:
		return ~0xffffffffull;
	case APIC_TDCR:
		return ~0xbull;
	case APIC_ICR:
		return 1ull << 13 | 3ull << 16 | 0xfffull << 20;
	}
	return ~0ull;
}

static bool x2apic_writable(unsigned offset)
{
	return offset == APIC_EOI || offset == APIC_ESR || x2apic_reserved(offset) != ~0ull;
}

bool lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value)
{
	unsigned offset = (msr - 0x800) << 4;

	if (!lapic_x2apic(lapic) || offset >= APIC_REGS_SIZE || !x2apic_writable(offset))
		return false;
	if (value & x2apic_reserved(offset))
		return false;
	switch (offset) {
	case APIC_ICR:
		value &= ~(uint64_t)ICR_BUSY;
		lapic_put(lapic, APIC_ICR, value);
		lapic_put(lapic, APIC_ICR2, value >> 32);
		send(lapic, value, value >> 32);
		return true;
	case APIC_SELF_IPI:
		send(lapic, (uint32_t)(value & 0xff) | SHORTHAND_SELF << 18, 0);
		return true;
	}
	return write_register(lapic, offset, value);
}

// ---- modes ----
static void set_ids(struct lapic *lapic)
{
	if (lapic_x2apic(lapic)) {
		lapic_put(lapic, APIC_ID, lapic->id);
		lapic_put(lapic, APIC_LDR, lapic_x2apic_ldr(lapic->id));
	} else {
		lapic_put(lapic, APIC_ID, lapic->id << 24);
	}
}

#define APIC_BASE_MODES (APIC_BASE_ENABLE | APIC_BASE_X2APIC)

bool apic_base_valid(uint64_t old, uint64_t value, uint64_t reserved, bool host)
{
	old &= APIC_BASE_MODES;
	if (value & (reserved | 0x2ff))
		return false;
	switch (value & APIC_BASE_MODES) {
	case APIC_BASE_X2APIC:
		return false;
	case APIC_BASE_MODES:
		return host || old; // from disabled only to xAPIC
	case APIC_BASE_ENABLE:
		return host || old != APIC_BASE_MODES; // from x2APIC only to disabled
	}
	return true;
}

bool lapic_set_base(struct lapic *lapic, uint64_t value, bool host)
{
	uint64_t old = lapic->base & APIC_BASE_MODES, new = value & APIC_BASE_MODES;
	uint64_t reserved = lapic->base_reserved | (lapic->has_x2apic ? 0 : APIC_BASE_X2APIC);

	if (!apic_base_valid(old, value, reserved, host))
		return false;
	__atomic_store_n(&lapic->base, value, __ATOMIC_RELAXED);
	if (old == new)
		return true;
	if (!(new & APIC_BASE_ENABLE)) {
		lapic->tsc_deadline = 0;
		lapic_put(lapic, APIC_TMICT, 0);
		lapic_timer_restart(lapic);
	}
	if (new) // from x2APIC mode to xAPIC, too, which only user space can do
		set_ids(lapic);
	if (!lapic_x2apic(lapic) && old == APIC_BASE_MODES)
		lapic_put(lapic, APIC_LDR, 0);
	look_again(lapic);
	return true;
}

void lapic_reset(struct lapic *lapic, bool init)
{
	if (!init) {
		uint64_t bsp = lapic->base & APIC_BASE_BSP;

		__atomic_store_n(&lapic->base, APIC_DEFAULT_BASE | APIC_BASE_ENABLE | bsp, __ATOMIC_RELAXED);
	}
	memset(lapic->regs, 0, sizeof(lapic->regs));
	set_ids(lapic);
	lapic_put(lapic, APIC_LVR, LAPIC_VERSION);
	if (!lapic_x2apic(lapic))
		lapic_put(lapic, APIC_DFR, DFR_FLAT);
	lapic_put(lapic, APIC_SVR, 0xff);
	for (unsigned i = 0; i < sizeof(lvts) / sizeof(*lvts); i++)
		lapic_put(lapic, lvts[i].offset, LVT_MASKED);
	// Firmware that knows nothing of APICs expects virtual wire mode on the boot CPU.
	if ((lapic->base & APIC_BASE_BSP) && !lapic->chip->lint0_quirk_off)
		lapic_put(lapic, APIC_LVT_LINT0, DELIVER_EXTINT << 8);
	lapic->error_pending = 0;
	lapic->tsc_deadline = 0;
	lapic->arbitration = 0;
	lapic_timer_restart(lapic);
}

// ---- state for user space ----
void lapic_get_state(struct lapic *lapic, void *regs, bool wide_id)
{
	uint32_t id, count = lapic_timer_count(lapic);

	update_ppr(lapic);
	memcpy(regs, lapic->regs, APIC_REGS_SIZE);
	memcpy((uint8_t *)regs + APIC_TMCCT, &count, 4);
	if (lapic_x2apic(lapic) && !wide_id) {
		id = lapic->id << 24;
		memcpy((uint8_t *)regs + APIC_ID, &id, 4);
	}
}

bool lapic_set_state(struct lapic *lapic, const void *regs, bool wide_id)
{
	uint32_t id, count;

	memcpy(&id, (const uint8_t *)regs + APIC_ID, 4);
	memcpy(&count, (const uint8_t *)regs + APIC_TMCCT, 4);
	if (lapic_x2apic(lapic)) {
		// Without the wide format the ID is not compared: it cannot be changed.
		if (wide_id && id != lapic->id)
			return false;
	}
	memcpy(lapic->regs, regs, APIC_REGS_SIZE);
	lapic_put(lapic, APIC_LVR, LAPIC_VERSION);
	if (lapic_x2apic(lapic))
		set_ids(lapic);
	update_ppr(lapic);
	lapic_timer_restart(lapic);
	// The timer goes on where it stood, not from its initial count.
	lapic_timer_set_count(lapic, count);
	look_again(lapic);
	return true;
}

// ---- life ----
struct lapic *lapic_create(struct irqchip *chip, void *vcpu, uint32_t id, bool boot_cpu)
{
	struct lapic *lapic = aligned_alloc(64, (sizeof(*lapic) + 63) & ~63ul);

	if (!lapic)
		return NULL;
	memset(lapic, 0, sizeof(*lapic));
	lapic->chip = chip;
	lapic->vcpu = vcpu;
	lapic->id = id;
	lapic->base = boot_cpu ? APIC_BASE_BSP : 0;
	lapic_reset(lapic, false);
	return lapic;
}

void lapic_destroy(struct lapic *lapic)
{
	free(lapic);
}

void lapic_publish(struct lapic *lapic)
{
	struct irqchip *chip = lapic->chip;

	chip->lapics[chip->lapic_count] = lapic;
	__atomic_store_n(&chip->lapic_count, chip->lapic_count + 1, __ATOMIC_RELEASE);
}
