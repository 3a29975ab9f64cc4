#!/bin/bash
# SPDX-License-Identifier: MIT
# client_state.c as a client of /dev/kvm that `cetkvm exec` runs: there it is ioctl() and a signal's handler
# between which the client's registers have to survive.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library
exec timeout 100 "$cetkvm" exec -- "$CETKVM_BUILD/tests/kvm/client_state_device"
