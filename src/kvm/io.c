// SPDX-License-Identifier: MIT
// Port and memory I/O of the guest: in-kernel devices first, then user space.
// api.rst: "The kvm_run structure", KVM_EXIT_IO, KVM_EXIT_MMIO.
//
// An access that user space must make ends KVM_RUN; the instruction has done nothing yet. The next
// KVM_RUN starts it anew (cpu->replay), and the accesses it made before are answered from the list
// of fragments: an instruction may need several (read, modify, write; two pages; 64 bytes). Outside
// a replay an access begins a new list.
#include "cpu/mem.h"
#include "kvm/kvm.h"

#include <string.h>

static u64 linear_rip(const struct vcpu *vcpu)
{
	return vcpu->cpu->rip + (cpu_64bit(vcpu->cpu) ? 0 : vcpu->cpu->seg[SEG_CS].base);
}

enum cpu_ops_result io_leave(struct vcpu *vcpu, enum completion completion)
{
	vcpu->completion = completion;
	vcpu->completion_rip = linear_rip(vcpu);
	vcpu->exit_to_user = true;
	return CPU_OPS_EXIT;
}

static void forget(struct vcpu *vcpu)
{
	vcpu->fragment_count = vcpu->fragment_next = 0;
	vcpu->pio.valid = vcpu->msr.valid = false;
}

// ---- ports ----
static bool kernel_port(struct vcpu *vcpu, u16 port, u8 *data, unsigned size, bool write)
{
	struct irqchip *chip = __atomic_load_n(&vcpu->vm->chip, __ATOMIC_ACQUIRE);
	bool pic, pit;

	if (!chip || !chip->pic_and_ioapic)
		return false;
	pic = pic_owns_port(port);
	pit = !pic && pit_owns_port(chip, port);
	if (!pic && !pit)
		return false;
	// The chips are eight bits wide: a wider access reaches them with its lowest byte.
	if (write) {
		if (pic)
			pic_port_write(chip, port, data[0]);
		else
			pit_port_write(chip, port, data[0]);
	} else {
		memset(data, 0, size);
		data[0] = pic ? pic_port_read(chip, port) : pit_port_read(chip, port);
	}
	return true;
}

// At most a page, as the processor reads memory for it.
enum cpu_ops_result ops_pio(void *opaque, u16 port, void *data, unsigned size, unsigned count, bool write)
{
	struct vcpu *vcpu = opaque;
	struct kvm_run *run = vcpu->run;
	unsigned done = 0;
	u8 *bytes = data;

	if (!vcpu->cpu->replay)
		forget(vcpu);
	if (vcpu->pio.valid && vcpu->pio.port == port && vcpu->pio.size == size &&
	    vcpu->pio.count == count && vcpu->pio.write == write) {
		if (!write)
			memcpy(data, vcpu->pio.data, size * count);
		return CPU_OPS_DONE;
	}
	while (done < count) {
		u8 *item = bytes + done * size;

		if (!kernel_port(vcpu, port, item, size, write) &&
		    !(write && bus_write(vcpu->vm, true, port, size, item)))
			break;
		done++;
	}
	if (done == count)
		return CPU_OPS_DONE;
	// Of a repeated output, the rest: what an eventfd or a ring has taken is not made again.
	if (!write)
		done = 0;
	run->io.direction = write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.size = size;
	run->io.port = port;
	run->io.count = count - done;
	run->io.data_offset = PAGE_SIZE;
	if (write)
		memcpy(vcpu->pio_page, bytes + done * size, size * (count - done));
	else
		memset(vcpu->pio_page, 0, size * count);
	vcpu->pio.port = port;
	vcpu->pio.size = size;
	vcpu->pio.count = count;
	vcpu->pio.write = write;
	run->exit_reason = KVM_EXIT_IO;
	vcpu->counters->io_exits++;
	return io_leave(vcpu, COMPLETE_PIO);
}

