// SPDX-License-Identifier: MIT
// Single-precision matrix product with AVX2 and FMA, eight floats at a time.
#define WIDTH 8
#define ROUNDS 20
#include "matrix.h"
