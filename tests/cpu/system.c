// SPDX-License-Identifier: MIT
// System instructions, called through their rows as the translator calls them: privilege, operand
// and value checks, and what they do.
#include "fixture.h"

#include "cpu/debug.h"
#include "cpu/insn.h"

enum { P = 1, W = 2, U = 4, G = 256 };

#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define PT 0x4000
#define DATA 0x100000
#define BASE 0x400000ull
#define GDT (BASE + 0x1000)

#define REG(n, bytes) { .kind = OPERAND_REG, .reg = (n), .size = (bytes) }
#define MEM(bytes) { .kind = OPERAND_MEM, .size = (bytes) }
#define CR(n) { .kind = OPERAND_CR, .reg = (n), .size = 8 }
#define DR(n) { .kind = OPERAND_DR, .reg = (n), .size = 8 }

static void setup(unsigned cpl)
{
	fixture_reset();
	*qword(PML4) = PDPT | P | W | U;
	*qword(PDPT) = PD | P | W | U;
	*qword(PD + 8 * 2) = PT | P | W | U;
	for (unsigned n = 0; n < 16; n++)
		*qword(PT + 8 * n) = (DATA + n * 4096) | P | W | U;
	fixture_long_mode(PML4, cpl);
	cpu->gdtr = (struct table_register){ GDT, 0xff };
	cpu->rip = BASE;
	cpu->next_rip = BASE + 3;
}

static const struct insn_row *row(unsigned mnemonic)
{
	const struct insn_row *r = rows_system;

	while (r->mnemonic && r->mnemonic != mnemonic)
		r++;
	return r;
}

static void __attribute__((noinline)) execute(const struct insn *insn)
{
	TRY(row(insn->mnemonic)->handler(cpu, insn));
}

// Executes one instruction; a memory operand is at [RBX]. Returns the exception or NO_EXCEPTION.
static int run(unsigned mnemonic, struct operand op0, struct operand op1)
{
	struct insn insn = { .mnemonic = mnemonic, .length = 3, .operand_size = 8, .address_size = 8,
			     .mem_seg = SEG_DS, .mem_base = RBX, .mem_index = 0xff, .mem_scale = 1,
			     .op = { op0, op1 } };

	execute(&insn);
	return outcome.vector;
}
#define RUN(name, ...) run(ZYDIS_MNEMONIC_##name, __VA_ARGS__)
#define NOTHING (struct operand){ 0 }
#define OP(...) (struct operand) __VA_ARGS__
#define NONE NO_EXCEPTION

static void privilege(void)
{
	static const struct { unsigned mnemonic; const char *name; int wanted; } rows[] = {
#define ROW(name, wanted) { ZYDIS_MNEMONIC_##name, #name, wanted }
		ROW(CLTS, VECTOR_GP), ROW(LMSW, VECTOR_GP), ROW(LGDT, VECTOR_GP), ROW(LIDT, VECTOR_GP),
		ROW(LLDT, VECTOR_GP), ROW(LTR, VECTOR_GP), ROW(INVLPG, VECTOR_GP), ROW(INVPCID, VECTOR_GP),
		ROW(WBINVD, VECTOR_GP), ROW(INVD, VECTOR_GP), ROW(RDMSR, VECTOR_GP), ROW(WRMSR, VECTOR_GP),
		ROW(HLT, VECTOR_GP), ROW(SWAPGS, VECTOR_GP), ROW(XSETBV, VECTOR_GP), ROW(STAC, VECTOR_UD),
		ROW(CLAC, VECTOR_UD), ROW(CLI, VECTOR_GP), ROW(STI, VECTOR_GP), ROW(RDPMC, VECTOR_GP),
		ROW(RDTSC, NONE), ROW(CPUID, NONE), ROW(RDTSCP, NONE), ROW(SERIALIZE, NONE),
		ROW(SMSW, NONE), ROW(SGDT, NONE), ROW(SIDT, NONE), ROW(SLDT, NONE), ROW(STR, NONE),
#undef ROW
	};

	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup(3);
		cpu->gpr[RBX] = BASE;
		is(run(rows[i].mnemonic, OP(MEM(2)), NOTHING), rows[i].wanted, "%s at CPL 3", rows[i].name);
	}
	for (unsigned i = 24; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup(3);
		cpu->gpr[RBX] = BASE;
		cpu->cr4 |= CR4_UMIP;
		is(run(rows[i].mnemonic, OP(MEM(2)), NOTHING), VECTOR_GP, "%s at CPL 3 under UMIP", rows[i].name);
		cpu->cpl = 0;
		is(run(rows[i].mnemonic, OP(MEM(2)), NOTHING), (u64)NONE, "%s at CPL 0 under UMIP", rows[i].name);
	}
	setup(3);
	cpu->cr4 |= CR4_TSD;
	is(RUN(RDTSC, NOTHING, NOTHING), VECTOR_GP, "RDTSC under CR4.TSD");
	is(RUN(RDTSCP, NOTHING, NOTHING), VECTOR_GP, "RDTSCP under CR4.TSD");
	is(RUN(RDPID, OP(REG(RAX, 8)), NOTHING), (u64)NONE, "RDPID is not concerned");
	cpu_wrmsr(cpu, MSR_MISC_FEATURES_ENABLES, 1, BY_HOST);
	is(RUN(CPUID, NOTHING, NOTHING), VECTOR_GP, "CPUID faulting at CPL 3");
	cpu->cpl = 0;
	is(RUN(CPUID, NOTHING, NOTHING), (u64)NONE, "not at CPL 0");
}

