# SPDX-License-Identifier: MIT
# TAP for tests written in bash: source this first. The plan is printed by done_testing.
#
#   skip_all "reason"            the whole test needs something that is not here
#   ok STATUS "name"             pass if STATUS is 0
#   is GOT WANTED "name"         pass if equal; a failure shows both
#   matches FILE REGEX "name"    pass if FILE has a line matching the extended REGEX
#   lacks FILE REGEX "name"      pass if it has none; a failure shows the lines
#   skip "name" "reason"         one check that cannot be made here

tap_count=0 tap_failed=0
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CETKVM_BUILD=${CETKVM_BUILD:-$top/build}
cetkvm=$CETKVM_BUILD/cetkvm
[ -x "$cetkvm" ] || cetkvm=$CETKVM_BUILD/src/cli/cetkvm

skip_all() { echo "1..0 # SKIP $*"; exit 0; }
need_command() { for c; do command -v "$c" >/dev/null || skip_all "needs the command $c"; done; }
need_cetkvm() { [ -x "$cetkvm" ] || skip_all "cetkvm is not built"; }
# What `cetkvm exec` loads into clients; sanitized builds have none, for clients are not sanitized.
need_client_library() {
	[ -e "$CETKVM_BUILD/src/preload/libcetkvm-preload.so" ] || skip_all "this build has no library for clients"
}
note() { printf '%s\n' "$*" | sed 's/^/# /'; }

ok() {
	tap_count=$((tap_count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tap_count - $2"
	else
		tap_failed=$((tap_failed + 1))
		echo "not ok $tap_count - $2"
		note "  at ${BASH_SOURCE[${3:-1}]#"$top"/}:${BASH_LINENO[${3:-1} - 1]}"
		return 1
	fi
}

is() {
	if [ "$1" = "$2" ]; then ok 0 "$3" 2; else
		ok 1 "$3" 2
		note "  wanted: $2"
		note "  got:    $1"
		return 1
	fi
}

matches() {
	if grep -aEq -- "$2" "$1"; then ok 0 "$3" 2; else
		ok 1 "$3" 2
		note "  no line of $(basename "$1") matches: $2"
		tail -n "${TAP_TAIL:-15}" "$1" | tr -d '\000\r' | sed 's/^/#   | /'
		return 1
	fi
}

lacks() {
	local found
	if found=$(grep -aE -m 5 -- "$2" "$1"); then
		ok 1 "$3" 2
		note "  should not be there:"
		printf '%s\n' "$found" | tr -d '\r' | sed 's/^/#   | /'
		return 1
	fi
	ok 0 "$3" 2
}

skip() {
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $1 # SKIP $2"
}

done_testing() {
	echo "1..$tap_count"
	[ "$tap_failed" = 0 ]
	exit
}

# A scratch directory that goes away with the test.
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
