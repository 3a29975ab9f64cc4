// SPDX-License-Identifier: MIT
// ACPI tables: RSDP, XSDT, FADT, FACS, DSDT, MADT. They describe the processors, the interrupt
// controllers that KVM emulates, and the few devices of this board. Source: ACPI specification,
// "ACPI Software Programming Model" and "ACPI Machine Language (AML) Specification".
#include "vmm/acpi.h"

#include "vmm/devices.h"
#include "vmm/kernel.h"

#include <assert.h>
#include <string.h>

#define LAPIC_ADDRESS  0xfee00000u
#define IOAPIC_ADDRESS 0xfec00000u

#define FADT_WBINVD          0x0001u
#define FADT_C1              0x0004u
#define FADT_NO_POWER_BUTTON 0x0010u
#define FADT_NO_SLEEP_BUTTON 0x0020u
#define FADT_NO_RTC_WAKE     0x0040u
#define FADT_RESET_REGISTER  0x0400u

#define BOOT_ARCH_LEGACY_DEVICES 0x0001
#define BOOT_ARCH_NO_VGA         0x0004

#define SPACE_IO 1

struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
	uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct table_header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct generic_address {
	uint8_t space, width, offset, access;
	uint64_t address;
} __attribute__((packed));

struct fadt {
	struct table_header header;
	uint32_t facs, dsdt;
	uint8_t reserved0, profile;
	uint16_t sci;
	uint32_t smi_command;
	uint8_t acpi_enable, acpi_disable, s4bios, pstate;
	uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
	uint8_t pm1_event_length, pm1_control_length, pm2_control_length, pm_timer_length;
	uint8_t gpe0_length, gpe1_length, gpe1_base, cst;
	uint16_t c2_latency, c3_latency, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
	uint16_t boot_arch;
	uint8_t reserved1;
	uint32_t flags;
	struct generic_address reset;
	uint8_t reset_value, reserved2[3];
	uint64_t x_facs, x_dsdt;
	struct generic_address x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer;
	struct generic_address x_gpe0, x_gpe1;
} __attribute__((packed));

struct facs {
	char signature[4];
	uint32_t length, hardware_signature, waking_vector, global_lock, flags;
	uint64_t x_waking_vector;
	uint8_t version, reserved[31];
} __attribute__((packed));

struct madt_lapic {
	uint8_t type, length, processor, id;
	uint32_t flags;
} __attribute__((packed));

struct madt_ioapic {
	uint8_t type, length, id, reserved;
	uint32_t address, gsi_base;
} __attribute__((packed));

struct madt_override {
	uint8_t type, length, bus, source;
	uint32_t gsi;
	uint16_t flags;
} __attribute__((packed));

struct madt_nmi {
	uint8_t type, length, processor;
	uint16_t flags;
	uint8_t lint;
} __attribute__((packed));

static_assert(sizeof(struct rsdp) == 36, "RSDP of ACPI 2.0");
static_assert(sizeof(struct table_header) == 36, "system description table header");
static_assert(sizeof(struct fadt) == 244, "FADT of ACPI 3.0");
static_assert(sizeof(struct facs) == 64, "FACS");

// Tables are built here and copied to the guest one after the other.
struct table_writer {
	const struct guest_memory *memory;
	uint64_t next;
};

static uint8_t checksum(const void *data, size_t length)
{
	const uint8_t *bytes = data;
	uint8_t sum = 0;

	while (length--)
		sum += *bytes++;
	return -sum;
}

static uint64_t place(struct table_writer *writer, const void *data, size_t length, uint64_t align)
{
	uint64_t address = (writer->next + align - 1) & ~(align - 1);

	guest_memory_write(writer->memory, address, data, length);
	writer->next = address + length;
	return address;
}

static uint64_t place_table(struct table_writer *writer, void *data, const char *signature, uint8_t revision,
			    size_t length)
{
	struct table_header *header = data;

	memcpy(header->signature, signature, 4);
	header->length = length;
	header->revision = revision;
	memcpy(header->oem, "CETKVM", 6);
	memcpy(header->oem_table, "CETKVMVM", 8);
	header->oem_revision = 1;
	memcpy(header->creator, "CKVM", 4);
	header->creator_revision = 1;
	header->checksum = 0;
	header->checksum = checksum(data, length);
	return place(writer, data, length, 16);
}

