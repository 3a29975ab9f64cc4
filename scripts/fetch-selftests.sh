#!/bin/bash
# SPDX-License-Identifier: MIT
# Builds the kernel's own tools/testing/selftests/x86, 64- and 32-bit, from Debian's
# linux-source-6.12 package (downloaded, not installed). Prints the directory with the programs.
# They need the C library's shared objects: mkinitramfs --binary brings those along.
# Done once; remove the directory to do it again.
set -euo pipefail
. "$(dirname "$0")/assets.sh"

out=$cache/selftests
lock selftests
if [ ! -e "$out/done-2" ]; then
	for command in gcc make rsync flex bison; do
		command -v $command >/dev/null || die "needs $command (scripts/setup.sh check)"
	done
	echo 'int main(void) { return 0; }' | gcc -m32 -x c -o /dev/null - 2>/dev/null ||
		die "needs a compiler for 32-bit programs (gcc-multilib)"
	apt_lists
	echo "fetching linux-source-6.12" >&2
	unpack_package linux-source-6.12 "$cache/selftests.package"
	tree=$cache/selftests.tree
	rm -rf "$tree" "$out"
	mkdir -p "$tree" "$out"
	# Only what headers_install and the x86 selftests read.
	tar xJf "$cache"/selftests.package/usr/src/linux-source-6.12.tar.xz -C "$tree" \
		--strip-components=1 --wildcards 'linux-source-6.12/Makefile' 'linux-source-6.12/Kbuild' \
		'linux-source-6.12/Kconfig' 'linux-source-6.12/scripts' 'linux-source-6.12/include/uapi' \
		'linux-source-6.12/include/linux/userfaultfd_k.h' \
		'linux-source-6.12/arch/x86' 'linux-source-6.12/usr' 'linux-source-6.12/tools/include' \
		'linux-source-6.12/tools/arch/x86/include' 'linux-source-6.12/tools/testing/selftests/*.*' \
		'linux-source-6.12/tools/testing/selftests/x86'
	rm -rf "$cache/selftests.package"
	make -s -C "$tree" headers_install ARCH=x86 >"$out/build.log" 2>&1 ||
		die "headers_install failed, see $out/build.log"
	make -C "$tree/tools/testing/selftests/x86" -k KHDR_INCLUDES="-isystem $tree/usr/include" \
		OUTPUT="$out" >>"$out/build.log" 2>&1 ||
		die "the selftests do not build, see $out/build.log"
	# Where the kernel refuses userfaultfd on shadow stacks, test_shadow_stack stops at that check with
	# a failure. The same program without it shows the rest.
	if grep -q VM_SHADOW_STACK "$tree/include/linux/userfaultfd_k.h"; then
		touch "$out/uffd-refuses-shadow-stacks"
	fi
	sed 's/if (test_userfaultfd())/if (0 \&\& test_userfaultfd())/' \
		"$tree/tools/testing/selftests/x86/test_shadow_stack.c" >"$tree/rest.c"
	gcc -O2 -w -pthread -isystem "$tree/usr/include" -I"$tree/tools/testing/selftests/x86" \
		-o "$out/test_shadow_stack_rest_64" "$tree/rest.c" >>"$out/build.log" 2>&1 ||
		die "test_shadow_stack does not build, see $out/build.log"
	rm -rf "$tree"
	touch "$out/done-2"
fi
echo "$out"
