// SPDX-License-Identifier: MIT
// Packing host programs. Every file keeps the path it has on the host, so that interpreters, RPATHs
// and the linker's cache mean the same in the guest. Shared libraries are found by asking the
// program's own dynamic linker, as ldd does, which knows all the rules.
#include "vmm/pack.h"

#include "vmm/guest_init.h"
#include "vmm/message.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SCRIPT_DEPTH_MAX 4

static int pack_executable(struct initramfs *fs, const char *path, unsigned depth);

const char *pack_find_busybox(void)
{
	static const char *const places[] = { "/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static" };
	unsigned i;

	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		if (!access(places[i], X_OK))
			return places[i];
	return NULL;
}

// Runs a command without our preloads and gives its standard output; NULL if it cannot be started.
static FILE *run_for_output(const char *const *arguments, pid_t *pid)
{
	int pipe_fds[2], null_fd;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return NULL;
	*pid = fork();
	if (*pid == 0) {
		null_fd = open("/dev/null", O_RDWR);
		dup2(null_fd, STDIN_FILENO);
		dup2(pipe_fds[1], STDOUT_FILENO);
		dup2(null_fd, STDERR_FILENO);
		unsetenv("LD_PRELOAD");
		execv(arguments[0], (char *const *)arguments);
		_exit(127);
	}
	close(pipe_fds[1]);
	if (*pid < 0) {
		close(pipe_fds[0]);
		return NULL;
	}
	return fdopen(pipe_fds[0], "r");
}

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// libgcc_s is loaded by the C library only when a thread is cancelled or unwound: no list names it.
static void pack_hidden_companions(struct initramfs *fs, const char *library)
{
	const char *base = strrchr(library, '/');
	char companion[PATH_MAX];

	if (!base || strcmp(base, "/libc.so.6"))
		return;
	snprintf(companion, sizeof(companion), "%.*s/libgcc_s.so.1", (int)(base - library), library);
	if (!access(companion, R_OK))
		initramfs_add_file(fs, companion, companion);
}

// One line of `ld.so --list`: "name => path (address)", "path (address)" or "name => not found".
static int pack_listed_library(struct initramfs *fs, const char *program, char *line)
{
	char *path, *end;

	line += strspn(line, " \t");
	end = strstr(line, " (0x");
	path = strstr(line, " => ");
	if (path && !strncmp(path, " => not found", 13)) {
		vmm_message("%s: its library %.*s is not on this host", program, (int)(path - line), line);
		return -1;
	}
	path = path ? path + 4 : line;
	if (!end || *path != '/')
		return 0; // the vDSO, or a remark
	*end = 0;
	pack_hidden_companions(fs, path);
	return initramfs_add_file(fs, path, path);
}

static int pack_libraries(struct initramfs *fs, const char *program, const char *interpreter)
{
	const char *arguments[] = { interpreter, "--list", program, NULL };
	char line[2 * PATH_MAX];
	int result = 0, status;
	FILE *output;
	pid_t pid;

	if (initramfs_add_file(fs, interpreter, interpreter) < 0)
		return -1;
	output = run_for_output(arguments, &pid);
	if (!output) {
		vmm_message("%s: cannot run %s: %s", program, interpreter, strerror(errno));
		return -1;
	}
	while (fgets(line, sizeof(line), output))
		if (!result && pack_listed_library(fs, program, line) < 0)
			result = -1;
	fclose(output);
	status = wait_for(pid);
	if (!result && status) {
		vmm_message("%s: %s could not list its libraries (status %d)", program, interpreter, status);
		return -1;
	}
	// Libraries outside the default places are found through this cache, in the guest as here.
	if (!result && !access("/etc/ld.so.cache", R_OK))
		initramfs_add_file(fs, "/etc/ld.so.cache", "/etc/ld.so.cache");
	return result;
}

