// SPDX-License-Identifier: MIT
// What the parts of the translator share while they make one block.
#ifndef CETKVM_CPU_JIT_TRANSLATE_H
#define CETKVM_CPU_JIT_TRANSLATE_H

#include "cpu/jit.h"

#define OFF(field) ((int)offsetof(struct cpu, field))
#define OFF_GPR(n) (OFF(gpr) + 8 * (int)(n))
#define OFF_SEG_BASE(n) (OFF(seg) + (int)sizeof(struct segment) * (int)(n) + (int)offsetof(struct segment, base))

// Where the guest's arithmetic flags are at this point of the block.
enum flags_state {
	FLAGS_MEM,  // in cpu->arith only
	FLAGS_BOTH, // there and in the host's flags
	FLAGS_HOST, // in the host's flags only
	FLAGS_LOST, // nowhere: nothing reads them, and a recipe makes them for a fault
};

enum cold_kind { COLD_MEM, COLD_STACK, COLD_JCC, COLD_CHAIN, COLD_LOOKUP, COLD_REQUEST, COLD_CALL_END };

// Something to be emitted behind the block's straight line.
struct cold {
	u8 *hole; // jump that leads here
	u8 *back; // where to go on (COLD_MEM)
	enum cold_kind kind;
	u32 record;
	int table;	  // COLD_MEM: offset of the TLB's tag
	int tlb;	  // COLD_STACK: offset of the TLB
	unsigned bits;	  // COLD_STACK: of the TLB's index
	u16 access, size;
	int page;	  // COLD_STACK: offset of the page remembered
	bool save_flags;  // COLD_JCC
	s64 target;	  // page offset, may be outside 0..4095
	bool indirect;
};

#define MAX_INSNS 64
#define MAX_COLD (MAX_INSNS * 6)

// What is decoded of a block before anything of it is emitted.
enum flag_use { FLAGS_IGNORE, FLAGS_KILL, FLAGS_READ };
struct decoded {
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	u8 bytes[16];
	u16 offset;
	u8 use; // enum flag_use
};

struct translation {
	struct emit e;
	struct cpu *cpu;
	struct jit *jit;
	struct block *block;
	u32 mode;
	enum flags_state flags;
	bool done;	 // the block is complete
	bool sti_shadow; // the instruction is the one behind STI
	u16 page_offset; // of the current instruction
	const u8 *bytes; // of the current instruction
	struct point *point;
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	unsigned ea_adjust; // POP m: added to RSP as a base
	u32 open_record; // slow-memory grain: record of the access in progress
	u8 alignment; // that the memory operand needs
	bool open, open_write;
	struct decoded *list;
	unsigned listed, index; // of the current instruction
	struct flags_recipe recipe; // of the flags in the host's
	bool recipe_known, flags_made;
	u32 recipe_number; // FLAGS_LOST
	bool loop; // the block jumps to its own start
	struct cold cold[MAX_COLD];
	unsigned colds;
};

// jit_flags.c
void tr_release_flags(struct translation *t); // the host's flags may be overwritten behind this
enum flag_use jit_flag_use(const struct translation *t, const struct decoded *d);
void jit_note_flags(struct translation *t);
void jit_keep_recipe(struct translation *t, const struct decoded *d);
void jit_cook_flags(struct cpu *cpu, u32 number);
u32 jit_flags_needed(const ZydisDecodedInstruction *zi, u32 *written);
bool jit_is_bit_string(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op);
// jit_mem.c
void tr_save_flags(struct translation *t);	  // makes cpu->arith valid
void tr_restore_flags(struct translation *t);	  // makes the host's flags valid; uses T1
int tr_gpr(ZydisRegister reg, bool *high);	  // guest register number, -1: not a GPR
void tr_address(struct translation *t, const ZydisDecodedOperand *op); // T0 = offset in its segment; uses T1
#define ACCESS_RMW_READS 0x100
#define ACCESS_SITE 0x400 // likely to be on the page it last hit
#define ACCESS_STACK 0x200 // through RSP: likely to hit cpu->stack_page
// T0 = linear address -> T0 = host address, checked. Uses T1 and the host's flags.
void tr_access(struct translation *t, unsigned access, unsigned size, unsigned seg);
void tr_access_done(struct translation *t);
void tr_memory(struct translation *t, const ZydisDecodedOperand *op); // tr_address + tr_access
unsigned tr_segment(ZydisRegister reg);
void tr_cold(struct translation *t, struct cold cold);
void tr_emit_colds(struct translation *t);
u32 tr_mem_record(struct translation *t, unsigned access, unsigned size, unsigned seg);

// jit_copy.c
void tr_copy(struct translation *t);
// jit_generate.c
bool tr_generate(struct translation *t); // false: not one of these forms, try the row's handler
void tr_call(struct translation *t, insn_handler *handler, unsigned flags); // C
void tr_raise(struct translation *t, enum vector vector);
// `site`: what of it to undo if the target is bad; the place in it is the current instruction.
void tr_goto(struct translation *t, u32 site, bool indirect); // T0 = target RIP
void tr_goto_offset(struct translation *t, s64 page_offset, u32 site);
void tr_repeat(struct translation *t); // a conditional jump to the block's start: taken inline
void tr_leave(struct translation *t, s64 page_offset); // to the run loop, RIP = there
// jit_decode.c
void jit_decode_insn(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op, struct insn *insn);
const struct insn_row *insn_row_of(const ZydisDecodedInstruction *zi);
const struct insn_row *insn_row_in_c(u16 mnemonic);

#endif
