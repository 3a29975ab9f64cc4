// SPDX-License-Identifier: MIT
// Lockstep: random instruction sequences executed by the host's silicon and by our processor (both
// grains) from the same state at the same linear addresses, and compared completely.
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

// The data window: pages 0..2 may be written, page 3 only read; nothing is mapped around it.
// The code window: two pages, readable and executable; nothing around it.
#define DATA_BASE 0x10000000ull
#define DATA_PAGES 4
#define DATA_RW_PAGES 3
#define DATA_SIZE (DATA_PAGES * 4096ull)
#define DATA_RW_SIZE (DATA_RW_PAGES * 4096ull)
#define CODE_BASE 0x2f450000ull
#define CODE_PAGES 2
#define CODE_SIZE (CODE_PAGES * 4096ull)
#define GS_BASE (DATA_BASE + 0x1000)

#define XSAVE_MAX 2816
#define MAX_INSNS 8

// Linux's selectors, so that stored selectors and pushed ones are equal.
#define USER_CS64 0x33
#define USER_CS32 0x23
#define USER_DS 0x2b

struct state {
	u64 gpr[16]; // in the order of encoding
	u64 rip, rflags;
	u32 vector; // NO_VECTOR: never came to an end; see `ended`
	u32 error;
	u64 cr2;
	u16 cs, ss;
	const char *ended; // NULL: by an exception; else what happened instead
	u8 xsave[XSAVE_MAX] __attribute__((aligned(64))); // standard format
};

struct generated_insn {
	u8 offset, length; // in program.code
	u16 class;
	u32 form;
};

// With --segments, 32-bit code runs in segments of an LDT: limits, expand-down and read-only data, stacks
// of 16 bits.
enum { LDT_DS = 1, LDT_ES, LDT_SS, LDT_CS, LDT_SEGMENTS, // and more for far transfers:
       LDT_CONFORMING = LDT_SEGMENTS, LDT_ABSENT_CODE, LDT_ABSENT_DATA, LDT_CODE16, LDT_EXECUTE_ONLY, LDT_DATA16,
       LDT_ALL };
#define LDT_SELECTOR(n) ((n) << 3 | 7u)
struct ldt_segment {
	u32 base, limit; // limit as in the descriptor
	bool pages, big, expand_down, read_only, code, conforming, absent; // G, D/B; of code: execute-only
};

struct program {
	u64 seed, index;
	bool mode32;
	bool code16; // 16-bit code: segments, too
	bool segments;
	bool far; // a far transfer: segments, too, in 64-bit code beside its own
	struct ldt_segment ldt[LDT_ALL];
	int class;
	unsigned count;
	struct generated_insn insn[MAX_INSNS];
	u8 code[MAX_INSNS * 16 + 16];
	unsigned size;
	// Memory whose contents are the implementation's own: x87 pointers in stored images...
	struct { u16 from, to; } ignored[2 * MAX_INSNS];
	unsigned ignored_count;
	bool images;   // has operands of many bytes: the order of their accesses, so CR2, differs
	bool compares; // has repeated CMPS or SCAS: whether one that faults changed the flags differs
	bool pops_all; // has POPA: which registers one that faults has loaded differs
	bool gs;       // has an operand in GS, whose base is not 0
	bool masked; // has gathers or masked stores: CR2 and what a faulting one did are its own
	u64 start; // linear address of the first instruction
	struct state state; // where execution begins
	u8 data[DATA_SIZE] __attribute__((aligned(64))); // and with this memory
};

// ---- random numbers ----
struct rng {
	u64 state;
};

static inline u64 rnd(struct rng *rng)
{
	u64 z = rng->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline u64 below(struct rng *rng, u64 n)
{
	return (u32)rnd(rng) * n >> 32;
}

static inline bool chance(struct rng *rng, unsigned percent)
{
	return below(rng, 100) < percent;
}

// ---- classes.c: which instructions take part ----
struct instruction_class {
	const char *name, *what;
	u8 modes; // 1: 64-bit, 2: 32-bit, 4: with EFLAGS.AC at times
	u8 flavour; // enum flavour: what registers and memory like to hold
};
enum flavour { FLAVOUR_INT, FLAVOUR_X87, FLAVOUR_FLOAT };
extern const struct instruction_class classes[];
extern const unsigned class_count;
int class_by_name(const char *name); // -1: no such class
// The class an instruction belongs to, or -1 and *why it cannot be compared with the host natively.
int classify(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, const char **why);
void classes_list(void);

// ---- templates.c: every encoding of the instructions of a class, found by asking the decoder ----
enum template_encoding { ENCODING_LEGACY, ENCODING_VEX, ENCODING_EVEX };
enum template_modrm { MODRM_NONE, MODRM_MEM, MODRM_REG };
struct template {
	u8 encoding, map, opcode, pp, w, l;
	u8 modrm;	 // enum template_modrm
	u8 reg_mask, rm_mask;
	bool lock;
	u16 mnemonic;
};
struct mnemonic_templates {
	u16 mnemonic;
	unsigned count;
	struct template *list;
};
struct class_templates {
	unsigned count;
	struct mnemonic_templates *list;
};
void templates_build(bool mode32);
// Writes opcode, ModRM and what precedes them, all bits that the template leaves open from rng.
// The rest of the 15 bytes must already be random. Returns the offset of the byte behind ModRM.
unsigned template_encode(const struct template *t, u8 *bytes, struct rng *rng, bool mode32, unsigned form);
extern struct class_templates class_templates[];
extern ZydisDecoder decoder; // of the mode under test
bool decode(const u8 *bytes, ZydisDecodedInstruction *insn, ZydisDecodedOperand *op); // 15 bytes

// ---- generate.c ----
void generate(struct program *program, int class, u64 seed, u64 index, bool mode32);

// ---- code16.c ----
void generate16(struct program *program, u64 seed, u64 index);

// ---- far.c ----
void generate_far(struct program *program, u64 seed, u64 index, bool mode32);

// ---- coverage.c ----
u32 coverage_form(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, int class);
void coverage_count(u32 form, bool completed);
void coverage_print(bool every_form);

// ---- segments.c ----
void segments_random(struct program *program, struct rng *rng);
void segments_load_native(const struct program *program); // DS and ES too; 64-bit code does not care

// ---- native.c ----
void native_init(bool mode32);
// Runs it on the host; the data window holds the memory afterwards.
void native_run(const struct program *program, struct state *end);
extern u8 *const native_data;

// ---- guest.c ----
struct engine;
struct engine *engine_create(bool single_grain, bool mode32);
void engine_run(struct engine *engine, const struct program *program, struct state *end, struct rng *rng);
u8 *engine_data(struct engine *engine);

// ---- compare.c ----
enum { COMPARE_FIP = 1 };
bool states_differ(const struct program *p, const struct state *a, const u8 *data_a, const struct state *b,
		   const u8 *data_b);
void print_difference(const struct program *p, const char *name_a, const struct state *a, const u8 *data_a,
		      const char *name_b, const struct state *b, const u8 *data_b);
void print_program(const struct program *program);
extern bool ignore_fip;
extern unsigned xsave_size;
void xsave_init_sizes(void);

// ---- watchdog (native.c): a sequence that does not end is left after some ticks ----
void watchdog_start(void (*expired)(void *), void *argument);
void watchdog_stop(void);

#endif