// The program interpreter named in an ELF file, or an empty string for a static one. Returns -1 if
// this is not a whole ELF file for x86.
static int elf_interpreter(int fd, char *interpreter, size_t size)
{
	Elf64_Ehdr header64;
	Elf32_Ehdr header32;
	uint64_t offset, entry_size, i, count, name_offset, name_size;
	bool is_64;

	*interpreter = 0;
	if (pread(fd, &header64, sizeof(header64), 0) < (ssize_t)sizeof(header32) ||
	    memcmp(header64.e_ident, ELFMAG, SELFMAG))
		return -1;
	memcpy(&header32, &header64, sizeof(header32));
	is_64 = header64.e_ident[EI_CLASS] == ELFCLASS64;
	if (header64.e_machine != (is_64 ? EM_X86_64 : EM_386))
		return -1;
	offset = is_64 ? header64.e_phoff : header32.e_phoff;
	entry_size = is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
	count = is_64 ? header64.e_phnum : header32.e_phnum;
	for (i = 0; i < count; i++) {
		Elf64_Phdr ph64;
		Elf32_Phdr ph32;

		if (pread(fd, is_64 ? (void *)&ph64 : (void *)&ph32, entry_size, offset + i * entry_size) !=
		    (ssize_t)entry_size)
			return -1;
		if ((is_64 ? ph64.p_type : ph32.p_type) != PT_INTERP)
			continue;
		name_offset = is_64 ? ph64.p_offset : ph32.p_offset;
		name_size = is_64 ? ph64.p_filesz : ph32.p_filesz;
		if (name_size < 2 || name_size > size || pread(fd, interpreter, name_size, name_offset) != (ssize_t)name_size)
			return -1;
		interpreter[name_size - 1] = 0;
		return 0;
	}
	return 0;
}

// "#!/path argument": the interpreter goes along. env(1) finds its program by PATH, and so do we not.
static int pack_script_interpreter(struct initramfs *fs, int fd, const char *path, unsigned depth)
{
	char line[256], *start, *end;
	ssize_t n = pread(fd, line, sizeof(line) - 1, 0);

	if (n < 3 || line[0] != '#' || line[1] != '!') {
		vmm_message("%s: neither a whole x86 ELF program nor a script with #!; --program needs one of them", path);
		return -1;
	}
	line[n] = 0;
	start = line + 2 + strspn(line + 2, " \t");
	end = start + strcspn(start, " \t\r\n");
	*end = 0;
	if (depth == SCRIPT_DEPTH_MAX || *start != '/') {
		vmm_message("%s: its interpreter '%s' cannot be packed; --program needs one with an absolute path, "
			    "and of scripts that run scripts at most %d", path, start, SCRIPT_DEPTH_MAX);
		return -1;
	}
	return pack_executable(fs, start, depth + 1);
}

static int pack_executable(struct initramfs *fs, const char *path, unsigned depth)
{
	char interpreter[PATH_MAX];
	struct stat status;
	int fd, result;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &status) < 0) {
		vmm_message("%s: %s; --program needs an executable file", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!S_ISREG(status.st_mode) || !(status.st_mode & 0111)) {
		vmm_message("%s: not an executable file; --program needs one", path);
		close(fd);
		return -1;
	}
	result = initramfs_add_file(fs, path, path);
	if (!result && elf_interpreter(fd, interpreter, sizeof(interpreter)) < 0)
		result = pack_script_interpreter(fs, fd, path, depth);
	else if (!result && *interpreter)
		result = pack_libraries(fs, path, interpreter);
	close(fd);
	return result;
}

// Busybox under its own name, and a link for each of its commands where nothing else is.
static int pack_busybox(struct initramfs *fs, const char *busybox)
{
	const char *arguments[] = { busybox, "--list-full", NULL };
	char line[256], path[260];
	FILE *output;
	pid_t pid;

	if (initramfs_add_file(fs, "/bin/busybox", busybox) < 0)
		return -1;
	output = run_for_output(arguments, &pid);
	if (!output) {
		vmm_message("%s: cannot be run: %s", busybox, strerror(errno));
		return -1;
	}
	while (fgets(line, sizeof(line), output)) {
		line[strcspn(line, "\n")] = 0;
		snprintf(path, sizeof(path), "/%s", line);
		initramfs_add_link(fs, path, "/bin/busybox");
	}
	fclose(output);
	wait_for(pid);
	return 0;
}

