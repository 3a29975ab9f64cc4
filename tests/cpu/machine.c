// SPDX-License-Identifier: MIT
#include "machine.h"

#include "cpu/system.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cpu *cpu;
u8 *memory;
struct raised raised;
bool raise_may_change;

// ---- surroundings ----

static void *map(void *opaque, u64 gpa, unsigned *flags)
{
	*flags = 0;
	return gpa < MEMORY_SIZE ? memory + gpa : NULL;
}

static enum cpu_ops_result mmio(void *opaque, u64 gpa, void *data, unsigned len, bool write)
{
	if (!write)
		memset(data, 0xff, len);
	return CPU_OPS_DONE;
}

static const struct cpu_ops ops = { .map = map, .mmio = mmio };

// ---- memory ----

u64 get(u64 address, unsigned size)
{
	u64 value = 0;

	memcpy(&value, memory + address, size);
	return value;
}

void put(u64 address, u64 value, unsigned size)
{
	memcpy(memory + address, &value, size);
}

// Attributes as struct segment has them.
void set_descriptor(u16 selector, u64 base, u32 limit, u32 attributes)
{
	u64 raw;

	if (attributes & SEG_G)
		limit >>= 12;
	raw = (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)(attributes & 0xf0ff) << 40 |
	      (u64)(limit & 0xf0000) << 32 | (base & 0xff000000) << 32;
	put(GDT + (selector & ~7), raw, 8);
}

void set_gate64(u8 vector, u16 selector, u64 offset, unsigned type, unsigned dpl, unsigned ist)
{
	put(IDT + vector * 16,
	    (offset & 0xffff) | (u64)selector << 16 | (u64)ist << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
		    (offset & 0xffff0000) << 32, 8);
	put(IDT + vector * 16 + 8, offset >> 32, 8);
}

static u64 gate32(u16 selector, u32 offset, unsigned type, unsigned dpl, unsigned params)
{
	return (offset & 0xffff) | (u64)selector << 16 | (u64)params << 32 |
	       (u64)(0x80 | dpl << 5 | type) << 40 | (u64)(offset & 0xffff0000) << 32;
}

void set_gate32(u8 vector, u16 selector, u32 offset, unsigned type, unsigned dpl)
{
	put(IDT + vector * 8, gate32(selector, offset, type, dpl, 0), 8);
}

void set_call_gate32(u16 at, u16 selector, u32 offset, unsigned type, unsigned dpl, unsigned params)
{
	put(GDT + (at & ~7), gate32(selector, offset, type, dpl, params), 8);
}

void set_call_gate64(u16 at, u16 selector, u64 offset, unsigned dpl)
{
	put(GDT + (at & ~7), gate32(selector, offset, TYPE_CALL_GATE32, dpl, 0), 8);
	put(GDT + (at & ~7) + 8, offset >> 32, 8);
}

void map_page(u64 linear, u64 flags)
{
	put(PAGE_TABLES + 0x3000 + (linear >> 12) * 8, (linear & ~0xfffull) | flags, 8);
	tlb_flush_all(cpu);
}

void token(u64 address, bool busy)
{
	put(address, address | busy, 8);
}

// ---- processor ----

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40 };

static void make_page_tables(void)
{
	put(PAGE_TABLES, (PAGE_TABLES + 0x1000) | P | W | U, 8);
	put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | P | W | U, 8);
	put(PAGE_TABLES + 0x2000, (PAGE_TABLES + 0x3000) | P | W | U, 8);
	for (u64 page = 0; page < MEMORY_SIZE; page += 0x1000) {
		u64 flags = P | W | A | D;

		if (page >= 0x30000 && page < 0x34000)
			flags |= U;
		if (page >= 0x40000 && page < 0x48000)
			flags = P | A | D;
		if (page >= 0x50000 && page < 0x54000)
			flags = P | A | D | U;
		if (page == UNMAPPED)
			flags = 0;
		put(PAGE_TABLES + 0x3000 + (page >> 12) * 8, page | flags, 8);
	}
}

enum { CODE = SEG_P | SEG_S | SEG_G | 0xb, RODATA = SEG_P | SEG_S | SEG_DB | SEG_G | 1,
       RWDATA = SEG_P | SEG_S | SEG_DB | SEG_G | 3, DPL1 = 1 << 5, DPL3 = 3 << 5 };

