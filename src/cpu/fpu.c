// SPDX-License-Identifier: MIT
// Swaps the guest's vector and x87 state between the host's registers and cpu->fpstate.
//
// Invariants: translated code runs only with the guest's state loaded; C that may use vector
// registers runs only with it unloaded, under the thread's own MXCSR and x87 control word. The
// host's instruction addresses, which x87 instructions of translated code leave in FIP, become
// guest addresses at the moment the state is unloaded, while the code they lie in still exists.
//
// XSAVE and XRSTOR take hundreds of cycles whatever they move. Who uses neither x87 nor AVX-512 (XGETBV(1) tells,
// where there is one) has its vector registers moved one by one.
//
// SDM: "x87 FPU Instruction and Data (Operand) Pointers", "Last Instruction Opcode": FDP and FOP change with
// unmasked exceptions only, see x87_pointers.c. Deviation: hosts that tell FIP with an exception only
// (AMD's) leave the guest with the FIP of its last one.
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
	bool xinuse;		 // XGETBV(1): which components are not in their initial configuration
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
	host.xinuse = r[0] >> 2 & 1;
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

// What XSAVE is needed for.
#define LONG_WAY (XSTATE_MASK(XSTATE_X87) | XSTATE_MASK_AVX512)

// Components in use in the host's registers; all, if the host does not tell.
GENERAL_REGISTERS static u64 components_in_use(void)
{
	u32 low, high;

	if (!host.xinuse)
		return host.mask;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
	return (low | (u64)high << 32) & host.mask;
}

#define EACH_VECTOR(one) \
	one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) \
	one(8) one(9) one(10) one(11) one(12) one(13) one(14) one(15)
#define STORE_LOW(n) "vmovups %%xmm" #n ", 16*" #n "(%0); "
#define STORE_BOTH(n) STORE_LOW(n) "vextractf128 $1, %%ymm" #n ", 16*" #n "(%1); "
#define LOAD_LOW(n) "vmovups 16*" #n "(%0), %%xmm" #n "; "
#define LOAD_BOTH(n) LOAD_LOW(n) "vinsertf128 $1, 16*" #n "(%1), %%ymm" #n ", %%ymm" #n "; "

// Lower halves, and upper halves unless `high` is NULL: then they are zero.
GENERAL_REGISTERS static void store_vectors(u8 *low, u8 *high)
{
	if (high)
		__asm__ volatile(EACH_VECTOR(STORE_BOTH) : : "r"(low), "r"(high) : "memory");
	else
		__asm__ volatile(EACH_VECTOR(STORE_LOW) : : "r"(low) : "memory");
}

GENERAL_REGISTERS static void load_vectors(const u8 *low, const u8 *high)
{
	if (high)
		__asm__ volatile(EACH_VECTOR(LOAD_BOTH) : : "r"(low), "r"(high) : "memory");
	else
		__asm__ volatile("vzeroupper; " EACH_VECTOR(LOAD_LOW) : : "r"(low) : "memory");
}

// Puts components into their initial configuration.
GENERAL_REGISTERS static void clear_components(u64 components)
{
	static const u8 initial[XSTATE_HEADER_OFFSET + XSTATE_HEADER_SIZE] __attribute__((aligned(64)));

	__asm__ volatile("xrstor64 (%0)" : : "r"(initial), "a"((u32)components), "d"((u32)(components >> 32))
			 : "memory");
}

// The control words that C code of this thread expects, and an empty x87 stack.
GENERAL_REGISTERS static void thread_control_words(struct cpu *cpu, bool x87)
{
	if (x87)
		__asm__ volatile("fninit");
	__asm__ volatile("fldcw %0; vzeroupper; ldmxcsr %1" : : "m"(cpu->host_fcw), "m"(cpu->host_mxcsr));
}

