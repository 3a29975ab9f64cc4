// SPDX-License-Identifier: MIT
// Access to a local APIC's register page, for the files of src/irqchip alone.
#ifndef CETKVM_IRQCHIP_LAPIC_REGS_H
#define CETKVM_IRQCHIP_LAPIC_REGS_H

#include "irqchip/irqchip.h"

#define LVT_MASKED (1u << 16)
#define LVT_LEVEL (1u << 15)
#define LVT_REMOTE_IRR (1u << 14)
#define LVT_PENDING (1u << 12)
#define LVT_MODE(lvt) ((lvt) >> 8 & 7)
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_PERIODIC (1u << 17)
#define LVT_TIMER_TSC_DEADLINE (2u << 17)
#define SVR_ENABLE (1u << 8)
#define SVR_NO_EOI_BROADCAST (1u << 12)
#define ICR_BUSY (1u << 12)
#define DFR_FLAT 0xffffffffu
#define ESR_SEND_ILLEGAL_VECTOR (1u << 5)
#define ESR_RECEIVE_ILLEGAL_VECTOR (1u << 6)
#define ESR_ILLEGAL_REGISTER (1u << 7)

static inline uint32_t *lapic_word(const struct lapic *lapic, unsigned offset)
{
	return (uint32_t *)&lapic->regs[offset];
}

static inline uint32_t lapic_get(const struct lapic *lapic, unsigned offset)
{
	return __atomic_load_n(lapic_word(lapic, offset), __ATOMIC_RELAXED);
}

static inline void lapic_put(struct lapic *lapic, unsigned offset, uint32_t value)
{
	__atomic_store_n(lapic_word(lapic, offset), value, __ATOMIC_RELAXED);
}

// ISR, TMR, IRR: 256 bits in eight registers 16 bytes apart.
static inline uint32_t *lapic_bitmap_word(const struct lapic *lapic, unsigned bitmap, uint8_t vector)
{
	return lapic_word(lapic, bitmap + (vector >> 5) * 0x10);
}

static inline bool lapic_bit(const struct lapic *lapic, unsigned bitmap, uint8_t vector)
{
	return __atomic_load_n(lapic_bitmap_word(lapic, bitmap, vector), __ATOMIC_RELAXED) >>
		(vector & 31) & 1;
}

static inline bool lapic_software_enabled(const struct lapic *lapic)
{
	return lapic_enabled(lapic) && (lapic_get(lapic, APIC_SVR) & SVR_ENABLE);
}

static inline uint32_t lapic_x2apic_ldr(uint32_t id)
{
	return (id >> 4) << 16 | 1u << (id & 15);
}

// A fixed interrupt arrives. Returns false if it was pending already or the APIC is disabled.
bool lapic_accept(struct lapic *lapic, uint8_t vector, bool level);
// Timer (lapic_timer.c)
void lapic_timer_restart(struct lapic *lapic);	       // initial count or divisor was written
// The LVT entry has another mode than `old`.
void lapic_timer_new_mode(struct lapic *lapic, uint32_t old);
uint32_t lapic_timer_count(struct lapic *lapic);
// The count goes on from here (restored state); after lapic_timer_restart().
void lapic_timer_set_count(struct lapic *lapic, uint32_t count);

#endif