// AML: Name (_HID, EisaId) or a string, _UID 0, and one I/O range with an optional IRQ.
#define EISA(a, b) 0x0c, 0x41, 0xd0, a, b
#define IO_RANGE(port, length) \
	0x47, 0x01, (port) & 0xff, (port) >> 8, (port) & 0xff, (port) >> 8, 0x01, (length)
#define IRQ(n) 0x22, (1 << (n)) & 0xff, (1 << (n)) >> 8
#define END_TAG 0x79, 0x00
#define NAME(a, b, c, d) 0x08, a, b, c, d

static uint64_t write_dsdt(struct table_writer *writer)
{
	// The PkgLength and Buffer lengths are counted by hand; the sum is checked below.
	static const uint8_t aml[] = {
		// Name (_S5, Package (4) { 5, 5, 0, 0 })
		NAME('_', 'S', '5', '_'), 0x12, 0x08, 0x04, 0x0a, SLEEP_TYPE_S5, 0x0a, SLEEP_TYPE_S5, 0x00, 0x00,
		// Scope (\_SB)
		0x10, 0x4b, 0x08, '\\', '_', 'S', 'B', '_',
		// Device (COM1): PNP0501
		0x5b, 0x82, 0x2b, 'C', 'O', 'M', '1',
		NAME('_', 'H', 'I', 'D'), EISA(0x05, 0x01), NAME('_', 'U', 'I', 'D'), 0x01,
		NAME('_', 'C', 'R', 'S'), 0x11, 0x10, 0x0a, 0x0d, IO_RANGE(SERIAL_PORT, 8), IRQ(SERIAL_IRQ), END_TAG,
		// Device (RTC_): PNP0B00
		0x5b, 0x82, 0x25, 'R', 'T', 'C', '_',
		NAME('_', 'H', 'I', 'D'), EISA(0x0b, 0x00),
		NAME('_', 'C', 'R', 'S'), 0x11, 0x10, 0x0a, 0x0d, IO_RANGE(0x70, 2), IRQ(8), END_TAG,
		// Device (PEVT): QEMU0001, the pvpanic port
		0x5b, 0x82, 0x2e, 'P', 'E', 'V', 'T',
		NAME('_', 'H', 'I', 'D'), 0x0d, 'Q', 'E', 'M', 'U', '0', '0', '0', '1', 0x00,
		NAME('_', 'C', 'R', 'S'), 0x11, 0x0d, 0x0a, 0x0a, IO_RANGE(PANIC_PORT, 1), END_TAG,
		NAME('_', 'S', 'T', 'A'), 0x0a, 0x0f,
	};
	struct {
		struct table_header header;
		uint8_t aml[sizeof(aml)];
	} dsdt;

	static_assert(sizeof(aml) == 14 + 1 + 0x8b && 0x8b == 2 + 5 + (2 + 0x2b) + (2 + 0x25) + (2 + 0x2e),
		      "package lengths in the DSDT");

	memset(&dsdt, 0, sizeof(dsdt));
	memcpy(dsdt.aml, aml, sizeof(aml));
	return place_table(writer, &dsdt, "DSDT", 2, sizeof(dsdt));
}

static struct generic_address io_register(uint16_t port, unsigned bytes)
{
	// Access size: 1 is a byte, 2 a word, 3 a double word.
	return (struct generic_address){ SPACE_IO, bytes * 8, 0, bytes == 1 ? 1 : bytes == 2 ? 2 : 3, port };
}

