// SPDX-License-Identifier: MIT
// Interrupts as a client sees them: irqfds, ioeventfds, routing, split and absent controllers.
#include "machine.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VECTOR 0x40
#define SPLIT 4
#define PAYLOAD_LEVEL (1u << 15)

// A guest with its local APIC on (memory-mapped, software-enabled by GET/SET_LAPIC), which halts with
// interrupts on; the handler of VECTOR is `out 0x80,al` or what the test puts there.
static void lapic_on(struct machine *m)
{
	struct kvm_lapic_state lapic;

	call(m->vcpu, KVM_GET_LAPIC, &lapic);
	lapic.regs[0xf0] = 0xff;
	lapic.regs[0xf1] = 1;
	call(m->vcpu, KVM_SET_LAPIC, &lapic);
}

static void handler_at(struct machine *m, unsigned vector, unsigned address, const void *code, size_t size)
{
	uint16_t pointer[2] = { (uint16_t)address, 0 };

	memcpy(m->memory + vector * 4, pointer, 4);
	memcpy(m->memory + address, code, size);
}

static void start(struct machine *m, unsigned flags)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };

	machine_start(m, (flags & ~(unsigned)SPLIT) | NO_VCPU);
	if (flags & SPLIT)
		call(m->vm, KVM_ENABLE_CAP, &cap);
	machine_vcpu(m);
}

static int irqfd(struct machine *m, int fd, unsigned gsi, unsigned flags, int resample)
{
	struct kvm_irqfd args = { .fd = (uint32_t)fd, .gsi = gsi, .flags = flags, .resamplefd = (uint32_t)resample };

	return error_of(call(m->vm, KVM_IRQFD, &args));
}

static int route(struct machine *m, unsigned gsi, unsigned vector, unsigned data)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[1]; } table = {
		.head.nr = 1,
		.entries = { { .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI,
			       .u.msi = { .address_lo = 0xfee00000, .data = vector | data } } } };

	return error_of(call(m->vm, KVM_SET_GSI_ROUTING, &table));
}

static void signal_eventfd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != sizeof(one))
		abort();
}

static uint64_t count_of(int fd)
{
	uint64_t count = 0;

	if (read(fd, &count, sizeof(count)) != sizeof(count))
		return 0;
	return count;
}

static bool in_irr(struct machine *m, unsigned vector)
{
	struct kvm_lapic_state lapic;

	call(m->vcpu, KVM_GET_LAPIC, &lapic);
	return lapic.regs[0x200 + vector / 32 * 16 + vector % 32 / 8] >> vector % 8 & 1;
}

static bool comes_into_irr(struct machine *m, unsigned vector)
{
	for (unsigned i = 0; i < 2000 && !in_irr(m, vector); i++)
		usleep(1000);
	return in_irr(m, vector);
}

