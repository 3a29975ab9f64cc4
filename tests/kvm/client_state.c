// SPDX-License-Identifier: MIT
// Host and guest state apart: a client whose x87, vector and mask registers and control words are
// full of patterns finds them after every ioctl and every KVM_RUN, while signals land at random
// instants and a guest fills the same registers with its own; and the guest finds its own.
#include "machine.h"

#include <cpuid.h>
#include <signal.h>
#include <sys/time.h>

#define ROUNDS 10000
// ioctl() of `cetkvm exec` is a C function that, unlike the library's, sets things up at its first
// call in a thread, and looks longer at what is no ioctl of KVM's: those calls keep only what the
// ABI asks for.
#ifndef THROUGH_DEVICE
#define THROUGH_DEVICE 0
#endif

static bool avx512;

struct registers {
	uint8_t vectors[32][64];
	uint64_t masks[8];
	uint8_t x87[8][16];
	uint32_t mxcsr;
	uint16_t fcw, pad;
} __attribute__((aligned(64)));

struct registers mine, found; // the assembly below names them: not static, which sanitizers rename
static volatile unsigned signals;

// Calls cetkvm_ioctl(fd, request, argument) with `mine` in the registers; afterwards they are in `found`.
// In assembly: the compiler must not come between.
long ioctl_with_registers(long fd, unsigned long request, void *argument, int avx512);
__asm__(".text\n.balign 16\nioctl_with_registers:\n"
	"endbr64; pushq %rbx; pushq %rbp; pushq %r12; movl %ecx, %ebp\n"
	"leaq mine(%rip), %rbx\n"
	"fninit; fldcw 2244(%rbx); ldmxcsr 2240(%rbx)\n" // offsets are checked below
	".irp n, 7,6,5,4,3,2,1,0\n fldt 2112 + 16*\\n(%rbx)\n .endr\n"
	"testl %ebp, %ebp; jz 1f\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"vmovdqa64 64*\\n(%rbx), %zmm\\n\n .endr\n"
	".irp n, 0,1,2,3,4,5,6,7\n kmovq 2048 + 8*\\n(%rbx), %k\\n\n .endr\n jmp 2f\n"
	"1:\n.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovdqa 64*\\n(%rbx), %ymm\\n\n .endr\n"
	"2: xorl %eax, %eax; call cetkvm_ioctl@PLT\n"
	"leaq found(%rip), %rbx\n"
	"testl %ebp, %ebp; jz 3f\n"
	".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"vmovdqa64 %zmm\\n, 64*\\n(%rbx)\n .endr\n"
	".irp n, 0,1,2,3,4,5,6,7\n kmovq %k\\n, 2048 + 8*\\n(%rbx)\n .endr\n jmp 4f\n"
	"3:\n.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovdqa %ymm\\n, 64*\\n(%rbx)\n .endr\n"
	"4: fnstcw 2244(%rbx); stmxcsr 2240(%rbx)\n"
	".irp n, 0,1,2,3,4,5,6,7\n fstpt 2112 + 16*\\n(%rbx)\n .endr\n"
	"fninit; movl $0x1f80, -8(%rsp); ldmxcsr -8(%rsp); vzeroupper\n"
	"popq %r12; popq %rbp; popq %rbx; ret\n");

static void on_alarm(int signal)
{
	// The handler has registers of its own, and uses them.
	__asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0; vmovdqa %%ymm0, %%ymm15; fninit; fld1; fldpi; vzeroupper"
			 : : : "xmm0", "xmm15", "memory");
	signals++;
}

static uint64_t any(void)
{
	static uint64_t s = 88172645463325252;

	s ^= s << 13;
	s ^= s >> 7;
	s ^= s << 17;
	return s;
}

static void fill(void)
{
	for (unsigned i = 0; i < sizeof(mine.vectors); i += 8)
		*(uint64_t *)(mine.vectors[0] + i) = any();
	for (unsigned i = 0; i < 8; i++) {
		mine.masks[i] = any();
		memset(mine.x87[i], 0, 16);
		*(uint64_t *)mine.x87[i] = any() | 1ull << 63;
		*(uint16_t *)(mine.x87[i] + 8) = 0x3f80 + any() % 256;
	}
	mine.mxcsr = 0x1f80 | (any() & 0xe040);
	mine.fcw = 0x33f | (any() & 0xc40) | 0x40;
	memset(&found, 0, sizeof(found));
}

static const char *difference(void)
{
	for (unsigned i = 0; i < (avx512 ? 32 : 16); i++)
		if (memcmp(mine.vectors[i], found.vectors[i], avx512 ? 64 : 32))
			return "a vector register";
	for (unsigned i = 0; i < 8; i++) {
		if (avx512 && mine.masks[i] != found.masks[i])
			return "a mask register";
		if (memcmp(mine.x87[i], found.x87[i], 10))
			return "an x87 register";
	}
	if (mine.mxcsr != found.mxcsr)
		return "MXCSR";
	return mine.fcw != found.fcw ? "the x87 control word" : NULL;
}

