// SPDX-License-Identifier: MIT
// Events and transfers in protected mode of 16 and 32 bits, virtual-8086 mode and real mode; task
// switches, with and without CET.
// SDM: "Stack Switching", "Task Management", "8086 Emulation", "Virtual-8086 Mode Extensions (VME)".
#include "machine.h"

#include <stdio.h>
#include <string.h>

#define GP VECTOR_GP
#define NP VECTOR_NP
#define TS VECTOR_TS
#define SS VECTOR_SS
#define PF VECTOR_PF
#define CP VECTOR_CP

static const struct insn far_direct = { .operand_size = 4, .length = 3, .mem_base = 0xff, .mem_index = 0xff };

static void far(u16 mnemonic, unsigned size, u16 selector, u32 offset)
{
	struct insn insn = far_direct;

	insn.mnemonic = mnemonic;
	insn.operand_size = size;
	insn.op[0].kind = OPERAND_FAR;
	insn.far_selector = selector;
	insn.imm = offset;
	execute(&insn);
}

static void put_slots(unsigned slot, unsigned n, const u32 *values)
{
	for (unsigned i = 0; i < n; i++)
		put(cpu->seg[SEG_SS].base + cpu->gpr[RSP] + i * slot, values[i], slot);
}
#define FRAME(slot, ...) put_slots(slot, sizeof((u32[]){ __VA_ARGS__ }) / 4, (u32[]){ __VA_ARGS__ })

static void events_32(void)
{
	machine_32(3);
	cpu_set_rflags(cpu, FLAG_IF | FLAG_TF | FLAG_ZF);
	TRY(event_deliver(cpu, VECTOR_GP, EVENT_EXCEPTION, true, 0x18));
	raises(NOTHING, 0, "event from level 3");
	is(cpu->gpr[RSP], KERNEL_STACK - 24, "six slots of 4 bytes");
	is(get(KERNEL_STACK - 24, 4), 0x18, "error code");
	is(get(KERNEL_STACK - 20, 4), 0x12340, "EIP");
	is(get(KERNEL_STACK - 16, 4), USER_CODE32, "CS");
	is(get(KERNEL_STACK - 12, 4), FLAG_IF | FLAG_TF | FLAG_ZF | FLAG_RF | 2, "EFLAGS");
	is(get(KERNEL_STACK - 8, 4), USER_STACK - 0x18, "ESP");
	is(get(KERNEL_STACK - 4, 4), USER_DATA, "SS");
	is(cpu->seg[SEG_SS].selector, DATA, "SS of the TSS");
	is(cpu_rflags(cpu), FLAG_ZF | 2, "IF and TF clear");
	is(cpu->seg[SEG_DS].selector, USER_DATA, "DS stays");
	cpu->gpr[RSP] += 4;
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRETD");
	is(cpu->cpl, 3, "level 3");
	is(cpu->gpr[RSP], USER_STACK - 0x18, "ESP");
	is(cpu->rip, 0x12340, "EIP");

	machine_32(0);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	is(cpu->gpr[RSP], KERNEL_STACK - 0x104 - 12, "three slots on the same level, not aligned");
	TRY(execute(INSN(IRETD, 4)));
	is(cpu->gpr[RSP], KERNEL_STACK - 0x104, "IRETD on the same level pops three");

	machine_32(3);
	set_gate32(0x80, CODE32, HANDLER32, TYPE_TRAP_GATE16, 3);
	TRY(event_deliver(cpu, 0x80, EVENT_SOFT, false, 0));
	is(cpu->gpr[RSP], KERNEL_STACK - 10, "a 16-bit gate pushes slots of 2 bytes");
	is(get(KERNEL_STACK - 10, 2), 0x2343, "IP behind INT");
	TRY(execute(INSN(IRET, 2)));
	is(cpu->rip, 0x2343, "IRET of 16 bits");
	is(cpu->cpl, 3, "to level 3");

	machine_32(3);
	put(TSS + 8, USER_DATA, 2);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(TS, (USER_DATA & ~3) | 1, "SS of the TSS for another level");
	put(TSS + 8, 0, 2);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(TS, 1, "null SS in the TSS");
	put(TSS + 8, ABSENT_DATA, 2);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(SS, ABSENT_DATA | 1, "SS of the TSS not present");
	put(TSS + 8, READ_ONLY, 2);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(TS, READ_ONLY | 1, "SS of the TSS not writable");
	set_descriptor(DATA, 0, KERNEL_STACK - 9, SEG_P | SEG_S | SEG_DB | 3);
	put(TSS + 8, DATA, 2);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(SS, DATA | 1, "no room on the new stack");
	cpu->seg[SEG_TR].limit = 8;
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(TS, TSS_SELECTOR | 1, "TSS too small");

	// Expand-down stack segment of 64 KiB - limit.
	machine_32(0);
	set_descriptor(DATA, 0x20000, 0x0fff, SEG_P | SEG_S | SEG_DB | 7);
	segment_from_descriptor(&cpu->seg[SEG_SS], DATA, get(GDT + DATA, 8));
	cpu->gpr[RSP] = 0x1008;
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(SS, 1, "below the limit of an expand-down segment");
	cpu->gpr[RSP] = 0x1010;
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "above it");

	// SP of 16 bits wraps within a frame.
	machine_32(0);
	segment_from_descriptor(&cpu->seg[SEG_SS], DATA16, get(GDT + DATA16, 8));
	cpu->seg[SEG_SS].base = 0x100000;
	cpu->gpr[RSP] = 0xabcd0004;
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "SP wraps");
	is(cpu->gpr[RSP], 0xabcdfff8, "SP alone changes");
	is(get(0x100000, 4), FLAG_IF | 2, "EFLAGS at offset 0");
	is(get(0x10fff8, 4), 0x12340, "EIP at the end of the segment");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRETD wraps too");
	is(cpu->gpr[RSP], 0xabcd0004, "SP");
}

