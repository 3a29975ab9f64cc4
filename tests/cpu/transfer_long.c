// SPDX-License-Identifier: MIT
// Events, IRET, far transfers and system calls in long mode, without CET.
// SDM: "Exception and Interrupt Handling in 64-bit Mode", IRET, CALL, RET, SYSCALL, SYSRET.
#include "machine.h"

#include <stdio.h>
#include <string.h>

#define GP VECTOR_GP
#define NP VECTOR_NP
#define TS VECTOR_TS
#define SS VECTOR_SS
#define PF VECTOR_PF

static void event_from_user(void)
{
	u64 rsp = USER_STACK - 0x18, frame = KERNEL_STACK - 48;

	machine_long(3);
	cpu_set_rflags(cpu, FLAG_IF | FLAG_TF | FLAG_NT | FLAG_CF | FLAG_AC);
	TRY(event_deliver(cpu, VECTOR_PF, EVENT_EXCEPTION, true, 7));
	raises(NOTHING, 0, "#PF from level 3 is delivered");
	is(cpu->cpl, 0, "CPL 0");
	is(cpu->gpr[RSP], frame, "frame of six slots on the stack of the TSS");
	is(get(frame, 8), 7, "error code");
	is(get(frame + 8, 8), 0x12340, "RIP of the faulting instruction");
	is(get(frame + 16, 8), USER_CODE64, "CS");
	is(get(frame + 24, 8), FLAG_IF | FLAG_TF | FLAG_NT | FLAG_CF | FLAG_AC | FLAG_RF | 2, "RFLAGS, RF set");
	is(get(frame + 32, 8), rsp, "RSP");
	is(get(frame + 40, 8), USER_DATA, "SS");
	is(cpu->rip, HANDLER + 14 * 16, "handler");
	is(cpu->seg[SEG_CS].selector, CODE64, "CS of the handler");
	is(cpu->seg[SEG_SS].selector, 0, "SS is null with RPL 0");
	ok(cpu->seg[SEG_SS].attributes & SEG_UNUSABLE, "SS is unusable");
	is(cpu_rflags(cpu), FLAG_CF | FLAG_AC | 2, "TF, NT, IF cleared; AC stays");
	TRY(execute(INSN(IRETQ, 8)));
	raises(VECTOR_GP, 0x12340 & 0xfffc, "IRET takes the error code for RIP, and RIP for CS");
	cpu->gpr[RSP] += 8;
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRETQ");
	is(cpu->cpl, 3, "back in level 3");
	is(cpu->rip, 0x12340, "RIP again");
	is(cpu->gpr[RSP], rsp, "RSP again");
	is(cpu->seg[SEG_SS].selector, USER_DATA, "SS again");
	is(cpu_rflags(cpu) & ~FLAG_RF, FLAG_IF | FLAG_TF | FLAG_NT | FLAG_CF | FLAG_AC | 2, "RFLAGS again");

	machine_long(3);
	set_gate64(14, CODE64, HANDLER, TYPE_TRAP_GATE32, 0, 0);
	TRY(event_deliver(cpu, VECTOR_PF, EVENT_EXCEPTION, true, 0));
	ok(cpu->rflags & FLAG_IF, "a trap gate leaves IF");

	machine_long(3);
	TRY(event_deliver(cpu, 0x40, EVENT_EXTERNAL, false, 0));
	is(cpu->gpr[RSP], KERNEL_STACK - 40, "no error code for interrupts");
	ok(!(get(KERNEL_STACK - 24, 8) & FLAG_RF), "RF as it was for interrupts");

	machine_compat();
	cpu->gpr[RSP] = 0xffffffff00031000ull - 8; // the upper half is no part of ESP but of RSP
	TRY(event_deliver(cpu, VECTOR_UD, EVENT_EXCEPTION, false, 0));
	raises(NOTHING, 0, "event in compatibility mode");
	is(get(KERNEL_STACK - 32, 8), USER_CODE32, "pushes the 32-bit CS in a slot of 8 bytes");
}

