// SPDX-License-Identifier: MIT
// The guest's vector and x87 state: where it is, and how C code reads and changes it.
//
// While translated code runs it is in the host's registers (cpu->fpu_loaded). Otherwise it is in
// cpu->fpstate: an image of the host's XSAVE in standard format, with the host's offsets, of the
// components fpu_host_mask(). Invariant: while not loaded, the data of every component of that
// mask is valid; a clear XSTATE_BV bit says in addition that it is the initial configuration.
#ifndef CETKVM_CPU_FPU_H
#define CETKVM_CPU_FPU_H

#include "cpu/cpu.h"
#include "xstate/fpstate.h"

// Around everything cpu_run() does: saves the calling thread's control words; on leaving puts the
// guest's state away and restores them.
void cpu_fpu_enter(struct cpu *cpu);
void cpu_fpu_leave(struct cpu *cpu);
// The calling thread's own state, which a system call would leave alone and libc's functions do not.
#define FPU_THREAD_STATE_SIZE 2816 // x87 to AVX-512 in the standard format, PKRU's place behind it
struct fpu_thread_state {
	u64 in_use; // components; decides what is in `area`
	u32 mxcsr;
	u8 area[FPU_THREAD_STATE_SIZE] __attribute__((aligned(64)));
};
void fpu_thread_save(struct fpu_thread_state *state);
void fpu_thread_restore(const struct fpu_thread_state *state);
// Loads the guest's state into the host's registers (before translated code is entered). After
// this only code that leaves those registers alone may run. Cheap when loaded.
void cpu_fpu_load(struct cpu *cpu);
// cpu_fpu_unload() is in cpu.h.

// State after RESET.
void fpu_reset(struct cpu *cpu);
// INIT zeroes MPX and CET components and leaves the rest alone.
void fpu_receive_init(struct cpu *cpu);

// Components (XCR0 bits) that this host keeps in cpu->fpstate: x87, SSE, AVX, AVX-512.
u64 fpu_host_mask(void);

// ---- the rest needs the state to be unloaded (INSN_UNLOAD_FPU, or cpu_fpu_unload()) ----

// The guest's x87 instruction pointer for a host address within translated code; 0: unknown.
// Provided by the translator.
u64 jit_guest_rip_of_host(struct cpu *cpu, u64 host_pc);

// FOP and FDP of the x87 instruction at `rip`, which has raised an unmasked exception with the host's data
// pointer at host_data (x87_pointers.c). What cannot be told is 0.
void x87_exception_pointers(struct cpu *cpu, u64 rip, u64 host_data, u16 *opcode, u64 *data);

// Fields of the legacy region of cpu->fpstate. Pointers are the guest's, never the host's.
#define FX_FCW 0
#define FX_FSW 2
#define FSW_ES 0x80u // an unmasked exception is pending
#define FX_FTW 4 // abridged: one bit per physical register, 1: not empty
#define FX_FOP 6
#define FX_FIP 8
#define FX_FDP 16
#define FX_MXCSR 24
#define FX_MXCSR_MASK 28
#define FX_ST 32
#define FX_XMM 160

// Bits of MXCSR that a guest may set; the host's may have more.
#define GUEST_MXCSR_MASK 0xffffu

static inline u16 fpu_get16(const struct cpu *cpu, unsigned offset)
{
	return *(const u16 *)&cpu->fpstate[offset];
}

static inline u32 fpu_get32(const struct cpu *cpu, unsigned offset)
{
	return *(const u32 *)&cpu->fpstate[offset];
}

static inline void fpu_set16(struct cpu *cpu, unsigned offset, u16 value)
{
	*(u16 *)&cpu->fpstate[offset] = value;
}

static inline void fpu_set32(struct cpu *cpu, unsigned offset, u32 value)
{
	*(u32 *)&cpu->fpstate[offset] = value;
}

// Data of component `bit` of fpu_host_mask() in cpu->fpstate (legacy region: its beginning).
u8 *fpu_component(struct cpu *cpu, unsigned bit);
u64 fpu_xstate_bv(const struct cpu *cpu);
void fpu_set_xstate_bv(struct cpu *cpu, u64 bits);
// The component's data was changed: it is in use from now on.
void fpu_dirty(struct cpu *cpu, u64 components);
// Puts a component into its initial configuration.
void fpu_init_component(struct cpu *cpu, unsigned bit);

// Vector register n: its lowest `bytes` (16, 32, 64 or less). Writing leaves the bytes above
// alone (legacy SSE), or clears them up to the longest vector (VEX and EVEX).
void fpu_vec_read(struct cpu *cpu, unsigned n, void *data, unsigned bytes);
void fpu_vec_write(struct cpu *cpu, unsigned n, const void *data, unsigned bytes);
void fpu_vec_write_clear(struct cpu *cpu, unsigned n, const void *data, unsigned bytes);
u64 fpu_mmx_read(struct cpu *cpu, unsigned n);
// What an MMX instruction does to the x87 state: TOP = 0, all registers valid.
void fpu_mmx_enter(struct cpu *cpu);

// The registers to an image in memory and back, as XSAVES and XRSTORS with all of its components
// would do it; PKRU is saved, and left alone by a load. False: see fpstate_may_save().
bool cpu_fpstate_save(struct cpu *cpu, struct fpstate *fpstate);
void cpu_fpstate_load(struct cpu *cpu, struct fpstate *fpstate);
// Components in use, as XGETBV with ECX = 1 sees them before XCR0 is applied.
u64 fpu_xinuse(struct cpu *cpu);

#endif
