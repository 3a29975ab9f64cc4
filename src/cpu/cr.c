// SPDX-License-Identifier: MIT
// Control registers, EFER and XCR0: what may be written, and what follows from a write.
// SDM: "Control Registers", "Paging" ("Paging-Mode Enable", "Invalidation of TLBs and
// Paging-Structure Caches"), "IA-32e Mode" activation, "XSAVE-Supported Features", MOV to control
// registers in Vol. 2.
//
// BY_GUEST: all rules; -EINVAL means #GP(0). BY_HOST: registers come one after another and make
// sense together only, so each setter looks at its own reserved bits and cpu_sregs_valid() at the
// rest. The pair CR0.WP and CR4.CET is not enforced for the host (facts of the KVM API).
#include "cpu/features.h"
#include "cpu/mem.h"
#include "cpu/system.h"
#include "xstate/xstate.h"

#include <errno.h>

#define CR3_NO_FLUSH (1ull << 63)
#define CR3_PCID 0xfffull

// Paging as it will be with these values.
static bool pae_paging(u64 cr0, u64 cr4, u64 efer)
{
	return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

static int load_pdptrs_if(struct cpu *cpu, bool needed, enum who who)
{
	if (!needed)
		return 0;
	// The host may still be putting CR3 in place: what is wrong then is not present.
	if (cpu_load_pdptrs(cpu) && who == BY_GUEST)
		return -EINVAL;
	return 0;
}

static bool cr0_guest_ok(const struct cpu *cpu, u64 cr0)
{
	bool enables = (cr0 & CR0_PG) && !(cpu->cr0 & CR0_PG);
	bool disables = !(cr0 & CR0_PG) && (cpu->cr0 & CR0_PG);
	u32 tr_type = cpu->seg[SEG_TR].attributes & SEG_TYPE;

	if (enables && (cpu->efer & EFER_LME)) {
		// Activation of IA-32e mode: not from 64-bit code, not with a 16-bit TSS.
		if (!(cpu->cr4 & CR4_PAE) || (cpu->seg[SEG_CS].attributes & SEG_L) ||
		    tr_type == 1 || tr_type == 3)
			return false;
	}
	if (disables && (cpu_64bit(cpu) || (cpu->cr4 & CR4_PCIDE)))
		return false;
	return (cr0 & CR0_WP) || !(cpu->cr4 & CR4_CET);
}

int cpu_set_cr0(struct cpu *cpu, u64 value, enum who who)
{
	u64 old = cpu->cr0, old_efer = cpu->efer, changed;

	if (value >> 32)
		return -EINVAL;
	value &= CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD |
		 CR0_PG;
	value |= CR0_ET;
	if ((value & CR0_NW) && !(value & CR0_CD))
		return -EINVAL;
	if ((value & CR0_PG) && !(value & CR0_PE))
		return -EINVAL;
	if (who == BY_GUEST && !cr0_guest_ok(cpu, value))
		return -EINVAL;

	changed = old ^ value;
	if (who == BY_GUEST && (changed & CR0_PG)) {
		cpu->efer &= ~(u64)EFER_LMA;
		if ((value & CR0_PG) && (cpu->efer & EFER_LME))
			cpu->efer |= EFER_LMA;
	}
	if (load_pdptrs_if(cpu, (changed & (CR0_PG | CR0_CD | CR0_NW)) &&
				pae_paging(value, cpu->cr4, cpu->efer), who)) {
		cpu->efer = old_efer;
		return -EINVAL;
	}
	cpu->cr0 = value;
	if (changed & (CR0_PG | CR0_WP))
		tlb_flush_all(cpu);
	if (changed & CR0_PE) // what firmware switches for to run what it loaded
		cpu_client_ran(cpu, false);
	cpu_mode_changed(cpu);
	return 0;
}

int cpu_set_cr3(struct cpu *cpu, u64 value, enum who who)
{
	bool keep = false;
	u64 old = cpu->cr3;

	if (who == BY_GUEST && (cpu->cr4 & CR4_PCIDE)) {
		keep = value & CR3_NO_FLUSH;
		value &= ~CR3_NO_FLUSH;
	}
	if (cpu_long_mode(cpu) && value >> cpu->phys_bits)
		return -EINVAL;
	cpu->cr3 = value;
	if (load_pdptrs_if(cpu, cpu_pae_paging(cpu), who)) {
		cpu->cr3 = old;
		return -EINVAL;
	}
	// The TLB holds one address space. Kept translations are needed only if it stays the same.
	if (!keep || value != old)
		tlb_flush_nonglobal(cpu);
	if (who == BY_HOST)
		tlb_flush_all(cpu);
	return 0;
}

static bool cr4_guest_ok(const struct cpu *cpu, u64 cr4)
{
	u64 changed = cpu->cr4 ^ cr4;

	if (cpu_long_mode(cpu) && (!(cr4 & CR4_PAE) || (changed & CR4_LA57)))
		return false;
	if ((changed & cr4 & CR4_PCIDE) && (!cpu_long_mode(cpu) || (cpu->cr3 & CR3_PCID)))
		return false;
	return !(cr4 & CR4_CET) || (cpu->cr0 & CR0_WP);
}

int cpu_set_cr4(struct cpu *cpu, u64 value, enum who who)
{
	u64 old = cpu->cr4, changed = old ^ value;
	// What decides about translations or about rights that the TLB remembers.
	const u64 paging = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP |
			   CR4_SMAP | CR4_PKE;

	if (value & cpu->cr4_reserved)
		return -EINVAL;
	if (who == BY_GUEST && !cr4_guest_ok(cpu, value))
		return -EINVAL;
	if (load_pdptrs_if(cpu, (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) &&
				pae_paging(cpu->cr0, value, cpu->efer), who))
		return -EINVAL;
	cpu->cr4 = value;
	cpu->linear_bits = value & CR4_LA57 ? 57 : 48;
	if (changed & paging)
		tlb_flush_all(cpu);
	if (changed & (CR4_OSXSAVE | CR4_PKE))
		cpuid_refresh(cpu);
	cpu_mode_changed(cpu);
	return 0;
}

// The host may restore what any guest here can have, the guest's CPUID or not.
static bool may_have(const struct cpu *cpu, unsigned feature, enum who who)
{
	return who == BY_HOST ? cpuid_offers(feature) : guest_has(cpu, feature);
}

int cpu_set_efer(struct cpu *cpu, u64 value, enum who who)
{
	u64 valid = 0, changed;

	if (may_have(cpu, FEATURE_SYSCALL, who))
		valid |= EFER_SCE;
	if (may_have(cpu, FEATURE_LM, who))
		valid |= EFER_SCE | EFER_LME | EFER_LMA;
	if (may_have(cpu, FEATURE_NX, who))
		valid |= EFER_NX;
	if (value & ~valid)
		return -EINVAL;
	if (who == BY_GUEST) {
		if ((cpu->cr0 & CR0_PG) && ((cpu->efer ^ value) & EFER_LME))
			return -EINVAL;
		value = (value & ~(u64)EFER_LMA) | (cpu->efer & EFER_LMA);
	}
	changed = cpu->efer ^ value;
	cpu->efer = value;
	if (changed & (EFER_NX | EFER_LMA))
		tlb_flush_all(cpu);
	cpu_mode_changed(cpu);
	return 0;
}

bool cpu_sregs_valid(const struct cpu *cpu, u64 cr0, u64 cr3, u64 cr4, u64 efer, bool cs_l)
{
	bool paging = cr0 & CR0_PG;

	if ((cr0 >> 32) || ((cr0 & CR0_NW) && !(cr0 & CR0_CD)) || (paging && !(cr0 & CR0_PE)))
		return false;
	if (cr4 & cpu->cr4_reserved)
		return false;
	if (paging && (efer & EFER_LME))
		return (cr4 & CR4_PAE) && (efer & EFER_LMA) && !(cr3 >> cpu->phys_bits);
	return !(efer & EFER_LMA) && !cs_l;
}

int cpu_set_xcr0(struct cpu *cpu, u64 value, enum who who)
{
	// x87 is there even in a guest without XSAVE, for the host's KVM_SET_XCRS.
	if (!xstate_xcr0_valid(value, cpu->xcr0_supported | XSTATE_MASK(XSTATE_X87)))
		return -EINVAL;
	cpu->xcr0 = value;
	cpuid_refresh(cpu);
	cpu_mode_changed(cpu);
	return 0;
}
