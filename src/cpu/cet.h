// SPDX-License-Identifier: MIT
// What far transfers, events, IRET, SYSCALL and task switches ask of CET. Every rule is in cet.c; the
// near transfers' interface is in transfer.h.
#ifndef CETKVM_CPU_CET_H
#define CETKVM_CPU_CET_H

#include "cpu/task.h"
#include "cpu/transfer.h"

// IA32_U_CET or IA32_S_CET.
static inline u64 *cet_msr(struct cpu *cpu, unsigned cpl)
{
	return cpl == 3 ? &cpu->u_cet : &cpu->s_cet;
}

// The enables of a privilege level for the time after the transfer, when EFLAGS.VM is 0.
static inline bool cet_shadow_stack_at(const struct cpu *cpu, unsigned cpl)
{
	return cpu->cr4 & CR4_CET && cpu->cr0 & CR0_PE &&
	       (cpl == 3 ? cpu->u_cet : cpu->s_cet) & CET_SHSTK_EN;
}

// Raises #CP(code), after the line of --trace cp.
void cet_cp(struct cpu *cpu, unsigned code, u64 found, u64 wanted) __attribute__((noreturn));

// The shadow-stack part of a transfer inwards or on the same level: far CALL, call gate, event.
// Called when everything else has succeeded and nothing is committed; raises, or commits SSP and
// PL3_SSP. `new_cpl`: level of the target; `ist`: of the gate, else 0; `wide`: the target is 64-bit
// code; `cs`, `lip`: what is returned to; `ext`: EXT bit for error codes.
void cet_enter(struct cpu *cpu, unsigned new_cpl, unsigned ist, bool wide, u16 cs, u64 lip, u32 ext);

// The shadow-stack part of RETF and IRET, called like cet_enter() and before CPL changes. `cs`, `lip`:
// where the data stack says to return to.
void cet_return(struct cpu *cpu, unsigned new_cpl, bool wide, u16 cs, u64 lip, bool iret);
// IRET from level 0 to virtual-8086 mode.
void cet_return_v86(struct cpu *cpu);
// Far JMP, and what else stays on its level: a shadow stack above 4 GiB cannot go to 32-bit code.
void cet_check_width(struct cpu *cpu, bool wide);

// SYSCALL, SYSENTER (CPL is still the old one) and SYSRET, SYSEXIT (CPL 3 has been loaded).
void cet_syscall(struct cpu *cpu);
void cet_sysret(struct cpu *cpu);

// Task switches. cet_task_check() is one of the checks before anything changes: #TS(`error`) when an IRET
// finds SSP where no frame can be. cet_task_leave() is the last thing done in the old task that may fault: it pops the
// frame an IRET returns by and frees the old token. cet_task_enter() runs with the new task's CS, CPL
// and RIP loaded: takes the token at `ssp` (of the TSS) and pushes the old task's frame, or compares
// the popped one. `error`: of #TS.
struct cet_task {
	enum task_cause cause;
	bool frame; // pushed by CALL and events, compared by IRET
	u64 cs, lip, previous;
};
void cet_task_check(struct cpu *cpu, enum task_cause cause, u32 error);
void cet_task_leave(struct cpu *cpu, enum task_cause cause, unsigned new_cpl, u16 cs, u64 lip,
		    struct cet_task *task);
void cet_task_enter(struct cpu *cpu, const struct cet_task *task, u64 ssp, u32 error);

#endif
