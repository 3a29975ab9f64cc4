#!/bin/bash
# SPDX-License-Identifier: MIT
# Control transfers: see transfer_long.c.
exec "${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/cpu/transfer_long"
