// SPDX-License-Identifier: MIT
// One row per instruction kind, and what a handler in C gets to see of a decoded instruction.
//
// An instruction is executed in one of these ways (enum insn_kind):
//   copied      the translator copies it with its operands rewritten (jit_copy.c)
//   generated   the translator has code of its own for it (jit_branch.c, jit_stack.c)
//   in C        a handler is called; the instruction may go on to the next one, or end the block
// Everything without a row raises #UD.
#ifndef CETKVM_CPU_INSN_H
#define CETKVM_CPU_INSN_H

#include "cpu/cpu.h"
#include "cpu/features.h"

#include <Zydis/Zydis.h>

enum operand_kind { OPERAND_NONE, OPERAND_REG, OPERAND_SEG, OPERAND_CR, OPERAND_DR, OPERAND_MEM,
		    OPERAND_IMM, OPERAND_FAR, OPERAND_VEC, OPERAND_TILE };

struct operand {
	u8 kind; // enum operand_kind
	u8 size; // bytes
	u8 reg;	 // GPR 0..15, enum seg, CR/DR number, vector register or tile number
	u8 high; // AH, CH, DH, BH
};

// A decoded instruction as handlers see it. Explicit operands only, in Intel order; there is at
// most one explicit memory operand, described by the mem_* fields.
struct insn {
	u16 mnemonic;	  // ZYDIS_MNEMONIC_*
	u8 length;	  // bytes
	u8 operand_size;  // effective operand size: 2, 4 or 8 bytes (1 for byte forms)
	u8 address_size;  // 2, 4 or 8 bytes
	bool rep, repne, lock, notrack; // F3, F2, F0, 3E (as the last group-2 prefix; SDM: see facts A9)
	u8 mem_seg;	  // enum seg, with overrides applied (64-bit mode: FS and GS matter only)
	u8 mem_base, mem_index, mem_scale; // 0xff none; base 0xfe: RIP-relative
	u8 vector_length; // bytes: 16, 32, 64 (VEX/EVEX), else 0
	u8 modrm, opcode;
	s64 mem_disp;
	u64 imm;	  // sign-extended first immediate; for OPERAND_FAR the offset
	u16 far_selector; // or second immediate
	struct operand op[4];
	const struct insn_row *row;
};

typedef void insn_handler(struct cpu *cpu, const struct insn *insn);

enum insn_kind { INSN_COPY = 1, INSN_GEN, INSN_C };

enum insn_flags {
	INSN_END = 1,	     // ends the block: changes RIP, mode, or what may be cached
	INSN_LOCKABLE = 2,   // LOCK is legal with a memory destination
	INSN_FPU = 4,	     // x87/MMX: checks CR0.EM/TS, #MF
	INSN_SSE = 8,	     // needs CR4.OSFXSR, !CR0.EM, #NM on TS
	INSN_AVX = 16,	     // needs CR4.OSXSAVE and XCR0
	INSN_UNLOAD_FPU = 32, // handler wants the guest's vector state in cpu->fpstate
	INSN_REP_RESTART = 64, // may be interrupted in the middle with RIP unchanged
};

struct insn_row {
	u16 mnemonic;
	u8 kind;
	u8 flags;
	u16 feature;	     // enum cpu_feature the guest must have, else #UD; 0 always there
	insn_handler *handler;
};

// Each concept's file exports its rows; insn_rows.c collects them. End of table: mnemonic 0.
extern const struct insn_row rows_transfer[]; // far transfers, INT, IRET, SYSCALL... (H: transfer.c)
extern const struct insn_row rows_cet[];
extern const struct insn_row rows_system[];   // CR/DR/MSR, descriptor tables, CPUID, HLT...
extern const struct insn_row rows_segment[];  // MOV Sreg, LDS.., LAR, LSL, VERR, VERW, ARPL
extern const struct insn_row rows_string[];   // MOVS CMPS STOS LODS SCAS INS OUTS IN OUT
extern const struct insn_row rows_xsave[];    // XSAVE family, FXSAVE, FNSAVE/FNSTENV..., masked moves, gathers
extern const struct insn_row rows_amx[];      // tiles
extern const struct insn_row rows_misc[];     // BOUND, ENTER, BCD, PUSHF/POPF, CLI/STI, RDTSC, RDRAND...
extern const struct insn_row rows_copy[];     // owned by the translator

// The protocol of a handler: it is called with cpu->rip at the instruction and cpu->next_rip
// behind it, all GPRs in cpu->gpr[]. It returns when the instruction is complete: the caller then
// sets cpu->rip = cpu->next_rip; a handler that transfers control sets cpu->next_rip itself (and
// has INSN_END). A handler that faults calls cpu_raise*() before it has changed any state.

// Operand access by handlers. Memory operands: segment checks, paging, may raise.
u64 insn_linear(struct cpu *cpu, const struct insn *insn, unsigned size, bool write); // address of the memory operand, checked against its segment
u64 insn_read(struct cpu *cpu, const struct insn *insn, unsigned n);		// zero-extended operand n (reg, mem, imm)
void insn_write(struct cpu *cpu, const struct insn *insn, unsigned n, u64 value); // 32-bit writes zero-extend in 64-bit registers

static inline u64 gpr_read(const struct cpu *cpu, unsigned reg, unsigned size)
{
	u64 v = cpu->gpr[reg];

	return size == 8 ? v : size == 4 ? (u32)v : size == 2 ? (u16)v : (u8)v;
}

static inline void gpr_write(struct cpu *cpu, unsigned reg, unsigned size, u64 value)
{
	if (size == 8)
		cpu->gpr[reg] = value;
	else if (size == 4)
		cpu->gpr[reg] = (u32)value;
	else if (size == 2)
		*(u16 *)&cpu->gpr[reg] = value;
	else
		*(u8 *)&cpu->gpr[reg] = value;
}

#endif