static void event_same_level(void)
{
	for (unsigned misalign = 0; misalign < 16; misalign += 8) {
		machine_long(0);
		cpu->gpr[RSP] = KERNEL_STACK - 0x100 - misalign;
		TRY(event_deliver(cpu, VECTOR_GP, EVENT_EXCEPTION, true, 0));
		is(cpu->gpr[RSP], ((KERNEL_STACK - 0x100 - misalign) & ~15) - 48, "stack is aligned to 16 first");
		is(get(cpu->gpr[RSP] + 32, 8), KERNEL_STACK - 0x100 - misalign, "RSP from before is pushed");
		is(cpu->seg[SEG_SS].selector, DATA, "SS stays");
	}
	machine_long(0);
	set_gate64(2, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 1);
	TRY(event_deliver(cpu, VECTOR_NMI, EVENT_NMI, false, 0));
	is(cpu->gpr[RSP], IST_STACK - 40, "IST switches the stack on the same level");
	is(cpu->seg[SEG_SS].selector, DATA, "but not SS");
	ok(cpu->nmi_masked, "NMI masks NMIs");
	TRY(execute(INSN(IRETQ, 8)));
	ok(!cpu->nmi_masked, "IRET unmasks them");
	is(cpu->gpr[RSP], KERNEL_STACK - 0x108, "IRETQ to the same level pops RSP");

	// However many came while they were masked, one is latched.
	cpu->nmi_masked = true;
	cpu->nmi_pending = 2;
	cpu->gpr[RSP] = IST_STACK - 40;
	TRY(execute(INSN(IRETQ, 8)));
	is(cpu->nmi_pending, 1, "IRET lets one NMI in that came meanwhile");
	ok(cpu->request & REQ_NMI, "at once");

	machine_long(0);
	cpu->idtr.base = 1ull << 47; // LIDT takes what five levels of paging could reach
	TRY(event_deliver(cpu, VECTOR_GP, EVENT_EXCEPTION, true, 0));
	raises(VECTOR_GP, 0, "an IDT where four levels do not reach");

	machine_long(3);
	set_gate64(0x80, CONFORMING64, HANDLER, TYPE_INTERRUPT_GATE32, 3, 0);
	TRY(event_deliver(cpu, 0x80, EVENT_SOFT, false, 0));
	raises(NOTHING, 0, "gate to a conforming segment");
	is(cpu->cpl, 3, "CPL stays 3");
	is(cpu->seg[SEG_CS].selector, CONFORMING64 | 3, "RPL of CS is CPL");
	is(get(cpu->gpr[RSP], 8), 0x12343, "software interrupts push RIP behind themselves");
}

