#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# gdb at the stub of unmodified QEMU: breakpoints of both kinds and a watchpoint in the guest's kernel,
# single steps, registers and memory read and written. The kernel's own INT3 self-test, which a debugger
# has to hand back to the guest, lies on the way.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
. "$(dirname "$0")/qemu.sh"
TAP_TAIL=8
need_qemu
need_command gdb

guest_append="nokaslr quiet"
qemu_boot
qemu_image "$scratch/initrd" '
	cp /proc/kallsyms /tmp/symbols
	for s in start_kernel rest_init linux_banner jiffies __x64_sys_sethostname; do
		echo "symbol: $(grep -m 1 -w "[A-Za-z] $s\$" /tmp/symbols)"
	done
	hostname set-by-the-guest
	echo "hostname: $(hostname)"'
qemu "$scratch/log" -M q35 -cpu host "${boot_options[@]}"
ok $? "the guest tells where its kernel has what"
address() { echo "0x$(sed -n "s/^symbol: \\([0-9a-f]*\\) . $1\$/\\1/p" "$scratch/log")"; }
start_kernel=$(address start_kernel) rest_init=$(address rest_init)

cat >"$scratch/commands" <<GDB
set pagination off
set confirm off
set architecture i386:x86-64
target remote $scratch/gdb
hbreak *$start_kernel
continue
printf "hardware breakpoint at %#lx\n", \$rip
printf "banner: %.13s\n", (char *)$(address linux_banner)
printf "ENDBR64: %x\n", *(unsigned int *)\$rip
printf "kernel stack: %d, paging: %d\n", \$rsp > 0xffff800000000000, (\$cr0 >> 31) & 1
stepi
printf "a step: %d\n", \$rip - $start_kernel
delete
break *$rest_init
continue
printf "breakpoint at %#lx\n", \$rip
stepi
printf "left it: %d\n", \$rip != $rest_init
delete
set \$seen = *(unsigned long *)$(address jiffies)
watch *(unsigned long *)$(address jiffies)
continue
printf "watchpoint: %d\n", *(unsigned long *)$(address jiffies) - \$seen
delete
break *$(address __x64_sys_sethostname)
continue
printf "in a system call\n"
set \$r12 = 0x1122334455667788
stepi
printf "r12: %#lx\n", \$r12
# The name that the program gives: pt_regs.di, which the register rdi points into.
set \$name = *(unsigned long *)(\$rdi + 112)
set *(char *)\$name = 'S'
printf "rflags.if: %d\n", (\$eflags >> 9) & 1
delete
detach
GDB
qemu_start "$scratch/log2" -M q35 -cpu host -smp 2 "${boot_options[@]}" -S \
	-chardev "socket,id=gdb,path=$scratch/gdb,server=on,wait=off" -gdb chardev:gdb
for _ in $(seq 100); do [ -S "$scratch/gdb" ] && break; sleep 0.1; done
timeout 120 gdb -nx -batch -x "$scratch/commands" >"$scratch/gdb.out" 2>&1
ok $? "gdb ends with status 0" || tail -n 12 "$scratch/gdb.out" | sed 's/^/#   | /'
wait "$qemu_pid"
ok $? "QEMU ends with status 0"
out=$scratch/gdb.out
matches "$out" "^hardware breakpoint at $start_kernel\$" "a hardware breakpoint, from the reset vector on"
matches "$out" '^banner: Linux version' "the guest's memory is read"
matches "$out" '^ENDBR64: fa1e0ff3$' "instructions are read"
matches "$out" '^kernel stack: 1, paging: 1$' "registers are read"
matches "$out" '^a step: 4$' "a step goes over ENDBR64"
matches "$out" "^breakpoint at $rest_init\$" "a software breakpoint, behind the kernel's own INT3 test"
matches "$out" '^left it: 1$' "a step leaves it"
matches "$out" '^watchpoint: 1$' "a watchpoint stops at the first change"
matches "$out" '^in a system call' "a breakpoint in a system call"
matches "$out" '^r12: 0x1122334455667788' "a register that was written is kept over a step"
matches "$scratch/log2" '^hostname: Set-by-the-guest' "the guest's memory is written"
lacks "$scratch/log2" "$qemu_complaints" "no kernel complaint"
done_testing
