// SPDX-License-Identifier: MIT
// System-management mode: what an SMI saves and sets, and what RSM brings back.
// SDM: "System Management Mode": "SMI Interrupt", "SMRAM State Save Map", "Exiting From SMM"; the
// state-save map is the one KVM has (AMD's 64-bit map for processors with long mode, the Pentium's
// for others), where the shadow-stack pointer has a place at SMBASE + 0xFF18.
//
// - SMM has a physical address space of its own (ops->map looks at cpu->smm). The save area is
//   in it, so every translation goes when SMM begins or ends.
// - An SMI is taken at an instruction boundary when SMM is not active; one that comes within SMM is
//   latched (one, not a count). NMIs are held back by SMM as by an NMI handler, INIT until RSM.
// - An SMI during HLT sets the auto-HALT-restart field; RSM goes back to sleep if it is still set.
//   KVM does neither and wakes up behind HLT. The I/O restart fields stay 0: no SMI here is raised
//   by the I/O instruction it follows.
// - RSM into a state that cannot be is shutdown. CR4 is restored before CR0, as KVM does it: an
//   image with CR4.CET is refused if the handler has left CR0.WP clear.
// - The CET MSRs, SSP, TR, LDTR and the GDT stay as they are in SMM; CR4.CET is clear.
#include "cpu/debug.h"
#include "cpu/features.h"
#include "cpu/guest_access.h"
#include "cpu/handlers.h"
#include "cpu/mem.h"
#include "cpu/msr.h"
#include "cpu/system.h"
#include "cpu/transfer.h"

#include <string.h>

enum { SMM_ENTRY = 0x8000, SAVE_AREA = 0xfe00, SAVE_SIZE = 512 };
enum { REVISION_64 = 0x20064, REVISION_32 = 0x20000 };
enum { SHADOW_MOV_SS = 1, SHADOW_STI = 2 }; // in int_shadow, KVM's addition

struct segment_64 {
	u16 selector, attributes;
	u32 limit;
	u64 base;
};

struct save_64 {
	struct segment_64 es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	u64 io_restart_rip, io_restart_rcx, io_restart_rsi, io_restart_rdi;
	u32 io_restart_dword, reserved1;
	u8 io_restart, auto_halt_restart, nmi_mask, int_shadow;
	u32 reserved2;
	u64 efer;
	u64 svm_guest[3];
	u32 reserved3[3];
	u32 revision, smbase;
	u32 reserved4[5];
	u64 ssp;
	u64 svm_host[5];
	u64 cr4, cr3, cr0, dr7, dr6, rflags, rip;
	u64 gpr[16]; // R15 first
};

struct segment_32 {
	u32 attributes, limit, base; // attributes in bits 23:8, as in a descriptor
};

struct save_32 {
	u32 reserved1[62];
	u32 smbase, revision;
	u16 io_restart, auto_halt_restart;
	u32 io_restart_rdi, io_restart_rcx, io_restart_rsi, io_restart_rip;
	u32 cr4;
	u16 reserved2;
	u8 int_shadow, reserved3[17];
	struct segment_32 ds, fs, gs, idtr, tr;
	u32 reserved4;
	struct segment_32 gdtr, ldtr, es, cs, ss;
	u32 es_selector, cs_selector, ss_selector, ds_selector, fs_selector, gs_selector, ldtr_selector,
		tr_selector;
	u32 dr7, dr6, gpr[8], eip, eflags, cr3, cr0;
};

#define AT(type, field, offset) _Static_assert(offsetof(struct type, field) == (offset) - SAVE_AREA, #field)
AT(save_64, gdtr, 0xfe60);
AT(save_64, tr, 0xfe90);
AT(save_64, io_restart, 0xfec8);
AT(save_64, int_shadow, 0xfecb);
AT(save_64, efer, 0xfed0);
AT(save_64, revision, 0xfefc);
AT(save_64, smbase, 0xff00);
AT(save_64, ssp, 0xff18);
AT(save_64, cr4, 0xff48);
AT(save_64, rip, 0xff78);
AT(save_64, gpr, 0xff80);
AT(save_32, smbase, 0xfef8);
AT(save_32, cr4, 0xff14);
AT(save_32, int_shadow, 0xff1a);
AT(save_32, ds, 0xff2c);
AT(save_32, tr, 0xff5c);
AT(save_32, gdtr, 0xff6c);
AT(save_32, es_selector, 0xffa8);
AT(save_32, dr7, 0xffc8);
AT(save_32, eip, 0xfff0);
AT(save_32, cr0, 0xfffc);

union save {
	struct save_64 s64;
	struct save_32 s32;
};
_Static_assert(sizeof(struct save_64) == SAVE_SIZE && sizeof(struct save_32) == SAVE_SIZE, "save area");

