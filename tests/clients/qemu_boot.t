#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# Debian's QEMU, unmodified, boots Debian's kernel on the machines it has: SeaBIOS, OVMF and no BIOS to
# speak of, interrupt controllers in the kernel, split, and in QEMU, a disk by ioeventfd and irqfd, a file fetched
# over user networking from a server on loopback, and a reboot.
# CETKVM_ALL_ROWS=1 boots every combination, which takes half an hour.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
. "$(dirname "$0")/qemu.sh"
need_qemu

# MACHINE CPU CPUS, and what else `boot` knows: split, reboot, and off, which is for one CPU: QEMU 7.2.22
# never takes a SIPI back that it gave to a vCPU with its own APIC, and spins when that halts.
rows=(
	"pc qemu64 1 reboot"
	"q35 host 2"
	"q35 max 2 split"
	"ovmf host 1"
	"microvm host 2"
	"pc Skylake-Client 2 split"
	"q35 host 1 off"
)
if [ -n "${CETKVM_ALL_ROWS-}" ]; then
	rows=()
	for machine in pc q35 ovmf microvm; do
		for cpus in 1 2; do
			for chip in "" split; do
				rows+=("$machine host $cpus $chip" "$machine max $cpus $chip")
			done
		done
		rows+=("$machine host 2 reboot" "$machine host 2 split reboot")
	done
	rows+=("pc host 1 off" "q35 host 1 off")
	for cpu in qemu64 kvm64 Westmere Haswell-noTSX Skylake-Client Skylake-Server Cascadelake-Server \
		Icelake-Server Snowridge Opteron_G5 EPYC EPYC-Rome EPYC-Milan; do
		rows+=("q35 $cpu 2")
	done
fi

head -c 3000000 /dev/urandom >"$scratch/file"
sum=$(md5sum <"$scratch/file")
sum=${sum%% *}
python3 - "$scratch" <<'PYTHON' &
import functools, http.server, os, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
handler.func.log_message = lambda *anything: None
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
with open(sys.argv[1] + '/port.new', 'w') as out:
    out.write('%d\n' % server.server_address[1])
os.rename(sys.argv[1] + '/port.new', sys.argv[1] + '/port')
server.serve_forever()
PYTHON
server=$!
trap 'kill $server; rm -rf "$scratch"' EXIT
wait_for 20 "$scratch/port" . || skip_all "no server on loopback"
port=$(cat "$scratch/port")

qemu_image "$scratch/initrd" "
	echo \"cpus online: \$(nproc)\"
	echo \"clock: \$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)\"
	case \$(cat /proc/cmdline) in *reboot-once*)
		case \$(dd if=/dev/vda bs=512 count=1 skip=6000 2>/dev/null) in
		again*) echo 'rebooted' ;;
		*) echo again | dd of=/dev/vda bs=512 seek=6000 conv=sync 2>/dev/null; sync; reboot -f; sleep 100 ;;
		esac ;;
	esac
	echo \"disk: \$(dd if=/dev/vda bs=100000 count=30 2>/dev/null | md5sum)\"
	echo 'written by the guest' | dd of=/dev/vda bs=512 seek=6001 conv=sync oflag=direct 2>/dev/null
	ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0
	wget -q -O /tmp/file http://10.0.2.2:$port/file && echo \"net: \$(md5sum </tmp/file)\"
	ip link set eth0 down
	grep -E 'virtio|vector' /proc/interrupts | sed 's/^/irq: /'
	echo \"script ends\""

boot() {
	local machine=$1 cpu=$2 cpus=$3 split= off= reboot= chip=on bus=pci name="$*" log=$scratch/log options=() guest_append=
	shift 3
	for word; do eval "$word=1"; done
	[ -z "$reboot" ] || guest_append=reboot-once
	[ -z "$split" ] || chip=split
	[ -z "$off" ] || chip=off
	options=(-M "$machine,kernel-irqchip=$chip")
	[ "$machine" != ovmf ] || options=(-M "q35,kernel-irqchip=$chip" -bios /usr/share/ovmf/OVMF.fd)
	[ "$machine" != microvm ] || bus=device
	if [ "$machine" = ovmf ] && [ ! -e /usr/share/ovmf/OVMF.fd ]; then
		skip "$name" "the package ovmf is not installed"
		return
	fi
	cp "$scratch/file" "$scratch/disk"
	truncate -s 4M "$scratch/disk"
	qemu_boot
	[ -z "$reboot" ] || boot_options=("${boot_options[@]/-no-reboot/-nodefaults}")
	qemu "$log" "${options[@]}" -cpu "$cpu" -smp "$cpus" "${boot_options[@]}" \
		-drive "file=$scratch/disk,format=raw,if=none,id=disk" -device "virtio-blk-$bus,drive=disk" \
		-netdev user,id=net -device "virtio-net-$bus,netdev=net" -trace 'kvm_set_ioeventfd*' -trace kvm_irqchip_commit_routes
	ok $? "$name: QEMU ends with status 0" || tail -n 20 "$log" | sed 's/^/#   | /'
	matches "$log" '^script ends' "$name: the kernel boots and the shell runs its script"
	matches "$log" "^cpus online: $cpus\$" "$name: every vCPU is online"
	matches "$log" "^disk: $sum" "$name: reads the disk"
	is "$(dd if="$scratch/disk" bs=512 skip=6001 count=1 2>/dev/null | tr -d '\0')" 'written by the guest' \
		"$name: writes the disk"
	matches "$log" "^net: $sum" "$name: fetches a file over the network"
	if [ "${CETKVM_CLIENT_ACCEL-}" != tcg ]; then
		matches "$log" 'kvm_set_ioeventfd_[a-z]*.*assign: 1' "$name: the devices' queues have ioeventfds"
	fi
	[ -z "$reboot" ] || matches "$log" '^rebooted' "$name: comes back after a reboot"
	lacks "$log" "$qemu_complaints" "$name: no kernel complaint"
	[ -z "${CETKVM_LOGS-}" ] || cp "$log" "$CETKVM_LOGS/qemu_boot.${name// /-}.log"
}

for row in "${rows[@]}"; do
	# shellcheck disable=SC2086
	boot $row
done
done_testing
