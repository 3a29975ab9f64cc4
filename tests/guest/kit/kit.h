/* SPDX-License-Identifier: MIT */
/*
 * The guest-test kit: a freestanding runtime for guests that test one rule of the processor after
 * another and print TAP on the serial port.
 *
 * The heart is run(): it enters a piece of code (CODE, CODE32, ...) with a chosen privilege level,
 * code size, registers and CET state, and comes back at the first exception or interrupt, whatever
 * it is, with everything about it recorded. A piece of code that simply ends does so by INT 0x20, so
 * "nothing went wrong" is vector DONE. Every gate uses an interrupt stack of its own, for data and
 * for the shadow stack, so that a test may leave both in any state.
 *
 * Memory: the guest lives in the low GiB, identity-mapped with user access, so ring 3 can run any
 * piece of code; map_page() maps single pages elsewhere. Shadow-stack pages are mapped at SS_BASE
 * and USS_BASE; ss_mem() is a plain pointer to what they hold.
 */
#ifndef KIT_H
#define KIT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Selectors of the kit's GDT. The order serves SYSCALL/SYSRET and SYSENTER/SYSEXIT. */
enum {
	CS64 = 0x08,
	DS0 = 0x10,
	CS32 = 0x18, /* 32-bit, ring 0 */
	UCS32 = 0x23,
	UDS = 0x2b,
	UCS64 = 0x33,
	CS64_R1 = 0x39,
	DS_R1 = 0x41,
	CS64_R2 = 0x4a,
	DS_R2 = 0x52,
	CS16 = 0x58,  /* 16-bit, ring 0 */
	DS16 = 0x60,  /* 16-bit stack, ring 0 */
	UCS16 = 0x6b,
	FREE_SEL = 0x80, /* FREE_SEL .. FREE_SEL + 0x78: for the test */
	TSS_SEL = 0x100,
	TSS32_SEL = 0x110,
	GDT_ENTRIES = 64,
};

enum {
	DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11,
	SS = 12, GP = 13, PF = 14, MF = 16, AC = 17, MC = 18, XM = 19, CP = 21, DONE = 0x20,
};

/* Page-table entry bits */
#define PT_P (1ull << 0)
#define PT_W (1ull << 1)
#define PT_U (1ull << 2)
#define PT_A (1ull << 5)
#define PT_D (1ull << 6)
#define PT_PS (1ull << 7)
#define PT_G (1ull << 8)
#define PT_NX (1ull << 63)
#define PT_SS (PT_P | PT_A | PT_D) /* a supervisor shadow-stack page */

/* #PF error code */
#define PF_P 1
#define PF_W 2
#define PF_U 4
#define PF_RSVD 8
#define PF_I 16
#define PF_PK 32
#define PF_SS 64

/* #CP error code */
#define CP_NEAR_RET 1
#define CP_FAR_RET 2
#define CP_ENDBRANCH 3
#define CP_RSTORSSP 4
#define CP_SETSSBSY 5

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_FMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_U_CET 0x6a0
#define MSR_S_CET 0x6a2
#define MSR_PL0_SSP 0x6a4
#define MSR_PL1_SSP 0x6a5
#define MSR_PL2_SSP 0x6a6
#define MSR_PL3_SSP 0x6a7
#define MSR_INT_SSP_TAB 0x6a8
#define MSR_XSS 0xda0

#define CET_SHSTK_EN 1
#define CET_WRSS_EN 2
#define CET_ENDBR_EN 4
#define CET_LEG_IW_EN 8
#define CET_NO_TRACK_EN 16
#define CET_SUPPRESS_DIS 32
#define CET_SUPPRESS (1 << 10)
#define CET_TRACKER (1 << 11)

#define CR0_PE (1u << 0)
#define CR0_TS (1u << 3)
#define CR0_WP (1u << 16)
#define CR0_AM (1u << 18)
#define CR0_PG (1u << 31)
#define CR4_DE (1u << 3)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_PGE (1u << 7)
#define CR4_OSFXSR (1u << 9)
#define CR4_UMIP (1u << 11)
#define CR4_FSGSBASE (1u << 16)
#define CR4_OSXSAVE (1u << 18)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define CR4_CET (1u << 23)