// A file's place in the guest: absolute, without . and .., and not that of something we put there.
static bool is_guest_place(const struct initramfs *fs, const char *path)
{
	const char *part = path;

	if (strlen(path) >= PATH_MAX || !strcmp(path, INIT_ORDERS) || initramfs_has(fs, path))
		return false;
	while (*part == '/') {
		size_t length = strcspn(part + 1, "/");

		if (!length || (length <= 2 && !strncmp(part + 1, "..", length)))
			return false;
		part += 1 + length;
	}
	return !*part;
}

static int pack_extra_files(struct initramfs *fs, char *const *files)
{
	char host[PATH_MAX], resolved[PATH_MAX];
	struct stat status;
	int result = 0;

	for (; files && *files && !result; files++) {
		const char *colon = strchr(*files, ':');
		size_t length = colon ? (size_t)(colon - *files) : strlen(*files);

		if (!length || length >= sizeof(host) || (colon && colon[1] != '/')) {
			vmm_message("--add %s: wanted is HOST-FILE or HOST-FILE:/GUEST/PATH", **files ? *files : "''");
			return -1;
		}
		memcpy(host, *files, length);
		host[length] = 0;
		if (!realpath(host, resolved)) {
			vmm_message("%s: %s; --add needs a readable file", host, strerror(errno));
			return -1;
		}
		if (colon && !is_guest_place(fs, colon + 1)) {
			vmm_message("--add %s: %s is no place for a file in the guest, or there is one; wanted is "
				    "HOST-FILE:/GUEST/PATH with a new path", *files, colon + 1);
			return -1;
		}
		result = initramfs_add_file(fs, colon ? colon + 1 : resolved, resolved);
		// Programs bring their libraries along.
		if (!result && !stat(resolved, &status) && status.st_mode & 0111) {
			char interpreter[PATH_MAX];
			int fd = open(resolved, O_RDONLY | O_CLOEXEC);

			if (fd >= 0 && !elf_interpreter(fd, interpreter, sizeof(interpreter)) && *interpreter)
				result = pack_libraries(fs, resolved, interpreter);
			if (fd >= 0)
				close(fd);
		}
	}
	return result;
}

static void add_string(char **cursor, char *end, const char *text)
{
	size_t length = strlen(text) + 1;

	if (*cursor && (size_t)(end - *cursor) >= length) {
		memcpy(*cursor, text, length);
		*cursor += length;
	} else {
		*cursor = NULL; // does not fit
	}
}

// The orders for the guest's init: see guest_init.h.
static int pack_orders(struct initramfs *fs, const struct pack_request *request, const char *program)
{
	static char *const shell[] = { "-sh", NULL };
	// Commands from a pipe are not for a line editor.
	static char *const piped_shell[] = { "sh", "-c", "cat | sh", NULL };
	char *const *arguments = request->arguments ? request->arguments : isatty(STDIN_FILENO) ? shell : piped_shell;
	char *const *p;
	size_t size = 128 * 1024;
	char *orders = malloc(size), *cursor = orders, text[64];
	struct winsize window = { .ws_row = 24, .ws_col = 80 };

	if (!orders)
		return -1;
	ioctl(STDOUT_FILENO, TIOCGWINSZ, &window);
	snprintf(text, sizeof(text), "%c%c%u %u", isatty(STDIN_FILENO) ? INIT_ECHO : INIT_NO_ECHO,
		 request->arguments && !isatty(STDOUT_FILENO) ? INIT_RAW_OUTPUT : INIT_COOKED_OUTPUT, window.ws_row,
		 window.ws_col);
	add_string(&cursor, orders + size, text);
	add_string(&cursor, orders + size, program);
	for (p = arguments; *p; p++)
		add_string(&cursor, orders + size, **p ? *p : INIT_EMPTY_STRING);
	add_string(&cursor, orders + size, "");
	add_string(&cursor, orders + size, "PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin");
	add_string(&cursor, orders + size, "HOME=/root");
	snprintf(text, sizeof(text), "TERM=%.32s", getenv("TERM") && isatty(STDOUT_FILENO) ? getenv("TERM") : "dumb");
	add_string(&cursor, orders + size, text);
	for (p = request->environment; p && *p; p++)
		add_string(&cursor, orders + size, *p);
	add_string(&cursor, orders + size, "");
	if (!cursor) {
		vmm_message("the program's arguments and environment are too long (%zu KiB are possible)", size >> 10);
		free(orders);
		return -1;
	}
	initramfs_add_data(fs, INIT_ORDERS, 0600, orders, cursor - orders);
	free(orders);
	return 0;
}

