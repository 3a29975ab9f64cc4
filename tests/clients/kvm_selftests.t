#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# The kernel's own tools/testing/selftests/kvm, unmodified, through `cetkvm exec`: each must do what
# kvm_selftests.expect says. None may fail and none may hang.
#   KVM_SELFTESTS="NAME..."    only these
#   KVM_SELFTESTS_RUNS=N       each N times, the same result every time (default 1)
#   KVM_SELFTESTS_TABLE=FILE   writes the table of results: docs/kvm-selftests.md
#   KVM_SELFTESTS_LIMIT=S      seconds that one program may take (default 900)
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
programs=$("$top/scripts/fetch-kvm-selftests.sh" 2>"$scratch/fetch.log") ||
	skip_all "no KVM selftests: $(tail -n 1 "$scratch/fetch.log")"
expect=$top/tests/clients/kvm_selftests.expect

# Why a program says it skipped, or in one line why it failed.
reason() { # LOG STATUS
	local line
	if [ "$2" = 4 ]; then
		line=$(grep -am 1 -oE '# SKIP.*|[^#]*[Ss]kip.*' "$1")
		line=${line#\# SKIP}
		line=${line# - }
		line=${line#Requirement not met: }
		line=${line%, skipping test}
		echo "${line:-it does not say}"
	elif [ "$2" = 124 ] || [ "$2" = 137 ]; then
		echo "takes too long"
	elif [ "$2" != 0 ]; then
		grep -aA 1 -m 1 'Test Assertion Failure' "$1" | tail -n 1 | sed 's/^ *//'
	fi
}

table=$scratch/table
{
	echo "# The kernel's KVM selftests on cetkvm"
	echo
	echo "Linux 6.12's \`tools/testing/selftests/kvm\`, unmodified, each through \`cetkvm exec\`. Written by"
	echo "\`KVM_SELFTESTS_TABLE=docs/kvm-selftests.md tests/clients/kvm_selftests.t\` on a host with an"
	echo "$(sed -n 's/^vendor_id[^:]*: //p' /proc/cpuinfo | head -n 1) processor. A program that skips says what it misses:"
	echo "a capability, a CPUID bit or a module parameter that is not there."
	echo
	echo "| program | arguments | result | reason |"
	echo "| --- | --- | --- | --- |"
} >"$table"

cd "$programs" || skip_all "no KVM selftests"
total=0 passed=0
while read -r wanted program arguments; do
	case $wanted in '' | '#'*) continue ;; esac
	name=${program##*/}
	[ -z "${KVM_SELFTESTS-}" ] || [[ " $KVM_SELFTESTS " = *" $name "* ]] || continue
	if [ ! -x "$program" ]; then
		skip "$name" "not built"
		continue
	fi
	options=() words=$arguments arguments=
	for word in $words; do
		case $word in exec:*) options+=("${word#exec:}") ;; *) arguments+=${arguments:+ }$word ;; esac
	done
	for ((run = 1; run <= ${KVM_SELFTESTS_RUNS:-1}; run++)); do
		log=$scratch/$name.log
		# shellcheck disable=SC2086
		timeout -k 5 "${KVM_SELFTESTS_LIMIT:-900}" "$cetkvm" exec "${options[@]}" -- "./$program" $arguments >"$log" 2>&1 </dev/null
		status=$?
		why=$(reason "$log" $status)
		case $wanted-$status in *-0 | any-4) good=0 ;; *) good=1 ;; esac
		ok $good "$name${arguments:+ $arguments}${why:+ ($why)}" || {
			note "  exit status $status"
			tail -n 20 "$log" | tr -d '\000' | sed 's/^/#   | /'
		}
	done
	case $status in 0) result=pass ;; 4) result=skip ;; *) result=FAIL ;; esac
	echo "| $name | ${options[*]}$arguments | $result | ${why//|/\\|} |" >>"$table"
	total=$((total + 1))
	[ $status != 0 ] || passed=$((passed + 1))
done <"$expect"
printf '\n%s of %s pass.\n' "$passed" "$total" >>"$table"
if [ -n "${KVM_SELFTESTS_TABLE-}" ]; then
	(cd "$OLDPWD" && cp "$table" "$KVM_SELFTESTS_TABLE")
fi
done_testing
