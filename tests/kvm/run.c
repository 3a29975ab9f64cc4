// SPDX-License-Identifier: MIT
// KVM_RUN: exits and their completion, leaving early, sleeping and waking.
#include "machine.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static void test_ports(void)
{
	struct machine m;

	machine_start(&m, 0);
	// mov dx,0x3f8; in ax,dx; out 0x80,al; hlt
	machine_bytes(&m, 0xba, 0xf8, 0x03, 0xed, 0xe6, 0x80, 0xf4);
	is(machine_run(&m), KVM_EXIT_IO, "IN");
	ok(m.run->io.direction == KVM_EXIT_IO_IN && m.run->io.size == 2 && m.run->io.port == 0x3f8 &&
	   m.run->io.count == 1 && m.run->io.data_offset == 4096, "described");
	memcpy((uint8_t *)m.run + 4096, "\x34\x12", 2);
	is(machine_run(&m), KVM_EXIT_IO, "OUT");
	is(machine_regs(&m).rax & 0xffff, 0x1234, "the answer arrived");
	is(((uint8_t *)m.run)[4096], 0x34, "data out");
	is(machine_run(&m), KVM_EXIT_HLT, "HLT");
	is(machine_regs(&m).rip, m.code + 7, "behind HLT");

	// mov di,0x4000; mov cx,3; rep insb; hlt
	machine_bytes(&m, 0xbf, 0x00, 0x40, 0xb9, 0x03, 0x00, 0xba, 0x99, 0x00, 0xf3, 0x6c, 0xf4);
	unsigned items = 0, exits = 0;
	while (machine_run(&m) == KVM_EXIT_IO && exits++ < 10)
		for (unsigned i = 0; i < m.run->io.count; i++)
			((uint8_t *)m.run)[4096 + i] = 'a' + items++;
	is(items, 3, "REP INS: three items");
	ok(!memcmp(m.memory + 0x4000, "abc", 3), "in order");

	// The same port twice: the second is not answered with the first one's data.
	machine_bytes(&m, 0xe4, 0x60, 0x88, 0xc4, 0xe4, 0x60, 0xf4);
	machine_run(&m);
	((uint8_t *)m.run)[4096] = 1;
	machine_run(&m);
	((uint8_t *)m.run)[4096] = 2;
	machine_run(&m);
	is(machine_regs(&m).rax & 0xffff, 0x0102, "two reads, two answers");

	// Moved away between exit and completion.
	machine_bytes(&m, 0xe4, 0x60, 0xf4);
	machine_run(&m);
	struct kvm_regs regs = machine_regs(&m);
	is(regs.rip, m.code, "RIP is still at the instruction");
	regs.rip = m.code + 2;
	regs.rax = 0x77;
	call(m.vcpu, KVM_SET_REGS, &regs);
	is(machine_run(&m), KVM_EXIT_HLT, "user space skipped it");
	is(machine_regs(&m).rax, 0x77, "and its answer goes nowhere");
	// Registers written back unchanged do not repeat it.
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	machine_run(&m);
	regs = machine_regs(&m);
	call(m.vcpu, KVM_SET_REGS, &regs);
	is(machine_run(&m), KVM_EXIT_HLT, "an OUT is not made twice");
	machine_end(&m);
}

// What KVM_RUN takes from kvm_run, and how far it gets when a part is no good.
static void test_synchronized_registers(void)
{
	struct kvm_sync_regs *sync;
	struct machine m;

	machine_start(&m, 0);
	sync = &m.run->s.regs;
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	m.run->kvm_valid_regs = 1 << 3;
	is(machine_run(&m), -EINVAL, "an unknown group wanted");
	m.run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	m.run->kvm_dirty_regs = 1 << 3;
	is(machine_run(&m), -EINVAL, "an unknown group dirty");
	m.run->kvm_dirty_regs = 0;
	is(machine_run(&m), KVM_EXIT_IO, "registers wanted");
	is(sync->regs.rip, m.code, "are there");
	sync->regs.rax = 0x55;
	sync->sregs.cr0 |= 1ull << 40;
	m.run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	is(machine_run(&m), -EINVAL, "CR0 that cannot be");
	is(m.run->kvm_dirty_regs, KVM_SYNC_X86_SREGS, "the general registers have been taken");
	is(machine_regs(&m).rax, 0x55, "as they were given");
	sync->sregs.cr0 &= ~(1ull << 40);
	is(machine_run(&m), KVM_EXIT_HLT, "on with a good one");
	is(m.run->kvm_dirty_regs, 0, "taken, too");
	machine_end(&m);
}

