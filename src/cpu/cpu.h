// SPDX-License-Identifier: MIT
// struct cpu: the architectural state of one virtual processor, and what its parts say to each
// other. Whenever C code sees a struct cpu, it is the architectural state at an instruction
// boundary (of the instruction being executed, for a handler called from translated code).
//
// Translated code runs with the host's RSP pointing at struct cpu, so its first fields have
// short displacements; their offsets are known to src/cpu/jit_*.c and checked there.
#ifndef CETKVM_CPU_CPU_H
#define CETKVM_CPU_CPU_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

struct cpu;
struct insn;
struct jit;

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

enum vector {
	VECTOR_DE, VECTOR_DB, VECTOR_NMI, VECTOR_BP, VECTOR_OF, VECTOR_BR, VECTOR_UD, VECTOR_NM,
	VECTOR_DF, VECTOR_TS = 10, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF, VECTOR_MF = 16,
	VECTOR_AC, VECTOR_MC, VECTOR_XM, VECTOR_VE, VECTOR_CP,
};

// RFLAGS
#define FLAG_CF (1u << 0)
#define FLAG_PF (1u << 2)
#define FLAG_AF (1u << 4)
#define FLAG_ZF (1u << 6)
#define FLAG_SF (1u << 7)
#define FLAG_TF (1u << 8)
#define FLAG_IF (1u << 9)
#define FLAG_DF (1u << 10)
#define FLAG_OF (1u << 11)
#define FLAG_IOPL (3u << 12)
#define FLAG_NT (1u << 14)
#define FLAG_RF (1u << 16)
#define FLAG_VM (1u << 17)
#define FLAG_AC (1u << 18)
#define FLAG_VIF (1u << 19)
#define FLAG_VIP (1u << 20)
#define FLAG_ID (1u << 21)
#define FLAGS_ARITH (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)
#define FLAGS_DEFINED 0x3f7fd7u // all that are not reserved, and bit 1

#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_EM (1u << 2)
#define CR0_TS (1u << 3)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_AM (1u << 18)
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CR0_PG (1u << 31)

#define CR4_VME (1u << 0)
#define CR4_PVI (1u << 1)
#define CR4_TSD (1u << 2)
#define CR4_DE (1u << 3)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_MCE (1u << 6)
#define CR4_PGE (1u << 7)
#define CR4_PCE (1u << 8)
#define CR4_OSFXSR (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_UMIP (1u << 11)
#define CR4_LA57 (1u << 12)
#define CR4_VMXE (1u << 13)
#define CR4_SMXE (1u << 14)
#define CR4_FSGSBASE (1u << 16)
#define CR4_PCIDE (1u << 17)
#define CR4_OSXSAVE (1u << 18)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define CR4_PKE (1u << 22)
#define CR4_CET (1u << 23)
#define CR4_PKS (1u << 24)

#define EFER_SCE (1u << 0)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NX (1u << 11)

// A segment register: attributes as bits 55:40 of a descriptor (type 3:0, S 4, DPL 6:5, P 7,
// AVL 12, L 13, D/B 14, G 15), plus SEG_UNUSABLE for a null selector. limit is in bytes.
struct segment {
	u64 base;
	u32 limit;
	u32 attributes;
	u16 selector;
};
#define SEG_TYPE 0xfu
#define SEG_S (1u << 4)
#define SEG_DPL_SHIFT 5
#define SEG_P (1u << 7)
#define SEG_AVL (1u << 12)
#define SEG_L (1u << 13)
#define SEG_DB (1u << 14)
#define SEG_G (1u << 15)
#define SEG_UNUSABLE (1u << 16)

struct table_register {
	u64 base;
	u32 limit;
};

// Kinds of memory access. ACCESS_USER: checked as a CPL-3 access. Without it: supervisor.
// ACCESS_IMPLICIT: implicit supervisor access (descriptor tables, TSS): SMAP ignores EFLAGS.AC.
enum access {
	ACCESS_READ = 0,
	ACCESS_WRITE = 1,
	ACCESS_FETCH = 2,
	ACCESS_SS = 4, // shadow-stack access
	ACCESS_USER = 8,
	ACCESS_IMPLICIT = 16,
};

