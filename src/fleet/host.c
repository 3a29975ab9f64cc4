// SPDX-License-Identifier: MIT
// The process of one host: a KVM cut to what the host has, a virtual machine in it, and the guest's
// arrival, run and departure.
#include "fleet/host.h"

#include "vmm/message.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN_SECONDS 20

#define CR0_PE 1u
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

extern const unsigned char fleet_guest_image[];
extern const unsigned long fleet_guest_image_size;

struct host {
	const struct fleet_description *description;
	const struct fleet_host *self;
	unsigned position;
	struct transit *transit;
	struct fleet_step *step;
	struct vcpu_handle vcpu;
	struct kvm_cpuid2 *offered;
	uint8_t *memory;
	struct vcpu_state fresh, now;
	int orders, answers;
	bool bad_input; // what failed is what the description asks for
};

static struct {
	struct kvm_run *run;
	const struct kvm_backend *kvm;
	int fd;
	volatile bool over;
} alarm_target;

static void on_alarm(int signal)
{
	alarm_target.over = true;
	alarm_target.run->immediate_exit = 1;
	if (alarm_target.kvm->kick)
		alarm_target.kvm->kick(alarm_target.fd);
}

static int failed(const struct host *h, const char *what)
{
	vmm_message("fleet: host %s: %s: %s", h->self->name, what, strerror(errno));
	return -1;
}

// ---- what the host is ----

// + says that the writer counts on it.
static int check_demands(struct host *h, const struct kvm_cpuid2 *offered, const struct cpu_choice *choice,
			 const char *who, unsigned line)
{
	for (unsigned i = 0; i < cpu_feature_count; i++) {
		if (!choice->demanded[i] || cpuid_has_feature(offered, &cpu_features[i]))
			continue;
		vmm_message("%s:%u: '+%s': %s cannot have it; accepted: what 'cetkvm run --cpu list' shows without parentheses",
			    h->description->file, line, cpu_features[i].name, who);
		h->bad_input = true;
		return -1;
	}
	return 0;
}

static int read_choice(const struct host *h, struct cpu_choice *choice, const char *cpu, unsigned line)
{
	char problem[256];

	if (!cpu_choice_read(choice, cpu, problem, sizeof(problem)))
		return 0;
	vmm_message("%s:%u: %s", h->description->file, line, problem); // though it was read before
	return -1;
}

static int cut_to(struct host *h, struct kvm_cpuid2 *cpuid, const struct cpu_choice *choice, const char *who,
		  unsigned line)
{
	static const struct kvm_cpuid2 nothing;

	if (check_demands(h, cpuid, choice, who, line) < 0)
		return -1;
	return cpuid_apply_choice(cpuid, &nothing, choice, true);
}

// The KVM of this process becomes the host's.
static int become_host(struct host *h)
{
	const struct kvm_backend *kvm = h->vcpu.kvm;
	struct cpu_choice choice;
	char *text;
	int result;

	if (read_choice(h, &choice, h->self->cpu, h->self->line) < 0)
		return -1;
	// Only who asks for permission is told of AMX.
	if (cpu_choice_wants(&choice, "amx_tile") && kvm->permit)
		(void)kvm->permit(COMPONENT_TILEDATA);
	h->offered = cpuid_supported(kvm, h->vcpu.kvm_fd);
	if (!h->offered || cut_to(h, h->offered, &choice, "this machine", h->self->line) < 0)
		return -1;
	text = cpuid_to_text(h->offered);
	if (!text)
		return -1;
	result = kvm->set_option("host-cpuid", text);
	free(text);
	if (result < 0)
		return failed(h, "host-cpuid");
	if (cpu_choice_wants(&choice, "amx_tile") && kvm->permit) // of the host that it is now
		(void)kvm->permit(COMPONENT_TILEDATA);
	if (kvm->set_option("kvm-abi", fleet_generation_names[h->self->generation]) < 0)
		return failed(h, "kvm-abi");
	return 0;
}