static void test_memory(void)
{
	struct machine m;

	machine_start(&m, 0);
	// mov ax,0xd000; mov ds,ax; inc word [0]; mov ax,[0xfff]; hlt
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xff, 0x06, 0x00, 0x00, 0xa1, 0xff, 0x0f, 0xf4);
	is(machine_run(&m), KVM_EXIT_MMIO, "read");
	ok(m.run->mmio.phys_addr == 0xd0000 && m.run->mmio.len == 2 && !m.run->mmio.is_write, "described");
	memcpy(m.run->mmio.data, "\xff\x00", 2);
	is(machine_run(&m), KVM_EXIT_MMIO, "modify, write");
	ok(m.run->mmio.is_write && m.run->mmio.data[0] == 0 && m.run->mmio.data[1] == 1, "the sum");
	unsigned bytes = 0, exits = 0;
	while (machine_run(&m) == KVM_EXIT_MMIO && exits++ < 5) {
		for (unsigned i = 0; i < m.run->mmio.len; i++)
			m.run->mmio.data[i] = 0x11 * ++bytes;
	}
	is(bytes, 2, "across two pages: each its part");
	is(machine_regs(&m).rax & 0xffff, 0x2211, "put together");

	// A loop that polls: every read is asked anew.
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa0, 0, 0, 0x3c, 3, 0x75, 0xf9, 0xf4);
	for (exits = 0; machine_run(&m) == KVM_EXIT_MMIO && exits < 10; exits++)
		m.run->mmio.data[0] = exits;
	is(exits, 4, "polling sees each answer");

	// Coalesced writes come with the next exit.
	struct kvm_coalesced_mmio_zone zone = { .addr = 0xd0000, .size = 16 };
	is(call(m.vm, KVM_REGISTER_COALESCED_MMIO, &zone), 0, "coalesced zone");
	machine_bytes(&m, 0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xa3, 4, 0, 0xa3, 0x10, 0, 0xf4);
	is(machine_run(&m), KVM_EXIT_MMIO, "a write outside exits");
	is(m.run->mmio.phys_addr, 0xd0010, "that one");
	struct kvm_coalesced_mmio_ring *ring = (void *)((uint8_t *)m.run + 2 * 4096);
	ok(ring->last == 1 && ring->coalesced_mmio[0].phys_addr == 0xd0004 && ring->coalesced_mmio[0].len == 2 &&
	   ring->coalesced_mmio[0].data[1] == 0xd0, "the one inside is in the ring");
	machine_end(&m);
}

// ---- leaving ----
static struct kvm_run *thread_run;
static int thread_vcpu;

static void handler(int signal)
{
	thread_run->immediate_exit = 1;
	cetkvm_kick(thread_vcpu);
}