static void test_irqfd_rules(void)
{
	struct machine m, other;
	int fd = eventfd(0, EFD_NONBLOCK), fd2 = dup(fd), file = memfd_create("x", 0);

	start(&m, 0);
	is(irqfd(&m, fd, 5, 0, 0), EAGAIN, "irqfd without controllers");
	machine_end(&m);
	start(&m, IRQCHIP);
	start(&other, IRQCHIP);
	is(irqfd(&m, 9999, 5, 0, 0), EBADF, "no such descriptor");
	is(irqfd(&m, file, 5, 0, 0), EINVAL, "not an eventfd");
	is(irqfd(&m, fd, 5, 4, 0), EINVAL, "unknown flag");
	is(irqfd(&m, fd, 5, KVM_IRQFD_FLAG_RESAMPLE, 9999), EBADF, "bad resamplefd");
	is(irqfd(&m, fd, 5, KVM_IRQFD_FLAG_RESAMPLE, file), EINVAL, "resamplefd is not an eventfd");
	is(irqfd(&m, fd, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassign of what was never assigned");
	is(irqfd(&m, 9999, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), EBADF, "deassign: no such descriptor");
	is(irqfd(&m, file, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), EINVAL, "deassign: not an eventfd");
	is(irqfd(&m, fd, 5, 0, 0), 0, "assign");
	is(irqfd(&m, fd, 5, 0, 0), EBUSY, "twice");
	is(irqfd(&m, fd2, 6, 0, 0), EBUSY, "by another number, for another GSI");
	is(irqfd(&other, fd, 5, 0, 0), EBUSY, "by another machine");
	is(irqfd(&m, fd, 6, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassign for another GSI");
	is(irqfd(&m, fd, 5, 0, 0), EBUSY, "does nothing");
	is(irqfd(&other, fd, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassign by another machine");
	is(irqfd(&m, fd, 5, 0, 0), EBUSY, "does nothing");
	is(irqfd(&m, fd2, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassign by another number");
	is(irqfd(&other, fd, 5, 0, 0), 0, "now the other machine gets it");
	cetkvm_close(other.vm);
	is(irqfd(&m, fd, 5, 0, 0), 0, "and gives it back when its descriptor is closed");
	other.vm = cetkvm_open();
	machine_end(&other);

	// Closed without deassignment, many times over: nothing is used up.
	unsigned good = 0;
	for (unsigned i = 0; i < 2000; i++) {
		int one = eventfd(0, 0);

		good += one >= 0 && irqfd(&m, one, 7, 0, 0) == 0;
		close(one);
	}
	is(good, 2000, "closing the eventfd detaches it");
	machine_end(&m);
	start(&m, SPLIT);
	is(irqfd(&m, fd, 5, KVM_IRQFD_FLAG_RESAMPLE, fd2), EINVAL, "no resampling with a split irqchip");
	machine_end(&m);
	close(fd);
	close(fd2);
	close(file);
}

static void test_irqfd_signal(void)
{
	struct machine m;
	int fd = eventfd(3, 0); // blocking, signalled before

	start(&m, SPLIT);
	lapic_on(&m);
	is(route(&m, 5, VECTOR, 0), 0, "a route");
	is(irqfd(&m, fd, 5, 0, 0), 0, "irqfd");
	ok(comes_into_irr(&m, VECTOR), "what was pending at assignment arrives");
	struct pollfd p = { .fd = fd, .events = POLLIN };
	for (unsigned i = 0; i < 1000 && poll(&p, 1, 0); i++)
		usleep(1000);
	is(poll(&p, 1, 0), 0, "the count was read");
	is(route(&m, 5, VECTOR + 1, 0), 0, "another route");
	signal_eventfd(fd);
	ok(comes_into_irr(&m, VECTOR + 1), "the irqfd follows it");
	is(irqfd(&m, fd, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassigned");
	is(route(&m, 5, VECTOR + 2, 0), 0, "a third route");
	signal_eventfd(fd);
	usleep(20000);
	ok(!in_irr(&m, VECTOR + 2), "signals go nowhere now");
	is(count_of(fd), 1, "and stay with the eventfd");
	machine_end(&m);
	close(fd);
}

static void ioapic_entry(struct machine *m, unsigned pin, uint64_t entry)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	call(m->vm, KVM_GET_IRQCHIP, &chip);
	chip.chip.ioapic.redirtbl[pin].bits = entry;
	call(m->vm, KVM_SET_IRQCHIP, &chip);
}

static unsigned remote_irr(struct machine *m, unsigned pin)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	call(m->vm, KVM_GET_IRQCHIP, &chip);
	return chip.chip.ioapic.redirtbl[pin].fields.remote_irr;
}

// Handler: EOI by the local APIC's page, then out 0x80,al; iret.
static const uint8_t eoi_handler[] = {
	0x66, 0xc7, 0x06, 0xb0, 0x00, 0, 0, 0, 0, // mov dword [0xb0],0
	0xe6, 0x80, 0xcf,
};

// Flat real mode: DS reaches the APIC's page.
static void ds_to_apic(struct machine *m)
{
	struct kvm_sregs sregs;

	call(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0xfee00000;
	call(m->vcpu, KVM_SET_SREGS, &sregs);
}

static void test_resample(void)
{
	struct machine m;
	int fd = eventfd(0, EFD_NONBLOCK), resample = eventfd(0, EFD_NONBLOCK);

	start(&m, IRQCHIP);
	lapic_on(&m);
	ds_to_apic(&m);
	handler_at(&m, VECTOR, 0x3000, eoi_handler, sizeof(eoi_handler));
	ioapic_entry(&m, 10, VECTOR | PAYLOAD_LEVEL);
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[1]; } table = {
		.head.nr = 1, .entries = { { .gsi = 10, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { 2, 10 } } } };
	is(call(m.vm, KVM_SET_GSI_ROUTING, &table), 0, "to the I/O APIC alone");
	is(irqfd(&m, fd, 10, KVM_IRQFD_FLAG_RESAMPLE, resample), 0, "irqfd with resampling");
	signal_eventfd(fd);
	ok(comes_into_irr(&m, VECTOR), "the line is raised");
	is(remote_irr(&m, 10), 1, "and waits for EOI");
	is(count_of(resample), 0, "nobody was told");
	machine_bytes(&m, 0xfb, 0xf4, 0xeb, 0xfd); // sti; hlt; jmp
	is(machine_run(&m), KVM_EXIT_IO, "the handler runs");
	is(count_of(resample), 1, "EOI: resample");
	is(remote_irr(&m, 10), 0, "the line is down");
	// A level that stays is raised again by the device.
	signal_eventfd(fd);
	is(machine_run(&m), KVM_EXIT_IO, "raised again, taken again");
	is(count_of(resample), 1, "and told again");
	is(irqfd(&m, fd, 10, KVM_IRQFD_FLAG_DEASSIGN, 0), 0, "deassigned");
	machine_end(&m);
	close(fd);
	close(resample);
}

static int ioeventfd(struct machine *m, int fd, uint64_t address, unsigned length, unsigned flags, uint64_t data)
{
	struct kvm_ioeventfd args = { .fd = fd, .addr = address, .len = length, .flags = flags, .datamatch = data };

	return error_of(call(m->vm, KVM_IOEVENTFD, &args));
}

static void test_ioeventfd(void)
{
	enum { PIO = KVM_IOEVENTFD_FLAG_PIO, MATCH = KVM_IOEVENTFD_FLAG_DATAMATCH, OFF = KVM_IOEVENTFD_FLAG_DEASSIGN };
	struct machine m;
	int a = eventfd(0, EFD_NONBLOCK), b = eventfd(0, EFD_NONBLOCK), file = memfd_create("x", 0);

	machine_start(&m, 0);
	is(ioeventfd(&m, a, 0x100, 3, PIO, 0), EINVAL, "length 3");
	is(ioeventfd(&m, a, 0x100, 0, PIO | MATCH, 0), EINVAL, "any length and a value");
	is(ioeventfd(&m, a, ~0ull, 8, 0, 0), EINVAL, "beyond the end");
	is(ioeventfd(&m, a, 0x100, 1, 1 << 5, 0), EINVAL, "unknown flag");
	is(ioeventfd(&m, 9999, 0x100, 1, PIO, 0), EBADF, "no such descriptor");
	is(ioeventfd(&m, file, 0x100, 1, PIO, 0), EINVAL, "not an eventfd");
	is(ioeventfd(&m, a, 0x100, 1, PIO | OFF, 0), ENOENT, "deassign of what is not there");
	is(ioeventfd(&m, a, 0x100, 2, PIO | MATCH, 0x1234), 0, "port, two bytes, a value");
	is(ioeventfd(&m, b, 0x100, 2, PIO | MATCH, 0x1234), EEXIST, "the same");
	is(ioeventfd(&m, b, 0x100, 2, PIO, 0), EEXIST, "a superset");
	is(ioeventfd(&m, b, 0x100, 0, PIO, 0), EEXIST, "any length");
	is(ioeventfd(&m, b, 0x100, 2, PIO | MATCH, 0x1235), 0, "another value");
	is(ioeventfd(&m, b, 0x100, 1, PIO, 0), 0, "another length");
	is(ioeventfd(&m, b, 0xd0000, 0, 0, 0), 0, "memory, any length");
	is(ioeventfd(&m, b, 0x102, 1, PIO | MATCH, 0x177), 0, "a value wider than the access");
	machine_bytes(&m, 0xba, 0x02, 0x01, 0xb0, 0x77, 0xee, 0xf4); // mov dx,0x102; mov al,0x77; out dx,al; hlt
	is(machine_run(&m), KVM_EXIT_IO, "never matches");
	is(ioeventfd(&m, a, 0x103, 1, PIO | MATCH, 1), 0, "one value of a repeated output");
	// mov dx,0x103; mov si,0x3000; mov cx,3; rep outsb; hlt
	machine_bytes(&m, 0xba, 0x03, 0x01, 0xbe, 0x00, 0x30, 0xb9, 3, 0, 0xf3, 0x6e, 0xf4);
	memcpy(m.memory + 0x3000, "\1\2\1", 3);
	is(machine_run(&m), KVM_EXIT_IO, "the second byte exits");
	ok(m.run->io.count == 2 && !memcmp((uint8_t *)m.run + 4096, "\2\1", 2), "with what follows");
	is(count_of(a), 1, "the first has been taken");
	is(machine_run(&m), KVM_EXIT_HLT, "once");
	// mov dx,0x100; mov ax,0x1234; out dx,ax; inc ax; out dx,ax; out dx,al; inc ax; out dx,ax
	machine_bytes(&m, 0xba, 0x00, 0x01, 0xb8, 0x34, 0x12, 0xef, 0x40, 0xef, 0xee, 0x40, 0xef, 0xf4);
	is(machine_run(&m), KVM_EXIT_IO, "a value that nobody wants");
	ok(m.run->io.port == 0x100 && *(uint16_t *)((uint8_t *)m.run + 4096) == 0x1236, "reaches user space");
	is(count_of(a), 1, "the first value");
	is(count_of(b), 2, "the second, and the byte");
	is(machine_run(&m), KVM_EXIT_HLT, "end");
	// mov ax,0xd000; mov ds,ax; mov [0],al; mov [0],ax; mov dword [0],0; hlt
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa2, 0, 0, 0xa3, 0, 0, 0x66, 0xc7, 0x06, 0, 0, 0, 0, 0, 0, 0xf4);
	is(machine_run(&m), KVM_EXIT_HLT, "memory writes do not exit");
	is(count_of(b), 3, "each signals");
	is(ioeventfd(&m, b, 0xd0000, 4, OFF, 0), ENOENT, "deassign with another length");
	is(ioeventfd(&m, a, 0xd0000, 0, OFF, 0), ENOENT, "deassign with another eventfd");
	is(ioeventfd(&m, b, 0xd0000, 0, OFF, 0), 0, "deassign");
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa2, 0, 0, 0xf4);
	is(machine_run(&m), KVM_EXIT_MMIO, "exits again");
	unsigned good = 0;
	for (unsigned i = 0; i < 1200; i++)
		good += ioeventfd(&m, a, 0x10000 + i * 8, 8, 0, 0) == 0;
	is(good, 1200, "as many as there are descriptors for");
	machine_end(&m);
	close(a);
	close(b);
	close(file);
}

static void test_coalesced(void)
{
	struct machine m;
	struct kvm_coalesced_mmio_zone zone = { .addr = 0x70, .size = 2, .pio = 1 };
	struct kvm_coalesced_mmio_ring *ring;
	unsigned room = (4096 - sizeof(*ring)) / sizeof(ring->coalesced_mmio[0]);

	machine_start(&m, 0);
	ring = (void *)((uint8_t *)m.run + 2 * 4096);
	is(call(m.vm, KVM_REGISTER_COALESCED_MMIO, &zone), 0, "a zone of ports");
	machine_bytes(&m, 0xb0, 0x0f, 0xe6, 0x70, 0xe5, 0x70, 0xf4); // mov al,15; out 0x70,al; in ax,0x70; hlt
	is(machine_run(&m), KVM_EXIT_IO, "IN");
	ok(ring->last == 1 && ring->coalesced_mmio[0].phys_addr == 0x70 && ring->coalesced_mmio[0].pio == 1 &&
	   ring->coalesced_mmio[0].len == 1 && ring->coalesced_mmio[0].data[0] == 15, "the OUT is in the ring");
	machine_run(&m);
	// Full: the write exits.
	machine_bytes(&m, 0xe6, 0x70, 0xeb, 0xfc);
	ring->first = 0;
	is(machine_run(&m), KVM_EXIT_IO, "the ring is full: exit");
	is(ring->last, room - 1, "one entry stays free");
	ring->first = ring->last;
	unsigned was = ring->last;
	machine_run(&m);
	is((ring->last + room - was) % room, room - 1, "what user space wrote is not put into it as well");
	ok(ring->last != ring->first, "emptied, it is used again");
	zone.size = 4;
	is(call(m.vm, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0, "a larger zone is not that one");
	ring->first = ring->last;
	machine_bytes(&m, 0xe6, 0x70, 0xe6, 0x80, 0xf4);
	machine_run(&m);
	is(m.run->io.port, 0x80, "still coalesced");
	zone.size = 1;
	is(call(m.vm, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0, "a part of it removes it");
	machine_bytes(&m, 0xe6, 0x70, 0xf4);
	machine_run(&m);
	is(m.run->io.port, 0x70, "not any more");
	zone.pio = 2;
	is(error_of(call(m.vm, KVM_REGISTER_COALESCED_MMIO, &zone)), EINVAL, "pio is 0 or 1");
	machine_end(&m);
}

static int interrupt(struct machine *m, unsigned vector)
{
	struct kvm_interrupt irq = { .irq = vector };

	return error_of(call(m->vcpu, KVM_INTERRUPT, &irq));
}

static void extint_on(struct machine *m, bool on)
{
	struct kvm_lapic_state lapic;

	call(m->vcpu, KVM_GET_LAPIC, &lapic);
	lapic.regs[0x351] = 7; // ExtINT
	lapic.regs[0x352] = !on;
	call(m->vcpu, KVM_SET_LAPIC, &lapic);
}

static void test_split(void)
{
	static const uint8_t handler[] = { 0xe6, 0x80, 0xcf };
	struct machine m;
	struct kvm_irq_level line = { .irq = 9, .level = 1 };
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = VECTOR };

	start(&m, SPLIT);
	lapic_on(&m);
	extint_on(&m, true);
	handler_at(&m, VECTOR, 0x3000, handler, sizeof(handler));
	handler_at(&m, VECTOR + 1, 0x3100, eoi_handler, sizeof(eoi_handler));
	is(interrupt(&m, 256), EINVAL, "KVM_INTERRUPT: vector 256");
	is(interrupt(&m, VECTOR), 0, "queued");
	is(interrupt(&m, VECTOR), EEXIST, "one at a time");
	machine_bytes(&m, 0xb8, 0, 0, 0xe6, 0x81, 0xfb, 0x90, 0xf4, 0xeb, 0xfd); // mov ax; out 0x81; sti; nop; hlt; jmp
	machine_run(&m);
	is(m.run->io.port, 0x81, "not while interrupts are off");
	is(m.run->ready_for_interrupt_injection, 0, "not ready for another one");
	machine_run(&m);
	is(m.run->io.port, 0x80, "behind STI");

	// The window, and LINT0.
	machine_bytes(&m, 0xfa, 0xe6, 0x81, 0xfb, 0x90, 0xeb, 0xfe); // cli; out 0x81; sti; nop; jmp .
	machine_run(&m);
	m.run->request_interrupt_window = 1;
	is(machine_run(&m), KVM_EXIT_IRQ_WINDOW_OPEN, "the window opens");
	is(machine_regs(&m).rip, m.code + 5, "one instruction behind STI");
	is(m.run->ready_for_interrupt_injection, 1, "ready");
	extint_on(&m, false);
	interrupt(&m, VECTOR);
	m.run->request_interrupt_window = 0;
	m.run->immediate_exit = 1;
	is(machine_run(&m), -EINTR, "LINT0 is masked");
	m.run->immediate_exit = 0;
	is(m.run->ready_for_interrupt_injection, 0, "nothing can be injected");
	extint_on(&m, true);
	is(machine_run(&m), KVM_EXIT_IO, "open again, the interrupt comes");

	// Level-triggered routes: EOI exits. Edge-triggered ones: none.
	ds_to_apic(&m);
	is(route(&m, 9, VECTOR + 1, PAYLOAD_LEVEL), 0, "a level route");
	is(call(m.vm, KVM_IRQ_LINE_STATUS, &line), 0, "KVM_IRQ_LINE through it");
	is(line.status, 1, "delivered");
	machine_bytes(&m, 0xfb, 0xf4, 0xeb, 0xfd);
	// The handler's next instruction is an OUT, in the same block: both exits come.
	unsigned eois = 0, outs = 0;
	for (unsigned i = 0; i < 2; i++) {
		int exit = machine_run(&m);

		eois += exit == KVM_EXIT_IOAPIC_EOI && m.run->eoi.vector == VECTOR + 1;
		outs += exit == KVM_EXIT_IO && m.run->io.port == 0x80;
	}
	ok(eois == 1 && outs == 1, "EOI exits with the vector, and nothing else is lost");
	msi.data = VECTOR + 1;
	is(call(m.vm, KVM_SIGNAL_MSI, &msi), 1, "the same vector, edge-triggered");
	is(machine_run(&m), KVM_EXIT_IO, "its handler");
	msi.data = VECTOR;
	is(call(m.vm, KVM_SIGNAL_MSI, &msi), 1, "and the next");
	is(machine_run(&m), KVM_EXIT_IO, "no EOI exit between");

	line.irq = 4095;
	is(call(m.vm, KVM_IRQ_LINE_STATUS, &line), 0, "a GSI without route");
	is((int)line.status, -1, "status -1");
	is(error_of(call(m.vm, KVM_CREATE_PIT2, &(struct kvm_pit_config){ 0 })), ENOENT, "no 8254");
	machine_end(&m);
}

static void test_no_chip(void)
{
	static const uint8_t handler[] = { 0xe6, 0x80, 0xf4 };
	struct machine m;
	struct kvm_vcpu_events events;

	machine_start(&m, 0);
	handler_at(&m, VECTOR, 0x3000, handler, sizeof(handler));
	machine_bytes(&m, 0xfb, 0xf4); // sti; hlt
	is(machine_run(&m), KVM_EXIT_HLT, "HLT is user space's");
	is(m.run->if_flag, 1, "IF");
	is(m.run->ready_for_interrupt_injection, 1, "ready");
	is(interrupt(&m, VECTOR), 0, "injected");
	is(interrupt(&m, VECTOR), 0, "again: always queued");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	ok(events.interrupt.injected && events.interrupt.nr == VECTOR, "the events tell");
	is(machine_run(&m), KVM_EXIT_IO, "delivered");
	is(machine_run(&m), KVM_EXIT_HLT, "once");
	is(m.run->if_flag, 0, "handlers run with interrupts off");
	is(m.run->ready_for_interrupt_injection, 0, "not ready");

	// CR8 both ways.
	m.run->cr8 = 16;
	is(machine_run(&m), -EINVAL, "CR8 has four bits");
	machine_end(&m);
}

static void test_ids(void)
{
	struct machine m;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MAX_VCPU_ID, .args = { 4097 } };
	long max;

	machine_start(&m, NO_VCPU);
	max = call(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID);
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "more IDs than there are");
	is(error_of(call(m.vm, KVM_SET_BOOT_CPU_ID, max + 1)), EINVAL, "boot CPU beyond");
	is(error_of(call(m.vm, KVM_SET_BOOT_CPU_ID, 1ul << 32)), EINVAL, "boot CPU beyond 32 bits");
	is(call(m.vm, KVM_SET_BOOT_CPU_ID, 5), 0, "boot CPU 5");
	cap.args[0] = 4;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "fewer IDs than the boot CPU's");
	cap.args[0] = 8;
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "8 IDs");
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "8 again");
	cap.args[0] = 9;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "9: only once");
	is(error_of(call(m.vm, KVM_CREATE_VCPU, 8)), EINVAL, "a vCPU beyond");
	is(error_of(call(m.vm, KVM_CREATE_VCPU, 5)), 0, "one within");
	is(error_of(call(m.vm, KVM_SET_BOOT_CPU_ID, 0)), EBUSY, "boot CPU after the first vCPU");
	machine_end(&m);
}

static void test_bus_cycle(void)
{
	struct machine m;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_APIC_BUS_CYCLES_NS, .args = { 0 } };
	struct kvm_lapic_state lapic;
	uint32_t count;

	machine_start(&m, NO_VCPU);
	cap.args[0] = 10;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), ENXIO, "bus cycle without local APICs");
	call(m.vm, KVM_CREATE_IRQCHIP, 0);
	is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "10 ns");
	cap.args[0] = 0;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "0");
	cap.args[0] = 1ull << 40;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "overflow");
	machine_vcpu(&m);
	cap.args[0] = 20;
	is(error_of(call(m.vm, KVM_ENABLE_CAP, &cap)), EINVAL, "after the first vCPU");
	lapic_on(&m);
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	lapic.regs[0x3e0] = 0xb; // divide by 1
	count = 100000000;
	memcpy(lapic.regs + 0x380, &count, 4);
	memcpy(lapic.regs + 0x390, &count, 4);
	call(m.vcpu, KVM_SET_LAPIC, &lapic);
	usleep(100000);
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&count, lapic.regs + 0x390, 4);
	ok(count <= 90000000 && count > 40000000, "100 ms are 10,000,000 ticks (left: %u)", count);
	machine_end(&m);
}

