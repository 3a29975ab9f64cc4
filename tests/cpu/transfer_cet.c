// SPDX-License-Identifier: MIT
// CET in control transfers and events, and its instructions.
// SDM: "Shadow Stacks", "Supervisor Shadow Stack Token", "Indirect Branch Tracking", the pages of CALL,
// RET, INT n, IRET, SYSCALL, SYSRET and of the CET instructions.
#include "machine.h"

#include <stdio.h>
#include <string.h>

#define GP VECTOR_GP
#define PF VECTOR_PF
#define CP VECTOR_CP
#define UD VECTOR_UD

static void wide(u64 value)
{
	// 64-bit code is at addresses above 4 GiB.
	cpu->rip = value;
	cpu->next_rip = value + 3;
}

static void events_from_user(void)
{
	u64 top = KERNEL_SS - 8;

	machine_long(3);
	machine_cet(true, true);
	cpu->s_cet |= CET_SUPPRESS;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 4));
	raises(NOTHING, 0, "event from level 3");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP gets SSP");
	is(cpu->ssp, top, "SSP is at the token");
	is(get(top, 8), top | 1, "which is busy");
	is(cpu->s_cet & (CET_WAIT | CET_SUPPRESS), CET_WAIT, "the supervisor's tracker waits, unsuppressed");
	ok(cet_waiting(cpu), "cet_waiting()");
	is(cpu->last_branch_from, 0x12340, "source of the transfer");
	cpu->gpr[RSP] += 8;
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRET to level 3");
	is(cpu->ssp, USER_SS - 0x40, "SSP is PL3_SSP");
	is(get(top, 8), top, "the token is free");
	ok(!(cpu->u_cet & CET_WAIT), "IRET does not arm");

	machine_long(3);
	machine_cet(true, false);
	cpu->ssp = 0x0000800000000000ull | 0x50f00;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 4));
	is(cpu->pl_ssp[3], 0xffff800000050f00ull, "PL3_SSP is made canonical");

	machine_long(3);
	machine_cet(true, false);
	cpu->s_cet = 0;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 4));
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP is saved without a supervisor shadow stack too");
	is(get(top, 8), top, "no token is taken");
	is(cpu->ssp, USER_SS - 0x40, "SSP stays");
	cpu->gpr[RSP] += 8;
	cpu->pl_ssp[3] = USER_SS - 0x100;
	TRY(execute(INSN(IRETQ, 8)));
	is(cpu->ssp, USER_SS - 0x100, "IRET loads it again");

	machine_long(3);
	machine_cet(true, false);
	cpu->u_cet = 0;
	cpu->pl_ssp[3] = 0x1230;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 4));
	is(cpu->pl_ssp[3], 0x1230, "PL3_SSP is kept without a user shadow stack");
	is(cpu->ssp, top, "supervisor shadow stack in use");
	cpu->gpr[RSP] += 8;
	TRY(execute(INSN(IRETQ, 8)));
	is(get(top, 8), top, "token freed by IRET to a level without shadow stack");
}

static void event_token_faults(void)
{
	static const struct {
		u64 ssp, token;
		int vector;
		u32 error;
		const char *name;
	} rows[] = {
		{ KERNEL_SS - 8, (KERNEL_SS - 8) | 1, GP, 1, "busy token" },
		{ KERNEL_SS - 8, KERNEL_SS - 16, GP, 1, "token of another address" },
		{ KERNEL_SS - 8, 0, GP, 1, "no token" },
		{ KERNEL_SS - 4, 0, GP, 1, "PL0_SSP not aligned to 8" },
		{ KERNEL_SS - 0x20, KERNEL_SS - 0x20, NOTHING, 0, "no frame: the token may be anywhere" },
		{ NOT_SS - 8, NOT_SS - 8, PF, PF_P | PF_W | PF_SS, "token in an ordinary page" },
		{ USER_SS - 8, USER_SS - 8, PF, PF_P | PF_W | PF_SS, "token in a user page" },
		{ UNMAPPED + 0xff8, 0, PF, PF_W | PF_SS, "token in no page" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		machine_long(3);
		machine_cet(true, true);
		cpu->pl_ssp[0] = rows[i].ssp;
		if (rows[i].token)
			put(rows[i].ssp, rows[i].token, 8);
		else
			put(rows[i].ssp & ~7ull, 0, 8);
		TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 4));
		raises(rows[i].vector, rows[i].error, rows[i].name);
		if (rows[i].vector == GP && !(rows[i].ssp & 7))
			is(get(rows[i].ssp, 8), rows[i].token, "token unchanged");
	}
}