static void make_gdt(bool wide)
{
	set_descriptor(CODE64, 0, ~0u, CODE | SEG_L);
	set_descriptor(DATA, 0, ~0u, RWDATA);
	set_descriptor(USER_CODE32, 0, ~0u, CODE | SEG_DB | DPL3);
	set_descriptor(USER_DATA, 0, ~0u, RWDATA | DPL3);
	set_descriptor(USER_CODE64, 0, ~0u, CODE | SEG_L | DPL3);
	set_descriptor(CODE32, 0, ~0u, CODE | SEG_DB);
	set_descriptor(TSS_SELECTOR, TSS, 0x2ff, SEG_P | TYPE_TSS32_BUSY);
	if (wide)
		put(GDT + TSS_SELECTOR + 8, 0, 8);
	set_descriptor(CONFORMING64, 0, ~0u, CODE | SEG_L | SEG_CONFORMING);
	set_descriptor(RING1_DATA, 0, ~0u, RWDATA | DPL1);
	set_descriptor(RING1_CODE64, 0, ~0u, CODE | SEG_L | DPL1);
	set_descriptor(ABSENT_DATA, 0, ~0u, RWDATA & ~SEG_P);
	set_descriptor(USER_ABSENT_DATA, 0, ~0u, (RWDATA & ~SEG_P) | DPL3);
	set_descriptor(TSS_B_SELECTOR, TSS_B, 0x2ff, SEG_P | TYPE_TSS32);
	set_descriptor(CODE16, 0, 0xffff, CODE & ~SEG_G);
	set_descriptor(DATA16, 0, 0xffff, RWDATA & ~(SEG_G | SEG_DB));
	set_descriptor(RING1_CODE32, 0, ~0u, CODE | SEG_DB | DPL1);
	set_descriptor(ABSENT_CODE, 0, ~0u, (CODE & ~SEG_P) | (wide ? SEG_L : SEG_DB));
	set_descriptor(READ_ONLY, 0, ~0u, RODATA);
	set_descriptor(USER_READ_ONLY, 0, ~0u, RODATA | DPL3);
	set_descriptor(CONFORMING32, 0, ~0u, CODE | SEG_DB | SEG_CONFORMING);
	set_descriptor(EXECUTE_ONLY, 0, ~0u, (CODE & ~SEG_RW) | SEG_DB);
	cpu->gdtr = (struct table_register){ GDT, GDT_LIMIT };
}

static void load(enum seg seg, u16 selector)
{
	segment_from_descriptor(&cpu->seg[seg], selector, get(GDT + (selector & ~7), 8));
}

static void load_data(u16 selector)
{
	static const u8 data[] = { SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < sizeof(data); i++)
		load(data[i], selector);
}

static void machine_start(void)
{
	if (!cpu) {
		memory = aligned_alloc(4096, MEMORY_SIZE);
		cpu = cpu_create(&ops, NULL, vm_code_create());
	}
	memset(memory, 0, MEMORY_SIZE);
	cpu_reset(cpu, false);
	cpuid_set(cpu, NULL, 0);
	cpu->event.valid = false;
	cpu->delivering = 0;
	cpu->nmi_masked = cpu->interrupt_shadow = cpu->mov_ss_shadow = false;
	cpu->guest_debug = 0;
	cpu->last_branch_from = 0;
	cpu->linear_bits = 48;
	cpu->phys_bits = 46;
	cpu->dr6 = DR6_FIXED;
	cpu->dr7 = DR7_FIXED;
	cpu->gpr[RSP] = KERNEL_STACK;
	for (unsigned i = 0; i < 16; i++)
		if (i != RSP)
			cpu->gpr[i] = 0x1111111111111111ull * i;
	cpu->rip = 0x12340;
	cpu->next_rip = 0x12343;
	raise_may_change = false;
	tlb_flush_all(cpu);
}

