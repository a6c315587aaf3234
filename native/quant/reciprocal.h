// The reciprocal that a GPU's fast-math division computes.
#pragma once

namespace pipelora::quant {

/// 1 / value as `rcp.approx.ftz.f32` gives it, for positive normal values whose significand fits in 11 bits (every bf16 and
/// f16 number); for the others the correctly rounded quotient, which the instruction misses by one unit in the last place in
/// 13 % of all significands. bitsandbytes' kernels are built with fast math, and weights of 16 bits meet ties between two
/// codes so often that this unit decides about 0.02 % of the FP4 codes of a bf16 tensor. The table was read off an H100
/// (compute capability 9.0); it depends on the significand alone. Infinite where the quotient overflows.
float fast_reciprocal(float value);

}  // namespace pipelora::quant
