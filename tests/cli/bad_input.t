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

# Usage: refuses "name" "regex for the line" OPTION...
refuses() {
	local name=$1 pattern=$2 status
	shift 2
	timeout 20 "$cetkvm" run --timeout 10 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
	status=$?
	is "$status" 2 "$name: exit status 2"
	is "$(wc -l <"$scratch/err")" 1 "$name: one line"
	matches "$scratch/err" "^cetkvm: $pattern" "$name: says what is wrong"
	is "$(wc -c <"$scratch/out")" 0 "$name: nothing on standard output"
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
for size in 0 1M 12X -5M 99999999999999G 4097K ""; do
	refuses "--mem '$size'" "--mem $size: not valid; accepted is " --kernel "$f/whole" --mem "$size"
done
for n in 0 -1 255 four 2x ""; do
	refuses "--smp '$n'" "--smp $n: not valid; accepted is a number from 1 to 254" --kernel "$f/whole" --smp "$n"
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

"$cetkvm" nonsense >"$scratch/out" 2>"$scratch/err"
is $? 2 "unknown command: exit status 2"
matches "$scratch/err" "^cetkvm: there is no command 'nonsense'; " "unknown command: says so"
"$cetkvm" --help >"$scratch/out" 2>"$scratch/err"
is $? 0 "--help: exit status 0"
matches "$scratch/out" '^usage: cetkvm COMMAND' "--help: shows the usage"
"$cetkvm" help run >"$scratch/out" && matches "$scratch/out" '^usage: cetkvm run ' "help run: shows its usage"
"$cetkvm" run --help >"$scratch/out2" && cmp -s "$scratch/out" "$scratch/out2"
ok $? "run --help is help run"
"$cetkvm" --version >"$scratch/out"
matches "$scratch/out" '^cetkvm [0-9]+\.[0-9]+' "--version: a version"
done_testing
