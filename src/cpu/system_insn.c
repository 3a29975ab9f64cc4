// SPDX-License-Identifier: MIT
// System instructions: control and debug registers, MSRs, TLB, time, interrupt flag, CPUID, HLT.
// SDM: "System Instruction Summary"; each instruction's page in Vol. 2; "Debug Registers";
// "Masking Maskable Hardware Interrupts", "Protected-Mode Virtual Interrupts".
//
// The order of checks is the SDM's: #UD, then privilege, then values. Instructions without a row
// (VMX, SVM) are #UD.
#include "cpu/debug.h"
#include "cpu/fpu.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/operand.h"
#include "cpu/system.h"
#include "cpu/system_tables.h"

#include <errno.h>

static void need_cpl0(struct cpu *cpu)
{
	if (cpu->cpl)
		cpu_gp0(cpu);
}

// For the setters of system.h and the MSR functions: returns when `result` is 0.
static void check_result(struct cpu *cpu, int result)
{
	if (__builtin_expect(!result, 1))
		return;
	if (result == -EAGAIN)
		cpu_abort(cpu, CPU_EXIT_OPS);
	cpu_gp0(cpu);
}

static void set_edx_eax(struct cpu *cpu, u64 value)
{
	cpu->gpr[RAX] = (u32)value;
	cpu->gpr[RDX] = value >> 32;
}

static u64 edx_eax(const struct cpu *cpu)
{
	return (u32)cpu->gpr[RAX] | cpu->gpr[RDX] << 32;
}

static bool is_control_register(unsigned n)
{
	return n == 0 || n == 2 || n == 3 || n == 4 || n == 8;
}

// ---- MOV to and from control and debug registers ----

static u64 read_cr(struct cpu *cpu, unsigned n)
{
	switch (n) {
	case 0: return cpu->cr0;
	case 2: return cpu->cr2;
	case 3: return cpu->cr3;
	case 4: return cpu->cr4;
	default: return cpu->ops->get_cr8(cpu->opaque);
	}
}

static void write_cr(struct cpu *cpu, unsigned n, u64 value)
{
	switch (n) {
	case 0:
		check_result(cpu, cpu_set_cr0(cpu, value, BY_GUEST));
		break;
	case 2:
		cpu->cr2 = value;
		break;
	case 3:
		check_result(cpu, cpu_set_cr3(cpu, value, BY_GUEST));
		break;
	case 4:
		check_result(cpu, cpu_set_cr4(cpu, value, BY_GUEST));
		break;
	default:
		if (value > 15)
			cpu_gp0(cpu);
		cpu->ops->set_cr8(cpu->opaque, value);
	}
}

// DR4 and DR5 are other names of DR6 and DR7 unless CR4.DE is set.
static unsigned check_dr(struct cpu *cpu, unsigned n)
{
	if (n > 7 || ((n == 4 || n == 5) && (cpu->cr4 & CR4_DE)))
		cpu_ud(cpu);
	need_cpl0(cpu);
	if (debug_general_detect(cpu))
		debug_raise(cpu, DR6_BD);
	return n == 4 || n == 5 ? n + 2 : n;
}

static void write_dr(struct cpu *cpu, unsigned n, u64 value)
{
	if (n >= 6 && value >> 32)
		cpu_gp0(cpu);
	if (n < 4) {
		cpu->dr[n] = value;
	} else if (n == 6) {
		cpu->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
	} else {
		cpu->dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
	}
	cpu_mode_changed(cpu);
}

static void mov(struct cpu *cpu, const struct insn *insn)
{
	const struct operand *to = &insn->op[0], *from = &insn->op[1];
	unsigned size = cpu_64bit(cpu) ? 8 : 4, n;

	if (insn->lock)
		cpu_ud(cpu);
	if (to->kind == OPERAND_CR || from->kind == OPERAND_CR) {
		n = to->kind == OPERAND_CR ? to->reg : from->reg;
		if (!is_control_register(n))
			cpu_ud(cpu);
		need_cpl0(cpu);
		if (to->kind == OPERAND_CR)
			write_cr(cpu, n, gpr_read(cpu, from->reg, size));
		else
			gpr_write(cpu, to->reg, size, read_cr(cpu, n));
	} else if (to->kind == OPERAND_DR) {
		n = check_dr(cpu, to->reg);
		write_dr(cpu, n, gpr_read(cpu, from->reg, size));
	} else if (from->kind == OPERAND_DR) {
		n = check_dr(cpu, from->reg);
		gpr_write(cpu, to->reg, size, n < 4 ? cpu->dr[n] : n == 6 ? cpu->dr6 : cpu->dr7);
	} else {
		cpu_ud(cpu);
	}
}

