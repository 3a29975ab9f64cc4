// SPDX-License-Identifier: MIT
// A KVM client that checks what becomes of its descriptors: copies, ends, other processes, mappings, and
// the files by which KVM is found.
#include "guest.h"

#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define error_of(expression) ((expression) < 0 ? errno : 0)

// out to port 0x42, again and again
#define OUT_LOOP 0xe6, 0x42, 0xeb, 0xfc

static bool lives(int vcpu, struct kvm_run *run)
{
	return ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == 0x42;
}

static bool is_vm(int fd)
{
	return ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1;
}

static void test_copies(void)
{
	struct guest g;
	int copy, lowest, other;

	ok(GUEST_START(&g, false, OUT_LOOP), "a machine");
	is(fcntl(g.vm, F_GETFD), FD_CLOEXEC, "a machine's descriptor is closed on exec");
	is(fcntl(g.vcpu, F_GETFD), FD_CLOEXEC, "a vCPU's too");
	copy = open("/dev/kvm", O_RDWR);
	is(fcntl(copy, F_GETFD), 0, "the device's is not, if so opened");
	close(copy);
	lowest = dup(0);
	close(lowest);
	copy = dup(g.vm);
	is(copy, lowest, "dup() gives the lowest number");
	ok(is_vm(copy), "and a machine");
	is(fcntl(copy, F_GETFD), 0, "which stays open on exec");
	close(copy);
	is(error_of(ioctl(copy, KVM_CHECK_EXTENSION, 0)), EBADF, "closed, it is no descriptor");
	ok(is_vm(g.vm), "but the first one is");

	is(ioctl(g.vm, FIONCLEX), 0, "FIONCLEX");
	is(fcntl(g.vm, F_GETFD), 0, "is the kernel's");
	is(ioctl(g.vm, FIOCLEX), 0, "FIOCLEX");
	is(fcntl(g.vm, F_GETFD), FD_CLOEXEC, "too");
	copy = fcntl(g.vm, F_DUPFD_CLOEXEC, 100);
	ok(copy >= 100 && is_vm(copy), "F_DUPFD_CLOEXEC");
	is(fcntl(copy, F_GETFD), FD_CLOEXEC, "with the flag");
	other = fcntl(g.vm, F_DUPFD, 200);
	ok(other >= 200 && is_vm(other), "F_DUPFD");
	is(close_range(100, 250, 0), 0, "close_range()");
	ok(error_of(ioctl(copy, KVM_CHECK_EXTENSION, 0)) == EBADF && error_of(ioctl(other, KVM_CHECK_EXTENSION, 0)) == EBADF,
	   "ends both");
	copy = dup3(g.vm, 300, O_CLOEXEC);
	ok(copy == 300 && is_vm(300), "dup3()");
	is(dup2(g.vcpu, 300), 300, "dup2() of a vCPU over it");
	ok(lives(300, g.run), "which runs by that number");
	is(dup2(0, 300), 300, "dup2() of something else over that");
	is(error_of(ioctl(300, KVM_RUN, 0)), ENOTTY, "which is no vCPU");
	is(dup2(g.vm, g.vm), g.vm, "dup2() onto itself");
	ok(is_vm(g.vm), "changes nothing");
	close(300);
	copy = syscall(SYS_dup, g.vm);
	ok(is_vm(copy), "syscall(SYS_dup)");
	is(syscall(SYS_close, copy), 0, "syscall(SYS_close)");
	is(error_of(ioctl(copy, KVM_CHECK_EXTENSION, 0)), EBADF, "has closed it");
	guest_end(&g);
}

static void test_order(void)
{
	struct guest g;
	struct pollfd poll_vm;

	GUEST_START(&g, false, OUT_LOOP);
	poll_vm = (struct pollfd){ .fd = g.vm, .events = POLLIN | POLLOUT };
	is(poll(&poll_vm, 1, 0), 1, "poll() of a machine does not block");
	close(g.kvm);
	close(g.vm);
	ok(lives(g.vcpu, g.run), "a vCPU runs with the machine's descriptor closed");
	is(close(g.vcpu), 0, "it is closed with the mapping in use");
	is(g.run->io.port, 0x42, "the mapping stays");
	is(munmap(g.run, RUN_SIZE), 0, "and is unmapped");
	is(error_of(close(g.vcpu)), EBADF, "closed twice");
	munmap(g.memory, GUEST_SIZE);
}

