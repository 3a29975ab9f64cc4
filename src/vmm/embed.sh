#!/bin/sh
# SPDX-License-Identifier: MIT
# Makes a C source that holds a file. Usage: embed.sh FILE NAME OUTPUT
set -eu
{
	echo "// made by embed.sh"
	echo "extern const unsigned char $2[]; extern const unsigned long $2_size;"
	echo "const unsigned char $2[] = {"
	od -An -v -tx1 "$1" | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'
	echo "};"
	echo "const unsigned long $2_size = sizeof($2);"
} >"$3"