static void events_same_level(void)
{
	u64 frame = KERNEL_SS - 0x40 - 24;

	machine_long(0);
	machine_cet(true, true);
	wide(0xffffffff81234560);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event in level 0");
	is(cpu->ssp, frame, "a frame of three slots");
	is(get(frame, 8), KERNEL_SS - 0x40, "SSP");
	is(get(frame + 8, 8), 0xffffffff81234560, "LIP");
	is(get(frame + 16, 8), CODE64, "CS");
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRET");
	is(cpu->ssp, KERNEL_SS - 0x40, "SSP again");

	machine_long(0);
	machine_cet(true, true);
	cpu->ssp = KERNEL_SS - 0x44;
	put(KERNEL_SS - 0x48, ~0ull, 8);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	is(cpu->ssp, KERNEL_SS - 0x48 - 24, "SSP is aligned down to 8 first");
	is(get(KERNEL_SS - 0x48, 8), 0xffffffff00000000, "the hole is zero");
	is(get(cpu->ssp, 8), KERNEL_SS - 0x44, "SSP from before in the frame");
	TRY(execute(INSN(IRETQ, 8)));
	is(cpu->ssp, KERNEL_SS - 0x44, "IRET brings it back");

	machine_long(0);
	machine_cet(true, true);
	set_gate64(2, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 1);
	TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
	raises(NOTHING, 0, "event with IST");
	is(cpu->ssp, IST_SS - 8 - 24, "shadow stack from the table");
	is(get(IST_SS - 8, 8), (IST_SS - 8) | 1, "token taken");
	is(get(cpu->ssp, 8), KERNEL_SS - 0x40, "old SSP in the frame");
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRET from it");
	is(cpu->ssp, KERNEL_SS - 0x40, "SSP again");
	is(get(IST_SS - 8, 8), IST_SS - 8, "token freed");
	token(IST_SS - 8, true);
	TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
	raises(GP, 1, "IST with a busy token");
	for (unsigned at = 8; at <= 0x20; at += 8) {
		put(SSP_TABLE + 8, IST_SS - at, 8);
		token(IST_SS - at, false);
		TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
		raises(at == 8 ? NOTHING : GP, 1, "token and frame in one block of 32 bytes");
		is(get(IST_SS - at, 8), (IST_SS - at) | (at == 8), "else the token stays free");
	}

	machine_32(0);
	machine_cet(true, false);
	cpu->ssp = 0xc;
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event in 32-bit code near the bottom of the address space");
	is(cpu->ssp, 0xfffffff0, "SSP has 32 bits there");

	machine_long(3);
	machine_cet(true, true);
	set_gate64(2, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 1);
	TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
	is(cpu->ssp, IST_SS - 8, "IST from level 3: no frame");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP saved");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "PL0_SSP's token is left alone");

	machine_long(1);
	machine_cet(true, true);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event from level 1");
	is(cpu->ssp, KERNEL_SS - 8 - 24, "token and frame");
	is(get(cpu->ssp, 8), RING1_SS - 0x40, "old SSP");
	is(get(cpu->ssp + 16, 8), RING1_CODE64, "old CS");
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRET to level 1");
	is(cpu->ssp, RING1_SS - 0x40, "SSP out of the frame");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "token freed");
}

// Data-stack pushes come first; a later fault of the shadow stack leaves registers alone and the
// token busy.
static void partial_work(void)
{
	machine_long(1);
	machine_cet(true, true);
	cpu->pl_ssp[0] = 0x42018; // frame at 0x42000: the push is in the same page as the token
	put(0x42018, 0x42018, 8);
	map_page(0x41000, 0x41000 & 0); // nothing below
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "frame at the start of a page");

	machine_long(0);
	machine_cet(true, true);
	cpu->ssp = 0x40008;
	put(KERNEL_STACK - 0x118, 0x5555, 8);
	map_page(0x3f000, 0);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(PF, PF_W | PF_SS, "shadow stack overflow");
	ok(get(KERNEL_STACK - 0x118, 8) != 0x5555, "the data stack was written first");

	machine_long(0);
	machine_cet(true, true);
	put(SSP_TABLE + 8, UNMAPPED + 0xff8, 8);
	set_gate64(2, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 1);
	TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
	raises(PF, PF_W | PF_SS, "IST token in no page");
	cpu->int_ssp_tab = UNMAPPED;
	TRY(event_deliver(cpu, 2, EVENT_NMI, false, 0));
	raises(PF, 0, "table in no page: an ordinary supervisor read");
}

