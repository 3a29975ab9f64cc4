#!/bin/bash
# SPDX-License-Identifier: MIT
# `cetkvm exec --client-cpuid`: CPUID in the client's own code.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library
client=$CETKVM_BUILD/tests/preload/client-cpuid
vendor=$(awk '/^vendor_id/ { print $3; exit }' /proc/cpuinfo)

# Usage: run "name" ARGUMENT... ; the client's own checks are one of ours
run() {
	local name=$1
	shift
	timeout 60 "$cetkvm" exec "$@" >"$scratch/out" 2>"$scratch/err"
	is "$?" 0 "$name" || sed 's/^/#   | /' "$scratch/out" "$scratch/err"
	is "$(cat "$scratch/err")" "" "$name: nothing is said"
}

run "without the option CPUID is the processor's" -- "$client" untouched "$vendor"
run "not even with a model" --cpu sapphirerapids -- "$client" untouched "$vendor"
run "with the option it is KVM's" --client-cpuid -- "$client" patched "$vendor"
run "and the model's" --client-cpuid --cpu sapphirerapids -- "$client" patched GenuineIntel
run "a program that does not ask" --client-cpuid -- "$CETKVM_BUILD/tests/preload/client" hello
if objcopy --version >/dev/null 2>&1; then
	objcopy --remove-section .eh_frame_hdr "$client" "$scratch/bare" 2>/dev/null
	"$cetkvm" exec --client-cpuid -- "$scratch/bare" untouched "$vendor" >"$scratch/out" 2>"$scratch/err"
	matches "$scratch/err" '^cetkvm: --client-cpuid: this program has no table of functions' "a program without a table is told so"
else
	skip "a program without a table" "no objcopy here"
fi
done_testing
