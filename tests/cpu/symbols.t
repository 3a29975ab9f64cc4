#!/bin/bash
# SPDX-License-Identifier: MIT
# Names in the lines of --trace cp: see symbols.c.
exec "${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/cpu/symbols"
