#!/bin/bash
# SPDX-License-Identifier: MIT
# Control transfers: see transfer_cet.c.
exec "${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/cpu/transfer_cet"