static void clts(struct cpu *cpu, const struct insn *insn)
{
	need_cpl0(cpu);
	cpu->cr0 &= ~(u64)CR0_TS;
	cpu_mode_changed(cpu);
}

static void lmsw(struct cpu *cpu, const struct insn *insn)
{
	u64 value;

	need_cpl0(cpu);
	value = insn_read(cpu, insn, 0) & (CR0_PE | CR0_MP | CR0_EM | CR0_TS);
	// It can set PE, but not clear it.
	value |= cpu->cr0 & ~(u64)(CR0_MP | CR0_EM | CR0_TS);
	check_result(cpu, cpu_set_cr0(cpu, value, BY_GUEST));
}

static void smsw(struct cpu *cpu, const struct insn *insn)
{
	check_umip(cpu);
	insn_write(cpu, insn, 0, cpu->cr0);
}

// ---- caches and the TLB ----

static void invlpg(struct cpu *cpu, const struct insn *insn)
{
	u64 linear = insn_offset(cpu, insn);

	need_cpl0(cpu);
	// Segment limits and types do not matter, only the base.
	if (!cpu_64bit(cpu)) {
		linear = (u32)(linear + cpu->seg[insn->mem_seg].base);
	} else {
		if (insn->mem_seg == SEG_FS || insn->mem_seg == SEG_GS)
			linear += cpu->seg[insn->mem_seg].base;
		if (!cpu_canonical(cpu, linear))
			return;
	}
	tlb_flush_page(cpu, linear);
}

enum { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };

static void invpcid(struct cpu *cpu, const struct insn *insn)
{
	u64 type, descriptor[2], pcid = cpu->cr4 & CR4_PCIDE ? cpu->cr3 & 0xfff : 0;

	need_cpl0(cpu);
	type = gpr_read(cpu, insn->op[0].reg, cpu_64bit(cpu) ? 8 : 4);
	mem_read(cpu, insn_linear(cpu, insn, 16, false), descriptor, 16, ACCESS_READ);
	if (type > INVPCID_ALL || descriptor[0] >> 12)
		cpu_gp0(cpu);
	if (type <= INVPCID_CONTEXT && descriptor[0] && !(cpu->cr4 & CR4_PCIDE))
		cpu_gp0(cpu);
	// The TLB holds nothing of other address spaces.
	switch (type) {
	case INVPCID_ADDRESS:
		if (!cpu_canonical_base(cpu, descriptor[1]))
			cpu_gp0(cpu);
		if (descriptor[0] == pcid)
			tlb_flush_page(cpu, descriptor[1]);
		break;
	case INVPCID_CONTEXT:
		if (descriptor[0] == pcid)
			tlb_flush_nonglobal(cpu);
		break;
	case INVPCID_ALL_GLOBAL:
		tlb_flush_all(cpu);
		break;
	default:
		tlb_flush_nonglobal(cpu);
	}
}

// There are no caches to write back or to drop.
static void wbinvd(struct cpu *cpu, const struct insn *insn)
{
	need_cpl0(cpu);
}

// ---- MSRs, XCR0, performance counters, PKRU ----

static void rdmsr(struct cpu *cpu, const struct insn *insn)
{
	u64 value;

	need_cpl0(cpu);
	if (cpu->ops->guest_msr)
		check_result(cpu, cpu->ops->guest_msr(cpu->opaque, cpu->gpr[RCX], &value, false));
	else
		check_result(cpu, cpu_rdmsr(cpu, cpu->gpr[RCX], &value, BY_GUEST));
	set_edx_eax(cpu, value);
}

static void wrmsr(struct cpu *cpu, const struct insn *insn)
{
	u64 value = edx_eax(cpu);

	need_cpl0(cpu);
	if (cpu->ops->guest_msr)
		check_result(cpu, cpu->ops->guest_msr(cpu->opaque, cpu->gpr[RCX], &value, true));
	else
		check_result(cpu, cpu_wrmsr(cpu, cpu->gpr[RCX], value, BY_GUEST));
}

// There are no counters.
static void rdpmc(struct cpu *cpu, const struct insn *insn)
{
	cpu_gp0(cpu);
}

static void xgetbv(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu->cr4 & CR4_OSXSAVE))
		cpu_ud(cpu);
	if ((u32)cpu->gpr[RCX] == 0)
		set_edx_eax(cpu, cpu->xcr0);
	else if ((u32)cpu->gpr[RCX] == 1 && guest_has(cpu, FEATURE_XGETBV1))
		set_edx_eax(cpu, cpu->xcr0 & fpu_xinuse(cpu));
	else
		cpu_gp0(cpu);
}