static void gates_32(void)
{
	machine_32(3);
	cpu->gpr[RSP] = USER_STACK - 0x40;
	FRAME(4, 0xa1, 0xa2, 0xa3);
	set_call_gate32(GATE, CODE32, HANDLER32, TYPE_CALL_GATE32, 3, 3);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, GATE | 3, 0xdeadbeef));
	raises(NOTHING, 0, "call gate with parameters");
	is(cpu->rip, HANDLER32, "the gate's offset counts");
	is(cpu->gpr[RSP], KERNEL_STACK - 28, "seven slots");
	is(get(KERNEL_STACK - 28, 4), 0x12343, "EIP");
	is(get(KERNEL_STACK - 24, 4), USER_CODE32, "CS");
	is(get(KERNEL_STACK - 20, 4), 0xa1, "first parameter");
	is(get(KERNEL_STACK - 12, 4), 0xa3, "last parameter");
	is(get(KERNEL_STACK - 8, 4), USER_STACK - 0x40, "ESP");
	is(get(KERNEL_STACK - 4, 4), USER_DATA, "SS");
	cpu->seg[SEG_ES].attributes &= ~(3u << 5); // as if loaded with a segment of level 0
	TRY(execute(INSN(RET, 4, .imm = 12, .op = { { .kind = OPERAND_IMM } })));
	raises(NOTHING, 0, "RETF 12 to level 3");
	is(cpu->gpr[RSP], USER_STACK - 0x40 + 12, "parameters released from the outer stack");
	is(cpu->seg[SEG_ES].selector, 0, "ES of level 0 becomes null");
	is(cpu->seg[SEG_DS].selector, USER_DATA, "DS stays");

	machine_32(3);
	set_call_gate32(GATE, CODE32, HANDLER32, TYPE_CALL_GATE16, 3, 1);
	FRAME(2, 0xbeef);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, GATE | 3, 0));
	raises(NOTHING, 0, "16-bit call gate");
	is(cpu->gpr[RSP], KERNEL_STACK - 10, "slots of 2 bytes");
	is(get(KERNEL_STACK - 6, 2), 0xbeef, "parameter");
	is(cpu->rip, (u16)HANDLER32, "16-bit offset");

	machine_32(0);
	set_call_gate32(GATE, CODE32, HANDLER32, TYPE_CALL_GATE32, 0, 5);
	TRY(far(ZYDIS_MNEMONIC_CALL, 2, GATE, 0));
	raises(NOTHING, 0, "call gate on the same level");
	is(cpu->gpr[RSP], KERNEL_STACK - 0x104 - 8, "slots of the gate's size, no parameters");
	TRY(far(ZYDIS_MNEMONIC_JMP, 2, GATE, 0));
	raises(NOTHING, 0, "JMP through it");
	set_call_gate32(GATE, CODE32, HANDLER32, TYPE_CALL_GATE32, 0, 0);
	put(GDT + GATE + 5, 0x0c, 1);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, GATE, 0));
	raises(NP, GATE, "gate not present");
	set_call_gate32(GATE, 0, HANDLER32, TYPE_CALL_GATE32, 0, 0);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, GATE, 0));
	raises(GP, 0, "null selector in the gate");
	set_call_gate32(GATE, ABSENT_CODE, HANDLER32, TYPE_CALL_GATE32, 0, 0);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, GATE, 0));
	raises(NP, ABSENT_CODE, "code segment not present");

	machine_32(3);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, CONFORMING32, 0x1000));
	raises(NOTHING, 0, "JMP to conforming code");
	is(cpu->seg[SEG_CS].selector, CONFORMING32 | 3, "RPL is CPL");
	machine_32(0);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, CODE32 | 1, 0x1000));
	raises(GP, CODE32, "RPL above CPL");
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, CODE16, 0x10000));
	raises(GP, 0, "offset above the limit");
	TRY(far(ZYDIS_MNEMONIC_CALL, 2, CODE16, 0x8000));
	raises(NOTHING, 0, "CALL to 16-bit code");
	is(cpu->gpr[RSP], KERNEL_STACK - 0x104 - 4, "slots of the operand size");
}

