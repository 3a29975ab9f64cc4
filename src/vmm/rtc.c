// SPDX-License-Identifier: MIT
// The MC146818 clock and its CMOS memory: date and time in UTC, memory sizes, and what the guest
// stores there. Alarms and periodic interrupts are not made: a guest that enables them waits in vain.
#include "vmm/devices.h"
#include "vmm/machine.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define RTC_SECONDS  0x00
#define RTC_MINUTES  0x02
#define RTC_HOURS    0x04
#define RTC_WEEKDAY  0x06
#define RTC_DAY      0x07
#define RTC_MONTH    0x08
#define RTC_YEAR     0x09
#define RTC_STATUS_A 0x0a
#define RTC_STATUS_B 0x0b
#define RTC_STATUS_C 0x0c
#define RTC_STATUS_D 0x0d
#define RTC_CENTURY  0x32

#define STATUS_B_24H    0x02
#define STATUS_B_BINARY 0x04

struct rtc {
	pthread_mutex_t lock;
	uint8_t index;
	uint8_t memory[128];
};

static uint8_t rtc_number(const struct rtc *rtc, unsigned value)
{
	return rtc->memory[RTC_STATUS_B] & STATUS_B_BINARY ? value : (value / 10) << 4 | value % 10;
}

static uint8_t rtc_hour(const struct rtc *rtc, unsigned hour)
{
	if (rtc->memory[RTC_STATUS_B] & STATUS_B_24H)
		return rtc_number(rtc, hour);
	return rtc_number(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static uint8_t rtc_get(const struct rtc *rtc)
{
	time_t now = time(NULL);
	struct tm date;

	gmtime_r(&now, &date);
	switch (rtc->index) {
	case RTC_SECONDS:
		return rtc_number(rtc, date.tm_sec);
	case RTC_MINUTES:
		return rtc_number(rtc, date.tm_min);
	case RTC_HOURS:
		return rtc_hour(rtc, date.tm_hour);
	case RTC_WEEKDAY:
		return rtc_number(rtc, date.tm_wday + 1);
	case RTC_DAY:
		return rtc_number(rtc, date.tm_mday);
	case RTC_MONTH:
		return rtc_number(rtc, date.tm_mon + 1);
	case RTC_YEAR:
		return rtc_number(rtc, date.tm_year % 100);
	case RTC_CENTURY:
		return rtc_number(rtc, (date.tm_year + 1900) / 100);
	default:
		return rtc->memory[rtc->index];
	}
}

static uint32_t rtc_read(void *opaque, uint16_t offset, unsigned size)
{
	struct rtc *rtc = opaque;
	uint8_t value = 0xff;

	pthread_mutex_lock(&rtc->lock);
	if (offset == 1)
		value = rtc_get(rtc);
	pthread_mutex_unlock(&rtc->lock);
	return value;
}

static void rtc_write(void *opaque, uint16_t offset, uint32_t value, unsigned size)
{
	struct rtc *rtc = opaque;

	pthread_mutex_lock(&rtc->lock);
	if (offset == 0)
		rtc->index = value & 0x7f;
	else if (rtc->index != RTC_STATUS_C && rtc->index != RTC_STATUS_D)
		rtc->memory[rtc->index] = value;
	pthread_mutex_unlock(&rtc->lock);
}

// Where PC firmware leaves the memory sizes, for guests that look there.
static void rtc_store_memory_size(struct rtc *rtc, const struct guest_memory *memory)
{
	uint64_t base = 639, extended = 0, above_16m = 0, high = memory->high_size >> 16;

	if (memory->low_size > 1 << 20)
		extended = (memory->low_size >> 10) - 1024;
	if (memory->low_size > 16 << 20)
		above_16m = (memory->low_size - (16 << 20)) >> 16;
	if (extended > 0xffff)
		extended = 0xffff;
	rtc->memory[0x15] = base;
	rtc->memory[0x16] = base >> 8;
	rtc->memory[0x17] = rtc->memory[0x30] = extended;
	rtc->memory[0x18] = rtc->memory[0x31] = extended >> 8;
	rtc->memory[0x34] = above_16m;
	rtc->memory[0x35] = above_16m >> 8;
	rtc->memory[0x5b] = high;
	rtc->memory[0x5c] = high >> 8;
	rtc->memory[0x5d] = high >> 16;
}

int rtc_create(struct machine *machine)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));
	struct port_device device = { .first = 0x70, .count = 2, .read = rtc_read, .write = rtc_write, .opaque = rtc };

	if (!rtc)
		return -1;
	pthread_mutex_init(&rtc->lock, NULL);
	rtc->memory[RTC_STATUS_A] = 0x26; // 32768 Hz time base, no update in progress
	rtc->memory[RTC_STATUS_B] = STATUS_B_24H;
	rtc->memory[RTC_STATUS_D] = 0x80; // battery good
	rtc_store_memory_size(rtc, &machine->memory);
	machine->rtc = rtc;
	port_bus_add(&machine->ports, &device);
	return 0;
}

void rtc_destroy(struct machine *machine)
{
	free(machine->rtc);
	machine->rtc = NULL;
}