// #PF error code
#define PF_P (1u << 0)
#define PF_W (1u << 1)
#define PF_U (1u << 2)
#define PF_RSVD (1u << 3)
#define PF_I (1u << 4)
#define PF_PK (1u << 5)
#define PF_SS (1u << 6)

// Who asks: the guest's own instruction, or the host through an ioctl (host-initiated).
enum who { BY_GUEST, BY_HOST };

// Requests to a running vCPU, set by any thread with cpu_request(), seen at the next block entry.
enum cpu_request {
	REQ_IRQ = 1u << 0,	  // the interrupt controller may have something (ops->interrupt)
	REQ_NMI = 1u << 1,	  // cpu->nmi_pending was raised
	REQ_KICK = 1u << 2,	  // leave cpu_run() with CPU_EXIT_KICK
	REQ_INIT_SIPI = 1u << 3,  // INIT or SIPI is waiting (ops->init_sipi)
	REQ_TLB_FLUSH = 1u << 4,  // memory map changed: drop every cached translation
	REQ_CODE = 1u << 5,	  // somebody writes to pages that hold code (jit_code_*)
	REQ_TIMER = 1u << 6,	  // ops->timer
	REQ_EVENT = 1u << 7,	  // internal: an exception, a step, a shadow... look in C
	REQ_SMI = 1u << 8,	  // cpu->smi_pending was set
};

// Why cpu_run() came back. For CPU_EXIT_IO and CPU_EXIT_MMIO nothing has been committed: the
// callee of cpu_ops said CPU_OPS_EXIT; the instruction starts anew at the next cpu_run().
enum cpu_exit {
	CPU_EXIT_KICK = 1,  // REQ_KICK
	CPU_EXIT_OPS,	    // a cpu_ops callback returned CPU_OPS_EXIT; it knows why
	CPU_EXIT_HLT,	    // HLT executed; RIP is behind it; cpu->halted is set
	CPU_EXIT_SHUTDOWN,  // triple fault
	CPU_EXIT_FAULT,	    // the host cannot access guest memory: cpu->fault_hva (-EFAULT)
	CPU_EXIT_DEBUG,	    // KVM_EXIT_DEBUG: cpu->debug_exit
	CPU_EXIT_EMULATION, // instruction cannot be executed (KVM_INTERNAL_ERROR_EMULATION)
};

enum cpu_ops_result { CPU_OPS_DONE = 0, CPU_OPS_EXIT = 1, CPU_OPS_GP = 2 };

enum page_flags { PAGE_READONLY = 1, PAGE_LOG_DIRTY = 2 };

// The processor's surroundings; src/kvm fills it in. All are called on the vCPU's own thread.
struct cpu_ops {
	// Host address of the 4-KiB guest-physical page `gpa` (bits 11:0 zero), or NULL for memory
	// I/O, in the address space of system-management mode when cpu->smm. *flags: enum
	// page_flags. PAGE_LOG_DIRTY: writes must be reported with mark_dirty() once per page,
	// before the first write, until the next REQ_TLB_FLUSH.
	void *(*map)(void *opaque, u64 gpa, unsigned *flags);
	void (*mark_dirty)(void *opaque, u64 gpa);
	// Memory I/O within one page. len 1..8 (or up to 64 for vector operands; ops may split).
	enum cpu_ops_result (*mmio)(void *opaque, u64 gpa, void *data, unsigned len, bool write);
	// Port I/O of `count` items of `size` bytes. For IN the callee fills data.
	enum cpu_ops_result (*pio)(void *opaque, u16 port, void *data, unsigned size,
				   unsigned count, bool write);
	// MSRs that belong to the surroundings: the TSC (writes: it has this value now), APIC base,
	// x2APIC 0x800..0x8ff, TSC deadline, kvmclock and other KVM MSRs, everything the processor
	// does not know. CPU_OPS_GP: no such MSR or bad value.
	enum cpu_ops_result (*rdmsr)(void *opaque, u32 msr, u64 *value, enum who who);
	enum cpu_ops_result (*wrmsr)(void *opaque, u32 msr, u64 value, enum who who);
	// RDMSR and WRMSR of the guest, in place of cpu_rdmsr() and cpu_wrmsr(), which it calls for
	// what it lets pass; the same results. NULL: nobody is in between.
	int (*guest_msr)(void *opaque, u32 msr, u64 *value, bool write);
	// Vector of the highest deliverable maskable interrupt, or -1. `acknowledge` takes it.
	int (*interrupt)(void *opaque, bool acknowledge);
	u64 (*get_cr8)(void *opaque);
	void (*set_cr8)(void *opaque, u64 tpr);
	u64 (*tsc)(void *opaque); // the guest's TSC
	// INIT/SIPI arrived while running: may call cpu_reset(). Returns false to leave cpu_run()
	// with CPU_EXIT_OPS (waiting for SIPI).
	bool (*init_sipi)(void *opaque);
	void (*timer)(void *opaque);
	// VMCALL or VMMCALL; may raise.
	enum cpu_ops_result (*hypercall)(void *opaque, bool vmmcall);
};