static void test_mmap(void)
{
	struct guest g;
	struct kvm_coalesced_mmio_ring *ring, *other_ring;
	int other;
	void *area;

	GUEST_START(&g, false, OUT_LOOP);
	other = ioctl(g.vm, KVM_CREATE_VCPU, 1);
	ring = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu, 2 * 4096);
	area = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	ok(ring != MAP_FAILED && area != MAP_FAILED, "the ring of coalesced writes, alone and with the rest");
	other_ring = (void *)((char *)area + 2 * 4096);
	ring->first = 77;
	is(other_ring->first, 77, "is one for all vCPUs");
	is(((struct kvm_coalesced_mmio_ring *)((char *)g.run + 2 * 4096))->first, 77, "in every mapping");
	ring->first = 0;
	ok(lives(g.vcpu, g.run), "run");
	is(((struct kvm_run *)area)->io.port, 0, "the pages before it are each vCPU's own");
	ok(mmap(NULL, 4096, PROT_READ, MAP_SHARED, g.kvm, 0) == MAP_FAILED && errno == ENODEV, "the device cannot be mapped");
	ok(mmap(NULL, 4096, PROT_READ, MAP_SHARED, g.vm, 0) == MAP_FAILED && errno == ENODEV, "nor a machine");
	munmap(area, RUN_SIZE);
	munmap(ring, 4096);
	area = (void *)syscall(SYS_mmap, NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu, 0);
	is(((struct kvm_run *)area)->io.port, 0x42, "syscall(SYS_mmap)");
	munmap(area, RUN_SIZE);
	close(other);
	guest_end(&g);
}

// A guest of this process halts until its timer interrupts it, and then until an irqfd does.
static bool interrupts_come(void)
{
	static const uint8_t code[] = {
		0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, // 8259: vectors from 8
		0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xfc, 0xe6, 0x21,			// lines 0 and 1
		0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x00, 0xe6, 0x40, 0xb0, 0x40, 0xe6, 0x40, // 8254: 14 ms
		0xfb, 0xf4, 0xeb, 0xfd, // sti; hlt; again
	};
	static const uint8_t timer[] = { 0xe6, 0x98, 0xb0, 0x20, 0xe6, 0x20, 0xcf }; // out; end of interrupt; iret
	static const uint8_t event[] = { 0xe6, 0x99, 0xb0, 0x20, 0xe6, 0x20, 0xcf };
	static const uint16_t vectors[] = { 0x2000, 0, 0x3000, 0 };
	struct kvm_pit_config pit = { 0 };
	struct kvm_irqfd irqfd = { .gsi = 1 };
	struct guest g = { 0 };
	bool good;

	good = guest_start(&g, true, code, sizeof(code)) && ioctl(g.vm, KVM_CREATE_PIT2, &pit) == 0;
	memcpy(g.memory + 0x2000, timer, sizeof(timer));
	memcpy(g.memory + 0x3000, event, sizeof(event));
	memcpy(g.memory + 8 * 4, vectors, sizeof(vectors));
	irqfd.fd = (uint32_t)eventfd(0, EFD_CLOEXEC);
	alarm(60);
	good = good && ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->io.port == 0x98 && ioctl(g.vm, KVM_IRQFD, &irqfd) == 0 &&
	       eventfd_write((int)irqfd.fd, 1) == 0;
	for (unsigned i = 0; good && i < 100; i++) {
		good = ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO;
		if (g.run->io.port == 0x99)
			break;
	}
	good = good && g.run->io.port == 0x99;
	alarm(0);
	close((int)irqfd.fd);
	guest_end(&g);
	return good;
}

