// SPDX-License-Identifier: MIT
// Writes of the client to pages whose code the guest has run: between two KVM_RUNs, while an I/O exit
// waits, by another thread while the guest runs on (a device's DMA), and a page exchanged in the map. And of
// another vCPU, in a VM with more of them than the translator has bits for.
#include "machine.h"

#include <pthread.h>
#include <unistd.h>

enum { CALLEE = 0x7000, OTHER = 0x7400 };

// mov al, value; ret
static void put_callee(struct machine *m, unsigned at, uint8_t value)
{
	const uint8_t code[] = { 0xb0, value, 0xc3 };

	memcpy(m->memory + at, code, sizeof(code));
}

static int value_out(struct machine *m)
{
	return machine_run(m) == KVM_EXIT_IO ? ((uint8_t *)m->run)[4096] : -1;
}

static void test_between_runs(void)
{
	struct machine m;

	machine_start(&m, 0);
	put_callee(&m, CALLEE, 0);
	// again: call CALLEE; out 0x80,al; jmp again
	machine_bytes(&m, 0xe8, 0xfd, 0x1f, 0xe6, 0x80, 0xeb, 0xf9);
	unsigned wrong = 0;
	for (unsigned i = 0; i < 200; i++) {
		put_callee(&m, CALLEE, i);
		wrong += value_out(&m) != (uint8_t)i;
	}
	is(wrong, 0, "a subroutine rewritten at each I/O exit");

	// The code that goes on behind the exit itself: out 0x80,al; mov al,1; out 0x80,al; hlt
	machine_bytes(&m, 0xe6, 0x80, 0xb0, 0x01, 0xe6, 0x80, 0xf4);
	value_out(&m);
	is(value_out(&m), 1, "as it was");
	machine_bytes(&m, 0xe6, 0x80, 0xb0, 0x02, 0xe6, 0x80, 0xf4);
	value_out(&m);
	m.memory[m.code + 3] = 9;
	is(value_out(&m), 9, "the instruction behind the exit");

	// A breakpoint as a debugger in the VMM sets it.
	machine_bytes(&m, 0xb0, 0x05, 0xe6, 0x80, 0xf4);
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP };
	value_out(&m);
	machine_bytes(&m, 0xcc, 0x05, 0xe6, 0x80, 0xf4);
	is(call(m.vcpu, KVM_SET_GUEST_DEBUG, &debug), 0, "debug software breakpoints");
	is(machine_run(&m), KVM_EXIT_DEBUG, "the breakpoint is hit");
	is(machine_regs(&m).rip, m.code, "at its address");
	m.memory[m.code] = 0xb0;
	is(value_out(&m), 5, "and gone when it is taken out");
	machine_end(&m);
}

struct device {
	struct machine *m;
	unsigned stale, rounds;
};

// Answers a request at [0x3000] by new code at CALLEE, then sets [0x3000] to 0.
static void *device_thread(void *opaque)
{
	struct device *d = opaque;
	volatile uint8_t *request = d->m->memory + 0x3000;

	for (unsigned i = 0; i < d->rounds; i++) {
		struct kvm_irq_level level = { .irq = 4, .level = 1 };

		while (!__atomic_load_n(request, __ATOMIC_ACQUIRE))
			usleep(10);
		put_callee(d->m, CALLEE, i + 1);
		call(d->m->vm, KVM_IRQ_LINE, &level);
		level.level = 0;
		call(d->m->vm, KVM_IRQ_LINE, &level);
		__atomic_store_n(request, 0, __ATOMIC_RELEASE);
	}
	return NULL;
}

