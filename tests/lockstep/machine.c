// SPDX-License-Identifier: MIT
// The small machine that lockstep and the litmus tests run; see machine.h.
#include "machine.h"

#include "cpu/mem.h"
#include "cpu/segment.h"
#include "cpu/system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void *map(void *opaque, u64 gpa, unsigned *flags)
{
	struct machine *machine = opaque;

	*flags = 0;
	return gpa < MACHINE_RAM ? machine->ram + gpa : NULL;
}

static void mark_dirty(void *opaque, u64 gpa) {}
static enum cpu_ops_result mmio(void *opaque, u64 gpa, void *data, unsigned len, bool write) { return CPU_OPS_EXIT; }
static enum cpu_ops_result pio(void *opaque, u16 port, void *data, unsigned size, unsigned count, bool write)
{
	return CPU_OPS_EXIT;
}
static enum cpu_ops_result rdmsr(void *opaque, u32 msr, u64 *value, enum who who) { return CPU_OPS_GP; }
static enum cpu_ops_result wrmsr(void *opaque, u32 msr, u64 value, enum who who) { return CPU_OPS_GP; }
static int interrupt(void *opaque, bool acknowledge) { return -1; }
static u64 get_cr8(void *opaque) { return 0; }
static void set_cr8(void *opaque, u64 tpr) {}
static u64 tsc(void *opaque) { return __builtin_ia32_rdtsc(); }
static bool init_sipi(void *opaque) { return true; }
static void timer(void *opaque) {}
static enum cpu_ops_result hypercall(void *opaque, bool vmmcall) { return CPU_OPS_DONE; }

static const struct cpu_ops ops = {
	.map = map, .mark_dirty = mark_dirty, .mmio = mmio, .pio = pio, .rdmsr = rdmsr, .wrmsr = wrmsr,
	.interrupt = interrupt, .get_cr8 = get_cr8, .set_cr8 = set_cr8, .tsc = tsc, .init_sipi = init_sipi,
	.timer = timer, .hypercall = hypercall,
};

enum { P = 1, W = 2, U = 4, A = 32, D = 64, PS = 128 };
#define NX (1ull << 63)

static void put(struct machine *m, u64 gpa, u64 value)
{
	memcpy(m->ram + gpa, &value, 8);
}

static void make_page_tables(struct machine *m, bool code_writable)
{
	put(m, MACHINE_PML4, MACHINE_PDPT | P | W | U | A);
	put(m, MACHINE_PML4 + 8 * 256, MACHINE_PDPT_HIGH | P | W | A);
	put(m, MACHINE_PDPT, MACHINE_PD | P | W | U | A);
	put(m, MACHINE_PD + (DATA_BASE >> 21) * 8, MACHINE_PT_DATA | P | W | U | A);
	put(m, MACHINE_PD + (CODE_BASE >> 21) * 8, MACHINE_PT_CODE | P | W | U | A);
	for (unsigned i = 0; i < DATA_PAGES; i++)
		put(m, MACHINE_PT_DATA + ((DATA_BASE >> 12 & 511) + i) * 8,
		    (MACHINE_DATA + i * 4096) | P | U | A | NX | (i < DATA_RW_PAGES ? W | D : 0));
	for (unsigned i = 0; i < CODE_PAGES; i++)
		put(m, MACHINE_PT_CODE + ((CODE_BASE >> 12 & 511) + i) * 8,
		    (MACHINE_CODE + i * 4096) | P | U | A | (code_writable ? W | D : 0));
	for (unsigned i = 0; code_writable && i < MACHINE_SHARED_SIZE / 4096; i++)
		put(m, MACHINE_PT_DATA + ((MACHINE_SHARED_BASE >> 12 & 511) + i) * 8,
		    (MACHINE_SHARED + i * 4096) | P | U | A | NX | W | D);
	put(m, MACHINE_PDPT_HIGH, MACHINE_PD_HIGH | P | W | A);
	put(m, MACHINE_PD_HIGH, 0 | P | W | A | D | PS);
}

