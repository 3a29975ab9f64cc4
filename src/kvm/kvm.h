// SPDX-License-Identifier: MIT
// What the files of src/kvm share: a virtual machine, a vCPU, and who may touch what.
//
// Locks, outermost first:
//   vcpu->mutex    held by the ioctl that works on a vCPU, KVM_RUN included
//   vm->lock       creation of vCPUs and interrupt controllers, routing, capabilities, clock
//   vm->slots_lock writers of the memory map and of the I/O buses
//   irqchip->lock  see irqchip.h
// Those of irqfd.c and timer.c are taken before irqchip->lock, too, and by vCPUs that execute guest code.
// A vCPU that executes guest code (vcpu->in_guest) takes neither vm->lock nor vm->slots_lock: who
// holds slots_lock may wait for it. It reads the memory map, the buses and the routing through
// pointers that are replaced whole; see memslots.c.
#ifndef CETKVM_KVM_KVM_H
#define CETKVM_KVM_KVM_H

#include "base/futex.h"
#include "cpu/cpu.h"
#include "irqchip/irqchip.h"
#include "kvm/abi.h"
#include "kvm/stats.h"

#include <pthread.h>

#define PAGE_SIZE 4096u
#define MAX_VCPUS 1024
#define MAX_VCPU_ID 4096
#define MAX_MEMSLOTS 32764
#define MAX_GSI 4096
#define GUEST_PHYS_BITS_MAX 52
#define HIDDEN_CET_WORDS 10
#define NMIS_MAX 2 // that wait, as in KVM: one behind the one that is being handled, or two at once

struct vm;
struct vcpu;
struct fpstate;

// ---- files (fd.c) ----
enum fd_kind { FD_NONE, FD_SYSTEM, FD_VM, FD_VCPU };

struct file;
int fd_install(int fd, enum fd_kind kind, void *object); // takes the caller's reference; fd or -errno
struct file *file_get(int fd);
void file_put(struct file *file);
enum fd_kind file_kind(const struct file *file);
void *file_object(const struct file *file);
int fd_move_high(int fd); // out of the way of the client's own numbers
int memory_file(const char *name, size_t size); // -errno
unsigned fd_process_generation(void); // changes in a child after fork

// ---- client memory: -EFAULT instead of a signal ----
int copy_from_client(void *to, const void *from, size_t size);
int copy_to_client(void *to, const void *from, size_t size);
// The client's pointer may be any number: no pointer arithmetic.
static inline void *client_at(const void *client, size_t offset)
{
	return (void *)((uintptr_t)client + offset);
}

// ---- options (options.c) ----
extern bool option_trace_cp, option_single_grain;

// The contract of KVM_GET_XSAVE and KVM_SET_XSAVE: see generation.c.
enum generation { GENERATION_OVER_SAVING, GENERATION_STRICT, GENERATION_CONSTRAINED };

// ---- memory map (memory_map.c, memslots.c, guest_memory.c) ----
struct memslot {
	u64 gfn, pages, hva;
	u32 id, space, flags;
	u64 *dirty; // a bit per page, or NULL; shared by successive maps
	u64 dirty_words;
};

// Slot numbers have them in bits 31:16. SPACE_SMM is what a vCPU in system-management mode sees.
enum address_space { SPACE_NORMAL, SPACE_SMM, ADDRESS_SPACES };

struct memory_map;
// NULL: no memory there.
const struct memslot *memory_map_find(const struct memory_map *map, u64 gfn);
// Is there a slot but `id` in these pages?
bool memory_map_overlaps(const struct memory_map *map, u32 id, u64 gfn, u64 pages);
// A new map without the slot `remove` and with a copy of `insert` (either may be NULL), NULL: ENOMEM.
struct memory_map *memory_map_replace(const struct memory_map *old, const struct memslot *remove,
				      const struct memslot *insert);
void memory_map_free(struct memory_map *map);
void memory_map_each(const struct memory_map *map, void (*visit)(const struct memslot *slot));

