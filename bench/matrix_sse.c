// SPDX-License-Identifier: MIT
// Single-precision matrix product with SSE, four floats at a time.
#define WIDTH 4
#define ROUNDS 20
#include "matrix.h"