static void event_faults(void)
{
	const u32 idt_pf = 14 * 8 + 2;

	machine_long(3);
	TRY(event_deliver(cpu, 13, EVENT_SOFT, false, 0));
	raises(GP, 13 * 8 + 2, "INT 13 in level 3 through a gate of DPL 0: no EXT");
	TRY(event_deliver(cpu, 3, EVENT_SOFT_EXCEPTION, false, 0));
	raises(GP, 3 * 8 + 2, "INT3 checks DPL too");
	TRY(event_deliver(cpu, 1, EVENT_PRIVILEGED_SOFT, false, 0));
	raises(NOTHING, 0, "INT1 does not");
	machine_long(3);
	set_gate64(14, CODE64, HANDLER, TYPE_CALL_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, idt_pf | 1, "not an interrupt or trap gate");
	set_gate64(14, CODE64, HANDLER, TYPE_TASK_GATE, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, idt_pf | 1, "no task gates in long mode");
	set_gate64(14, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	put(IDT + 14 * 16 + 5, 0x0e, 1);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(NP, idt_pf | 1, "gate not present");
	cpu->idtr.limit = 14 * 16 + 14;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, idt_pf | 1, "gate outside the IDT");
	cpu->idtr.limit = 0xfff;
	set_gate64(14, 0, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, 1, "null selector in the gate");
	set_gate64(14, DATA, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, DATA | 1, "data segment in the gate");
	set_gate64(14, CODE32, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, CODE32 | 1, "32-bit code in the gate");
	set_gate64(14, ABSENT_CODE, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(NP, ABSENT_CODE | 1, "code segment not present");
	set_descriptor(ABSENT_CODE, 0, ~0u, SEG_S | SEG_G | SEG_DB | 0xb);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, ABSENT_CODE | 1, "32-bit code in the gate, not present either");
	set_gate64(14, GDT_LIMIT + 1, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, (GDT_LIMIT + 1) | 1, "code segment outside the GDT");
	set_gate64(14, CODE64, 0x800000000000ull, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, 1, "handler address not canonical");
	set_gate64(14, CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	put(TSS + 4, 0x800000000000ull, 8);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(SS, 1, "RSP of the TSS not canonical");
	put(TSS + 4, UNMAPPED + 0x100, 8);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(PF, PF_W, "#PF on the new stack is a supervisor's");
	cpu->seg[SEG_TR].limit = 10;
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(TS, TSS_SELECTOR | 1, "TSS too small");

	// A frame that crosses into a page which faults leaves nothing behind.
	machine_long(3);
	put(TSS + 4, UNMAPPED + 0x1010, 8);
	put(UNMAPPED + 0x1008, 0x5555, 8);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(PF, PF_W, "frame across two pages");
	is(get(UNMAPPED + 0x1008, 8), 0x5555, "nothing is written");
	machine_long(1);
	set_gate64(14, RING1_CODE64 & ~3, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	machine_long(0);
	set_gate64(14, RING1_CODE64, HANDLER, TYPE_INTERRUPT_GATE32, 0, 0);
	TRY(event_deliver(cpu, 14, EVENT_EXCEPTION, true, 0));
	raises(GP, (RING1_CODE64 & ~3) | 1, "no gates outwards");
}

// Rows of the SDM's table "Conditions for Generating a Double Fault".
static void double_faults(void)
{
	static const struct {
		u8 first, second;
		int wanted; // vector delivered; -1: shutdown
	} rows[] = {
		{ VECTOR_GP, VECTOR_GP, VECTOR_DF }, { VECTOR_GP, VECTOR_PF, VECTOR_PF },
		{ VECTOR_PF, VECTOR_PF, VECTOR_DF }, { VECTOR_PF, VECTOR_GP, VECTOR_DF },
		{ VECTOR_UD, VECTOR_GP, VECTOR_GP }, { VECTOR_DB, VECTOR_PF, VECTOR_PF },
		{ VECTOR_NP, VECTOR_TS, VECTOR_DF }, { VECTOR_DE, VECTOR_SS, VECTOR_DF },
		{ VECTOR_CP, VECTOR_GP, VECTOR_DF }, { VECTOR_GP, VECTOR_CP, VECTOR_DF },
		{ VECTOR_PF, VECTOR_CP, VECTOR_DF }, { VECTOR_CP, VECTOR_PF, VECTOR_PF },
		{ VECTOR_GP, VECTOR_UD, VECTOR_UD }, { VECTOR_DF, VECTOR_GP, -1 },
		{ VECTOR_DF, VECTOR_PF, -1 }, { VECTOR_PF, VECTOR_NM, VECTOR_NM },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		static bool alive;

		alive = true;

		machine_long(0);
		cpu->delivering = rows[i].first == VECTOR_DF ? 2 : 1;
		cpu->delivering_vector = rows[i].first;
		TRY(cpu->event = (struct pending_event){ .valid = true, .vector = rows[i].second, .payload = 0x777,
							  .has_error = rows[i].second >= 10 };
		    alive = event_deliver_pending(cpu));
		if (rows[i].wanted < 0) {
			ok(!alive, "vector %u while %u: shutdown", rows[i].second, rows[i].first);
			continue;
		}
		is(cpu->rip, HANDLER + rows[i].wanted * 16, "vector %u while %u gives %d", rows[i].second,
		   rows[i].first, rows[i].wanted);
		if (rows[i].second == VECTOR_PF)
			is(cpu->cr2, 0x777, "CR2 is the second page fault's");
	}
	// A fault during delivery, end to end: not present gate for #UD, and then for #NP too.
	machine_long(0);
	put(IDT + 6 * 16 + 5, 0x0e, 1);
	TRY(cpu->event = (struct pending_event){ .valid = true, .vector = VECTOR_UD }; event_deliver_pending(cpu));
	raises(NP, 6 * 8 + 3, "delivery of #UD raises #NP");
	TRY(cpu->event = (struct pending_event){ .valid = true, .vector = NP, .has_error = true, .error = 6 * 8 + 3 };
	    event_deliver_pending(cpu));
	is(cpu->rip, HANDLER + NP * 16, "which is delivered");
	is(get(cpu->gpr[RSP], 8), 6 * 8 + 3, "with its error code");
	is(get(cpu->gpr[RSP] + 8, 8), 0x12340, "at the first instruction");
	is(cpu->delivering, 0, "delivery is over");
}

static void iret_faults(void)
{
	static const struct {
		u64 frame[5];
		int vector;
		u32 error;
		const char *name;
	} rows[] = {
		{ { 0x1000, 0, 2, 0x30000, USER_DATA }, GP, 0, "null CS" },
		{ { 0x1000, USER_DATA, 2, 0x30000, USER_DATA }, GP, USER_DATA & ~3, "data in CS" },
		{ { 0x1000, USER_CODE64 & ~3, 2, 0x30000, USER_DATA }, GP, USER_CODE64 & ~3, "RPL is not DPL" },
		{ { 0x1000, GDT_LIMIT + 1, 2, 0, 0 }, GP, GDT_LIMIT + 1, "CS outside the GDT" },
		{ { 0x1000, ABSENT_CODE, 2, 0, DATA }, NP, ABSENT_CODE, "CS not present" },
		{ { 0x800000000000ull, USER_CODE64, 2, 0x30000, USER_DATA }, GP, 0, "RIP not canonical" },
		{ { 0x100000000ull, USER_CODE32, 2, 0x30000, USER_DATA }, GP, 0, "RIP above the limit of 32-bit code" },
		{ { 0x1000, USER_CODE64, 2, 0x30000, 0 }, GP, 0, "null SS for level 3" },
		{ { 0x1000, USER_CODE64, 2, 0x30000, DATA }, GP, DATA, "SS of level 0 for level 3" },
		{ { 0x1000, USER_CODE64, 2, 0x30000, USER_ABSENT_DATA }, SS, USER_ABSENT_DATA & ~3, "SS not present" },
		{ { 0x1000, USER_CODE64, 2, 0x30000, USER_READ_ONLY }, GP, USER_READ_ONLY & ~3, "SS not writable" },
		{ { 0x1000, CODE32, 2, 0x30000, 0 }, GP, 0, "null SS for 32-bit code" },
		{ { 0x1000, CODE64, 2, 0x30000, 0 }, NOTHING, 0, "null SS for 64-bit code of level 0" },
		{ { 0x1000, CODE64, 2, 0x30000, 3 }, GP, 0, "null SS with another RPL" },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		machine_long(0);
		memcpy(memory + cpu->gpr[RSP], rows[i].frame, sizeof(rows[i].frame));
		TRY(execute(INSN(IRETQ, 8)));
		raises(rows[i].vector, rows[i].error, rows[i].name);
	}
	machine_long(0);
	cpu->rflags |= FLAG_NT;
	TRY(execute(INSN(IRETQ, 8)));
	raises(GP, 0, "NT in long mode");
	machine_long(0);
	set_descriptor(ABSENT_CODE, 0, ~0u, SEG_S | SEG_G | SEG_DB | SEG_L | 0xb);
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, ABSENT_CODE, 2, 0x30000, DATA }, 40);
	TRY(execute(INSN(IRETQ, 8)));
	raises(GP, ABSENT_CODE, "CS with both L and D, not present either");
	TRY(execute(INSN(JMP, 4, .imm = 0x1000, .far_selector = ABSENT_CODE, .op = { { .kind = OPERAND_FAR } })));
	raises(GP, ABSENT_CODE, "JMP to such a segment");
	machine_long(3);
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, CODE64, 2, 0, 0 }, 24);
	cpu->gpr[RSP] = USER_STACK - 0x80;
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, CODE64, 2, 0, 0 }, 40);
	TRY(execute(INSN(IRETQ, 8)));
	raises(GP, CODE64, "no return inwards");
}

