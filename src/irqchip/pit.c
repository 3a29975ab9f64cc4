// SPDX-License-Identifier: MIT
// The 8254 interval timer and port 0x61. Counters are not counted: their values follow from the time
// since they were loaded.
// Intel 8254 data sheet: "Mode Definitions", "Read Operations".
//
// Channel 0 drives an interrupt line, channel 2 the speaker. Deviations, as KVM has them: BCD counts
// as binary does; mode 3 reads as mode 2 counting by two.
#include "irqchip/irqchip.h"

#include <linux/kvm.h>
#include <string.h>

_Static_assert(sizeof(struct kvm_pit_state2) == 112, "KVM ABI");

#define PIT_HZ 1193182u
#define NS 1000000000u
enum { RW_LATCH, RW_LSB, RW_MSB, RW_WORD };
enum { WORD_LSB, WORD_MSB }; // of read_state and write_state

static uint64_t now(struct irqchip *chip)
{
	return chip->ops->now(chip->vm);
}

static uint64_t ticks_since_load(struct irqchip *chip, const struct pit_channel *c)
{
	uint64_t t = now(chip) - c->loaded_at;

	return (uint64_t)((unsigned __int128)t * PIT_HZ / NS);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
	return ticks * NS / PIT_HZ;
}

static uint16_t counter(struct irqchip *chip, const struct pit_channel *c)
{
	uint64_t t = ticks_since_load(chip, c);

	switch (c->mode) {
	case 0: case 1: case 4: case 5:
		return c->count - t;
	case 3:
		return c->count - 2 * t % c->count;
	}
	return c->count - t % c->count;
}

static bool output(struct irqchip *chip, const struct pit_channel *c)
{
	uint64_t t = ticks_since_load(chip, c);

	switch (c->mode) {
	case 0:
		return t >= c->count;
	case 1:
		return t < c->count ? false : true;
	case 3:
		return t % c->count < (c->count + 1) / 2;
	case 4: case 5:
		return t != c->count;
	}
	return t % c->count || !t;
}

// ---- channel 0's interrupt ----
static void set_pending(struct pit *pit, uint32_t ticks)
{
	__atomic_store_n(&pit->pending, ticks, __ATOMIC_RELAXED);
}

static void restart_timer(struct irqchip *chip)
{
	struct pit *pit = &chip->pit;
	const struct pit_channel *c = &pit->channel[0];
	uint64_t ns = ticks_to_ns(c->count);

	set_pending(pit, 0);
	__atomic_store_n(&pit->in_service, false, __ATOMIC_RELAXED);
	pit->period = 0;
	pit->next = 0;
	if (pit->hpet_legacy)
		return;
	switch (c->mode) {
	case 2: case 3:
		// A guest cannot make the host do nothing but tick.
		pit->period = ns < 200000 ? 200000 : ns;
		ns = pit->period;
		break;
	case 0: case 1: case 4:
		break;
	default:
		return;
	}
	pit->next = c->loaded_at + ns;
}

void pit_timer(struct irqchip *chip, uint64_t at)
{
	struct pit *pit = &chip->pit;
	uint64_t deadline, periods = 1;
	bool fire = false, reinject, taken;

	lock_take(&chip->lock);
	reinject = __atomic_load_n(&pit->reinject, __ATOMIC_RELAXED);
	if (pit->next && at >= pit->next) {
		if (pit->period) {
			periods = 1 + (at - pit->next) / pit->period;
			pit->next += pit->period * periods;
		} else {
			pit->next = 0;
		}
		fire = !reinject;
		if (reinject)
			set_pending(pit, pit->pending + (periods > 100 ? 100 : periods));
	}
	// Owed more than this, the guest has stopped to listen, or its EOI never came.
	if (pit->pending > 1000) {
		set_pending(pit, 1);
		__atomic_store_n(&pit->in_service, false, __ATOMIC_RELAXED);
	}
	if (pit->pending && !__atomic_load_n(&pit->in_service, __ATOMIC_SEQ_CST)) {
		set_pending(pit, pit->pending - 1);
		__atomic_store_n(&pit->in_service, true, __ATOMIC_RELAXED);
		fire = true;
	}
	deadline = pit->next;
	lock_release(&chip->lock);
	// The line goes through the routing and back into controllers that take the lock.
	if (fire) {
		taken = chip->ops->pit_irq(chip->vm, true) > 0;
		chip->ops->pit_irq(chip->vm, false);
		if (!taken)
			__atomic_store_n(&pit->in_service, false, __ATOMIC_SEQ_CST);
	}
	chip->ops->pit_timer(chip->vm, deadline);
}