int memslot_set(struct vm *vm, const struct kvm_userspace_memory_region *region);
// By the number a client knows it by. NULL with *error: -EINVAL, no such number; -ENOENT, no slot.
// slots_lock held.
const struct memslot *memslot_find(struct vm *vm, u32 slot, int *error);
void memory_map_destroy(struct vm *vm);

// ---- dirty log (dirty_log.c) ----
int memslot_get_dirty_log(struct vm *vm, const struct kvm_dirty_log *log);
int memslot_clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *log);
int dirty_ring_enable(struct vm *vm, u64 size); // bytes
long dirty_rings_reset(struct vm *vm);		// KVM_RESET_DIRTY_RINGS
void dirty_ring_push(struct vcpu *vcpu, u32 slot, u64 page); // by the vCPU's thread
bool dirty_ring_soft_full(const struct vcpu *vcpu); // user space is to be told
bool dirty_ring_full(const struct vcpu *vcpu);	    // no page more can be noted

// Callbacks of the processor; on the vCPU's thread, in_guest.
void *memory_ops_map(void *opaque, u64 gpa, unsigned *flags);
void memory_ops_mark_dirty(void *opaque, u64 gpa);
// Guest memory for our own use (the normal address space), by a vCPU that is in_guest. false: not (writable) memory.
bool guest_write(struct vcpu *vcpu, u64 gpa, const void *data, unsigned size);
bool guest_read(struct vcpu *vcpu, u64 gpa, void *data, unsigned size);
// Waits until no vCPU can use what was reachable before the caller replaced a pointer, and makes
// every vCPU forget its translations. slots_lock held; the caller is not in_guest.
void vm_synchronize(struct vm *vm);
void vcpu_enter_guest(struct vcpu *vcpu); // marks in_guest
void vcpu_leave_guest(struct vcpu *vcpu);
void vcpu_synchronize(struct vcpu *vcpu); // at an instruction boundary, in_guest

// ---- in-kernel I/O (bus.c) ----
struct io_bus;
int ioeventfd_set(struct vm *vm, const struct kvm_ioeventfd *args);
int coalesced_zone_set(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone, bool add);
bool bus_write(struct vm *vm, bool pio, u64 address, unsigned length, const void *data);
void bus_destroy(struct vm *vm);

// ---- interrupts (irq.c, irqfd.c) ----
struct routing;
int irq_create_chip(struct vm *vm, bool split, unsigned pins);
int irq_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned count);
// Returns >0 delivered, 0 coalesced, <0 nobody.
int irq_set_gsi(struct vm *vm, u32 gsi, unsigned source, bool level);
// The pin of controller `chip` (KVM_IRQCHIP_*) that `gsi` is routed to, or -1.
int irq_pin_of_gsi(struct vm *vm, u32 gsi, unsigned chip);
// Nanoseconds a tick of the APIC timers' undivided clock takes. -EINVAL: 0, too long, or there are
// vCPUs; -ENXIO: no local APICs.
int irq_set_bus_cycle(struct vm *vm, u64 ns);
// `vm` may be NULL: what a new one has.
u64 irq_bus_cycle(struct vm *vm);
bool irq_msi_valid(const struct vm *vm, u32 address_hi);
void irq_vcpu_created(struct vcpu *vcpu); // vm->lock held
void irq_destroy(struct vm *vm);
extern const struct irqchip_ops irq_chip_ops;
int irqfd_set(struct vm *vm, const struct kvm_irqfd *args);
void irqfd_acked(struct vm *vm, unsigned chip, unsigned pin);
void irqfd_routing_changed(struct vm *vm);
void irqfd_release(struct vm *vm); // all of them: the machine's descriptor was closed
void irqfd_after_fork_in_child(void);
long eventfd_identity(int fd); // the same for all descriptors of an eventfd; -EBADF, -EINVAL: none

