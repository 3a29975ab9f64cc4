// SPDX-License-Identifier: MIT
// String instructions: what lockstep cannot ask the host about. Progress when an iteration faults, is
// interrupted, or single-stepped; memory I/O; wrapping addresses, segment limits; host memory that
// vanishes; IN, OUT, INS, OUTS and the I/O permission bit map.
#include "insn.h"

#include <linux/kvm.h>
#include <sys/mman.h>

#define SOURCE 0x200000ull
#define TARGET 0x300000ull
#define MISSING 0x308000ull // a page of the target area

#define REP_MOVSB 0xf3, 0xa4
#define REP_MOVSQ 0xf3, 0x48, 0xa5
#define REP_STOSQ 0xf3, 0x48, 0xab
#define REPE_CMPSB 0xf3, 0xa6
#define REPNE_SCASB 0xf2, 0xae

static void start(unsigned cpl)
{
	fixture_reset();
	insn_long_mode(cpl);
	for (unsigned i = 0; i < 0x10000; i++)
		ram[SOURCE + i] = i * 7 + (i >> 8);
}

static void set(u64 rsi, u64 rdi, u64 rcx, u64 rax)
{
	cpu->gpr[RSI] = rsi;
	cpu->gpr[RDI] = rdi;
	cpu->gpr[RCX] = rcx;
	cpu->gpr[RAX] = rax;
}

static void protected_mode(void)
{
	fixture_reset();
	cpu->cr0 |= CR0_PE;
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		cpu->seg[i] = (struct segment){ .limit = 0xffffffff, .selector = 8,
						.attributes = SEG_P | SEG_S | SEG_DB | SEG_G | 3 };
	cpu->seg[SEG_CS].attributes = SEG_P | SEG_S | SEG_DB | SEG_G | 0xb;
}

static void faults(void)
{
	start(3);
	*pte(MISSING) = 0;
	tlb_flush_all(cpu);
	set(SOURCE + 5, MISSING - 0x1803, 0x3000, 0);
	EXECUTE(REP_MOVSB);
	is(outcome.vector, VECTOR_PF, "REP MOVSB into a missing page");
	is(outcome.address, MISSING, "#PF names its first byte");
	is(cpu->gpr[RCX], 0x3000 - 0x1803, "RCX counts what is left");
	is(cpu->gpr[RSI], SOURCE + 5 + 0x1803, "RSI points at the element that faults");
	is(cpu->gpr[RDI], MISSING, "RDI too");
	ok(!memcmp(ram + MISSING - 0x1803, ram + SOURCE + 5, 0x1803), "all before it was moved");
	is(cpu->rip, INSN_RIP, "RIP is at the instruction");

	set(0, MISSING - 0x1003, 0x1000, 0x1122334455667788);
	EXECUTE(REP_STOSQ);
	is(outcome.vector, VECTOR_PF, "REP STOSQ whose element straddles into it");
	is(outcome.address, MISSING, "#PF names the second page");
	is(cpu->gpr[RDI], MISSING - 3, "RDI is at the straddling element");
	is(ram[MISSING - 1], ram[SOURCE + 5 + 0x1802], "nothing of which is written");

	cpu->rflags |= FLAG_DF;
	set(SOURCE + 0x8000, MISSING + 0x1800, 0x3000, 0);
	EXECUTE(REP_MOVSB);
	is(outcome.address, MISSING + 0xfff, "backward, #PF names the last byte of the page");
	is(cpu->gpr[RDI], MISSING + 0xfff, "RDI is there");
	is(cpu->gpr[RCX], 0x3000 - 0x801, "RCX backward");
	cpu->rflags &= ~(u64)FLAG_DF;

	memset(ram + TARGET, 0, 0x8000);
	memset(ram + SOURCE, 0, 0x9000);
	set(SOURCE, TARGET, 0x9000, 0);
	EXECUTE(REPE_CMPSB);
	is(outcome.vector, VECTOR_PF, "REPE CMPSB into it");
	is(cpu->gpr[RCX], 0x1000, "RCX");
	set(0, TARGET, 0x9000, 1);
	EXECUTE(REPNE_SCASB);
	is(outcome.vector, VECTOR_PF, "REPNE SCASB into it");
	is(cpu->gpr[RDI], MISSING, "RDI");
	ram[MISSING - 9] = 1;
	set(0, TARGET, 0x9000, 1);
	EXECUTE(REPNE_SCASB);
	is(outcome.vector, NO_EXCEPTION, "a match before it");
	is(cpu->gpr[RDI], MISSING - 8, "RDI is behind the match");
	ok(cpu_rflags(cpu) & FLAG_ZF, "ZF says so");
	is(cpu->rip, INSN_RIP + 2, "RIP is behind the instruction");
}

