#!/bin/bash
# SPDX-License-Identifier: MIT
# Builds the kernel's own tools/testing/selftests/kvm from Debian's linux-source-6.12 package
# (downloaded, not installed), unmodified. Prints the directory with the programs.
# Done once; remove the directory to do it again.
set -euo pipefail
. "$(dirname "$0")/assets.sh"

out=$cache/kvm-selftests
tree=$out/linux-source-6.12
tests=$tree/tools/testing/selftests/kvm
lock kvm-selftests
if [ ! -x "$tests/steal_time" ] || [ ! -x "$tests/x86_64/state_test" ]; then
	for command in gcc make rsync flex bison; do
		command -v $command >/dev/null || die "needs $command (scripts/setup.sh check)"
	done
	apt_lists
	echo "fetching linux-source-6.12" >&2
	unpack_package linux-source-6.12 "$cache/kvm-selftests.package"
	rm -rf "$out"
	mkdir -p "$out"
	# Only what headers_install and the KVM selftests read.
	tar xJf "$cache"/kvm-selftests.package/usr/src/linux-source-6.12.tar.xz -C "$out" --wildcards \
		'linux-source-6.12/Makefile' 'linux-source-6.12/Kbuild' 'linux-source-6.12/Kconfig' \
		'linux-source-6.12/scripts' 'linux-source-6.12/include/uapi' 'linux-source-6.12/arch/x86' \
		'linux-source-6.12/usr' 'linux-source-6.12/lib' 'linux-source-6.12/tools/include' \
		'linux-source-6.12/tools/arch/x86' 'linux-source-6.12/tools/build' 'linux-source-6.12/tools/lib' 'linux-source-6.12/tools/scripts' \
		'linux-source-6.12/tools/testing/selftests/*.*' 'linux-source-6.12/tools/testing/selftests/rseq' \
		'linux-source-6.12/tools/testing/selftests/kvm'
	rm -rf "$cache/kvm-selftests.package"
	# Below another make, kselftest would not set where its programs go.
	unset MAKELEVEL MAKEFLAGS MFLAGS
	make -s -C "$tree" headers_install ARCH=x86 >"$out/headers.log" 2>&1 ||
		die "headers_install failed, see $out/headers.log"
	make -C "$tests" -k KHDR_INCLUDES="-isystem $tree/usr/include" >"$out/build.log" 2>&1 ||
		die "the selftests do not build, see $out/build.log"
	[ -x "$tests/x86_64/state_test" ] || die "the selftests were not built, see $out/build.log"
fi
echo "$tests"