static void make_descriptor_tables(struct machine *m)
{
	put(m, MACHINE_GDT + 0x10, 0x00af9b000000ffff); // kernel code
	put(m, MACHINE_GDT + 0x18, 0x00cf93000000ffff); // kernel data
	put(m, MACHINE_GDT + 0x20, 0x00cffb000000ffff); // user code, 32-bit
	put(m, MACHINE_GDT + 0x28, 0x00cff3000000ffff); // user data
	put(m, MACHINE_GDT + 0x30, 0x00affb000000ffff); // user code, 64-bit
	for (unsigned v = 0; v < 256; v++) {
		u64 stub = MACHINE_HIGH + MACHINE_STUBS + v * 16;
		unsigned dpl = v == 3 || v == 4 ? 3 : 0;

		put(m, MACHINE_IDT + v * 16, (stub & 0xffff) | 0x10ull << 16 | (0x8eull | dpl << 5) << 40 |
		    (stub >> 16 & 0xffff) << 48);
		put(m, MACHINE_IDT + v * 16 + 8, stub >> 32);
		m->ram[MACHINE_STUBS + v * 16] = 0xf4; // HLT
	}
}

static struct segment segment_of(u16 selector, u32 attributes)
{
	return (struct segment){ .base = 0, .limit = 0xffffffff, .attributes = attributes, .selector = selector };
}

static void reset_vcpu(struct machine *m, struct cpu *cpu, unsigned n)
{
	struct cpu_cpuid_entry *entries = calloc(CPU_MAX_CPUID, sizeof(*entries));
	u64 tss = MACHINE_TSS + n * 256;

	if (cpuid_set(cpu, entries, cpuid_supported(entries, CPU_MAX_CPUID))) {
		fprintf(stderr, "lockstep: the processor refuses its own CPUID\n");
		exit(2);
	}
	free(entries);
	cpu->efer = EFER_LME | EFER_LMA | EFER_NX | EFER_SCE;
	cpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	cpu->cr3 = MACHINE_PML4;
	cpu->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_UMIP | CR4_FSGSBASE;
	cpu->xcr0 = xsave_size > 2000 ? 0xe7 : 7;
	cpu->linear_bits = 48;
	cpu->gdtr = (struct table_register){ MACHINE_HIGH + MACHINE_GDT, 0x7f };
	cpu->idtr = (struct table_register){ MACHINE_HIGH + MACHINE_IDT, 0xfff };
	put(m, tss + 4, MACHINE_HIGH + MACHINE_STACK + (n + 1) * 4096); // RSP0
	m->ram[tss + 0x66] = 0xff, m->ram[tss + 0x67] = 0xff;		// no I/O permission map
	cpu->seg[SEG_TR] = (struct segment){ MACHINE_HIGH + tss, 0x67, SEG_P | 11, 0x40 };
	cpu->seg[SEG_LDTR] = (struct segment){ 0, 0, SEG_UNUSABLE, 0 };
	cpuid_refresh(cpu);
	cpu_mode_changed(cpu);
	tlb_flush_all(cpu);
}