static void iret_state(void)
{
	machine_long(0);
	cpu->seg[SEG_DS].selector = cpu->seg[SEG_ES].selector = DATA;
	segment_null(&cpu->seg[SEG_FS], 0, 0);
	cpu->seg[SEG_FS].base = 0x7f0012345678;
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, USER_CODE64, 0x3f7fd7, 0x30000, USER_DATA }, 40);
	TRY(execute(INSN(IRETQ, 8)));
	is(cpu->seg[SEG_DS].selector, 0, "DS of level 0 becomes null");
	ok(cpu->seg[SEG_DS].attributes & SEG_UNUSABLE, "and unusable");
	is(cpu->seg[SEG_FS].base, 0x7f0012345678, "a null FS keeps its base");
	ok(!(cpu->rflags & FLAG_VM), "VM is not set in long mode");
	is(cpu->rflags & (FLAG_IOPL | FLAG_ID | FLAG_AC | FLAG_VIF | FLAG_VIP | FLAG_NT),
	   FLAG_IOPL | FLAG_ID | FLAG_AC | FLAG_VIF | FLAG_VIP | FLAG_NT, "level 0 may set all flags");

	machine_long(3);
	cpu->gpr[RSP] = USER_STACK - 0x80;
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, USER_CODE64, FLAG_IOPL | FLAG_VIF | FLAG_ID, 0x30008, USER_DATA }, 40);
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRETQ from 3 to 3");
	is(cpu->rflags & (FLAG_IF | FLAG_IOPL | FLAG_VIF | FLAG_ID), FLAG_IF | FLAG_ID, "level 3 changes neither IF nor IOPL nor VIF");
	is(cpu->gpr[RSP], 0x30008, "RSP is popped");

	machine_long(0);
	memcpy(memory + cpu->gpr[RSP], (u64[]){ 0x1000, USER_CODE32, 2, 0xffffffff00030000, USER_DATA }, 40);
	TRY(execute(INSN(IRETQ, 8)));
	raises(NOTHING, 0, "IRETQ to compatibility mode");
	ok(!cpu_64bit(cpu), "runs 32-bit code");
	is(cpu->gpr[RSP], 0x30000, "ESP");

	machine_long(0);
	memcpy(memory + cpu->gpr[RSP], (u32[]){ 0x1000, USER_CODE64, 2, 0x30000, USER_DATA }, 20);
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRETD in 64-bit mode pops five slots of 4 bytes");
	is(cpu->gpr[RSP], 0x30000, "RSP from them");
}