static void control_registers(void)
{
	setup(0);
	cpu->gpr[RAX] = 0x1234567890;
	is(RUN(MOV, OP(CR(2)), OP(REG(RAX, 8))), (u64)NONE, "MOV CR2");
	is(cpu->cr2, 0x1234567890, "CR2");
	RUN(MOV, OP(REG(RCX, 8)), OP(CR(2)));
	is(cpu->gpr[RCX], 0x1234567890, "MOV from CR2");
	is(RUN(MOV, OP(CR(1)), OP(REG(RAX, 8))), VECTOR_UD, "CR1");
	is(RUN(MOV, OP(REG(RAX, 8)), OP(CR(5))), VECTOR_UD, "CR5");
	cpu->gpr[RAX] = 16;
	is(RUN(MOV, OP(CR(8)), OP(REG(RAX, 8))), VECTOR_GP, "CR8 takes 4 bits");
	cpu->gpr[RAX] = 9;
	RUN(MOV, OP(CR(8)), OP(REG(RAX, 8)));
	is(seen.cr8, 9, "CR8 is the interrupt controller's");
	cpu->gpr[RAX] = 1ull << 32;
	is(RUN(MOV, OP(CR(0)), OP(REG(RAX, 8))), VECTOR_GP, "bit 32 of CR0");
	is(outcome.error, 0, "error code 0");
	cpu->cr0 |= CR0_TS;
	RUN(CLTS, NOTHING, NOTHING);
	is(cpu->cr0 & CR0_TS, 0, "CLTS");
	cpu->gpr[RAX] = CR0_TS;
	is(RUN(LMSW, OP(REG(RAX, 2)), NOTHING), (u64)NONE, "LMSW that clears PE");
	ok((cpu->cr0 & CR0_PE) && (cpu->cr0 & CR0_TS), "leaves it set, and sets TS");
	cpu->cpl = 3;
	is(RUN(MOV, OP(REG(RAX, 8)), OP(CR(0))), VECTOR_GP, "MOV from CR0 at CPL 3");
}

static void debug_registers(void)
{
	setup(0);
	cpu->gpr[RAX] = ~0ull;
	RUN(MOV, OP(DR(0)), OP(REG(RAX, 8)));
	is(cpu->dr[0], ~0ull, "DR0 takes any address");
	is(RUN(MOV, OP(DR(7)), OP(REG(RAX, 8))), VECTOR_GP, "DR7 takes 32 bits");
	is(RUN(MOV, OP(DR(6)), OP(REG(RAX, 8))), VECTOR_GP, "DR6 takes 32 bits");
	cpu->gpr[RAX] = 0;
	RUN(MOV, OP(DR(6)), OP(REG(RAX, 8)));
	is(cpu->dr6, 0xffff0ff0, "bits of DR6 that read as 1");
	RUN(MOV, OP(DR(7)), OP(REG(RAX, 8)));
	is(cpu->dr7, 0x400, "bit of DR7 that reads as 1");
	cpu->gpr[RAX] = 0xffffffff & ~(u64)DR7_GD;
	RUN(MOV, OP(DR(7)), OP(REG(RAX, 8)));
	is(cpu->dr7, 0xffff07ff, "bits of DR7 that read as 0");
	RUN(MOV, OP(REG(RCX, 8)), OP(DR(5)));
	is(cpu->gpr[RCX], 0xffff07ff, "DR5 is DR7");
	cpu->cr4 |= CR4_DE;
	is(RUN(MOV, OP(REG(RCX, 8)), OP(DR(5))), VECTOR_UD, "not with CR4.DE");
	cpu->dr7 |= DR7_GD;
	is(RUN(MOV, OP(REG(RCX, 8)), OP(DR(0))), VECTOR_DB, "DR7.GD guards");
	cpu->cpl = 3;
	is(RUN(MOV, OP(REG(RCX, 8)), OP(DR(0))), VECTOR_GP, "privilege comes before GD");
	is(RUN(MOV, OP(REG(RCX, 8)), OP(DR(4))), VECTOR_UD, "and behind #UD");
}