static void v86(void)
{
	machine_v86(3);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event in virtual-8086 mode");
	is(cpu->gpr[RSP], KERNEL_STACK - 36, "nine slots");
	is(get(KERNEL_STACK - 36, 4), 0x340, "IP");
	is(get(KERNEL_STACK - 32, 4), 0x2010, "CS");
	is(get(KERNEL_STACK - 28, 4), FLAG_VM | FLAG_IF | FLAG_IOPL | 2, "EFLAGS");
	is(get(KERNEL_STACK - 20, 4), 0x2020, "SS");
	is(get(KERNEL_STACK - 16, 4), 0x2000, "ES");
	is(get(KERNEL_STACK - 12, 4), 0x2030, "DS");
	is(get(KERNEL_STACK - 8, 4), 0x2040, "FS");
	is(get(KERNEL_STACK - 4, 4), 0x2050, "GS");
	is(cpu->cpl, 0, "level 0");
	ok(!cpu_v86(cpu), "VM clear");
	is(cpu->seg[SEG_DS].selector, 0, "DS null");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRETD to virtual-8086 mode");
	ok(cpu_v86(cpu), "VM set");
	is(cpu->cpl, 3, "level 3");
	is(cpu->seg[SEG_GS].base, 0x20500, "GS");
	is(cpu->gpr[RSP], 0xfffe, "SP");
	is(cpu->rip, 0x340, "IP");

	machine_v86(3);
	set_gate32(0x20, CONFORMING32, HANDLER32, TYPE_INTERRUPT_GATE32, 3);
	TRY(event_deliver(cpu, 0x20, EVENT_EXTERNAL, false, 0));
	raises(GP, CONFORMING32 | 1, "handlers of virtual-8086 mode run in level 0");
	machine_v86(0);
	TRY(execute(INSN(INT, 2, .imm = 0x80)));
	raises(GP, 0, "INT with IOPL 0");
	TRY(execute(INSN(INT3, 2)));
	raises(GP, 3 * 8 + 2, "INT3 does not look at IOPL, but at the gate");
	TRY(execute(INSN(IRET, 2)));
	raises(GP, 0, "IRET with IOPL 0");
	machine_v86(3);
	TRY(execute(INSN(INT, 2, .imm = 0x80)));
	raises(NOTHING, 0, "INT with IOPL 3 and a gate of DPL 3");
	is(get(KERNEL_STACK - 36, 4), 0x342, "IP behind it");

	// VME: the redirection bitmap decides.
	machine_v86(0);
	cpu->cr4 |= CR4_VME;
	put(4 * 0x21, 0x2345 << 16 | 0x678, 4);
	cpu->rflags |= FLAG_VIF;
	cpu->rflags &= ~(u64)FLAG_IF;
	TRY(execute(INSN(INT, 2, .imm = 0x21)));
	raises(NOTHING, 0, "INT redirected to the program's own vector");
	is(cpu->rip, 0x678, "IP");
	is(cpu->seg[SEG_CS].base, 0x23450, "CS");
	is(cpu->gpr[RSP], 0xfff8, "three slots of 2 bytes");
	is(get(0x20200 + 0xfff8, 2), 0x342, "IP of the INT");
	is(get(0x20200 + 0xfffc, 2), FLAG_IF | FLAG_IOPL | 2, "FLAGS with IF from VIF and IOPL 3");
	ok(!(cpu->rflags & FLAG_VIF), "VIF clear");
	TRY(execute(INSN(IRET, 2)));
	raises(NOTHING, 0, "IRET under VME");
	ok(cpu->rflags & FLAG_VIF, "VIF from the image");
	is(cpu->rflags & (FLAG_IF | FLAG_IOPL), 0, "IF and IOPL stay");
	cpu->gpr[RSP] = 0xfff8;
	cpu->rflags |= FLAG_VIP;
	TRY(execute(INSN(IRET, 2)));
	raises(GP, 0, "IRET setting IF with VIP");
	TRY(execute(INSN(IRETD, 4)));
	raises(GP, 0, "IRETD under VME with IOPL 0");
	put(TSS + 0x68 + 0x21 / 8, 1 << 0x21 % 8, 1);
	TRY(execute(INSN(INT, 2, .imm = 0x21)));
	raises(GP, 0, "INT not redirected with IOPL 0");
}