void pit_acked(struct irqchip *chip)
{
	__atomic_store_n(&chip->pit.in_service, false, __ATOMIC_SEQ_CST);
	// Deliver what is owed from the timer's thread, outside the lock.
	if (__atomic_load_n(&chip->pit.pending, __ATOMIC_RELAXED))
		chip->ops->pit_timer(chip->vm, now(chip));
}

// ---- registers ----
static void load(struct irqchip *chip, unsigned n, uint32_t count)
{
	struct pit_channel *c = &chip->pit.channel[n];

	c->count = count ? count : 0x10000;
	c->loaded_at = now(chip);
	if (n == 0) {
		restart_timer(chip);
		chip->ops->pit_timer(chip->vm, chip->pit.next);
	}
}

static void latch_count(struct irqchip *chip, struct pit_channel *c)
{
	if (c->count_latched)
		return;
	c->latched_count = counter(chip, c);
	c->count_latched = c->rw_mode;
}

static void latch_status(struct irqchip *chip, struct pit_channel *c)
{
	if (c->status_latched)
		return;
	c->status = output(chip, c) << 7 | c->rw_mode << 4 | c->mode << 1 | c->bcd;
	c->status_latched = 1;
}

static void write_control(struct irqchip *chip, uint8_t value)
{
	unsigned n = value >> 6;
	struct pit_channel *c;

	if (n == 3) { // read-back
		for (unsigned i = 0; i < 3; i++) {
			if (!(value & 2u << i))
				continue;
			if (!(value & 0x20))
				latch_count(chip, &chip->pit.channel[i]);
			if (!(value & 0x10))
				latch_status(chip, &chip->pit.channel[i]);
		}
		return;
	}
	c = &chip->pit.channel[n];
	if ((value >> 4 & 3) == RW_LATCH) {
		latch_count(chip, c);
		return;
	}
	c->rw_mode = value >> 4 & 3;
	c->mode = value >> 1 & 7;
	if (c->mode > 5)
		c->mode -= 4;
	c->bcd = value & 1;
	c->read_state = c->write_state = WORD_LSB;
	c->count_latched = c->status_latched = 0;
	if (n == 0) { // a control word stops the channel until it is loaded
		chip->pit.next = chip->pit.period = 0;
		chip->ops->pit_timer(chip->vm, 0);
	}
}

static void write_counter(struct irqchip *chip, unsigned n, uint8_t value)
{
	struct pit_channel *c = &chip->pit.channel[n];

	switch (c->rw_mode) {
	case RW_LSB:
		load(chip, n, value);
		break;
	case RW_MSB:
		load(chip, n, (uint32_t)value << 8);
		break;
	case RW_WORD:
		if (c->write_state == WORD_LSB) {
			c->write_latch = value;
			c->write_state = WORD_MSB;
		} else {
			c->write_state = WORD_LSB;
			load(chip, n, c->write_latch | (uint32_t)value << 8);
		}
		break;
	}
}

static uint8_t read_counter(struct irqchip *chip, struct pit_channel *c)
{
	uint16_t value;

	if (c->status_latched) {
		c->status_latched = 0;
		return c->status;
	}
	if (c->count_latched) {
		value = c->latched_count;
		if (c->count_latched == RW_WORD) { // low byte first, then as RW_MSB
			c->count_latched = RW_MSB;
			return value;
		}
		value = c->count_latched == RW_MSB ? value >> 8 : value;
		c->count_latched = 0;
		return value;
	}
	value = counter(chip, c);
	if (c->rw_mode == RW_MSB)
		return value >> 8;
	if (c->rw_mode != RW_WORD)
		return value;
	c->read_state = !c->read_state;
	return c->read_state == WORD_MSB ? value : value >> 8;
}

static void set_gate2(struct irqchip *chip, bool gate)
{
	struct pit_channel *c = &chip->pit.channel[2];

	// A rising gate restarts the modes that it triggers. In the others it would stop the count while it is
	// low: KVM does not do that, nor do we.
	if (gate && !c->gate && (c->mode == 1 || c->mode == 5 || c->mode == 2 || c->mode == 3))
		c->loaded_at = now(chip);
	c->gate = gate;
}

bool pit_owns_port(const struct irqchip *chip, uint16_t port)
{
	return __atomic_load_n(&chip->pit.present, __ATOMIC_ACQUIRE) &&
	       ((port & ~3) == 0x40 || (port == 0x61 && chip->pit.speaker_port));
}

