#!/bin/bash
# SPDX-License-Identifier: MIT
# The benchmark programs run, each prints its name and a time, and bench/run makes a table and JSON
# of them. No figure is judged here.
. "$(dirname "$0")/lib/tap.sh"
need_command python3
[ -x "$CETKVM_BUILD/bench/calls" ] || skip_all "the benchmark programs are not built"
for program in $(cd "$CETKVM_BUILD/bench" && find . -maxdepth 1 -type f -perm -u+x | sort | cut -c3-); do
	timeout 60 "$CETKVM_BUILD/bench/$program" >"$scratch/out"
	matches "$scratch/out" "^$program [0-9]+\.[0-9]{6}\$" "$program prints its time"
done
"$top/bench/run" --runs 1 --machines none --only calls --json "$scratch/json" >"$scratch/table" 2>&1
if [ -s "$scratch/json" ]; then
	matches "$scratch/table" '^calls +[0-9.]+' "the table has the program"
	python3 -c 'import json,sys; assert json.load(open(sys.argv[1]))["seconds"]["native"]["calls"] > 0' "$scratch/json"
	ok $? "the JSON has its native time"
else
	skip "the table and the JSON" "no kernel to be had: $(tail -n 1 "$scratch/table")"
fi
done_testing
