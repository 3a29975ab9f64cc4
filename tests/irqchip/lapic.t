#!/bin/sh
# SPDX-License-Identifier: MIT
exec "${CETKVM_BUILD:-build}/tests/irqchip/test_irqchip_lapic"