// An acknowledged interrupt whose delivery hits memory that user space took away is not lost.
static void test_delivery_fault(void)
{
	static const uint8_t handler[] = { 0xe6, 0x80, 0xf4 };
	struct machine m;
	struct kvm_vcpu_events events;
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = VECTOR };

	start(&m, IRQCHIP);
	lapic_on(&m);
	handler_at(&m, VECTOR, 0x3000, handler, sizeof(handler));
	machine_bytes(&m, 0xfb, 0xf4, 0xeb, 0xfd);
	is(call(m.vm, KVM_SIGNAL_MSI, &msi), 1, "an interrupt");
	mprotect(m.memory, 4096, PROT_NONE); // the stack is below 0x1000, the table at 0
	is(machine_run(&m), -EFAULT, "its delivery cannot be finished");
	ok(!in_irr(&m, VECTOR), "it was acknowledged");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	ok(events.interrupt.injected && events.interrupt.nr == VECTOR, "and is kept as injected");
	is(machine_run(&m), -EFAULT, "tried again, the same");
	mprotect(m.memory, 4096, PROT_READ | PROT_WRITE);
	memset(&events, 0, sizeof(events));
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "saved and restored");
	is(machine_run(&m), KVM_EXIT_IO, "delivered");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	is(events.interrupt.injected, 0, "once");

	// An NMI likewise.
	handler_at(&m, 2, 0x3000, handler, sizeof(handler));
	machine_bytes(&m, 0x90, 0xf4, 0xeb, 0xfd);
	call(m.vcpu, KVM_NMI, 0);
	mprotect(m.memory, 4096, PROT_NONE);
	is(machine_run(&m), -EFAULT, "an NMI's delivery");
	call(m.vcpu, KVM_GET_VCPU_EVENTS, &events);
	ok(events.nmi.injected && events.nmi.masked && !events.nmi.pending, "is kept");
	mprotect(m.memory, 4096, PROT_READ | PROT_WRITE);
	is(machine_run(&m), KVM_EXIT_IO, "delivered");
	machine_end(&m);
}

