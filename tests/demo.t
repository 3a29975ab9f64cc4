#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# `make demo` as a stranger runs it: the attack wins without CET and is stopped with it.
. "$(dirname "$0")/lib/tap.sh"
. "$(dirname "$0")/lib/guest.sh"
need_kernel
timeout 200 "$top/scripts/demo.sh" >"$scratch/out" 2>"$scratch/err"
ok $? "the demo ends well" || sed 's/^/#   | /' "$scratch/out" "$scratch/err"
matches "$scratch/out" 'The attack has won' "without CET the attack wins"
matches "$scratch/out" 'CET detected: Indirect Branch Tracking enabled' "with CET the kernel says so"
matches "$scratch/out" 'SEGV_CPERR' "with CET the program gets SEGV_CPERR"
matches "$scratch/out" 'overwrite\[[0-9]+\] control protection' "the kernel names the fault"
matches "$scratch/out" 'read_message' "the trace names the function whose RET it was"
done_testing
