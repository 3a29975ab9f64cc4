// SPDX-License-Identifier: MIT
// Looks at a program file: which kind it is, and whether the dynamic linker loads it, with our library.
#include "cli/program.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LIBRARY_NAME "libcetkvm-preload.so"

#define SCRIPT_DEPTH 4 // interpreters that are scripts themselves

static void problem(struct program *program, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void problem(struct program *program, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(program->problem, sizeof(program->problem), format, args);
	va_end(args);
}

static bool is_program(const char *path)
{
	struct stat status;

	return !stat(path, &status) && S_ISREG(status.st_mode) && !access(path, X_OK);
}

static bool find(struct program *program, const char *command)
{
	const char *path = getenv("PATH"), *end;

	if (!*command) {
		problem(program, "an empty command; the name of a program is needed");
		return false;
	}
	if (strchr(command, '/')) {
		snprintf(program->path, sizeof(program->path), "%s", command);
		if (is_program(command))
			return true;
		if (!access(command, X_OK))
			errno = EISDIR;
		problem(program, "%s: %s", command, errno == EACCES ? "not executable" : strerror(errno));
		return false;
	}
	for (path = path ? path : "/bin:/usr/bin"; path; path = end ? end + 1 : NULL) {
		end = strchr(path, ':');
		snprintf(program->path, sizeof(program->path), "%.*s%s%s", end ? (int)(end - path) : (int)strlen(path), path,
			 *path && *path != ':' ? "/" : "", command);
		if (is_program(program->path))
			return true;
	}
	snprintf(program->path, sizeof(program->path), "%s", command);
	problem(program, "%s: no such program in PATH", command);
	return false;
}

// Programs that gain rights run in the dynamic linker's secure mode, which ignores LD_PRELOAD.
static bool gains_rights(const char *path, const struct stat *status)
{
	if ((status->st_mode & S_ISUID) && status->st_uid != geteuid())
		return true;
	if ((status->st_mode & S_ISGID) && status->st_gid != getegid())
		return true;
	return geteuid() && getxattr(path, "security.capability", NULL, 0) > 0;
}

// The dynamic linker that the program asks for; empty if none. False: the file ends too early.
static bool read_interpreter(int fd, const Elf64_Ehdr *header, char linker[PATH_MAX])
{
	Elf64_Phdr segment;

	*linker = 0;
	for (unsigned i = 0; i < header->e_phnum; i++) {
		off_t at = (off_t)(header->e_phoff + (Elf64_Off)i * header->e_phentsize);

		if (pread(fd, &segment, sizeof(segment), at) != sizeof(segment))
			return false;
		if (segment.p_type != PT_INTERP)
			continue;
		if (segment.p_filesz >= PATH_MAX ||
		    pread(fd, linker, segment.p_filesz, (off_t)segment.p_offset) != (ssize_t)segment.p_filesz)
			return false;
		linker[segment.p_filesz] = 0;
		return true;
	}
	return true;
}

static void look_elf(struct program *program, int fd, const char *path, const Elf64_Ehdr *header)
{
	char linker[PATH_MAX];
	struct stat status;
	const char *name;

	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64) {
		problem(program, "%s is not a 64-bit x86 program", path);
		return;
	}
	if (!read_interpreter(fd, header, linker)) {
		problem(program, "%s is damaged: its program headers go beyond its end", path);
		return;
	}
	if (!*linker) {
		problem(program, "%s is statically linked: there is no dynamic linker to load cetkvm into it", path);
		return;
	}
	name = strrchr(linker, '/');
	if (strcmp(name ? name + 1 : linker, "ld-linux-x86-64.so.2")) {
		problem(program, "%s is loaded by %s: cetkvm can be loaded into programs for the GNU C library only", path,
			linker);
		return;
	}
	if (!fstat(fd, &status) && gains_rights(path, &status))
		problem(program, "%s is set-uid, set-gid or has file capabilities: the dynamic linker keeps cetkvm out of it",
			path);
}

static void look_file(struct program *program, const char *path, unsigned depth)
{
	union {
		Elf64_Ehdr elf;
		char text[PATH_MAX];
	} start = { 0 };
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t size;

	if (fd < 0) {
		if (errno != EACCES) // runs, though we cannot read it: nothing known against it
			problem(program, "%s: %s", path, strerror(errno));
		return;
	}
	size = pread(fd, &start, sizeof(start) - 1, 0);
	if (size >= (ssize_t)sizeof(start.elf) && !memcmp(start.elf.e_ident, ELFMAG, SELFMAG)) {
		look_elf(program, fd, path, &start.elf);
	} else if (size > 2 && start.text[0] == '#' && start.text[1] == '!') {
		char *interpreter = start.text + 2 + strspn(start.text + 2, " \t");

		interpreter[strcspn(interpreter, " \t\n")] = 0;
		if (depth < SCRIPT_DEPTH)
			look_file(program, interpreter, depth + 1);
	}
	// Anything else execvp() hands to the shell.
	close(fd);
}

void program_look(struct program *program, const char *command)
{
	program->problem[0] = 0;
	if (find(program, command))
		look_file(program, program->path, 0);
}

// It lies in the build tree beside us, or where it was installed in relation to us.
bool library_find(struct library *library)
{
	static const char *const places[] = { "../preload/" LIBRARY_NAME, CETKVM_PRELOAD_FROM_BINDIR "/" LIBRARY_NAME };
	char self[PATH_MAX], candidate[PATH_MAX + 256];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	library->problem[0] = 0;
	if (length < 0) {
		snprintf(library->problem, sizeof(library->problem), "/proc/self/exe: %s; cetkvm finds its library by it",
			 strerror(errno));
		return false;
	}
	self[length] = 0;
	*strrchr(self, '/') = 0;
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(candidate, sizeof(candidate), "%s/%s", self, places[i]);
		if (!realpath(candidate, library->path) || access(library->path, R_OK))
			continue;
		if (!strpbrk(library->path, ":;")) // separators of LD_LIBRARY_PATH
			return true;
		snprintf(library->problem, sizeof(library->problem),
			 "%s: the dynamic linker takes no path with a colon or a semicolon", library->path);
		return false;
	}
	snprintf(library->problem, sizeof(library->problem), "there is no " LIBRARY_NAME " in %.2000s/%s", self,
		 CETKVM_PRELOAD_FROM_BINDIR);
	return false;
}
