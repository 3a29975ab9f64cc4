#!/bin/bash
# SPDX-License-Identifier: MIT
# slow
# A short run of the hostile guests in QEMU; `tests/hostile/run --qemu --seeds N` is the long one.
. "$(dirname "$0")/../lib/tap.sh"
need_command qemu-system-x86_64 python3
exec "$top/tests/hostile/run" --qemu --seeds 4 --seconds 5 --first "${HOSTILE_FIRST:-1}"