int pack_find_program(const char *name, char *resolved)
{
	char candidate[PATH_MAX];
	const char *path = getenv("PATH"), *end;
	struct stat status;

	if (strchr(name, '/')) {
		if (realpath(name, resolved))
			return 0;
		vmm_message("%s: %s; --program needs an executable file", name, strerror(errno));
		return -1;
	}
	for (path = path ? path : "/bin:/usr/bin"; path; path = *end ? end + 1 : NULL) {
		end = path + strcspn(path, ":");
		// An empty item is the current folder.
		snprintf(candidate, sizeof(candidate), "%.*s%s%s", (int)(end - path), path, end == path ? "" : "/", name);
		if (!stat(candidate, &status) && S_ISREG(status.st_mode) && !access(candidate, X_OK) &&
		    realpath(candidate, resolved))
			return 0;
	}
	vmm_message("%s: no such program in PATH; --program needs an executable file", name);
	return -1;
}

static void pack_skeleton(struct initramfs *fs)
{
	static const char *const directories[] = { "/bin", "/usr", "/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/var", "/mnt" };
	static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
	static const char group[] = "root:x:0:\nnogroup:x:65534:\n", hosts[] = "127.0.0.1 localhost\n";
	static const char profile[] = "PS1='guest:\\w# '\n";
	unsigned i;

	for (i = 0; i < sizeof(directories) / sizeof(directories[0]); i++)
		initramfs_add_directory(fs, directories[i]);
	// The kernel opens this one before init can mount anything.
	initramfs_add_device(fs, "/dev/console", S_IFCHR | 0600, 5, 1);
	initramfs_add_device(fs, "/dev/ttyS0", S_IFCHR | 0600, 4, 64);
	initramfs_add_device(fs, "/dev/null", S_IFCHR | 0666, 1, 3);
	initramfs_add_data(fs, "/etc/passwd", 0644, passwd, sizeof(passwd) - 1);
	initramfs_add_data(fs, "/etc/group", 0644, group, sizeof(group) - 1);
	initramfs_add_data(fs, "/etc/hosts", 0644, hosts, sizeof(hosts) - 1);
	initramfs_add_data(fs, "/etc/profile", 0644, profile, sizeof(profile) - 1);
	initramfs_add_data(fs, "/init", 0755, guest_init_program, guest_init_program_size);
}

int pack_initramfs(struct initramfs *fs, const struct pack_request *request)
{
	char program[PATH_MAX] = "/bin/sh";

	initramfs_create(fs);
	pack_skeleton(fs);
	if (request->arguments) {
		if (pack_find_program(request->arguments[0], program) < 0 || pack_executable(fs, program, 0) < 0)
			return -1;
	} else if (!request->busybox) {
		vmm_message("no busybox on this host: install busybox-static, or name an --initrd or a --program");
		return -1;
	}
	if (pack_extra_files(fs, request->extra_files) < 0 || pack_orders(fs, request, program) < 0)
		return -1;
	if (request->busybox && pack_busybox(fs, request->busybox) < 0)
		return -1;
	initramfs_finish(fs);
	return 0;
}
