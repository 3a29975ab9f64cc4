// SPDX-License-Identifier: MIT
// Moves a busy guest from machine to machine. Each leg is a process of its own: it makes a fresh
// machine over the guest's memory, restores the state that the leg before it saved, by ioctls in a random
// order that their rules allow, lets the guest run for a random time, stops it wherever it is, and
// saves. The guest checks itself all the time (guest.c).
//
// usage: roundtrip GUEST.elf LEGS [SEED]      TAP; figures of what was hit as comments
#include "../lib/tap.h"
#include "cetkvm/cetkvm.h"
#include "kvm/abi.h"
#include "shared.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_SIZE (16u << 20)
#define MAX_MSRS 256
#define REG_MSR(index) (0x2030000200000000ull | (index))
#define REG_SSP 0x2030000300000000ull
#define TSC_DEADLINE 0x6e0

// What the guest was doing when it was stopped.
enum situation {
	IN_USER, IN_KERNEL, IN_TIMER, IN_NMI, IN_INJECTED, SSP_ZERO, TRACKER_USER, TRACKER_KERNEL, IN_REP, PENDING_EXCEPTION,
	INTERRUPT_SHADOW, PENDING_NMI, HALTED, VECTORS_LIVE, TILES_LIVE, IN_SMM, SITUATIONS
};
static const char *const situation_name[] = {
	"user mode", "kernel mode", "timer handler (IST)", "NMI handler (IST)", "injected exception's handler (IST)",
	"kernel without a shadow stack (behind SYSCALL)", "user tracker waiting for ENDBR", "kernel tracker waiting for ENDBR",
	"within REP", "exception pending", "interrupt shadow", "NMI pending", "halted", "vector and x87 state in use", "tiles loaded", "SMM",
};

struct state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_sregs2 sregs2;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp;
	struct kvm_lapic_state lapic;
	struct kvm_irqchip chips[3];
	uint64_t ssp;
	struct { struct kvm_msrs header; struct kvm_msr_entry entries[MAX_MSRS]; } msrs;
	uint8_t xsave[16384] __attribute__((aligned(64)));
};

// Shared by all legs.
struct shared {
	struct state state;
	uint64_t seed, legs, nmis_sent, injected_sent, smis_sent;
	uint64_t situations[SITUATIONS];
	char problem[256];
} *shared;
static uint8_t *memory;
static int memory_fd;

#define INFO ((volatile struct info *)(memory + INFO_AT))

