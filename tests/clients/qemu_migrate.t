#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# A guest of unmodified QEMU moves while it computes: over a socket from process to process, by way of a
# file, and back to a snapshot. It checks its x87, SSE and AVX registers, the returns on its shadow
# stack and the kernel's IBT all the while (busy.c); QEMU before 11.0 knows nothing of the last two.
# In the end, in the process that it came to last, #CP still stops what it has to stop.
# CETKVM_MOVES=N: how many moves in a row (default 10).
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
. "$(dirname "$0")/qemu.sh"
TAP_TAIL=6
need_qemu
need_command qemu-img
moves=${CETKVM_MOVES:-10}
qemu_modules="$qemu_modules msr"
guest_files=("$CETKVM_BUILD/tests/clients/busy:/bin/busy")
qemu_knows_cet || exec_options=(--cpuid +shstk,+ibt)
guest_memory=192M
qemu_timeout=400
qemu_boot
qemu_image "$scratch/initrd" '
	dmesg -n 1
	dmesg | grep "CET detected"
	busy 1000 </dev/null &
	second=$!
	busy 1000
	echo "first status: $?"
	kill -TERM $second
	wait $second
	echo "second status: $?"
	dmesg | grep "control protection" | sed "s/^/dmesg: /"
	echo "no more"'
qemu-img create -q -f qcow2 "$scratch/disk" 64M || skip_all "no qcow2 image"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$scratch"' EXIT

# One process of the chain: its monitor, its console's socket and log are named by the number.
# Usage: start NUMBER OPTION...
start() {
	local n=$1
	shift
	qemu_start "$scratch/qemu.$n" -M q35 -cpu host -smp 2 "${boot_options[@]/stdio/chardev:console}" \
		-drive "file=$scratch/disk,format=qcow2,if=none,id=disk,file.locking=off" -device virtio-blk-pci,drive=disk \
		-chardev "socket,id=console,path=$scratch/console.$n,server=on,wait=off,logfile=$scratch/log.$n" \
		-monitor "unix:$scratch/monitor.$n,server=on,wait=off" "$@"
	pids+=("$qemu_pid")
}
# Waits until the guest in process NUMBER has said twice that it computes, from now on.
lines() { cat "$scratch/log.$1" 2>/dev/null | grep -ac '^busy: .* rounds'; }
computes() {
	local begin
	begin=$(lines "$1")
	for _ in $(seq 600); do
		[ "$(lines "$1")" -lt $((begin + 4)) ] || return 0
		sleep 0.1
	done
	return 1
}
status() { monitor "$scratch/monitor.$1" 'info migrate' | sed -nE 's/^(Migration status|Status):[[:space:]]*//p'; }
# Usage: migrate NUMBER URI      until it has been sent
migrate() {
	monitor "$scratch/monitor.$1" 'migrate_set_parameter max-bandwidth 4G' "migrate -d \"$2\"" >/dev/null
	for _ in $(seq 600); do
		case $(status "$1") in completed) return 0 ;; failed | cancelled) return 1 ;; esac
		sleep 0.1
	done
	return 1
}
trouble() { cat "$scratch/qemu.$1" | tail -n 5 | sed 's/^/#   | /'; }

start 0
wait_for 120 "$scratch/log.0" '^busy: begins' && computes 0
ok $? "the guest computes" || trouble 0
matches "$scratch/log.0" 'CET detected: Indirect Branch Tracking enabled' "its kernel has IBT"
matches "$scratch/log.0" 'busy: CPU 1 has S_CET 0x[0-9a-f]*[4-7c-f]\b' "S_CET.ENDBR_EN is set"
matches "$scratch/log.0" 'shadow stack on' "it has a shadow stack"

here=0 good=0
for n in $(seq "$moves"); do
	start "$n" -incoming "unix:$scratch/migration.$n"
	for _ in $(seq 100); do [ -S "$scratch/migration.$n" ] && break; sleep 0.1; done
	migrate "$here" "unix:$scratch/migration.$n" && computes "$n" || break
	monitor "$scratch/monitor.$here" quit >/dev/null
	here=$n good=$((good + 1))
done
is "$good" "$moves" "it moves over a socket $moves times in a row" || trouble "$n"

migrate "$here" "exec:cat >$scratch/state"
ok $? "it is written to a file"
monitor "$scratch/monitor.$here" quit >/dev/null
start file -incoming "exec:cat $scratch/state"
computes file
ok $? "and goes on from there" || trouble file

monitor "$scratch/monitor.file" 'savevm here' >"$scratch/answer"
is "$(cat "$scratch/answer")" "" "savevm"
good=0
for n in $(seq "$moves"); do
	monitor "$scratch/monitor.file" 'loadvm here' >"$scratch/answer"
	[ ! -s "$scratch/answer" ] && computes file || break
	good=$((good + 1))
done
is "$good" "$moves" "loadvm goes back $moves times in a row" || sed 's/^/#   | /' "$scratch/answer"
monitor "$scratch/monitor.file" quit >/dev/null
start last -loadvm here
computes last
ok $? "another process starts from the snapshot" || trouble last

[ ! -S "$scratch/console.last" ] || python3 - "$scratch/console.last" <<'PYTHON'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'\n')
PYTHON
wait_for 60 "$scratch/log.last" '^no more'
cat "$scratch"/log.* | tr -d '\r' >"$scratch/all"
lacks "$scratch/all" 'WRONG' "nothing was ever wrong"
matches "$scratch/all" '^first status: 0' "the guest found everything good in the end"
matches "$scratch/all" '^second status: 0' "on its other CPU as well"
for what in 'a return to another place' 'a jump to no ENDBR64'; do
	is "$(grep -ac "^busy: $what: signal 11" "$scratch/all")" 2 "and $what is still stopped, in both"
done
is "$(grep -ac '^dmesg: .*busy\[.*control protection .*(near ret)' "$scratch/all")" 2 "by #CP(NEAR-RET)"
is "$(grep -ac '^dmesg: .*busy\[.*control protection .*(endbranch)' "$scratch/all")" 2 "and by #CP(ENDBRANCH)"
lacks "$scratch/all" "$qemu_complaints" "no kernel complaint"
done_testing