static void iret_checks(void)
{
	static const struct {
		unsigned slot;
		u64 value;
		int vector;
		u32 error;
		const char *name;
	} rows[] = {
		{ 0, KERNEL_SS - 0x40, NOTHING, 0, "intact frame" },
		{ 2, CODE64 | 1ull << 40, CP, CP_FAR_RET, "all 64 bits of CS are compared" },
		{ 2, CODE32, CP, CP_FAR_RET, "other CS" },
		{ 1, 0x12344, CP, CP_FAR_RET, "other LIP" },
		{ 1, 0x12340 | 1ull << 63, CP, CP_FAR_RET, "other LIP above" },
		{ 0, KERNEL_SS - 0x42, CP, CP_FAR_RET, "previous SSP not aligned to 4" },
		{ 0, 0x800000000000, GP, 0, "previous SSP not canonical" },
		{ 0, KERNEL_SS - 0x44, NOTHING, 0, "previous SSP aligned to 4" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		machine_long(0);
		machine_cet(true, false);
		TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
		put(cpu->ssp + 8 * rows[i].slot, rows[i].value, 8);
		TRY(execute(INSN(IRETQ, 8)));
		raises(rows[i].vector, rows[i].error, rows[i].name);
	}
	machine_long(0);
	machine_cet(true, false);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	cpu->ssp += 4;
	TRY(execute(INSN(IRETQ, 8)));
	raises(CP, CP_FAR_RET, "SSP not aligned to 8");

	// To level 3 nothing is compared; the token is freed only if it is the right one.
	machine_long(3);
	machine_cet(true, false);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	put(KERNEL_SS - 8, 0x1234560 | 1, 8);
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRET to level 3 with a foreign token");
	is(get(KERNEL_SS - 8, 8), 0x1234560 | 1, "which is left alone");
	machine_long(3);
	machine_cet(true, false);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	cpu->pl_ssp[3] = 0x123456789000;
	put(cpu->gpr[RSP] + 8, USER_CODE32, 8);
	TRY(execute(INSN(IRETQ, 8)));
	raises(GP, 0, "PL3_SSP above 4 GiB and 32-bit code");
	is(get(KERNEL_SS - 8, 8), (KERNEL_SS - 8) | 1, "the token is still busy");
	cpu->pl_ssp[3] = USER_SS - 0x40;
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "PL3_SSP below 4 GiB");
	machine_long(3);
	machine_cet(true, false);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	cpu->ssp -= 4;
	TRY(execute(INSN(IRETQ, 8)));
	raises(CP, CP_FAR_RET, "SSP not aligned on return to level 3");
	cpu->ssp = UNMAPPED + 0xff8;
	TRY(execute(INSN(IRETQ, 8)));
	raises(PF, PF_W | PF_SS, "freeing the token is a supervisor shadow-stack write");
}

static void far_calls(void)
{
	struct insn *call = INSN(CALL, 8, .op = { { .kind = OPERAND_MEM } }, .mem_disp = 0x8000, .mem_seg = SEG_DS);
	struct insn *jmp = INSN(JMP, 8, .op = { { .kind = OPERAND_MEM } }, .mem_disp = 0x8000, .mem_seg = SEG_DS);
	u64 frame = KERNEL_SS - 0x40 - 24;

	machine_long(0);
	machine_cet(true, true);
	put(0x8000, HANDLER, 8);
	put(0x8008, CODE64, 2);
	TRY(execute(call));
	raises(NOTHING, 0, "far CALL on the same level");
	is(cpu->ssp, frame, "frame");
	is(get(frame, 8), KERNEL_SS - 0x40, "SSP");
	is(get(frame + 8, 8), 0x12343, "LIP");
	is(get(frame + 16, 8), CODE64, "CS");
	ok(cpu->s_cet & CET_WAIT, "arms the tracker");
	put(KERNEL_SS - 0x40, (KERNEL_SS - 0x40) | 1, 8);
	TRY(execute(INSN(RET, 8)));
	raises(NOTHING, 0, "RETF");
	is(cpu->ssp, KERNEL_SS - 0x40, "SSP again");
	is(get(KERNEL_SS - 0x40, 8), (KERNEL_SS - 0x40) | 1, "RETF on the same level frees no token");
	// Nor when the frame says that shadow stacks were switched; IRET would.
	TRY(execute(call));
	put(frame, KERNEL_SS - 0x80, 8);
	cpu->next_rip = HANDLER + 3;
	TRY(execute(INSN(RET, 8)));
	raises(NOTHING, 0, "RETF to another shadow stack");
	is(cpu->ssp, KERNEL_SS - 0x80, "SSP out of the frame");
	is(get(KERNEL_SS - 0x40, 8), (KERNEL_SS - 0x40) | 1, "still no token freed");
	cpu->ssp = KERNEL_SS - 0x40;
	cpu->rip = 0x12340;
	cpu->next_rip = 0x12343;
	TRY(execute(call));
	put(frame + 8, 0x12347, 8);
	TRY(execute(INSN(RET, 8)));
	raises(CP, CP_FAR_RET, "RETF to elsewhere");

	machine_long(0);
	machine_cet(true, true);
	cpu->ssp = 0xffff800000040f00;
	put(0x8000, 0x1000, 8);
	put(0x8008, CODE32, 2);
	TRY(execute(call));
	raises(GP, 0, "far CALL to 32-bit code with SSP above 4 GiB");
	TRY(execute(jmp));
	raises(GP, 0, "far JMP likewise");
	cpu->ssp = KERNEL_SS - 0x40;
	TRY(execute(jmp));
	raises(NOTHING, 0, "far JMP with SSP below");
	is(cpu->ssp, KERNEL_SS - 0x40, "pushes nothing");
	ok(cpu->s_cet & CET_WAIT, "arms the tracker");

	machine_long(3);
	machine_cet(true, true);
	map_page(0x8000, 7);
	put(0x8008, GATE | 3, 2);
	set_call_gate64(GATE, CODE64, HANDLER, 3);
	TRY(execute(call));
	raises(NOTHING, 0, "call gate from level 3");
	is(cpu->ssp, KERNEL_SS - 8, "nothing is pushed");
	is(get(KERNEL_SS - 8, 8), (KERNEL_SS - 8) | 1, "token taken");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP saved");
	TRY(execute(INSN(RET, 8)));
	raises(NOTHING, 0, "RETF to level 3");
	is(cpu->ssp, USER_SS - 0x40, "SSP again");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "token freed");
	token(KERNEL_SS - 8, true);
	TRY(execute(call));
	raises(GP, 0, "call gate with a busy token: #GP, not #CP");

	machine_long(1);
	machine_cet(true, true);
	put(0x8008, GATE | 3, 2);
	set_call_gate64(GATE, CODE64, HANDLER, 3);
	TRY(execute(call));
	is(cpu->ssp, KERNEL_SS - 8 - 24, "call gate from level 1 pushes a frame");
	TRY(execute(INSN(RET, 8)));
	raises(NOTHING, 0, "RETF to level 1");
	is(cpu->ssp, RING1_SS - 0x40, "SSP out of the frame");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "token freed");
}