static long checked(int fd, unsigned long request, void *argument, const char *name, unsigned *wrong)
{
	const char *what;
	long result;

	fill();
	result = (int)ioctl_with_registers(fd, request, argument, avx512);
	what = difference();
	if (what && !(*wrong)++)
		printf("# after %s: %s is not the client's\n", name, what);
	return result;
}

static void each_ioctl(struct machine *m)
{
	static uint8_t buffer[65536] __attribute__((aligned(64)));
	static const struct { const char *name; unsigned long get, set; } vcpu[] = {
		{ "REGS", KVM_GET_REGS, KVM_SET_REGS }, { "SREGS", KVM_GET_SREGS, KVM_SET_SREGS },
		{ "FPU", KVM_GET_FPU, KVM_SET_FPU }, { "XSAVE", KVM_GET_XSAVE, KVM_SET_XSAVE },
		{ "XCRS", KVM_GET_XCRS, KVM_SET_XCRS }, { "VCPU_EVENTS", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS },
		{ "DEBUGREGS", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS }, { "MP_STATE", KVM_GET_MP_STATE, KVM_SET_MP_STATE },
		{ "LAPIC", KVM_GET_LAPIC, KVM_SET_LAPIC }, { "SREGS2", KVM_GET_SREGS2, KVM_SET_SREGS2 },
	};
	struct kvm_userspace_memory_region region = { .slot = 3, .guest_phys_addr = 0x100000, .memory_size = 0x10000 };
	struct { struct kvm_msr_list list; uint32_t more[512]; } *list = (void *)buffer;
	struct { struct kvm_msrs header; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = 0x6a7 } };
	struct kvm_cpuid2 *cpuid = (void *)buffer;
	unsigned wrong = 0;

	for (unsigned i = 0; i < sizeof(vcpu) / sizeof(*vcpu); i++) {
		wrong = 0;
		for (unsigned k = 0; k < 20; k++) {
			if (checked(m->vcpu, vcpu[i].get, buffer, vcpu[i].name, &wrong) < 0 ||
			    checked(m->vcpu, vcpu[i].set, buffer, vcpu[i].name, &wrong) < 0)
				wrong += 1000;
		}
		is(wrong, 0, "F9 the client's registers after KVM_GET_%s and KVM_SET_%s", vcpu[i].name, vcpu[i].name);
	}
	wrong = 0;
	region.userspace_addr = (uintptr_t)m->memory;
	checked(m->vm, KVM_SET_USER_MEMORY_REGION, &region, "memory region", &wrong);
	region.memory_size = 0;
	checked(m->vm, KVM_SET_USER_MEMORY_REGION, &region, "memory region", &wrong);
	is(wrong, 0, "F9 after KVM_SET_USER_MEMORY_REGION");
	wrong = 0;
	checked(m->vcpu, KVM_GET_MSRS, &msr, "KVM_GET_MSRS", &wrong);
	checked(m->vcpu, KVM_SET_MSRS, &msr, "KVM_SET_MSRS", &wrong);
	list->list.nmsrs = 512;
	checked(m->kvm, KVM_GET_MSR_INDEX_LIST, list, "KVM_GET_MSR_INDEX_LIST", &wrong);
	is(wrong, 0, "F9 after the MSR ioctls");
	wrong = 0;
	cpuid->nent = 100;
	checked(m->kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID", &wrong);
	checked(m->vcpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2", &wrong);
	checked(m->kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_XSAVE2, "KVM_CHECK_EXTENSION", &wrong);
	is(wrong, 0, "F9 after the CPUID ioctls");
	wrong = 0;
	if (!THROUGH_DEVICE)
		checked(m->vm, 0x12345, NULL, "an unknown ioctl", &wrong);
	checked(m->vcpu, KVM_SET_XSAVE, (void *)8, "a bad pointer", &wrong);
	is(wrong, 0, "F9 after ioctls that fail");
	if (THROUGH_DEVICE)
		cetkvm_close(call(m->kvm, KVM_CREATE_VM, 0));
	int vm = checked(m->kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM", &wrong);
	int other = checked(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU", &wrong);
	is(wrong, 0, "F9 after the creation of a machine");
	ok(vm >= 0 && other >= 0, "(which was made)");
	cetkvm_close(other);
	cetkvm_close(vm);
}

// The guest, in flat mode: loads XMM registers, x87 and control words from its memory, waits in a loop,
// stores them, and leaves by OUT. Entered again and again, in the middle or at its beginning.
static void guest_and_client(struct machine *m)
{
	static const uint8_t code[] = {
		0xdb, 0xe3,						// FNINIT
		0xd9, 0x2d, 0x00, 0x90, 0, 0,				// FLDCW [0x9000]
		0x0f, 0xae, 0x15, 0x04, 0x90, 0, 0,			// LDMXCSR [0x9004]
		0x0f, 0x10, 0x05, 0x10, 0x90, 0, 0,			// MOVUPS XMM0, [0x9010]
		0x0f, 0x10, 0x3d, 0x20, 0x90, 0, 0,			// MOVUPS XMM7, [0x9020]
		0xdb, 0x2d, 0x30, 0x90, 0, 0,				// FLD TBYTE [0x9030]
		0xe6, 0x80,						// OUT: the client sees its own registers
		0xb9, 0x00, 0x10, 0, 0, 0xe2, 0xfe,			// MOV ECX, 0x1000; LOOP $
		0x8b, 0x1d, 0x00, 0x00, 0x00, 0xd0,			// MOV EBX, [0xD0000000]: memory I/O
		0x0f, 0x11, 0x05, 0x50, 0x90, 0, 0,			// MOVUPS [0x9050], XMM0
		0x0f, 0x11, 0x3d, 0x60, 0x90, 0, 0,			// MOVUPS [0x9060], XMM7
		0x0f, 0xae, 0x1d, 0x44, 0x90, 0, 0,			// STMXCSR [0x9044]
		0xd9, 0x3d, 0x40, 0x90, 0, 0,				// FNSTCW [0x9040]
		0xdb, 0x3d, 0x70, 0x90, 0, 0,				// FSTP TBYTE [0x9070]
		0xe6, 0x81,						// OUT
	};
	struct kvm_segment flat = { .limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct itimerval timer = { { 0, 731 }, { 0, 731 } };
	unsigned wrong = 0, guest_wrong = 0, exits = 0, interrupted = 0;
	uint8_t *data = m->memory + 0x9000;
	struct kvm_sregs sregs;

	call(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = flat;
	flat.selector = 16;
	flat.type = 3;
	sregs.ds = sregs.es = sregs.ss = flat;
	sregs.cr0 = 0x31;
	sregs.cr4 = 0x600;
	call(m->vcpu, KVM_SET_SREGS, &sregs);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0x10; i < 0x40; i += 8)
			*(uint64_t *)(data + i) = any();
		data[0x37] |= 0x80;
		*(uint16_t *)(data + 0x38) = 0x3fff;
		*(uint32_t *)(data + 4) = 0x1f80 | (any() & 0x6000);
		*(uint16_t *)data = 0x37f & ~(any() & 0xc00);
		memset(data + 0x40, 0, 0x40);
		m->code = 0x4000;
		machine_code(m, code, sizeof(code));
		for (;;) {
			long result = checked(m->vcpu, KVM_RUN, NULL, "KVM_RUN", &wrong);

			exits++;
			if (result < 0) {
				interrupted++;
				m->run->immediate_exit = 0;
				continue;
			}
			if (m->run->exit_reason != KVM_EXIT_IO && m->run->exit_reason != KVM_EXIT_MMIO) {
				ok(false, "exit reason %u", m->run->exit_reason);
				return;
			}
			if (m->run->exit_reason == KVM_EXIT_IO && m->run->io.port == 0x81)
				break;
			if (any() % 4 == 0) // state for user space between
				checked(m->vcpu, any() % 2 ? KVM_GET_XSAVE : KVM_GET_FPU, (uint8_t[4096]){ 0 }, "a get", &wrong);
		}
		if (memcmp(data + 0x10, data + 0x50, 32) || memcmp(data + 0x30, data + 0x70, 10) ||
		    *(uint32_t *)(data + 4) != *(uint32_t *)(data + 0x44) || *(uint16_t *)data != *(uint16_t *)(data + 0x40)) {
			if (!guest_wrong++)
				for (unsigned i = 0; i < 0x40; i += 8)
					printf("# %#x: %016llx, found %016llx\n", i, *(unsigned long long *)(data + i),
					       *(unsigned long long *)(data + 0x40 + i));
		}
	}
	timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
	is(wrong, 0, "F9 the client's registers after %u returns of KVM_RUN", exits);
	is(guest_wrong, 0, "F9 the guest's after each of them, %u times", ROUNDS);
	ok(signals > 5, "F9 with %u signals, %u of which ended KVM_RUN", signals, interrupted);
}

static struct machine *the_machine;

static void on_alarm_kick(int signal)
{
	on_alarm(signal);
	if (any() % 2) {
		the_machine->run->immediate_exit = 1;
		cetkvm_kick(the_machine->vcpu);
	}
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_alarm_kick, .sa_flags = SA_RESTART };
	uint32_t a, b = 0, c, d, xcr0, high;
	struct machine m;

#ifdef CETKVM_SANITIZED
	puts("1..0 # SKIP a sanitizer's code uses vector registers wherever it likes");
	return 0;
#endif
	_Static_assert(offsetof(struct registers, masks) == 2048 && offsetof(struct registers, x87) == 2112 &&
		       offsetof(struct registers, mxcsr) == 2240 && offsetof(struct registers, fcw) == 2244, "the assembly knows");
	__get_cpuid_count(7, 0, &a, &b, &c, &d);
	__asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
	avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (xcr0 & 0xe0) == 0xe0;
	printf("# %s registers\n", avx512 ? "AVX-512" : "AVX");
	machine_start(&m, IRQCHIP);
	the_machine = &m;
	sigaction(SIGALRM, &action, NULL);
	if (THROUGH_DEVICE) {
		m.run->immediate_exit = 1;
		call(m.vcpu, KVM_RUN, 0);
		m.run->immediate_exit = 0;
	}
	each_ioctl(&m);
	guest_and_client(&m);
	machine_end(&m);
	return done_testing();
}
