#!/bin/sh
# SPDX-License-Identifier: MIT
exec "${CETKVM_BUILD:-build}/tests/kvm/test_kvm_vm_features"
