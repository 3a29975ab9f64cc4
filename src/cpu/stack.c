// SPDX-License-Identifier: MIT
// Stack accesses of control transfers.
// Invariant: a push either checks and writes all of its slots or raises with nothing written.
// SDM: "Stack Behavior in 64-Bit Mode", "Limit Checking".
#include "cpu/stack.h"

#include "cpu/guest_access.h"
#include "cpu/segment.h"

static u64 stack_mask(const struct segment *ss, bool wide)
{
	return wide ? ~0ull : ss->attributes & SEG_DB ? 0xffffffffull : 0xffffull;
}

void stack_new(struct cpu *cpu, struct stack *stack, const struct segment *ss, u64 sp, unsigned cpl,
	       bool wide, u32 error)
{
	stack->ss = *ss;
	stack->mask = stack_mask(ss, wide);
	stack->sp = sp & stack->mask;
	stack->error = error;
	stack->access = cpl == 3 ? ACCESS_USER : 0;
}

void stack_current(struct cpu *cpu, struct stack *stack)
{
	stack_new(cpu, stack, &cpu->seg[SEG_SS], cpu->gpr[RSP], cpu->cpl, cpu_64bit(cpu), 0);
}

// Linear address of [offset, offset + size), which does not wrap.
static u64 stack_linear(struct cpu *cpu, const struct stack *stack, u64 offset, unsigned size)
{
	if (stack->mask == ~0ull) {
		if (!cpu_canonical(cpu, offset) || !cpu_canonical(cpu, offset + size - 1))
			cpu_raise_error(cpu, VECTOR_SS, stack->error);
		return offset;
	}
	if (stack->ss.attributes & SEG_UNUSABLE || !segment_within_limit(&stack->ss, offset, size))
		cpu_raise_error(cpu, VECTOR_SS, stack->error);
	return (u32)(stack->ss.base + offset);
}

static bool wraps(const struct stack *stack, u64 offset, unsigned size)
{
	return offset + size - 1 > stack->mask || offset + size - 1 < offset;
}

// A frame of 8-byte slots within one page of RAM is the usual case: one look-up, one store a slot.
static void write_at(struct cpu *cpu, const struct stack *stack, u64 linear, const void *data,
		     unsigned size)
{
	u64 *host = size & 7 ? NULL : mem_host(cpu, linear, size, ACCESS_WRITE | stack->access);

	if (!host) {
		mem_write(cpu, linear, data, size, ACCESS_WRITE | stack->access);
		return;
	}
	for (unsigned i = 0; i < size / 8; i++)
		if (!guest_store64(host + i, ((const u64 *)data)[i]))
			guest_fault(cpu, host + i);
}

void stack_push(struct cpu *cpu, struct stack *stack, const void *data, unsigned size, unsigned slot)
{
	u64 offset = (stack->sp - size) & stack->mask;

	if (!wraps(stack, offset, size)) {
		write_at(cpu, stack, stack_linear(cpu, stack, offset, size), data, size);
		stack->sp = offset;
		return;
	}
	for (unsigned i = slot; i <= size; i += slot) {
		u64 at = (stack->sp - i) & stack->mask;

		mem_probe_write(cpu, stack_linear(cpu, stack, at, slot), slot, ACCESS_WRITE | stack->access);
	}
	for (unsigned i = slot; i <= size; i += slot) {
		u64 at = (stack->sp - i) & stack->mask;

		write_at(cpu, stack, stack_linear(cpu, stack, at, slot), (const u8 *)data + size - i, slot);
	}
	stack->sp = offset;
}

void stack_peek(struct cpu *cpu, const struct stack *stack, unsigned offset, void *data, unsigned size)
{
	u64 at = (stack->sp + offset) & stack->mask, linear;
	const u64 *host;

	if (size > 8 && wraps(stack, at, size)) {
		for (unsigned i = 0; i < size; i += 2)
			stack_peek(cpu, stack, offset + i, (u8 *)data + i, 2);
		return;
	}
	linear = stack_linear(cpu, stack, at, size);
	host = size & 7 ? NULL : mem_host(cpu, linear, size, ACCESS_READ | stack->access);
	if (!host) {
		mem_read(cpu, linear, data, size, ACCESS_READ | stack->access);
		return;
	}
	for (unsigned i = 0; i < size / 8; i++)
		if (!guest_load64(host + i, (u64 *)data + i))
			guest_fault(cpu, host + i);
}

void stack_poke(struct cpu *cpu, const struct stack *stack, unsigned offset, const void *data,
		unsigned size)
{
	u64 at = (stack->sp + offset) & stack->mask;

	write_at(cpu, stack, stack_linear(cpu, stack, at, size), data, size);
}

u64 stack_pop(struct cpu *cpu, struct stack *stack, unsigned size)
{
	u64 value = 0;

	stack_peek(cpu, stack, 0, &value, size);
	stack->sp = (stack->sp + size) & stack->mask;
	return value;
}

void stack_commit(struct cpu *cpu, const struct stack *stack)
{
	if (stack->mask == 0xffff)
		*(u16 *)&cpu->gpr[RSP] = stack->sp;
	else
		cpu->gpr[RSP] = stack->sp;
}
