// SPDX-License-Identifier: MIT
// Control transfers and event delivery: the named primitives every transfer goes through.
// SDM: "Interrupt and Exception Handling", "Control-flow Enforcement Technology".
#ifndef CETKVM_CPU_TRANSFER_H
#define CETKVM_CPU_TRANSFER_H

#include "cpu/insn.h"

enum event_source { EVENT_EXCEPTION, EVENT_EXTERNAL, EVENT_NMI, EVENT_SOFT /* INT n */,
		    EVENT_SOFT_EXCEPTION /* INT3, INTO */, EVENT_PRIVILEGED_SOFT /* INT1 */ };

// Delivers an event through the IDT (or the real-mode vector table). Pushed RIP is cpu->rip, or
// cpu->next_rip for soft sources. On return cpu->rip, CS, SS, RSP, RFLAGS, SSP, trackers are those
// of the handler. Raises like an instruction if delivery itself faults (the caller handles #DF).
void event_deliver(struct cpu *cpu, u8 vector, enum event_source source, bool has_error, u32 error);
// Folds a new exception raised while another was being delivered into #DF or shutdown as the SDM's
// table says. Called by the run loop after cpu_raise*() landed there; delivers cpu->event.
// Returns false for a triple fault.
bool event_deliver_pending(struct cpu *cpu);

// IRET and RSM: NMIs come in again, the one that is latched at once.
void event_unmask_nmi(struct cpu *cpu);

// Loads a segment register from a selector with all checks of MOV Sreg/POP Sreg (not CS).
void segment_load(struct cpu *cpu, enum seg seg, u16 selector);

// ---- CET predicates and primitives (cet.c holds every rule) ----
#define CET_SHSTK_EN (1u << 0)
#define CET_WRSS_EN (1u << 1)
#define CET_ENDBR_EN (1u << 2)
#define CET_LEG_IW_EN (1u << 3)
#define CET_NO_TRACK_EN (1u << 4)
#define CET_SUPPRESS_DIS (1u << 5)
#define CET_RESERVED (0xfu << 6)
#define CET_SUPPRESS (1u << 10)
#define CET_WAIT (1u << 11) // TRACKER = WAIT_FOR_ENDBRANCH
#define CP_NEAR_RET 1
#define CP_FAR_RET 2
#define CP_ENDBRANCH 3
#define CP_RSTORSSP 4
#define CP_SETSSBSY 5

bool cet_shadow_stack_enabled(const struct cpu *cpu, unsigned cpl);
bool cet_endbranch_enabled(const struct cpu *cpu, unsigned cpl);
bool cet_waiting(const struct cpu *cpu); // tracker of the current CPL is WAIT and IBT on
// An indirect branch is about to go to a new RIP at `cpl` (the target's CPL). `near_indirect`
// honours SUPPRESS and NOTRACK; far transfers and events do not.
void cet_track_indirect(struct cpu *cpu, unsigned cpl, bool near_indirect, bool notrack);
// The next instruction is at cpu->rip, the tracker waits, and the instruction is not the right
// ENDBR: checks the legacy bitmap; returns when allowed, raises #CP(ENDBRANCH) otherwise.
void cet_missing_endbranch(struct cpu *cpu);
void cet_endbranch(struct cpu *cpu, bool endbr64); // executing ENDBR64/ENDBR32
// Near CALL pushes / near RET pops. size: bytes of a slot, 4 or 8. ret: raises #CP(NEAR-RET) on mismatch
// and #PF; nothing is committed: cpu->ssp is changed by the caller after the data stack succeeded too.
void cet_push(struct cpu *cpu, u64 value, unsigned size); // stores at SSP-size and updates SSP
u64 cet_pop_check(struct cpu *cpu, u64 expected, unsigned size); // returns the new SSP

// One line on standard error for `--trace cp` when cpu->trace_cp is set; called before #CP is raised.
// `found`: what the shadow stack held (near/far returns), `wanted`: what was expected.
void trace_cp(struct cpu *cpu, unsigned code, u64 found, u64 wanted);
extern void (*trace_cp_hook)(struct cpu *cpu, unsigned code, u64 found, u64 wanted);

#endif
