// SPDX-License-Identifier: MIT
// The words of the reports, and their sentences. Each word is also what JSON has.
#include "fleet/fleet.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>

const char *const fleet_generation_names[KVM_GENERATIONS] = { "over-saving", "strict", "constrained" };
const char *const fleet_outcome_names[OUTCOMES] = { "intact", "refused", "corrupted", "crashed" };
const char *const fleet_fate_names[FATES] = { "unused", "set", "kept", "lost", "corrupted", "refused", "stayed", "gone" };
const char *const fleet_view_names[] = { "none", "same", "initial", "different" };
const char *const fleet_verdict_names[] = { "unused", "same", "wrong", "off" };
const char *const fleet_end_names[] = { "not-run", "reported", "exception", "triple-fault", "kvm-error", "stuck" };

const struct fleet_piece_name fleet_pieces[PIECES] = {
	[PIECE_CPUID] = { "cpuid", "KVM_SET_CPUID2" },
	[PIECE_SREGS] = { "sregs", "KVM_SET_SREGS" },
	[PIECE_REGS] = { "regs", "KVM_SET_REGS" },
	[PIECE_XSAVE] = { "xsave", "KVM_SET_XSAVE" },
	[PIECE_XCRS] = { "xcrs", "KVM_SET_XCRS" },
	[PIECE_MSRS] = { "msrs", "KVM_SET_MSRS" },
	[PIECE_SSP] = { "ssp", "KVM_SET_ONE_REG (GUEST_SSP)" },
	[PIECE_EVENTS] = { "events", "KVM_SET_VCPU_EVENTS" },
	[PIECE_MP_STATE] = { "mp-state", "KVM_SET_MP_STATE" },
	[PIECE_DEBUGREGS] = { "debugregs", "KVM_SET_DEBUGREGS" },
};

const struct fleet_component_name fleet_components[FLEET_COMPONENTS] = {
	[FLEET_GPRS] = { "general-registers", "general registers", "RAX to R15 and RFLAGS", PIECE_REGS },
	[FLEET_SEGMENTS] = { "segments", "segments", "FS and GS base, GDTR, IDTR", PIECE_SREGS },
	[FLEET_CONTROL] = { "control-registers", "control registers", "CR0, CR2, CR3, CR4, CR8, EFER", PIECE_SREGS },
	[FLEET_DEBUG] = { "debug-registers", "debug registers", "DR0 to DR3, DR7", PIECE_DEBUGREGS },
	[FLEET_MSRS] = { "msrs", "MSRs", "SYSENTER, SYSCALL, PAT, KERNEL_GS_BASE, TSC_AUX", PIECE_MSRS },
	[FLEET_XCR0] = { "xcr0", "XCR0 and XSS", "which state components are enabled", PIECE_XCRS },
	[FLEET_X87] = { "x87", "x87", "control, status, tags, ST(0) to ST(7)", PIECE_XSAVE },
	[FLEET_SSE] = { "sse", "SSE", "XMM0 to XMM15, MXCSR", PIECE_XSAVE },
	[FLEET_AVX] = { "avx", "AVX", "upper halves of YMM0 to YMM15", PIECE_XSAVE },
	[FLEET_AVX512] = { "avx512", "AVX-512", "mask registers and the rest of the ZMM registers", PIECE_XSAVE },
	[FLEET_PKRU] = { "pkru", "PKRU", "rights of the protection keys", PIECE_XSAVE },
	[FLEET_AMX] = { "amx", "AMX", "tile configuration and tiles", PIECE_XSAVE },
	[FLEET_CET_U] = { "cet-u", "CET_U", "IA32_U_CET, IA32_PL3_SSP", PIECE_MSRS },
	[FLEET_CET_S] = { "cet-s", "CET_S", "IA32_PL0_SSP to IA32_PL2_SSP", PIECE_MSRS },
	[FLEET_S_CET] = { "s-cet", "S_CET", "IA32_S_CET, IA32_INTERRUPT_SSP_TABLE_ADDR", PIECE_MSRS },
	[FLEET_SHADOW_STACK] = { "shadow-stack", "shadow stack", "SSP, and the calls open on a live shadow stack",
				 PIECE_SSP },
	[FLEET_USER_STACK] = { "user-shadow-stack", "user shadow stack", "IA32_PL3_SSP, and a program's open calls",
			       PIECE_MSRS },
};

