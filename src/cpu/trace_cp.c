// SPDX-License-Identifier: MIT
// `--trace cp`: each #CP explained on one line: kind, level, place, what the shadow stack held and
// what was expected, or for a missing ENDBR the branch that came here; with symbols where known.
// Runs just before the exception is raised; the guest's vector state is put away first, so the C
// library may be used.
#include "cpu/trace_cp.h"

#include "base/symbols.h"
#include "cpu/cet.h"
#include "cpu/mem.h"

#include <stdio.h>
#include <unistd.h>

// Guest bytes for telling where a program was loaded; touches nothing of the guest.
static size_t peek(void *opaque, u64 address, void *data, size_t size)
{
	struct cpu *cpu = opaque;
	struct walk walk;
	unsigned flags;
	const u8 *host;

	if ((address & 0xfff) + size > 0x1000 || !cpu_canonical(cpu, address) ||
	    !paging_translate(cpu, address, &walk))
		return 0;
	host = cpu->ops->map(cpu->opaque, walk.gpa & ~0xfffull, &flags);
	if (!host)
		return 0;
	__builtin_memcpy(data, host + (walk.gpa & 0xfff), size);
	return size;
}

// A Linux kernel's own table, looked for once, behind code of the kernel.
static void load_kernel_symbols(struct cpu *cpu, u64 address)
{
	static bool tried;

	if (!cpu_64bit(cpu) || __atomic_exchange_n(&tried, true, __ATOMIC_RELAXED))
		return;
	kallsyms_load(cpu->lstar ? cpu->lstar : address, peek, cpu);
}

static void symbolize_default(struct cpu *cpu, u64 address, char *buf, size_t n)
{
	// The kernel may have been moved (KASLR); LSTAR says where its entry point is.
	if (cpu->lstar)
		symbols_set_anchor("entry_SYSCALL_64", cpu->lstar);
	symbols_name(address, peek, cpu, buf, n);
	if (!buf[0] && address >> 63) {
		load_kernel_symbols(cpu, address);
		symbols_name(address, peek, cpu, buf, n);
	}
}

void (*trace_cp_symbolize)(struct cpu *cpu, u64 address, char *buf, size_t n) = symbolize_default;
void (*trace_cp_hook)(struct cpu *cpu, unsigned code, u64 found, u64 wanted);

static const char *kind(unsigned code)
{
	switch (code) {
	case CP_NEAR_RET:
		return "NEAR-RET";
	case CP_FAR_RET:
		return "FAR-RET/IRET";
	case CP_ENDBRANCH:
		return "ENDBRANCH";
	case CP_RSTORSSP:
		return "RSTORSSP";
	case CP_SETSSBSY:
		return "SETSSBSY";
	}
	return "?";
}

static void name(struct cpu *cpu, u64 address, char *buf, size_t n)
{
	buf[0] = 0;
	if (trace_cp_symbolize)
		trace_cp_symbolize(cpu, address, buf, n);
}

void trace_cp(struct cpu *cpu, unsigned code, u64 found, u64 wanted)
{
	char rip[160], a[160], b[160], line[720];
	int n;

	if (trace_cp_hook)
		trace_cp_hook(cpu, code, found, wanted);
	if (!cpu->trace_cp)
		return;
	cpu_fpu_unload(cpu);
	name(cpu, cpu->rip, rip, sizeof(rip));
	n = snprintf(line, sizeof(line), "cetkvm: #CP(%s) cpl %u rip 0x%llx%s ssp 0x%llx", kind(code), cpu->cpl,
		     (unsigned long long)cpu->rip, rip, (unsigned long long)cpu->ssp);
	switch (code) {
	case CP_NEAR_RET:
	case CP_FAR_RET:
		name(cpu, found, a, sizeof(a));
		name(cpu, wanted, b, sizeof(b));
		snprintf(line + n, sizeof(line) - n, ": shadow stack holds 0x%llx%s, return goes to 0x%llx%s\n",
			 (unsigned long long)found, a, (unsigned long long)wanted, b);
		break;
	case CP_ENDBRANCH:
		name(cpu, cpu->last_branch_from, a, sizeof(a));
		snprintf(line + n, sizeof(line) - n, ": no ENDBR%s here, branch from 0x%llx%s\n",
			 cpu_64bit(cpu) ? "64" : "32", (unsigned long long)cpu->last_branch_from, a);
		break;
	default:
		snprintf(line + n, sizeof(line) - n, ": token is 0x%llx, expected 0x%llx\n",
			 (unsigned long long)found, (unsigned long long)wanted);
		break;
	}
	if (write(STDERR_FILENO, line, __builtin_strlen(line)) < 0)
		return;
}