// The segment registers, and where each is in either map.
static const struct {
	u8 seg;
	u16 in_64, in_32, selector_32;
} segments[] = {
#define ROW(seg, name) { SEG_##seg, offsetof(struct save_64, name), offsetof(struct save_32, name), \
			 offsetof(struct save_32, name##_selector) }
	ROW(ES, es), ROW(CS, cs), ROW(SS, ss), ROW(DS, ds), ROW(FS, fs), ROW(GS, gs), ROW(LDTR, ldtr),
	ROW(TR, tr),
#undef ROW
};
enum { SEGMENTS = sizeof(segments) / sizeof(segments[0]) };

// ---- SMI ----

static u16 saved_attributes(const struct cpu *cpu, unsigned seg)
{
	u32 attributes = cpu->seg[seg].attributes;

	if (attributes & SEG_UNUSABLE)
		attributes &= ~SEG_P;
	// The DPL of SS is the CPL, whatever its descriptor says.
	if (seg == SEG_SS)
		attributes = (attributes & ~(3u << SEG_DPL_SHIFT)) | (u32)cpu->cpl << SEG_DPL_SHIFT;
	return attributes;
}

static u8 saved_shadow(const struct cpu *cpu)
{
	return !cpu->interrupt_shadow ? 0 : cpu->mov_ss_shadow ? SHADOW_MOV_SS : SHADOW_STI;
}

// What both maps have under the same name.
#define SAVE_COMMON(s) \
	do { \
		(s)->dr6 = cpu->dr6; \
		(s)->dr7 = cpu->dr7; \
		(s)->cr0 = cpu->cr0; \
		(s)->cr3 = cpu->cr3; \
		(s)->cr4 = cpu->cr4; \
		(s)->smbase = cpu->smbase; \
		(s)->int_shadow = saved_shadow(cpu); \
		(s)->auto_halt_restart = cpu->halted; \
	} while (0)

static void save_state_64(const struct cpu *cpu, union save *save)
{
	struct save_64 *s = &save->s64;

	for (unsigned i = 0; i < SEGMENTS; i++) {
		const struct segment *from = &cpu->seg[segments[i].seg];

		*(struct segment_64 *)((u8 *)save + segments[i].in_64) = (struct segment_64){
			from->selector, saved_attributes(cpu, segments[i].seg), from->limit, from->base };
	}
	s->gdtr = (struct segment_64){ .limit = cpu->gdtr.limit, .base = cpu->gdtr.base };
	s->idtr = (struct segment_64){ .limit = cpu->idtr.limit, .base = cpu->idtr.base };
	for (unsigned i = 0; i < 16; i++)
		s->gpr[15 - i] = cpu->gpr[i];
	s->rip = cpu->rip;
	s->rflags = cpu_rflags(cpu);
	SAVE_COMMON(s);
	s->efer = cpu->efer;
	s->revision = REVISION_64;
	if (guest_has(cpu, FEATURE_SHSTK))
		s->ssp = cpu->ssp;
}

static void save_state_32(const struct cpu *cpu, union save *save)
{
	struct save_32 *s = &save->s32;

	for (unsigned i = 0; i < SEGMENTS; i++) {
		const struct segment *from = &cpu->seg[segments[i].seg];

		*(struct segment_32 *)((u8 *)save + segments[i].in_32) = (struct segment_32){
			(u32)saved_attributes(cpu, segments[i].seg) << 8, from->limit, from->base };
		*(u32 *)((u8 *)save + segments[i].selector_32) = from->selector;
	}
	s->gdtr = (struct segment_32){ .limit = cpu->gdtr.limit, .base = cpu->gdtr.base };
	s->idtr = (struct segment_32){ .limit = cpu->idtr.limit, .base = cpu->idtr.base };
	for (unsigned i = 0; i < 8; i++)
		s->gpr[i] = cpu->gpr[i];
	s->eip = cpu->rip;
	s->eflags = cpu_rflags(cpu);
	SAVE_COMMON(s);
	s->revision = REVISION_32;
}

static void change_mode(struct cpu *cpu, bool smm)
{
	cpu->smm = smm;
	tlb_flush_all(cpu); // physical addresses mean other memory now
	cpu_mode_changed(cpu);
}

// Writes to SMRAM. False: there is no memory. Host memory that cannot be written undoes the SMI.
static bool write_save_area(struct cpu *cpu, const union save *save)
{
	u64 gpa = cpu->smbase + SAVE_AREA;
	const u8 *from = (const u8 *)save;
	unsigned rest = SAVE_SIZE, part, flags;

	for (; rest; rest -= part, from += part, gpa += part) {
		u8 *host = phys_page(cpu, gpa & ~0xfffull, &flags);

		part = 0x1000 - (gpa & 0xfff);
		part = part < rest ? part : rest;
		if (!host || (flags & PAGE_READONLY))
			return false;
		phys_mark_dirty(cpu, gpa);
		jit_page_written(cpu, gpa, part);
		host += gpa & 0xfff;
		if (!guest_copy(host, from, part)) {
			change_mode(cpu, false);
			cpu_request(cpu, REQ_SMI);
			guest_fault(cpu, host);
		}
	}
	return true;
}

void smm_enter(struct cpu *cpu)
{
	const u32 attributes = SEG_P | SEG_S | SEG_G | 3;
	union save save = { 0 };

	if (guest_has(cpu, FEATURE_LM))
		save_state_64(cpu, &save);
	else
		save_state_32(cpu, &save);
	change_mode(cpu, true);
	if (!write_save_area(cpu, &save))
		cpu_abort(cpu, CPU_EXIT_SHUTDOWN);
	cpu->smi_pending = 0;
	cpu->smi_count++;

	cpu->smm_inside_nmi = cpu->nmi_masked;
	cpu->nmi_masked = true;
	cpu->halted = cpu->interrupt_shadow = cpu->mov_ss_shadow = false;
	cpu->step_canceled = true;
	cpu_set_rflags(cpu, 2);
	cpu->rip = SMM_ENTRY;
	cpu->dr7 = DR7_FIXED;
	cpu->idtr = (struct table_register){ 0 };
	for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
		cpu->seg[seg] = (struct segment){ .limit = 0xffffffff, .attributes = attributes };
	cpu->seg[SEG_CS].selector = cpu->smbase >> 4;
	cpu->seg[SEG_CS].base = cpu->smbase;
	cpu->cpl = 0;
	// As the host may: none of the rules for a guest that turns paging off applies.
	cpu_set_efer(cpu, 0, BY_HOST);
	cpu_set_cr4(cpu, 0, BY_HOST);
	cpu_set_cr0(cpu, cpu->cr0 & ~(u64)(CR0_PE | CR0_EM | CR0_TS | CR0_PG), BY_HOST);
}

// ---- RSM ----

static void load_segment(struct cpu *cpu, unsigned seg, u16 selector, u32 attributes, u32 limit, u64 base)
{
	attributes &= SEG_TYPE | SEG_S | 3u << SEG_DPL_SHIFT | SEG_P | SEG_AVL | SEG_L | SEG_DB | SEG_G;
	if (!(attributes & SEG_P))
		attributes |= SEG_UNUSABLE;
	cpu->seg[seg] = (struct segment){ .base = base, .limit = limit, .attributes = attributes,
					  .selector = selector };
}

static void load_segment_64(struct cpu *cpu, const union save *save, unsigned i)
{
	const struct segment_64 *s = (const void *)((const u8 *)save + segments[i].in_64);

	load_segment(cpu, segments[i].seg, s->selector, s->attributes, s->limit, s->base);
}

static void load_segment_32(struct cpu *cpu, const union save *save, unsigned i)
{
	const struct segment_32 *s = (const void *)((const u8 *)save + segments[i].in_32);

	load_segment(cpu, segments[i].seg, *(const u32 *)((const u8 *)save + segments[i].selector_32),
		     s->attributes >> 8, s->limit, s->base);
}

// What is reserved is not loaded; virtual-8086 mode is one of protected mode outside long mode.
static bool load_flags(struct cpu *cpu, u64 rflags, u64 cr0, u64 efer)
{
	if (rflags & FLAG_VM && (!(cr0 & CR0_PE) || (cr0 & CR0_PG && efer & EFER_LME)))
		return false;
	cpu_set_rflags(cpu, rflags & FLAGS_DEFINED);
	return true;
}

static bool load_debug(struct cpu *cpu, u64 dr6, u64 dr7)
{
	if (dr6 >> 32 || dr7 >> 32)
		return false;
	cpu->dr6 = (dr6 & DR6_WRITABLE) | DR6_FIXED;
	cpu->dr7 = (dr7 & DR7_WRITABLE) | DR7_FIXED;
	return true;
}

// From real mode: PAE before paging, PCIDs only in long mode with none in use. The same rules as for
// MOV to control registers.
static bool load_control(struct cpu *cpu, u64 cr0, u64 cr3, u64 cr4)
{
	u64 pcid = cr4 & CR4_PCIDE ? cr3 & 0xfff : 0;

	if (cr3 >> cpu->phys_bits)
		return false;
	if (cpu_set_cr3(cpu, cr3 & ~pcid, BY_GUEST) || cpu_set_cr4(cpu, cr4 & ~(u64)CR4_PCIDE, BY_GUEST) ||
	    cpu_set_cr0(cpu, cr0, BY_GUEST))
		return false;
	if (!(cr4 & CR4_PCIDE))
		return true;
	return !cpu_set_cr4(cpu, cr4, BY_GUEST) && !cpu_set_cr3(cpu, cr3, BY_GUEST);
}

static void load_shadow(struct cpu *cpu, u8 shadow)
{
	cpu->interrupt_shadow = shadow & (SHADOW_MOV_SS | SHADOW_STI);
	cpu->mov_ss_shadow = shadow & SHADOW_MOV_SS;
}

static bool load_state_64(struct cpu *cpu, const union save *save)
{
	const struct save_64 *s = &save->s64;

	for (unsigned i = 0; i < 16; i++)
		cpu->gpr[i] = s->gpr[15 - i];
	cpu->next_rip = s->rip;
	if (!load_flags(cpu, s->rflags, s->cr0, s->efer) || !load_debug(cpu, s->dr6, s->dr7))
		return false;
	cpu->smbase = s->smbase;
	if (cpu_set_efer(cpu, s->efer & ~(u64)EFER_LMA, BY_GUEST))
		return false;
	// TR first: its type says whether long mode may be entered.
	load_segment_64(cpu, save, SEGMENTS - 1);
	cpu->gdtr = (struct table_register){ s->gdtr.base, s->gdtr.limit & 0xffff };
	cpu->idtr = (struct table_register){ s->idtr.base, s->idtr.limit & 0xffff };
	if (!load_control(cpu, s->cr0, s->cr3, s->cr4))
		return false;
	for (unsigned i = 0; i < SEGMENTS - 1; i++)
		load_segment_64(cpu, save, i);
	load_shadow(cpu, s->int_shadow);
	cpu->halted = s->auto_halt_restart & 1;
	if (guest_has(cpu, FEATURE_SHSTK)) {
		if (!msr_ssp_valid(cpu, s->ssp, BY_HOST))
			return false;
		cpu->ssp = s->ssp;
	}
	return true;
}

static bool load_state_32(struct cpu *cpu, const union save *save)
{
	const struct save_32 *s = &save->s32;

	for (unsigned i = 0; i < 8; i++)
		cpu->gpr[i] = s->gpr[i];
	cpu->next_rip = s->eip;
	if (!load_flags(cpu, s->eflags, s->cr0, 0) || !load_debug(cpu, s->dr6, s->dr7))
		return false;
	for (unsigned i = 0; i < SEGMENTS; i++)
		load_segment_32(cpu, save, i);
	cpu->gdtr = (struct table_register){ s->gdtr.base, s->gdtr.limit & 0xffff };
	cpu->idtr = (struct table_register){ s->idtr.base, s->idtr.limit & 0xffff };
	cpu->smbase = s->smbase;
	if (!load_control(cpu, s->cr0, s->cr3, s->cr4))
		return false;
	load_shadow(cpu, s->int_shadow);
	cpu->halted = s->auto_halt_restart & 1;
	return true;
}

// The state from which control registers can be loaded: real mode, CR0.WP as the handler left it.
static void back_to_real_mode(struct cpu *cpu)
{
	cpu->seg[SEG_CS] = (struct segment){ .attributes = SEG_P | SEG_S | SEG_G | 0xb };
	cpu->cpl = 0;
	cpu_set_cr4(cpu, cpu->cr4 & ~(u64)CR4_PCIDE, BY_HOST);
	cpu_set_efer(cpu, 0, BY_HOST);
	cpu_set_cr0(cpu, cpu->cr0 & ~(u64)(CR0_PG | CR0_PE), BY_HOST);
	cpu_set_cr4(cpu, cpu->cr4 & ~(u64)CR4_PAE, BY_HOST);
}

void rsm_handler(struct cpu *cpu, const struct insn *insn)
{
	union save save;
	bool good;

	if (!cpu->smm)
		cpu_ud(cpu);
	if (!phys_read(cpu, cpu->smbase + SAVE_AREA, &save, SAVE_SIZE))
		cpu_abort(cpu, CPU_EXIT_SHUTDOWN);
	if (!cpu->smm_inside_nmi)
		event_unmask_nmi(cpu);
	cpu->smm_inside_nmi = false;
	change_mode(cpu, false);
	back_to_real_mode(cpu);
	good = guest_has(cpu, FEATURE_LM) ? load_state_64(cpu, &save) : load_state_32(cpu, &save);
	if (!good)
		cpu_abort(cpu, CPU_EXIT_SHUTDOWN);
	cpu->cpl = !(cpu->cr0 & CR0_PE) ? 0 : cpu->rflags & FLAG_VM ? 3 :
		   cpu->seg[SEG_SS].attributes >> SEG_DPL_SHIFT & 3;
	// A branch target that waits keeps waiting, and what was latched comes in now.
	cpu_mode_changed(cpu);
	cpu_request(cpu, REQ_SMI | REQ_NMI | REQ_IRQ | REQ_INIT_SIPI | REQ_EVENT);
}