// XSAVE image: standard layout of what the host has for the guest's vector state, see fpu.h.
#define CPU_FPSTATE_SIZE 11264

struct cpu_cpuid_entry {
	u32 function, index, flags, eax, ebx, ecx, edx;
};
#define CPU_MAX_CPUID 256

// One TLB entry; see tlb.h. Tags hold the page's linear address, or TLB_NONE().
struct tlb_entry {
	u64 read, write; // tag for loads and stores
	u64 host;	 // host address of the page
	u64 gpa;	 // guest-physical address of the page | TLB_GLOBAL
};

enum { TLB_K_BITS = 12, TLB_U_BITS = 12, TLB_SS_BITS = 6, TLB_CODE_BITS = 8 };

struct jump_entry {
	u64 rip, entry;
};
enum { SITE_PAGES = 64, JUMP_BITS = 12, JUMP_IBT_BITS = 10 };

// Number of entries of all TLBs of a vCPU together, and what tlb.c notes about them.
#define TLB_ENTRIES \
	((1 << TLB_K_BITS) + (1 << TLB_U_BITS) + 2 * (1 << TLB_SS_BITS) + \
	 2 * (1 << TLB_CODE_BITS))
#define TLB_AC_MAX 32
#define PAGE_CACHE_SIZE 64 // power of 2
struct page_cache_entry {
	u64 gpa; // of the page; 1: empty
	u8 *host;
	unsigned flags; // enum page_flags, and the page was reported dirty
};
struct tlb_notes {
	// Which entries were filled since the last flush, one bit an entry, and which words of
	// that have a bit set: a flush costs what was filled.
	u64 filled[2][(TLB_ENTRIES + 63) / 64];	// [0] of one address space, [1] global pages
	u64 filled_words[2][(TLB_ENTRIES / 64 + 63) / 64];
	// Which large pages entries were cut from, and which of those held code: sets of hashes.
	// INVLPG has to look for more than one entry there. [lower or upper half of the address
	// space][2 MiB or 1 GiB]
	struct { u64 data[8], code[4]; } large[2][2];
	u16 ac_entries[TLB_AC_MAX]; // numbers of the first tlb_ac_count made under EFLAGS.AC
	bool protection_keys; // there are entries that depend on PKRU by a key other than 0
	// Answers of ops->map: [0] for paging structures, [1] for what they map.
	struct page_cache_entry pages[2][PAGE_CACHE_SIZE];
};

struct pending_event {
	bool valid;	   // an exception waits for delivery
	bool has_error;
	bool soft;	   // INT n, INT3, INTO, INT1: pushes RIP behind the instruction
	bool injected;	   // by user space (KVM_SET_VCPU_EVENTS)
	bool for_guest;	   // by user space, whose debugger does not want it
	bool underway;	   // delivery has begun; cpu_abort() may have cut it short (event.c only)
	u8 vector;
	u32 error;
	u64 payload;	   // CR2 for #PF, DR6 bits for #DB
};