struct text {
	char *to;
	size_t left;
};

static void add(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct text *t, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(t->to, t->left, format, args);
	va_end(args);
	if (n < 0)
		return;
	if ((size_t)n >= t->left)
		n = t->left ? (int)t->left - 1 : 0;
	t->to += n;
	t->left -= (size_t)n;
}

static void add_components(struct text *t, uint64_t bits)
{
	static const char *const names[] = { "x87", "SSE", "AVX", "BNDREGS", "BNDCSR", "opmask", "ZMM_Hi256", "Hi16_ZMM",
					     [9] = "PKRU", [17] = "TILECFG", [18] = "TILEDATA", [19] = "APX" };
	bool more = false;

	for (unsigned i = 0; i < 64; i++) {
		if (!(bits >> i & 1))
			continue;
		if (i < sizeof(names) / sizeof(names[0]) && names[i])
			add(t, "%s%s", more ? ", " : "", names[i]);
		else
			add(t, "%scomponent %u", more ? ", " : "", i);
		more = true;
	}
}

void fleet_say_refusal(const struct fleet_journey *journey, unsigned step, char *text, size_t size)
{
	const struct fleet_step *s = &journey->steps[step];
	const struct fleet_host *host = &journey->description.hosts[journey->description.path[step]];
	struct text t = { text, size };
	const struct fleet_piece_result *failed;

	*text = 0;
	for (unsigned i = 0; i < PIECES; i++)
		if (step && (host->forgets >> i & 1))
			add(&t, "%s is never called; ", fleet_pieces[i].ioctl);
	if (s->failed < 0) {
		if (*text)
			text[strlen(text) - 2] = 0;
		return;
	}
	failed = &s->pieces[s->failed];
	add(&t, "%s: %s", fleet_pieces[s->failed].ioctl, strerrorname_np(failed->error));
	if (s->failed == PIECE_MSRS && failed->msr)
		add(&t, " at MSR 0x%x", failed->msr);
	if (s->failed == PIECE_XSAVE) {
		add(&t, " for an image of ");
		add_components(&t, s->image);
		if (s->surplus) {
			add(&t, "; the guest has no ");
			add_components(&t, s->surplus);
		}
		if (s->unsupported) {
			add(&t, "; the host has no ");
			add_components(&t, s->unsupported);
		}
	}
	add(&t, host->carries_on ? "; the VMM carries on, and loads nothing more" : "; the VMM stops");
}

static const char *exit_name(unsigned reason)
{
	switch (reason) {
	case KVM_EXIT_IO:
		return "KVM_EXIT_IO";
	case KVM_EXIT_MMIO:
		return "KVM_EXIT_MMIO";
	case KVM_EXIT_HLT:
		return "KVM_EXIT_HLT";
	case KVM_EXIT_FAIL_ENTRY:
		return "KVM_EXIT_FAIL_ENTRY";
	case KVM_EXIT_INTERNAL_ERROR:
		return "KVM_EXIT_INTERNAL_ERROR";
	default:
		return "an exit it cannot go on from";
	}
}

static const char *exception_name(unsigned vector)
{
	static const char *const names[] = { "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS",
					     "#NP", "#SS", "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP" };

	return vector < sizeof(names) / sizeof(names[0]) ? names[vector] : "an exception";
}