static void far_transfers(void)
{
	struct insn *call = INSN(CALL, 8, .op = { { .kind = OPERAND_MEM } }, .mem_base = 0xff, .mem_disp = 0x8000, .mem_seg = SEG_DS);
	struct insn *jmp = INSN(JMP, 8, .op = { { .kind = OPERAND_MEM } }, .mem_base = 0xff, .mem_disp = 0x8000, .mem_seg = SEG_DS);

	machine_long(0);
	put(0x8000, HANDLER, 8);
	put(0x8008, CODE64, 2);
	TRY(execute(call));
	raises(NOTHING, 0, "CALL m16:64");
	is(cpu->rip, HANDLER, "target");
	is(get(cpu->gpr[RSP], 8), 0x12343, "return address");
	is(get(cpu->gpr[RSP] + 8, 8), CODE64, "CS");
	TRY(execute(INSN(RET, 8, .imm = 0x20, .op = { { .kind = OPERAND_IMM } })));
	raises(NOTHING, 0, "RETF imm16");
	is(cpu->rip, 0x12343, "back");
	is(cpu->gpr[RSP], KERNEL_STACK - 0x108 + 0x20, "stack released");

	machine_long(3);
	map_page(0x8000, 7);
	put(0x8000, 0, 8);
	put(0x8008, GATE | 3, 2);
	set_call_gate64(GATE, CODE64, HANDLER, 3);
	TRY(execute(call));
	raises(NOTHING, 0, "CALL through a gate to level 0");
	is(cpu->cpl, 0, "CPL 0");
	is(cpu->gpr[RSP], KERNEL_STACK - 32, "four slots");
	is(get(KERNEL_STACK - 8, 8), USER_DATA, "SS");
	is(get(KERNEL_STACK - 16, 8), USER_STACK - 0x18, "RSP");
	is(get(KERNEL_STACK - 24, 8), USER_CODE64, "CS");
	is(get(KERNEL_STACK - 32, 8), 0x12343, "RIP");
	is(cpu->seg[SEG_SS].selector, 0, "SS null");
	TRY(execute(INSN(RET, 8)));
	raises(NOTHING, 0, "RETF to level 3");
	is(cpu->cpl, 3, "CPL 3");
	is(cpu->gpr[RSP], USER_STACK - 0x18, "RSP");
	is(cpu->rip, 0x12343, "RIP");

	machine_long(3);
	map_page(0x8000, 7);
	put(0x8008, GATE | 3, 2);
	set_call_gate64(GATE, CODE64, HANDLER, 0);
	TRY(execute(call));
	raises(GP, GATE, "gate with DPL 0");
	set_call_gate64(GATE, CODE64, HANDLER, 3);
	TRY(execute(jmp));
	raises(GP, CODE64, "JMP cannot change the level");
	set_call_gate64(GATE, CODE32, HANDLER, 3);
	TRY(execute(call));
	raises(GP, CODE32, "gates of long mode lead to 64-bit code");
	set_call_gate64(GATE, CODE64, HANDLER, 3);
	put(GDT + GATE + 12, 0x100, 4);
	TRY(execute(call));
	raises(GP, GATE, "type of the second half must be 0");
	put(0x8008, TSS_B_SELECTOR, 2);
	TRY(execute(call));
	raises(GP, TSS_B_SELECTOR, "no task switches in long mode");
	put(0x8008, 0, 2);
	TRY(execute(call));
	raises(GP, 0, "null selector");
	put(0x8008, CODE64, 2);
	TRY(execute(jmp));
	raises(GP, CODE64, "level 0 code from level 3");

	machine_long(0);
	put(0x8000, 0x1000, 8);
	put(0x8008, CODE32, 2);
	TRY(execute(jmp));
	raises(NOTHING, 0, "JMP to 32-bit code");
	ok(!cpu_64bit(cpu), "is in compatibility mode");
	TRY(execute(INSN(JMP, 4, .imm = 0x2000, .far_selector = CODE64, .op = { { .kind = OPERAND_FAR } })));
	raises(NOTHING, 0, "JMP ptr16:32 back");
	ok(cpu_64bit(cpu), "is in 64-bit mode");
}