static void test_routing(void)
{
	enum { N = 4096 };
	struct machine m;
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[N + 1]; } *table = calloc(1, sizeof(*table));
	struct kvm_irq_routing_entry *e = table->entries;

	machine_start(&m, NO_VCPU);
	table->head.nr = 1;
	e[0].type = KVM_IRQ_ROUTING_MSI;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "routing without controllers");
	call(m.vm, KVM_CREATE_IRQCHIP, 0);
	for (unsigned i = 0; i < N; i++) {
		e[i].gsi = N - 1 - i;
		e[i].type = KVM_IRQ_ROUTING_MSI;
	}
	table->head.nr = N;
	is(call(m.vm, KVM_SET_GSI_ROUTING, table), 0, "4096 routes");
	table->head.nr = N + 1;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "one more");
	table->head.nr = N;
	e[7].gsi = 9;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "two MSIs for one GSI");
	e[7].gsi = N;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "GSI 4096");
	table->head.nr = 2;
	e[0] = (struct kvm_irq_routing_entry){ .gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { 0, 1 } };
	e[1] = (struct kvm_irq_routing_entry){ .gsi = 1, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = { 2, 1 } };
	is(call(m.vm, KVM_SET_GSI_ROUTING, table), 0, "a pin of each controller");
	e[1].u.irqchip.irqchip = 0;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "two of one");
	e[1].u.irqchip.irqchip = 2;
	e[1].u.irqchip.pin = 24;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "pin 24");
	e[1].u.irqchip.pin = 1;
	e[1].flags = 1;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "flags of a pin's route");
	table->head.flags = 1;
	is(error_of(call(m.vm, KVM_SET_GSI_ROUTING, table)), EINVAL, "flags of the table");
	machine_end(&m);
	free(table);
}

