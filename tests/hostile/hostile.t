#!/bin/bash
# SPDX-License-Identifier: MIT
# A short run of the hostile guests; `make fuzz-guests` is the long one.
# HOSTILE_FIRST chooses other seeds.
exec "$(dirname "$0")/run" --seeds 6 --seconds 3 --raw 5 --first "${HOSTILE_FIRST:-1}"
