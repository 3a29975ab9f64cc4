#!/bin/bash
# SPDX-License-Identifier: MIT
# A short lockstep run, the same sequences every time: each class in both modes against silicon,
# 32- and 16-bit code in segments with limits, far transfers.
. "$(dirname "$0")/../lib/tap.sh"
lockstep=$CETKVM_BUILD/tests/lockstep/lockstep
[ -x "$lockstep" ] || skip_all "not in this build"

for mode in 64 32 "32 --segments" 16 "32 --class far" "64 --class far"; do
	"$lockstep" --mode $mode --seed 2026 --count "${LOCKSTEP_COUNT:-400}" --report 1 >"$scratch/out" 2>&1
	status=$?
	while read -r line; do
		case $line in
		"ok - "*) ok 0 "${line#ok - }" ;;
		"not ok - "*) ok 1 "${line#not ok - }" ;;
		*) echo "$line" ;;
		esac
	done <"$scratch/out"
	[ $status -lt 2 ]
	ok $? "lockstep of $mode-bit code ran to its end"
done
done_testing