uint8_t pit_port_read(struct irqchip *chip, uint16_t port)
{
	struct pit *pit = &chip->pit;
	uint8_t value = 0;

	lock_take(&chip->lock);
	if (port == 0x61) {
		// Bit 4 follows the refresh clock, 15 microseconds.
		value = pit->speaker_data << 1 | pit->channel[2].gate | output(chip, &pit->channel[2]) << 5 |
			(now(chip) / 15085 & 1) << 4;
	} else if ((port & 3) != 3) {
		value = read_counter(chip, &pit->channel[port & 3]);
	}
	lock_release(&chip->lock);
	return value;
}

void pit_port_write(struct irqchip *chip, uint16_t port, uint8_t value)
{
	lock_take(&chip->lock);
	if (port == 0x61) {
		chip->pit.speaker_data = value >> 1 & 1;
		set_gate2(chip, value & 1);
	} else if ((port & 3) == 3) {
		write_control(chip, value);
	} else {
		write_counter(chip, port & 3, value);
	}
	lock_release(&chip->lock);
}

void pit_set_reinject(struct irqchip *chip, bool reinject)
{
	lock_take(&chip->lock);
	if (chip->pit.reinject != reinject) {
		__atomic_store_n(&chip->pit.reinject, reinject, __ATOMIC_RELAXED);
		set_pending(&chip->pit, 0);
		__atomic_store_n(&chip->pit.in_service, false, __ATOMIC_RELAXED);
		ioapic_update_vectors(chip);
	}
	lock_release(&chip->lock);
}

void pit_create(struct irqchip *chip, bool speaker_port)
{
	struct pit *pit = &chip->pit;

	lock_take(&chip->lock);
	pit->speaker_port = speaker_port;
	pit->reinject = true;
	for (unsigned i = 0; i < 3; i++) {
		pit->channel[i].mode = 0xff;
		pit->channel[i].gate = i != 2;
		pit->channel[i].count = 0x10000;
		pit->channel[i].rw_mode = RW_WORD;
		pit->channel[i].loaded_at = now(chip);
	}
	__atomic_store_n(&pit->present, true, __ATOMIC_RELEASE);
	ioapic_update_vectors(chip);
	lock_release(&chip->lock);
}

// The ABI's states: 1 LSB, 2 MSB, and both halves of a word.
enum { ABI_WORD_LSB = 3, ABI_WORD_MSB = 4 };

static uint8_t abi_state(const struct pit_channel *c, uint8_t state)
{
	return c->rw_mode != RW_WORD ? c->rw_mode : state == WORD_MSB ? ABI_WORD_MSB : ABI_WORD_LSB;
}

void pit_get_state(struct irqchip *chip, void *state)
{
	struct kvm_pit_state2 *s = state;

	memset(s, 0, sizeof(*s));
	lock_take(&chip->lock);
	for (unsigned i = 0; i < 3; i++) {
		const struct pit_channel *c = &chip->pit.channel[i];

		s->channels[i] = (struct kvm_pit_channel_state){
			.count = c->count, .latched_count = c->latched_count,
			.count_latched = c->count_latched, .status_latched = c->status_latched,
			.status = c->status, .read_state = abi_state(c, c->read_state),
			.write_state = abi_state(c, c->write_state),
			.write_latch = c->write_latch, .rw_mode = c->rw_mode, .mode = c->mode,
			.bcd = c->bcd, .gate = c->gate, .count_load_time = c->loaded_at,
		};
	}
	s->flags = (chip->pit.hpet_legacy ? KVM_PIT_FLAGS_HPET_LEGACY : 0) |
		   (chip->pit.speaker_data ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
	lock_release(&chip->lock);
}

bool pit_set_state(struct irqchip *chip, const void *state)
{
	const struct kvm_pit_state2 *s = state;

	for (unsigned i = 0; i < 3; i++)
		if (s->channels[i].count > 0x10000)
			return false;
	lock_take(&chip->lock);
	for (unsigned i = 0; i < 3; i++) {
		const struct kvm_pit_channel_state *from = &s->channels[i];

		chip->pit.channel[i] = (struct pit_channel){
			.count = from->count ? from->count : 0x10000,
			.latched_count = from->latched_count,
			.count_latched = from->count_latched & 3, .status_latched = from->status_latched,
			.status = from->status, .read_state = from->read_state == ABI_WORD_MSB,
			.write_state = from->write_state == ABI_WORD_MSB, .write_latch = from->write_latch,
			.rw_mode = from->rw_mode & 3, .mode = from->mode, .bcd = from->bcd & 1,
			.gate = from->gate & 1, .loaded_at = now(chip),
		};
	}
	chip->pit.hpet_legacy = s->flags & KVM_PIT_FLAGS_HPET_LEGACY;
	chip->pit.speaker_data = !!(s->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON);
	restart_timer(chip);
	chip->ops->pit_timer(chip->vm, chip->pit.next);
	lock_release(&chip->lock);
	return true;
}
