// SPDX-License-Identifier: MIT
// System-management mode for user space: KVM_SMI, its address space, events, what is held back, and
// what becomes of a machine that leaves it badly. The state-save map itself: tests/cpu/smm.c.
#include "machine.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define SMBASE 0xa0000u // no memory there outside SMM
#define SMRAM_SLOT (1u << 16 | 5)
#define AT(offset) (smram + (offset))

static uint8_t *smram;

static int add_slot(struct machine *m, uint32_t slot, uint64_t gpa, void *host, uint64_t size)
{
	struct kvm_userspace_memory_region region = { .slot = slot, .guest_phys_addr = gpa, .memory_size = size,
						      .userspace_addr = (uintptr_t)host };

	return error_of(call(m->vm, KVM_SET_USER_MEMORY_REGION, &region));
}

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = {
		{ .nmsrs = 1 }, { .index = index, .data = value } };

	return call(fd, KVM_SET_MSRS, &msr);
}

static uint64_t get_msr(int fd, uint32_t index)
{
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = index } };

	return call(fd, KVM_GET_MSRS, &msr) == 1 ? msr.entry.data : ~0ull;
}

static struct kvm_vcpu_events get_events(struct machine *m)
{
	struct kvm_vcpu_events events;

	if (call(m->vcpu, KVM_GET_VCPU_EVENTS, &events) < 0)
		abort();
	return events;
}

static uint64_t in_image(unsigned offset)
{
	uint64_t value;

	memcpy(&value, AT(offset), 8);
	return value;
}

// A machine with SMRAM; both spaces see the ordinary memory.
static void start_with(struct machine *m, struct kvm_cpuid2 *cpuid)
{
	machine_start(m, IRQCHIP);
	if (!cpuid)
		cpuid = supported_cpuid(m->kvm);
	if (call(m->vcpu, KVM_SET_CPUID2, cpuid) < 0)
		abort();
	free(cpuid);
	if (!smram)
		smram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(smram, 0, 0x10000);
	if (add_slot(m, SMRAM_SLOT, SMBASE, smram, 0x10000) ||
	    add_slot(m, 1 << 16, 0, m->memory, MEMORY_SIZE))
		abort();
	if (set_msr(m->vcpu, 0x9e, SMBASE) != 1)
		abort();
}

static void start(struct machine *m) { start_with(m, NULL); }

#define HANDLER(...) memcpy(AT(0x8000), (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

// Runs to an OUT of port; its AL, or -1 with the reason told.
static int run_to_out(struct machine *m, unsigned port)
{
	int reason = machine_run(m);

	if (reason == KVM_EXIT_IO && m->run->io.direction == KVM_EXIT_IO_OUT && m->run->io.port == port)
		return ((uint8_t *)m->run)[4096];
	printf("# exit %d (port %#x) instead of OUT %#x\n", reason, m->run->io.port, port);
	return -1;
}

static void test_slots(void)
{
	struct machine m;
	struct kvm_dirty_log log = { .slot = 2 << 16 };

	start(&m);
	is(call(m.kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_SMM), 1, "KVM_CAP_X86_SMM");
	is(call(m.vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_MULTI_ADDRESS_SPACE), 2, "two address spaces");
	is(add_slot(&m, 2 << 16, 0x100000, smram, 0x1000), EINVAL, "there is no third");
	is(add_slot(&m, 1 << 16 | 7, SMBASE, smram, 0x1000), EEXIST, "overlap within the second");
	is(add_slot(&m, 7, SMBASE, smram, 0x1000), 0, "none with the first");
	is(add_slot(&m, 7, 0, NULL, 0), 0, "slots go");
	is(add_slot(&m, 1 << 16 | 7, 0, NULL, 0), EINVAL, "each in its own space");
	is(error_of(call(m.vm, KVM_GET_DIRTY_LOG, &log)), EINVAL, "dirty log of a third space");
	log.slot = SMRAM_SLOT;
	is(error_of(call(m.vm, KVM_GET_DIRTY_LOG, &log)), ENOENT, "of a slot without one");
	is(get_msr(m.vcpu, 0x9e), SMBASE, "IA32_SMBASE reads back");
	machine_end(&m);
}

