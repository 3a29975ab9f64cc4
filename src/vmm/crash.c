// SPDX-License-Identifier: MIT
// What a dead guest leaves: registers, CET state if there is any, and the code at RIP.
#include "vmm/vcpu.h"

#include "vmm/machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MSR_U_CET   0x6a0
#define MSR_S_CET   0x6a2
#define MSR_PL0_SSP 0x6a4
#define MSR_PL3_SSP 0x6a7
#define CR4_CET     (1ull << 23)

#define CODE_BYTES 16

// The whole report is one write: two vCPUs must not interleave theirs.
struct report {
	char text[4096];
	size_t length;
};

static void report_add(struct report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void report_add(struct report *report, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(report->text + report->length, sizeof(report->text) - report->length, format, args);
	va_end(args);
	if (n > 0 && report->length + n < sizeof(report->text))
		report->length += n;
}

#define U(x) ((unsigned long long)(x))

static void report_segment(struct report *report, const char *name, const struct kvm_segment *segment)
{
	report_add(report, "  %-3s %04x base %016llx limit %08x type %x dpl %u%s%s%s%s\n", name, segment->selector,
		   U(segment->base), segment->limit, segment->type, segment->dpl, segment->present ? " present" : "",
		   segment->l ? " 64-bit" : segment->db ? " 32-bit" : "", segment->g ? " 4K" : "",
		   segment->unusable ? " unusable" : "");
}

static void report_general(struct report *report, const struct kvm_regs *r)
{
	report_add(report, "  rax %016llx  rbx %016llx  rcx %016llx  rdx %016llx\n", U(r->rax), U(r->rbx), U(r->rcx),
		   U(r->rdx));
	report_add(report, "  rsi %016llx  rdi %016llx  rbp %016llx  rsp %016llx\n", U(r->rsi), U(r->rdi), U(r->rbp),
		   U(r->rsp));
	report_add(report, "  r8  %016llx  r9  %016llx  r10 %016llx  r11 %016llx\n", U(r->r8), U(r->r9), U(r->r10),
		   U(r->r11));
	report_add(report, "  r12 %016llx  r13 %016llx  r14 %016llx  r15 %016llx\n", U(r->r12), U(r->r13), U(r->r14),
		   U(r->r15));
	report_add(report, "  rip %016llx  rflags %llx\n", U(r->rip), U(r->rflags));
}

static void report_system(struct report *report, const struct kvm_sregs *s)
{
	report_add(report, "  cr0 %llx  cr2 %llx  cr3 %llx  cr4 %llx  cr8 %llx  efer %llx\n", U(s->cr0), U(s->cr2),
		   U(s->cr3), U(s->cr4), U(s->cr8), U(s->efer));
	report_segment(report, "cs", &s->cs);
	report_segment(report, "ss", &s->ss);
	report_segment(report, "ds", &s->ds);
	report_segment(report, "es", &s->es);
	report_segment(report, "fs", &s->fs);
	report_segment(report, "gs", &s->gs);
	report_segment(report, "tr", &s->tr);
	report_segment(report, "ldt", &s->ldt);
	report_add(report, "  gdt base %016llx limit %04x  idt base %016llx limit %04x\n", U(s->gdt.base), s->gdt.limit,
		   U(s->idt.base), s->idt.limit);
}

static void report_msr(struct report *report, struct vcpu *vcpu, uint32_t index, const char *name)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msrs;

	memset(&msrs, 0, sizeof(msrs));
	msrs.header.nmsrs = 1;
	msrs.entry.index = index;
	if (vcpu->machine->kvm->ioctl(vcpu->fd, KVM_GET_MSRS, &msrs) == 1)
		report_add(report, "  %s %llx", name, U(msrs.entry.data));
}

static void report_cet(struct report *report, struct vcpu *vcpu)
{
	// The shadow-stack pointer is a KVM register, not an MSR: KVM_X86_REG_KVM(GUEST_SSP).
	uint64_t ssp = 0;
	struct kvm_one_reg reg = { .id = 0x2030000300000000ull, .addr = (uintptr_t)&ssp };

	if (vcpu->machine->kvm->ioctl(vcpu->fd, KVM_GET_ONE_REG, &reg) >= 0)
		report_add(report, "  ssp %016llx", U(ssp));
	report_msr(report, vcpu, MSR_S_CET, "s_cet");
	report_msr(report, vcpu, MSR_U_CET, "u_cet");
	report_msr(report, vcpu, MSR_PL0_SSP, "pl0_ssp");
	report_msr(report, vcpu, MSR_PL3_SSP, "pl3_ssp");
	report_add(report, "\n");
}

static void report_code(struct report *report, struct vcpu *vcpu, uint64_t address)
{
	struct kvm_translation translation;
	const uint8_t *byte;
	unsigned i;

	report_add(report, "  code at rip:");
	for (i = 0; i < CODE_BYTES; i++) {
		memset(&translation, 0, sizeof(translation));
		translation.linear_address = address + i;
		if (vcpu->machine->kvm->ioctl(vcpu->fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid)
			break;
		byte = guest_memory_at(&vcpu->machine->memory, translation.physical_address, 1);
		if (!byte)
			break;
		report_add(report, " %02x", *byte);
	}
	report_add(report, i ? "\n" : " not mapped\n");
}

void vcpu_report_registers(struct vcpu *vcpu)
{
	const struct kvm_backend *kvm = vcpu->machine->kvm;
	struct report report = { .length = 0 };
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	if (kvm->ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 || kvm->ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
		return;
	report_add(&report, "registers of vCPU %u:\n", vcpu->index);
	report_general(&report, &regs);
	report_system(&report, &sregs);
	if (sregs.cr4 & CR4_CET)
		report_cet(&report, vcpu);
	report_code(&report, vcpu, sregs.cs.base + regs.rip);
	if (write(STDERR_FILENO, report.text, report.length) < 0)
		return; // nobody listens
}
