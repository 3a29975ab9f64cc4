// SPDX-License-Identifier: MIT
// SYSCALL, SYSRET, SYSENTER, SYSEXIT: transfers between levels 3 and 0 without descriptors or stacks.
// Vendors differ, and the guest gets the behaviour of the vendor its CPUID names:
//   SYSCALL/SYSRET outside 64-bit mode   Intel: #UD; AMD: allowed
//   SYSENTER/SYSEXIT in long mode        Intel: allowed; AMD: #UD
//   SYSRET to a non-canonical RIP        Intel: #GP in level 0; AMD: #GP after the return, in level 3
//   SYSRET's SS                          Intel: flat; AMD: selector only, attributes as they were
// SDM: SYSCALL, SYSRET, SYSENTER, SYSEXIT, "Fast System Calls in 64-Bit Mode". AMD64 APM Vol. 2:
// "SYSCALL and SYSRET".
#include "cpu/cet.h"
#include "cpu/debug.h"
#include "cpu/far.h"
#include "cpu/segment.h"

#include <linux/kvm.h>

#define SEGMENT_CODE (SEG_P | SEG_S | SEG_CODE | SEG_RW | SEG_ACCESSED | SEG_G)
#define SEGMENT_DATA (SEG_P | SEG_S | SEG_RW | SEG_ACCESSED | SEG_G | SEG_DB)

bool vendor_is_amd(const struct cpu *cpu)
{
	for (unsigned i = 0; i < cpu->cpuid_count; i++) {
		if (cpu->cpuid[i].function != 0)
			continue;
		return cpu->cpuid[i].ebx == 0x68747541 /* Auth */ || cpu->cpuid[i].ebx == 0x6f677948 /* Hygo */;
	}
	return false;
}

static void flat_segment(struct segment *segment, u16 selector, u32 attributes, unsigned dpl)
{
	segment->selector = (selector & ~3) | dpl;
	segment->base = 0;
	segment->limit = 0xffffffff;
	segment->attributes = attributes | dpl << SEG_DPL_SHIFT;
}

static void load_code_and_stack(struct cpu *cpu, u16 cs, u16 ss, bool wide, unsigned cpl)
{
	flat_segment(&cpu->seg[SEG_CS], cs, SEGMENT_CODE | (wide ? SEG_L : SEG_DB), cpl);
	flat_segment(&cpu->seg[SEG_SS], ss, SEGMENT_DATA, cpl);
	cpu->cpl = cpl;
}

void syscall_syscall(struct cpu *cpu, const struct insn *insn)
{
	u16 selector = cpu->star >> 32 & 0xfffc;
	bool wide = cpu_long_mode(cpu);
	u64 target;

	if (!(cpu->efer & EFER_SCE) || !cpu_protected(cpu))
		cpu_ud(cpu);
	if (!cpu_64bit(cpu) && !vendor_is_amd(cpu))
		cpu_ud(cpu);
	cet_syscall(cpu);
	if (wide) {
		target = cpu_64bit(cpu) ? cpu->lstar : cpu->cstar;
		cpu->gpr[RCX] = cpu->next_rip;
		cpu->gpr[R11] = cpu_rflags(cpu) & ~(u64)FLAG_RF;
		cpu_set_rflags(cpu, cpu_rflags(cpu) & ~(cpu->sfmask | FLAG_RF));
		cpu->step_canceled = !(cpu->rflags & FLAG_TF); // TF is looked at behind SYSCALL
	} else {
		target = (u32)cpu->star;
		cpu->gpr[RCX] = (u32)cpu->next_rip;
		cpu->rflags &= ~(u64)(FLAG_IF | FLAG_RF | FLAG_VM);
	}
	load_code_and_stack(cpu, selector, selector + 8, wide, 0);
	cpu->next_rip = target;
	cpu_mode_changed(cpu);
}

void syscall_sysret(struct cpu *cpu, const struct insn *insn)
{
	const u64 flags = FLAGS_ARITH | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL | FLAG_NT | FLAG_AC | FLAG_VIF |
			  FLAG_VIP | FLAG_ID;
	u16 selector = cpu->star >> 48;
	bool wide = insn->operand_size == 8 && cpu_long_mode(cpu), amd = vendor_is_amd(cpu);
	struct segment ss = cpu->seg[SEG_SS];

	if (!(cpu->efer & EFER_SCE) || !cpu_protected(cpu) || (!cpu_64bit(cpu) && !amd))
		cpu_ud(cpu);
	if (cpu->cpl || cpu_v86(cpu))
		cpu_gp0(cpu);
	if (wide && !amd && !cpu_canonical(cpu, cpu->gpr[RCX]))
		cpu_gp0(cpu);
	if (cpu_long_mode(cpu)) {
		cpu_set_rflags(cpu, cpu->gpr[R11] & flags);
		// TF is looked at behind SYSRET: the trap of a stepped SYSCALL comes here.
		cpu->step_canceled = !(cpu->guest_debug & KVM_GUESTDBG_SINGLESTEP);
		if (cpu->rflags & FLAG_TF)
			cpu->watch_bits |= DR6_BS;
	} else {
		cpu->rflags |= FLAG_IF;
	}
	load_code_and_stack(cpu, selector + (wide ? 16 : 0), selector + 8, wide, 3);
	if (amd) {
		ss.selector = cpu->seg[SEG_SS].selector;
		ss.attributes |= 3u << SEG_DPL_SHIFT;
		cpu->seg[SEG_SS] = ss;
	}
	cet_sysret(cpu);
	cpu->next_rip = wide ? cpu->gpr[RCX] : (u32)cpu->gpr[RCX];
	cpu_mode_changed(cpu);
}

void syscall_sysenter(struct cpu *cpu, const struct insn *insn)
{
	bool wide = cpu_long_mode(cpu);
	u16 selector = cpu->sysenter_cs;

	if (wide && vendor_is_amd(cpu))
		cpu_ud(cpu);
	if (!cpu_protected(cpu) || selector_null(selector))
		cpu_gp0(cpu);
	cet_syscall(cpu);
	cpu->rflags &= ~(u64)(FLAG_VM | FLAG_IF | FLAG_RF);
	load_code_and_stack(cpu, selector, selector + 8, wide, 0);
	cpu->gpr[RSP] = wide ? cpu->sysenter_esp : (u32)cpu->sysenter_esp;
	cpu->next_rip = wide ? cpu->sysenter_eip : (u32)cpu->sysenter_eip;
	cpu_mode_changed(cpu);
}

void syscall_sysexit(struct cpu *cpu, const struct insn *insn)
{
	bool wide = insn->operand_size == 8 && cpu_long_mode(cpu);
	u16 selector = cpu->sysenter_cs;

	if (cpu_long_mode(cpu) && vendor_is_amd(cpu))
		cpu_ud(cpu);
	if (!cpu_protected(cpu) || selector_null(selector) || cpu->cpl || cpu_v86(cpu))
		cpu_gp0(cpu);
	if (wide && (!cpu_canonical(cpu, cpu->gpr[RDX]) || !cpu_canonical(cpu, cpu->gpr[RCX])))
		cpu_gp0(cpu);
	selector &= ~3;
	load_code_and_stack(cpu, selector + (wide ? 32 : 16), selector + (wide ? 40 : 24), wide, 3);
	cpu->gpr[RSP] = wide ? cpu->gpr[RCX] : (u32)cpu->gpr[RCX];
	cet_sysret(cpu);
	cpu->next_rip = wide ? cpu->gpr[RDX] : (u32)cpu->gpr[RDX];
	cpu_mode_changed(cpu);
}