// The guest polls for the device's answer and never leaves, but moves between real and protected mode
// between answer and call, as firmware does. Counts what it got into [0x3010 + 2 * value].
static void test_dma(void)
{
	enum { ROUNDS = 50 };
	struct machine m;
	struct device d = { &m, 0, ROUNDS };
	pthread_t thread;
	const uint8_t code[] = {
		0xbe, 0x01, 0x00,		// mov si,1
		0xe8, 0xfa, 0x1f,		// again: call CALLEE
		0xc6, 0x06, 0x00, 0x30, 0x01,	// mov byte [0x3000],1
		0x80, 0x3e, 0x00, 0x30, 0x00,	// poll: cmp byte [0x3000],0
		0x75, 0xf9,			// jne poll
		0x0f, 0x20, 0xc0,		// mov eax,cr0
		0x0c, 0x01, 0x0f, 0x22, 0xc0,	// or al,1; mov cr0,eax
		0x34, 0x01, 0x0f, 0x22, 0xc0,	// xor al,1; mov cr0,eax
		0xe8, 0xde, 0x1f,		// call CALLEE
		0x88, 0x84, 0x00, 0x32,		// mov [si+0x3200],al
		0x46,				// inc si
		0x83, 0xfe, ROUNDS + 1,		// cmp si,ROUNDS+1
		0x75, 0xd7,			// jne again
		0xf4,				// hlt
	};

	machine_start(&m, IRQCHIP | NO_VCPU);
	m.vcpu = call(m.vm, KVM_CREATE_VCPU, 0);
	m.run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	struct kvm_sregs sregs;
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	put_callee(&m, CALLEE, 0);
	machine_code(&m, code, sizeof(code));
	// In place of HLT, which sleeps in the kernel: out 0x80,al
	m.memory[m.code + sizeof(code) - 1] = 0xe6;
	m.memory[m.code + sizeof(code)] = 0x80;
	pthread_create(&thread, NULL, device_thread, &d);
	is(machine_run(&m), KVM_EXIT_IO, "the guest ends");
	pthread_join(thread, NULL);
	for (unsigned i = 1; i <= ROUNDS; i++)
		d.stale += m.memory[0x3200 + i] != i;
	is(d.stale, 0, "what the device wrote is what runs");
	machine_end(&m);
}

// Without anything that says so: noticed after a while.
static void *silent_thread(void *opaque)
{
	struct machine *m = opaque;

	usleep(20000);
	put_callee(m, CALLEE, 1);
	return NULL;
}

static void test_silent(void)
{
	struct machine m;
	pthread_t thread;

	machine_start(&m, 0);
	put_callee(&m, CALLEE, 0);
	// again: call CALLEE; test al,al; je again; out 0x80,al
	machine_bytes(&m, 0xe8, 0xfd, 0x1f, 0x84, 0xc0, 0x74, 0xf9, 0xe6, 0x80);
	pthread_create(&thread, NULL, silent_thread, &m);
	is(value_out(&m), 1, "a silent change under a running guest is seen in the end");
	pthread_join(thread, NULL);
	machine_end(&m);
}

static void test_exchange(void)
{
	struct machine m;
	uint8_t *pages = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { .slot = 5, .guest_phys_addr = 0x20000, .memory_size = 0x1000 };
	struct kvm_sregs sregs;
	unsigned wrong = 0;

	machine_start(&m, 0);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	for (unsigned i = 0; i < 2; i++) // mov al,i; out 0x80,al; jmp back
		memcpy(pages + 0x1000 * i, (const uint8_t[]){ 0xb0, 10 + i, 0xe6, 0x80, 0xeb, 0xfa }, 6);
	sregs.cs.base = 0x20000;
	sregs.cs.selector = 0x2000;
	machine_bytes(&m, 0xf4);
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	struct kvm_regs regs = { .rflags = 2 };
	call(m.vcpu, KVM_SET_REGS, &regs);
	for (unsigned i = 0; i < 20; i++) {
		region.memory_size = 0;
		if (i)
			call(m.vm, KVM_SET_USER_MEMORY_REGION, &region);
		region.memory_size = 0x1000;
		region.userspace_addr = (uintptr_t)pages + 0x1000 * (i & 1);
		call(m.vm, KVM_SET_USER_MEMORY_REGION, &region);
		wrong += value_out(&m) != 10 + (int)(i & 1);
	}
	is(wrong, 0, "a slot that changes its memory changes the code");
	machine_end(&m);
	munmap(pages, 0x2000);
}

struct runner {
	int vcpu;
	struct kvm_run *run;
	pthread_t thread;
};

