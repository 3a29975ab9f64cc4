// SPDX-License-Identifier: MIT
// The instructions that transfer control through C, and software interrupts.
// SDM: INT n/INTO/INT3/INT1, "Interrupt and Exception Handling in Virtual-8086 Mode", "Virtual-8086
// Mode Extensions (VME)".
#include "cpu/transfer.h"

#include "cpu/debug.h"
#include "cpu/event_internal.h"
#include "cpu/far.h"
#include "cpu/segment.h"

#define TSS32_IO_MAP_BASE 0x66

// VME: is this software interrupt redirected to the virtual-8086 program's own handler? The bitmap of
// 32 bytes lies below the I/O permission bitmap of the TSS.
static bool redirected(struct cpu *cpu, u8 vector)
{
	const struct segment *tr = &cpu->seg[SEG_TR];
	u32 at;

	if (!(tr->attributes & 8) || tr->limit < TSS32_IO_MAP_BASE + 1)
		cpu_gp0(cpu);
	at = system_read(cpu, tr->base + TSS32_IO_MAP_BASE, 2) - 32u + vector / 8;
	if (at > tr->limit)
		cpu_gp0(cpu);
	return !(system_read(cpu, tr->base + at, 1) >> vector % 8 & 1);
}

static void int_v86_redirected(struct cpu *cpu, u8 vector)
{
	struct delivery event = { .vector = vector, .software = true, .return_rip = cpu->next_rip };

	event.rflags = cpu_rflags(cpu);
	// Below IOPL 3 the program sees its virtual interrupt flag, and IOPL 3.
	if ((cpu->rflags & FLAG_IOPL) != FLAG_IOPL) {
		event.rflags = (event.rflags & ~(u64)FLAG_IF) | FLAG_IOPL;
		if (cpu->rflags & FLAG_VIF)
			event.rflags |= FLAG_IF;
	}
	deliver_real(cpu, &event, 0);
}

static void transfer_int(struct cpu *cpu, const struct insn *insn)
{
	u8 vector = insn->imm;

	if (cpu_v86(cpu)) {
		if (cpu->cr4 & CR4_VME && redirected(cpu, vector)) {
			int_v86_redirected(cpu, vector);
			cpu->next_rip = cpu->rip;
			return;
		}
		if ((cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
			cpu_gp0(cpu);
	}
	event_deliver(cpu, vector, EVENT_SOFT, false, 0);
	cpu->next_rip = cpu->rip;
}

static void transfer_int3(struct cpu *cpu, const struct insn *insn)
{
	debug_intercept(cpu, VECTOR_BP, 0);
	event_deliver(cpu, VECTOR_BP, EVENT_SOFT_EXCEPTION, false, 0);
	cpu->next_rip = cpu->rip;
}

static void transfer_int1(struct cpu *cpu, const struct insn *insn)
{
	event_deliver(cpu, VECTOR_DB, EVENT_PRIVILEGED_SOFT, false, 0);
	cpu->debug_taken = true;
	cpu->next_rip = cpu->rip;
}

static void transfer_into(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu_rflags(cpu) & FLAG_OF))
		return;
	event_deliver(cpu, VECTOR_OF, EVENT_SOFT_EXCEPTION, false, 0);
	cpu->next_rip = cpu->rip;
}

// CALL, JMP and RET: the far forms.
const struct insn_row rows_transfer[] = {
	{ ZYDIS_MNEMONIC_CALL, INSN_C, INSN_END, 0, far_call },
	{ ZYDIS_MNEMONIC_JMP, INSN_C, INSN_END, 0, far_jmp },
	{ ZYDIS_MNEMONIC_RET, INSN_C, INSN_END, 0, far_ret },
	{ ZYDIS_MNEMONIC_IRET, INSN_C, INSN_END, 0, iret },
	{ ZYDIS_MNEMONIC_IRETD, INSN_C, INSN_END, 0, iret },
	{ ZYDIS_MNEMONIC_IRETQ, INSN_C, INSN_END, 0, iret },
	{ ZYDIS_MNEMONIC_INT, INSN_C, INSN_END, 0, transfer_int },
	{ ZYDIS_MNEMONIC_INT3, INSN_C, INSN_END, 0, transfer_int3 },
	{ ZYDIS_MNEMONIC_INT1, INSN_C, INSN_END, 0, transfer_int1 },
	{ ZYDIS_MNEMONIC_INTO, INSN_C, INSN_END, 0, transfer_into },
	{ ZYDIS_MNEMONIC_SYSCALL, INSN_C, INSN_END, FEATURE_SYSCALL, syscall_syscall },
	{ ZYDIS_MNEMONIC_SYSRET, INSN_C, INSN_END, FEATURE_SYSCALL, syscall_sysret },
	{ ZYDIS_MNEMONIC_SYSENTER, INSN_C, INSN_END, FEATURE_SEP, syscall_sysenter },
	{ ZYDIS_MNEMONIC_SYSEXIT, INSN_C, INSN_END, FEATURE_SEP, syscall_sysexit },
	{ 0 },
};
