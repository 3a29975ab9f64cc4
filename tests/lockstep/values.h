// SPDX-License-Identifier: MIT
// Random operand values with a liking for the interesting ones, and the random state to start from.
#ifndef LOCKSTEP_VALUES_H
#define LOCKSTEP_VALUES_H

#include "lockstep.h"

u64 random_int(struct rng *rng);
u32 random_f32(struct rng *rng);
u64 random_f64(struct rng *rng);
void random_f80(struct rng *rng, u8 bytes[10]);
u16 random_fcw(struct rng *rng, bool lively); // lively: unmasked exceptions are welcome
u32 random_mxcsr(struct rng *rng, bool lively);
void random_line(struct rng *rng, u8 *bytes, unsigned size, unsigned flavour); // size: multiple of 16
void random_xstate(struct rng *rng, u8 *xsave, unsigned flavour);

#endif