static void zero_count(void)
{
	start(3);
	set(1, 1, 0, 5);
	cpu_set_rflags(cpu, FLAG_CF | FLAG_OF);
	EXECUTE(REP_MOVSB);
	is(outcome.vector, NO_EXCEPTION, "REP MOVSB with RCX = 0 touches nothing");
	EXECUTE(REPE_CMPSB);
	is(cpu_rflags(cpu), FLAG_CF | FLAG_OF | 2, "REPE CMPSB with RCX = 0 leaves the flags alone");
	is(cpu->gpr[RDI], 1, "and the registers");
}

static void interruption(void)
{
	unsigned times = 0;

	start(3);
	set(SOURCE, TARGET, 0x5000, 0);
	cpu->request = REQ_IRQ;
	do {
		EXECUTE(REP_MOVSB);
		times++;
	} while (cpu->rip == INSN_RIP && times < 100);
	ok(times > 1 && times < 100, "a request interrupts REP MOVSB, which goes on each time");
	ok(!memcmp(ram + TARGET, ram + SOURCE, 0x5000), "all is moved in the end");
	is(cpu->gpr[RCX], 0, "RCX");
	ram[TARGET] ^= 1;
	set(SOURCE, TARGET, 0x5000, 0);
	EXECUTE(REPE_CMPSB);
	is(cpu->rip, INSN_RIP + 2, "a comparison that ends is complete in spite of a request");
	cpu->request = 0;

	cpu->rflags |= FLAG_TF;
	set(SOURCE, TARGET, 3, 0);
	EXECUTE(REP_MOVSB);
	is(cpu->gpr[RCX], 2, "TF: one iteration");
	is(cpu->rip, INSN_RIP, "RIP stays");
	EXECUTE(REP_MOVSB);
	EXECUTE(REP_MOVSB);
	is(cpu->rip, INSN_RIP + 2, "and goes on with the last");
	cpu->rflags &= ~(u64)FLAG_TF;
	cpu->guest_debug = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	set(SOURCE, TARGET, 3, 0);
	EXECUTE(REP_MOVSB);
	is(cpu->gpr[RCX], 2, "the debugger's single step: one iteration");
	cpu->guest_debug = 0;
}

static void memory_io(void)
{
	start(0);
	*pte(TARGET) = 0x80000000 | PTE_PRESENT | PTE_WRITE;
	tlb_flush_all(cpu);
	set(SOURCE, TARGET + 8, 3, 0);
	EXECUTE(0xf3, 0x66, 0xa5);
	is(outcome.vector, NO_EXCEPTION, "REP MOVSW to memory I/O");
	is(seen.mmio_count, 3, "an access for each element");
	is(seen.mmio[2].gpa, 0x8000000c, "address of the last");
	is(seen.mmio[2].len, 2, "of 2 bytes");
	ok(!memcmp(seen.mmio[2].data, ram + SOURCE + 4, 2), "its data");
	seen.mmio_result = CPU_OPS_EXIT;
	set(SOURCE, TARGET, 3, 0);
	EXECUTE(0xf3, 0x66, 0xa5);
	is(outcome.vector, ABORTED, "an access that leaves to user space");
	is(outcome.exit, CPU_EXIT_OPS, "with the right exit");
	is(cpu->gpr[RCX], 3, "and nothing is committed");
	seen.mmio_result = CPU_OPS_DONE;
	set(TARGET, SOURCE, 2, 0);
	EXECUTE(0xf3, 0xa5);
	is(*dword(SOURCE + 4), 0xa5a5a5a5, "REP MOVSD from memory I/O");
}