static void system_calls(void)
{
	machine_long(3);
	machine_cet(true, true);
	cpu->star = (u64)USER_CODE32 << 48 | (u64)CODE64 << 32;
	cpu->lstar = HANDLER;
	cpu->s_cet |= CET_SUPPRESS;
	TRY(execute(INSN(SYSCALL, 8)));
	is(cpu->pl_ssp[3], USER_SS - 0x40, "SYSCALL saves SSP in PL3_SSP");
	is(cpu->ssp, 0, "and clears SSP");
	is(cpu->s_cet & (CET_WAIT | CET_SUPPRESS), CET_WAIT, "and arms the supervisor's tracker");
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(NOTHING, 0, "SETSSBSY");
	is(cpu->ssp, KERNEL_SS - 8, "SSP is PL0_SSP");
	is(get(KERNEL_SS - 8, 8), (KERNEL_SS - 8) | 1, "token busy");
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(CP, CP_SETSSBSY, "SETSSBSY on a busy token");
	TRY(execute(INSN(CLRSSBSY, 4, .op = { { .kind = OPERAND_MEM } }, .mem_disp = KERNEL_SS - 8, .mem_seg = SEG_DS)));
	raises(NOTHING, 0, "CLRSSBSY");
	is(cpu->ssp, 0, "SSP is 0");
	ok(!(cpu_rflags(cpu) & FLAG_CF), "CF clear: the token was busy");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "token free");
	TRY(execute(INSN(CLRSSBSY, 4, .op = { { .kind = OPERAND_MEM } }, .mem_disp = KERNEL_SS - 8, .mem_seg = SEG_DS)));
	ok(cpu_rflags(cpu) & FLAG_CF, "CF set: it was not");
	cpu->ssp = 0x1230;
	TRY(execute(INSN(CLRSSBSY, 4, .op = { { .kind = OPERAND_MEM } }, .mem_disp = KERNEL_SS - 8, .mem_seg = SEG_DS)));
	is(cpu->ssp, 0, "SSP becomes 0 all the same");
	TRY(execute(INSN(SYSRET, 8)));
	raises(NOTHING, 0, "SYSRET");
	is(cpu->ssp, USER_SS - 0x40, "SSP is PL3_SSP");
	ok(!(cpu->u_cet & CET_WAIT), "not armed");

	machine_long(3);
	machine_cet(true, true);
	cpu->s_cet = 0;
	cpu->star = (u64)CODE64 << 32;
	TRY(execute(INSN(SYSCALL, 8)));
	is(cpu->ssp, USER_SS - 0x40, "without a supervisor shadow stack SSP stays");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP is saved");
	ok(!(cpu->s_cet & CET_WAIT), "no tracker, not armed");

	machine_long(0);
	machine_cet(true, true);
	cpu->star = (u64)CODE64 << 32;
	TRY(execute(INSN(SYSCALL, 8)));
	is(cpu->pl_ssp[3], KERNEL_SS - 0x40, "SYSCALL in level 0 saves SSP in PL3_SSP as well");

	machine_compat();
	machine_cet(true, true);
	cpu->sysenter_cs = CODE64;
	TRY(execute(INSN(SYSENTER, 4)));
	is(cpu->ssp, 0, "SYSENTER clears SSP");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "and saves it");
	ok(cpu->s_cet & CET_WAIT, "and arms");
	TRY(execute(INSN(SYSEXIT, 8, )));
	raises(GP, 0, "SYSEXIT to a non-canonical address");
	cpu->gpr[RDX] = 0x4000;
	cpu->gpr[RCX] = 0x30000;
	TRY(execute(INSN(SYSEXIT, 8)));
	is(cpu->ssp, USER_SS - 0x40, "SYSEXIT loads PL3_SSP");
}

