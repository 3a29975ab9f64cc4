#!/bin/sh
# SPDX-License-Identifier: MIT
# A busy guest moved from process to process; LEGS=10000 for the long run, SEED for the same one again.
build=${CETKVM_BUILD:-build}
exec "$build/tests/roundtrip/roundtrip" "$build/tests/roundtrip/roundtrip_guest.elf" "${LEGS:-200}" ${SEED:+"$SEED"}