static void real_mode(void)
{
	machine_real();
	put(4 * 0x21, 0x3000 << 16 | 0x678, 4);
	TRY(execute(INSN(INT, 2, .imm = 0x21)));
	raises(NOTHING, 0, "INT in real mode");
	is(cpu->rip, 0x678, "IP");
	is(cpu->seg[SEG_CS].base, 0x30000, "CS base");
	is(get(0x20000 + 0xfff8, 2), 0x342, "IP");
	is(get(0x20000 + 0xfffa, 2), 0x2000, "CS");
	is(get(0x20000 + 0xfffc, 2), FLAG_IF | FLAG_TF | 2, "FLAGS");
	ok(!(cpu->rflags & (FLAG_IF | FLAG_TF)), "IF and TF clear");
	TRY(execute(INSN(IRET, 2)));
	is(cpu->rip, 0x342, "IRET");
	is(cpu_rflags(cpu), FLAG_IF | FLAG_TF | 2, "FLAGS");
	cpu->idtr.limit = 0x21 * 4 + 2;
	TRY(execute(INSN(INT, 2, .imm = 0x21)));
	raises(GP, 0x21 * 8 + 2, "vector outside the table");
	TRY(far(ZYDIS_MNEMONIC_CALL, 2, 0x4000, 0x123));
	raises(NOTHING, 0, "far CALL");
	is(cpu->seg[SEG_CS].base, 0x40000, "CS base");
	TRY(execute(INSN(RET, 2)));
	is(cpu->seg[SEG_CS].base, 0x20000, "RETF");
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, 0x4000, 0x10000));
	raises(GP, 0, "offset above the limit");
	cpu->gpr[RSP] = 1;
	TRY(far(ZYDIS_MNEMONIC_CALL, 2, 0x4000, 0x123));
	raises(SS, 0, "a slot at 0xffff crosses the end of the segment");
	// Protected-mode-only instructions.
	TRY(execute(INSN(LAR, 4)));
	raises(VECTOR_UD, NO_ERROR, "no LAR");
	TRY(execute(INSN(SYSENTER, 4)));
	raises(GP, 0, "no SYSENTER");
	cpu->cr4 |= CR4_CET;
	cpu->s_cet = CET_SHSTK_EN;
	TRY(execute(INSN(SETSSBSY, 4)));
	raises(VECTOR_UD, NO_ERROR, "no SETSSBSY");
	TRY(execute(INSN(INCSSPD, 4)));
	raises(VECTOR_UD, NO_ERROR, "no INCSSP");
	cpu->gpr[RAX] = 5;
	TRY(execute(INSN(RDSSPD, 4)));
	is(cpu->gpr[RAX], 5, "RDSSP is a NOP");
}