#define FL_CF 1
#define FL_FIXED 2
#define FL_PF 4
#define FL_AF 0x10
#define FL_ZF 0x40
#define FL_SF 0x80
#define FL_TF 0x100
#define FL_IF 0x200
#define FL_DF 0x400
#define FL_OF 0x800
#define FL_NT 0x4000
#define FL_RF 0x10000
#define FL_VM 0x20000
#define FL_AC 0x40000
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

/* What run() enters. run_default() fills it in; the assembly knows the offsets. */
struct run {
	u64 gpr[16];
	u64 rip, rflags, cs, ss;
	u64 s_cet, u_cet;
	u64 pl0_ssp, pl1_ssp, pl2_ssp, pl3_ssp, int_ssp_tab;
	u64 cr4;     /* what to set besides the kit's own; CR4.CET comes from cet */
	u64 cet;     /* CR4.CET */
	u64 outer_ssp; /* SSP on entry to ring 1 or 2 with supervisor shadow stacks */
	u64 no_setssbsy; /* leave SSP alone although S_CET.SHSTK_EN */
	u64 late_pl0_ssp; /* PL0_SSP from after SETSSBSY on, if not 0 */
};

/* How it ended. */
struct outcome {
	u64 gpr[16];
	u64 vector, error, rip, cs, rflags, rsp, ss;
	u64 cr2, s_cet, u_cet, pl3_ssp;
	u64 ssp;  /* at the event: from the frame on the interrupt shadow stack, or PL3_SSP */
	u64 frame[4]; /* what delivery left on the interrupt shadow stack: SSP, LIP, CS, token */
	u64 cr4;
	u64 dr6;
	u16 ds, es, fs, gs;
};

extern struct outcome outcome;

struct run run_default(const void *code);
struct outcome *run(struct run *r);
/* Ready-made: ring 0 with shadow stack; ring 3 with shadow stack; the same with IBT. */
struct run run_ss0(const void *code);
struct run run_ss3(const void *code);
struct run run_ibt0(const void *code);
struct run run_ibt3(const void *code);
struct run run_user(const void *code);

/*
 * Pieces of code, at file scope. Each begins with the ENDBR that run() may need and ends by INT
 * 0x20. Labels inside are ordinary global symbols: declare them with LABEL(name).
 */
#define LABEL(name) extern const u8 name[]
#define CODE_(name, bits, endbr, ...) \
	extern const u8 name[], name##_end[]; \
	__asm__(".pushsection .code, \"ax\", @progbits\n.balign 16\n.code" bits "\n.globl " #name \
		"\n" #name ":\n" endbr "\n" __VA_ARGS__ "\n.globl " #name "_end\n" #name \
		"_end:\nint $0x20\n.code64\n.popsection\n")
#define CODE(name, ...) CODE_(name, "64", "endbr64", __VA_ARGS__)
#define CODE32(name, ...) CODE_(name, "32", "endbr32", __VA_ARGS__)
#define CODE16(name, ...) CODE_(name, "16", "nop", __VA_ARGS__)
#define CODE_BARE(name, ...) CODE_(name, "64", "", __VA_ARGS__)
#define CODE32_BARE(name, ...) CODE_(name, "32", "", __VA_ARGS__)

#define ADDR(p) ((u64)(uintptr_t)(p))

/* Checks. The name says the rule; a failure says place, expression, wanted, got. */
bool kit_check(bool good, const char *file, int line, const char *expr, const char *name);
bool kit_check_eq(u64 got, u64 want, const char *file, int line, const char *expr, const char *name);
bool kit_check_end(u64 vector, u64 error, bool with_error, const char *file, int line,
	const char *name);
