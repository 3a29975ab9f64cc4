# SPDX-License-Identifier: MIT
# Debian's QEMU as a client: source after tap.sh and guest.sh.
#
#   need_qemu                     skips the test without QEMU, the kernel or its modules
#   qemu_image OUTPUT SCRIPT      an initramfs with busybox and the virtio modules, which loads them, runs
#                                 the shell SCRIPT and powers off
#   qemu_boot                     sets boot_options: the kernel, $scratch/initrd, the console on stdio
#   qemu LOG OPTION...            runs QEMU to its end, console in LOG
#   qemu_start LOG OPTION...      the same without waiting; sets qemu_pid
#   wait_for SECONDS FILE REGEX   until FILE has such a line
#   monitor SOCKET COMMAND...     gives commands to QEMU's monitor, prints the answers
#   qemu_knows_cet                from 11.0 on: its -cpu takes cet-ss and cet-ibt, and host has them
#
#   exec_options=(...)            options of `cetkvm exec`
#   qemu_timeout=SECONDS          default 150
#   CETKVM_QEMU=PROGRAM           another QEMU than Debian 12's
#   CETKVM_CLIENT_ACCEL=tcg       runs the same under QEMU's TCG, to check the test itself

exec_options=() qemu_timeout=150 qemu_binary=${CETKVM_QEMU:-qemu-system-x86_64}
qemu_modules="failover net_failover virtio_blk virtio_net virtio_mmio"

qemu_knows_cet() { "$qemu_binary" -cpu help | grep -qw cet-ss; }

need_qemu() {
	local module
	need_command "$qemu_binary" xz cpio python3
	need_kernel
	need_client_library
	for module in $qemu_modules; do
		[ -n "$(find -L "$kernel/modules" -name "$module.ko*" -print -quit)" ] ||
			skip_all "the kernel package has no module $module"
	done
}

qemu_add_modules() {
	local module file
	mkdir -p "$scratch/modules"
	for module in $qemu_modules; do
		file=$(find -L "$kernel/modules" -name "$module.ko*" -print -quit)
		case $file in
		*.xz) xz -dc "$file" ;;
		*) cat "$file" ;;
		esac >"$scratch/modules/$module.ko"
	done
	guest_files+=("$scratch/modules:/modules")
}

qemu_image() {
	[ -d "$scratch/modules" ] || qemu_add_modules
	guest_initramfs "$1" "for m in $qemu_modules; do insmod /modules/\$m.ko; done
		$2"
}

qemu_boot() {
	boot_options=(-kernel "$kernel/vmlinuz" -initrd "$scratch/initrd" -append "console=ttyS0 panic=-1 ${guest_append-}"
		-m "${guest_memory:-256M}" -serial stdio -no-reboot)
}

# Every run: no default devices, so no video BIOS and no network card unless a test asks for them.
qemu_command() {
	command=("$cetkvm" exec "${exec_options[@]}" -- "$qemu_binary" -accel "kvm${accel_options-}")
	[ "${CETKVM_CLIENT_ACCEL-}" != tcg ] || command=("$qemu_binary" -accel tcg)
	command+=(-nodefaults -display none)
}

qemu() {
	local log=$1 command status
	shift
	qemu_command
	timeout -k 5 "$qemu_timeout" "${command[@]}" "$@" </dev/null >"$log" 2>&1
	status=$?
	tr -d '\r' <"$log" >"$log.unix" && mv "$log.unix" "$log"
	return $status
}

qemu_start() {
	local log=$1 command
	shift
	qemu_command
	timeout -k 5 "$qemu_timeout" "${command[@]}" "$@" </dev/null >"$log" 2>&1 &
	qemu_pid=$!
}

wait_for() {
	local tenths=$(($1 * 10)) file=$2 regex=$3
	while ! grep -aEq -- "$regex" "$file" 2>/dev/null; do
		[ $((tenths -= 1)) -gt 0 ] || return 1
		sleep 0.1
	done
}

monitor() {
	python3 - "$@" <<-'PYTHON'
		import socket, sys, time
		prompt = b'(qemu) '
		for attempt in range(100):
		    try:
		        s = socket.socket(socket.AF_UNIX)
		        s.connect(sys.argv[1])
		        break
		    except OSError:
		        time.sleep(0.1)
		s.settimeout(60)
		def answer():
		    text = b''
		    while not text.endswith(prompt):
		        part = s.recv(65536)
		        if not part:
		            break
		        text += part
		    return text
		answer()
		for command in sys.argv[2:]:
		    s.sendall(command.encode() + b'\n')
		    # The line is echoed, with the editor's escapes; what follows it is the answer.
		    text = answer().replace(b'\r', b'').partition(b'\n')[2]
		    sys.stdout.write(text[:-len(prompt)].decode(errors='replace'))
	PYTHON
}

# What no healthy boot prints. Not the kernel's advice about the host's processor, by its vendor.
qemu_complaints='WARNING: [^S]|BUG:|Call Trace:|Kernel panic|Oops|general protection fault|soft lockup|rcu.*stall|unchecked MSR|traps:.*(trap|error)|Missing ENDBR|misordered xstate|insmod:'