struct cpu {
	// ---- known to translated code by offset (jit_layout.c) ----
	u64 gpr[16];		 // 0x000 spilled while translated code runs
	volatile u32 request;	 // 0x080 enum cpu_request
	u32 arith;		 // 0x084 arithmetic flags as LAHF; SETO AL leave them in AX
	u64 rip_base;		 // 0x088 RIP (EIP) of the start of the current code page
	u64 ssp;		 // 0x090
	u64 temp[4];		 // 0x098
	u64 temp_unused;	 // 0x0b8
	u64 host_rsp;		 // 0x0c0
	u64 jit_return;		 // 0x0c8
	u64 jit_arg;		 // 0x0d0
	u64 rip;		 // 0x0d8 of the current instruction; between two of the next
	u64 next_rip;		 // 0x0e0 behind the current instruction, when a handler runs
	u64 rflags;		 // 0x0e8 all but the six arithmetic flags, which are in arith
	struct segment seg[SEG_COUNT]; // 0x0f0
	struct tlb_entry tlb_k[1 << TLB_K_BITS] __attribute__((aligned(64))); // supervisor
	struct tlb_entry tlb_u[1 << TLB_U_BITS];   // user
	struct tlb_entry tlb_ssk[1 << TLB_SS_BITS]; // shadow-stack accesses, supervisor
	struct tlb_entry tlb_ssu[1 << TLB_SS_BITS]; // shadow-stack accesses, user
	// Fetches: [0] supervisor, [1] user; the tag is in .read.
	struct tlb_entry tlb_code[2][1 << TLB_CODE_BITS];
	// Targets of jumps by RIP, [0] supervisor, [1] user; jump_ibt: of tracked indirect
	// branches, behind the ENDBR. Filled and emptied by the translator.
	struct jump_entry jump[2][1 << JUMP_BITS];
	struct jump_entry jump_ibt[2][1 << JUMP_IBT_BITS];
	u32 irq_wait;		 // an interrupt waits for RFLAGS.IF: STI and friends must look
	u32 tlb_ac_count;	 // entries for user pages in tlb_k, made under EFLAGS.AC (SMAP)

	// The page that each privilege class last wrote through RSP, and its host address: most
	// stack accesses hit it. A part of the TLB: see tlb_forget_stack().
	struct { u64 tag, host; } stack_page[2];
	// The page each access of a loop last hit, by privilege class and by load or store; places
	// are shared round robin. Forgotten with stack_page.
	struct { u64 tag, host; } site_page[2][2][SITE_PAGES];

	// ---- the rest is C's ----
	u8 cpl;
	bool halted;
	bool interrupt_shadow;	// behind STI, MOV SS or POP SS: no interrupt for one instruction
	bool mov_ss_shadow;	// it was MOV/POP SS: also holds back #DB
	bool nmi_masked;
	bool smm, smm_inside_nmi; // the latter: the SMI came while NMIs were masked
	bool fpu_loaded;	// guest vector state is in the host's registers
	_Atomic u32 nmi_pending; // 0..2
	_Atomic u32 smi_pending; // 0..1
	u64 cr0, cr2, cr3, cr4, xcr0;
	u64 efer;
	u64 dr[4], dr6, dr7;
	struct table_register gdtr, idtr;
	u64 pdptr[4];		// PAE paging
	u32 pkru;

	// CET: the one home of each (facts.md A2). pl_ssp[3] is IA32_PL3_SSP.
	u64 u_cet, s_cet, pl_ssp[4], int_ssp_tab;
	u64 last_branch_from;	// RIP of the branch or event that last armed a tracker: --trace cp

	// MSRs the processor itself acts on
	u64 star, lstar, cstar, sfmask, kernel_gs_base;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 tsc_aux, tsc_adjust, pat, xss, misc_enable, smbase, smi_count, debugctl;
	u64 xfd, xfd_err;
	u64 msr_values[192];	// everything else, by row of the table in msr.c

	struct tlb_notes tlb_notes;

