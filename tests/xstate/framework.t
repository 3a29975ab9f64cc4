#!/bin/sh
# SPDX-License-Identifier: MIT
exec "${CETKVM_BUILD:-build}/tests/xstate/test_xstate_framework"