#define CHECK(cond, name) kit_check(!!(cond), __FILE__, __LINE__, #cond, name)
#define CHECK_EQ(got, want, name) \
	kit_check_eq((u64)(got), (u64)(want), __FILE__, __LINE__, #got, name)
/* The last run() ended with this vector and error code / without a fault. */
#define CHECK_FAULT(vector, error, name) \
	kit_check_end(vector, error, true, __FILE__, __LINE__, name)
#define CHECK_VECTOR(vector, name) kit_check_end(vector, 0, false, __FILE__, __LINE__, name)
#define CHECK_DONE(name) kit_check_end(DONE, 0, false, __FILE__, __LINE__, name)
void kit_skip(const char *name, const char *why);
void kit_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kit_fail_detail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void kit_exit(int status);
void kit_finish(void);

/* The test itself. */
void test_main(void);

/* Processor access */
extern bool has_shstk, has_ibt;
#define has_cet (has_shstk || has_ibt)
u64 rdmsr(u32 msr);
void wrmsr(u32 msr, u64 value);
bool wrmsr_safe(u32 msr, u64 value); /* true if it did not fault; see outcome */
bool rdmsr_safe(u32 msr, u64 *value);
u64 read_cr0(void), read_cr2(void), read_cr3(void), read_cr4(void);
void write_cr0(u64), write_cr3(u64), write_cr4(u64);
bool write_cr0_safe(u64), write_cr4_safe(u64);
void cpuid(u32 leaf, u32 subleaf, u32 out[4]);
void outb(u16 port, u8 value);
u8 inb(u16 port);
void invlpg(u64 va);

/* Paging */
void map_page(u64 va, u64 pa, u64 flags);  /* flags: PT_*; upper entries are P|W|U */
void unmap_page(u64 va);
u64 *pte_of(u64 va, int level);            /* level 1: the leaf of a 4 KiB page ... 4: PML4E */
void *alloc_page(void);                    /* zeroed, identity-mapped */
u64 alloc_pages(int n);
void flush_tlb(void);

/* Shadow-stack memory: SS_PAGES supervisor pages at SS_BASE, as many user pages at USS_BASE. */
#define SS_PAGES 8
#define SS_BASE 0x90000000ull
#define USS_BASE 0xa0000000ull
#define FREE_VA 0xb0000000ull           /* for the test's own mappings, below 4 GiB ... */
#define FREE_VA_HIGH 0x700000000000ull  /* ... and far above */
u64 *ss_mem(u64 va);                    /* where the content of a shadow-stack address can be written */
/* Where run_default() puts things: a token for SETSSBSY, and the top of the user's stack. */
#define SS_TOKEN (SS_BASE + 0xff8)
#define USS_TOP (USS_BASE + 0xff8)
#define IST_TOKEN (SS_BASE + 0x7 * 0x1000 + 0xff8) /* of the kit's interrupt shadow stack */
#define IST2_TOKEN (SS_BASE + 0x7 * 0x1000 + 0x7f8)
extern u64 kit_ssp_table[8];

/* Descriptors */
struct gate_desc;
void set_gate(int vector, const void *handler, u16 selector, int ist, int dpl, int type);
void reset_gate(int vector); /* back to the kit's */
void set_descriptor(u16 selector, u64 raw);
void set_call_gate(u16 selector, const void *target, u16 cs, int dpl);
u64 make_descriptor(u32 base, u32 limit, u32 access_flags); /* access byte | flags << 12 as in the GDT */
#define GATE_INT 0xe
#define GATE_TRAP 0xf
struct tss64 {
	u32 reserved0;
	u64 rsp[3];
	u64 reserved1;
	u64 ist[7];
	u64 reserved2;
	u16 reserved3, iomap;
} __attribute__((packed));
extern struct tss64 tss;
extern u64 gdt[GDT_ENTRIES];

/* Stacks of the kit for tests: the top address of 4 KiB each. */
u64 stack_top(int which);
#define STACKS 6

void *memset(void *, int, size_t);
void *memcpy(void *, const void *, size_t);
int memcmp(const void *, const void *, size_t);
const char *vector_name(u64 vector);

#endif