	bool debug_taken;	// INT1 has delivered #DB: what MOV SS held back goes with it
	u32 debug_raised;	// DR6 bits of the #DB fault being raised, see debug_raise()
	struct pending_event event;
	// An interrupt that the controllers handed over, or user space injected, until it is
	// delivered: a delivery that cpu_abort() cuts short (`underway`) begins anew. An NMI also.
	struct { bool valid, underway, nmi; u8 vector; } external;
	unsigned delivering;	// depth: 0 no, 1 exception being delivered, 2 double fault
	u8 delivering_vector;

	// CPUID as the guest sees it, and the answers drawn from it (src/cpu/cpuid.c)
	struct cpu_cpuid_entry cpuid[CPU_MAX_CPUID];
	unsigned cpuid_count;
	u32 features[16];	// by enum feature_word: guest_has()
	u8 phys_bits, linear_bits; // linear_bits: 48 or 57 as CR4.LA57 stands
	u64 xcr0_supported, xss_supported;
	u64 cr4_reserved;

	u32 guest_debug;	// KVM_GUESTDBG_*
	u64 guest_debug_dr[4], guest_debug_dr7;
	// An instruction runs under data or I/O breakpoints: C notes what its accesses meet
	// (debug_note_data()).
	bool watch_data;
	u32 watch_bits; // DR6 bits
	struct { u32 exception; u64 pc, dr6, dr7; } debug_exit;
	u64 fault_hva;
	// No single-step #DB behind the instruction: it delivered an event, or SYSCALL cleared TF.
	bool step_canceled;
	bool single_grain;	// one instruction a block, always
	bool trace_cp;
	// KVM's quirks, each the processor's own rule when set: MONITOR and MWAIT are #UD without
	// their CPUID bit; the bit follows IA32_MISC_ENABLE. src/kvm sets them.
	_Atomic bool monitor_faults, monitor_by_msr;
	enum cpu_exit exit;

	// The instruction at cpu->rip left with CPU_EXIT_OPS and starts anew: cpu_ops callbacks
	// find the accesses it has already made completed. Set by src/kvm before cpu_run(), which
	// then first executes this one instruction, before it looks at any request or interrupt,
	// and clears it when the instruction has completed or raised. REP string instructions clear
	// it with each iteration they commit.
	bool replay;

	const struct cpu_ops *ops;
	void *opaque;
	struct jit *jit;
	sigjmp_buf *unwind;	// cpu_abort()/cpu_raise() jump here; set by cpu_run()

	// AMX: XTILECFG (all 0: TILES_CONFIGURED is 0) and XTILEDATA. Not in use: tile[] is all 0.
	u8 tile_config[64];
	bool tile_data_in_use;
	u8 tile[8][16][64] __attribute__((aligned(64)));
	u8 fpstate[CPU_FPSTATE_SIZE] __attribute__((aligned(64)));
	u32 host_mxcsr;		// the thread's own, see cpu_fpu_enter()
	u16 host_fcw;
};

// ---- arithmetic flags <-> RFLAGS ----
static inline u64 cpu_rflags(const struct cpu *cpu)
{
	u32 ah = cpu->arith >> 8, of = cpu->arith & 1;

	return (cpu->rflags & ~(u64)FLAGS_ARITH) | (ah & (FLAGS_ARITH & 0xff)) | of << 11 | 2;
}

static inline void cpu_set_arith(struct cpu *cpu, u64 rflags)
{
	cpu->arith = (rflags & (FLAGS_ARITH & 0xff)) << 8 | (rflags >> 11 & 1);
}

static inline void cpu_set_rflags(struct cpu *cpu, u64 rflags)
{
	cpu_set_arith(cpu, rflags);
	cpu->rflags = (rflags & ~(u64)FLAGS_ARITH) | 2;
}

// ---- modes ----
static inline bool cpu_long_mode(const struct cpu *cpu)
{
	return cpu->efer & EFER_LMA;
}

static inline bool cpu_64bit(const struct cpu *cpu)
{
	return cpu_long_mode(cpu) && (cpu->seg[SEG_CS].attributes & SEG_L);
}

static inline bool cpu_protected(const struct cpu *cpu)
{
	return cpu->cr0 & CR0_PE;
}

static inline bool cpu_v86(const struct cpu *cpu)
{
	return cpu->rflags & FLAG_VM;
}