// ---- tasks ----

static void fill_tss_b(u32 eflags, u16 code, u16 data, u32 esp)
{
	put(TSS_B + 0x20, 0x5000, 4);
	put(TSS_B + 0x24, eflags, 4);
	for (unsigned i = 0; i < 8; i++)
		put(TSS_B + 0x28 + 4 * i, 0xb0 + i, 4);
	put(TSS_B + 0x38, esp, 4);
	for (unsigned i = 0; i < 6; i++)
		put(TSS_B + 0x48 + 4 * i, i == SEG_CS ? code : data, 2);
}

static bool busy(u16 selector)
{
	return get(GDT + selector + 5, 1) & 2;
}

static void tasks(void)
{
	machine_32(0);
	fill_tss_b(FLAG_CF | 2, CODE32, DATA, 0x26000);
	cpu->dr7 |= 3;
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(NOTHING, 0, "JMP to a TSS");
	is(cpu->rip, 0x5000, "EIP");
	is(cpu->gpr[RDI], 0xb7, "EDI");
	is(cpu->gpr[RSP], 0x26000, "ESP");
	is(cpu_rflags(cpu), FLAG_CF | 2, "EFLAGS");
	is(cpu->seg[SEG_TR].selector, TSS_B_SELECTOR, "TR");
	ok(cpu->cr0 & CR0_TS, "CR0.TS");
	is(cpu->dr7 & 3, 2, "local breakpoints off");
	ok(!busy(TSS_SELECTOR) && busy(TSS_B_SELECTOR), "busy bits");
	is(get(TSS + 0x20, 4), 0x12343, "old EIP saved");
	is(get(TSS + 0x4c, 2), CODE32, "old CS saved");
	is(get(TSS + 0x38, 4), KERNEL_STACK - 0x104, "old ESP saved");

	machine_32(0);
	fill_tss_b(2, USER_CODE32, USER_DATA, USER_STACK);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	raises(NOTHING, 0, "CALL to a TSS");
	is(cpu->cpl, 3, "its level");
	ok(cpu->rflags & FLAG_NT, "NT set");
	is(get(TSS_B, 2), TSS_SELECTOR, "link");
	ok(busy(TSS_SELECTOR) && busy(TSS_B_SELECTOR), "both busy");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRET with NT");
	is(cpu->cpl, 0, "back in level 0");
	is(cpu->rip, 0x12343, "behind the CALL");
	is(cpu->seg[SEG_TR].selector, TSS_SELECTOR, "TR");
	ok(!busy(TSS_B_SELECTOR) && busy(TSS_SELECTOR), "busy bits");
	ok(!(get(TSS_B + 0x24, 4) & FLAG_NT), "NT of the old task is clear");
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_SELECTOR, 0));
	raises(GP, TSS_SELECTOR, "busy TSS");

	machine_32(3);
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(IDT + 8 * 8, (u64)TSS_B_SELECTOR << 16 | 0x85ull << 40, 8);
	TRY(event_deliver(cpu, VECTOR_DF, EVENT_EXCEPTION, true, 0));
	raises(NOTHING, 0, "task gate in the IDT");
	is(cpu->gpr[RSP], 0x26000 - 4, "error code on the new stack");
	is(get(0x26000 - 4, 4), 0, "which is 0");
	is(get(TSS + 0x20, 4), 0x12340, "EIP of the interrupted task");
	ok(cpu->rflags & FLAG_NT, "NT set");

	machine_32(0);
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x64, 1, 2);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	ok(cpu->event.valid && cpu->event.vector == VECTOR_DB && cpu->event.payload == DR6_BT, "T bit: #DB with BT waits");

	machine_32(0);
	fill_tss_b(FLAG_VM | FLAG_IOPL | 2, 0x2000, 0x2100, 0x1000);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(NOTHING, 0, "task in virtual-8086 mode");
	ok(cpu_v86(cpu) && cpu->cpl == 3 && cpu->seg[SEG_CS].base == 0x20000, "its segments");

	machine_32(0);
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x66, SEG_P | TYPE_TSS32);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "TSS too small");
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x67, TYPE_TSS32);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(NP, TSS_B_SELECTOR, "TSS not present");
	raise_may_change = true;
	machine_32(0);
	raise_may_change = true;
	fill_tss_b(2, CODE32, 0, 0x26000);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, 0, "null SS: a fault of the new task");
	is(cpu->rip, 0x5000, "at its EIP");
	is(cpu->seg[SEG_TR].selector, TSS_B_SELECTOR, "the switch has happened");

	// 16-bit TSS
	machine_32(0);
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x2b, SEG_P | TYPE_TSS16);
	put(TSS_B + 0x0e, 0x5000, 2);
	put(TSS_B + 0x10, 2, 2);
	put(TSS_B + 0x12, 0x1234, 2);
	put(TSS_B + 0x1a, 0x6000, 2);
	put(TSS_B + 0x22, DATA, 2);
	put(TSS_B + 0x24, CODE16, 2);
	put(TSS_B + 0x26, DATA, 2);
	put(TSS_B + 0x28, DATA, 2);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	raises(NOTHING, 0, "16-bit TSS");
	is(cpu->gpr[RAX] & 0xffff, 0x1234, "AX");
	is(cpu->rip, 0x5000, "IP");
	is(cpu->seg[SEG_FS].selector, 0, "FS null");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "and back");
	is(cpu->rip, 0x12343, "EIP");
	machine_32(0);
	machine_cet(false, true);
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x2b, SEG_P | TYPE_TSS16);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "no 16-bit TSS with CR4.CET");
}

