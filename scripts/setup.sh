#!/bin/sh
# SPDX-License-Identifier: MIT
# Sees to the Debian packages that a make target needs. As root, or where sudo asks nothing, it
# installs what is missing; otherwise it prints the one line to run and exits 2.
# Usage: setup.sh build|check|demo|bench...   (with no argument: all of them)
set -u

build="gcc libc6-dev make meson ninja-build libzydis-dev"
guest="busybox-static cpio xz-utils"
clients="qemu-system-x86 qemu-utils ovmf gdb"
check="$build $guest $clients perl python3 gcc-multilib rsync flex bison bc linux-libc-dev"
demo="$build $guest"
bench="$build $guest python3 qemu-system-x86"

[ $# -gt 0 ] || set -- build check demo bench
wanted=
for group; do
	case $group in
	build) wanted="$wanted $build" ;;
	check) wanted="$wanted $check" ;;
	demo) wanted="$wanted $demo" ;;
	bench) wanted="$wanted $bench" ;;
	*) echo "setup.sh: no such group: $group (build, check, demo, bench)" >&2; exit 2 ;;
	esac
done

if ! command -v dpkg-query >/dev/null 2>&1; then
	# Not Debian: the names differ, so trust that what the build asks for is there.
	exit 0
fi

missing=
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null)
for package in $wanted; do
	case "
$have
" in
	*"
installed $package
"*) continue ;;
	esac
	case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done
[ -n "$missing" ] || exit 0

line="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ]; then
	as=
elif sudo -n true 2>/dev/null; then
	as="sudo -n"
else
	echo "cetkvm needs these Debian packages; please run:" >&2
	echo "    sudo $line" >&2
	exit 2
fi
echo "installing:$missing"
log=$(mktemp)
install() { $as env DEBIAN_FRONTEND=noninteractive $line >"$log" 2>&1; }
# A machine that has never seen `apt-get update` cannot find the packages: then update, once.
if ! install && ! { $as apt-get update >"$log" 2>&1 && install; }; then
	cat "$log" >&2
	rm -f "$log"
	echo "setup.sh: could not install:$missing" >&2
	exit 2
fi
rm -f "$log"