static inline unsigned cpu_access_of_cpl(const struct cpu *cpu)
{
	return cpu->cpl == 3 ? ACCESS_USER : 0;
}

static inline bool cpu_canonical(const struct cpu *cpu, u64 address)
{
	unsigned shift = 64 - cpu->linear_bits;

	return (u64)((s64)(address << shift) >> shift) == address;
}

// The same for what goes into a register: MSRs, bases of segments and descriptor tables, and what
// INVPCID names take the width that the processor can have, whatever CR4.LA57 is; using such an
// address checks it again. (CR4.LA57 cannot be changed in 64-bit mode: bases are loaded before.)
bool cpu_canonical_base(const struct cpu *cpu, u64 address);

// ---- leaving the current instruction (none of these returns) ----
// Raise an exception at the current instruction (RIP = cpu->rip; nothing committed).
void cpu_raise(struct cpu *cpu, enum vector vector) __attribute__((noreturn));
void cpu_raise_error(struct cpu *cpu, enum vector vector, u32 error) __attribute__((noreturn));
void cpu_raise_pf(struct cpu *cpu, u64 linear, u32 error) __attribute__((noreturn));
// Leave cpu_run() at the current instruction's boundary (RIP = cpu->rip, nothing committed).
void cpu_abort(struct cpu *cpu, enum cpu_exit exit) __attribute__((noreturn));
// For cpu_ops results: returns for DONE, raises #GP(0), or aborts with CPU_EXIT_OPS.
void cpu_check_ops(struct cpu *cpu, enum cpu_ops_result result);

static inline void cpu_ud(struct cpu *cpu) { cpu_raise(cpu, VECTOR_UD); }
static inline void cpu_gp0(struct cpu *cpu) { cpu_raise_error(cpu, VECTOR_GP, 0); }

// ---- running (cpu_run.c, owned by the translator) ----
// Creates a vCPU in RESET state. NULL with errno set (ENOMEM). `vm` is shared by all vCPUs of a VM.
struct vm_code;
struct vm_code *vm_code_create(void);
void vm_code_destroy(struct vm_code *vm);
struct cpu *cpu_create(const struct cpu_ops *ops, void *opaque, struct vm_code *vm);
void cpu_destroy(struct cpu *cpu);
// Runs until there is a reason to leave. Must be called with nothing of the caller's at stake in
// vector registers: between cpu_fpu_enter/leave they are the guest's.
enum cpu_exit cpu_run(struct cpu *cpu);
// Thread-safe. Wakes nobody: a sleeping vCPU is src/kvm's business.
static inline void cpu_request(struct cpu *cpu, u32 bits)
{
	__atomic_fetch_or(&cpu->request, bits, __ATOMIC_SEQ_CST);
}
// Writes of the client to guest memory (jit_stale.c). On the vCPU's own thread, before cpu_run():
// the client had control and may have written; `io`: it only completed a port or memory access.
void cpu_client_ran(struct cpu *cpu, bool io);
// Any thread: the client says by an interrupt that a device has written.
void vm_code_client_wrote(struct vm_code *vm);
// Guest-physical addresses mean other memory now: the vCPU's own thread, or while it is not in
// cpu_run().
void cpu_memory_map_changed(struct cpu *cpu);
// State that translated blocks or cached translations depend on has changed (CRs, EFER, segments,
// CPL, CET MSRs, XCR0...): call after changing it in C. Cheap.
void cpu_mode_changed(struct cpu *cpu);

// ---- guest vector state (fpu.c) ----
// Puts the guest's vector and x87 state into cpu->fpstate and marks it not loaded; the host's
// control words (x87 CW, MXCSR) get the values the C ABI expects. After this, any C may be called.
// The state is loaded again when translated code is entered next. Cheap when not loaded.
void cpu_fpu_unload(struct cpu *cpu);

// ---- reset (reset.c) ----
void cpu_reset(struct cpu *cpu, bool init); // RESET, or INIT when `init` (facts.md D7)
void cpu_sipi(struct cpu *cpu, u8 vector);

#endif
