#!/bin/bash
# SPDX-License-Identifier: MIT
# `cetkvm exec`: what it says to bad input, and that it reaches a client.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library

# Usage: refuses "name" "regex for the line" ARGUMENT...
refuses() {
	local name=$1 pattern=$2 status
	shift 2
	timeout 20 "$cetkvm" exec "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
	status=$?
	is "$status" 2 "$name: exit status 2"
	is "$(wc -l <"$scratch/err")" 1 "$name: one line"
	matches "$scratch/err" "^cetkvm: $pattern" "$name: says what is wrong"
	is "$(wc -c <"$scratch/out")" 0 "$name: nothing on standard output"
}

refuses "no command" "exec: no command; accepted: cetkvm exec"
refuses "unknown option" "exec: unknown option '--nosuch'" --nosuch -- true
refuses "option without a value" "exec: option '--cpu' needs a value" --cpu
refuses "unknown model" "--cpu: unknown CPU model 'nosuch'" --cpu nosuch -- true
refuses "a feature nobody knows" "--cpuid '\+nosuch': not \+FEATURE or -FEATURE" --cpuid +nosuch -- true
refuses "a feature without a sign" "--cpuid 'shstk': not \+FEATURE or -FEATURE" --cpuid +ibt,shstk -- true
refuses "a feature that is not to be had" "--cpuid '\+vmx': built-in KVM cannot do that" --cpuid +vmx -- true
refuses "an empty list" "--cpuid '': not \+FEATURE or -FEATURE" --cpuid "" -- true
refuses "a comma too many" "--cpuid '': not \+FEATURE or -FEATURE" --cpuid +shstk, -- true
refuses "a list without end" "--cpuid '[+-](shstk|ibt)': one feature too many" --cpuid "$(yes +shstk,-ibt | head -n 2000 | paste -sd ,)" -- true
refuses "letters" "exec: unknown option '-x'; " -xyz true
refuses "a value for a switch" "exec: option '--client-cpuid' takes no value; " --client-cpuid=1 true
for option in grain kvm-abi trace; do
	refuses "--$option ''" "--$option '': not valid; accepted is " --$option "" true
done
printf 'no symbols\n' >"$scratch/text"
mkfifo "$scratch/pipe"
refuses "missing symbols" "$scratch/none: No such file or directory; --symbols needs " --symbols "$scratch/none" true
refuses "no symbols in a file" "$scratch/text: no symbols in it; --symbols needs " --symbols "$scratch/text" true
refuses "a folder of symbols" "$scratch: not a regular file; --symbols needs " --symbols "$scratch" true
refuses "a pipe of symbols" "$scratch/pipe: not a regular file; --symbols needs " --symbols "$scratch/pipe" true
refuses "an empty command" "exec: an empty command; the name of a program is needed" ""
refuses "a pipe as a command" "exec: $scratch/pipe: not executable" "$scratch/pipe"
printf '#!/nosuch/interpreter\n' >"$scratch/orphan" && chmod +x "$scratch/orphan"
refuses "a script without its interpreter" "exec: /nosuch/interpreter: No such file or directory" "$scratch/orphan"
head -c 300 /bin/true >"$scratch/cut" && chmod +x "$scratch/cut"
refuses "a program cut off" "exec: $scratch/cut is damaged: " "$scratch/cut"
refuses "unknown program" "exec: nosuch-program: no such program in PATH" nosuch-program
refuses "a folder" "exec: /: Is a directory" /
refuses "a file that is no program" "exec: /etc/passwd: not executable" /etc/passwd

static=$scratch/client-static # a path without blanks: the script's first line has none to spare
cp "$CETKVM_BUILD/tests/preload/client-static" "$static"
refuses "a static program" "exec: .*client-static is statically linked" "$static"
printf '#!%s\n' "$static" >"$scratch/script"
chmod +x "$scratch/script"
refuses "a script for a static program" "exec: .*client-static is statically linked" "$scratch/script"

is "$("$cetkvm" exec -- sh -c 'exit 7'; echo $?)" 7 "the exit status is the program's"
is "$("$cetkvm" exec -- printf %s -- a b)" "--ab" "what follows the command is the command's"
"$cetkvm" exec -- "$CETKVM_BUILD/tests/preload/client" hello >"$scratch/out" 2>"$scratch/err"
is "$?" 0 "a client runs a guest"
is "$(cat "$scratch/out")" "hello" "and gets what the guest says"
is "$(cat "$scratch/err")" "" "and nothing else is said"

# Installed in odd places. The command finds the library by its own place.
for place in "a b" "a:b"; do
	mkdir -p "$scratch/$place/cli" "$scratch/$place/preload"
	cp "$(readlink -f "$cetkvm")" "$scratch/$place/cli/cetkvm"
	cp "$CETKVM_BUILD/src/preload/libcetkvm-preload.so" "$scratch/$place/preload"
done
is "$("$scratch/a b/cli/cetkvm" exec -- sh -c "exec '$CETKVM_BUILD/tests/preload/client' hello" 2>&1)" "hello" \
	"the library may lie in a folder with a blank in its name"
cetkvm="$scratch/a:b/cli/cetkvm" refuses "a folder with a colon" "exec: .*/preload/libcetkvm-preload.so: the dynamic linker takes no " true

for way in prctl syscall; do
	"$cetkvm" exec -- "$CETKVM_BUILD/tests/preload/client-seccomp" $way 2>"$scratch/err"
	is "$?" 0 "a program that limits its own system calls by $way runs"
	matches "$scratch/err" "^cetkvm: this program limits its own system calls \\(seccomp\\)" "it is said what that may lead to"
done
"$cetkvm" exec -- "$CETKVM_BUILD/tests/preload/client-seccomp" asking 2>"$scratch/err"
is "$? $(cat "$scratch/err")" "0 " "nothing is said to one that only asks whether it could"
done_testing