static void set_vendor(bool amd)
{
	struct cpu_cpuid_entry leaf = { .function = 0, .eax = 0, .ebx = amd ? 0x68747541 : 0x756e6547,
					.edx = amd ? 0x69746e65 : 0x49656e69, .ecx = amd ? 0x444d4163 : 0x6c65746e };

	cpu->cpuid[0] = leaf;
	cpu->cpuid_count = 1;
}

static void system_calls(void)
{
	machine_long(3);
	set_vendor(false);
	cpu->star = (u64)(USER_CODE32) << 48 | (u64)CODE64 << 32;
	cpu->lstar = HANDLER;
	cpu->cstar = HANDLER + 0x100;
	cpu->sfmask = FLAG_IF | FLAG_TF;
	cpu_set_rflags(cpu, FLAG_IF | FLAG_CF);
	TRY(execute(INSN(SYSCALL, 8)));
	raises(NOTHING, 0, "SYSCALL");
	is(cpu->rip, HANDLER, "to LSTAR");
	is(cpu->gpr[RCX], 0x12343, "RCX is RIP");
	is(cpu->gpr[R11], FLAG_IF | FLAG_CF | 2, "R11 is RFLAGS");
	is(cpu_rflags(cpu), FLAG_CF | 2, "FMASK");
	is(cpu->seg[SEG_CS].selector, CODE64, "CS");
	is(cpu->seg[SEG_SS].selector, CODE64 + 8, "SS");
	is(cpu->cpl, 0, "CPL 0");
	cpu->gpr[R11] |= FLAG_VM | FLAG_RF | FLAG_IOPL;
	TRY(execute(INSN(SYSRET, 8)));
	raises(NOTHING, 0, "SYSRETQ");
	is(cpu->rip, 0x12343, "to RCX");
	is(cpu->seg[SEG_CS].selector, USER_CODE32 + 16, "CS");
	is(cpu->seg[SEG_SS].selector, USER_CODE32 + 8, "SS");
	is(cpu_rflags(cpu), FLAG_IF | FLAG_CF | FLAG_IOPL | 2, "RFLAGS without RF and VM");
	ok(cpu_64bit(cpu), "64-bit code");
	TRY(execute(INSN(SYSRET, 8)));
	raises(GP, 0, "SYSRET in level 3");

	machine_long(0);
	set_vendor(false);
	cpu->star = (u64)(USER_CODE32) << 48 | (u64)CODE64 << 32;
	cpu->gpr[RCX] = 0x800000000000;
	TRY(execute(INSN(SYSRET, 8)));
	raises(GP, 0, "Intel: SYSRETQ to a non-canonical address faults in level 0");
	set_vendor(true);
	TRY(execute(INSN(SYSRET, 8)));
	raises(NOTHING, 0, "AMD: it returns first");
	machine_long(0);
	cpu->star = (u64)(USER_CODE32) << 48 | (u64)CODE64 << 32;
	cpu->gpr[RCX] = 0xffffffff00001000;
	TRY(execute(INSN(SYSRET, 4)));
	is(cpu->rip, 0x1000, "SYSRETL takes ECX");
	ok(!cpu_64bit(cpu), "to compatibility mode");

	machine_compat();
	set_vendor(false);
	TRY(execute(INSN(SYSCALL, 4)));
	raises(VECTOR_UD, NO_ERROR, "Intel: no SYSCALL in compatibility mode");
	set_vendor(true);
	cpu->cstar = HANDLER + 0x100;
	cpu->star = (u64)CODE64 << 32;
	TRY(execute(INSN(SYSCALL, 4)));
	is(cpu->rip, HANDLER + 0x100, "AMD: to CSTAR");
	machine_long(3);
	cpu->efer &= ~(u64)EFER_SCE;
	TRY(execute(INSN(SYSCALL, 8)));
	raises(VECTOR_UD, NO_ERROR, "EFER.SCE clear");

	machine_compat();
	set_vendor(false);
	cpu->sysenter_cs = 0;
	TRY(execute(INSN(SYSENTER, 4)));
	raises(GP, 0, "SYSENTER without SYSENTER_CS");
	cpu->sysenter_cs = CODE64;
	cpu->sysenter_eip = HANDLER;
	cpu->sysenter_esp = KERNEL_STACK;
	TRY(execute(INSN(SYSENTER, 4)));
	raises(NOTHING, 0, "SYSENTER");
	is(cpu->rip, HANDLER, "RIP");
	is(cpu->gpr[RSP], KERNEL_STACK, "RSP");
	ok(!(cpu->rflags & FLAG_IF), "IF clear");
	cpu->gpr[RDX] = 0x4000;
	cpu->gpr[RCX] = 0x30000;
	TRY(execute(INSN(SYSEXIT, 4)));
	raises(NOTHING, 0, "SYSEXIT");
	is(cpu->seg[SEG_CS].selector, CODE64 + 16 + 3, "CS");
	is(cpu->seg[SEG_SS].selector, CODE64 + 24 + 3, "SS");
	is(cpu->cpl, 3, "CPL 3");
	machine_long(0);
	set_vendor(true);
	cpu->sysenter_cs = CODE64;
	TRY(execute(INSN(SYSENTER, 8)));
	raises(VECTOR_UD, NO_ERROR, "AMD: no SYSENTER in long mode");
}