// ---- time (clock.c, timer.c) ----
void clock_calibrate(void);
u32 clock_host_tsc_khz(void);
u64 clock_now(void); // ns; derived from the TSC, callable anywhere
u64 clock_kvmclock(struct vm *vm); // ns
void clock_vm_init(struct vm *vm);
void clock_vcpu_init(struct vcpu *vcpu);
u64 clock_guest_tsc(struct vcpu *vcpu); // as RDTSC
u64 clock_ops_tsc(void *opaque);
u64 clock_tsc_to_time(void *vcpu, u64 tsc);
void clock_vcpu_created(struct vcpu *vcpu);
void clock_set_tsc(struct vcpu *vcpu, u64 value, enum who who); // IA32_TSC was written
void clock_set_tsc_offset(struct vcpu *vcpu, u64 offset);	  // KVM_VCPU_TSC_OFFSET
bool clock_tsc_khz_valid(u64 khz);
int clock_set_tsc_khz(struct vcpu *vcpu, u64 khz); // 0: the host's. -EINVAL
// The guest's clock page is to be written again before the vCPU goes on.
void clock_request_update(struct vcpu *vcpu);
void clock_request_update_all(struct vm *vm);
void clock_update(struct vcpu *vcpu); // in_guest
void clock_write_wall(struct vcpu *vcpu, u64 gpa); // in_guest

// ---- statistics (stats.c) ----
int stats_vcpu_fd(struct vcpu *vcpu); // KVM_GET_STATS_FD; -errno
int stats_vm_fd(struct vm *vm);
void stats_close(int fd, void *counters);

// ---- steal time (steal_time.c) ----
bool steal_time_available(void);
void steal_time_request(struct vcpu *vcpu); // the guest has just told where it is to be written
void steal_time_update(struct vcpu *vcpu);  // in_guest

// A thread of ours, which gets no signals. 0 or -errno.
int thread_start(void *(*main)(void *), void *argument);
void timer_start(struct vm *vm); // KVM_RUN begins, with in_run set
void timer_stop(struct vm *vm);
void timer_after_fork_in_child(void);
void timer_set_vcpu(void *vcpu, u64 deadline);
void timer_set_pit(void *vm, u64 deadline);

// ---- objects ----
struct vm {
	u32 references;
	unsigned process_generation;
	u32 type;
	struct lock lock, slots_lock;
	struct memory_map *maps[ADDRESS_SPACES]; // by enum address_space
	struct msr_filter *msr_filter; // NULL: none
	u64 sync_generation; // of vm_synchronize()
	u64 map_changes;
	u64 *gfn_of_id[ADDRESS_SPACES]; // see memslots.c
	u32 id_room[ADDRESS_SPACES];
	u32 dirty_ring_size; // bytes; 0: dirty bitmaps
	struct io_bus *bus;
	struct vcpu *vcpus[MAX_VCPUS];
	unsigned vcpu_count; // published last
	u32 boot_cpu_id;
	struct irqchip *chip; // NULL: none in the kernel
	bool split;
	unsigned split_pins;
	struct routing *routing;
	u32 routing_readers;
	u64 eoi_bitmap[4]; // of a split irqchip
	u32 irqfd_count, resampler_count;
	struct vm_code *code;
	struct kvm_coalesced_mmio_ring *ring;
	struct lock ring_lock; // of who fills it
	_Atomic u64 nr_mmu_pages;

	enum generation generation;
	struct vm_counters *counters, first_counters; // slots_lock held
	int stats_fd; // the file that the counters have moved to, -1: none yet

	// Capabilities switched on
	u32 max_vcpu_id; // ids are smaller; 0: not decided yet
	_Atomic u64 x2apic_api, exception_payload, triple_fault_event, msr_exits, manual_dirty_protect;
	_Atomic bool hlt_in_guest; // KVM_CAP_X86_DISABLE_EXITS: HLT
	_Atomic bool platform_info_denied; // KVM_CAP_MSR_PLATFORM_INFO switched off
	_Atomic u64 disabled_quirks, exit_on_emulation_failure;

