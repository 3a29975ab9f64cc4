// SPDX-License-Identifier: MIT
// RESET, INIT and the start-up IPI.
// SDM: "Processor Management and Initialization": table "IA-32 and Intel 64 Processor States
// Following Power-up, Reset, or INIT"; Vol. 1 "Control-flow Enforcement Technology" for its MSRs.
#include "cpu/amx.h"
#include "cpu/fpu.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"

#include <string.h>

static void reset_segment(struct segment *segment, u16 selector, u64 base, u32 attributes)
{
	segment->selector = selector;
	segment->base = base;
	segment->limit = 0xffff;
	segment->attributes = attributes;
}

static void reset_segments(struct cpu *cpu)
{
	for (unsigned i = 0; i < SEG_LDTR; i++)
		reset_segment(&cpu->seg[i], 0, 0, SEG_P | SEG_S | 3);
	reset_segment(&cpu->seg[SEG_CS], 0xf000, 0xffff0000, SEG_P | SEG_S | 0xb);
	reset_segment(&cpu->seg[SEG_LDTR], 0, 0, SEG_P | 2);
	reset_segment(&cpu->seg[SEG_TR], 0, 0, SEG_P | 0xb);
	cpu->gdtr = cpu->idtr = (struct table_register){ .base = 0, .limit = 0xffff };
	cpu->cpl = 0;
}

// What only RESET does: INIT leaves it as it is.
static void power_up(struct cpu *cpu)
{
	fpu_reset(cpu);
	amx_reset(cpu);
	cpu->xcr0 = 1;
	cpu->xss = cpu->xfd = cpu->xfd_err = 0;
	cpu->pkru = 0;
	cpu->smbase = 0x30000;
	cpu->tsc_adjust = cpu->tsc_aux = 0;
	msr_reset(cpu);
}

void cpu_reset(struct cpu *cpu, bool init)
{
	u64 cr0 = CR0_ET | CR0_CD | CR0_NW;
	u32 signature[4] = { 0, 0, 0, 0 };

	cpu_fpu_unload(cpu);
	if (!cpu->phys_bits)
		cpuid_set(cpu, NULL, 0); // nobody has given it a CPUID yet
	if (init)
		cr0 = CR0_ET | (cpu->cr0 & (CR0_CD | CR0_NW));
	else
		power_up(cpu);

	memset(cpu->gpr, 0, sizeof(cpu->gpr));
	cpuid_query(cpu, 1, 0, signature);
	cpu->gpr[RDX] = signature[0] ? signature[0] : 0x600;
	cpu->rip = 0xfff0;
	cpu_set_rflags(cpu, 2);
	reset_segments(cpu);

	cpu->cr0 = cr0;
	cpu->cr2 = cpu->cr3 = cpu->cr4 = cpu->efer = 0;
	cpu->linear_bits = 48;
	memset(cpu->pdptr, 0, sizeof(cpu->pdptr));
	memset(cpu->dr, 0, sizeof(cpu->dr));
	cpu->dr6 = 0xffff0ff0;
	cpu->dr7 = 0x400;

	// Of CET, what XSAVE manages, and what it does not.
	fpu_receive_init(cpu);
	cpu->ssp = cpu->s_cet = cpu->int_ssp_tab = 0;

	cpu->halted = cpu->interrupt_shadow = cpu->mov_ss_shadow = cpu->nmi_masked = false;
	cpu->nmi_pending = cpu->smi_pending = 0;
	cpu->smm = cpu->smm_inside_nmi = false;
	cpu->smi_count = 0;
	cpu->event.valid = cpu->external.valid = false;
	cpu->delivering = 0;

	cpuid_refresh(cpu);
	tlb_flush_all(cpu);
	cpu_mode_changed(cpu);
}

void cpu_sipi(struct cpu *cpu, u8 vector)
{
	cpu->seg[SEG_CS].selector = vector << 8;
	cpu->seg[SEG_CS].base = vector << 12;
	cpu->rip = 0;
	cpu->halted = false;
	cpu_mode_changed(cpu);
}
