#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# On a processor without AVX2 and BMI2 cetkvm says so in one line and exits with status 2. QEMU's TCG
# plays the old machine.
. "$(dirname "$0")/../lib/tap.sh"
. "$(dirname "$0")/../lib/guest.sh"
need_kernel
need_command qemu-system-x86_64

cat >"$scratch/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
echo # after what the firmware left on the line
cetkvm run --kernel /vmlinuz </dev/null >/out 2>/err
echo "run: status $?, $(wc -l </err) line, $(wc -c </out) bytes of output"
cat /err
cetkvm doctor >/out
echo "doctor: status $?"
cat /out
poweroff -f
INIT
"$top/scripts/mkinitramfs" "$scratch/initrd" --init "$scratch/init" --binary "$cetkvm" \
	--add "$(readlink -f "$kernel/vmlinuz"):/vmlinuz" || skip_all "no initramfs"
timeout -k 5 120 qemu-system-x86_64 -accel tcg -cpu Nehalem -m 1G -kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" \
	-append "console=ttyS0 panic=-1 quiet" -nographic -no-reboot -nodefaults -serial stdio </dev/null 2>/dev/null |
	tr -d '\r' >"$scratch/log"
matches "$scratch/log" '^run: status 2, 1 line, 0 bytes of output' "run: exit status 2 and one line"
matches "$scratch/log" '^cetkvm: .*AVX2.*BMI2' "run: the line names what is missing"
matches "$scratch/log" '^doctor: status 2' "doctor: exit status 2"
matches "$scratch/log" '^-- +AVX2 and BMI2 on this host' "doctor: says what is missing"
done_testing