static void addresses(void)
{
	protected_mode();
	memset(ram, 0x11, 0x11000);
	set(0x12340000 | 0xfffe, 0xabcd0000, 0x55550004, 0);
	cpu->seg[SEG_DS].base = 0x10000;
	*(u16 *)(ram + 0x1fffe) = 0x2222;
	*dword(0x10000) = 0x3333;
	EXECUTE(0x67, 0xf3, 0xa4);
	is(outcome.vector, NO_EXCEPTION, "16-bit addresses wrap in the middle of REP MOVSB");
	is(*dword(0), 0x33332222, "what was moved");
	is(cpu->gpr[RSI], 0x12340002, "SI wraps, the rest of ESI stays");
	is(cpu->gpr[RDI], 0xabcd0004, "DI");
	is(cpu->gpr[RCX], 0x55550000, "CX");

	protected_mode();
	cpu->seg[SEG_ES].limit = 0x3007;
	set(0x5000, 0x3000, 4, 0);
	EXECUTE(0xf3, 0xa5);
	is(outcome.vector, VECTOR_GP, "the limit of ES");
	is(cpu->gpr[RCX], 2, "ends REP MOVSD after the elements within");
	is(cpu->gpr[RDI], 0x3008, "EDI");
	cpu->seg[SEG_ES].attributes = SEG_P | SEG_S | SEG_DB | 1;
	set(0x5000, 0x3000, 1, 0);
	EXECUTE(0xf3, 0xa5);
	is(outcome.vector, VECTOR_GP, "a read-only ES");
	cpu->seg[SEG_ES].attributes = SEG_UNUSABLE;
	EXECUTE(0xf3, 0xa5);
	is(outcome.vector, VECTOR_GP, "a null ES");
	protected_mode();
	cpu->seg[SEG_SS].limit = 0xfff;
	set(0x5000, 0x3000, 1, 0);
	EXECUTE(0x36, 0xf3, 0xa5);
	is(outcome.vector, VECTOR_SS, "a source beyond the limit of SS");
	protected_mode();
	cpu->seg[SEG_FS].base = 0x7000;
	*dword(0x7004) = 0x12345678;
	set(4, 0x3000, 1, 0);
	EXECUTE(0x64, 0xa5);
	is(*dword(0x3000), 0x12345678, "an override moves the source");

	start(0);
	set(SOURCE, 0x7fffffffffff, 2, 0);
	EXECUTE(0x66, 0xab);
	is(outcome.vector, VECTOR_GP, "STOSW over the end of canonical addresses");
	cpu->seg[SEG_GS].base = 0x10;
	set(SOURCE, TARGET, 1, 0);
	EXECUTE(0x65, 0x48, 0xa5);
	ok(!memcmp(ram + TARGET, ram + SOURCE + 0x10, 8), "MOVSQ from GS");
}

static void overlapping(void)
{
	start(0);
	memcpy(ram + TARGET, "abcdefgh", 8);
	set(TARGET, TARGET + 2, 0x3000, 0);
	EXECUTE(REP_MOVSB);
	ok(!memcmp(ram + TARGET + 0x2ffa, "abababab", 8), "REP MOVSB onto itself repeats a pattern");
	for (unsigned i = 0; i < 0x3000; i++)
		ram[TARGET + i] = i * 13;
	cpu->rflags |= FLAG_DF;
	set(TARGET + 0x2ff8, TARGET + 0x2ff8 + 3, 0x600, 0);
	EXECUTE(REP_MOVSQ);
	ok(ram[TARGET + 3] == 0 && ram[TARGET + 4] == 13 && ram[TARGET + 0x1003] == (u8)(0x1000 * 13),
	   "backward it moves up");
}

// The VMM takes memory away while it is in use.
static void host_fault(void)
{
	start(0);
	set(SOURCE, TARGET, 0x3000, 0);
	mem_read_n(cpu, TARGET + 0x1000, 1, ACCESS_READ);
	mem_write_n(cpu, TARGET + 0x1000, 0, 1, ACCESS_WRITE);
	mprotect(ram + TARGET + 0x1000, 4096, PROT_NONE);
	EXECUTE(REP_MOVSB);
	is(outcome.vector, ABORTED, "REP MOVSB into host memory that is gone");
	is(outcome.exit, CPU_EXIT_FAULT, "leaves with a fault");
	is(cpu->gpr[RCX], 0x2000, "and exact progress");
	cpu->rflags |= FLAG_DF;
	set(SOURCE + 0x2fff, TARGET + 0x2fff, 0x3000, 0);
	EXECUTE(REP_MOVSB);
	is(cpu->gpr[RCX], 0x2000, "backward too");
	cpu->rflags &= ~(u64)FLAG_DF;
	set(TARGET + 0x1000, TARGET, 1, 0);
	EXECUTE(REPE_CMPSB);
	is(outcome.exit, CPU_EXIT_FAULT, "REPE CMPSB");
	mprotect(ram + TARGET + 0x1000, 4096, PROT_READ | PROT_WRITE);
}

// ---- port I/O ----

#define TSS 0x8000ull
#define BITMAP 0x68

static void io_start(unsigned iopl)
{
	start(3);
	cpu->rflags |= (u64)iopl << 12;
	cpu->seg[SEG_TR] = (struct segment){ .base = TSS, .limit = BITMAP + 0x20, .attributes = SEG_P | 11 };
	*(u16 *)(ram + TSS + 102) = BITMAP;
	memset(ram + TSS + BITMAP, 0, 0x21);
	cpu->gpr[RDX] = 0x70;
	cpu->gpr[RAX] = 0x11223344;
}