static void xsetbv(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu->cr4 & CR4_OSXSAVE))
		cpu_ud(cpu);
	need_cpl0(cpu);
	if ((u32)cpu->gpr[RCX])
		cpu_gp0(cpu);
	check_result(cpu, cpu_set_xcr0(cpu, edx_eax(cpu), BY_GUEST));
}

static void rdpkru(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu->cr4 & CR4_PKE))
		cpu_ud(cpu);
	if ((u32)cpu->gpr[RCX])
		cpu_gp0(cpu);
	set_edx_eax(cpu, cpu->pkru);
}

static void wrpkru(struct cpu *cpu, const struct insn *insn)
{
	if (!(cpu->cr4 & CR4_PKE))
		cpu_ud(cpu);
	if ((u32)cpu->gpr[RCX] || (u32)cpu->gpr[RDX])
		cpu_gp0(cpu);
	cpu_set_pkru(cpu, cpu->gpr[RAX]);
}

// ---- time, identification ----

static void rdtsc(struct cpu *cpu, const struct insn *insn)
{
	if ((cpu->cr4 & CR4_TSD) && cpu->cpl && cpu_protected(cpu))
		cpu_gp0(cpu);
	set_edx_eax(cpu, cpu_tsc(cpu));
	if (insn->mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		cpu->gpr[RCX] = (u32)cpu->tsc_aux;
}

static void rdpid(struct cpu *cpu, const struct insn *insn)
{
	cpu->gpr[insn->op[0].reg] = (u32)cpu->tsc_aux;
}

static void cpuid(struct cpu *cpu, const struct insn *insn)
{
	u32 out[4];

	if (cpu->cpl && msr_cpuid_faulting(cpu))
		cpu_gp0(cpu);
	cpuid_query(cpu, cpu->gpr[RAX], cpu->gpr[RCX], out);
	cpu->gpr[RAX] = out[0];
	cpu->gpr[RBX] = out[1];
	cpu->gpr[RCX] = out[2];
	cpu->gpr[RDX] = out[3];
}

// ---- FS and GS bases ----

static void need_fsgsbase(struct cpu *cpu)
{
	if (!cpu_64bit(cpu) || !(cpu->cr4 & CR4_FSGSBASE))
		cpu_ud(cpu);
}

static void rdfsbase(struct cpu *cpu, const struct insn *insn)
{
	enum seg seg = insn->mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? SEG_FS : SEG_GS;

	need_fsgsbase(cpu);
	gpr_write(cpu, insn->op[0].reg, insn->op[0].size, cpu->seg[seg].base);
}

static void wrfsbase(struct cpu *cpu, const struct insn *insn)
{
	enum seg seg = insn->mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
	u64 base = gpr_read(cpu, insn->op[0].reg, insn->op[0].size);

	need_fsgsbase(cpu);
	if (!cpu_canonical_base(cpu, base))
		cpu_gp0(cpu);
	cpu->seg[seg].base = base;
}

static void swapgs(struct cpu *cpu, const struct insn *insn)
{
	u64 base = cpu->seg[SEG_GS].base;

	if (!cpu_64bit(cpu))
		cpu_ud(cpu);
	need_cpl0(cpu);
	cpu->seg[SEG_GS].base = cpu->kernel_gs_base;
	cpu->kernel_gs_base = base;
}

// ---- flags ----

static void stac(struct cpu *cpu, const struct insn *insn)
{
	if (cpu->cpl)
		cpu_ud(cpu);
	cpu->rflags |= FLAG_AC; // at CPL 0 no translation depends on it
}

static void clac(struct cpu *cpu, const struct insn *insn)
{
	if (cpu->cpl)
		cpu_ud(cpu);
	cpu->rflags &= ~(u64)FLAG_AC;
	if (cpu->tlb_ac_count)
		tlb_drop_ac(cpu);
}

enum if_control { IF_REAL, IF_VIRTUAL, IF_DENIED };

// Does CLI and STI act on IF, on VIF, or is it #GP?
static enum if_control if_control(const struct cpu *cpu)
{
	unsigned iopl = (cpu->rflags & FLAG_IOPL) / (FLAG_IOPL / 3);

	if (!cpu_protected(cpu))
		return IF_REAL;
	if (cpu_v86(cpu))
		return iopl == 3 ? IF_REAL : cpu->cr4 & CR4_VME ? IF_VIRTUAL : IF_DENIED;
	if (cpu->cpl <= iopl)
		return IF_REAL;
	return cpu->cpl == 3 && (cpu->cr4 & CR4_PVI) ? IF_VIRTUAL : IF_DENIED;
}

static void cli(struct cpu *cpu, const struct insn *insn)
{
	switch (if_control(cpu)) {
	case IF_REAL:
		cpu->rflags &= ~(u64)FLAG_IF;
		break;
	case IF_VIRTUAL:
		cpu->rflags &= ~(u64)FLAG_VIF;
		break;
	default:
		cpu_gp0(cpu);
	}
}

static void sti(struct cpu *cpu, const struct insn *insn)
{
	switch (if_control(cpu)) {
	case IF_REAL:
		if (!(cpu->rflags & FLAG_IF)) {
			cpu->rflags |= FLAG_IF;
			cpu->interrupt_shadow = true;
		}
		break;
	case IF_VIRTUAL:
		if (cpu->rflags & FLAG_VIP)
			cpu_gp0(cpu);
		cpu->rflags |= FLAG_VIF;
		break;
	default:
		cpu_gp0(cpu);
	}
}

// ---- the rest ----

static void hlt(struct cpu *cpu, const struct insn *insn)
{
	need_cpl0(cpu);
	cpu->halted = true;
	cpu_request(cpu, REQ_EVENT);
}

static void vmcall(struct cpu *cpu, const struct insn *insn)
{
	cpu_check_ops(cpu, cpu->ops->hypercall(cpu->opaque, insn->mnemonic == ZYDIS_MNEMONIC_VMMCALL));
}

static void serialize(struct cpu *cpu, const struct insn *insn)
{
}

#define ROW(name, flags, feature, handler) { ZYDIS_MNEMONIC_##name, INSN_C, flags, feature, handler }

const struct insn_row rows_system[] = {
	ROW(MOV, INSN_END, 0, mov),
	ROW(CLTS, INSN_END, 0, clts),
	ROW(LMSW, INSN_END, 0, lmsw),
	ROW(SMSW, 0, 0, smsw),
	ROW(LGDT, 0, 0, tables_lgdt),
	ROW(LIDT, 0, 0, tables_lgdt),
	ROW(SGDT, 0, 0, tables_sgdt),
	ROW(SIDT, 0, 0, tables_sgdt),
	ROW(LLDT, 0, 0, tables_lldt),
	ROW(LTR, 0, 0, tables_ltr),
	ROW(SLDT, 0, 0, tables_sldt),
	ROW(STR, 0, 0, tables_sldt),
	ROW(INVLPG, INSN_END, 0, invlpg),
	ROW(INVPCID, INSN_END, FEATURE_INVPCID, invpcid),
	// WBNOINVD is WBINVD with a prefix that Zydis 4.0 does not look at.
	ROW(WBINVD, 0, 0, wbinvd),
	ROW(INVD, 0, 0, wbinvd),
	ROW(RDMSR, 0, FEATURE_MSR, rdmsr),
	ROW(WRMSR, INSN_END, FEATURE_MSR, wrmsr),
	ROW(RDPMC, 0, 0, rdpmc),
	ROW(RDTSC, 0, FEATURE_TSC, rdtsc),
	ROW(RDTSCP, 0, FEATURE_RDTSCP, rdtsc),
	ROW(RDPID, 0, FEATURE_RDPID, rdpid),
	ROW(CPUID, 0, 0, cpuid),
	ROW(XGETBV, INSN_UNLOAD_FPU, FEATURE_XSAVE, xgetbv),
	ROW(XSETBV, INSN_END, FEATURE_XSAVE, xsetbv),
	ROW(RDPKRU, 0, FEATURE_PKU, rdpkru),
	ROW(WRPKRU, INSN_END, FEATURE_PKU, wrpkru),
	ROW(RDFSBASE, 0, FEATURE_FSGSBASE, rdfsbase),
	ROW(RDGSBASE, 0, FEATURE_FSGSBASE, rdfsbase),
	ROW(WRFSBASE, 0, FEATURE_FSGSBASE, wrfsbase),
	ROW(WRGSBASE, 0, FEATURE_FSGSBASE, wrfsbase),
	ROW(SWAPGS, 0, FEATURE_LM, swapgs),
	ROW(STAC, 0, FEATURE_SMAP, stac),
	ROW(CLAC, 0, FEATURE_SMAP, clac),
	ROW(CLI, INSN_END, 0, cli),
	ROW(STI, INSN_END, 0, sti),
	ROW(HLT, INSN_END, 0, hlt),
	ROW(MONITOR, 0, 0, monitor_handler),
	ROW(MONITORX, 0, 0, monitor_handler),
	ROW(MWAIT, 0, 0, mwait_handler),
	ROW(MWAITX, 0, 0, mwait_handler),
	ROW(RSM, INSN_END, 0, rsm_handler),
	ROW(VMCALL, INSN_END, FEATURE_HYPERVISOR, vmcall),
	ROW(VMMCALL, INSN_END, FEATURE_HYPERVISOR, vmcall),
	ROW(SERIALIZE, INSN_END, FEATURE_SERIALIZE, serialize),
	{ 0 },
};
