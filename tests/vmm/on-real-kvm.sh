#!/bin/bash
# SPDX-License-Identifier: MIT
# Runs `cetkvm run --device /dev/kvm ...` on a real KVM, where the host has none: QEMU's TCG emulates
# an AMD processor with SVM, Debian's kernel loads its kvm_amd there, and cetkvm runs a guest on it.
# Slow (some 15 seconds to a guest shell), and QEMU 7.2 is shaky with SVM on more than one processor, but it is the kernel's KVM that judges the VMM.
#
# Usage: tests/vmm/on-real-kvm.sh [--smp N] [--mem SIZE] [--input FILE] [--add HOST[:PATH]]... -- OPTION...
#   OPTION...   of `cetkvm run`; --device is added, and --kernel /vmlinuz unless there is a --kernel
#   --script F  run this shell script there instead, with cetkvm in the PATH
# Exit status: that of the inner cetkvm, or of the script.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=${CETKVM_BUILD:-$PWD/build}
smp=1 mem=2G input=/dev/null script=/dev/null adds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	case $1 in
	--smp) smp=$2 ;;
	--mem) mem=$2 ;;
	--input) input=$2 ;;
	--script) script=$2 ;;
	--add) adds+=(--add "$2") ;;
	*) sed -n '7,11s/^# //p' "$0" >&2; exit 2 ;;
	esac
	shift 2
done
[ $# -gt 0 ] && shift

kernel=$(scripts/fetch-kernel.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

modules=(virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd)
for module in "${modules[@]}"; do
	xz -dc "$kernel/modules/kernel/$module.ko.xz" >"$work/$(basename "$module").ko"
	adds+=(--add "$work/$(basename "$module").ko:/")
done
printf '%q ' "$@" >"$work/options"
cat "$input" >"$work/input"
cat "$script" >"$work/script"

cat >"$work/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
exec </dev/console >/dev/console 2>&1
for module in irqbypass kvm kvm-amd; do insmod /$module.ko || echo "insmod $module failed"; done
if [ -s /script ]; then
	sh /script </input
	echo "cetkvm exit status: $?"
	poweroff -f
fi
set --
eval "set -- $(cat /options)"
case " $* " in *" --kernel "*) ;; *) set -- --kernel /vmlinuz "$@" ;; esac
cetkvm run --device /dev/kvm "$@" </input
echo "cetkvm exit status: $?"
poweroff -f
INIT

scripts/mkinitramfs "$work/initrd" --init "$work/init" --binary "$build/cetkvm" --add "$work/options:/options" --add "$work/input:/input" --add "$work/script:/script" \
	--add "$(readlink -f "$kernel/vmlinuz"):/vmlinuz" "${adds[@]}"
timeout -k 5 "${TIMEOUT:-600}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,+svm -smp "$smp" -m "$mem" \
	-kernel "$kernel/vmlinuz" -initrd "$work/initrd" -append "console=ttyS0 panic=-1 quiet" \
	-nographic -no-reboot -nodefaults -serial stdio </dev/null | tee "$work/log"
status=$(sed -n 's/^cetkvm exit status: \([0-9]*\).*/\1/p' "$work/log" | tail -n 1)
exit "${status:-1}"
