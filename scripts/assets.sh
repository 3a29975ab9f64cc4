# SPDX-License-Identifier: MIT
# Shared by the scripts that fetch or make things once: where they are kept and how apt is asked.
# Everything lands under .cache/ of the checkout, or under $CETKVM_CACHE when that is set.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${CETKVM_CACHE:-$top/.cache}
mkdir -p "$cache"

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# Only one process makes a given thing; the others wait for it. Usage: lock NAME
lock() {
	exec 9>"$cache/$1.lock"
	flock 9
}

# apt with package lists of its own where the system's are missing and may not be written.
apt_options=()
apt_lists() {
	if apt-cache madison base-files 2>/dev/null | grep -q .; then
		return
	fi
	if [ "$(id -u)" = 0 ]; then
		apt-get update >&2 || die "apt-get update failed"
		return
	fi
	mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
	apt_options=(-o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt"
		-o Debug::NoLocking=1)
	apt-get "${apt_options[@]}" update >&2 || die "apt-get update failed"
}

# The newest package whose name matches a regular expression. Usage: newest_package REGEX
newest_package() {
	apt-cache "${apt_options[@]}" search --names-only "$1" | cut -d' ' -f1 | sort -V | tail -n 1
}

# Downloads a package, does not install it, and unpacks it. Usage: unpack_package NAME DIRECTORY
unpack_package() {
	local work=$2.new
	rm -rf "$work"
	mkdir -p "$work"
	(cd "$work" && apt-get "${apt_options[@]}" -o APT::Sandbox::User=root -q download "$1" >&2) ||
		die "could not download $1"
	dpkg-deb -x "$work"/*.deb "$work" || die "could not unpack $1"
	rm -f "$work"/*.deb
	rm -rf "$2"
	mv "$work" "$2"
}
