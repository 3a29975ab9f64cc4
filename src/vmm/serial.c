// SPDX-License-Identifier: MIT
// A 16550A UART at 0x3f8, IRQ 4, with 16-byte receive FIFO. The transmitter takes a byte at once, so
// its holding register is always empty. Source: National Semiconductor PC16550D data sheet.
//
// Input is put into the receive FIFO only while somebody listens: the receive interrupt is enabled,
// or the line status is being polled. A kernel that has not yet opened its terminal would otherwise
// throw away what a pipe had to say. A guest that has raised RTS stops input by dropping it.
#include "vmm/devices.h"
#include "vmm/console.h"
#include "vmm/machine.h"

#include <stdlib.h>
#include <string.h>

#define FIFO_SIZE 16

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RECEIVE  0x01
#define IER_TRANSMIT 0x02
#define IER_LINE     0x04
#define IER_MODEM    0x08

#define IIR_NONE     0x01
#define IIR_MODEM    0x00
#define IIR_TRANSMIT 0x02
#define IIR_RECEIVE  0x04
#define IIR_TIMEOUT  0x0c
#define IIR_LINE     0x06
#define IIR_FIFOS    0xc0

#define FCR_ENABLE        0x01
#define FCR_CLEAR_RECEIVE 0x02

#define LCR_DLAB 0x80

#define MCR_RTS  0x02
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10

#define LSR_DATA_READY 0x01
#define LSR_OVERRUN    0x02
#define LSR_THR_EMPTY  0x20
#define LSR_IDLE       0x40

#define MSR_DELTA 0x0f
#define MSR_CTS   0x10
#define MSR_DSR   0x20
#define MSR_RI    0x40
#define MSR_DCD   0x80

// After so many reads of the line status with nothing else between, somebody waits for input.
#define POLLS_MEAN_WAITING 64

struct serial {
	pthread_mutex_t lock;
	struct machine *machine;
	uint8_t ier, fcr, lcr, mcr, msr, scr, lsr_errors;
	uint16_t divisor;
	bool transmit_interrupt; // pending, until IIR is read or a byte is written
	bool irq_level;
	bool rts_used;
	uint8_t fifo[FIFO_SIZE];
	unsigned fifo_start, fifo_count;
	unsigned status_polls;
	char line[200]; // what the guest is writing, for the panic watch
	unsigned line_length;
};