static void test_smi(void)
{
	struct machine m;
	struct kvm_sregs sregs;

	start(&m);
	is(get_msr(m.vcpu, 0x34), 0, "no SMI yet");
	// mov al,0x11; out 0x80,al; inc ax; out 0x80,al; hlt
	machine_bytes(&m, 0xb0, 0x11, 0xe6, 0x80, 0x40, 0xe6, 0x80, 0xf4);
	// mov al,0xfe; cs mov [0x100],al; out 0x81,al; rsm
	HANDLER(0xb0, 0xfe, 0x2e, 0xa2, 0x00, 0x01, 0xe6, 0x81, 0x0f, 0xaa);
	is(run_to_out(&m, 0x80), 0x11, "running");
	is(m.run->flags & KVM_RUN_X86_SMM, 0, "kvm_run.flags: not in SMM");
	is(call(m.vcpu, KVM_SMI, 0), 0, "KVM_SMI");
	ok(get_events(&m).smi.pending && !get_events(&m).smi.smm, "pending");
	is(run_to_out(&m, 0x81), 0xfe, "the handler runs");
	is(m.run->flags & KVM_RUN_X86_SMM, KVM_RUN_X86_SMM, "kvm_run.flags: in SMM");
	struct kvm_vcpu_events events = get_events(&m);
	ok(events.smi.smm && !events.smi.pending && events.nmi.masked && !events.smi.smm_inside_nmi, "events");
	ok(events.flags & KVM_VCPUEVENT_VALID_SMM, "their flag");
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	ok(sregs.cs.base == SMBASE && sregs.cs.selector == SMBASE >> 4 && sregs.ds.limit == 0xffffffff &&
	   !sregs.idt.limit, "segments in SMM");
	is(machine_regs(&m).rip, 0x8006, "RIP in SMM");
	is(in_image(0xff78), m.code + 4, "RIP behind the OUT that was under way");
	is(in_image(0xfff8) & 0xff, 0x11, "RAX");
	is(*AT(0x100), 0xfe, "a store of SMM's, in SMRAM");
	is(run_to_out(&m, 0x80), 0x12, "RSM brings back what was");
	is(m.run->flags & KVM_RUN_X86_SMM, 0, "kvm_run.flags: over");
	is(get_msr(m.vcpu, 0x34), 1, "MSR_SMI_COUNT");
	ok(!get_events(&m).nmi.masked, "NMIs are no longer masked");

	// The address space: outside SMM there is nothing at SMRAM's address.
	// mov ax,0xa000; mov ds,ax; mov al,[0x100]; out 0x80,al; hlt
	machine_bytes(&m, 0xb8, 0x00, 0xa0, 0x8e, 0xd8, 0xa0, 0x00, 0x01, 0xe6, 0x80, 0xf4);
	is(machine_run(&m), KVM_EXIT_MMIO, "outside SMM the address is no memory");
	ok(m.run->mmio.phys_addr == SMBASE + 0x100 && !m.run->mmio.is_write, "that one");
	machine_end(&m);
}

// Code at one address in both spaces, different memory: translations must not be mixed up.
static void test_same_address(void)
{
	struct machine m;
	struct kvm_sregs sregs;
	uint8_t *other;

	start(&m);
	// Segments as SMM has them, so that nothing but SMM tells the two apart.
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds.limit = sregs.es.limit = sregs.ss.limit = sregs.fs.limit = sregs.gs.limit = 0xffffffff;
	call(m.vcpu, KVM_SET_SREGS, &sregs);
	other = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	add_slot(&m, 9, 0xa8000, other, 0x1000);
	memcpy(other, (const uint8_t[]){ 0xb0, 0x22, 0xe6, 0x80, 0xf4 }, 5); // mov al,0x22; out 0x80,al; hlt
	HANDLER(0xb0, 0x33, 0xe6, 0x80, 0x0f, 0xaa); // mov al,0x33; out 0x80,al; rsm
	machine_bytes(&m, 0xe6, 0x80, 0xea, 0x00, 0x00, 0x00, 0xa8); // out 0x80,al; jmp 0xa800:0
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	is(run_to_out(&m, 0x80), 0x33, "SMM's code");
	is(run_to_out(&m, 0x80), 0x22, "the same address outside SMM: other code");
	call(m.vcpu, KVM_SMI, 0);
	is(run_to_out(&m, 0x80), 0x33, "and SMM's again");
	machine_end(&m);
	munmap(other, 0x1000);
}