// A client's calls: see fpu.h. XSAVEC leaves out what is in its initial configuration, as the upper halves of
// the vector registers usually are.
GENERAL_REGISTERS void fpu_thread_save(struct fpu_thread_state *state)
{
	volatile u64 *header = (volatile u64 *)(state->area + XSTATE_HEADER_OFFSET);

	state->in_use = components_in_use();
	if (!(state->in_use & LONG_WAY)) {
		__asm__ volatile("stmxcsr %0" : "=m"(state->mxcsr));
		store_vectors(state->area, state->in_use & XSTATE_MASK(XSTATE_AVX) ? state->area + 256 : NULL);
		return;
	}
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
	u64 strange;

	if (state->in_use & LONG_WAY) {
		host_xrstor(state->area);
		return;
	}
	strange = components_in_use() & LONG_WAY;
	if (strange)
		clear_components(strange);
	load_vectors(state->area, state->in_use & XSTATE_MASK(XSTATE_AVX) ? state->area + 256 : NULL);
	__asm__ volatile("ldmxcsr %0" : : "m"(state->mxcsr));
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
	u64 *fields = (u64 *)cpu->fpstate, data = fields[2];
	u16 opcode;

	if (fields[1] == loaded[1] || !fields[1]) {
		fpu_set16(cpu, FX_FOP, loaded[0] >> 48);
		fields[1] = loaded[1];
		fields[2] = loaded[2];
		return;
	}
	fields[1] = jit_guest_rip_of_host(cpu, fields[1]);
	fpu_set16(cpu, FX_FOP, loaded[0] >> 48);
	fields[2] = loaded[2];
	if (cpu->jit && (fpu_get16(cpu, FX_FSW) & FSW_ES)) {
		x87_exception_pointers(cpu, fields[1], data, &opcode, &fields[2]);
		fpu_set16(cpu, FX_FOP, opcode);
	}
}

static bool x87_initial(const struct cpu *cpu)
{
	const u64 *words = (const u64 *)cpu->fpstate;
	u64 all = (words[0] ^ FCW_INIT) | words[1] | words[2];

	for (unsigned i = FX_ST / 8; i < FX_XMM / 8; i++)
		all |= words[i];
	return !all;
}

GENERAL_REGISTERS void cpu_fpu_load(struct cpu *cpu)
{
	u64 bv = fpu_xstate_bv(cpu), strange;

	if (cpu->fpu_loaded)
		return;
	cpu->fpu_loaded = true;
	if (!host.xinuse || (bv & LONG_WAY)) {
		host_xrstor(cpu->fpstate);
		return;
	}
	strange = components_in_use() & LONG_WAY;
	if (strange)
		clear_components(strange);
	load_vectors(cpu->fpstate + FX_XMM,
		     bv & XSTATE_MASK(XSTATE_AVX) ? cpu->fpstate + host.offset[XSTATE_AVX] : NULL);
	__asm__ volatile("ldmxcsr %0" : : "m"(cpu->fpstate[FX_MXCSR]));
}

// With the guest's x87 and AVX-512 state initial, before as now: their places in the image are as they were.
GENERAL_REGISTERS static void unload_vectors(struct cpu *cpu, u64 in_use)
{
	u8 *high = cpu->fpstate + host.offset[XSTATE_AVX];

	if (!(in_use & XSTATE_MASK(XSTATE_AVX))) {
		for (unsigned i = 0; i < 256 / 8; i++)
			((volatile u64 *)high)[i] = 0;
		high = NULL;
	}
	store_vectors(cpu->fpstate + FX_XMM, high);
	__asm__ volatile("stmxcsr %0" : "=m"(cpu->fpstate[FX_MXCSR]));
	fpu_set_xstate_bv(cpu, in_use);
}

GENERAL_REGISTERS void cpu_fpu_unload(struct cpu *cpu)
{
	const volatile u64 *fields = (const volatile u64 *)cpu->fpstate;
	u64 loaded[3], in_use;

	if (!cpu->fpu_loaded)
		return;
	cpu->fpu_loaded = false;
	in_use = components_in_use();
	if (!((in_use | fields[XSTATE_HEADER_OFFSET / 8]) & LONG_WAY)) {
		unload_vectors(cpu, in_use);
		thread_control_words(cpu, false);
		return;
	}
	for (unsigned i = 0; i < 3; i++)
		loaded[i] = fields[i];
	host_xsave(cpu->fpstate);
	thread_control_words(cpu, true);
	hide_host_pointers(cpu, loaded);
	// FNINIT leaves x87 in use to the processor. Empty registers that hold nothing are as good as none.
	if (x87_initial(cpu))
		fpu_set_xstate_bv(cpu, fpu_xstate_bv(cpu) & ~XSTATE_MASK(XSTATE_X87));
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
