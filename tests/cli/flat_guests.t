#!/bin/bash
# SPDX-License-Identifier: MIT
# `cetkvm run` with small ELF guests: how a run ends, what its exit status is, and what the board's
# devices answer. Every guest is built for 64 and for 32 bits.
# With CETKVM_OPTIONS="--device /dev/kvm" the same holds on a kernel's KVM.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_command gcc
here=$(dirname "$0")

# Usage: build NAME BITS
build() {
	gcc "-m$2" -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-Ttext-segment=0x100000 -Wl,-z,noexecstack \
		-DGUEST="$1" -o "$scratch/$1.$2" "$here/guests.S" || exit 1
}

# Usage: run NAME BITS [OPTION...]; standard input is $input
input=/dev/null
run() {
	local guest=$scratch/$1.$2
	shift 2
	[ -e "$guest" ] || build "$(basename "${guest%.*}")" "${guest##*.}"
	# shellcheck disable=SC2086
	timeout 60 "$cetkvm" run ${CETKVM_OPTIONS-} --timeout 30 --kernel "$guest" --mem 64M "$@" \
		>"$scratch/out" 2>"$scratch/err" <"$input"
	status=$?
}

for bits in 64 32; do
	run hello $bits
	is $status 42 "$bits-bit: the exit port gives the status"
	is "$(cat "$scratch/out")" "hello from a flat guest" "$bits-bit: string output reaches the serial port"
	is "$(wc -c <"$scratch/err")" 0 "$bits-bit: nothing on standard error"
	run poweroff $bits
	is $status 0 "$bits-bit: ACPI power-off is status 0"
	for way in reset_cf9 reset_8042 reset_port92; do
		run $way $bits --no-reboot
		is $status 0 "$bits-bit: $way ends the run under --no-reboot"
	done
	run triple_fault $bits
	is $status 3 "$bits-bit: triple fault is status 3"
	matches "$scratch/err" '^cetkvm: guest crashed: triple fault on vCPU 0' "$bits-bit: triple fault is reported"
	matches "$scratch/err" '^  rip 000000000010|^  rip 000000000000fff0' "$bits-bit: with registers"
	run debug_exit $bits
	is $status 11 "$bits-bit: port 0xf4 gives 2n+1"
	run panic $bits
	is $status 3 "$bits-bit: pvpanic is status 3"
	matches "$scratch/err" '^cetkvm: guest crashed: ' "$bits-bit: pvpanic is reported"
	run hang $bits --timeout 1
	is $status 124 "$bits-bit: a guest that hangs ends by --timeout"
	run command_line $bits --append "a=1 b=two"
	is "$(cat "$scratch/out")" "a=1 b=two" "$bits-bit: the command line arrives"
	printf 'some inputq' >"$scratch/input"
	input=$scratch/input run echo $bits
	is "$status $(cat "$scratch/out")" "7 some input" "$bits-bit: polled serial input"
	run uart $bits
	is $status 0 "$bits-bit: UART registers"
	run acpi $bits
	is $status 0 "$bits-bit: ACPI tables and their checksums"
	run memory $bits --mem 3500M
	is $status 0 "$bits-bit: memory up to the hole"
done
run memory 64 --mem 5G
is "$status $(cat "$scratch/out")" "0 H" "memory above 4 GiB is announced"

run hello 64 --smp 4
is $status 42 "four vCPUs, three of them never started"
run hang 64 --timeout 2 &
sleep 1
run hello 64
is $status 42 "two machines at a time"
wait

build hang 64
rm -f "$scratch/out" # not that of the last run
# shellcheck disable=SC2086
"$cetkvm" run ${CETKVM_OPTIONS-} --kernel "$scratch/hang.64" </dev/null >"$scratch/out" 2>"$scratch/err" &
for _ in $(seq 300); do
	[ -s "$scratch/out" ] && break
	sleep 0.1
done
kill -TERM $!
wait $!
is $? 143 "SIGTERM ends the run with 128+15"
matches "$scratch/err" '^cetkvm: ended by signal 15' "SIGTERM is reported"

# Standard descriptors that are full, closed, or have no reader.
# shellcheck disable=SC2086
[ -e "$scratch/hello.64" ] || build hello 64
machine=("$cetkvm" run ${CETKVM_OPTIONS-} --timeout 30 --kernel "$scratch/hello.64" --mem 64M)
"${machine[@]}" </dev/null >/dev/full 2>"$scratch/err"
is $? 4 "output that cannot be written: status 4"
matches "$scratch/err" '^cetkvm: standard output: No space left on device; what the guest wrote is lost' "and it is said"
"${machine[@]}" <&- >"$scratch/out" 2>"$scratch/err"
is "$? $(cat "$scratch/out" "$scratch/err")" "42 hello from a flat guest" "standard input may be closed"
"${machine[@]}" <&- >&- 2>&-
is $? 42 "so may all three be"
build loud 64
"$cetkvm" run ${CETKVM_OPTIONS-} --timeout 30 --kernel "$scratch/loud.64" --mem 64M </dev/null 2>"$scratch/err" | head -n 1 >/dev/null
is "${PIPESTATUS[0]}" 141 "a guest that nobody reads any more ends as by SIGPIPE"

# A reader that does not read, and does not go away. The guest fills the pipe and then waits.
mkfifo "$scratch/stuck"
exec 3<>"$scratch/stuck"
start=$SECONDS
# shellcheck disable=SC2086
timeout -k 1 20 "$cetkvm" run ${CETKVM_OPTIONS-} --timeout 2 --kernel "$scratch/loud.64" --mem 64M </dev/null \
	>"$scratch/stuck" 2>"$scratch/err"
is $? 124 "--timeout ends a guest whose output is stuck"
# shellcheck disable=SC2086
"$cetkvm" run ${CETKVM_OPTIONS-} --timeout 30 --kernel "$scratch/loud.64" --mem 64M </dev/null \
	>"$scratch/stuck" 2>"$scratch/err" 3>&- &
sleep 2
kill -TERM $!
wait $!
is $? 143 "so does SIGTERM"
exec 3>&-
ok $((SECONDS - start > 15)) "soon"

# A reset without --no-reboot boots again and again.
timeout 20 "$cetkvm" run ${CETKVM_OPTIONS-} --timeout 2 --kernel "$scratch/reset_cf9.64" </dev/null 2>"$scratch/err"
is $? 124 "a guest that resets is booted again until the time is over"
done_testing