// The handler jumps out of the first 64 KiB of its segment, as firmware does, and goes on there in 16-bit
// code, through instructions that end a block.
static void test_high_code(void)
{
	struct machine m;
	uint8_t *high = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	// mov eax,0; mov cr4,eax; mov ecx,0x10; rdmsr; mov cr3,eax; mov al,0x5a; out 0x81,al; call +0 (32 bits); rsm
	static const uint8_t code[] = { 0x66, 0xb8, 0, 0, 0, 0, 0x0f, 0x22, 0xe0, 0x66, 0xb9, 0x10, 0, 0, 0, 0x0f, 0x32, 0x66, 0x31,
					0xc0, 0x0f, 0x22, 0xd8, 0xb0, 0x5a, 0xe6, 0x81, 0x66, 0xe9, 0, 0, 0, 0, 0x0f, 0xaa };

	start(&m);
	add_slot(&m, 1 << 16 | 9, 0x400000, high, 0x1000);
	memcpy(high + 0x123, code, sizeof(code));
	// mov ebp,0x400123 - SMBASE; jmp ebp
	HANDLER(0x66, 0xbd, 0x23, 0x01, 0x36, 0x00, 0x66, 0xff, 0xe5);
	machine_bytes(&m, 0xe6, 0x80, 0xe6, 0x82, 0xf4);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	is(run_to_out(&m, 0x81), 0x5a, "16-bit code above 64 KiB");
	is(machine_regs(&m).rip, 0x400123 + 25 - SMBASE, "EIP");
	ok(run_to_out(&m, 0x82) >= 0, "and RSM from there");
	machine_end(&m);
	munmap(high, 0x1000);
}

static void test_latched(void)
{
	struct machine m;

	start(&m);
	memcpy(m.memory + 8, "\x00\x60\x00\x00", 4); // NMI: 0000:6000
	memcpy(m.memory + 0x6000, "\xb0\x44\xe6\x82\xcf", 5); // mov al,0x44; out 0x82,al; iret
	machine_bytes(&m, 0xe6, 0x80, 0xe6, 0x80, 0xf4);
	HANDLER(0xe6, 0x81, 0xe6, 0x81, 0x0f, 0xaa);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	run_to_out(&m, 0x81);
	call(m.vcpu, KVM_SMI, 0);
	call(m.vcpu, KVM_SMI, 0);
	call(m.vcpu, KVM_NMI, 0);
	ok(run_to_out(&m, 0x81) >= 0, "SMI and NMI wait while in SMM");
	ok(get_events(&m).smi.pending, "the SMI is latched");
	ok(run_to_out(&m, 0x81) >= 0, "it comes right behind RSM, before the NMI");
	is(in_image(0xff78), m.code + 2, "where it was");
	ok(run_to_out(&m, 0x81) >= 0 && !get_events(&m).smi.pending, "one, not two");
	is(run_to_out(&m, 0x82), 0x44, "then the NMI");
	// An SMI in the NMI handler.
	call(m.vcpu, KVM_SMI, 0);
	call(m.vcpu, KVM_NMI, 0);
	run_to_out(&m, 0x81);
	ok(get_events(&m).smi.smm_inside_nmi, "SMI within an NMI handler");
	run_to_out(&m, 0x81);
	ok(run_to_out(&m, 0x82) >= 0, "RSM and IRET, then the next NMI");
	ok(run_to_out(&m, 0x80) >= 0, "the program");
	is(get_msr(m.vcpu, 0x34), 3, "three SMIs");
	machine_end(&m);
}