	// Clock
	u32 tsc_khz; // of new vCPUs
	// The write to a vCPU's TSC which others are compared with: see clock.c.
	u64 tsc_last_offset, tsc_last_value, tsc_last_host;
	u32 tsc_last_khz;
	bool tsc_user_set;
	s64 clock_offset; // kvmclock = clock_now() + this

	// timer.c
	bool timer_known;
	struct vm *timer_link;
	u64 pit_deadline;
};

#define MAX_FRAGMENTS 32

// Accesses that the instruction in progress has already made through user space.
struct io_fragment {
	u64 gpa;
	u8 length;
	bool write;
	u8 data[8];
};

// COMPLETE_AGAIN: user space has done its part and the instruction has not, for want of memory (-EFAULT).
enum completion { COMPLETE_NONE, COMPLETE_PIO, COMPLETE_MMIO, COMPLETE_RDMSR, COMPLETE_WRMSR, COMPLETE_AGAIN };

struct vcpu {
	struct vm *vm;
	u32 id;
	unsigned index;
	struct lock mutex;
	struct cpu *cpu;
	struct fpstate *fpu; // see guest_fpu.h
	struct lapic *lapic; // NULL: in user space
	struct kvm_run *run; // pages 0 and 1 of the vCPU's mapping
	u8 *pio_page;
	bool has_run;
	bool client_had_control; // since KVM_RUN last ran: its memory may be other code now

	// Seen and changed by other threads
	volatile u32 in_guest, in_run, kicked, blocked;
	volatile u32 events; // counts wake-ups; the futex a halted vCPU sleeps on
	volatile u32 clock_stale;
	volatile u32 pv_unhalted;
	u64 synchronized; // vm->sync_generation this vCPU has caught up with
	u64 map_seen;	  // vm->map_changes
	u64 timer_deadline;

	u32 mp_state;
	bool immediate_exit; // as KVM_RUN found it
	bool exit_to_user; // a callback wants KVM_RUN to return; exit_result is its value
	const struct memslot *last_slot; // found; forgotten with every change of the map
	// KVM_CAP_DIRTY_LOG_RING: entries [dirty_reset_index, dirty_index) are in use. NULL: no ring.
	struct kvm_dirty_gfn *dirty_ring;
	u32 dirty_index, dirty_reset_index;

	// Pending completion, and what it completed
	enum completion completion;
	u64 completion_rip; // linear address of the instruction
	struct io_fragment fragments[MAX_FRAGMENTS];
	unsigned fragment_count, fragment_next;
	struct {
		bool valid, write;
		u16 port;
		u8 size;
		u32 count;
		u8 data[PAGE_SIZE];
	} pio;
	struct {
		bool valid, write, error;
		u32 index;
		u64 value;
	} msr;
	bool msr_unknown; // the access that failed was to an MSR that nobody knows

	// EOIs that user space's I/O APIC is to hear of, a bit per vector; a task priority that it is to hear of
	u64 eoi_exits[4];
	bool tpr_exit;

	// Without an in-kernel PIC
	int queued_interrupt; // KVM_INTERRUPT, -1: none
	// Without an in-kernel APIC
	u64 cr8, apic_base;

	// KVM's own MSRs
	struct vcpu_counters *counters, first_counters; // changed by the vCPU's thread
	int stats_fd;
	u64 steal_last, steal_updated; // ns
	volatile u32 steal_stale;
	u64 system_time_msr, wall_clock_msr, steal_time_msr, pv_eoi_msr, async_pf_msr, async_pf_int_msr;
	u64 poll_control;
	u32 pvclock_version;
	bool guest_stopped;

	u64 tsc_offset;
	u32 tsc_khz;
	u64 tsc_ratio; // guest ticks for a host tick, 16.48; 0: the same

