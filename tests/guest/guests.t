#!/bin/bash
# SPDX-License-Identifier: MIT
# Every freestanding guest, in both grains of the engine: what holds for blocks must hold for single
# instructions. A guest's checks appear one by one, with its name and the grain.
# GUESTS="cet_insn cet_far" chooses guests, GRAINS="block" grains.
. "$(dirname "$0")/../lib/tap.sh"
[ "${CETKVM_MACHINE-}" = qemu ] && GRAINS=qemu || need_cetkvm

# Prints a guest's TAP with new numbers and the guest's name, and a check that it came to its end.
one() {
	local guest=$1 grain=$2 log=$scratch/log status plan seen
	if [ "$grain" = qemu ]; then
		"$top/tests/guest/run" "$guest" >"$log" 2>"$scratch/err"
	else
		"$top/tests/guest/run" "$guest" --grain "$grain" >"$log" 2>"$scratch/err"
	fi
	status=$?
	seen=0
	while IFS= read -r line; do
		case $line in
		"ok "* | "not ok "*)
			seen=$((seen + 1))
			tap_count=$((tap_count + 1))
			case $line in not*) tap_failed=$((tap_failed + 1)); printf 'not ' ;; esac
			echo "ok $tap_count - $guest ($grain): ${line#* - }"
			;;
		"1.."*) ;;
		"#"*) echo "$line" ;;
		*) echo "# | $line" ;;
		esac
	done < <(tr -d '\000' <"$log")
	plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log")
	[ "$plan" = "$seen" ] && { [ "$status" = 0 ] || [ "$status" = 1 ]; }
	ok $? "$guest ($grain): runs to its end" || {
		note "exit status $status, $seen checks seen, plan: ${plan:-none}"
		tail -n 12 "$scratch/err" | sed 's/^/#   | /'
	}
}

for elf in "$CETKVM_BUILD"/tests/guest/*.elf; do
	guest=$(basename "$elf" .elf)
	case " ${GUESTS-$guest} " in *" $guest "*) ;; *) continue ;; esac
	for grain in ${GRAINS-block single}; do
		one "$guest" "$grain"
	done
done
done_testing