static void child_of_machine(struct guest *g)
{
	struct guest own;

	if (error_of(ioctl(g->vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP)) != EIO)
		_exit(1);
	if (error_of(ioctl(g->vcpu, KVM_RUN, 0)) != EIO || error_of(ioctl(g->vm, KVM_CREATE_VCPU, 5)) != EIO)
		_exit(2);
	if (ioctl(g->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		_exit(3);
	if (!GUEST_START(&own, true, OUT_LOOP) || !lives(own.vcpu, own.run))
		_exit(4);
	guest_end(&own);
	if (!interrupts_come())
		_exit(5);
	close(g->vcpu);
	close(g->vm);
}

static void test_processes(char *self)
{
	char number[16];
	struct guest g;
	int status;
	pid_t pid;

	GUEST_START(&g, true, OUT_LOOP);
	ok(lives(g.vcpu, g.run) && interrupts_come(), "machines that have run, and taken interrupts");
	IN_CHILD(status, child_of_machine(&g));
	is(status, 0, "a child gets EIO for its parent's machine, and can have its own");
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		child_of_machine(&g);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	is(status, 0, "also one that was not made by fork()");
	ok(lives(g.vcpu, g.run) && interrupts_come(), "the parent's machine runs on");
	pid = vfork();
	if (!pid) {
		close(g.vm);
		close(g.vcpu);
		dup2(0, g.kvm);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	ok(lives(g.vcpu, g.run) && is_vm(g.vm), "and after a child by vfork() has closed its descriptors");

	for (unsigned i = 0; i < 2; i++) {
		int fd = dup(i ? g.kvm : g.vm);

		snprintf(number, sizeof(number), "%d", fd);
		IN_CHILD(status, execl(self, self, i ? "device" : "machine", number, NULL));
		is(status, 0, "a program gets by exec %s", i ? "the device" : "EIO for a machine");
		close(fd);
	}
	snprintf(number, sizeof(number), "%d", g.vm);
	IN_CHILD(status, execl(self, self, "closed", number, NULL));
	is(status, 0, "and nothing that is closed on exec");
	guest_end(&g);
}

// The other end of exec.
static int inherited(const char *what, int fd)
{
	if (!strcmp(what, "device"))
		return ioctl(fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION || ioctl(fd, KVM_CREATE_VM, 0) < 0;
	if (!strcmp(what, "machine"))
		return error_of(ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP)) != EIO;
	return error_of(ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP)) != EBADF;
}

static bool is_kvm(int fd)
{
	bool result = ioctl(fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION;
	struct stat status;

	// This machine may have a KVM of its own, which is not meant.
	if (fstat(fd, &status) < 0 || S_ISCHR(status.st_mode))
		result = false;

	close(fd);
	return result;
}

// The C library closes descriptors on its own, unseen by us.
static void test_numbers(void)
{
	struct guest g;
	char text[8] = "";
	int fd, file;
	void *area;

	GUEST_START(&g, false, OUT_LOOP);
	fd = dup(g.vm);
	fclose(fdopen(fd, "r"));
	file = open("/etc/passwd", O_RDONLY);
	is(file, fd, "the number of a machine that was closed unseen is that of a file");
	is(error_of(ioctl(file, FIONREAD, &text)), 0, "whose ioctls reach it");
	close(file);
	fclose(fdopen(dup(g.vm), "r"));
	file = open("/etc/passwd", O_RDONLY);
	area = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
	ok(area != MAP_FAILED && read(file, text, 4) == 4 && !memcmp(text, area, 4), "and which can be mapped");
	munmap(area, 4096);
	close(file);
	fclose(fdopen(dup(g.vm), "r"));
	file = open("/etc/passwd", O_RDONLY);
	fd = dup(file);
	is(error_of(ioctl(fd, KVM_CREATE_VCPU, 7)), ENOTTY, "a copy of which is no machine either");
	close(fd);
	close(file);
	guest_end(&g);
}

static void test_paths(void)
{
	static const char amd[] = "/sys/module/kvm_amd/parameters/npt", intel[] = "/sys/module/kvm_intel/parameters/ept";
	struct stat status;
	struct statx statx_status;
	char text[16] = "";
	int fd, folder;
	FILE *file;

	is(stat("/dev/kvm", &status), 0, "stat()");
	ok(S_ISCHR(status.st_mode) && status.st_rdev == makedev(10, 232), "says it is the device");
	is(statx(AT_FDCWD, "/dev/kvm", 0, STATX_BASIC_STATS, &statx_status), 0, "statx()");
	ok(S_ISCHR(statx_status.stx_mode) && statx_status.stx_rdev_major == 10 && statx_status.stx_rdev_minor == 232,
	   "says so too");
	is(access("/dev/kvm", R_OK | W_OK), 0, "access()");
	is(error_of(open("/dev/kvm", O_RDONLY | O_DIRECTORY)), ENOTDIR, "it is no folder");
	is(error_of(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600)), EEXIST, "it cannot be made");
	folder = open("/dev", O_RDONLY | O_DIRECTORY);
	ok(is_kvm(openat(folder, "kvm", O_RDWR)), "openat() in /dev");
	ok(is_kvm(open("/dev/../dev/./kvm", O_RDWR)), "another way of writing it");
	ok(is_kvm((int)syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR)), "syscall(SYS_openat)");
	if (chdir("/dev") == 0)
		ok(is_kvm(open("kvm", O_RDWR)), "a relative path");
	ok(chdir("/") == 0 && error_of(open("kvm", O_RDONLY)) == ENOENT, "a file of this name elsewhere is not it");
	close(folder);

	fd = open("/sys/module/kvm/parameters/force_emulation_prefix", O_RDONLY);
	is(read(fd, text, 1), 1, "a parameter of the module can be read");
	is(text[0], '0', "by the byte");
	is(read(fd, text, sizeof(text)), 1, "and on");
	close(fd);
	is(error_of(open("/sys/module/kvm/parameters/enable_pmu", O_WRONLY)), EACCES, "not written");
	file = fopen("/sys/module/kvm/parameters/enable_pmu", "r");
	ok(file && fgets(text, sizeof(text), file) && !strcmp(text, "N\n"), "fopen() finds it too");
	if (file)
		fclose(file);
	ok((access(amd, R_OK) == 0) != (access(intel, R_OK) == 0), "one vendor's module is there");
}

int main(int argc, char **argv)
{
	if (argc > 2)
		return inherited(argv[1], atoi(argv[2]));
	test_copies();
	test_order();
	test_mmap();
	test_processes(argv[0]);
	test_numbers();
	test_paths();
	return done_testing();
}