static void permission(void)
{
	io_start(3);
	EXECUTE(0xee);
	is(outcome.vector, NO_EXCEPTION, "OUT at CPL 3 with IOPL 3");
	is(seen.pio.port, 0x70, "its port");
	is(seen.pio.data[0], 0x44, "its data");
	io_start(0);
	EXECUTE(0xee);
	is(outcome.vector, NO_EXCEPTION, "a port with a clear bit");
	ram[TSS + BITMAP + 0x70 / 8] = 1;
	EXECUTE(0xee);
	is(outcome.vector, VECTOR_GP, "a port with its bit set");
	is(outcome.error, 0, "error code 0");
	cpu->gpr[RDX] = 0x6f;
	EXECUTE(0xee);
	is(outcome.vector, NO_EXCEPTION, "the port below");
	EXECUTE(0x66, 0xef);
	is(outcome.vector, VECTOR_GP, "a word that reaches into it");
	cpu->gpr[RDX] = 0xf8;
	EXECUTE(0xee);
	is(outcome.vector, NO_EXCEPTION, "the last port whose two bytes of the map are in the TSS");
	cpu->gpr[RDX] = 0x100;
	EXECUTE(0xee);
	is(outcome.vector, VECTOR_GP, "a port behind the end of the TSS");
	cpu->gpr[RDX] = 0x10;
	cpu->seg[SEG_TR].attributes = SEG_P | 3;
	EXECUTE(0xee);
	is(outcome.vector, VECTOR_GP, "a 16-bit TSS has no map");
	io_start(0);
	cpu->cpl = 0;
	ram[TSS + BITMAP + 0x70 / 8] = 0xff;
	EXECUTE(0xee);
	is(outcome.vector, NO_EXCEPTION, "CPL 0 needs no map");
}

static void ports(void)
{
	io_start(3);
	memcpy(seen.pio.data, "\x88\x99\xaa\xbb", 4);
	cpu->gpr[RAX] = ~0ull;
	EXECUTE(0xed);
	is(cpu->gpr[RAX], 0xbbaa9988, "IN EAX clears the upper half of RAX");
	cpu->gpr[RAX] = ~0ull;
	EXECUTE(0xe4, 0x61);
	is(cpu->gpr[RAX], 0xffffffffffffff88, "IN AL leaves the rest of RAX");
	is(seen.pio.port, 0x61, "an immediate port");
	seen.pio_result = CPU_OPS_EXIT;
	cpu->gpr[RAX] = 5;
	EXECUTE(0xec);
	is(outcome.exit, CPU_EXIT_OPS, "IN that leaves to user space");
	is(cpu->gpr[RAX], 5, "commits nothing");
	seen.pio_result = CPU_OPS_DONE;

	seen.pio.calls = 0;
	set(SOURCE + 0xff0, 0, 0x20, 0);
	EXECUTE(0xf3, 0x6e);
	is(seen.pio.calls, 2, "REP OUTSB over a page boundary makes two requests");
	is(seen.pio.count, 0x10, "the second with the rest");
	ok(!memcmp(seen.pio.data, ram + SOURCE + 0x1000, 0x10), "its data");
	is(cpu->gpr[RSI], SOURCE + 0x1010, "RSI");
	for (unsigned i = 0; i < 4096; i++)
		seen.pio.data[i] = i;
	set(0, TARGET, 0x10, 0);
	EXECUTE(0xf3, 0x6d);
	ok(!memcmp(ram + TARGET, seen.pio.data, 0x40), "REP INSD");
	is(cpu->gpr[RDI], TARGET + 0x40, "RDI");
	is(cpu->gpr[RCX], 0, "RCX");
	*pte(TARGET + 0x1000) = 0;
	tlb_flush_all(cpu);
	seen.pio.calls = 0;
	set(0, TARGET + 0x1000, 1, 0);
	EXECUTE(0xf3, 0x6c);
	is(outcome.vector, VECTOR_PF, "INSB to a missing page");
	is(seen.pio.calls, 0, "does not read the port");
	seen.pio_result = CPU_OPS_EXIT;
	set(SOURCE, 0, 0x20, 0);
	EXECUTE(0xf3, 0x6e);
	is(outcome.exit, CPU_EXIT_OPS, "REP OUTSB that leaves");
	is(cpu->gpr[RCX], 0x20, "has made no progress");
}

int main(void)
{
	faults();
	zero_count();
	interruption();
	memory_io();
	addresses();
	overlapping();
	host_fault();
	permission();
	ports();
	return done_testing();
}
