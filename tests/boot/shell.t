#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# Debian's kernel boots to a shell with 1, 2 and 4 vCPUs and 256 MiB and 4 GiB, with CET announced
# and found working by the kernel itself, and without a complaint.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
need_kernel

for shape in "1 256M" "2 256M" "4 256M" "1 4G" "4 4G"; do
	read -r cpus memory <<<"$shape"
	name="$cpus vCPU, $memory"
	log=$scratch/boot-$cpus-$memory.log
	linux_guest "$log" --mem "$memory" --smp "$cpus" -- '
		echo "cpus online: $(nproc)"
		echo "flags: $(grep -m 1 ^flags /proc/cpuinfo) :end"
		echo "memory: $(grep MemTotal /proc/meminfo)"
		dmesg | grep -i "CET detected"
		sleep 1
		echo "slept"'
	ok $? "$name: the machine powers off with status 0" || tail -n 20 "$log" | sed 's/^/#   | /'
	matches "$log" '^guest script status: 0' "$name: the shell ran its script"
	matches "$log" "^cpus online: $cpus\$" "$name: every vCPU is online"
	matches "$log" '^slept' "$name: time passes"
	matches "$log" '^flags:.* user_shstk .*:end' "$name: /proc/cpuinfo has user_shstk"
	matches "$log" '^flags:.* ibt .*:end' "$name: /proc/cpuinfo has ibt"
	matches "$log" 'CET detected: Indirect Branch Tracking enabled' "$name: the kernel's IBT self-test passed"
	lacks "$log" "$kernel_complaints" "$name: no kernel complaint"
done
done_testing
