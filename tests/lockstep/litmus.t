#!/bin/bash
# SPDX-License-Identifier: MIT
# Memory ordering, LOCK, self- and cross-modifying code with up to four vCPUs on threads.
. "$(dirname "$0")/../lib/tap.sh"
litmus=$CETKVM_BUILD/tests/lockstep/litmus
[ -x "$litmus" ] || skip_all "built without the processor"
exec "$litmus" "${LITMUS_ROUNDS:-4}"