static void tracking(void)
{
	static const struct {
		u64 before;
		bool near_indirect, notrack;
		u64 after;
		const char *name;
	} rows[] = {
		{ CET_ENDBR_EN, true, false, CET_WAIT, "near indirect arms" },
		{ CET_ENDBR_EN, true, true, CET_WAIT, "NOTRACK without NO_TRACK_EN arms" },
		{ CET_ENDBR_EN | CET_NO_TRACK_EN, true, true, 0, "NOTRACK with NO_TRACK_EN does not" },
		{ CET_ENDBR_EN | CET_NO_TRACK_EN, true, false, CET_WAIT, "without NOTRACK it arms" },
		{ CET_ENDBR_EN | CET_SUPPRESS, true, false, CET_SUPPRESS, "suppressed" },
		{ CET_ENDBR_EN | CET_SUPPRESS, false, false, CET_WAIT, "far transfers end suppression" },
		{ CET_ENDBR_EN | CET_NO_TRACK_EN, false, true, CET_WAIT, "far transfers ignore NOTRACK" },
		{ CET_SUPPRESS, false, false, CET_SUPPRESS, "disabled: frozen" },
		{ CET_WAIT, true, false, CET_WAIT, "disabled: frozen in WAIT" },
	};

	for (unsigned cpl = 0; cpl < 4; cpl += 3) {
		for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
			u64 *msr = cpl ? &cpu->u_cet : &cpu->s_cet, *other = cpl ? &cpu->s_cet : &cpu->u_cet;

			machine_long(cpl);
			cpu->cr4 |= CR4_CET;
			*msr = rows[i].before;
			*other = CET_ENDBR_EN;
			TRY(cet_track_indirect(cpu, cpl, rows[i].near_indirect, rows[i].notrack));
			is(*msr & (CET_WAIT | CET_SUPPRESS), rows[i].after, "level %u: %s", cpl, rows[i].name);
			is(*other, CET_ENDBR_EN, "the other tracker is not touched");
		}
	}
	machine_long(3);
	machine_cet(false, true);
	cpu->u_cet |= CET_WAIT;
	TRY(cet_endbranch(cpu, false));
	ok(cpu->u_cet & CET_WAIT, "ENDBR32 in 64-bit code is not it");
	TRY(cet_endbranch(cpu, true));
	ok(!(cpu->u_cet & CET_WAIT), "ENDBR64 is");
	cpu->u_cet |= CET_SUPPRESS;
	TRY(cet_endbranch(cpu, true));
	ok(!(cpu->u_cet & CET_SUPPRESS), "ENDBR64 ends suppression");
	machine_compat();
	machine_cet(false, true);
	cpu->u_cet |= CET_WAIT;
	TRY(cet_endbranch(cpu, true));
	ok(cpu->u_cet & CET_WAIT, "ENDBR64 in 32-bit code is not it");
	TRY(cet_endbranch(cpu, false));
	ok(!(cpu->u_cet & CET_WAIT), "ENDBR32 is");
	cpu->u_cet = CET_WAIT | CET_SUPPRESS;
	TRY(cet_endbranch(cpu, false));
	is(cpu->u_cet, CET_WAIT | CET_SUPPRESS, "disabled: frozen");
	machine_v86(3);
	machine_cet(false, true);
	TRY(cet_track_indirect(cpu, 3, false, false));
	ok(!(cpu->u_cet & CET_WAIT), "no tracking in virtual-8086 mode");
}

