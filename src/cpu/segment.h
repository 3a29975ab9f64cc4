// SPDX-License-Identifier: MIT
// Segment descriptors: reading, decoding and marking them. For the files which transfer control,
// switch tasks or load segment registers.
#ifndef CETKVM_CPU_SEGMENT_H
#define CETKVM_CPU_SEGMENT_H

#include "cpu/insn.h"
#include "cpu/mem.h"

// Attributes of a segment as struct segment holds them; type bits of code and data segments.
#define SEG_CODE (1u << 3)
#define SEG_CONFORMING (1u << 2) // of code
#define SEG_EXPAND_DOWN (1u << 2) // of data
#define SEG_RW (1u << 1) // code: readable; data: writable
#define SEG_ACCESSED (1u << 0)

// Types of system descriptors.
enum system_type {
	TYPE_TSS16 = 1, TYPE_LDT = 2, TYPE_TSS16_BUSY = 3, TYPE_CALL_GATE16 = 4, TYPE_TASK_GATE = 5,
	TYPE_INTERRUPT_GATE16 = 6, TYPE_TRAP_GATE16 = 7, TYPE_TSS32 = 9, TYPE_TSS32_BUSY = 11,
	TYPE_CALL_GATE32 = 12, TYPE_INTERRUPT_GATE32 = 14, TYPE_TRAP_GATE32 = 15,
};
#define TSS_BUSY 2u

static inline u32 descriptor_attributes(u64 raw) { return raw >> 40 & 0xf0ff; }
static inline u32 descriptor_base(u64 raw) { return (raw >> 16 & 0xffffff) | (raw >> 32 & 0xff000000); }
static inline unsigned descriptor_dpl(u64 raw) { return raw >> 45 & 3; }
static inline bool descriptor_present(u64 raw) { return raw >> 47 & 1; }
static inline bool descriptor_is_segment(u64 raw) { return raw >> 44 & 1; }
static inline unsigned descriptor_type(u64 raw) { return raw >> 40 & 0xf; }

static inline u32 descriptor_limit(u64 raw)
{
	u32 limit = (raw & 0xffff) | (raw >> 32 & 0xf0000);

	return raw >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

static inline bool descriptor_is_code(u64 raw)
{
	return descriptor_is_segment(raw) && descriptor_type(raw) & SEG_CODE;
}

static inline bool descriptor_is_conforming(u64 raw)
{
	return descriptor_type(raw) & SEG_CONFORMING;
}

static inline bool descriptor_is_writable_data(u64 raw)
{
	return descriptor_is_segment(raw) && (descriptor_type(raw) & (SEG_CODE | SEG_RW)) == SEG_RW;
}

// CS of 64-bit code, given that the processor is in long mode.
static inline bool descriptor_is_64bit(const struct cpu *cpu, u64 raw)
{
	return cpu_long_mode(cpu) && raw >> 53 & 1;
}

static inline bool selector_null(u16 selector) { return !(selector & 0xfffc); }
static inline u32 selector_error(u16 selector) { return selector & 0xfffc; }

static inline unsigned segment_dpl(const struct segment *segment)
{
	return segment->attributes >> SEG_DPL_SHIFT & 3;
}

// Addresses of descriptor tables and TSSs have 32 bits outside long mode.
static inline u64 system_linear(const struct cpu *cpu, u64 linear)
{
	return cpu_long_mode(cpu) ? linear : (u32)linear;
}

static inline u64 system_read8(struct cpu *cpu, u64 linear)
{
	return mem_read_n(cpu, system_linear(cpu, linear), 8, ACCESS_READ | ACCESS_IMPLICIT);
}

static inline u64 system_read(struct cpu *cpu, u64 linear, unsigned size)
{
	return mem_read_n(cpu, system_linear(cpu, linear), size, ACCESS_READ | ACCESS_IMPLICIT);
}

// Linear address of the descriptor of `selector` (not null); false when `size` bytes of it are not
// within the GDT or LDT.
bool descriptor_address(struct cpu *cpu, u16 selector, unsigned size, u64 *linear);
// The 8 bytes of a descriptor; false outside the table.
bool descriptor_read(struct cpu *cpu, u16 selector, u64 *raw);
// The 16 bytes of a system descriptor or gate of long mode.
bool descriptor_read16(struct cpu *cpu, u16 selector, u64 raw[2]);
// Sets the accessed bit in the table (locked), when it is clear, and in *raw. May raise #PF.
void descriptor_mark_accessed(struct cpu *cpu, u16 selector, u64 *raw);
// Sets or clears the busy bit of a TSS descriptor in the GDT.
void descriptor_mark_busy(struct cpu *cpu, u16 selector, u64 raw, bool busy);
// What a segment register holds when loaded with that descriptor.
void segment_from_descriptor(struct segment *segment, u16 selector, u64 raw);
// What it holds when loaded with a null selector; dpl matters to SS only.
void segment_null(struct segment *segment, u16 selector, unsigned dpl);
// Loading in real and virtual-8086 mode: base only, respectively everything.
void segment_load_real(struct segment *segment, enum seg seg, u16 selector, bool v86);

// Checks of a stack segment about to be loaded for privilege level `cpl`. The exceptions are `vector`
// (#GP for MOV, RETF and IRET; #TS for TSSs) but #SS when not present; `ext` is added to error codes.
// Null selectors are the caller's business. Marks the descriptor accessed.
void segment_check_stack(struct cpu *cpu, u16 selector, unsigned cpl, enum vector vector, u32 ext,
			 struct segment *segment);

// Is [offset, offset + size) within the limit of this (usable) segment?
bool segment_within_limit(const struct segment *segment, u64 offset, unsigned size);

// The selector's RPL nulling of data segments on return to an outer privilege level.
void segment_null_inner(struct cpu *cpu, unsigned cpl);

#endif
