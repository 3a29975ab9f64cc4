#!/bin/sh
# SPDX-License-Identifier: MIT
exec "${CETKVM_BUILD:-build}/tests/seeds/test_seed_004"