static void test_init(void)
{
	struct machine m;
	struct kvm_vcpu_events events;
	struct kvm_mp_state state = { KVM_MP_STATE_INIT_RECEIVED };

	start(&m);
	machine_bytes(&m, 0xe6, 0x80, 0xe6, 0x80, 0xf4);
	HANDLER(0xe6, 0x81, 0xe6, 0x84, 0x0f, 0xaa);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	is(error_of(call(m.vcpu, KVM_SET_MP_STATE, &state)), EINVAL, "no waiting for a SIPI with an SMI pending");
	run_to_out(&m, 0x81);
	is(error_of(call(m.vcpu, KVM_SET_MP_STATE, &state)), EINVAL, "nor in SMM");
	events = get_events(&m);
	events.smi.latched_init = 1;
	is(call(m.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "latched INIT");
	ok(get_events(&m).smi.latched_init && get_events(&m).smi.smm, "reads back");
	memcpy(m.memory + 0x1fff0, "\xe6\x83\xf4", 3); // the reset vector, by a slot below 4 GiB
	add_slot(&m, 8, 0xfffff000, m.memory + 0x1f000, 0x1000);
	ok(run_to_out(&m, 0x84) >= 0 && get_events(&m).smi.latched_init, "it waits while the handler runs");
	ok(run_to_out(&m, 0x83) >= 0, "INIT after RSM: at the reset vector");
	events = get_events(&m);
	ok(!events.smi.latched_init && !events.smi.smm && !events.smi.pending, "nothing of it is left");
	is(get_msr(m.vcpu, 0x9e), SMBASE, "INIT keeps SMBASE");
	machine_end(&m);
}

static void *later_smi(void *arg)
{
	struct timespec time = { .tv_nsec = 50000000 };

	nanosleep(&time, NULL);
	// As an MSI: KVM_SMI would wait for KVM_RUN to end.
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 2 << 8 };
	call(((struct machine *)arg)->vm, KVM_SIGNAL_MSI, &msi);
	return NULL;
}

// Asleep behind the HLT that the code begins with.
static void put_to_sleep(struct machine *m)
{
	struct kvm_mp_state state = { KVM_MP_STATE_HALTED };
	struct kvm_regs regs;

	machine_bytes(m, 0xf4, 0xe6, 0x80, 0xf4);
	regs = machine_regs(m);
	regs.rip = m->code + 1;
	call(m->vcpu, KVM_SET_REGS, &regs);
	call(m->vcpu, KVM_SET_MP_STATE, &state);
}

static void test_halt(void)
{
	struct machine m;
	struct kvm_mp_state state;
	pthread_t thread;

	start(&m);
	HANDLER(0xe6, 0x81, 0x0f, 0xaa);
	put_to_sleep(&m);
	call(m.vcpu, KVM_SMI, 0);
	ok(run_to_out(&m, 0x81) >= 0, "an SMI wakes from HLT");
	is(*AT(0xfec9), 1, "auto HALT restart");
	is(in_image(0xff78), m.code + 1, "behind HLT");
	call(m.vcpu, KVM_GET_MP_STATE, &state);
	is(state.mp_state, KVM_MP_STATE_RUNNABLE, "runnable in SMM");
	*AT(0xfec9) = 0;
	ok(run_to_out(&m, 0x80) >= 0, "the handler can go on behind HLT");
	m.run->immediate_exit = 1;
	machine_run(&m); // completes the OUT
	m.run->immediate_exit = 0;

	put_to_sleep(&m);
	call(m.vcpu, KVM_SMI, 0);
	run_to_out(&m, 0x81);
	pthread_create(&thread, NULL, later_smi, &m);
	ok(run_to_out(&m, 0x81) >= 0, "RSM goes back to HLT: only the next SMI comes");
	pthread_join(thread, NULL);
	is(in_image(0xff78), m.code + 1, "still behind the same HLT");
	is(*AT(0xfec9), 1, "halted again in between");
	machine_end(&m);
}

