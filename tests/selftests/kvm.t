#!/bin/bash
# SPDX-License-Identifier: MIT
# The kernel's own KVM selftests, unmodified, through `cetkvm exec`: each program's exit status against
# kvm.expect. Writes a table of all to $CETKVM_BUILD/kvm-selftests.md, of which docs/ has a copy.
# CETKVM_SELFTESTS=REGEX runs only some.
# slow
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
[ -e "$CETKVM_BUILD/src/preload/libcetkvm-preload.so" ] || skip_all "the library for clients is not built"
folder=$("$top/scripts/fetch-kvm-selftests.sh" 2>"$scratch/fetch") ||
	skip_all "no kernel selftests: $(tail -n 1 "$scratch/fetch")"
expected=$top/tests/selftests/kvm.expect
table=$CETKVM_BUILD/kvm-selftests.md
limit=${CETKVM_SELFTESTS_LIMIT:-900} # seconds for each; most need less than one

# The last line that says something, for the table.
reason() {
	grep -a -m 1 -o 'SKIP.*' "$scratch/log" | sed -e 's/^SKIP[ -]*//' -e 's/Requirement not met: /needs /' -e 's/|/\\|/g'
}

cat >"$table" <<EOF
# The kernel's KVM selftests

Linux 6.12, \`tools/testing/selftests/kvm\`, unmodified, through \`cetkvm exec\`. Made by
tests/selftests/kvm.t.

| program | result | seconds | why not |
| --- | --- | --- | --- |
EOF
passed=0 skipped=0 failed=0
while read -r program wanted why; do
	case $program in '#'* | '') continue ;; esac
	[[ $program =~ ${CETKVM_SELFTESTS:-.} ]] || continue
	if [ ! -x "$folder/$program" ]; then
		ok 1 "$program is built"
		continue
	fi
	begin=$(date +%s)
	(cd "$folder" && timeout "$limit" "$cetkvm" exec -- "./$program" >"$scratch/log" 2>&1 </dev/null)
	status=$?
	seconds=$(($(date +%s) - begin))
	case $status in
	0) result=pass passed=$((passed + 1)) note='' ;;
	4) result=skip skipped=$((skipped + 1)) note=$(reason) ;;
	124) result=hang failed=$((failed + 1)) note="not done after $limit seconds" ;;
	*) result=fail failed=$((failed + 1)) note="exit status $status" ;;
	esac
	echo "| $program | $result | $seconds | ${note:-$why} |" | sed 's/|  |$/| |/' >>"$table"
	case $result-$wanted in
	*-todo) tap_count=$((tap_count + 1)); echo "not ok $tap_count - $program # TODO $why" ;;
	pass-* | skip-skip) ok 0 "$program: $result" ;;
	*)
		ok 1 "$program: $wanted"
		note "  got: $result, exit status $status"
		tail -n 8 "$scratch/log" | tr -d '\000\r' | sed 's/^/#   | /'
		;;
	esac
done <"$expected"
printf '\n%d pass, %d skip, %d fail.\n' $passed $skipped $failed >>"$table"

# One asks the processor itself for what only the guest's model has.
if [ -x "$folder/x86_64/monitor_mwait_test" ] && [[ x86_64/monitor_mwait_test =~ ${CETKVM_SELFTESTS:-.} ]]; then
	timeout "$limit" "$cetkvm" exec --client-cpuid --cpu host,+monitor -- \
		"$folder/x86_64/monitor_mwait_test" >"$scratch/log" 2>&1
	is $? 0 "monitor_mwait_test with --client-cpuid --cpu host,+monitor: pass" || tail -n 5 "$scratch/log" | sed 's/^/#   | /'
fi

# Every program that was built is in the list.
for path in "$folder"/*_test "$folder"/steal_time "$folder"/x86_64/*; do
	[ -x "$path" ] && [ -f "$path" ] || continue
	program=${path#"$folder"/}
	case $program in *.o | *.d | *.sh | *.c) continue ;; esac
	grep -q "^$program " "$expected" || ok 1 "$program is in kvm.expect"
done
done_testing