// The guest keeps one CPUID all the way: its VMM was told which on the first host.
static int choose_guest_cpuid(struct host *h)
{
	struct kvm_cpuid2 *cpuid = (struct kvm_cpuid2 *)&h->transit->cpuid;
	const struct fleet_description *d = h->description;
	struct cpu_choice choice;

	memcpy(cpuid, h->offered, sizeof(*cpuid) + h->offered->nent * sizeof(cpuid->entries[0]));
	if (*d->guest_cpu && (read_choice(h, &choice, d->guest_cpu, d->guest_line) < 0 ||
			      cut_to(h, cpuid, &choice, "a guest of the first host", d->guest_line) < 0))
		return -1;
	cpuid_set_topology(cpuid, 0, 1);
	return 0;
}

static void name_missing(struct host *h)
{
	const struct kvm_cpuid2 *guest = (struct kvm_cpuid2 *)&h->transit->cpuid;
	size_t length = 0;

	for (unsigned i = 0; i < cpu_feature_count; i++) {
		if (!cpuid_has_feature(guest, &cpu_features[i]) || cpuid_has_feature(h->offered, &cpu_features[i]))
			continue;
		if (length + strlen(cpu_features[i].name) + 8 > sizeof(h->step->missing)) {
			strcpy(h->step->missing + length, ",...");
			return;
		}
		length += (size_t)sprintf(h->step->missing + length, "%s%s", length ? "," : "", cpu_features[i].name);
	}
}

// XCR0 bits of a CPUID, and x87 and SSE, which are always there.
static uint64_t components_of(const struct kvm_cpuid2 *cpuid)
{
	for (unsigned i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 0xd && cpuid->entries[i].index == 0)
			return 3 | cpuid->entries[i].eax | (uint64_t)cpuid->entries[i].edx << 32;
	return 3;
}