static int invpcid(u64 type, u64 low, u64 high)
{
	cpu->gpr[RAX] = type;
	cpu->gpr[RBX] = BASE + 0x2000;
	*qword(DATA + 0x2000) = low;
	*qword(DATA + 0x2008) = high;
	return RUN(INVPCID, OP(REG(RAX, 8)), OP(MEM(16)));
}

static bool cached(unsigned n)
{
	return cpu->tlb_k[(BASE >> 12) + n].read == BASE + n * 4096;
}

static void touch(void)
{
	mem_host(cpu, BASE + 5 * 4096, 1, 0);
	mem_host(cpu, BASE + 6 * 4096, 1, 0);
}

static void invalidate(void)
{
	setup(0);
	*qword(PT + 8 * 6) |= G;
	cpu_set_cr4(cpu, cpu->cr4 | CR4_PCIDE, BY_GUEST);
	cpu_set_cr3(cpu, PML4 | 7, BY_GUEST);
	is(invpcid(4, 0, 0), VECTOR_GP, "INVPCID type 4");
	is(invpcid(0, 1 << 12, 0), VECTOR_GP, "reserved bit in its descriptor");
	is(invpcid(0, 7, 1ull << 56), VECTOR_GP, "an address that is not canonical");
	is(invpcid(1, 7, 1ull << 56), (u64)NONE, "which does not matter to other types");
	is(invpcid(0, 7, 1ull << 47), (u64)NONE, "57 bits are, with four levels of paging too");
	touch();
	is(invpcid(0, 7, BASE + 5 * 4096), (u64)NONE, "INVPCID, one address");
	ok(!cached(5) && cached(6), "drops it");
	touch();
	invpcid(1, 8, 0);
	ok(cached(5), "another PCID's context leaves ours alone");
	invpcid(1, 7, 0);
	ok(!cached(5) && cached(6), "our context: all but global");
	touch();
	invpcid(3, 0, 0);
	ok(!cached(5) && cached(6), "all contexts: all but global");
	touch();
	invpcid(2, 0, 0);
	ok(!cached(5) && !cached(6), "all with globals");
	cpu_set_cr3(cpu, PML4, BY_GUEST);
	cpu_set_cr4(cpu, cpu->cr4 & ~(u64)CR4_PCIDE, BY_GUEST);
	is(invpcid(1, 1, 0), VECTOR_GP, "a PCID without CR4.PCIDE");

	touch();
	cpu->gpr[RBX] = BASE + 6 * 4096 + 0x123;
	RUN(INVLPG, OP(MEM(1)), NOTHING);
	ok(cached(5) && !cached(6), "INVLPG drops one page, also a global one");
	cpu->gpr[RBX] = 1ull << 47;
	is(RUN(INVLPG, OP(MEM(1)), NOTHING), (u64)NONE, "INVLPG of an address that is not canonical does nothing");
	touch();
	cpu->gpr[RAX] = PML4;
	RUN(MOV, OP(CR(3)), OP(REG(RAX, 8)));
	ok(!cached(5) && cached(6), "MOV CR3 keeps global translations");
}