static uint64_t write_fadt(struct table_writer *writer, uint64_t facs, uint64_t dsdt)
{
	struct fadt fadt = {
		.facs = facs,
		.dsdt = dsdt,
		.profile = 4, // enterprise server
		.sci = SCI_IRQ,
		.pm1a_event = PM1_EVENT_PORT,
		.pm1a_control = PM1_CONTROL_PORT,
		.pm_timer = PM_TIMER_PORT,
		.pm1_event_length = 4,
		.pm1_control_length = 2,
		.pm_timer_length = 4,
		.c2_latency = 0xffff, // not supported
		.c3_latency = 0xffff,
		.century = 0x32,
		.boot_arch = BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA,
		.flags = FADT_WBINVD | FADT_C1 | FADT_NO_POWER_BUTTON | FADT_NO_SLEEP_BUTTON | FADT_NO_RTC_WAKE |
			 FADT_RESET_REGISTER,
		.reset = io_register(RESET_PORT, 1),
		.reset_value = RESET_VALUE,
		.x_dsdt = dsdt,
		.x_pm1a_event = io_register(PM1_EVENT_PORT, 4),
		.x_pm1a_control = io_register(PM1_CONTROL_PORT, 2),
		.x_pm_timer = io_register(PM_TIMER_PORT, 4),
	};

	fadt.x_pm1a_event.access = 2; // status and enable are words
	return place_table(writer, &fadt, "FACP", 4, sizeof(fadt));
}

static uint64_t write_madt(struct table_writer *writer, unsigned vcpus)
{
	struct {
		struct table_header header;
		uint32_t lapic_address, flags;
		uint8_t entries[256 * sizeof(struct madt_lapic) + 64];
	} __attribute__((packed)) madt;
	const struct madt_ioapic ioapic = { 1, sizeof(ioapic), 0, 0, IOAPIC_ADDRESS, 0 };
	const struct madt_override timer = { 2, sizeof(timer), 0, 0, 2, 0 };
	const struct madt_override sci = { 2, sizeof(sci), 0, SCI_IRQ, SCI_IRQ, 0x000d }; // level, active high
	const struct madt_nmi nmi = { 4, sizeof(nmi), 0xff, 0, 1 };
	uint8_t *entry = madt.entries;
	unsigned i;

	memset(&madt, 0, sizeof(madt));
	madt.lapic_address = LAPIC_ADDRESS;
	madt.flags = 1; // there are also 8259s
	for (i = 0; i < vcpus; i++) {
		const struct madt_lapic lapic = { 0, sizeof(lapic), i, i, 1 };

		memcpy(entry, &lapic, sizeof(lapic));
		entry += sizeof(lapic);
	}
	memcpy(entry, &ioapic, sizeof(ioapic));
	entry += sizeof(ioapic);
	memcpy(entry, &timer, sizeof(timer));
	entry += sizeof(timer);
	memcpy(entry, &sci, sizeof(sci));
	entry += sizeof(sci);
	memcpy(entry, &nmi, sizeof(nmi));
	entry += sizeof(nmi);
	return place_table(writer, &madt, "APIC", 4, entry - (uint8_t *)&madt);
}

uint64_t acpi_write_tables(const struct guest_memory *memory, unsigned vcpus)
{
	// The RSDP comes first, where a guest that scans 0xe0000..0xfffff finds it.
	struct table_writer writer = { memory, BOOT_ACPI + sizeof(struct rsdp) };
	struct facs facs = { .signature = "FACS", .length = sizeof(facs), .version = 1 };
	struct rsdp rsdp = { .signature = "RSD PTR ", .oem = "CETKVM", .revision = 2, .length = sizeof(rsdp) };
	struct {
		struct table_header header;
		uint64_t tables[2];
	} __attribute__((packed)) xsdt;
	uint16_t ebda_segment = BOOT_EBDA >> 4;
	uint64_t facs_address;

	memset(&xsdt, 0, sizeof(xsdt));
	facs_address = place(&writer, &facs, sizeof(facs), 64);
	xsdt.tables[0] = write_fadt(&writer, facs_address, write_dsdt(&writer));
	xsdt.tables[1] = write_madt(&writer, vcpus);
	rsdp.xsdt = place_table(&writer, &xsdt, "XSDT", 1, sizeof(xsdt));
	rsdp.checksum = checksum(&rsdp, 20);
	rsdp.extended_checksum = checksum(&rsdp, sizeof(rsdp));
	guest_memory_write(memory, BOOT_ACPI, &rsdp, sizeof(rsdp));
	guest_memory_write(memory, 0x40e, &ebda_segment, sizeof(ebda_segment));
	return BOOT_ACPI;
}
