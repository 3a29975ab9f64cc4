// SPDX-License-Identifier: MIT
// Handlers whose table row stands in another file than their code, and what string I/O shares.
#ifndef CETKVM_CPU_HANDLERS_H
#define CETKVM_CPU_HANDLERS_H

#include "cpu/insn.h"

// string_run.c: pieces of a string within one page
struct string_run {
	u64 offset, linear; // of the lowest byte of the piece
	u64 n;		    // elements; 0: none can be done in one piece, do one the slow way
};
struct string_run string_run(struct cpu *cpu, const struct insn *insn, enum seg seg, unsigned reg,
			     unsigned size, bool write);
u64 string_count(const struct cpu *cpu, const struct insn *insn);
void string_advance(struct cpu *cpu, const struct insn *insn, unsigned reg, u64 n, unsigned size);
// `n` elements are done: RCX counts down. True: go on; false: the instruction is complete, or is
// left (to be restarted) because something wants to be looked at.
bool string_next(struct cpu *cpu, const struct insn *insn, u64 n);
u64 string_element(struct cpu *cpu, const struct insn *insn, enum seg seg, unsigned reg,
		   unsigned size, bool write);

// io.c
insn_handler in_handler, out_handler, ins_handler, outs_handler;

// flags.c
insn_handler pushf_handler, popf_handler, lahf_handler, sahf_handler, clc_handler, stc_handler,
	cmc_handler, cld_handler, std_handler;

// bcd.c
insn_handler aaa_handler, aas_handler, aam_handler, aad_handler, daa_handler, das_handler,
	salc_handler;

// masked.c
insn_handler maskmov_handler, vmaskmov_handler;

// gather.c
insn_handler gather_handler;

// monitor.c
insn_handler monitor_handler, mwait_handler;

// smm.c
insn_handler rsm_handler;

// x87_image.c
insn_handler fxsave_handler, fxrstor_handler, fnsave_handler, frstor_handler, fnstenv_handler,
	fldenv_handler;


// The first 24 bytes of an FXSAVE image (FCW to FDP) as the guest sees them: `wide` pointers, or
// 32 bits and selectors. And the x87 state from such an image (24 bytes, registers at FX_ST).
void x87_fx_header(struct cpu *cpu, void *head, bool wide);
void x87_fx_load(struct cpu *cpu, const void *image, bool wide);

#endif
