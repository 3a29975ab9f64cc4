// SPDX-License-Identifier: MIT
// Writes of the client to pages that hold translated code: DMA of its devices, breakpoints of its
// debugger, firmware and kernels it loads, memory it moves about.
//
// No TLB of ours sees such a write, and the client's mapping cannot be write-protected: its system calls
// would fail with EFAULT. So each page with code keeps a hash of the bytes that blocks were made from,
// which is compared with memory again where a write may have become visible to the guest:
//
// - Epochs count the instants after which the client may have written: it had control (KVM_RUN begins),
//   it sent an interrupt, the memory map changed. A page is compared once in an epoch at most.
// - The comparison is made when a fetch misses tlb_code, so whoever wants it made drops those entries
//   (and the cached jumps, which lead past tlb_code).
// - cpu_client_ran(), called at KVM_RUN and a few dozen times a second while it goes on, drops them when
//   the client had the vCPU for more than an I/O exit, with paging off (firmware and boot loaders run what
//   a disk wrote a moment ago), and after STALE_CYCLES; a switch of CR0.PE does, too.
//
// Deviation: code that was overwritten by a device in the address space that ran it before, with neither
// a TLB flush nor such an entry between, is run as it was, for STALE_CYCLES at most.
#include "cpu/guest_access.h"
#include "cpu/jit.h"
#include "cpu/mem.h"

#define STALE_CYCLES (20ull * 1000 * 1000) // of the host's TSC: some milliseconds

// Where the client has taken memory away no code is as it was: the fetch that follows will find out.
static u64 read64(const u8 *p)
{
	u64 value;

	return guest_load64(p, &value) ? value : __builtin_ia32_rdtsc();
}

static u64 fold(u64 a, u64 b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (u64)product ^ (u64)(product >> 64);
}

// A sum over the pieces, so that a page can get further ones.
static u64 hash_chunk(const u8 *host, unsigned chunk)
{
	const u8 *p = host + chunk * 64;
	u64 salt = (chunk + 1) * 0x9e3779b97f4a7c15ull, hash;

	hash = fold(read64(p) ^ salt, read64(p + 8) ^ 0xa0761d6478bd642full);
	hash += fold(read64(p + 16) ^ salt, read64(p + 24) ^ 0xe7037ed1a0b428dbull);
	hash += fold(read64(p + 32) ^ salt, read64(p + 40) ^ 0x8ebc6af09c88c6e3ull);
	hash += fold(read64(p + 48) ^ salt, read64(p + 56) ^ 0x589965cc75374cc3ull);
	return hash;
}

static u64 hash_chunks(const u8 *host, u64 chunks)
{
	u64 hash = 0;

	for (; chunks; chunks &= chunks - 1)
		hash += hash_chunk(host, __builtin_ctzll(chunks));
	return hash;
}

void jit_note_code(struct code_page *page, const u8 *host, unsigned offset, unsigned length)
{
	unsigned first = offset / 64, last = (offset + length - 1) / 64;
	u64 chunks = (last == 63 ? ~0ull : (1ull << (last + 1)) - 1) & ~0ull << first;

	chunks &= ~page->chunks;
	page->hash += hash_chunks(host, chunks);
	page->chunks |= chunks;
}

static u64 epoch(const struct jit *jit)
{
	return __atomic_load_n(vm_code_epoch(jit->vm), __ATOMIC_ACQUIRE) + jit->own_epoch;
}

void jit_check_code_page(struct cpu *cpu, u64 gpa, const u8 *host)
{
	struct code_page *page = jit_find_page(cpu->jit, gpa);
	u64 now;

	if (!page || !page->chunks)
		return;
	now = epoch(cpu->jit);
	if (page->checked == now)
		return;
	page->checked = now;
	if (hash_chunks(host, page->chunks) != page->hash)
		jit_drop_blocks(cpu, page);
}

void vm_code_client_wrote(struct vm_code *vm)
{
	__atomic_fetch_add(vm_code_epoch(vm), 1, __ATOMIC_RELEASE);
}

void cpu_client_ran(struct cpu *cpu, bool io)
{
	struct jit *jit = cpu->jit;
	u64 now = __builtin_ia32_rdtsc();

	if (!jit)
		return; // being made
	jit->own_epoch++;
	if (io && (cpu->cr0 & CR0_PG) && now - jit->stale_since < STALE_CYCLES)
		return;
	jit->stale_since = now;
	tlb_drop_code(cpu);
	jit_clear_jumps(cpu);
}

void cpu_memory_map_changed(struct cpu *cpu)
{
	cpu->jit->own_epoch++;
	tlb_flush_all(cpu);
}
