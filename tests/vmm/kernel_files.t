#!/bin/sh
# SPDX-License-Identifier: MIT
# Damaged kernel files: see kernel_files.c.
program=${CETKVM_BUILD:-$(dirname "$0")/../../build}/tests/vmm/kernel-files
[ -x "$program" ] || { echo "1..0 # SKIP kernel-files is not built"; exit 0; }
exec "$program" 20000