	// As given to KVM_SET_CPUID2, for comparison
	struct cpu_cpuid_entry *cpuid;
	unsigned cpuid_count;
	bool enforce_pv_features;
	u32 pv_features; // CPUID 0x40000001.EAX
	bool hidden_cet; // the guest has CET by the operator's policy, the client does not know
	u64 hidden_cet_words[HIDDEN_CET_WORDS];
	u64 signal_mask_value; // KVM_SET_SIGNAL_MASK
	bool signal_mask_set;
	bool triple_fault;
};

int vm_create(u32 type);
bool vm_ever_created(void); // by this process
void vm_get(struct vm *vm);
void vm_put(struct vm *vm);
int vcpu_create(struct vm *vm, u32 id);
void vcpu_destroy(struct vcpu *vcpu);
static inline struct vcpu *vm_vcpu(struct vm *vm, unsigned i) { return vm->vcpus[i]; }
static inline unsigned vm_vcpu_count(struct vm *vm)
{
	return __atomic_load_n(&vm->vcpu_count, __ATOMIC_ACQUIRE);
}

// ---- running (run.c) ----
long vcpu_run(struct vcpu *vcpu);
void vcpu_wake(void *vcpu, unsigned what); // enum irqchip_wake, from any thread
void vcpu_kick(struct vcpu *vcpu);	   // KVM_RUN returns EINTR
// ---- the processor's callbacks (ops.c, run.c, msrs.c, hypercall.c) ----
extern const struct cpu_ops vcpu_ops;
enum cpu_ops_result ops_pio(void *opaque, u16 port, void *data, unsigned size, unsigned count, bool write);
enum cpu_ops_result ops_mmio(void *opaque, u64 gpa, void *data, unsigned length, bool write);
enum cpu_ops_result ops_rdmsr(void *opaque, u32 msr, u64 *value, enum who who);
enum cpu_ops_result ops_wrmsr(void *opaque, u32 msr, u64 value, enum who who);
int ops_guest_msr(void *opaque, u32 index, u64 *value, bool write);
enum cpu_ops_result ops_hypercall(void *opaque, bool vmmcall);
int ops_interrupt(void *opaque, bool acknowledge);
// Leaves for user space, which makes the access; io_complete() takes its answer.
enum cpu_ops_result io_leave(struct vcpu *vcpu, enum completion completion);
// KVM_EXIT_INTERNAL_ERROR for the current instruction.
void io_emulation_failed(struct vcpu *vcpu);
// Takes over what user space answered to the last exit (io.c); cpu->replay is set if the instruction
// is still the same.
void io_complete(struct vcpu *vcpu);

// ---- signals of the client (signals.c) ----
// Around every call of the API: signals that call cetkvm_signal() wait for the end of it.
void signals_enter(void);
void signals_leave(void);
void signals_let_faults_come(void); // before the first call of a thread that may look at guest memory
void signals_enter_run(struct vcpu *vcpu); // around KVM_RUN: they end it
void signals_leave_run(void);
bool signals_pending(void);
bool signals_swap_mask(u64 mask, u64 *old);
void signals_restore_mask(u64 old);