static void missing_endbranch(void)
{
	machine_long(3);
	machine_cet(false, true);
	cpu->u_cet |= CET_WAIT;
	TRY(cet_missing_endbranch(cpu));
	raises(CP, CP_ENDBRANCH, "no ENDBR");
	ok(cpu->u_cet & CET_WAIT, "the tracker goes on waiting");
	// Bitmap at 0x32000, for RIP 0x12340: byte 0x12340 >> 15 = 2, bit (0x12340 >> 12) & 7 = 2.
	cpu->u_cet |= CET_LEG_IW_EN | 0x32000;
	TRY(cet_missing_endbranch(cpu));
	raises(CP, CP_ENDBRANCH, "not a legacy page");
	put(0x32002, 1 << 2, 1);
	TRY(cet_missing_endbranch(cpu));
	raises(NOTHING, 0, "legacy page");
	is(cpu->u_cet & (CET_WAIT | CET_SUPPRESS), CET_SUPPRESS, "idle and suppressed");
	cpu->u_cet = (cpu->u_cet & ~(u64)CET_SUPPRESS) | CET_WAIT | CET_SUPPRESS_DIS;
	TRY(cet_missing_endbranch(cpu));
	is(cpu->u_cet & (CET_WAIT | CET_SUPPRESS), 0, "SUPPRESS_DIS: idle only");
	cpu->u_cet = CET_ENDBR_EN | CET_WAIT | CET_LEG_IW_EN | 0x38000;
	TRY(cet_missing_endbranch(cpu));
	raises(PF, PF_P | PF_U, "bitmap in a supervisor page: read with the rights of level 3");
	ok(cpu->u_cet & CET_WAIT, "the tracker goes on waiting");
	machine_long(0);
	machine_cet(false, true);
	wide(0xffffffff80001000);
	cpu->s_cet |= CET_WAIT | CET_LEG_IW_EN | 0x7fff00000000ull;
	TRY(cet_missing_endbranch(cpu));
	raises(GP, 0, "byte of the bitmap not at a canonical address");
}

static void reads_and_writes(void)
{
	struct insn *rdssp = INSN(RDSSPQ, 8, .op = { { .kind = OPERAND_REG, .size = 8, .reg = RAX } });
	struct insn *rdsspd = INSN(RDSSPD, 4, .op = { { .kind = OPERAND_REG, .size = 4, .reg = RAX } });
	struct insn *incssp = INSN(INCSSPQ, 8, .op = { { .kind = OPERAND_REG, .size = 8, .reg = RAX } });
	struct insn *incsspd = INSN(INCSSPD, 4, .op = { { .kind = OPERAND_REG, .size = 4, .reg = RAX } });
	struct insn *wrss = INSN(WRSSQ, 8, .op = { { .kind = OPERAND_MEM, .size = 8 }, { .kind = OPERAND_REG, .size = 8, .reg = RAX } },
				 .mem_base = RBX, .mem_seg = SEG_DS);
	struct insn *wrussd = INSN(WRUSSD, 4, .op = { { .kind = OPERAND_MEM, .size = 4 }, { .kind = OPERAND_REG, .size = 4, .reg = RAX } },
				   .mem_base = RBX, .mem_seg = SEG_DS);

	machine_long(3);
	cpu->gpr[RAX] = 0x1234567890;
	TRY(execute(rdssp));
	is(cpu->gpr[RAX], 0x1234567890, "RDSSPQ is a NOP without shadow stacks");
	TRY(execute(incssp));
	raises(UD, NO_ERROR, "INCSSPQ is not there");
	machine_cet(true, false);
	cpu->ssp = 0x50f00;
	TRY(execute(rdsspd));
	is(cpu->gpr[RAX], 0x50f00, "RDSSPD zero-extends");
	cpu->gpr[RAX] = 0xabcdef00 + 3;
	cpu_set_rflags(cpu, FLAG_CF | FLAG_ZF);
	TRY(execute(incssp));
	is(cpu->ssp, 0x50f18, "INCSSPQ takes 8 bits of its operand");
	is(cpu_rflags(cpu), FLAG_CF | FLAG_ZF | 2, "INCSSP leaves flags");
	TRY(execute(incsspd));
	is(cpu->ssp, 0x50f24, "INCSSPD by 4");
	cpu->gpr[RAX] = 0;
	cpu->ssp = UNMAPPED + 8;
	TRY(execute(incssp));
	raises(PF, PF_U | PF_SS, "INCSSP by 0 loads at SSP");
	cpu->ssp = 0x54000 - 16;
	cpu->gpr[RAX] = 3;
	TRY(execute(incssp));
	raises(PF, PF_P | PF_U | PF_SS, "INCSSP loads the last element too");
	cpu->gpr[RAX] = 2;
	TRY(execute(incssp));
	raises(NOTHING, 0, "INCSSP to the end of a page");
	cpu->ssp = 0x54000 - 8;
	TRY(execute(incssp));
	raises(PF, PF_P | PF_U | PF_SS, "INCSSP by 2, the second element in another page");
	cpu->ssp = 0x800000000000;
	TRY(execute(incssp));
	raises(GP, 0, "INCSSP at an address that is not canonical");
	cpu->ssp = 0x51000;

	cpu->gpr[RAX] = 0x1122334455667788;
	cpu->gpr[RBX] = 0x50f00;
	TRY(execute(wrss));
	raises(NOTHING, 0, "WRSSQ");
	is(get(0x50f00, 8), 0x1122334455667788, "stores");
	cpu->gpr[RBX] = 0x50f04;
	TRY(execute(wrss));
	raises(GP, 0, "WRSSQ not aligned");
	cpu->gpr[RBX] = 0x30000;
	TRY(execute(wrss));
	raises(PF, PF_P | PF_W | PF_U | PF_SS, "WRSSQ to an ordinary page");
	cpu->gpr[RBX] = 0x40f00;
	TRY(execute(wrss));
	raises(PF, PF_P | PF_W | PF_U | PF_SS, "WRSSQ of level 3 to a supervisor's shadow stack");
	cpu->u_cet &= ~(u64)CET_WRSS_EN;
	TRY(execute(wrss));
	raises(UD, NO_ERROR, "WRSS_EN clear");
	TRY(execute(wrussd));
	raises(GP, 0, "WRUSS in level 3");

	machine_long(0);
	machine_cet(true, false);
	cpu->u_cet = cpu->s_cet = 0;
	cpu->gpr[RAX] = 0xaabbccdd;
	cpu->gpr[RBX] = 0x50f04;
	put(0x50f00, ~0ull, 8);
	TRY(execute(wrussd));
	raises(NOTHING, 0, "WRUSSD needs CR4.CET only");
	is(get(0x50f00, 8), 0xaabbccddffffffff, "stores 4 bytes");
	cpu->gpr[RBX] = 0x40f00;
	TRY(execute(wrussd));
	raises(PF, PF_P | PF_W | PF_U | PF_SS, "WRUSS is a user access");
	cpu->gpr[RBX] = 0x50f02;
	TRY(execute(wrussd));
	raises(GP, 0, "WRUSSD not aligned");
	cpu->cr4 &= ~(u64)CR4_CET;
	TRY(execute(wrussd));
	raises(UD, NO_ERROR, "WRUSS without CR4.CET");
}

