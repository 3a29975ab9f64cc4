// SPDX-License-Identifier: MIT
// A guest on its way through a fleet of hosts: the description, and what became of the guest.
//
// The tool is a client of the KVM ioctl ABI like any VMM; hosts are processes of their own, each with
// a KVM limited to what the description says (cetkvm.h: the options host-cpuid and kvm-abi).
#ifndef CETKVM_FLEET_FLEET_H
#define CETKVM_FLEET_FLEET_H

#include "fleet/guest/abi.h"
#include "vmm/cpu_features.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define FLEET_HOSTS_MAX 16
#define FLEET_PATH_MAX  16
#define FLEET_NAME_MAX  24
#define FLEET_LINE_MAX  400

// The ioctls that move a guest's state, in the order in which it is loaded.
enum fleet_piece {
	PIECE_CPUID, PIECE_SREGS, PIECE_REGS, PIECE_XSAVE, PIECE_XCRS, PIECE_MSRS, PIECE_SSP, PIECE_EVENTS, PIECE_MP_STATE,
	PIECE_DEBUGREGS, PIECES
};

enum fleet_generation { KVM_OVER_SAVING, KVM_STRICT, KVM_CONSTRAINED, KVM_GENERATIONS };

// How a step ended, and the whole path.
enum fleet_outcome {
	OUTCOME_INTACT,    // the guest found all that it left
	OUTCOME_REFUSED,   // the VMM stopped at an error; the guest goes on where it was
	OUTCOME_CORRUPTED, // it runs on, and state is lost or corrupted
	OUTCOME_CRASHED,   // it does not
	OUTCOMES
};

// What became of a component.
enum fleet_fate {
	FATE_UNUSED,    // the guest never had it
	FATE_SET,       // on the first host: there, and a pattern in it
	FATE_KEPT,
	FATE_LOST,      // no longer there: off, or back in its initial state in a guest that did not go on
	FATE_CORRUPTED, // there and in use, and not what it was
	FATE_REFUSED,   // KVM did not take it, and the VMM stopped
	FATE_STAYED,    // not moved, for something else was refused
	FATE_GONE,      // had been lost before
	FATES
};

// What the ioctls show of a component right after the load.
enum fleet_view { VIEW_NONE, VIEW_SAME, VIEW_INITIAL, VIEW_DIFFERENT };

struct fleet_host {
	char name[FLEET_NAME_MAX + 1];
	char cpu[FLEET_LINE_MAX]; // MODEL[,+FEATURE][,-FEATURE]...
	enum fleet_generation generation;
	bool carries_on;
	unsigned forgets; // a bit per enum fleet_piece
	unsigned line;
};

struct fleet_description {
	char file[FLEET_LINE_MAX], name[FLEET_LINE_MAX];
	char title[FLEET_LINE_MAX], about[4096];
	char guest_cpu[FLEET_LINE_MAX]; // "": what the first host has
	unsigned guest_line;
	struct fleet_host hosts[FLEET_HOSTS_MAX];
	unsigned host_count;
	unsigned path[FLEET_PATH_MAX]; // indices of hosts
	unsigned path_length;
	int expected; // enum fleet_outcome, or -1
};

enum fleet_end {
	END_NONE,
	END_REPORTED,
	END_EXCEPTION,    // the guest told of it
	END_TRIPLE_FAULT,
	END_KVM,          // KVM could not run it
	END_STUCK,
};

struct fleet_piece_result {
	bool tried;
	int error;    // errno, 0: taken
	uint32_t msr; // of PIECE_MSRS: which one was refused
};

// One host's part of the path.
struct fleet_step {
	bool done;
	enum fleet_outcome outcome;
	struct fleet_piece_result pieces[PIECES];
	int failed;           // the piece that was refused, or -1
	uint64_t image;       // XSTATE_BV of the image that was loaded
	uint64_t surplus;     // components in it that the guest's processor does not have
	uint64_t unsupported; // and that the host does not have
	char missing[256];    // features of the guest's that the host does not have, comma separated
	enum fleet_end end;
	uint32_t end_detail;  // exit reason or suberror of END_KVM
	struct fleet_report report;
	enum fleet_view view[FLEET_COMPONENTS];
	enum fleet_fate fate[FLEET_COMPONENTS];
};

struct fleet_journey {
	struct fleet_description description;
	struct fleet_step steps[FLEET_PATH_MAX];
	unsigned step_count;            // how far it went
	bool resumed;                   // the last step was refused and the guest went on where it was
	struct fleet_step source;       // and what it found there
	enum fleet_outcome outcome;
	bool bad_input;                 // of a journey that failed: because of what the description asks for
};

// ---- description.c ----
// Reads a description. Writes one line with file, line, the word and what is accepted, and returns -1,
// if it is not one. text need not end in 0.
int fleet_parse(struct fleet_description *description, const char *file, const char *text, size_t size);
int fleet_read_file(struct fleet_description *description, const char *path);

// ---- journey.c ----
// Walks the path; tell() is called after each step that is done. 0, or -1 after one line has been written.
int fleet_travel(struct fleet_journey *journey, void (*tell)(const struct fleet_journey *, unsigned step));

// ---- names.c ----
extern const char *const fleet_generation_names[], *const fleet_outcome_names[], *const fleet_fate_names[];
extern const char *const fleet_view_names[], *const fleet_verdict_names[], *const fleet_end_names[];
extern const struct fleet_piece_name {
	const char *word, *ioctl;
} fleet_pieces[];
extern const struct fleet_component_name {
	const char *word, *title, *explained;
	enum fleet_piece piece;
} fleet_components[];
// What the host's ioctls said, "" if nothing went wrong.
void fleet_say_refusal(const struct fleet_journey *journey, unsigned step, char *text, size_t size);
// What the guest itself saw.
void fleet_say_guest(const struct fleet_step *step, char *text, size_t size);
// The first difference in a component, "" if there is none to tell.
void fleet_say_difference(const struct fleet_step *step, enum fleet_component component, char *text, size_t size);
// A sentence for the whole path.
void fleet_say_outcome(const struct fleet_journey *journey, char *text, size_t size);

// ---- report_text.c, report_json.c, report_html.c ----
// width: columns of the terminal, 0 if it does not matter
void fleet_write_table(FILE *out, const struct fleet_journey *journey, bool colour, unsigned width);
void fleet_write_progress(FILE *out, const struct fleet_journey *journey, unsigned step);
void fleet_write_json(FILE *out, const struct fleet_journey *journey);
void fleet_write_html(FILE *out, const struct fleet_journey *journey);

#endif