static void descriptor_tables(void)
{
	u64 *gdt = qword(DATA + 0x1000);

	setup(0);
	cpu->gpr[RBX] = BASE;
	memcpy(ram + DATA, "\x7f\x01\x00\x00\x00\x00\x00\x80\xff\xff", 10);
	is(RUN(LIDT, OP(MEM(10)), NOTHING), (u64)NONE, "LIDT");
	ok(cpu->idtr.limit == 0x17f && cpu->idtr.base == 0xffff800000000000, "its limit and base");
	cpu->gpr[RBX] = BASE + 0x100;
	RUN(SIDT, OP(MEM(10)), NOTHING);
	ok(!memcmp(ram + DATA + 0x100, ram + DATA, 10), "SIDT gives them back");
	ram[DATA + 8] = 0x7f;
	cpu->gpr[RBX] = BASE;
	is(RUN(LIDT, OP(MEM(10)), NOTHING), (u64)NONE, "a base of 57 bits");
	is(cpu->idtr.base, 0xff7f800000000000, "which four levels of paging do not reach");
	ram[DATA + 9] = 1;
	is(RUN(LIDT, OP(MEM(10)), NOTHING), VECTOR_GP, "a base that is not canonical");

	gdt[2] = 0x0000890012340067; // available 64-bit TSS, base 0xffff800000001234
	gdt[3] = 0xffff8000;
	cpu->gpr[RAX] = 0x10;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), (u64)NONE, "LTR");
	is(cpu->seg[SEG_TR].base, 0xffff800000001234, "64-bit base");
	is(cpu->seg[SEG_TR].attributes & SEG_TYPE, 11, "busy in the register");
	is(gdt[2] >> 40 & 0xff, 0x8b, "and in memory");
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "a busy TSS");
	is(outcome.error, 0x10, "error code: the selector");
	gdt[2] = 0x0000090012340067;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_NP, "a TSS that is not present");
	gdt[2] = 0x0000890012340067;
	gdt[3] = 0x00007f00ffff8000;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "a type in the second half of its descriptor");
	gdt[3] = 0x1000000;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "a base that is not canonical");
	gdt[3] = 0;
	cpu->gpr[RAX] = 0x14;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "a selector of the LDT");
	cpu->gpr[RAX] = 0xf8;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "a descriptor half outside the GDT");
	is(outcome.error, 0xf8, "error code");
	cpu->gpr[RAX] = 3;
	is(RUN(LTR, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "LTR of a null selector");
	is(outcome.error, 0, "error code 0");

	gdt[4] = 0x0000820056780027; // LDT
	gdt[5] = 0;
	cpu->gpr[RAX] = 0x20;
	is(RUN(LLDT, OP(REG(RAX, 2)), NOTHING), (u64)NONE, "LLDT");
	ok(cpu->seg[SEG_LDTR].base == 0x5678 && cpu->seg[SEG_LDTR].limit == 0x27, "its base and limit");
	RUN(SLDT, OP(REG(RCX, 8)), NOTHING);
	is(cpu->gpr[RCX], 0x20, "SLDT");
	cpu->gpr[RAX] = 0x10;
	is(RUN(LLDT, OP(REG(RAX, 2)), NOTHING), VECTOR_GP, "LLDT of a TSS");
	cpu->gpr[RAX] = 0;
	is(RUN(LLDT, OP(REG(RAX, 2)), NOTHING), (u64)NONE, "LLDT of a null selector");
	ok(cpu->seg[SEG_LDTR].attributes & SEG_UNUSABLE, "makes LDTR unusable");
	cpu->cr0 &= ~(u64)CR0_PE;
	is(RUN(LLDT, OP(REG(RAX, 2)), NOTHING), VECTOR_UD, "LLDT in real mode");
	is(RUN(STR, OP(REG(RAX, 2)), NOTHING), VECTOR_UD, "STR in real mode");
}

static void interrupt_flag(void)
{
	setup(0);
	RUN(STI, NOTHING, NOTHING);
	ok((cpu->rflags & FLAG_IF) && cpu->interrupt_shadow, "STI opens a shadow");
	cpu->interrupt_shadow = false;
	RUN(STI, NOTHING, NOTHING);
	ok(!cpu->interrupt_shadow, "not when IF was set");
	RUN(CLI, NOTHING, NOTHING);
	ok(!(cpu->rflags & FLAG_IF), "CLI");
	cpu->cpl = 3;
	cpu->rflags |= FLAG_IOPL;
	is(RUN(STI, NOTHING, NOTHING), (u64)NONE, "STI at CPL 3 with IOPL 3");
	cpu->rflags &= ~(u64)(FLAG_IOPL | FLAG_IF);
	cpu->cr4 |= CR4_PVI;
	is(RUN(STI, NOTHING, NOTHING), (u64)NONE, "STI at CPL 3 with CR4.PVI");
	ok((cpu->rflags & FLAG_VIF) && !(cpu->rflags & FLAG_IF), "sets VIF");
	cpu->rflags |= FLAG_VIP;
	is(RUN(STI, NOTHING, NOTHING), VECTOR_GP, "and raises #GP with VIP");
	RUN(CLI, NOTHING, NOTHING);
	ok(!(cpu->rflags & FLAG_VIF), "CLI clears VIF");
}

