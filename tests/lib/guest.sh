# SPDX-License-Identifier: MIT
# Booting the Debian kernel in a test: source after tap.sh.
#
#   linux_guest LOG [OPTION...] -- SCRIPT    boots, runs the shell SCRIPT as root, powers off. LOG is
#                                            the console; the function's status is the machine's.
#   guest_files=("HOST:GUEST"...)            what to add to the initramfs (mkinitramfs --add)
#   guest_binaries=(PROGRAM...)              host programs to add with their libraries
#   guest_timeout=SECONDS                    default 120
#   CETKVM_MACHINE=qemu                      boot under QEMU's TCG instead, to check the test itself

guest_files=() guest_binaries=() guest_timeout=120

need_kernel() {
	kernel=$("$top/scripts/fetch-kernel.sh" 2>"$scratch/fetch.log") ||
		skip_all "no kernel: $(tail -n 1 "$scratch/fetch.log")"
	[ "${CETKVM_MACHINE-}" = qemu ] || need_cetkvm
}

guest_initramfs() {
	local output=$1 script=$2 arguments=() entry
	cat >"$scratch/init" <<-INIT
		#!/bin/sh
		export PATH=/bin HOME=/root
		mount -t devtmpfs dev /dev
		exec </dev/console >/dev/console 2>&1
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t tmpfs tmpfs /tmp
		mkdir -p /dev/pts /dev/shm && mount -t devpts devpts /dev/pts && mount -t tmpfs shm /dev/shm
		ip link set lo up
		sh /guest-script
		echo "guest script status: \$?"
		poweroff -f
	INIT
	printf '%s\n' "$script" >"$scratch/guest-script"
	for entry in "${guest_files[@]}"; do arguments+=(--add "$entry"); done
	for entry in "${guest_binaries[@]}"; do arguments+=(--binary "$entry"); done
	"$top/scripts/mkinitramfs" "$output" --init "$scratch/init" \
		--add "$scratch/guest-script:/guest-script" "${arguments[@]}"
}

linux_guest() {
	local log=$1 options=() script
	shift
	while [ "$1" != -- ]; do options+=("$1"); shift; done
	script=$2
	guest_initramfs "$scratch/initrd" "$script" || return 1
	boot_machine "$log" "$scratch/initrd" "${options[@]}"
}

# Usage: boot_machine LOG INITRD [cetkvm run options...]
boot_machine() {
	local log=$1 initrd=$2 mem=256M smp=1 status
	local append="console=ttyS0 panic=-1 ${guest_append-}"
	shift 2
	if [ "${CETKVM_MACHINE-}" = qemu ]; then
		while [ $# -gt 0 ]; do
			case $1 in --mem) mem=$2 ;; --smp) smp=$2 ;; esac
			shift 2
		done
		timeout -k 5 "$guest_timeout" qemu-system-x86_64 -accel tcg -cpu max -m "$mem" -smp "$smp" \
			-kernel "$kernel/vmlinuz" -initrd "$initrd" -append "$append" \
			-nographic -no-reboot -nodefaults -serial stdio </dev/null >"$log" 2>&1
	else
		timeout -k 5 "$guest_timeout" "$cetkvm" run --kernel "$kernel/vmlinuz" --initrd "$initrd" \
			--append "$append" "$@" </dev/null >"$log" 2>&1
	fi
	status=$?
	tr -d '\r' <"$log" >"$log.unix" && mv "$log.unix" "$log"
	return $status
}

# What no healthy boot prints.
kernel_complaints='WARNING:|BUG:|Call Trace:|Kernel panic|Oops|general protection fault|soft lockup|rcu.*stall|unchecked MSR|traps:.*(trap|error)|Missing ENDBR|clocksource: .*unstable'
