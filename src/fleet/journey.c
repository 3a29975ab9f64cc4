// SPDX-License-Identifier: MIT
// The path: hosts one after the other, and what became of each component on each.
//
// The source keeps its guest until the target has it running, as a VMM does: refused, the guest goes on
// where it was, and is asked to check itself there.
#include "fleet/host.h"

#include "vmm/message.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

// What the guest had left patterns in when it left.
static uint32_t in_use_at_departure(const struct transit *transit)
{
	struct fleet_report report;

	memcpy(&report, transit->memory + FLEET_REPORT, sizeof(report));
	return report.in_use;
}

static bool was_refused(const struct fleet_step *step, enum fleet_component component)
{
	if (step->failed == PIECE_MSRS)
		return state_msr_component(step->pieces[PIECE_MSRS].msr) == component;
	return (int)fleet_components[component].piece == step->failed;
}

static enum fleet_fate fate_of_view(enum fleet_view view)
{
	return view == VIEW_SAME ? FATE_KEPT : view == VIEW_INITIAL ? FATE_LOST : FATE_CORRUPTED;
}

static enum fleet_fate fate_of(const struct fleet_step *step, enum fleet_component component)
{
	uint32_t verdict = step->report.found[component].verdict;

	if (step->outcome == OUTCOME_REFUSED)
		return was_refused(step, component) ? FATE_REFUSED : FATE_STAYED;
	// A guest that cannot speak is looked at from outside.
	if (!step->report.checked || verdict == FLEET_UNUSED || verdict > FLEET_OFF)
		return fate_of_view(step->view[component]);
	// SSP may be right and what it points at not.
	if (component == FLEET_SHADOW_STACK && verdict == FLEET_SAME && step->report.returned < step->report.depth)
		return FATE_CORRUPTED;
	return verdict == FLEET_SAME ? FATE_KEPT : verdict == FLEET_OFF ? FATE_LOST : FATE_CORRUPTED;
}

static void conclude(struct fleet_step *step, uint32_t in_use, uint32_t ever, bool stopped)
{
	step->done = true;
	step->outcome = stopped ? OUTCOME_REFUSED : step->end == END_REPORTED ? OUTCOME_INTACT : OUTCOME_CRASHED;
	for (unsigned i = 0; i < FLEET_COMPONENTS; i++) {
		if (!(in_use >> i & 1)) {
			step->fate[i] = ever >> i & 1 ? FATE_GONE : FATE_UNUSED;
			continue;
		}
		step->fate[i] = fate_of(step, i);
		if (step->outcome == OUTCOME_INTACT && (step->fate[i] == FATE_LOST || step->fate[i] == FATE_CORRUPTED))
			step->outcome = OUTCOME_CORRUPTED;
	}
}

static void conclude_journey(struct fleet_journey *journey)
{
	static const unsigned severity[OUTCOMES] = {
		[OUTCOME_INTACT] = 0, [OUTCOME_REFUSED] = 1, [OUTCOME_CORRUPTED] = 2, [OUTCOME_CRASHED] = 3,
	};

	journey->outcome = OUTCOME_INTACT;
	for (unsigned i = 0; i < journey->step_count; i++)
		if (severity[journey->steps[i].outcome] > severity[journey->outcome])
			journey->outcome = journey->steps[i].outcome;
}

// -1 if the host has failed, after one line has been written.
static int await(struct fleet_journey *journey, struct host_process *process)
{
	int answer = host_answer(process);

	journey->bad_input |= answer == HOST_BAD;
	return answer == HOST_FAILED || answer == HOST_BAD ? -1 : answer;
}

static int order(struct fleet_journey *journey, struct host_process *process, char what)
{
	host_order(process, what);
	return await(journey, process);
}

// What the first host has, or shows its guest, is not enough for any guest of ours.
static void say_cannot_start(struct fleet_journey *journey, const struct fleet_step *step)
{
	const struct fleet_description *d = &journey->description;
	const struct fleet_host *host = &d->hosts[d->path[0]];
	bool is_guests = *d->guest_cpu;

	vmm_message("%s:%u: '%s': the guest cannot start on it (%s); accepted: a processor with all that x86-64 has", d->file,
		    is_guests ? d->guest_line : host->line, is_guests ? d->guest_cpu : host->cpu, fleet_end_names[step->end]);
	journey->bad_input = true;
}

