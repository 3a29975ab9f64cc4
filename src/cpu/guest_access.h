// SPDX-License-Identifier: MIT
// Raw accesses to guest memory at host addresses. The client that owns the memory may unmap or
// protect it at any instant, so each access is one instruction with an entry in the exception
// table: the handler of SIGSEGV and SIGBUS (src/cpu/jit_signal.c) finds the faulting instruction in
// it and goes on at the fixup. All return false on such a fault: then use guest_fault().
//
// `volatile` is not idle: GCC 12 drops an asm goto whose outputs are not used.
//
// An access of 1, 2, 4 or 8 bytes is one host access: naturally aligned ones are atomic.
#ifndef CETKVM_CPU_GUEST_ACCESS_H
#define CETKVM_CPU_GUEST_ACCESS_H

#include "cpu/cpu.h"

struct exception_entry {
	u64 ip, fixup;
};
extern const struct exception_entry __start_cet_extable[], __stop_cet_extable[];

#define GUEST_ACCESS_FIXUP(ip, fixup) \
	".pushsection cet_extable, \"aw\"\n\t.balign 8\n\t.quad " ip ", " fixup "\n\t.popsection\n\t"

#define GUEST_LOAD(bits, instruction, modifier) \
	static inline bool guest_load##bits(const void *host, u##bits *value) \
	{ \
		u##bits v; \
 \
		__asm__ volatile goto("1: " instruction " %1, %" modifier "0\n\t" \
			     GUEST_ACCESS_FIXUP("1b", "%l[fault]") \
			     : "=r"(v) : "m"(*(const u##bits *)host) : : fault); \
		*value = v; \
		return true; \
	fault: \
		return false; \
	} \
	static inline bool guest_store##bits(void *host, u##bits value) \
	{ \
		__asm__ volatile goto("1: " instruction " %" modifier "0, %1\n\t" \
			     GUEST_ACCESS_FIXUP("1b", "%l[fault]") \
			     : : "r"(value), "m"(*(u##bits *)host) : "memory" : fault); \
		return true; \
	fault: \
		return false; \
	} \
	/* Old value in *expected; compares with what was there. */ \
	static inline bool guest_cmpxchg##bits(void *host, u##bits *expected, u##bits desired) \
	{ \
		u##bits old = *expected; \
 \
		__asm__ volatile goto("1: lock cmpxchg %" modifier "2, %1\n\t" \
			     GUEST_ACCESS_FIXUP("1b", "%l[fault]") \
			     : "+a"(old), "+m"(*(u##bits *)host) : "r"(desired) : "memory", "cc" \
			     : fault); \
		*expected = old; \
		return true; \
	fault: \
		return false; \
	}

GUEST_LOAD(8, "movb", "b")
GUEST_LOAD(16, "movw", "w")
GUEST_LOAD(32, "movl", "k")
GUEST_LOAD(64, "movq", "q")
#undef GUEST_LOAD

static inline bool guest_load(const void *host, unsigned size, u64 *value)
{
	u8 v8;
	u16 v16;
	u32 v32;

	switch (size) {
	case 1:
		if (!guest_load8(host, &v8))
			return false;
		*value = v8;
		return true;
	case 2:
		if (!guest_load16(host, &v16))
			return false;
		*value = v16;
		return true;
	case 4:
		if (!guest_load32(host, &v32))
			return false;
		*value = v32;
		return true;
	default:
		return guest_load64(host, value);
	}
}

static inline bool guest_store(void *host, unsigned size, u64 value)
{
	return size == 1   ? guest_store8(host, value)
	       : size == 2 ? guest_store16(host, value)
	       : size == 4 ? guest_store32(host, value)
			   : guest_store64(host, value);
}

// One side is guest memory, the other one ours. On a fault part of it was copied.
static inline bool guest_copy(void *to, const void *from, size_t size)
{
	__asm__ volatile goto("1: rep movsb\n\t" GUEST_ACCESS_FIXUP("1b", "%l[fault]")
		     : "+D"(to), "+S"(from), "+c"(size) : : "memory" : fault);
	return true;
fault:
	return false;
}

// Leaves the current instruction because host memory at `host` cannot be accessed.
static inline __attribute__((noreturn)) void guest_fault(struct cpu *cpu, const void *host)
{
	cpu->fault_hva = (u64)host;
	cpu_abort(cpu, CPU_EXIT_FAULT);
}

#endif
