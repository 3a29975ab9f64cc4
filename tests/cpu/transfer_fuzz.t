#!/bin/bash
# SPDX-License-Identifier: MIT
# Control transfers: see transfer_fuzz.c.
exec "${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/cpu/transfer_fuzz"