static void quiet_handler(int signal)
{
	thread_run->immediate_exit = 1;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct later {
	pthread_t target;
	int signal, vm, vcpu;
	struct kvm_irq_level line;
};

static void *later_main(void *opaque)
{
	struct later *l = opaque;

	usleep(50000);
	if (l->signal)
		pthread_kill(l->target, l->signal);
	else if (l->vcpu)
		cetkvm_kick(l->vcpu);
	else
		call(l->vm, KVM_IRQ_LINE, &l->line);
	return NULL;
}

static int run_and(struct machine *m, struct later later)
{
	pthread_t thread;
	int result;

	later.target = pthread_self();
	later.vm = m->vm;
	pthread_create(&thread, NULL, later_main, &later);
	result = machine_run(m);
	pthread_join(thread, NULL);
	return result;
}

static void test_leaving(void)
{
	struct machine m;
	double start;

	machine_start(&m, 0);
	machine_bytes(&m, 0xe4, 0x60, 0xeb, 0xfe); // in; jmp .
	thread_run = m.run;
	thread_vcpu = m.vcpu;
	signal(SIGUSR1, handler);
	signal(SIGUSR2, quiet_handler);
	machine_run(&m);
	((uint8_t *)m.run)[4096] = 0x66;
	m.run->immediate_exit = 1;
	is(machine_run(&m), -EINTR, "immediate_exit");
	is(m.run->exit_reason, KVM_EXIT_IO, "the exit that it completed is still the last");
	is(machine_regs(&m).rax & 0xff, 0x66, "but what was pending is complete");
	is(machine_regs(&m).rip, m.code + 2, "RIP behind it");
	m.run->immediate_exit = 0;
	start = seconds();
	is(run_and(&m, (struct later){ .signal = SIGUSR1 }), -EINTR, "a handler that kicks, guest spinning");
	ok(seconds() - start < 20, "soon");
	m.run->immediate_exit = 0;
	is(run_and(&m, (struct later){ .signal = SIGUSR2 }), -EINTR, "a handler that only sets immediate_exit");
	ok(seconds() - start < 20, "soon");
	m.run->immediate_exit = 0;
	is(run_and(&m, (struct later){ .vcpu = m.vcpu }), -EINTR, "a kick from another thread");
	machine_end(&m);
}

static void test_sleeping(void)
{
	struct machine m;
	double start;

	machine_start(&m, IRQCHIP);
	// PIC: base 0x20, unmasked; sti; hlt; mov al,0x77; out 0x80,al; hlt   handler: iret
	machine_bytes(&m, 0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01,
		      0xe6, 0x21, 0xb0, 0x00, 0xe6, 0x21, 0xfb, 0xf4, 0xb0, 0x77, 0xe6, 0x80, 0xf4);
	m.memory[0x25 * 4] = 0;
	m.memory[0x25 * 4 + 1] = 0x30;
	m.memory[0x3000] = 0xcf;
	thread_run = m.run;
	thread_vcpu = m.vcpu;
	is(run_and(&m, (struct later){ .signal = SIGUSR2 }), -EINTR, "a signal wakes from HLT");
	m.run->immediate_exit = 0;
	struct kvm_mp_state state;
	call(m.vcpu, KVM_GET_MP_STATE, &state);
	is(state.mp_state, KVM_MP_STATE_HALTED, "halted");
	start = seconds();
	is(run_and(&m, (struct later){ .line = { .irq = 5, .level = 1 } }), KVM_EXIT_IO, "an interrupt wakes, too");
	ok(seconds() - start < 20, "soon");
	is(((uint8_t *)m.run)[4096], 0x77, "execution went on behind HLT");
	machine_end(&m);
}

static void test_interrupt_window(void)
{
	struct machine m;
	struct kvm_interrupt irq = { .irq = 0x41 };

	machine_start(&m, 0);
	// cli; out 0x80,al; sti; nop; nop; hlt    handler: mov bl,9; iret
	machine_bytes(&m, 0xfa, 0xe6, 0x80, 0xfb, 0x90, 0x90, 0x90, 0xf4);
	m.memory[0x41 * 4] = 0;
	m.memory[0x41 * 4 + 1] = 0x30;
	memcpy(m.memory + 0x3000, "\xb3\x09\xcf", 3);
	machine_run(&m);
	ok(!m.run->if_flag && !m.run->ready_for_interrupt_injection, "interrupts are off");
	m.run->request_interrupt_window = 1;
	is(machine_run(&m), KVM_EXIT_IRQ_WINDOW_OPEN, "the window opens");
	ok(m.run->if_flag && m.run->ready_for_interrupt_injection, "now they are on");
	is(machine_regs(&m).rip, m.code + 5, "behind STI and the instruction after it");
	m.run->request_interrupt_window = 0;
	is(call(m.vcpu, KVM_INTERRUPT, &irq), 0, "inject");
	is(machine_run(&m), KVM_EXIT_HLT, "goes on");
	is(machine_regs(&m).rbx & 0xff, 9, "through the handler");
	machine_end(&m);
}

static void test_startup(void)
{
	struct machine m;

	// CPU 0 sends INIT and a start-up IPI to CPU 1 through its APIC at 0xfee00000 (flat DS by SREGS).
	machine_start(&m, IRQCHIP);
	int ap = call(m.vm, KVM_CREATE_VCPU, 1);
	struct kvm_run *run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ap, 0);
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0xfee00000;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	// mov dword [0x310],1<<24; mov dword [0x300],0x4500; mov dword [0x300],0x4603; hlt
	machine_bytes(&m, 0x66, 0xc7, 0x06, 0x10, 0x03, 0, 0, 0, 1, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x00, 0x45, 0, 0,
		      0xe6, 0x80, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x03, 0x46, 0, 0, 0xe6, 0x80);
	memcpy(m.memory + 0x3000, "\xe6\x81\xf4", 3);
	is(machine_run(&m), KVM_EXIT_IO, "INIT sent");
	is(error_of(call(ap, KVM_RUN, 0)), EAGAIN, "the other has been reset");
	struct kvm_mp_state state;
	call(ap, KVM_GET_MP_STATE, &state);
	is(state.mp_state, KVM_MP_STATE_INIT_RECEIVED, "and waits for its start");
	is(machine_run(&m), KVM_EXIT_IO, "start-up IPI sent");
	is(call(ap, KVM_RUN, 0), 0, "it runs");
	struct kvm_regs regs;
	call(ap, KVM_GET_REGS, &regs);
	ok(run->exit_reason == KVM_EXIT_IO && run->io.port == 0x81, "code of the page the IPI named");

	// The same by user space: a start-up IPI that has arrived, and its vector.
	struct kvm_vcpu_events events;
	memcpy(m.memory + 0x4000, "\xe6\x82\xf4", 3);
	state.mp_state = KVM_MP_STATE_SIPI_RECEIVED;
	is(call(ap, KVM_SET_MP_STATE, &state), 0, "a start-up IPI restored");
	call(ap, KVM_GET_VCPU_EVENTS, &events);
	events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
	events.sipi_vector = 4;
	is(call(ap, KVM_SET_VCPU_EVENTS, &events), 0, "and its vector");
	is(call(ap, KVM_RUN, 0), 0, "it runs");
	ok(run->exit_reason == KVM_EXIT_IO && run->io.port == 0x82, "code of that page");
	munmap(run, 3 * 4096);
	cetkvm_close(ap);
	machine_end(&m);
}