static void runner_set(struct runner *r, int vcpu, unsigned rip, unsigned sp)
{
	struct kvm_regs regs = { .rflags = 2, .rip = rip, .rsp = sp };
	struct kvm_sregs sregs;

	r->vcpu = vcpu;
	r->run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r->vcpu, 0);
	call(r->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	call(r->vcpu, KVM_SET_SREGS, &sregs);
	call(r->vcpu, KVM_SET_REGS, &regs);
}

static void *runner_thread(void *opaque)
{
	struct runner *r = opaque;

	call(r->vcpu, KVM_RUN, 0);
	return NULL;
}

// One asks for new code at [0x3000], waits for it, and calls it; the other writes it.
static void test_vcpus(unsigned reader, unsigned writer)
{
	enum { ROUNDS = 200, COUNT = 40, READER = 0x5000, WRITER = 0x9000 };
	struct machine m;
	struct runner r, w;
	int vcpu[COUNT];
	const uint8_t reader_code[] = {
		0xb2, 0x00,			// mov dl,0
		0xb9, ROUNDS, 0x00,		// mov cx,ROUNDS
		0xbb, 0x00, 0x70,		// mov bx,CALLEE
		0x31, 0xf6,			// xor si,si
		0xfe, 0xc2,			// again: inc dl
		0xc6, 0x06, 0x00, 0x30, 0x01,	// mov byte [0x3000],1
		0x80, 0x3e, 0x00, 0x30, 0x00,	// poll: cmp byte [0x3000],0
		0x75, 0xf9,			// jne poll
		0xff, 0xd3,			// call bx
		0x38, 0xd0,			// cmp al,dl
		0x74, 0x01,			// je right
		0x46,				// inc si
		0xe2, 0xe9,			// right: loop again
		0x89, 0xf0, 0xe7, 0x80,		// mov ax,si; out 0x80,ax
	};
	const uint8_t writer_code[] = {
		0x80, 0x3e, 0x00, 0x30, 0x01,	// wait: cmp byte [0x3000],1
		0x75, 0xf9,			// jne wait
		0xfe, 0x06, 0x01, 0x70,		// inc byte [CALLEE+1]
		0xa0, 0x01, 0x70,		// mov al,[CALLEE+1]
		0xc6, 0x06, 0x00, 0x30, 0x00,	// mov byte [0x3000],0
		0x3c, ROUNDS,			// cmp al,ROUNDS
		0x75, 0xe9,			// jne wait
		0xe6, 0x80,			// out 0x80,al
	};

	machine_start(&m, NO_VCPU);
	for (unsigned i = 0; i < COUNT; i++)
		if ((vcpu[i] = call(m.vm, KVM_CREATE_VCPU, i)) < 0)
			abort();
	memcpy(m.memory + READER, reader_code, sizeof(reader_code));
	memcpy(m.memory + WRITER, writer_code, sizeof(writer_code));
	put_callee(&m, CALLEE, 0);
	runner_set(&r, vcpu[reader], READER, 0x1000);
	runner_set(&w, vcpu[writer], WRITER, 0x2000);
	pthread_create(&w.thread, NULL, runner_thread, &w);
	pthread_create(&r.thread, NULL, runner_thread, &r);
	pthread_join(r.thread, NULL);
	pthread_join(w.thread, NULL);
	is(*(uint16_t *)((uint8_t *)r.run + 4096), 0, "vCPU %u runs each subroutine that vCPU %u writes, of %u vCPUs",
	   reader, writer, COUNT);
	munmap(r.run, 3 * 4096);
	munmap(w.run, 3 * 4096);
	for (unsigned i = 0; i < COUNT; i++)
		cetkvm_close(vcpu[i]);
	machine_end(&m);
}

int main(void)
{
	alarm(60);
	test_between_runs();
	test_dma();
	test_silent();
	test_exchange();
	test_vcpus(0, 1);
	test_vcpus(0, 32);
	test_vcpus(32, 0);
	test_vcpus(24, 32);
	test_vcpus(32, 24);
	test_vcpus(25, 32);
	return done_testing();
}