static void problem(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void problem(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(shared->problem, sizeof(shared->problem), format, args);
	va_end(args);
	_exit(1);
}

static uint64_t any(void)
{
	uint64_t *s = &shared->seed;

	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static bool chance(unsigned in)
{
	return any() % in == 0;
}

struct machine {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	unsigned xsave_size;
};

#define MUST(expression) \
	do { \
		if ((expression) < 0) \
			problem("%s: %s", #expression, strerror(errno)); \
	} while (0)
#define CALL(fd, request, argument) MUST(cetkvm_ioctl(fd, request, argument))

static struct machine *current;

static void on_alarm(int signal)
{
	current->run->immediate_exit = 1;
	cetkvm_kick(current->vcpu);
}

static void create(struct machine *m)
{
	static struct { struct kvm_cpuid2 header; struct kvm_cpuid_entry2 entries[100]; } cpuid = { .header.nent = 100 };
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE, .userspace_addr = (uintptr_t)memory };
	struct kvm_enable_cap payload = { .cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = { 1 } };

	cetkvm_arch_prctl(0x1025, 18); // ARCH_REQ_XCOMP_GUEST_PERM: XTILEDATA
	MUST(m->kvm = cetkvm_open());
	MUST(m->vm = cetkvm_ioctl(m->kvm, KVM_CREATE_VM, 0));
	CALL(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
	region.slot = 1u << 16; // the same memory in SMM
	CALL(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
	CALL(m->vm, KVM_CREATE_IRQCHIP, 0);
	CALL(m->vm, KVM_ENABLE_CAP, &payload);
	MUST(m->vcpu = cetkvm_ioctl(m->vm, KVM_CREATE_VCPU, 0));
	m->run = cetkvm_mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	CALL(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	CALL(m->vcpu, KVM_SET_CPUID2, &cpuid);
	m->xsave_size = cetkvm_ioctl(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	if (m->xsave_size > sizeof(shared->state.xsave))
		problem("KVM_CAP_XSAVE2 says %u", m->xsave_size);
	current = m;
}

// ---- steps of saving and of restoring ----
enum step { REGS, SREGS, XSAVE, XCRS, EVENTS, DEBUGREGS, MP_STATE, LAPIC, CHIPS, MSRS, SSP, STEPS };

static void shuffle_msrs(struct state *s)
{
	unsigned n = s->msrs.header.nmsrs;

	for (unsigned i = n; i-- > 1;) {
		unsigned k = any() % (i + 1);
		struct kvm_msr_entry entry = s->msrs.entries[i];

		s->msrs.entries[i] = s->msrs.entries[k];
		s->msrs.entries[k] = entry;
	}
}

static void list_msrs(struct machine *m, struct state *s)
{
	static struct { struct kvm_msr_list header; uint32_t more[512]; } list;

	list.header.nmsrs = 512;
	CALL(m->kvm, KVM_GET_MSR_INDEX_LIST, &list);
	if (list.header.nmsrs + 8 > MAX_MSRS)
		problem("%u MSRs to save", list.header.nmsrs);
	s->msrs.header.nmsrs = 0;
	for (unsigned i = 0; i < list.header.nmsrs; i++)
		s->msrs.entries[s->msrs.header.nmsrs++] = (struct kvm_msr_entry){ .index = list.header.indices[i] };
	shuffle_msrs(s);
}

static void save_msrs(struct machine *m, struct state *s)
{
	list_msrs(m, s);
	if (chance(2)) {
		if (cetkvm_ioctl(m->vcpu, KVM_GET_MSRS, &s->msrs) != (int)s->msrs.header.nmsrs)
			problem("KVM_GET_MSRS stops");
		return;
	}
	for (unsigned i = 0; i < s->msrs.header.nmsrs; i++) {
		struct kvm_one_reg reg = { REG_MSR(s->msrs.entries[i].index), (uintptr_t)&s->msrs.entries[i].data };

		if (cetkvm_ioctl(m->vcpu, KVM_GET_ONE_REG, &reg) < 0)
			problem("KVM_GET_ONE_REG of MSR %#x", s->msrs.entries[i].index);
	}
}

static void restore_msrs(struct machine *m, struct state *s)
{
	int done;

	shuffle_msrs(s);
	// The deadline counts once the timer is in its mode: the APIC comes first, and it is in it.
	if (chance(2)) {
		done = cetkvm_ioctl(m->vcpu, KVM_SET_MSRS, &s->msrs);
		if (done != (int)s->msrs.header.nmsrs)
			problem("KVM_SET_MSRS stops at MSR %#x, value %#llx", s->msrs.entries[done].index,
				(unsigned long long)s->msrs.entries[done].data);
		return;
	}
	for (unsigned i = 0; i < s->msrs.header.nmsrs; i++) {
		struct kvm_one_reg reg = { REG_MSR(s->msrs.entries[i].index), (uintptr_t)&s->msrs.entries[i].data };

		if (cetkvm_ioctl(m->vcpu, KVM_SET_ONE_REG, &reg) < 0)
			problem("KVM_SET_ONE_REG of MSR %#x", s->msrs.entries[i].index);
	}
}

static void save_step(struct machine *m, struct state *s, enum step step)
{
	struct kvm_one_reg ssp = { REG_SSP, (uintptr_t)&s->ssp };

	switch (step) {
	case REGS: CALL(m->vcpu, KVM_GET_REGS, &s->regs); break;
	case SREGS: CALL(m->vcpu, KVM_GET_SREGS, &s->sregs); CALL(m->vcpu, KVM_GET_SREGS2, &s->sregs2); break;
	case XSAVE:
		CALL(m->vcpu, m->xsave_size > 4096 || chance(2) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, s->xsave);
		break;
	case XCRS: CALL(m->vcpu, KVM_GET_XCRS, &s->xcrs); break;
	case EVENTS: CALL(m->vcpu, KVM_GET_VCPU_EVENTS, &s->events); break;
	case DEBUGREGS: CALL(m->vcpu, KVM_GET_DEBUGREGS, &s->debugregs); break;
	case MP_STATE: CALL(m->vcpu, KVM_GET_MP_STATE, &s->mp); break;
	case LAPIC: CALL(m->vcpu, KVM_GET_LAPIC, &s->lapic); break;
	case CHIPS:
		for (unsigned i = 0; i < 3; i++) {
			s->chips[i].chip_id = i;
			CALL(m->vm, KVM_GET_IRQCHIP, &s->chips[i]);
		}
		break;
	case MSRS: save_msrs(m, s); break;
	case SSP: CALL(m->vcpu, KVM_GET_ONE_REG, &ssp); break;
	default: break;
	}
}

static void restore_step(struct machine *m, struct state *s, enum step step)
{
	struct kvm_one_reg ssp = { REG_SSP, (uintptr_t)&s->ssp };

	switch (step) {
	case REGS: CALL(m->vcpu, KVM_SET_REGS, &s->regs); break;
	case SREGS:
		if (chance(2))
			CALL(m->vcpu, KVM_SET_SREGS, &s->sregs);
		else
			CALL(m->vcpu, KVM_SET_SREGS2, &s->sregs2);
		break;
	case XSAVE: CALL(m->vcpu, KVM_SET_XSAVE, s->xsave); break;
	case XCRS: CALL(m->vcpu, KVM_SET_XCRS, &s->xcrs); break;
	case EVENTS: CALL(m->vcpu, KVM_SET_VCPU_EVENTS, &s->events); break;
	case DEBUGREGS: CALL(m->vcpu, KVM_SET_DEBUGREGS, &s->debugregs); break;
	case MP_STATE: CALL(m->vcpu, KVM_SET_MP_STATE, &s->mp); break;
	case LAPIC: CALL(m->vcpu, KVM_SET_LAPIC, &s->lapic); break;
	case CHIPS:
		for (unsigned i = 0; i < 3; i++)
			CALL(m->vm, KVM_SET_IRQCHIP, &s->chips[i]);
		break;
	case MSRS: restore_msrs(m, s); break;
	case SSP: CALL(m->vcpu, KVM_SET_ONE_REG, &ssp); break;
	default: break;
	}
}

// The first comes before the second: the APIC base is a special register and the deadline an MSR;
// setting general registers drops what is pending; special registers may wake a boot processor.
static const enum step before[][2] = {
	{ SREGS, LAPIC }, { LAPIC, MSRS }, { REGS, EVENTS }, { SREGS, EVENTS }, { SREGS, MP_STATE }, { SREGS, REGS },
};

static bool may_come(enum step step, unsigned done)
{
	for (unsigned i = 0; i < sizeof(before) / sizeof(before[0]); i++)
		if (before[i][1] == step && !(done >> before[i][0] & 1))
			return false;
	return true;
}

static void all_steps(struct machine *m, void (*action)(struct machine *, struct state *, enum step), bool any_order)
{
	unsigned done = 0;

	while (done != (1u << STEPS) - 1) {
		enum step step = any() % STEPS;

		if ((done >> step & 1) || (!any_order && !may_come(step, done)))
			continue;
		action(m, &shared->state, step);
		done |= 1u << step;
	}
}

// ---- the guest's start ----
static void load_guest(const char *path)
{
	int fd = open(path, O_RDONLY);
	Elf64_Ehdr *elf = fd < 0 ? MAP_FAILED : mmap(NULL, 1 << 22, PROT_READ, MAP_PRIVATE, fd, 0);
	const Elf64_Phdr *segment;

	if (elf == MAP_FAILED || memcmp(elf->e_ident, ELFMAG, SELFMAG)) {
		fprintf(stderr, "roundtrip: %s: not an ELF file\n", path);
		exit(2);
	}
	segment = (const Elf64_Phdr *)((const char *)elf + elf->e_phoff);
	for (unsigned i = 0; i < elf->e_phnum; i++)
		if (segment[i].p_type == PT_LOAD)
			memcpy(memory + segment[i].p_paddr, (const char *)elf + segment[i].p_offset, segment[i].p_filesz);
	shared->state.regs.rip = elf->e_entry;
	munmap(elf, 1 << 22);
	close(fd);
}

// 64-bit mode, the low 4 GiB mapped to themselves.
static void start(struct machine *m)
{
	struct kvm_segment code = { .selector = 8, .limit = 0xffffffff, .type = 0xb, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .selector = 16, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = { .rip = shared->state.regs.rip, .rflags = 2 };
	uint64_t *tables = (uint64_t *)(memory + 0x10000);
	struct kvm_sregs sregs;

	tables[0] = 0x11003;
	for (unsigned i = 0; i < 4; i++)
		tables[512 + i] = (0x12000 + i * 4096) | 3;
	for (uint64_t i = 0; i < 2048; i++)
		tables[1024 + i] = i << 21 | 0x83;
	CALL(m->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
	sregs.cr3 = 0x10000;
	sregs.cr0 = 0x80000011;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	CALL(m->vcpu, KVM_SET_SREGS, &sregs);
	CALL(m->vcpu, KVM_SET_REGS, &regs);
}

// ---- running ----
static void answer_io(struct machine *m)
{
	struct kvm_run *run = m->run;
	void *data = (char *)run + run->io.data_offset;
	uint32_t value = 0;

	memcpy(&value, data, run->io.size);
	if (run->io.port == FAIL_PORT)
		problem("the guest says: guest.c:%llu: %s: wanted %#llx, got %#llx", INFO->failed_line, (const char *)INFO->failed,
			INFO->wanted, INFO->got);
	if (run->io.port == IN_PORT) {
		value = (uint32_t)(INFO->io_in * 7 + 1);
		memcpy(data, &value, 4);
	} else if (run->io.port == OUT_PORT) {
		if (value != (uint32_t)(INFO->io_out * 5 + 3))
			problem("OUT %llu brought %#x", INFO->io_out, value);
		INFO->io_out++;
	} else if ((run->io.port & ~7) == 0x3f8) {
		memset(data, 0x20, run->io.size); // the kit's serial port: always ready
	} else {
		problem("an exit for port %#x", run->io.port);
	}
}

static void answer_mmio(struct machine *m)
{
	uint64_t value = mmio_value(m->run->mmio.phys_addr, INFO->mmio);

	if (m->run->mmio.phys_addr < MMIO_AT || m->run->mmio.phys_addr >= MMIO_AT + 4096 || m->run->mmio.is_write)
		problem("an exit for address %#llx", m->run->mmio.phys_addr);
	memcpy(m->run->mmio.data, &value, 8);
}

// false: stopped by the alarm (or for debugging).
static bool run_once(struct machine *m)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	if (cetkvm_ioctl(m->vcpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR)
			problem("KVM_RUN: %s", strerror(errno));
		return false;
	}
	switch (m->run->exit_reason) {
	case KVM_EXIT_IO: answer_io(m); return true;
	case KVM_EXIT_MMIO: answer_mmio(m); return true;
	case KVM_EXIT_DEBUG: return false;
	}
	CALL(m->vcpu, KVM_GET_REGS, &regs);
	CALL(m->vcpu, KVM_GET_SREGS, &sregs);
	problem("exit reason %u, rip %#llx, cs %#x base %#llx, cr0 %#llx, cr4 %#llx, flags %#x", m->run->exit_reason, regs.rip,
		sregs.cs.selector, sregs.cs.base, sregs.cr0, sregs.cr4, m->run->flags);
}

// An access that user space has answered is finished by the next KVM_RUN, before anything is saved.
static void finish_access(struct machine *m)
{
	m->run->immediate_exit = 1;
	while (run_once(m))
		;
	m->run->immediate_exit = 0;
}

static void run_for(struct machine *m, unsigned microseconds)
{
	struct itimerval timer = { .it_value.tv_usec = microseconds };

	m->run->immediate_exit = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
	while (run_once(m))
		;
	finish_access(m);
}

static void step(struct machine *m, unsigned count)
{
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	CALL(m->vcpu, KVM_SET_GUEST_DEBUG, &debug);
	while (count--)
		while (run_once(m))
			;
	finish_access(m);
	debug.control = 0;
	CALL(m->vcpu, KVM_SET_GUEST_DEBUG, &debug);
}

static bool on_stack(uint64_t rsp, uint64_t stack)
{
	return rsp > stack && rsp <= stack + INFO->stack_size;
}

static uint64_t saved_msr(const struct state *s, uint32_t index)
{
	for (unsigned i = 0; i < s->msrs.header.nmsrs; i++)
		if (s->msrs.entries[i].index == index)
			return s->msrs.entries[i].data;
	problem("MSR %#x is not in the save list", index);
}

static void count_situation(const struct state *s)
{
	unsigned user = s->sregs.ss.dpl == 3;
	const uint8_t *code = s->regs.rip < MEMORY_SIZE - 16 ? memory + s->regs.rip : (const uint8_t *)"";
	uint64_t bv;

	memcpy(&bv, s->xsave + 512, 8);
	shared->situations[user ? IN_USER : IN_KERNEL]++;
	shared->situations[IN_TIMER] += on_stack(s->regs.rsp, INFO->timer_stack);
	shared->situations[IN_NMI] += on_stack(s->regs.rsp, INFO->nmi_stack);
	shared->situations[IN_INJECTED] += on_stack(s->regs.rsp, INFO->injected_stack);
	shared->situations[SSP_ZERO] += !user && !s->ssp;
	shared->situations[TRACKER_USER] += saved_msr(s, 0x6a0) >> 11 & 1;
	shared->situations[TRACKER_KERNEL] += saved_msr(s, 0x6a2) >> 11 & 1;
	shared->situations[IN_REP] += code[0] == 0xf3 && (code[1] == 0xa4 || code[1] == 0xa6 || code[1] == 0xaa) &&
				      s->regs.rcx && (s->regs.rdi & 0xfff);
	shared->situations[PENDING_EXCEPTION] += s->events.exception.injected || s->events.exception.pending;
	shared->situations[INTERRUPT_SHADOW] += s->events.interrupt.shadow != 0;
	shared->situations[PENDING_NMI] += s->events.nmi.pending;
	shared->situations[HALTED] += s->mp.mp_state == KVM_MP_STATE_HALTED;
	shared->situations[VECTORS_LIVE] += (bv & 7) == 7;
	shared->situations[TILES_LIVE] += bv >> 18 & 1;
	shared->situations[IN_SMM] += s->events.smi.smm;
}

// Events from outside, where the guest can take them: its handlers are not reentrant.
static void add_events(struct machine *m)
{
	struct kvm_vcpu_events events;
	struct kvm_regs regs;
	bool busy;

	CALL(m->vcpu, KVM_GET_VCPU_EVENTS, &events);
	CALL(m->vcpu, KVM_GET_REGS, &regs);
	if (!events.smi.smm && !events.smi.pending && INFO->magic == INFO_MAGIC && chance(5)) {
		CALL(m->vcpu, KVM_SMI, 0);
		shared->smis_sent++;
	}
	busy = on_stack(regs.rsp, INFO->nmi_stack) || on_stack(regs.rsp, INFO->injected_stack);
	if (events.nmi.masked || events.nmi.pending || events.exception.injected || events.exception.pending || busy ||
	    events.smi.smm || INFO->magic != INFO_MAGIC)
		return;
	if (chance(4)) {
		CALL(m->vcpu, KVM_NMI, 0);
		shared->nmis_sent++;
	} else if (chance(3)) {
		CALL(m->vcpu, KVM_GET_VCPU_EVENTS, &events);
		events.exception.injected = 1;
		events.exception.nr = 19;
		events.exception.has_error_code = 0;
		CALL(m->vcpu, KVM_SET_VCPU_EVENTS, &events);
		shared->injected_sent++;
	}
}

static void leg(bool first, bool last)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct machine m;

	sigaction(SIGALRM, &action, NULL);
	create(&m);
	if (first)
		start(&m);
	else
		all_steps(&m, restore_step, false);
	if (first || last) {
		for (unsigned i = 0; i < 200 && (INFO->magic != INFO_MAGIC || i < 20); i++)
			run_for(&m, 20000);
	} else {
		run_for(&m, 50 + any() % (chance(10) ? 10000 : 2000));
		if (chance(2))
			step(&m, any() % 24);
		add_events(&m);
	}
	all_steps(&m, save_step, true);
	count_situation(&shared->state);
	_exit(0);
}

static bool run_leg(bool first, bool last)
{
	pid_t pid;
	int status = 0;

	any(); // legs differ
	fflush(stdout);
	pid = fork();
	if (!pid)
		leg(first, last);
	for (unsigned i = 0; waitpid(pid, &status, WNOHANG) == 0; i++) {
		usleep(200);
		if (i > 300000) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			snprintf(shared->problem, sizeof(shared->problem), "hangs");
			return false;
		}
	}
	if (WIFSIGNALED(status))
		snprintf(shared->problem, sizeof(shared->problem), "dies of signal %d", WTERMSIG(status));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv)
{
	unsigned long legs = argc > 2 ? strtoul(argv[2], NULL, 10) : 100;
	bool good;

	if (argc < 3) {
		fprintf(stderr, "usage: roundtrip GUEST.elf LEGS [SEED]\n");
		return 2;
	}
	memory_fd = memfd_create("guest", MFD_CLOEXEC);
	if (memory_fd < 0 || ftruncate(memory_fd, MEMORY_SIZE))
		return 2;
	memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	load_guest(argv[1]);
	shared->seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL) << 20 ^ getpid();
	printf("# seed %#llx\n", (unsigned long long)shared->seed);
	good = run_leg(true, false);
	for (shared->legs = 0; good && shared->legs < legs; shared->legs++)
		good = run_leg(false, false);
	ok(good, "%lu moves of a busy guest to fresh machines in other processes", (unsigned long)shared->legs);
	if (!good)
		printf("#   leg %llu: %s\n", (unsigned long long)shared->legs, shared->problem);
	ok(good && run_leg(false, true), "it goes on after the last");
	ok(INFO->iterations > legs / 100 + 1, "it has worked: %llu iterations", INFO->iterations);
	is(INFO->failed_line, 0, "its own checks never failed");
	is(INFO->nmis, shared->nmis_sent, "every NMI came, once");
	is(INFO->smis, shared->smis_sent, "every SMI came, once");
	is(INFO->injected, shared->injected_sent, "every injected exception came, once");
	printf("# the guest: %llu system calls, %llu timer interrupts, %llu faults, %llu #CP, %llu memory and port accesses\n",
	       INFO->syscalls, INFO->timer_ticks, INFO->faults, INFO->cps, INFO->mmio + INFO->io_in + INFO->io_out);
	for (unsigned i = 0; i < SITUATIONS; i++)
		printf("# stopped in: %-50s %llu\n", situation_name[i], (unsigned long long)shared->situations[i]);
	return done_testing();
}