void fleet_say_guest(const struct fleet_step *s, char *text, size_t size)
{
	const struct fleet_report *r = &s->report;
	struct text t = { text, size };
	unsigned wrong = 0;

	*text = 0;
	switch (s->end) {
	case END_NONE:
		add(&t, "did not run here");
		return;
	case END_TRIPLE_FAULT:
		add(&t, "nothing: it died of a triple fault before it could tell");
		return;
	case END_KVM:
		add(&t, "nothing: KVM could not run it (%s)", exit_name(s->end_detail));
		return;
	case END_STUCK:
		add(&t, "nothing: it did not come back");
		return;
	default:
		break;
	}
	if (s->end == END_EXCEPTION) {
		add(&t, "%s", exception_name(r->exception - 1));
		if (r->exception - 1 == 14)
			add(&t, " at address 0x%llx", (unsigned long long)r->cr2);
		else if (r->error)
			add(&t, " with error code 0x%llx", (unsigned long long)r->error);
		add(&t, " after %u of %u returns; ", r->returned + r->user_returned,
		    r->depth + r->user_depth);
	}
	for (uint32_t verdict = FLEET_WRONG; r->checked && verdict <= FLEET_OFF; verdict++) {
		bool more = false;

		for (unsigned i = 0; i < FLEET_COMPONENTS; i++) {
			if (r->found[i].verdict != verdict)
				continue;
			add(&t, "%s%s", more ? ", " : !wrong ? (verdict == FLEET_OFF ? "off: " : "wrong: ") : "; off: ",
			    fleet_components[i].title);
			more = true;
			wrong++;
		}
	}
	if (!wrong && s->end == END_EXCEPTION)
		add(&t, "all values are what they were");
	else if (!wrong)
		add(&t, "everything is what it was; %u calls returned", r->returned + r->user_returned);
}

void fleet_say_difference(const struct fleet_step *s, enum fleet_component component, char *text, size_t size)
{
	static const char *const gprs[] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10",
					    "R11", "R12", "R13", "R14", "R15", "RFLAGS" };
	const struct fleet_finding *f = &s->report.found[component];
	struct text t = { text, size };

	*text = 0;
	if (!s->report.checked || f->verdict < FLEET_WRONG)
		return;
	if (f->what >= 0x174)
		add(&t, "MSR 0x%x", f->what);
	else if (component == FLEET_GPRS && f->what < 17)
		add(&t, "%s", gprs[f->what]);
	else if (component == FLEET_CONTROL)
		add(&t, "CR%u", f->what);
	else if (component == FLEET_DEBUG)
		add(&t, "DR%u", f->what);
	else if (component == FLEET_SHADOW_STACK)
		add(&t, "SSP");
	else if (component == FLEET_USER_STACK)
		add(&t, "calls");
	else if (component == FLEET_XCR0 || f->verdict == FLEET_OFF)
		add(&t, component == FLEET_PKRU ? "CR4.PKE" : "XCR0");
	else if (component == FLEET_PKRU)
		add(&t, "PKRU");
	else
		add(&t, "byte %u", f->what);
	add(&t, ": left 0x%llx, found 0x%llx", (unsigned long long)f->wanted, (unsigned long long)f->found);
}

void fleet_say_outcome(const struct fleet_journey *journey, char *text, size_t size)
{
	unsigned last = journey->step_count - 1, from = last;
	const struct fleet_description *d = &journey->description;
	const char *host = d->hosts[d->path[last]].name;

	switch (journey->outcome) {
	case OUTCOME_INTACT:
		snprintf(text, size, "The guest arrived on %s with all its state.", host);
		return;
	case OUTCOME_REFUSED:
		snprintf(text, size, "Host %s refused the guest%s.", host,
			 !journey->resumed ? "" :
			 journey->source.outcome == OUTCOME_INTACT ? ", which goes on unharmed where it was" :
								     ", which was harmed already where it was");
		return;
	case OUTCOME_CORRUPTED:
		for (unsigned i = 0; i <= last; i++)
			if (journey->steps[i].outcome == OUTCOME_CORRUPTED && from == last)
				from = i;
		snprintf(text, size, "%s From host '%s' on, the guest runs with state that is lost or corrupted.",
			 journey->steps[from].failed >= 0 ? "Silent corruption: an error was ignored." :
							    "Silent corruption: no error was seen.",
			 d->hosts[d->path[from]].name);
		return;
	default:
		snprintf(text, size, "The guest crashed on %s.", host);
	}
}
