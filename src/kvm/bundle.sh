#!/bin/sh
# SPDX-License-Identifier: MIT
# Usage: bundle.sh OUTPUT.a ARCHIVE...
# One object out of several archives, in which only what the public header declares is visible:
# a program that embeds the library keeps its own names, and its own memcpy.
set -e
output=$1
shift
object=${output%.a}-all.o
ld -r -o "$object" --whole-archive "$@"
objcopy --localize-hidden "$object"
rm -f "$output"
ar rcs "$output" "$object"
rm -f "$object"