static void tasks_cet(void)
{
	u32 ssp = 0x44ff8, outer = KERNEL_SS - 0x40;

	machine_32(0);
	machine_cet(true, true);
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x68, ssp, 4);
	token(ssp, false);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	raises(NOTHING, 0, "CALL to a task with a shadow stack");
	is(get(ssp, 8), ssp | 1, "token taken");
	is(cpu->ssp, ssp - 24, "frame of the old task");
	is(get(ssp - 24, 8), outer, "its SSP");
	is(get(ssp - 16, 8), 0x12343, "its LIP");
	is(get(ssp - 8, 8), CODE32, "its CS");
	ok(cpu->s_cet & CET_WAIT, "tracker armed");
	cpu->s_cet &= ~(u64)CET_WAIT;
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRET");
	is(cpu->ssp, outer, "SSP of the old task");
	is(get(ssp, 8), ssp, "token freed");
	ok(!(cpu->s_cet & CET_WAIT), "IRET does not arm");
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	put(ssp - 16, 0x12347, 8);
	raise_may_change = true;
	TRY(execute(INSN(IRETD, 4)));
	raises(CP, CP_FAR_RET, "IRET with another LIP in the frame");
	machine_32(0);
	machine_cet(true, false);
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x68, ssp, 4);
	token(ssp, false);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, TSS_B_SELECTOR, 0));
	cpu->ssp -= 4;
	TRY(execute(INSN(IRETD, 4)));
	raises(TS, TSS_B_SELECTOR, "IRET with SSP not aligned to 8: #TS of the current task");
	is(cpu->seg[SEG_TR].selector, TSS_B_SELECTOR, "which goes on");
	ok(busy(TSS_B_SELECTOR), "as the busy one");

	// From level 3 to an inner level and back: PL3_SSP, no frame.
	machine_32(3);
	machine_cet(true, true);
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x68, ssp, 4);
	token(ssp, false);
	put(IDT + 0x30 * 8, (u64)TSS_B_SELECTOR << 16 | 0x85ull << 40, 8);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "task gate from level 3");
	is(cpu->ssp, ssp, "no frame");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRET to level 3");
	is(cpu->ssp, USER_SS - 0x40, "SSP is PL3_SSP");
	is(get(ssp, 8), ssp, "token freed");

	machine_32(0);
	machine_cet(true, true);
	raise_may_change = true;
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x68, ssp, 4);
	token(ssp, true);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "busy token");
	machine_32(0);
	machine_cet(true, true);
	raise_may_change = true;
	fill_tss_b(2, CODE32, DATA, 0x26000);
	put(TSS_B + 0x68, ssp - 4, 4);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "SSP not aligned to 8");
	machine_32(0);
	machine_cet(true, true);
	raise_may_change = true;
	fill_tss_b(FLAG_VM | 2, 0x2000, 0x2100, 0x1000);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "virtual-8086 task with CET on for level 3");
	machine_32(0);
	machine_cet(true, true);
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x6a, SEG_P | TYPE_TSS32);
	TRY(far(ZYDIS_MNEMONIC_JMP, 4, TSS_B_SELECTOR, 0));
	raises(TS, TSS_B_SELECTOR, "TSS without room for SSP");
}

