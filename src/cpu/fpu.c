// SPDX-License-Identifier: MIT
// Swaps the guest's vector and x87 state between the host's registers and cpu->fpstate.
//
// Invariants: translated code runs only with the guest's state loaded; C that may use vector
// registers runs only with it unloaded, under the thread's own MXCSR and x87 control word. The
// host's instruction addresses, which x87 instructions of translated code leave in FIP, become
// guest addresses at the moment the state is unloaded, while the code they lie in still exists.
//
// SDM: "x87 FPU Instruction and Data (Operand) Pointers", "Last Instruction Opcode". Deviation:
// FDP and FOP read as zero unless the guest loaded them itself; the SDM lets them be undefined
// unless an unmasked exception was raised.
#include "cpu/fpu.h"

#include "base/log.h"
#include "xstate/xstate.h"

#include <string.h>

// Sanitizers' builds compile the engine with vector registers: not what runs while they are live.
#define GENERAL_REGISTERS \
	__attribute__((target("general-regs-only"), no_sanitize("address", "undefined", "thread")))

// What the host's XSAVE does; constant after start-up.
static struct {
	u64 mask;		 // components kept in cpu->fpstate
	bool xsavec;
	u32 offset[XSTATE_BITS]; // standard format
} host;

static void host_cpuid(u32 leaf, u32 subleaf, u32 out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
			 : "a"(leaf), "c"(subleaf));
}

__attribute__((constructor)) static void probe_host(void)
{
	const u64 wanted = XSTATE_MASK_FPSSE | XSTATE_MASK(XSTATE_AVX) | XSTATE_MASK_AVX512;
	u32 r[4], low, high;

	host_cpuid(1, 0, r);
	if (!(r[2] >> 27 & 1)) // OSXSAVE: cpu_host_problem() will refuse this host
		return;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	host.mask = (low | (u64)high << 32) & wanted;
	if ((host.mask & XSTATE_MASK_AVX512) != XSTATE_MASK_AVX512)
		host.mask &= ~XSTATE_MASK_AVX512;
	host_cpuid(0xd, 1, r);
	host.xsavec = r[0] >> 1 & 1;
	for (unsigned i = XSTATE_AVX; i < XSTATE_BITS; i++) {
		if (!(host.mask >> i & 1))
			continue;
		host_cpuid(0xd, i, r);
		BUG_ON(r[0] != xstate_component(i)->size);
		BUG_ON(r[1] + r[0] > CPU_FPSTATE_SIZE || r[1] + r[0] > FPU_THREAD_STATE_SIZE);
		host.offset[i] = r[1];
	}
}

u64 fpu_host_mask(void)
{
	return host.mask;
}

GENERAL_REGISTERS static void host_xsave(void *area)
{
	__asm__ volatile("xsave64 (%0)" : : "r"(area), "a"((u32)host.mask),
			 "d"((u32)(host.mask >> 32)) : "memory");
}

GENERAL_REGISTERS static void host_xrstor(const void *area)
{
	__asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"((u32)host.mask),
			 "d"((u32)(host.mask >> 32)) : "memory");
}

// The control words that C code of this thread expects, and an empty x87 stack.
GENERAL_REGISTERS static void thread_control_words(struct cpu *cpu)
{
	__asm__ volatile("fninit; fldcw %0; vzeroupper; ldmxcsr %1" : :
			 "m"(cpu->host_fcw), "m"(cpu->host_mxcsr));
}

// A client's calls: see fpu.h. XSAVEC leaves out what is in its initial configuration, as the upper halves of
// the vector registers usually are.
GENERAL_REGISTERS void fpu_thread_save(struct fpu_thread_state *state)
{
	volatile u64 *header = (volatile u64 *)(state->area + XSTATE_HEADER_OFFSET);

	for (unsigned i = 0; i < XSTATE_HEADER_SIZE / 8; i++)
		header[i] = 0;
	if (host.xsavec)
		__asm__ volatile("xsavec64 (%0)" : : "r"(state->area), "a"((u32)host.mask),
				 "d"((u32)(host.mask >> 32)) : "memory");
	else
		host_xsave(state->area);
}

GENERAL_REGISTERS void fpu_thread_restore(const struct fpu_thread_state *state)
{
	host_xrstor(state->area);
}

// Of the thread's own state only the control words outlive a function call (System V ABI), and that is what
// cpu_run() is to its caller.
void cpu_fpu_enter(struct cpu *cpu)
{
	__asm__ volatile("fnstcw %0; stmxcsr %1" : "=m"(cpu->host_fcw), "=m"(cpu->host_mxcsr));
}

void cpu_fpu_leave(struct cpu *cpu)
{
	cpu_fpu_unload(cpu);
}

__attribute__((weak)) u64 jit_guest_rip_of_host(struct cpu *cpu, u64 host_pc)
{
	return 0;
}

// Pointers as the guest may see them. FIP is what was loaded when no x87 instruction was executed
// since: then everything is as the guest loaded it. Hosts that neither save nor load pointers
// without a pending exception (AMD's) show 0: the guest's last values stay.
static void hide_host_pointers(struct cpu *cpu, const u64 loaded[3])
{
	u64 *fields = (u64 *)cpu->fpstate;

	if (fields[1] == loaded[1] || !fields[1]) {
		fpu_set16(cpu, FX_FOP, loaded[0] >> 48);
		fields[1] = loaded[1];
		fields[2] = loaded[2];
		return;
	}
	fpu_set16(cpu, FX_FOP, 0);
	fields[1] = jit_guest_rip_of_host(cpu, fields[1]);
	fields[2] = 0;
}

