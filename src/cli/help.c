// SPDX-License-Identifier: MIT
// What --help says. The manual pages say more.
#include "cli/cli.h"

#include <string.h>

#ifndef CETKVM_VERSION
#define CETKVM_VERSION "unknown"
#endif

static const char overview[] =
	"cetkvm - KVM with Intel CET, in user space\n"
	"\n"
	"usage: cetkvm COMMAND [OPTION...]\n"
	"\n"
	"commands:\n"
	"  run      boot a guest: a kernel, a shell in it, or one program of this host\n"
	"  exec     run a program that uses KVM, such as QEMU, with KVM served by cetkvm\n"
	"  fleet    move a guest through a fleet of hosts and see what becomes of its state\n"
	"  doctor   say what this machine can do, and for which programs\n"
	"  help     explain a command: cetkvm help run\n"
	"\n"
	"  --help, --version\n"
	"\n"
	"try:\n"
	"  cetkvm run                          a shell in a guest, with the newest fit kernel of /boot\n"
	"  cetkvm run --program ./prog ARGS    run a program of this host in a guest\n"
	"  cetkvm run --kernel bzImage --initrd initrd.img --trace cp\n";

static const char run_help[] =
	"usage: cetkvm run [OPTION...] [--program PROGRAM [ARGUMENT...]]\n"
	"\n"
	"what to run:\n"
	"  --kernel FILE          Linux bzImage or vmlinux, or an ELF executable for x86\n"
	"                         (default: the newest kernel of /boot with shadow stacks)\n"
	"  --initrd FILE          initial ramdisk for it (default: a busybox with a shell)\n"
	"  --append TEXT          kernel command line (default: console=ttyS0)\n"
	"  --program PROGRAM ...  run a program of this host in the guest, with its libraries; all that\n"
	"                         follows is its arguments. Its exit status becomes cetkvm's.\n"
	"  --env NAME=VALUE       put this into the program's environment\n"
	"  --add HOST[:GUEST]     put another file into the guest\n"
	"  --shell                an interactive shell (default if there is nothing else to run)\n"
	"\n"
	"the machine:\n"
	"  --mem SIZE             memory: 256M, 4G (default 512M)\n"
	"  --smp N                virtual processors (default 1)\n"
	"  --cpu MODEL[,+FEATURE][,-FEATURE]...    or --cpu list\n"
	"  --device PATH          use a kernel's KVM, such as /dev/kvm, instead of the built-in one\n"
	"  --grain block|single   translate blocks (default) or instruction by instruction\n"
	"  --kvm-abi GENERATION   KVM_GET_XSAVE and KVM_SET_XSAVE: over-saving, strict or constrained\n"
	"\n"
	"watching it:\n"
	"  --trace cp             explain every control-protection exception on standard error\n"
	"  --symbols FILE         System.map or vmlinux for the names in it\n"
	"  --verbose              with --program: show the kernel's messages too\n"
	"  --timeout SECONDS      give up after that long (exit status 124)\n"
	"  --no-reboot            end when the guest resets\n"
	"\n"
	"  --help                 these lines\n"
	"\n"
	"On a terminal, Ctrl-A x ends the run and Ctrl-A Ctrl-A types a Ctrl-A.\n"
	"\n"
	"exit status: the program's or the one the guest wrote to port 0x501; 0 after a power-off; 2 for\n"
	"bad input; 3 if the guest crashed; 4 if KVM failed; 124 after --timeout; 128+N after signal N.\n";

static const char exec_help[] =
	"usage: cetkvm exec [OPTION...] [--] COMMAND [ARGUMENT...]\n"
	"\n"
	"Runs a program that uses /dev/kvm, unchanged, with KVM served by cetkvm inside it. The program\n"
	"has to be a dynamically linked 64-bit one.\n"
	"\n"
	"  --cpu MODEL[,+FEATURE][,-FEATURE]...\n"
	"                         what KVM_GET_SUPPORTED_CPUID offers the program (default: host, with\n"
	"                         this machine's vendor, for programs ask the processor themselves too);\n"
	"                         or --cpu list\n"
	"  --client-cpuid         the program's own CPUID instructions answer the same, and that the\n"
	"                         processor can virtualize: for kvmtool, and models of another vendor\n"
	"  --cpuid +FEATURE,-FEATURE,...\n"
	"                         change what the program gives its guests: +shstk,+ibt gives them CET\n"
	"                         though the program does not know of it\n"
	"  --grain block|single   translate blocks (default) or instruction by instruction\n"
	"  --kvm-abi GENERATION   KVM_GET_XSAVE and KVM_SET_XSAVE: over-saving, strict or constrained\n"
	"  --trace cp             explain every control-protection exception on standard error\n"
	"  --symbols FILE         System.map or vmlinux for the names in it\n"
	"  --help                 these lines\n"
	"\n"
	"try:\n"
	"  cetkvm exec -- qemu-system-x86_64 -accel kvm -nographic -kernel bzImage\n"
	"\n"
	"exit status: the program's; 2 if it cannot be started or reached.\n";

static const char fleet_help[] =
	"usage: cetkvm fleet [OPTION...] SCENARIO|FILE\n"
	"       cetkvm fleet --list\n"
	"\n"
	"Moves a guest that holds patterns in all its state, and a live shadow stack, from host to host\n"
	"through the KVM ioctls, and says what became of each component: kept, lost, corrupted, refused.\n"
	"Hosts and path come from a text file: see cetkvm-fleet(5).\n"
	"\n"
	"  --list                 the scenarios that come along\n"
	"  --json FILE            write the report as JSON too (- is standard output, and nothing else)\n"
	"  --html FILE            write it as a page too\n"
	"  --quiet                no table\n"
	"  --help                 these lines\n"
	"\n"
	"try:\n"
	"  cetkvm fleet silent-corruption --html report.html\n"
	"\n"
	"exit status: 0; 1 if the outcome is not the one that the file expects; 2 for bad input; 4 if KVM\n"
	"or a report failed.\n";

static const char doctor_help[] =
	"usage: cetkvm doctor [PROGRAM]\n"
	"       cetkvm doctor --ioctls\n"
	"\n"
	"Says what this machine offers: the processor features that cetkvm needs and those it can hand\n"
	"on to guests, kernels to boot, and the tools that --program uses; and whether 'cetkvm exec' can\n"
	"reach PROGRAM. Exit status 2 if cetkvm cannot run guests here, or not for PROGRAM.\n"
	"\n"
	"  --ioctls   list the ioctls and capabilities of the KVM API that there are\n"
	"  --help     these lines\n";

int cli_help(FILE *output, const char *topic)
{
	static const struct {
		const char *topic, *text;
	} texts[] = { { "run", run_help }, { "exec", exec_help }, { "fleet", fleet_help }, { "doctor", doctor_help }, { "help", overview } };
	unsigned i;

	if (!topic) {
		fputs(overview, output);
		return 0;
	}
	for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (!strcmp(topic, texts[i].topic)) {
			fputs(texts[i].text, output);
			return 0;
		}
	return -1;
}

void cli_version(void)
{
	puts("cetkvm " CETKVM_VERSION);
}
