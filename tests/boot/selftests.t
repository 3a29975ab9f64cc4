#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# The kernel's own tools/testing/selftests/x86, 64- and 32-bit, in the guest. Each program must end
# as selftests.expect says: "pass" unless listed there with the reason why it cannot.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
need_kernel
programs=$("$top/scripts/fetch-selftests.sh" 2>"$scratch/fetch.log") ||
	skip_all "no selftests: $(tail -n 1 "$scratch/fetch.log")"
expect=$top/tests/boot/selftests.expect

for program in "$programs"/*_32 "$programs"/*_64; do
	guest_binaries+=("$program")
done
guest_timeout=500
log=$scratch/selftests.log
# The kernel's ring buffer keeps what a program provoked; the console shows only the programs.
linux_guest "$log" --mem 512M --smp "${SELFTESTS_CPUS:-1}" -- '
	dmesg -n 1
	cd /tmp
	for p in /bin/*_32 /bin/*_64; do
		echo "=== begin ${p##*/}"
		timeout -k 2 200 $p 2>&1 </dev/null
		status=$?
		echo
		echo "=== end ${p##*/} $status"
	done
	dmesg | grep -E "WARNING:|BUG:|Call Trace:|Oops" | sed "s/^/=== kernel /"'
ok $? "the guest powers off with status 0"

for program in "$programs"/*_64 "$programs"/*_32; do
	name=$(basename "$program")
	status=$(sed -n "s/^=== end $name //p" "$log" | head -n 1)
	read -r wanted reason < <(awk -v n="$name" '$1 == n { $1 = ""; print }' "$expect")
	sed -n "/^=== begin $name\$/,/^=== end $name /p" "$log" >"$scratch/one"
	case ${wanted:-pass} in
	pass) [ "$status" = 0 ] ;;
	skip) [ "$status" = 4 ] ;;
	fail) [ -n "$status" ] && [ "$status" != 0 ] && [ "$status" -lt 124 ] ;;
	*) false ;;
	esac
	ok $? "$name: ${wanted:-pass}${reason:+ ($reason)}" || {
		note "  exit status: ${status:-none, it never ended}"
		tail -n 25 "$scratch/one" | tr -d '\000' | sed 's/^/#   | /'
	}
done

shadow() { sed -n "/^=== begin $1\$/,/^=== end $1 /p" "$log" >"$scratch/shadow"; }
shadow test_shadow_stack_64
matches "$scratch/shadow" '^\[OK\]' "test_shadow_stack_64: prints [OK]"
if [ -e "$programs/uffd-refuses-shadow-stacks" ]; then
	# This kernel answers EINVAL to UFFDIO_REGISTER of a shadow stack (vma_can_userfault() in
	# include/linux/userfaultfd_k.h), which no processor can change, and the program stops there.
	is "$(grep -aE '\[(FAIL|SKIP)\]' "$scratch/shadow" | tr '\t' ' ')" "[FAIL] Userfaultfd test" \
		"test_shadow_stack_64: every check is [OK] up to the one that this kernel refuses"
else
	lacks "$scratch/shadow" '\[(FAIL|SKIP)\]' "test_shadow_stack_64: every check is [OK]"
fi
shadow test_shadow_stack_rest_64
lacks "$scratch/shadow" '\[(FAIL|SKIP)\]' "test_shadow_stack without the Userfaultfd check: every check is [OK]"
is "$(grep -ac '^\[OK\]' "$scratch/shadow")" 10 "and there are ten"
lacks "$log" '^=== kernel ' "no kernel complaint"
[ -z "${SELFTESTS_LOG-}" ] || cp "$log" "$SELFTESTS_LOG"
done_testing