GENERAL_REGISTERS void cpu_fpu_load(struct cpu *cpu)
{
	if (cpu->fpu_loaded)
		return;
	host_xrstor(cpu->fpstate);
	cpu->fpu_loaded = true;
}

GENERAL_REGISTERS void cpu_fpu_unload(struct cpu *cpu)
{
	const volatile u64 *fields = (const volatile u64 *)cpu->fpstate;
	u64 loaded[3];

	if (!cpu->fpu_loaded)
		return;
	for (unsigned i = 0; i < 3; i++)
		loaded[i] = fields[i];
	host_xsave(cpu->fpstate);
	thread_control_words(cpu);
	cpu->fpu_loaded = false;
	hide_host_pointers(cpu, loaded);
}

void fpu_reset(struct cpu *cpu)
{
	cpu_fpu_unload(cpu);
	memset(cpu->fpstate, 0, sizeof(cpu->fpstate));
	for (unsigned i = 0; i < XSTATE_BITS; i++)
		if (host.mask >> i & 1)
			fpu_init_component(cpu, i);
	fpu_set16(cpu, FX_FCW, FCW_RESET);
	fpu_set16(cpu, FX_FTW, 0xff); // all tags "zero", not "empty"
	fpu_set32(cpu, FX_MXCSR, MXCSR_INIT);
	fpu_dirty(cpu, XSTATE_MASK(XSTATE_X87));
}

u8 *fpu_component(struct cpu *cpu, unsigned bit)
{
	return bit < XSTATE_AVX ? cpu->fpstate : cpu->fpstate + host.offset[bit];
}

u64 fpu_xstate_bv(const struct cpu *cpu)
{
	return *(const u64 *)&cpu->fpstate[XSTATE_HEADER_OFFSET];
}

void fpu_set_xstate_bv(struct cpu *cpu, u64 bits)
{
	*(u64 *)&cpu->fpstate[XSTATE_HEADER_OFFSET] = bits & host.mask;
}

void fpu_dirty(struct cpu *cpu, u64 components)
{
	fpu_set_xstate_bv(cpu, fpu_xstate_bv(cpu) | components);
}

void fpu_init_component(struct cpu *cpu, unsigned bit)
{
	xstate_init_component(bit, fpu_component(cpu, bit));
	fpu_set_xstate_bv(cpu, fpu_xstate_bv(cpu) & ~XSTATE_MASK(bit));
}

// The piece of vector register n that begins at byte `from`, its length and its component.
static u8 *vector_piece(struct cpu *cpu, unsigned n, unsigned from, unsigned *length,
			unsigned *component)
{
	if (n >= 16) {
		*length = 64 - from;
		*component = XSTATE_HI16_ZMM;
		return fpu_component(cpu, XSTATE_HI16_ZMM) + (n - 16) * 64 + from;
	}
	if (from < 16) {
		*length = 16 - from;
		*component = XSTATE_SSE;
		return cpu->fpstate + FX_XMM + n * 16 + from;
	}
	if (from < 32) {
		*length = 32 - from;
		*component = XSTATE_AVX;
		return fpu_component(cpu, XSTATE_AVX) + n * 16 + from - 16;
	}
	*length = 64 - from;
	*component = XSTATE_ZMM_HI256;
	return fpu_component(cpu, XSTATE_ZMM_HI256) + n * 32 + from - 32;
}

void fpu_vec_read(struct cpu *cpu, unsigned n, void *data, unsigned bytes)
{
	u8 *to = data;
	unsigned length, component;

	for (unsigned at = 0; at < bytes; at += length) {
		const u8 *piece = vector_piece(cpu, n, at, &length, &component);

		length = length < bytes - at ? length : bytes - at;
		memcpy(to + at, piece, length);
	}
}

void fpu_vec_write(struct cpu *cpu, unsigned n, const void *data, unsigned bytes)
{
	const u8 *from = data;
	unsigned length, component;

	for (unsigned at = 0; at < bytes; at += length) {
		u8 *piece = vector_piece(cpu, n, at, &length, &component);

		length = length < bytes - at ? length : bytes - at;
		memcpy(piece, from + at, length);
		fpu_dirty(cpu, XSTATE_MASK(component));
	}
}

void fpu_vec_write_clear(struct cpu *cpu, unsigned n, const void *data, unsigned bytes)
{
	unsigned longest = host.mask & XSTATE_MASK(XSTATE_ZMM_HI256) ? 64 : 32;
	unsigned length, component;

	fpu_vec_write(cpu, n, data, bytes);
	for (unsigned at = bytes; at < longest; at += length) {
		u8 *piece = vector_piece(cpu, n, at, &length, &component);

		memset(piece, 0, length);
	}
}

static unsigned x87_top(struct cpu *cpu)
{
	return fpu_get16(cpu, FX_FSW) >> 11 & 7;
}

// The image holds ST(i); MMX registers are the physical ones.
u64 fpu_mmx_read(struct cpu *cpu, unsigned n)
{
	return *(u64 *)&cpu->fpstate[FX_ST + ((n - x87_top(cpu)) & 7) * 16];
}

void fpu_mmx_enter(struct cpu *cpu)
{
	unsigned top = x87_top(cpu);
	u8 physical[8][16];

	for (unsigned i = 0; i < 8; i++)
		memcpy(physical[(top + i) & 7], &cpu->fpstate[FX_ST + i * 16], 16);
	memcpy(&cpu->fpstate[FX_ST], physical, sizeof(physical));
	fpu_set16(cpu, FX_FSW, fpu_get16(cpu, FX_FSW) & ~(7u << 11));
	fpu_set16(cpu, FX_FTW, 0xff);
	fpu_dirty(cpu, XSTATE_MASK(XSTATE_X87));
}