static void test_apic_timer(void)
{
	struct machine m;
	struct kvm_sregs sregs;
	double start, time;

	machine_start(&m, IRQCHIP);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.base = 0xfee00000;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	// SVR on; divide by 1; LVT 0x40 one-shot; count 20,000,000 ns; then spin with interrupts on
	static const uint8_t code[] = { 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0, 0, 0x66, 0xc7, 0x06, 0xe0, 0x03,
		0x0b, 0, 0, 0, 0x66, 0xc7, 0x06, 0x20, 0x03, 0x40, 0, 0, 0, 0x66, 0xc7, 0x06, 0x80, 0x03, 0x00,
		0x2d, 0x31, 0x01, 0xfb, 0xeb, 0xfe };
	m.memory[0x40 * 4] = 0;
	m.memory[0x40 * 4 + 1] = 0x30;
	// the handler: EOI, then OUT
	memcpy(m.memory + 0x3000, "\x66\xc7\x06\xb0\x00\0\0\0\0\xe6\x80\xf4", 12);
	machine_code(&m, code, sizeof(code));
	start = seconds();
	is(machine_run(&m), KVM_EXIT_IO, "the APIC timer interrupts a spinning guest");
	time = seconds() - start;
	ok(time >= 0.0199 && time < 10, "after 20 ms (%.3f ms)", time * 1000);
	// The same with HLT instead of the loop.
	machine_code(&m, code, sizeof(code) - 2);
	m.memory[m.code + sizeof(code) - 2] = 0xf4;
	memcpy(m.memory + 0x3000, "\x66\xc7\x06\xb0\x00\0\0\0\0\xe6\x80\xf4", 12);
	start = seconds();
	is(machine_run(&m), KVM_EXIT_IO, "and a halted one");
	time = seconds() - start;
	ok(time >= 0.0199 && time < 10, "after 20 ms (%.3f ms)", time * 1000);
	machine_end(&m);
}

// The IDT, or the stack, of an event in no memory slot: KVM gives up, and says where.
static void test_delivery(void)
{
	struct machine m;
	struct kvm_sregs sregs;

	machine_start(&m, 0);
	machine_bytes(&m, 0x0f, 0x0b); // ud2
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.idt.base = 0x50000;
	sregs.idt.limit = 0x3ff;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	for (unsigned i = 0; i < 2; i++) {
		is(machine_run(&m), KVM_EXIT_INTERNAL_ERROR, "an exception through an IDT in no slot");
		is(m.run->internal.suberror, KVM_INTERNAL_ERROR_DELIVERY_EV, "event delivery");
		is(m.run->internal.ndata, 5, "with five data");
		is(m.run->internal.data[0], 1ull << 31 | 3 << 8 | 6, "which event: #UD");
		is(m.run->internal.data[3], 0x50000 + 4 * 6, "and where: its entry");
	}
	sregs.idt.base = 0;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	memcpy(m.memory + 4 * 6, "\x00\x60\x00\x00", 4);
	m.memory[0x6000] = 0xf4;
	is(machine_run(&m), KVM_EXIT_HLT, "with an IDT it is delivered");
	machine_end(&m);
}

int main(void)
{
	alarm(60);
	test_ports();
	test_synchronized_registers();
	test_memory();
	test_leaving();
	test_sleeping();
	test_interrupt_window();
	test_startup();
	test_apic_timer();
	test_delivery();
	return done_testing();
}
