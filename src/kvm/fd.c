// SPDX-License-Identifier: MIT
// File descriptors: which of the process's are ours, and what they stand for.
//
// A descriptor is a real one (a memfd), so that it can be polled, inherited and closed on exec. The
// table maps its number to a struct file. Look-ups take no lock: files are never given back to the
// C library, so a stale pointer points at some file, whose reference count decides.
#include "base/log.h"
#include "cetkvm/cetkvm.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK 1024
#define CHUNKS 1024

struct file {
	u32 references; // 0: free
	enum fd_kind kind;
	void *object;
	struct file *next_free;
};

static struct file **chunks[CHUNKS];
static struct file *free_files;
static struct lock table_lock;
static unsigned process_generation;
static volatile u32 *same_process; // a page that is 0 again in a child
static pthread_once_t once = PTHREAD_ONCE_INIT;

// A child has no vCPU threads and no timers: machines of its parent are dead to it.
static void after_fork_in_child(void)
{
	if (same_process)
		*same_process = 1;
	process_generation++;
	irqfd_after_fork_in_child();
	timer_after_fork_in_child();
	table_lock.state = 0;
}

static void start(void)
{
	void *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	// The page tells of children that were not made by fork() too.
	if (page != MAP_FAILED && !madvise(page, PAGE_SIZE, MADV_WIPEONFORK)) {
		same_process = page;
		*same_process = 1;
	}
	pthread_atfork(NULL, NULL, after_fork_in_child);
}

unsigned fd_process_generation(void)
{
	if (same_process && !*same_process)
		after_fork_in_child();
	return process_generation;
}

static struct file **slot_of(int fd)
{
	struct file **chunk;

	if (fd < 0 || fd >= CHUNK * CHUNKS)
		return NULL;
	chunk = __atomic_load_n(&chunks[fd / CHUNK], __ATOMIC_ACQUIRE);
	return chunk ? &chunk[fd % CHUNK] : NULL;
}

static void release_object(enum fd_kind kind, void *object)
{
	if (kind == FD_VM) {
		irqfd_release(object);
		vm_put(object);
	} else if (kind == FD_VCPU) {
		vm_put(((struct vcpu *)object)->vm);
	}
}

struct file *file_get(int fd)
{
	struct file **slot = slot_of(fd), *file;
	u32 references;

	while (slot && (file = __atomic_load_n(slot, __ATOMIC_ACQUIRE))) {
		references = __atomic_load_n(&file->references, __ATOMIC_RELAXED);
		while (references &&
		       !__atomic_compare_exchange_n(&file->references, &references, references + 1, true,
						    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			;
		if (!references)
			continue;
		if (file == __atomic_load_n(slot, __ATOMIC_ACQUIRE))
			return file;
		file_put(file);
	}
	return NULL;
}

void file_put(struct file *file)
{
	enum fd_kind kind = file->kind;
	void *object = file->object;

	if (__atomic_sub_fetch(&file->references, 1, __ATOMIC_ACQ_REL))
		return;
	lock_take(&table_lock);
	file->next_free = free_files;
	free_files = file;
	lock_release(&table_lock);
	release_object(kind, object);
}

enum fd_kind file_kind(const struct file *file)
{
	return file->kind;
}

void *file_object(const struct file *file)
{
	return file->object;
}

// Makes `fd` stand for `file`, of which the caller gives a reference.
static int publish(int fd, struct file *file)
{
	struct file **chunk, *old;

	if (fd < 0 || fd >= CHUNK * CHUNKS)
		return -ENOMEM;
	fd_process_generation();
	lock_take(&table_lock);
	chunk = chunks[fd / CHUNK];
	if (!chunk) {
		chunk = calloc(CHUNK, sizeof(*chunk));
		__atomic_store_n(&chunks[fd / CHUNK], chunk, __ATOMIC_RELEASE);
	}
	if (!chunk) {
		lock_release(&table_lock);
		return -ENOMEM;
	}
	// Somebody may have closed a descriptor of ours behind our back, and its number is new again.
	old = __atomic_exchange_n(&chunk[fd % CHUNK], file, __ATOMIC_ACQ_REL);
	lock_release(&table_lock);
	if (old)
		file_put(old);
	return fd;
}

int fd_install(int fd, enum fd_kind kind, void *object)
{
	struct file *file;
	int result;

	pthread_once(&once, start);
	fd_process_generation();
	lock_take(&table_lock);
	file = free_files;
	if (file)
		free_files = file->next_free;
	else
		file = calloc(1, sizeof(*file));
	lock_release(&table_lock);
	if (!file) {
		close(fd);
		release_object(kind, object);
		return -ENOMEM;
	}
	file->kind = kind;
	file->object = object;
	__atomic_store_n(&file->references, 1, __ATOMIC_RELEASE);
	result = publish(fd, file);
	if (result < 0) {
		close(fd);
		file_put(file);
	}
	return result;
}

int fd_move_high(int fd)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, 512);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

int memory_file(const char *name, size_t size)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (size && ftruncate(fd, (off_t)size) < 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static struct file *take_away(int fd)
{
	struct file **slot = slot_of(fd);

	return slot && __atomic_load_n(slot, __ATOMIC_RELAXED) ? __atomic_exchange_n(slot, NULL, __ATOMIC_ACQ_REL) :
								 NULL;
}

__attribute__((visibility("default"))) int cetkvm_close(int fd)
{
	struct file *file;

	signals_enter();
	file = take_away(fd);
	if (file) {
		close(fd);
		file_put(file);
	}
	signals_leave();
	if (file)
		return 0;
	errno = EBADF;
	return -1;
}

__attribute__((visibility("default"))) int cetkvm_known(int fd)
{
	struct file **slot = slot_of(fd);

	return slot && __atomic_load_n(slot, __ATOMIC_ACQUIRE);
}

__attribute__((visibility("default"))) int cetkvm_alias(int fd, int copy)
{
	struct file *file;
	int result;

	signals_enter();
	file = file_get(fd);
	result = file ? publish(copy, file) : -EBADF; // the table keeps the reference
	if (file && result < 0)
		file_put(file);
	signals_leave();
	if (result >= 0)
		return 0;
	errno = -result;
	return -1;
}

__attribute__((visibility("default"))) void cetkvm_forget(int fd)
{
	struct file *file;

	signals_enter();
	file = take_away(fd);
	if (file)
		file_put(file);
	signals_leave();
}

// The kernel copies, so that a bad pointer is an error and not a signal.
static int copy(bool out, void *ours, void *clients, size_t size)
{
	struct iovec local = { ours, size }, remote = { clients, size };
	ssize_t n;

	if (!size)
		return 0;
	if (!clients)
		return -EFAULT;
	n = out ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0) :
		  process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	if (n < 0 && (errno == ENOSYS || errno == EPERM)) {
		// Forbidden here (seccomp): trust the pointer.
		memcpy(out ? clients : ours, out ? ours : clients, size);
		return 0;
	}
	return n == (ssize_t)size ? 0 : -EFAULT;
}

int copy_from_client(void *to, const void *from, size_t size)
{
	return copy(false, to, (void *)from, size);
}

int copy_to_client(void *to, const void *from, size_t size)
{
	return copy(true, (void *)from, to, size);
}