static void test_bad(void)
{
	struct machine m;

	start(&m);
	memcpy(m.memory + 6 * 4, "\x00\x30\x00\x00", 4); // #UD
	memcpy(m.memory + 0x3000, "\xb0\x66\xe6\x82\xf4", 5);
	machine_bytes(&m, 0x0f, 0xaa, 0xf4);
	is(run_to_out(&m, 0x82), 0x66, "RSM outside SMM: #UD");

	machine_bytes(&m, 0xe6, 0x80, 0xe6, 0x80, 0xf4);
	HANDLER(0xe6, 0x81, 0x0f, 0xaa);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	run_to_out(&m, 0x81);
	*AT(0xff5b) |= 0x80; // CR0.PG without PE
	is(machine_run(&m), KVM_EXIT_SHUTDOWN, "RSM into a state that cannot be: shutdown");
	machine_end(&m);

	start(&m);
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	HANDLER(0x0f, 0x0b); // UD2; the IDT has no entries
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	is(machine_run(&m), KVM_EXIT_SHUTDOWN, "an exception in SMM with the IDT it begins with: shutdown");
	ok(m.run->flags & KVM_RUN_X86_SMM, "in SMM");
	machine_end(&m);

	start(&m);
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	add_slot(&m, SMRAM_SLOT, 0, NULL, 0);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	is(machine_run(&m), KVM_EXIT_SHUTDOWN, "no memory for the save area: shutdown");
	machine_end(&m);

	// Memory that the client has taken away is its error; the SMI waits.
	start(&m);
	machine_bytes(&m, 0xe6, 0x80, 0xf4);
	HANDLER(0xe6, 0x81, 0x0f, 0xaa);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	mprotect(smram, 0x10000, PROT_NONE);
	is(machine_run(&m), -EFAULT, "SMRAM that cannot be reached: EFAULT");
	mprotect(smram, 0x10000, PROT_READ | PROT_WRITE);
	ok(get_events(&m).smi.pending && !get_events(&m).smi.smm, "the SMI is still pending");
	ok(run_to_out(&m, 0x81) >= 0, "and comes when it can");
	machine_end(&m);
}

// Save within SMM, restore into another machine.
static void test_move(void)
{
	struct machine m, to;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;

	start(&m);
	machine_bytes(&m, 0xb0, 0x21, 0xe6, 0x80, 0xe6, 0x80, 0xf4);
	HANDLER(0xe6, 0x81, 0xe6, 0x81, 0x0f, 0xaa);
	run_to_out(&m, 0x80);
	call(m.vcpu, KVM_SMI, 0);
	run_to_out(&m, 0x81);
	run_to_out(&m, 0x81);
	m.run->immediate_exit = 1;
	machine_run(&m); // completes the OUT
	regs = machine_regs(&m);
	call(m.vcpu, KVM_GET_SREGS, &sregs);
	events = get_events(&m);

	machine_start(&to, IRQCHIP);
	struct kvm_cpuid2 *cpuid = supported_cpuid(to.kvm);
	call(to.vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	memcpy(to.memory, m.memory, MEMORY_SIZE);
	add_slot(&to, SMRAM_SLOT, SMBASE, smram, 0x10000);
	is(call(to.vcpu, KVM_SET_SREGS, &sregs), 0, "sregs");
	is(call(to.vcpu, KVM_SET_REGS, &regs), 0, "regs");
	set_msr(to.vcpu, 0x9e, SMBASE);
	is(call(to.vcpu, KVM_SET_VCPU_EVENTS, &events), 0, "events: in SMM");
	is(run_to_out(&to, 0x80), 0x21, "RSM in the other machine");
	ok(!get_events(&to).smi.smm, "is out of SMM there");
	machine_end(&m);
	machine_end(&to);
}

int main(void)
{
	alarm(60);
	test_slots();
	test_smi();
	test_same_address();
	test_high_code();
	test_latched();
	test_init();
	test_halt();
	test_bad();
	test_move();
	return done_testing();
}