static void protected_common(bool wide)
{
	cpu->cr0 = CR0_PE | CR0_WP | CR0_NE | CR0_ET;
	make_page_tables();
	make_gdt(wide);
	load(SEG_TR, TSS_SELECTOR);
	segment_null(&cpu->seg[SEG_LDTR], 0, 0);
	cpu->idtr = (struct table_register){ IDT, 0xfff };
	cpu_set_rflags(cpu, FLAG_IF);
}

static void machine_level(unsigned cpl, u16 code, u16 data, u64 stack)
{
	load(SEG_CS, code);
	load_data(data);
	cpu->cpl = cpl;
	cpu->gpr[RSP] = stack;
}

static void long_mode(void)
{
	machine_start();
	cpu->cr3 = PAGE_TABLES;
	protected_common(true);
	cpu->cr0 |= CR0_PG;
	cpu->cr4 = CR4_PAE;
	cpu->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NX;
	put(TSS + 4, KERNEL_STACK, 8);
	put(TSS + 12, RING1_STACK, 8);
	put(TSS + 0x24, IST_STACK, 8);
	for (unsigned vector = 0; vector < 256; vector++)
		set_gate64(vector, CODE64, HANDLER + vector * 16, TYPE_INTERRUPT_GATE32, vector == 0x80 ? 3 : 0, 0);
	tlb_flush_all(cpu);
}

void machine_long(unsigned cpl)
{
	long_mode();
	if (cpl == 3)
		machine_level(3, USER_CODE64, USER_DATA, USER_STACK - 0x18);
	else if (cpl == 1)
		machine_level(1, RING1_CODE64, RING1_DATA, RING1_STACK - 0x100);
	else
		machine_level(0, CODE64, DATA, KERNEL_STACK - 0x108);
}

void machine_compat(void)
{
	long_mode();
	machine_level(3, USER_CODE32, USER_DATA, USER_STACK - 0x18);
}

void machine_32(unsigned cpl)
{
	machine_start();
	protected_common(false);
	put(TSS + 4, KERNEL_STACK, 4);
	put(TSS + 8, DATA, 2);
	put(TSS + 12, RING1_STACK, 4);
	put(TSS + 16, RING1_DATA, 2);
	put(TSS + 0x66, 0x68 + 32, 2); // I/O map behind the redirection bitmap
	for (unsigned vector = 0; vector < 256; vector++)
		set_gate32(vector, CODE32, HANDLER32 + vector * 16, TYPE_INTERRUPT_GATE32,
			   vector == 0x80 ? 3 : 0);
	if (cpl == 3)
		machine_level(3, USER_CODE32, USER_DATA, USER_STACK - 0x18);
	else if (cpl == 1)
		machine_level(1, RING1_CODE32, RING1_DATA, RING1_STACK - 0x100);
	else
		machine_level(0, CODE32, DATA, KERNEL_STACK - 0x104);
	tlb_flush_all(cpu);
}

void machine_v86(unsigned iopl)
{
	machine_32(3);
	cpu_set_rflags(cpu, FLAG_VM | FLAG_IF | iopl << 12);
	for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
		segment_load_real(&cpu->seg[seg], seg, 0x2000 + seg * 0x10, true);
	cpu->gpr[RSP] = 0xfffe;
	cpu->rip = 0x340;
	cpu->next_rip = 0x342;
}

void machine_real(void)
{
	machine_start();
	cpu->cr0 = CR0_ET;
	for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
		cpu->seg[seg].limit = 0xffff;
		segment_load_real(&cpu->seg[seg], seg, 0x2000, false);
	}
	cpu->idtr = (struct table_register){ 0, 0x3ff };
	cpu->gpr[RSP] = 0xfffe;
	cpu_set_rflags(cpu, FLAG_IF | FLAG_TF);
	cpu->rip = 0x340;
	cpu->next_rip = 0x342;
}