static unsigned serial_fifo_capacity(const struct serial *serial)
{
	return serial->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned serial_receive_trigger(const struct serial *serial)
{
	static const uint8_t levels[] = { 1, 4, 8, 14 };

	return serial->fcr & FCR_ENABLE ? levels[serial->fcr >> 6] : 1;
}

static uint8_t serial_interrupt_identity(const struct serial *serial)
{
	if ((serial->ier & IER_LINE) && serial->lsr_errors)
		return IIR_LINE;
	if ((serial->ier & IER_RECEIVE) && serial->fifo_count)
		// Below the trigger level the character timeout takes over; it is not waited for.
		return serial->fifo_count >= serial_receive_trigger(serial) ? IIR_RECEIVE : IIR_TIMEOUT;
	if ((serial->ier & IER_TRANSMIT) && serial->transmit_interrupt)
		return IIR_TRANSMIT;
	if ((serial->ier & IER_MODEM) && (serial->msr & MSR_DELTA))
		return IIR_MODEM;
	return IIR_NONE;
}

static void serial_update_irq(struct serial *serial)
{
	// On a PC, OUT2 gates the interrupt line; loopback disconnects it.
	bool level = serial_interrupt_identity(serial) != IIR_NONE && (serial->mcr & MCR_OUT2) &&
		     !(serial->mcr & MCR_LOOP);

	if (level != serial->irq_level) {
		serial->irq_level = level;
		machine_irq(serial->machine, SERIAL_IRQ, level);
	}
}

static bool serial_push(struct serial *serial, uint8_t byte)
{
	if (serial->fifo_count >= serial_fifo_capacity(serial))
		return false;
	serial->fifo[(serial->fifo_start + serial->fifo_count++) % FIFO_SIZE] = byte;
	return true;
}

static uint8_t serial_pop(struct serial *serial)
{
	uint8_t byte = 0;

	if (serial->fifo_count) {
		byte = serial->fifo[serial->fifo_start];
		serial->fifo_start = (serial->fifo_start + 1) % FIFO_SIZE;
		serial->fifo_count--;
	}
	return byte;
}

static void serial_watch_line(struct serial *serial, uint8_t byte)
{
	if (byte == '\n') {
		serial->line[serial->line_length] = 0;
		serial->line_length = 0;
		machine_console_line(serial->machine, serial->line);
	} else if (byte != '\r' && serial->line_length < sizeof(serial->line) - 1) {
		serial->line[serial->line_length++] = byte;
	}
}

static void serial_transmit(struct serial *serial, uint8_t byte)
{
	serial->transmit_interrupt = true;
	if (serial->mcr & MCR_LOOP) {
		if (!serial_push(serial, byte))
			serial->lsr_errors |= LSR_OVERRUN;
		return;
	}
	console_output(serial->machine->console, byte);
	serial_watch_line(serial, byte);
}

// In loopback the modem inputs are the modem outputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
static uint8_t serial_modem_inputs(const struct serial *serial)
{
	uint8_t mcr = serial->mcr;

	if (!(mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	return (mcr & 2 ? MSR_CTS : 0) | (mcr & 1 ? MSR_DSR : 0) | (mcr & 4 ? MSR_RI : 0) |
	       (mcr & 8 ? MSR_DCD : 0);
}

static void serial_update_modem(struct serial *serial)
{
	uint8_t now = serial_modem_inputs(serial), changed = (serial->msr ^ now) & 0xf0;

	// Delta bits: bit for bit below the inputs, but RI counts only when it falls.
	if (!(serial->msr & MSR_RI))
		changed &= ~MSR_RI;
	serial->msr = now | (serial->msr & MSR_DELTA) | changed >> 4;
}

static uint32_t serial_read(void *opaque, uint16_t offset, unsigned size)
{
	struct serial *serial = opaque;
	bool wake = false;
	uint8_t value = 0;

	pthread_mutex_lock(&serial->lock);
	if (offset != REG_LSR)
		serial->status_polls = 0;
	switch (offset) {
	case REG_DATA:
		if (serial->lcr & LCR_DLAB) {
			value = serial->divisor & 0xff;
		} else {
			value = serial_pop(serial);
			wake = !serial->fifo_count;
		}
		break;
	case REG_IER:
		value = serial->lcr & LCR_DLAB ? serial->divisor >> 8 : serial->ier;
		break;
	case REG_IIR_FCR:
		value = serial_interrupt_identity(serial);
		if (value == IIR_TRANSMIT)
			serial->transmit_interrupt = false;
		if (serial->fcr & FCR_ENABLE)
			value |= IIR_FIFOS;
		break;
	case REG_LCR:
		value = serial->lcr;
		break;
	case REG_MCR:
		value = serial->mcr;
		break;
	case REG_LSR:
		value = LSR_THR_EMPTY | LSR_IDLE | serial->lsr_errors | (serial->fifo_count ? LSR_DATA_READY : 0);
		serial->lsr_errors = 0;
		if (++serial->status_polls == POLLS_MEAN_WAITING)
			wake = true;
		break;
	case REG_MSR:
		value = serial->msr;
		serial->msr &= ~MSR_DELTA;
		break;
	case REG_SCR:
		value = serial->scr;
		break;
	}
	serial_update_irq(serial);
	pthread_mutex_unlock(&serial->lock);
	if (wake)
		console_wake(serial->machine->console);
	return value;
}

static void serial_write(void *opaque, uint16_t offset, uint32_t value32, unsigned size)
{
	struct serial *serial = opaque;
	uint8_t value = value32;
	bool wake = false;

	pthread_mutex_lock(&serial->lock);
	serial->status_polls = 0;
	switch (offset) {
	case REG_DATA:
		if (serial->lcr & LCR_DLAB)
			serial->divisor = (serial->divisor & 0xff00) | value;
		else
			serial_transmit(serial, value);
		break;
	case REG_IER:
		if (serial->lcr & LCR_DLAB) {
			serial->divisor = (serial->divisor & 0xff) | value << 8;
			break;
		}
		// Enabling the transmit interrupt while the register is empty raises it at once.
		if ((value & IER_TRANSMIT) && !(serial->ier & IER_TRANSMIT))
			serial->transmit_interrupt = true;
		wake = (value & IER_RECEIVE) && !(serial->ier & IER_RECEIVE);
		serial->ier = value & 0x0f;
		break;
	case REG_IIR_FCR:
		if ((value ^ serial->fcr) & FCR_ENABLE || value & FCR_CLEAR_RECEIVE)
			serial->fifo_count = 0;
		serial->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
		break;
	case REG_LCR:
		serial->lcr = value;
		break;
	case REG_MCR:
		serial->mcr = value & 0x1f;
		serial->rts_used |= value & MCR_RTS && !(value & MCR_LOOP);
		wake = value & MCR_RTS;
		serial_update_modem(serial);
		break;
	case REG_SCR:
		serial->scr = value;
		break;
	}
	serial_update_irq(serial);
	pthread_mutex_unlock(&serial->lock);
	if (wake)
		console_wake(serial->machine->console);
}

static bool serial_listens(const struct serial *serial)
{
	if (serial->rts_used && !(serial->mcr & MCR_RTS))
		return false;
	return !(serial->mcr & MCR_LOOP) && serial->fifo_count < serial_fifo_capacity(serial) &&
	       ((serial->ier & IER_RECEIVE) || serial->status_polls >= POLLS_MEAN_WAITING);
}

bool serial_wants_input(struct machine *machine)
{
	struct serial *serial = machine->serial;
	bool wants;

	pthread_mutex_lock(&serial->lock);
	wants = serial_listens(serial);
	pthread_mutex_unlock(&serial->lock);
	return wants;
}

size_t serial_input(struct machine *machine, const uint8_t *data, size_t length)
{
	struct serial *serial = machine->serial;
	size_t taken = 0;

	pthread_mutex_lock(&serial->lock);
	while (taken < length && serial_listens(serial))
		serial_push(serial, data[taken++]);
	serial_update_irq(serial);
	pthread_mutex_unlock(&serial->lock);
	return taken;
}

int serial_create(struct machine *machine)
{
	struct serial *serial = calloc(1, sizeof(*serial));
	struct port_device device = {
		.first = SERIAL_PORT, .count = 8, .read = serial_read, .write = serial_write, .opaque = serial,
	};

	if (!serial)
		return -1;
	pthread_mutex_init(&serial->lock, NULL);
	serial->machine = machine;
	serial->divisor = 12; // 9600 baud
	serial->msr = serial_modem_inputs(serial);
	machine->serial = serial;
	port_bus_add(&machine->ports, &device);
	return 0;
}

void serial_destroy(struct machine *machine)
{
	free(machine->serial);
	machine->serial = NULL;
}
