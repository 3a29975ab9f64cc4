#!/bin/bash
# SPDX-License-Identifier: MIT
# `cetkvm doctor` about programs and about the API.
. "$(dirname "$0")/../lib/tap.sh"
need_cetkvm
need_client_library
clients=$CETKVM_BUILD/tests/preload

doctor() { "$cetkvm" doctor "$@" >"$scratch/out" 2>"$scratch/err"; }

doctor "$clients/client"
is "$?" 0 "a program that can be reached"
matches "$scratch/out" '^ok +cetkvm exec can reach the program: .*/client$' "is told so"
doctor "$clients/client-static"
is "$?" 2 "a static program"
matches "$scratch/out" '^-- +cetkvm exec can reach the program: .* is statically linked' "is told so"
doctor no-such-program
is "$?" 2 "no program at all"
matches "$scratch/out" '^-- .*no-such-program: no such program in PATH' "is told so"
doctor --no-such-option
is "$?" 2 "an unknown option"
matches "$scratch/err" "^cetkvm: doctor: unexpected '--no-such-option'" "is told so"

doctor --ioctls
is "$?" 0 "--ioctls"
for object in '/dev/kvm' 'a machine' 'a vCPU'; do
	matches "$scratch/out" "^ioctls of $object:$" "lists those of $object"
done
matches "$scratch/out" '^  0x0000ae80 KVM_RUN$' "KVM_RUN is there by number and name"
matches "$scratch/out" '^ +[0-9]+ KVM_CAP_NR_MEMSLOTS: 32764$' "capabilities are there with their values"
lacks "$scratch/out" '\(null\)|: $|: 0$' "everything has a name, and nothing is there for show"
is "$(grep -E '^  0x|^ioctls' "$scratch/out" | awk '/^ioctls/ { o = $0 } { print o, $1 }' | sort | uniq -d)" "" \
	"every number is there once for each object"
done_testing