static int set_mce(struct machine *m, unsigned bank, uint64_t status)
{
	struct kvm_x86_mce mce = { .status = status, .addr = 0x1234000, .misc = 0x8c, .mcg_status = 5, .bank = (uint8_t)bank };

	return error_of(call(m->vcpu, KVM_X86_SET_MCE, &mce));
}

static uint64_t msr(struct machine *m, uint32_t index)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } one = { .head.nmsrs = 1, .entry.index = index };

	return call(m->vcpu, KVM_GET_MSRS, &one) == 1 ? one.entry.data : ~0ull;
}

static void test_machine_check(void)
{
	static const uint8_t handler[] = { 0xe6, 0x80, 0xcf };
	const uint64_t valid = 1ull << 63, over = 1ull << 62, uncorrected = 1ull << 61;
	struct machine m;
	uint64_t cap = 10 | 1 << 8;
	struct kvm_cpuid2 *cpuid;
	struct kvm_sregs sregs;

	machine_start(&m, IRQCHIP);
	cpuid = supported_cpuid(m.kvm);
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	is(call(m.vcpu, KVM_X86_SETUP_MCE, &cap), 0, "ten banks");
	is(set_mce(&m, 10, valid), EINVAL, "bank 10");
	is(set_mce(&m, 1, 0), EINVAL, "a status that is not valid");
	is(set_mce(&m, 1, valid | 1), 0, "a corrected error");
	is(msr(&m, 0x405), (long long)(valid | 1), "is in the bank");
	is(msr(&m, 0x406), 0x1234000, "with its address");
	is(set_mce(&m, 1, valid | 2), 0, "another one");
	is(msr(&m, 0x405), (long long)(valid | over | 2), "overflow");
	handler_at(&m, 18, 0x3000, handler, sizeof(handler));
	machine_bytes(&m, 0x90, 0xe6, 0x81, 0xeb, 0xfc);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cr4 |= 1 << 6;
	is(call(m.vcpu, KVM_SET_SREGS, &sregs), 0, "CR4.MCE");
	is(set_mce(&m, 2, valid | uncorrected | 3), 0, "an uncorrected error");
	is(msr(&m, 0x17a), 5, "MCG_STATUS: in progress");
	machine_run(&m);
	is(m.run->io.port, 0x80, "#MC");
	is(set_mce(&m, 1, valid | 4), 0, "a corrected error in another bank");
	is(set_mce(&m, 2, valid | 4), 0, "and in the same");
	is(msr(&m, 0x409), (long long)(valid | over | uncorrected | 3), "does not push out the uncorrected one");
	is(set_mce(&m, 3, valid | uncorrected | 3), 0, "an uncorrected error while one is handled");
	is(machine_run(&m), KVM_EXIT_SHUTDOWN, "shuts the processor down");
	machine_end(&m);
}

