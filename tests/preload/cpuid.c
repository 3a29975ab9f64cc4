// SPDX-License-Identifier: MIT
// A KVM client that asks the processor itself. Usage: cpuid patched VENDOR | cpuid untouched VENDOR
#include "guest.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

static struct {
	struct kvm_cpuid2 header;
	struct kvm_cpuid_entry2 entries[128];
} supported;

// Not inline: a function of its own in the table of functions.
static __attribute__((noinline)) void cpuid(uint32_t function, uint32_t index, uint32_t out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(function), "c"(index));
}

// The bytes of CPUID inside another instruction, twice, and behind one.
static __attribute__((noinline)) uint64_t not_cpuid(void)
{
	uint64_t value;

	__asm__ volatile("movabs $0xa20f0000a20f, %0" : "=r"(value));
	return value;
}

static sigjmp_buf jump;
static volatile int handled;
static void handler(int signal)
{
	handled = signal;
	siglongjmp(jump, 1);
}

static bool illegal(void)
{
	handled = 0;
	if (!sigsetjmp(jump, 1))
		__asm__ volatile("ud2");
	return handled == SIGILL;
}

int main(int argc, char **argv)
{
	bool patched = argc > 1 && !strcmp(argv[1], "patched");
	unsigned same = 0, compared = 0;
	uint32_t regs[4];
	char vendor[13] = "";
	struct guest g = { 0 };
	int status;

	cpuid(0, 0, regs);
	memcpy(vendor, &regs[1], 4);
	memcpy(vendor + 4, &regs[3], 4);
	memcpy(vendor + 8, &regs[2], 4);
	if (argc > 2)
		ok(!strcmp(vendor, argv[2]), "CPUID gives the vendor %s, wanted %s", vendor, argv[2]);
	ok(not_cpuid() == 0xa20f0000a20f, "bytes that only look like CPUID are left alone");
	if (patched) {
		signal(SIGILL, handler);
		ok(illegal(), "an illegal instruction of the client's reaches its handler");
		ok(GUEST_START(&g, false, 0xe6, 0x42, 0xeb, 0xfc) && !guest_run(&g), "a guest runs");
		supported.header.nent = 128;
		is(ioctl(g.kvm, KVM_GET_SUPPORTED_CPUID, &supported), 0, "KVM_GET_SUPPORTED_CPUID");
		for (unsigned i = 0; i < supported.header.nent; i++) {
			const struct kvm_cpuid_entry2 *e = &supported.entries[i];

			// These have parts that are the host's, or say what there is besides.
			if (e->function == 1 || e->function == 0xb || e->function == 0x1f || e->function == 0x80000001)
				continue;
			cpuid(e->function, e->index, regs);
			compared++;
			same += regs[0] == e->eax && regs[1] == e->ebx && regs[2] == e->ecx && regs[3] == e->edx;
		}
		ok(compared > 20, "many leaves");
		is(same, compared, "of CPUID are what KVM_GET_SUPPORTED_CPUID says");
		cpuid(1, 0, regs);
		status = regs[2] >> 5 & 1;
		cpuid(0x80000001, 0, regs);
		ok(status != (int)(regs[2] >> 2 & 1), "there is VMX or SVM");
		ok(illegal(), "and an illegal instruction still is one");
		guest_end(&g);
		signal(SIGILL, SIG_DFL);
		IN_CHILD(status, __asm__ volatile("ud2"));
		ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGILL, "a deadly one without a handler");
	}
	return done_testing();
}
