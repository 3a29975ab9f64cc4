#!/bin/sh
# SPDX-License-Identifier: MIT
# Random accesses to the ports of the board: see ports.c.
program=${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/vmm/ports
[ -x "$program" ] || { echo "1..0 # SKIP ports is not built"; exit 0; }
exec "$program"