void machine_cet(bool shadow_stacks, bool ibt)
{
	u64 bits = (shadow_stacks ? CET_SHSTK_EN | CET_WRSS_EN : 0) | (ibt ? CET_ENDBR_EN : 0);

	cpu->cr4 |= CR4_CET;
	cpu->u_cet = cpu->s_cet = bits;
	if (!shadow_stacks)
		return;
	cpu->pl_ssp[0] = KERNEL_SS - 8;
	cpu->pl_ssp[1] = RING1_SS - 8;
	cpu->pl_ssp[3] = USER_SS - 0x80;
	cpu->int_ssp_tab = SSP_TABLE;
	put(SSP_TABLE + 8, IST_SS - 8, 8);
	token(KERNEL_SS - 8, cpu->cpl == 0);
	token(RING1_SS - 8, cpu->cpl == 1);
	token(IST_SS - 8, false);
	cpu->ssp = cpu->cpl == 3 ? USER_SS - 0x40 : cpu->cpl == 1 ? RING1_SS - 0x40 : KERNEL_SS - 0x40;
	tlb_flush_all(cpu);
}

void execute(const struct insn *insn)
{
	static const struct insn_row *const tables[] = { rows_transfer, rows_cet, rows_segment };

	for (unsigned i = 0; i < 3; i++) {
		for (const struct insn_row *row = tables[i]; row->mnemonic; row++) {
			if (row->mnemonic != insn->mnemonic)
				continue;
			row->handler(cpu, insn);
			cpu->rip = cpu->next_rip;
			return;
		}
	}
	fprintf(stderr, "no handler for %s\n", ZydisMnemonicGetString(insn->mnemonic));
	abort();
}

// ---- exceptions ----

static struct {
	u64 gpr[16], ssp, rip, rflags, cr0, cr3;
	u32 arith;
	struct segment seg[SEG_COUNT];
	u8 cpl;
	u64 u_cet, s_cet, pl_ssp[4];
} before;

static void snapshot(void *to)
{
	typeof(before) *s = to;

	memset(s, 0, sizeof(*s));
	memcpy(s->gpr, cpu->gpr, sizeof(s->gpr));
	memcpy(s->seg, cpu->seg, sizeof(s->seg));
	memcpy(s->pl_ssp, cpu->pl_ssp, sizeof(s->pl_ssp));
	s->ssp = cpu->ssp;
	s->rip = cpu->rip;
	s->rflags = cpu->rflags;
	s->arith = cpu->arith;
	s->cr0 = cpu->cr0;
	s->cr3 = cpu->cr3;
	s->cpl = cpu->cpl;
	s->u_cet = cpu->u_cet;
	s->s_cet = cpu->s_cet;
}

void try_begin(void)
{
	cpu->event.valid = false;
	cpu->debug_raised = 0;
	snapshot(&before);
}

void try_end(bool jumped)
{
	typeof(before) after;

	raised = (struct raised){ .vector = NOTHING };
	if (!jumped)
		return;
	raised.vector = cpu->event.vector;
	raised.error = cpu->event.has_error ? cpu->event.error : NO_ERROR;
	raised.payload = cpu->event.payload;
	cpu->event.valid = false;
	snapshot(&after);
	if (!raise_may_change && before.seg[SEG_TR].selector == cpu->seg[SEG_TR].selector && memcmp(&before, &after, sizeof(after)))
		ok(false, "registers are unchanged when vector %d(%#x) is raised", raised.vector, raised.error);
}

// ---- TAP ----

static int count, failures;

void ok_at(bool condition, const char *file, int line, const char *format, ...)
{
	va_list arguments;

	printf(condition ? "ok %d - " : "not ok %d - ", ++count);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	if (!condition) {
		failures++;
		printf("#   at %s:%d\n", file, line);
	}
}

void is_at(u64 got, u64 wanted, const char *file, int line, const char *format, ...)
{
	char name[200];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(name, sizeof(name), format, arguments);
	va_end(arguments);
	ok_at(got == wanted, file, line, "%s", name);
	if (got != wanted)
		printf("#   got %#llx, wanted %#llx\n", (unsigned long long)got, (unsigned long long)wanted);
}

void raises_at(int vector, u32 error, const char *file, int line, const char *name)
{
	bool same = raised.vector == vector && (vector == NOTHING || raised.error == error);

	ok_at(same, file, line, "%s", name);
	if (!same)
		printf("#   got vector %d error %#x, wanted %d %#x; CR2 %#llx\n", raised.vector, raised.error,
		       vector, error, (unsigned long long)raised.payload);
}

int done(void)
{
	printf("1..%d\n", count);
	return failures != 0;
}
