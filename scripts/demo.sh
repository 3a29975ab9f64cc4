#!/bin/bash
# SPDX-License-Identifier: MIT
# The attack, twice: a program that overwrites its own return address, in an unmodified Debian kernel,
# first on a processor without CET, then with it. Exit status 0 if the first attack won and the
# second was stopped.
set -u
. "$(dirname "$0")/assets.sh"
build=${CETKVM_BUILD:-$top/build}
cetkvm=$build/cetkvm

say() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi; }
run() {
	local word line=
	for word; do
		word=${word#"$top/"}
		[ "${word#"$cache/"}" = "$word" ] || word=.cache/${word#"$cache/"}
		case $word in *' '*) word="'$word'" ;; esac
		line="$line $word"
	done
	echo "\$$line"
	"$@" </dev/null 2>&1 | tr -d '\r' | tee "$log"
	return "${PIPESTATUS[0]}"
}

kernel=$("$top/scripts/fetch-kernel.sh") || exit 1
mkdir -p "$build/demo"
gcc -O1 -g -no-pie -fcf-protection -fno-stack-protector -U_FORTIFY_SOURCE -o "$build/demo/overwrite" \
	"$top/demo/overwrite.c" || exit 1
log=$(mktemp)
trap 'rm -f "$log" "$log.all"' EXIT
failed=0

say "1. A processor without CET"
echo "demo/overwrite.c copies 64 bytes into a buffer of 32, over its own return address. Debian's"
echo "$(sed 's/linux-image-//; s/-unsigned//' "$kernel/package") kernel boots on cetkvm, with CET left out of the processor, and runs it."
run "$cetkvm" run --kernel "$kernel/vmlinuz" --append "console=ttyS0 quiet" --cpu sapphirerapids,-shstk,-ibt \
	--program "$build/demo/overwrite"
status=$?
if [ $status = 66 ]; then
	echo "The RET went where the overwritten address said, and the program's exit status is the"
	echo "attacker's: 66."
else
	echo "demo: expected the attack to win (exit status 66), got $status" >&2
	failed=1
fi

say "2. The same processor with CET"
echo "The same kernel, the same program. CALL now also pushes the return address on a shadow stack that"
echo "ordinary stores cannot reach, and RET compares the two. --trace cp tells each mismatch."
run "$cetkvm" run --kernel "$kernel/vmlinuz" --append "console=ttyS0 ignore_loglevel" --trace cp \
	--program "$build/demo/overwrite" >"$log.all" 2>&1
status=$?
head -n 1 "$log.all"
grep -aE 'CET detected|overwrite|control protection|#CP|cp:|^cetkvm' "$log.all" | tail -n +2 | awk '!seen[$0]++'
rm -f "$log.all"
if [ $status = 139 ] && grep -aq SEGV_CPERR "$log"; then
	echo "The kernel says that CET is there and that its own indirect branch tracking works. The RET of"
	echo "read_message() found on the shadow stack not the address that the copy had written, and the"
	echo "processor raised #CP: the kernel made it SIGSEGV with SEGV_CPERR and ended the program (139)."
else
	echo "demo: expected the attack to be stopped by SEGV_CPERR (exit status 139), got $status" >&2
	failed=1
fi
exit $failed