static void the_rest(void)
{
	setup(0);
	is(RUN(XGETBV, NOTHING, NOTHING), (u64)NONE, "XGETBV");
	cpu->gpr[RCX] = 2;
	is(RUN(XGETBV, NOTHING, NOTHING), VECTOR_GP, "XGETBV of XCR2");
	is(RUN(XSETBV, NOTHING, NOTHING), VECTOR_GP, "XSETBV of XCR2");
	cpu->gpr[RCX] = 0;
	cpu->gpr[RAX] = 2;
	cpu->gpr[RDX] = 0;
	is(RUN(XSETBV, NOTHING, NOTHING), VECTOR_GP, "XCR0 without x87");
	cpu->gpr[RAX] = 3;
	is(RUN(XSETBV, NOTHING, NOTHING), (u64)NONE, "XSETBV");
	cpu->cr4 &= ~(u64)CR4_OSXSAVE;
	is(RUN(XGETBV, NOTHING, NOTHING), VECTOR_UD, "XGETBV without CR4.OSXSAVE");
	is(RUN(XSETBV, NOTHING, NOTHING), VECTOR_UD, "XSETBV without it");

	is(RUN(RDPKRU, NOTHING, NOTHING), VECTOR_UD, "RDPKRU without CR4.PKE");
	cpu->cr4 |= CR4_PKE;
	cpu->gpr[RDX] = 1;
	is(RUN(WRPKRU, NOTHING, NOTHING), VECTOR_GP, "WRPKRU with EDX");
	cpu->gpr[RDX] = 0;
	cpu->gpr[RCX] = 1;
	is(RUN(WRPKRU, NOTHING, NOTHING), VECTOR_GP, "WRPKRU with ECX");
	cpu->gpr[RCX] = 0;
	cpu->gpr[RAX] = 0x55555554;
	RUN(WRPKRU, NOTHING, NOTHING);
	cpu->gpr[RAX] = ~0ull;
	RUN(RDPKRU, NOTHING, NOTHING);
	is(cpu->gpr[RAX], 0x55555554, "PKRU");

	cpu->gpr[RAX] = 0x7000;
	is(RUN(WRFSBASE, OP(REG(RAX, 8)), NOTHING), VECTOR_UD, "WRFSBASE without CR4.FSGSBASE");
	cpu->cr4 |= CR4_FSGSBASE;
	is(RUN(WRFSBASE, OP(REG(RAX, 8)), NOTHING), (u64)NONE, "WRFSBASE");
	is(cpu->seg[SEG_FS].base, 0x7000, "FS base");
	cpu->gpr[RAX] = 1ull << 47;
	is(RUN(WRGSBASE, OP(REG(RAX, 8)), NOTHING), (u64)NONE, "WRGSBASE takes 57 bits");
	cpu->gpr[RAX] = 1ull << 56;
	is(RUN(WRGSBASE, OP(REG(RAX, 8)), NOTHING), VECTOR_GP, "WRGSBASE, not canonical");
	cpu->gpr[RAX] = 0xffff800012345678;
	RUN(WRGSBASE, OP(REG(RAX, 4)), NOTHING);
	is(cpu->seg[SEG_GS].base, 0x12345678, "32-bit WRGSBASE");
	cpu->kernel_gs_base = 0x9000;
	RUN(SWAPGS, NOTHING, NOTHING);
	ok(cpu->seg[SEG_GS].base == 0x9000 && cpu->kernel_gs_base == 0x12345678, "SWAPGS");
	cpu->seg[SEG_CS].attributes &= ~SEG_L;
	is(RUN(SWAPGS, NOTHING, NOTHING), VECTOR_UD, "SWAPGS outside 64-bit mode");
	is(RUN(RDFSBASE, OP(REG(RAX, 4)), NOTHING), VECTOR_UD, "RDFSBASE outside it");

	setup(0);
	RUN(HLT, NOTHING, NOTHING);
	ok(cpu->halted && (cpu->request & REQ_EVENT), "HLT");
	seen.msr_result = CPU_OPS_EXIT;
	cpu->gpr[RCX] = 0x12345;
	is(RUN(RDMSR, NOTHING, NOTHING), (u64)ABORTED, "RDMSR that user space has to answer");
	is(outcome.exit, CPU_EXIT_OPS, "is an exit");
	cpu_wrmsr(cpu, MSR_TSC_AUX, 77, BY_HOST);
	RUN(RDTSCP, NOTHING, NOTHING);
	ok(cpu->gpr[RCX] == 77 && cpu->gpr[RAX] == 1000 && cpu->gpr[RDX] == 0, "RDTSCP");
	is(row(ZYDIS_MNEMONIC_VMXON)->mnemonic, 0, "VMXON has no row: #UD");
}

int main(void)
{
	privilege();
	control_registers();
	debug_registers();
	invalidate();
	descriptor_tables();
	interrupt_flag();
	the_rest();
	return done_testing();
}