// ---- memory ----
// Returns false where the local APIC leaves its page to others.
static bool apic_page(struct vcpu *vcpu, unsigned offset, void *data, unsigned length, bool write)
{
	struct lapic *lapic = vcpu->lapic;

	if (!lapic_enabled(lapic) || lapic_x2apic(lapic)) {
		// A hole. User space would take a write for a message-signaled interrupt.
		if (vcpu->vm->disabled_quirks & KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
			return false;
		if (!write)
			memset(data, 0xff, length);
	} else if (offset >= APIC_REGS_SIZE) {
		if (!write)
			memset(data, 0, length);
	} else if (write) {
		lapic_write(lapic, offset, length, data);
	} else {
		lapic_read(lapic, offset, length, data);
	}
	return true;
}

static bool kernel_memory(struct vcpu *vcpu, u64 gpa, void *data, unsigned length, bool write)
{
	struct irqchip *chip = __atomic_load_n(&vcpu->vm->chip, __ATOMIC_ACQUIRE);
	u64 offset = ~0ull; // into the I/O APIC

	if (vcpu->lapic && gpa - (vcpu->lapic->base & ~0xfffull) < PAGE_SIZE &&
	    apic_page(vcpu, gpa & 0xfff, data, length, write))
		return true;
	if (chip && chip->pic_and_ioapic)
		offset = gpa - __atomic_load_n(&chip->ioapic.base, __ATOMIC_RELAXED);
	if (offset < IOAPIC_SIZE) {
		if (write)
			ioapic_write(chip, offset, length, data);
		else
			ioapic_read(chip, offset, length, data);
		return true;
	}
	return write && bus_write(vcpu->vm, false, gpa, length, data);
}

// A descriptor table or a stack that an event is delivered through is in no memory slot. KVM gives up.
// The data are a VM exit's, as of VMX: IDT-vectoring information, exit reason (EPT misconfiguration, as KVM
// marks such memory), exit qualification, guest-physical address.
static void delivery_failed(struct vcpu *vcpu, u64 gpa)
{
	const struct cpu *cpu = vcpu->cpu;
	struct kvm_run *run = vcpu->run;
	u64 information = 1u << 31;

	if (cpu->delivering)
		information |= cpu->delivering_vector | (u32)cpu->event.has_error << 11 |
			       (cpu->event.soft ? 6 : cpu->delivering_vector == VECTOR_NMI ? 2 : 3) << 8;
	else
		information |= cpu->external.nmi ? VECTOR_NMI | 2 << 8 : cpu->external.vector;
	run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	run->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
	run->internal.ndata = 5;
	run->internal.data[0] = information;
	run->internal.data[1] = 49;
	run->internal.data[2] = 0;
	run->internal.data[3] = gpa;
	run->internal.data[4] = vcpu->id; // the physical processor: a vCPU is one of its own here
	vcpu->exit_to_user = true;
}

static enum cpu_ops_result fragment(struct vcpu *vcpu, u64 gpa, u8 *data, unsigned length, bool write)
{
	struct io_fragment *f = &vcpu->fragments[vcpu->fragment_next];
	struct kvm_run *run = vcpu->run;

	// First, whether user space has done it: a ring that was full then may have room now.
	if (vcpu->fragment_next < vcpu->fragment_count && f->gpa == gpa && f->length == length &&
	    f->write == write) {
		if (!write)
			memcpy(data, f->data, length);
		vcpu->fragment_next++;
		return CPU_OPS_DONE;
	}
	if (kernel_memory(vcpu, gpa, data, length, write))
		return CPU_OPS_DONE;
	if (vcpu->cpu->delivering || vcpu->cpu->external.underway) {
		delivery_failed(vcpu, gpa);
		return CPU_OPS_EXIT;
	}
	// Another way through the instruction than last time: memory changed under it.
	vcpu->fragment_count = vcpu->fragment_next;
	if (vcpu->fragment_count == MAX_FRAGMENTS) {
		io_emulation_failed(vcpu);
		vcpu->exit_to_user = true;
		return CPU_OPS_EXIT;
	}
	f = &vcpu->fragments[vcpu->fragment_count];
	f->gpa = gpa;
	f->length = length;
	f->write = write;
	run->mmio.phys_addr = gpa;
	run->mmio.len = length;
	run->mmio.is_write = write;
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	if (write)
		memcpy(run->mmio.data, data, length);
	run->exit_reason = KVM_EXIT_MMIO;
	vcpu->counters->mmio_exits++;
	return io_leave(vcpu, COMPLETE_MMIO);
}

// ---- what KVM would not do ----
// The bytes at RIP, as many as there are; their number.
static unsigned instruction_bytes(struct vcpu *vcpu, u8 bytes[15])
{
	u64 linear = linear_rip(vcpu);
	unsigned n = 0;
	struct walk walk;

	while (n < 15 && paging_translate(vcpu->cpu, linear + n, &walk) && guest_read(vcpu, walk.gpa, bytes + n, 1))
		n++;
	return n;
}

void io_emulation_failed(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u8 bytes[15];
	unsigned n = instruction_bytes(vcpu, bytes);

	vcpu->counters->insn_emulation_fail++;
	run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
	run->emulation_failure.ndata = n ? 3 : 1; // of 8 bytes: flags; size and bytes
	run->emulation_failure.flags = n ? KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES : 0;
	run->emulation_failure.insn_size = n;
	memset(run->emulation_failure.insn_bytes, 0x90, sizeof(run->emulation_failure.insn_bytes));
	memcpy(run->emulation_failure.insn_bytes, bytes, n);
}

static bool is_prefix(u8 byte)
{
	return byte == 0x66 || byte == 0x67 || byte == 0xf2 || byte == 0xf3 || byte == 0xf0 || byte == 0x2e ||
	       byte == 0x36 || byte == 0x3e || byte == 0x26 || byte == 0x64 || byte == 0x65;
}

// x87 instructions with memory I/O: KVM cannot do them, and a client which asks for
// KVM_CAP_EXIT_ON_EMULATION_FAILURE counts on that. For others they work.
static bool refused(struct vcpu *vcpu)
{
	u8 bytes[15];
	unsigned n, i = 0;

	if (!vcpu->vm->exit_on_emulation_failure)
		return false;
	n = instruction_bytes(vcpu, bytes);
	while (i < n && is_prefix(bytes[i]))
		i++;
	if (i < n && cpu_64bit(vcpu->cpu) && bytes[i] >> 4 == 4) // REX
		i++;
	return i < n && bytes[i] >= 0xd8 && bytes[i] <= 0xdf;
}

enum cpu_ops_result ops_mmio(void *opaque, u64 gpa, void *data, unsigned length, bool write)
{
	struct vcpu *vcpu = opaque;
	u8 *bytes = data;

	if (!vcpu->cpu->replay)
		forget(vcpu);
	if (refused(vcpu)) {
		io_emulation_failed(vcpu);
		vcpu->exit_to_user = true;
		return CPU_OPS_EXIT;
	}
	while (length) {
		unsigned n = length < 8 ? length : 8;
		enum cpu_ops_result result = fragment(vcpu, gpa, bytes, n, write);

		if (result != CPU_OPS_DONE)
			return result;
		gpa += n;
		bytes += n;
		length -= n;
	}
	return CPU_OPS_DONE;
}

// ---- completion ----
void io_complete(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	enum completion completion = vcpu->completion;

	vcpu->completion = COMPLETE_NONE;
	// User space moved the vCPU elsewhere meanwhile: the instruction is not resumed.
	if (linear_rip(vcpu) != vcpu->completion_rip)
		completion = COMPLETE_NONE;
	switch (completion) {
	case COMPLETE_NONE:
		forget(vcpu);
		return;
	case COMPLETE_PIO:
		if (!vcpu->pio.write)
			memcpy(vcpu->pio.data, vcpu->pio_page, vcpu->pio.size * vcpu->pio.count);
		vcpu->pio.valid = true;
		break;
	case COMPLETE_MMIO:
		memcpy(vcpu->fragments[vcpu->fragment_count].data, run->mmio.data, 8);
		vcpu->fragment_count++;
		break;
	case COMPLETE_RDMSR:
		vcpu->msr.value = run->msr.data;
		/* fall through */
	case COMPLETE_WRMSR:
		vcpu->msr.error = run->msr.error;
		vcpu->msr.valid = true;
		break;
	case COMPLETE_AGAIN:
		break;
	}
	vcpu->fragment_next = 0;
	vcpu->cpu->replay = true;
}
