#!/bin/sh
# SPDX-License-Identifier: MIT
exec "${CETKVM_BUILD:-build}/tests/cpu/test_rows"