static void segments(void)
{
	struct insn *to_ds = INSN(MOV, 4, .op = { { .kind = OPERAND_SEG, .reg = SEG_DS }, { .kind = OPERAND_REG, .size = 2, .reg = RAX } });
	struct insn *to_ss = INSN(MOV, 4, .op = { { .kind = OPERAND_SEG, .reg = SEG_SS }, { .kind = OPERAND_REG, .size = 2, .reg = RAX } });
	struct insn *lar = INSN(LAR, 4, .op = { { .kind = OPERAND_REG, .size = 4, .reg = RCX }, { .kind = OPERAND_REG, .size = 4, .reg = RAX } });
	struct insn *lsl = INSN(LSL, 4, .op = { { .kind = OPERAND_REG, .size = 4, .reg = RCX }, { .kind = OPERAND_REG, .size = 4, .reg = RAX } });
	static const struct {
		u16 selector;
		int ds_vector, ss_vector;
	} rows[] = { // loaded in level 0, 64-bit code
		{ 0, NOTHING, NOTHING }, { 3, NOTHING, GP }, { DATA, NOTHING, NOTHING }, { USER_DATA, NOTHING, GP },
		{ ABSENT_DATA, NP, SS }, { GDT_LIMIT + 1, GP, GP }, { TSS_SELECTOR, GP, GP }, { READ_ONLY, NOTHING, GP },
		{ CODE64, NOTHING, GP }, { EXECUTE_ONLY, GP, GP }, { RING1_DATA, NOTHING, GP }, { DATA | 4, GP, GP },
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		u32 error = rows[i].selector & 0xfffc;
		char name[64];

		machine_long(0);
		cpu->gpr[RAX] = rows[i].selector;
		snprintf(name, sizeof(name), "MOV DS, %#x", rows[i].selector);
		TRY(execute(to_ds));
		raises(rows[i].ds_vector, error, name);
		machine_long(0);
		cpu->gpr[RAX] = rows[i].selector;
		snprintf(name, sizeof(name), "MOV SS, %#x", rows[i].selector);
		TRY(execute(to_ss));
		raises(rows[i].ss_vector, rows[i].selector == 3 ? 0 : error, name);
		is(cpu->interrupt_shadow && cpu->mov_ss_shadow, rows[i].ss_vector == NOTHING, "interrupt shadow");
	}
	machine_long(3);
	cpu->gpr[RAX] = DATA | 3;
	TRY(execute(to_ds));
	raises(GP, DATA, "DPL 0 data in level 3");
	machine_long(0);
	set_descriptor(DATA, 0, ~0u, SEG_P | SEG_S | SEG_G | SEG_DB | 2);
	cpu->gpr[RAX] = DATA;
	TRY(execute(to_ds));
	is(get(GDT + DATA + 5, 1) & 1, 1, "loading sets the accessed bit");

	machine_long(3);
	cpu->gpr[RAX] = USER_CODE64;
	TRY(execute(lar));
	is(cpu->gpr[RCX], 0xaffb00, "LAR");
	ok(cpu_rflags(cpu) & FLAG_ZF, "ZF");
	cpu->gpr[RAX] = CODE64;
	TRY(execute(lar));
	ok(!(cpu_rflags(cpu) & FLAG_ZF), "LAR of an inner segment: no ZF");
	is(cpu->gpr[RCX], 0xaffb00, "register unchanged");
	cpu->gpr[RAX] = USER_DATA;
	TRY(execute(lsl));
	is(cpu->gpr[RCX], 0xffffffff, "LSL in bytes");
}

int main(void)
{
	event_from_user();
	event_same_level();
	event_faults();
	double_faults();
	iret_faults();
	iret_state();
	far_transfers();
	system_calls();
	segments();
	return done();
}
