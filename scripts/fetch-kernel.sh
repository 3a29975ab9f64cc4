#!/bin/bash
# SPDX-License-Identifier: MIT
# Downloads Debian's newest 6.12 cloud kernel package (it is not installed) and unpacks it.
# Prints the directory that then holds vmlinuz, System.map, config and modules/.
# Once it is there, nothing is asked of the network again; remove the directory to renew it.
set -euo pipefail
. "$(dirname "$0")/assets.sh"

out=$cache/kernel
lock kernel
if [ ! -e "$out/vmlinuz" ]; then
	apt_lists
	package=$(newest_package '^linux-image-6\.12\.[0-9].*-cloud-amd64-unsigned$')
	[ -n "$package" ] || package=$(newest_package '^linux-image-6\.12\.[0-9].*-cloud-amd64$')
	[ -n "$package" ] || die "no 6.12 cloud kernel in the enabled apt repositories" \
		"(Debian 12 has it in bookworm-security and bookworm-backports)"
	echo "fetching $package" >&2
	unpack_package "$package" "$cache/kernel.package"
	(cd "$cache/kernel.package" && ln -s boot/vmlinuz-* vmlinuz && ln -s boot/System.map-* System.map &&
		ln -s boot/config-* config && ln -s lib/modules/* modules && echo "$package" >package)
	rm -rf "$out"
	mv "$cache/kernel.package" "$out"
fi
echo "$out"
