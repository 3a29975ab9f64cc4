#!/bin/bash
# SPDX-License-Identifier: MIT
# Whatever is wrong with what the user gave: one line that says what and what is accepted, status 2.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm

# A bzImage only in its header, large enough to be complete: enough for all checks before the boot.
# Usage: make_bzimage FILE SECTORS-OF-KERNEL
make_bzimage() {
	python3 - "$1" "$2" <<'PY'
import struct, sys
path, sectors = sys.argv[1], int(sys.argv[2])
d = bytearray(1024 + 512 * sectors)
d[0x1f1] = 1                                   # setup_sects
struct.pack_into('<I', d, 0x1f4, 512 * sectors // 16)  # syssize
struct.pack_into('<H', d, 0x1fe, 0xaa55)
d[0x200:0x202] = b'\xeb\x6a'
d[0x202:0x206] = b'HdrS'
struct.pack_into('<H', d, 0x206, 0x020f)
struct.pack_into('<I', d, 0x22c, 0x7fffffff)   # initrd_addr_max
struct.pack_into('<I', d, 0x230, 0x200000)
struct.pack_into('<H', d, 0x236, 1)            # XLF_KERNEL_64
struct.pack_into('<I', d, 0x238, 2047)         # cmdline_size
struct.pack_into('<Q', d, 0x258, 0x1000000)    # pref_address
struct.pack_into('<I', d, 0x260, 64 << 20)     # init_size
open(path, 'wb').write(d)
PY
}

# Usage: says_no "name" "regex for the line" COMMAND...
says_no() {
	local name=$1 pattern=$2 status
	shift 2
	timeout 20 "$cetkvm" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
	status=$?
	is "$status" 2 "$name: exit status 2"
	is "$(wc -l <"$scratch/err")" 1 "$name: one line"
	matches "$scratch/err" "^cetkvm: $pattern" "$name: says what is wrong"
	is "$(wc -c <"$scratch/out")" 0 "$name: nothing on standard output"
}

# Usage: refuses "name" "regex for the line" OPTION-OF-RUN...
refuses() {
	local name=$1 pattern=$2
	shift 2
	says_no "$name" "$pattern" run --timeout 10 "$@"
}

f=$scratch
make_bzimage "$f/whole" 64
head -c 20000 "$f/whole" >"$f/truncated"
head -c 700 "$f/whole" >"$f/stub"
printf 'just some text\n' >"$f/text"
head -c 100000 /dev/zero >"$f/zeros"
: >"$f/empty"
printf '\177ELF\2\1\1' >"$f/shortelf"
cp /bin/true "$f/program"
printf '\177ELF\1\2\1' >"$f/foreign" && head -c 200 /dev/zero >>"$f/foreign"
echo initrd >"$f/initrd"

refuses "missing kernel" "$f/none: No such file or directory; " --kernel "$f/none"
refuses "kernel is a directory" "$f: not a regular file; accepted are " --kernel "$f"
refuses "empty kernel" "$f/empty: an empty file; accepted are " --kernel "$f/empty"
refuses "text as kernel" "$f/text: not a kernel; accepted are " --kernel "$f/text"
refuses "zeros as kernel" "$f/zeros: not a kernel; accepted are " --kernel "$f/zeros"
refuses "cut in the setup code" "$f/stub: not a kernel; accepted are " --kernel "$f/stub"
refuses "truncated bzImage" "$f/truncated: truncated kernel: .* 33792 bytes, the file has 20000; " --kernel "$f/truncated"
refuses "truncated ELF header" "$f/shortelf: not a kernel; " --kernel "$f/shortelf"
refuses "ELF for another processor" "$f/foreign: an ELF file for another processor; " --kernel "$f/foreign"
refuses "program of this host as kernel" "$f/program: an ELF file that is not a fixed-address executable" --kernel "$f/program"
refuses "too little memory" "$f/whole: too little memory: .* up to 80 MiB, the guest has 64 MiB; give more with --mem" \
	--kernel "$f/whole" --initrd "$f/initrd" --mem 64M
refuses "missing initrd" "$f/none: No such file or directory; " --kernel "$f/whole" --initrd "$f/none"
refuses "empty initrd" "$f/empty: an empty file; " --kernel "$f/whole" --initrd "$f/empty"
refuses "long command line" "$f/whole: the command line has 3000 characters; this kernel accepts 2047" \
	--kernel "$f/whole" --initrd "$f/initrd" --append "$(printf '%03000d' 0)"

refuses "unknown CPU feature" "--cpu: unknown CPU feature 'shadowstacks'; see 'cetkvm run --cpu list'" \
	--kernel "$f/whole" --cpu sapphirerapids,+shadowstacks
refuses "unknown CPU model" "--cpu: unknown CPU model 'pentium9'; see " --kernel "$f/whole" --cpu pentium9
refuses "feature without sign" "--cpu: 'avx2' is neither " --kernel "$f/whole" --cpu host,avx2
refuses "feature without its base" "--cpu: \+avx2 needs avx, " --kernel "$f/whole" --cpu host,-avx,+avx2
for size in 0 1M 12X -5M 1.5G "1 G" 0x100M 99999999999999G 18446744073709551615G 4097K ""; do
	refuses "--mem '$size'" "--mem ${size:-''}: not valid; accepted is " --kernel "$f/whole" --mem "$size"
done
refuses "--mem +4G" "--mem \\+4G: not valid; accepted is " --kernel "$f/whole" --mem +4G
for n in 0 -1 255 four 2x 0x2 " 1" 1.0 99999999999999999999 ""; do
	refuses "--smp '$n'" "--smp ${n:-''}: not valid; accepted is a number from 1 to 254" --kernel "$f/whole" --smp "$n"
done
refuses "--timeout 0" "--timeout 0: not valid; " --kernel "$f/whole" --timeout 0
refuses "--grain" "--grain coarse: not valid; accepted is block or single" --kernel "$f/whole" --grain coarse
refuses "--kvm-abi" "--kvm-abi 5.17: not valid; accepted is over-saving, strict or constrained" --kernel "$f/whole" \
	--kvm-abi 5.17
refuses "--trace" "--trace everything: not valid; accepted is cp" --kernel "$f/whole" --trace everything
refuses "--env" "--env FOO: not valid; accepted is NAME=VALUE" --kernel "$f/whole" --env FOO
refuses "unknown option" "run: unknown option '--kernle'; " --kernle "$f/whole"
refuses "option without value" "run: option '--kernel' needs a value; " --kernel
refuses "file name without --kernel" "run: unexpected '$f/whole'; " "$f/whole"
refuses "missing program" "$f/none: No such file or directory; --program needs " --kernel "$f/whole" --program "$f/none"
refuses "program that cannot run" "$f/text: not an executable file" --kernel "$f/whole" --program "$f/text"
refuses "--program with --initrd" "--program and --initrd exclude" --kernel "$f/whole" --initrd "$f/initrd" --program true
refuses "missing device" "$f/nodevice: No such file or directory" --kernel "$f/whole" --initrd "$f/initrd" --device "$f/nodevice"
refuses "device that is no KVM" "/dev/null: not a KVM device" --kernel "$f/whole" --initrd "$f/initrd" --device /dev/null
refuses "library option with a device" "--trace, --symbols, --grain and --kvm-abi are for the built-in KVM" \
	--kernel "$f/whole" --device /dev/null --trace cp
refuses "missing symbols" "$f/none: No such file or directory; --symbols needs " --kernel "$f/whole" --symbols "$f/none"
refuses "wrong --add" "--add $f/text:x: wanted is " --kernel "$f/whole" --add "$f/text:x"

for option in --kernel --initrd --device --symbols; do
	refuses "$option ''" "$option '': not valid; accepted is the name of a file" "$option" ""
done
mkfifo "$f/pipe"
ln -s loop "$f/loop"
refuses "pipe as kernel" "$f/pipe: not a regular file; " --kernel "$f/pipe"
refuses "link to itself as kernel" "$f/loop: Too many levels of symbolic links; " --kernel "$f/loop"
refuses "pipe as initrd" "$f/pipe: not a regular file; " --kernel "$f/whole" --initrd "$f/pipe"
refuses "pipe as symbols" "$f/pipe: not a regular file; --symbols needs " --kernel "$f/whole" --symbols "$f/pipe"
refuses "folder as symbols" "$f: not a regular file; --symbols needs " --kernel "$f/whole" --symbols "$f"
refuses "text as symbols" "$f/text: no symbols in it; --symbols needs " --kernel "$f/whole" --symbols "$f/text"
refuses "--program ''" "--program '': not valid; accepted is a program of this host" --kernel "$f/whole" --program ""
refuses "pipe as program" "$f/pipe: not an executable file; --program needs one" --kernel "$f/whole" --program "$f/pipe"
refuses "folder as program" "$f: not an executable file; --program needs one" --kernel "$f/whole" --program "$f"
chmod +x "$f/text" "$f/foreign"
refuses "text as program" "$f/text: neither a whole x86 ELF program nor a script with #!; " --kernel "$f/whole" --program "$f/text"
refuses "program for another processor" "$f/foreign: neither a whole x86 ELF program nor " --kernel "$f/whole" --program "$f/foreign"
head -c 300 /bin/true >"$f/cut" && chmod +x "$f/cut"
refuses "program cut off" "$f/cut: neither a whole x86 ELF program nor " --kernel "$f/whole" --program "$f/cut"
printf '#!%s\n' "$f/script" >"$f/script" && chmod +x "$f/script"
refuses "script that runs itself" "$f/script: its interpreter '$f/script' cannot be packed; " --kernel "$f/whole" --program "$f/script"
refuses "pipe to add" "$f/pipe: not a regular file " --kernel "$f/whole" --add "$f/pipe:/x"
for place in / /a/ //a /a/../b /./a /bin /dev/console /.cetkvm /init; do
	refuses "--add to $place" "--add $f/text:$place: $place is no place for a file" --kernel "$f/whole" --add "$f/text:$place"
done
refuses "--program with --shell" "--program and --shell exclude " --kernel "$f/whole" --shell --program true
for option in --shell "--env A=b" "--add $f/text"; do
	# shellcheck disable=SC2086
	refuses "$option with --initrd" "--shell, --env and --add are for the initrd that cetkvm makes" \
		--kernel "$f/whole" --initrd "$f/initrd" $option
done
printf '.globl _start\n_start: hlt\n' | gcc -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-Ttext-segment=0x100000 \
	-x assembler -o "$f/flat" - && refuses "program in a guest that is not Linux" "$f/flat: not Linux; --program, " \
	--kernel "$f/flat" --program true
refuses "letters" "run: unknown option '-x'; " -xyz
refuses "value for a switch" "run: option '--verbose' takes no value; " --verbose=yes
refuses "word that could be three options" "run: unknown option '--s'; " --s 1
refuses "--cpu ''" "--cpu: unknown CPU model ''; " --cpu ""
refuses "comma behind --cpu" "--cpu: '' is neither " --cpu host,
refuses "feature of no processor here" "--cpu: this host or KVM cannot offer 'vmx'; " --kernel "$f/whole" --initrd "$f/initrd" \
	--mem 256M --cpu +vmx
refuses "file name of two lines" "a\\?b: No such file or directory; " --kernel $'a\nb'
refuses "file name with an escape sequence" "a\\?\\[31m: No such file or directory; " --kernel $'a\e[31m'

says_no "no command" "no command; accepted are run, exec, fleet, doctor and help, "
for command in nonsense "" -x --bogus RUN; do
	says_no "command '$command'" "there is no command '$command'; see 'cetkvm --help'" "$command"
done
says_no "help about nothing" "help: there is no command 'nonsense'; " help nonsense
says_no "help about two" "unexpected 'fleet' behind help; " help run fleet
says_no "--version of something" "unexpected 'run' behind --version; " --version run
for word in --bogus -x --ioctls=1; do
	says_no "doctor $word" "doctor: unexpected '$word'; " doctor "$word"
done
says_no "doctor of two" "doctor: unexpected 'two'; " doctor true two
says_no "doctor --ioctls of one" "doctor: unexpected 'one'; " doctor --ioctls one
"$cetkvm" --help >"$scratch/out" 2>"$scratch/err"
is $? 0 "--help: exit status 0"
matches "$scratch/out" '^usage: cetkvm COMMAND' "--help: shows the usage"
"$cetkvm" help run >"$scratch/out" && matches "$scratch/out" '^usage: cetkvm run ' "help run: shows its usage"
"$cetkvm" run --help >"$scratch/out2" && cmp -s "$scratch/out" "$scratch/out2"
ok $? "run --help is help run"
"$cetkvm" --version >"$scratch/out"
matches "$scratch/out" '^cetkvm [0-9]+\.[0-9]+' "--version: a version"
done_testing