static void cet_32(void)
{
	u64 frame = KERNEL_SS - 0x40 - 24;

	machine_32(0);
	machine_cet(true, true);
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, CODE32, 0x1000));
	raises(NOTHING, 0, "far CALL in 32-bit mode");
	is(cpu->ssp, frame, "frame of 8-byte slots");
	is(get(frame + 8, 8), 0x12343, "LIP");
	TRY(execute(INSN(RET, 4)));
	raises(NOTHING, 0, "RETF");
	is(cpu->ssp, KERNEL_SS - 0x40, "SSP");
	TRY(far(ZYDIS_MNEMONIC_CALL, 4, CODE32, 0x1000));
	put(frame, 1ull << 32, 8);
	TRY(execute(INSN(RET, 4)));
	raises(GP, 0, "previous SSP above 4 GiB in 32-bit mode");

	// LIP is a linear address.
	machine_32(0);
	machine_cet(true, true);
	cpu->seg[SEG_CS].base = 0x10000;
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	is(get(frame + 8, 8), 0x22340, "LIP includes the base of CS");
	TRY(execute(INSN(IRETD, 4)));
	raises(CP, CP_FAR_RET, "IRET to a segment of another base");

	machine_32(3);
	machine_cet(true, true);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event from level 3");
	is(cpu->ssp, KERNEL_SS - 8, "supervisor shadow stack");
	is(cpu->pl_ssp[3], USER_SS - 0x40, "PL3_SSP");
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRETD");
	is(cpu->ssp, USER_SS - 0x40, "SSP");
	machine_32(3);
	machine_cet(true, true);
	cpu->pl_ssp[0] = 1ull << 32 | (KERNEL_SS - 8);
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(GP, 1, "PL0_SSP above 4 GiB in 32-bit mode");

	machine_v86(3);
	machine_cet(true, true);
	cpu->pl_ssp[3] = 0x1230;
	cpu->ssp = 0x4560;
	TRY(event_deliver(cpu, 0x30, EVENT_EXTERNAL, false, 0));
	raises(NOTHING, 0, "event in virtual-8086 mode");
	is(cpu->ssp, KERNEL_SS - 8, "token taken, no frame");
	is(cpu->pl_ssp[3], 0x1230, "virtual-8086 mode has no SSP to save");
	ok(cpu->s_cet & CET_WAIT, "tracker armed");
	TRY(execute(INSN(IRETD, 4)));
	raises(GP, 0, "IRET to virtual-8086 mode with CET on for level 3");
	cpu->u_cet = 0;
	cpu->ssp -= 4;
	TRY(execute(INSN(IRETD, 4)));
	raises(CP, CP_FAR_RET, "SSP not aligned");
	cpu->ssp += 4;
	TRY(execute(INSN(IRETD, 4)));
	raises(NOTHING, 0, "IRET to virtual-8086 mode");
	is(get(KERNEL_SS - 8, 8), KERNEL_SS - 8, "token freed");
}

int main(void)
{
	events_32();
	gates_32();
	v86();
	real_mode();
	tasks();
	tasks_cet();
	cet_32();
	return done();
}