// ---- registers (regs.c, sregs.c, fpu_ioctls.c, events.c) ----
void regs_get(struct vcpu *vcpu, struct kvm_regs *regs);
void regs_set(struct vcpu *vcpu, const struct kvm_regs *regs);
void sregs_get(struct vcpu *vcpu, struct kvm_sregs *sregs);
int sregs_set(struct vcpu *vcpu, const struct kvm_sregs *sregs);
void sregs2_get(struct vcpu *vcpu, struct kvm_sregs2 *sregs);
int sregs2_set(struct vcpu *vcpu, const struct kvm_sregs2 *sregs);
void debugregs_get(struct vcpu *vcpu, struct kvm_debugregs *regs);
int debugregs_set(struct vcpu *vcpu, const struct kvm_debugregs *regs);
int guest_debug_set(struct vcpu *vcpu, const struct kvm_guest_debug *debug);
void translate(struct vcpu *vcpu, struct kvm_translation *translation);
void events_get(struct vcpu *vcpu, struct kvm_vcpu_events *events);
int events_set(struct vcpu *vcpu, const struct kvm_vcpu_events *events);
int fpu_ioctl_get(struct vcpu *vcpu, struct kvm_fpu *fpu);
int fpu_ioctl_set(struct vcpu *vcpu, const struct kvm_fpu *fpu);
unsigned xsave_size(const struct vm *vm); // KVM_CAP_XSAVE2
int xsave_get(struct vcpu *vcpu, void *client, bool any_size); // any_size: KVM_GET_XSAVE2
int xsave_set(struct vcpu *vcpu, const void *client);
void xcrs_get(struct vcpu *vcpu, struct kvm_xcrs *xcrs);
// The interrupt under way to the guest, or -1: acknowledged, or injected by user space.
int injected_interrupt(const struct vcpu *vcpu);
void inject_interrupt(struct vcpu *vcpu, u8 vector);
int xcrs_set(struct vcpu *vcpu, const struct kvm_xcrs *xcrs);
int mp_state_set(struct vcpu *vcpu, u32 state);
u32 mp_state_get(struct vcpu *vcpu);
int one_reg(struct vcpu *vcpu, const struct kvm_one_reg *reg, bool set);
int mce_set(struct vcpu *vcpu, const struct kvm_x86_mce *mce);
int reg_list(struct vcpu *vcpu, void *client);
u64 lapic_base_get(const struct vcpu *vcpu);
int lapic_base_set(struct vcpu *vcpu, u64 value, bool host);

// ---- CPUID and MSRs ----
unsigned msr_index_list(u32 *list, unsigned max);
// What a client submitted, made the guest's (cpuid_effective.c). Entries has room for CPU_MAX_CPUID. True if
// the guest has CET and the client does not know.
bool cpuid_make_effective(struct cpu_cpuid_entry *entries, unsigned *count);
// The option "cpuid-policy": FUNCTION:INDEX:REGISTER:BIT:VALUE;... -EINVAL
int cpuid_set_policy(const char *text);
// For such guests (hidden_cet.c): the host reads and writes MSRs. True: done, it was one that carries CET state.
bool hidden_cet_read(struct vcpu *vcpu, u32 msr, u64 *value);
bool hidden_cet_write(struct vcpu *vcpu, u32 msr, u64 value);
int cpuid_set_supported(const char *text); // the option "supported-cpuid"; -EINVAL
int cpuid_set_host(const char *text); // the option "host-cpuid"; -EINVAL, -EBUSY: there are guests
int cpuid_supported_ioctl(void *client);
void cpuid_limit_new(struct vcpu *vcpu); // a new vCPU can do what is offered to clients
int cpuid_emulated_ioctl(void *client);
int cpuid_set_ioctl(struct vcpu *vcpu, const void *client);
int cpuid_get_ioctl(struct vcpu *vcpu, void *client);
long msrs_ioctl(struct vcpu *vcpu, void *client, bool write); // vcpu NULL: feature MSRs
int msr_list_ioctl(void *client, bool features);
struct msr_filter;
int msr_filter_set(struct vm *vm, const struct kvm_msr_filter *args);
void msr_filter_destroy(struct msr_filter *filter);

// ---- capabilities (capabilities.c) ----
long capability(struct vm *vm, unsigned long number); // vm NULL: of the system
int capability_enable(struct vm *vm, const struct kvm_enable_cap *cap);
void capability_apply_quirks(struct vm *vm, struct vcpu *vcpu); // what vm->disabled_quirks means to its processor
void capability_apply_to_chip(struct vm *vm, struct irqchip *chip); // and what to its APICs; vm->lock held
int capability_enable_vcpu(struct vcpu *vcpu, const struct kvm_enable_cap *cap);

#endif
