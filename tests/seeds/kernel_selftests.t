#!/bin/bash
# SPDX-License-Identifier: MIT
# The kernel's own KVM selftests about the state contract, through `cetkvm exec`; and its regression test
# for document 003 against the generation it was written for. Needs the selftests built in the cache.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library
cache=${CETKVM_CACHE:-$top/.cache}
[ -d "$cache/kvm-selftests" ] || skip_all "no kernel selftests in the cache"
dir=$(find "$cache/kvm-selftests" -type f -name state_test -perm -u+x -printf '%h\n' | head -n 1)
[ -n "$dir" ] || skip_all "no kernel selftests in the cache"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() { # TEST [options of exec]
	local test=$1
	shift
	timeout 120 "$cetkvm" exec "$@" -- "$dir/$test" >"$scratch/log" 2>&1
}

for test in state_test smm_test amx_test xcr0_cpuid_test xss_msr_test set_sregs_test; do
	[ -x "$dir/$test" ] || { skip "$test" "not built"; continue; }
	run "$test"
	is $? 0 "$test passes" || tail -n 5 "$scratch/log" | sed 's/^/#   | /'
done
run state_test --kvm-abi over-saving
is $? 0 "003 state_test passes with the over-saving generation, which takes all that it saves"
run state_test --kvm-abi strict
is $? 254 "003/5 state_test fails with the strict generation"
matches "$scratch/log" 'KVM_SET_XSAVE failed, rc: -1 errno: 22' "003/5 since KVM_SET_XSAVE refuses what the host has"
done_testing
