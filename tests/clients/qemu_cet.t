#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# With `cetkvm exec --cpuid +shstk,+ibt`, QEMU 7.2, which has never heard of CET, runs the guests of
# tests/guest that test each rule of shadow stacks and IBT, the kernel's own selftest of user shadow
# stacks and the kernel's IBT test: the same checks as under `cetkvm run`. Without it, none of that shows.
# QEMU 11.0 and later know CET and do the same by its own -cpu, without the option.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
. "$(dirname "$0")/qemu.sh"
TAP_TAIL=8
need_qemu
if qemu_knows_cet; then
	with=,+cet-ss,+cet-ibt without=,-cet-ss,-cet-ibt
else
	with='' without=''
	exec_options=(--cpuid +shstk,+ibt)
fi

# An Intel model, for SYSENTER in 64-bit mode. Not cet_smm, whose SMI handler the BIOS has replaced.
for elf in "$CETKVM_BUILD"/tests/guest/cet_*.elf; do
	guest=$(basename "$elf" .elf)
	log=$scratch/$guest
	[ "$guest" != cet_smm ] || continue
	qemu "$log" -M pc -cpu Skylake-Client,vendor=GenuineIntel$with -m 256M -kernel "$elf" -no-reboot -serial stdio \
		-device isa-debug-exit,iobase=0x501,iosize=1
	plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log")
	is "$(grep -c '^ok ' "$log")" "${plan:-a plan}" "$guest: all checks are good" ||
		grep -A 3 '^not ok' "$log" | head -n 12 | sed 's/^/#   | /'
done

need_command gcc
gcc -O1 -no-pie -fcf-protection -fno-stack-protector -U_FORTIFY_SOURCE -o "$scratch/overwrite" "$top/demo/overwrite.c" ||
	skip_all "demo/overwrite.c does not compile"
guest_binaries=("$scratch/overwrite")
programs=$("$top/scripts/fetch-selftests.sh" 2>"$scratch/fetch.log") && [ -e "$programs/test_shadow_stack_rest_64" ] &&
	guest_binaries+=("$programs/test_shadow_stack_rest_64")
guest_memory=512M
qemu_boot
qemu_image "$scratch/initrd" '
	dmesg | grep "CET detected"
	grep -m 1 ^flags /proc/cpuinfo
	overwrite
	echo "overwrite: status $?"
	[ ! -e /bin/test_shadow_stack_rest_64 ] || test_shadow_stack_rest_64
	echo "selftest: status $?"'

log=$scratch/with
qemu "$log" -M q35 -cpu host -smp 2 "${boot_options[@]}"
ok $? "QEMU ends with status 0"
matches "$log" 'CET detected: Indirect Branch Tracking enabled' "the kernel's IBT self-test passed"
matches "$log" '^flags.* user_shstk' "/proc/cpuinfo has user_shstk"
matches "$log" '^flags.* ibt' "/proc/cpuinfo has ibt"
matches "$log" 'SEGV_CPERR' "an overwritten return address is caught"
lacks "$log" 'The attack has won' "and not followed"
if [ ${#guest_binaries[@]} = 2 ]; then
	is "$(grep -ac '^\[OK\]' "$log")" 10 "the kernel's selftest of shadow stacks: ten checks are [OK]"
	lacks "$log" '^\[(FAIL|SKIP)\]' "the kernel's selftest of shadow stacks: no other"
else
	skip "the kernel's selftest of shadow stacks" "$(tail -n 1 "$scratch/fetch.log")"
fi

exec_options=()
log=$scratch/without
qemu "$log" -M q35 -cpu host$without "${boot_options[@]}"
ok $? "without CET QEMU ends with status 0, too"
lacks "$log" '^flags.* (user_shstk|ibt)( |$)' "the guest has no CET then"
matches "$log" 'The attack has won' "and the attack succeeds"
done_testing