static void switching(void)
{
	struct insn *rstorssp = INSN(RSTORSSP, 4, .op = { { .kind = OPERAND_MEM, .size = 8 } }, .mem_base = RBX, .mem_seg = SEG_DS);
	u64 old = USER_SS - 0x40, target = USER_SS2 - 8;
	static const struct {
		u64 address, token;
		int vector;
		u32 error;
		const char *name;
	} rows[] = {
		{ USER_SS2 - 8, USER_SS2 | 1, NOTHING, 0, "valid token" },
		{ USER_SS2 - 16, (USER_SS2 - 4) | 1, NOTHING, 0, "valid token with a hole" },
		{ USER_SS2 - 8, USER_SS2, CP, CP_RSTORSSP, "token of 32-bit mode" },
		{ USER_SS2 - 8, USER_SS2 | 3, CP, CP_RSTORSSP, "previous-SSP token" },
		{ USER_SS2 - 8, (USER_SS2 + 8) | 1, CP, CP_RSTORSSP, "token of another place" },
		{ USER_SS2 - 8, 0, CP, CP_RSTORSSP, "no token" },
		{ USER_SS2 - 4, 0, GP, 0, "not aligned" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		machine_long(3);
		machine_cet(true, false);
		cpu_set_rflags(cpu, FLAG_ZF | FLAG_CF | FLAG_OF);
		cpu->gpr[RBX] = rows[i].address;
		put(rows[i].address & ~7ull, rows[i].token, 8);
		TRY(execute(rstorssp));
		raises(rows[i].vector, rows[i].error, rows[i].name);
		if (rows[i].vector == NOTHING) {
			is(cpu->ssp, rows[i].address, "SSP");
			is(get(rows[i].address, 8), old | 3, "previous-SSP token");
			is(cpu_rflags(cpu), (rows[i].token & 4 ? FLAG_CF : 0) | 2, "CF tells of a hole; other flags 0");
		} else if (rows[i].vector == CP) {
			is(get(rows[i].address, 8), rows[i].token, "token written back");
			is(cpu->ssp, old, "SSP stays");
		}
	}
	machine_long(3);
	machine_cet(true, false);
	cpu->gpr[RBX] = target;
	put(target, (target + 8) | 1, 8);
	TRY(execute(rstorssp));
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(NOTHING, 0, "SAVEPREVSSP");
	is(cpu->ssp, target + 8, "the token is popped");
	is(get(old - 8, 8), old | 1, "a restore token on the old shadow stack");
	cpu->gpr[RBX] = old - 8;
	TRY(execute(rstorssp));
	is(cpu->ssp, old - 8, "and back");

	machine_long(3);
	machine_cet(true, false);
	cpu_set_rflags(cpu, 0);
	put(cpu->ssp, old | 1, 8);
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(GP, 0, "SAVEPREVSSP wants a previous-SSP token");
	put(cpu->ssp, (USER_SS2 - 0x14) | 3, 8);
	put(USER_SS2 - 0x20, ~0ull, 8);
	put(USER_SS2 - 0x18, ~0ull, 8);
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(NOTHING, 0, "SAVEPREVSSP of an SSP aligned to 4");
	is(get(USER_SS2 - 0x18, 8), 0xffffffff00000000, "hole of zeros");
	is(get(USER_SS2 - 0x20, 8), (USER_SS2 - 0x14) | 1, "token below it");
	cpu->ssp = old;
	cpu_set_rflags(cpu, FLAG_CF);
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(GP, 0, "SAVEPREVSSP with CF in 64-bit mode");
	cpu_set_rflags(cpu, 0);
	cpu->ssp = old + 4;
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(GP, 0, "SAVEPREVSSP with SSP not aligned to 8");

	machine_compat();
	machine_cet(true, false);
	cpu->gpr[RBX] = target;
	put(target, target + 8, 8);
	TRY(execute(rstorssp));
	raises(NOTHING, 0, "RSTORSSP in 32-bit mode");
	is(get(target, 8), old | 2, "previous-SSP token of 32-bit mode");
	put(target, (target + 8) | 1ull << 32, 8);
	TRY(execute(rstorssp));
	raises(CP, CP_RSTORSSP, "upper half of the token in 32-bit mode");
	cpu->ssp = old;
	put(old, (USER_SS2 - 0x10) | 2, 8);
	put(old + 8, 0, 4);
	cpu_set_rflags(cpu, FLAG_CF);
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(NOTHING, 0, "SAVEPREVSSP with CF in 32-bit mode pops the hole");
	is(cpu->ssp, old + 12, "SSP");
	cpu->ssp = old;
	put(old + 8, 1, 4);
	TRY(execute(INSN(SAVEPREVSSP, 4)));
	raises(GP, 0, "the hole must be zero");
}

static void busy_faults(void)
{
	struct insn *clrssbsy = INSN(CLRSSBSY, 4, .op = { { .kind = OPERAND_MEM, .size = 8 } }, .mem_base = RBX, .mem_seg = SEG_DS);

	machine_long(3);
	machine_cet(true, false);
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(GP, 0, "SETSSBSY in level 3");
	TRY(execute(clrssbsy));
	raises(GP, 0, "CLRSSBSY in level 3");
	cpu->s_cet = 0;
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(UD, NO_ERROR, "without supervisor shadow stacks there is no SETSSBSY");
	TRY(execute(clrssbsy));
	raises(UD, NO_ERROR, "nor CLRSSBSY");
	machine_long(0);
	machine_cet(true, false);
	cpu->pl_ssp[0] = KERNEL_SS - 4;
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(GP, 0, "SETSSBSY with PL0_SSP not aligned to 8");
	cpu->gpr[RBX] = KERNEL_SS - 4;
	TRY(execute(clrssbsy));
	raises(GP, 0, "CLRSSBSY not aligned");
	cpu->gpr[RBX] = 0x30000;
	TRY(execute(clrssbsy));
	raises(PF, PF_P | PF_W | PF_SS, "CLRSSBSY of an ordinary page");
}

static void near_transfers(void)
{
	machine_long(3);
	machine_cet(true, false);
	TRY(cet_push(cpu, 0x123456789a, 8));
	is(cpu->ssp, USER_SS - 0x48, "push of 8 bytes");
	is(get(cpu->ssp, 8), 0x123456789a, "value");
	TRY(cet_pop_check(cpu, 0x123456789b, 8));
	raises(CP, CP_NEAR_RET, "mismatch");
	TRY(cpu->ssp = cet_pop_check(cpu, 0x123456789a, 8));
	is(cpu->ssp, USER_SS - 0x40, "match");
	machine_compat();
	machine_cet(true, false);
	TRY(cet_push(cpu, 0x1234, 4));
	is(cpu->ssp, USER_SS - 0x44, "push of 4 bytes");
	TRY(cet_pop_check(cpu, 0x1235, 4));
	raises(CP, CP_NEAR_RET, "mismatch of 4 bytes");
	TRY(cpu->ssp = cet_pop_check(cpu, 0x1234, 4));
	raises(NOTHING, 0, "match of 4 bytes");
	machine_long(3);
	machine_cet(true, false);
	cpu->ssp = 0x50000;
	map_page(0x4f000, 0);
	TRY(cet_push(cpu, 1, 8));
	raises(PF, PF_W | PF_U | PF_SS, "overflow");
	is(cpu->ssp, 0x50000, "SSP stays");
}

int main(void)
{
	events_from_user();
	event_token_faults();
	events_same_level();
	partial_work();
	iret_checks();
	far_calls();
	system_calls();
	tracking();
	missing_endbranch();
	reads_and_writes();
	switching();
	busy_faults();
	near_transfers();
	return done();
}