// struct kvm_lapic_state in x2APIC mode, by KVM_CAP_X2APIC_API.
static void test_x2apic_ids(bool wide)
{
	struct machine m;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X2APIC_API, .args = { KVM_X2APIC_API_USE_32BIT_IDS } };
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } base = {
		.head.nmsrs = 1, .entry = { .index = 0x1b, .data = 0xfee00c00 } };
	struct kvm_cpuid2 *cpuid;
	struct kvm_lapic_state lapic;
	uint32_t id, zero = 0;

	machine_start(&m, IRQCHIP | NO_VCPU);
	if (wide)
		is(call(m.vm, KVM_ENABLE_CAP, &cap), 0, "32-bit IDs");
	m.vcpu = call(m.vm, KVM_CREATE_VCPU, 0x123);
	is(error_of(call(m.vcpu, KVM_SET_MSRS, &base)), 0, "x2APIC mode without X2APIC in CPUID");
	is(call(m.vcpu, KVM_SET_MSRS, &base), 0, "is refused");
	cpuid = supported_cpuid(m.kvm);
	call(m.vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	is(call(m.vcpu, KVM_SET_MSRS, &base), 1, "x2APIC mode");
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&id, lapic.regs + 0x20, 4);
	is(id, wide ? 0x123 : 0x23000000, "the ID register");
	memcpy(lapic.regs + 0x20, &zero, 4);
	is(error_of(call(m.vcpu, KVM_SET_LAPIC, &lapic)), wide ? EINVAL : 0, "another ID is %s", wide ? "refused" : "ignored");
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&id, lapic.regs + 0x20, 4);
	is(id, wide ? 0x123 : 0x23000000, "the ID stays");
	memcpy(&id, lapic.regs + 0xd0, 4);
	is(id, 0x12 << 16 | 1 << 3, "the LDR follows from it");
	base.entry.data = 0xfee00800;
	is(call(m.vcpu, KVM_SET_MSRS, &base), 1, "back to xAPIC mode, as only user space can");
	call(m.vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&id, lapic.regs + 0x20, 4);
	is(id, 0x23000000, "an 8-bit ID again");
	struct kvm_msi msi = { .address_lo = 0xfee00000, .address_hi = 1, .data = VECTOR };
	is(error_of(call(m.vm, KVM_SIGNAL_MSI, &msi)), wide ? EINVAL : 0, "address_hi bits 7:0");
	machine_end(&m);
}

int main(void)
{
	test_machine_check();
	test_x2apic_ids(false);
	test_x2apic_ids(true);
	test_irqfd_rules();
	test_irqfd_signal();
	test_resample();
	test_ioeventfd();
	test_coalesced();
	test_split();
	test_no_chip();
	test_ids();
	test_bus_cycle();
	test_delivery_fault();
	test_routing();
	return done_testing();
}