static int create_machine(struct host *h)
{
	struct vcpu_handle *vcpu = &h->vcpu;
	const struct kvm_backend *kvm = vcpu->kvm;
	struct kvm_userspace_memory_region region = { .memory_size = FLEET_MEMORY_SIZE };
	int size;

	vcpu->vm_fd = kvm->ioctl(vcpu->kvm_fd, KVM_CREATE_VM, NULL);
	if (vcpu->vm_fd < 0)
		return failed(h, "KVM_CREATE_VM");
	h->memory = mmap(NULL, FLEET_MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (uintptr_t)h->memory;
	if (h->memory == MAP_FAILED || kvm->ioctl(vcpu->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return failed(h, "guest memory");
	vcpu->fd = kvm->ioctl(vcpu->vm_fd, KVM_CREATE_VCPU, NULL);
	if (vcpu->fd < 0)
		return failed(h, "KVM_CREATE_VCPU");
	size = kvm->ioctl(vcpu->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	vcpu->run = size > 0 ? kvm->mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0) : MAP_FAILED;
	if (vcpu->run == MAP_FAILED)
		return failed(h, "kvm_run");
	return 0;
}

// 64-bit mode, the first GiB mapped to itself.
static int start_guest(struct host *h)
{
	const struct kvm_backend *kvm = h->vcpu.kvm;
	uint64_t *tables = (uint64_t *)(h->memory + FLEET_BOOT_TABLES);
	struct kvm_regs regs = { .rip = FLEET_LOAD, .rflags = 2 };
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_sregs s;

	if (fleet_guest_image_size > FLEET_MEMORY_SIZE - FLEET_LOAD) {
		errno = E2BIG;
		return failed(h, "the guest");
	}
	memcpy(h->memory + FLEET_LOAD, fleet_guest_image, fleet_guest_image_size);
	tables[0] = (FLEET_BOOT_TABLES + 0x1000) | 3;
	tables[512] = (FLEET_BOOT_TABLES + 0x2000) | 3;
	for (uint64_t i = 0; i < 512; i++)
		tables[1024 + i] = i << 21 | 0x83;
	if (kvm->ioctl(h->vcpu.fd, KVM_SET_CPUID2, &h->transit->cpuid) < 0)
		return failed(h, "KVM_SET_CPUID2");
	if (kvm->ioctl(h->vcpu.fd, KVM_GET_SREGS, &s) < 0)
		return failed(h, "KVM_GET_SREGS");
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.cr0 = CR0_PE | CR0_WP | CR0_PG;
	s.cr3 = FLEET_BOOT_TABLES;
	s.cr4 = CR4_PAE;
	s.efer = EFER_LME | EFER_LMA;
	if (kvm->ioctl(h->vcpu.fd, KVM_SET_SREGS, &s) < 0 || kvm->ioctl(h->vcpu.fd, KVM_SET_REGS, &regs) < 0)
		return failed(h, "the guest's first registers");
	return 0;
}

// ---- running ----

// Finishes the OUT: only then is the state that of an instruction boundary.
static void finish_io(struct host *h)
{
	h->vcpu.run->immediate_exit = 1;
	h->vcpu.kvm->ioctl(h->vcpu.fd, KVM_RUN, NULL);
	h->vcpu.run->immediate_exit = 0;
}

static enum fleet_end run_once(struct host *h, uint32_t *said)
{
	struct kvm_run *run = h->vcpu.run;

	do {
		while (h->vcpu.kvm->ioctl(h->vcpu.fd, KVM_RUN, NULL) < 0) {
			if (errno != EINTR && errno != EAGAIN) {
				h->step->end_detail = 0;
				return END_KVM;
			}
			if (alarm_target.over)
				return END_STUCK;
		}
		// Without an APIC of KVM's a lower CR8 is told, in case interrupts wait for it.
	} while (run->exit_reason == KVM_EXIT_SET_TPR);
	if (run->exit_reason == KVM_EXIT_SHUTDOWN)
		return END_TRIPLE_FAULT;
	if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == FLEET_PORT &&
	    run->io.size == 4) {
		memcpy(said, (uint8_t *)run + run->io.data_offset, 4);
		return END_NONE;
	}
	h->step->end_detail = run->exit_reason;
	return END_KVM;
}

// Runs the guest until it says this. END_NONE: it did.
static enum fleet_end run_until(struct host *h, uint32_t wanted)
{
	struct itimerval limit = { .it_value.tv_sec = RUN_SECONDS }, none = { 0 };
	struct sigaction action = { .sa_handler = on_alarm };
	enum fleet_end end;
	uint32_t said = 0;

	alarm_target.run = h->vcpu.run;
	alarm_target.kvm = h->vcpu.kvm;
	alarm_target.fd = h->vcpu.fd;
	alarm_target.over = false;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &limit, NULL);
	end = run_once(h, &said);
	setitimer(ITIMER_REAL, &none, NULL);
	h->vcpu.run->immediate_exit = 0;
	if (end != END_NONE)
		return end;
	finish_io(h);
	if (said == wanted)
		return END_NONE;
	h->step->end_detail = said;
	return said == FLEET_DYING ? END_EXCEPTION : END_KVM;
}

static void run_to_report(struct host *h)
{
	enum fleet_end end = run_until(h, FLEET_REPORTED);

	h->step->end = end == END_NONE ? END_REPORTED : end;
	memcpy(&h->step->report, h->memory + FLEET_REPORT, sizeof(h->step->report));
}

static char depart(struct host *h)
{
	enum fleet_end end = run_until(h, FLEET_MOVE);

	if (end != END_NONE || !h->position)
		memcpy(&h->step->report, h->memory + FLEET_REPORT, sizeof(h->step->report));
	if (end != END_NONE) {
		h->step->end = end;
		return HOST_DIED;
	}
	if (state_read(&h->vcpu, &h->transit->state) < 0)
		return HOST_FAILED;
	memcpy(h->transit->memory, h->memory, FLEET_MEMORY_SIZE);
	return HOST_DONE;
}

static int load_piece(struct host *h, enum fleet_piece piece, uint32_t *msr)
{
	if (piece != PIECE_CPUID)
		return state_load(&h->vcpu, &h->transit->state, piece, msr);
	return h->vcpu.kvm->ioctl(h->vcpu.fd, KVM_SET_CPUID2, &h->transit->cpuid) < 0 ? errno : 0;
}

// Loads piece by piece, as this host's VMM does it. false: it stops.
static bool load(struct host *h)
{
	struct fleet_step *step = h->step;

	step->image = state_image(&h->transit->state);
	step->surplus = step->image & ~components_of((struct kvm_cpuid2 *)&h->transit->cpuid);
	step->unsupported = step->image & ~components_of(h->offered);
	for (unsigned i = 0; i < PIECES; i++) {
		struct fleet_piece_result *result = &step->pieces[i];

		if (h->self->forgets >> i & 1)
			continue;
		result->tried = true;
		result->error = load_piece(h, i, &result->msr);
		if (!result->error)
			continue;
		step->failed = (int)i;
		return h->self->carries_on;
	}
	return true;
}

static char arrive(struct host *h)
{
	bool runs;

	name_missing(h);
	memcpy(h->memory, h->transit->memory, FLEET_MEMORY_SIZE);
	if (state_read(&h->vcpu, &h->fresh) < 0)
		return HOST_FAILED;
	runs = load(h);
	if (state_read(&h->vcpu, &h->now) < 0)
		return HOST_FAILED;
	for (unsigned i = 0; i < FLEET_COMPONENTS; i++)
		h->step->view[i] = state_same(&h->now, &h->transit->state, i) ? VIEW_SAME :
				   state_same(&h->now, &h->fresh, i)	      ? VIEW_INITIAL :
										VIEW_DIFFERENT;
	if (!runs)
		return HOST_STOPS;
	run_to_report(h);
	return HOST_READY;
}

static char set_up(struct host *h)
{
	const struct kvm_backend *kvm = kvm_backend_library();

	h->vcpu.kvm = kvm;
	h->vcpu.kvm_fd = kvm->open();
	if (h->vcpu.kvm_fd < 0) {
		vmm_message("fleet: %s: %s", kvm->name, kvm->problem() ? kvm->problem() : strerror(errno));
		return HOST_FAILED;
	}
	if (become_host(h) < 0 || (!h->position && choose_guest_cpuid(h) < 0) || create_machine(h) < 0)
		return h->bad_input ? HOST_BAD : HOST_FAILED;
	if (!h->position)
		return start_guest(h) < 0 ? HOST_FAILED : HOST_READY;
	return arrive(h);
}

static void serve(struct host *h)
{
	char order, answer = set_up(h);

	while (write(h->answers, &answer, 1) == 1 && read(h->orders, &order, 1) == 1 && order != HOST_END) {
		if (order == HOST_DEPART) {
			answer = depart(h);
		} else {
			h->step = &h->transit->source;
			h->step->failed = -1;
			run_to_report(h);
			answer = HOST_DONE;
		}
	}
	_exit(0);
}

// ---- the other side ----

int host_start(struct host_process *process, const struct fleet_description *description, unsigned position,
	       struct transit *transit)
{
	static struct host h;
	int orders[2], answers[2];

	if (pipe(orders) < 0 || pipe(answers) < 0) {
		vmm_message("fleet: %s", strerror(errno));
		return -1;
	}
	h = (struct host){ .description = description, .self = &description->hosts[description->path[position]],
			   .position = position, .transit = transit, .step = &transit->steps[position],
			   .orders = orders[0], .answers = answers[1] };
	h.step->failed = -1;
	fflush(NULL);
	process->pid = fork();
	if (process->pid < 0) {
		vmm_message("fleet: %s", strerror(errno));
		return -1;
	}
	if (!process->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGPIPE, SIG_IGN);
		close(orders[1]);
		close(answers[0]);
		serve(&h);
	}
	close(orders[0]);
	close(answers[1]);
	process->orders = orders[1];
	process->answers = answers[0];
	return 0;
}

int host_answer(struct host_process *process)
{
	char answer;
	ssize_t n;

	do
		n = read(process->answers, &answer, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1)
		return answer;
	vmm_message("fleet: the process of a host ended unexpectedly");
	return HOST_FAILED;
}

void host_order(struct host_process *process, char order)
{
	// A process that is gone is noticed where its answer is awaited.
	if (write(process->orders, &order, 1) < 0)
		return;
}

void host_stop(struct host_process *process)
{
	if (process->pid <= 0)
		return;
	host_order(process, HOST_END);
	close(process->orders);
	close(process->answers);
	waitpid(process->pid, NULL, 0);
	process->pid = 0;
}