// The first host: the guest starts and leaves its patterns.
static int begin(struct fleet_journey *journey, struct host_process *process, struct transit *transit, uint32_t *ever)
{
	struct fleet_step *step = &journey->steps[0];
	int answer;

	if (host_start(process, &journey->description, 0, transit) < 0 || await(journey, process) < 0)
		return -1;
	answer = order(journey, process, HOST_DEPART);
	if (answer < 0)
		return -1;
	*step = transit->steps[0];
	if (answer == HOST_DIED) {
		say_cannot_start(journey, step);
		return -1;
	}
	*ever = in_use_at_departure(transit);
	step->done = true;
	for (unsigned i = 0; i < FLEET_COMPONENTS; i++)
		step->fate[i] = *ever >> i & 1 ? FATE_SET : FATE_UNUSED;
	journey->step_count = 1;
	return 0;
}

// The source has its guest back.
static int resume(struct fleet_journey *journey, struct host_process *process, struct transit *transit, uint32_t in_use,
		  uint32_t ever)
{
	if (order(journey, process, HOST_RESUME) < 0)
		return -1;
	journey->source = transit->source;
	conclude(&journey->source, in_use, ever, false);
	journey->resumed = true;
	return 0;
}

// From the host of path[i - 1] to that of path[i]. 1: there. 0: the path ends here. -1: a message.
static int move(struct fleet_journey *journey, unsigned i, struct host_process *processes, struct transit *transit,
		uint32_t ever)
{
	struct fleet_step *step = &journey->steps[i];
	uint32_t in_use = in_use_at_departure(transit);
	int answer;

	if (host_start(&processes[i], &journey->description, i, transit) < 0)
		return -1;
	answer = await(journey, &processes[i]);
	if (answer < 0)
		return -1;
	*step = transit->steps[i];
	journey->step_count = i + 1;
	conclude(step, in_use, ever, answer == HOST_STOPS);
	if (step->outcome == OUTCOME_REFUSED)
		return resume(journey, &processes[i - 1], transit, in_use, ever);
	if (step->outcome == OUTCOME_CRASHED)
		return 0;
	host_stop(&processes[i - 1]);
	if (i + 1 == journey->description.path_length)
		return 0;
	answer = order(journey, &processes[i], HOST_DEPART);
	if (answer == HOST_DIED) {
		step->end = transit->steps[i].end;
		step->outcome = OUTCOME_CRASHED;
		return 0;
	}
	return answer < 0 ? -1 : 1;
}

static int travel(struct fleet_journey *journey, struct transit *transit, struct host_process *processes,
		  void (*tell)(const struct fleet_journey *, unsigned step))
{
	uint32_t ever;
	int result;

	if (begin(journey, &processes[0], transit, &ever) < 0)
		return -1;
	tell(journey, 0);
	for (unsigned i = 1; i < journey->description.path_length; i++) {
		result = move(journey, i, processes, transit, ever);
		if (result < 0)
			return -1;
		tell(journey, i);
		if (!result)
			break;
	}
	conclude_journey(journey);
	return 0;
}

int fleet_travel(struct fleet_journey *journey, void (*tell)(const struct fleet_journey *, unsigned step))
{
	struct host_process processes[FLEET_PATH_MAX] = { 0 };
	struct transit *transit;
	void (*old)(int);
	int result;

	transit = mmap(NULL, sizeof(*transit), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (transit == MAP_FAILED) {
		vmm_message("fleet: %s", strerror(errno));
		return -1;
	}
	old = signal(SIGPIPE, SIG_IGN);
	result = travel(journey, transit, processes, tell);
	for (unsigned i = 0; i < FLEET_PATH_MAX; i++)
		host_stop(&processes[i]);
	signal(SIGPIPE, old);
	munmap(transit, sizeof(*transit));
	return result;
}