void machine_create(struct machine *m, unsigned cpus, unsigned code_writable)
{
	m->ram = mmap(NULL, MACHINE_RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	m->code = vm_code_create();
	if (m->ram == MAP_FAILED || !m->code) {
		perror("lockstep: guest memory");
		exit(2);
	}
	make_page_tables(m, code_writable == MACHINE_CODE_WRITABLE);
	make_descriptor_tables(m);
	m->cpus = cpus;
	for (unsigned i = 0; i < cpus; i++) {
		m->cpu[i] = cpu_create(&ops, m, m->code);
		if (!m->cpu[i]) {
			perror("lockstep: cpu_create");
			exit(2);
		}
		reset_vcpu(m, m->cpu[i], i);
	}
}

void machine_user_mode(struct cpu *cpu, u64 rip, u64 rflags, bool mode32)
{
	u32 data = SEG_P | SEG_S | 3 << SEG_DPL_SHIFT | 3 | SEG_DB | SEG_G;
	u32 code = SEG_P | SEG_S | 3 << SEG_DPL_SHIFT | 11 | SEG_G | (mode32 ? SEG_DB : SEG_L);
	struct segment null = { .base = 0, .limit = 0, .attributes = SEG_UNUSABLE, .selector = 0 };

	cpu->rip = rip;
	cpu_set_rflags(cpu, rflags);
	cpu->cpl = 3;
	cpu->halted = cpu->interrupt_shadow = cpu->mov_ss_shadow = false;
	cpu->event.valid = false;
	cpu->delivering = 0;
	cpu->cr2 = 0;
	cpu->seg[SEG_CS] = segment_of(mode32 ? USER_CS32 : USER_CS64, code);
	cpu->seg[SEG_SS] = segment_of(USER_DS, data);
	cpu->seg[SEG_DS] = cpu->seg[SEG_ES] = mode32 ? segment_of(USER_DS, data) : null;
	cpu->seg[SEG_FS] = cpu->seg[SEG_GS] = null;
	if (!mode32)
		cpu->seg[SEG_GS].base = GS_BASE;
	cpu->request = 0;
	if (rflags & (FLAG_TF | FLAG_RF))
		cpu_request(cpu, REQ_EVENT);
	cpu_mode_changed(cpu);
}

static u64 ldt_descriptor(const struct ldt_segment *s)
{
	u64 type = s->code ? 0xb - 2 * s->read_only + 4 * s->conforming : 1 | (s->read_only ? 0 : 2) | (s->expand_down ? 4 : 0);

	return (s->limit & 0xffff) | (u64)(s->base & 0xffffff) << 16 | ((s->absent ? 0x70 : 0xf0) | type) << 40 |
	       (u64)(s->limit & 0xf0000) << 32 | (u64)(s->big << 2 | s->pages << 3) << 52 |
	       (u64)(s->base & 0xff000000) << 32;
}

void machine_load_segments(struct machine *m, struct cpu *cpu, const struct program *p)
{
	static const u8 registers[LDT_ALL] = { [LDT_DS] = SEG_DS, [LDT_ES] = SEG_ES, [LDT_SS] = SEG_SS, [LDT_CS] = SEG_CS };

	cpu->seg[SEG_LDTR] = (struct segment){ MACHINE_HIGH + MACHINE_LDT, 8 * LDT_ALL - 1, SEG_P | TYPE_LDT, 0x50 };
	for (unsigned n = LDT_DS; n < LDT_ALL; n++) {
		u64 raw = ldt_descriptor(&p->ldt[n]);

		put(m, MACHINE_LDT + 8 * n, raw);
		if (n < LDT_SEGMENTS && (p->mode32 || n <= LDT_ES))
			segment_from_descriptor(&cpu->seg[registers[n]], LDT_SELECTOR(n), raw);
	}
	cpu_mode_changed(cpu);
}

// The machine halted in a stub: the exception's frame on the kernel's stack is the end state.
void machine_take_exception(struct machine *m, struct cpu *cpu, struct state *end)
{
	u64 stub = cpu->rip - 1 - MACHINE_HIGH - MACHINE_STUBS, sp = cpu->gpr[RSP] - MACHINE_HIGH;
	u64 frame[6];

	if (stub >= 256 * 16 || stub % 16 || sp > MACHINE_RAM - sizeof(frame)) {
		end->ended = "halt outside of a handler";
		return;
	}
	end->vector = stub / 16;
	if ((1u << end->vector & 0x227d00) && end->vector < 32) { // DF TS NP SS GP PF AC CP push an error code
		u64 error;

		memcpy(&error, m->ram + sp, 8);
		end->error = error;
		sp += 8;
	}
	memcpy(frame, m->ram + sp, 40);
	end->rip = frame[0];
	end->cs = frame[1];
	end->ss = frame[4];
	end->rflags = frame[2];
	end->gpr[RSP] = frame[3];
	end->cr2 = end->vector == VECTOR_PF ? cpu->cr2 : 0;
	if (end->vector == VECTOR_PF && cpu->cr2 >= 0x7ffffffff000)
		end->error |= PF_P; // as the host's kernel pretends
}
