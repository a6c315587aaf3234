// 4-bit weights to e4m3, sooner than fp8_expand's general kernel makes the same bits.
#pragma once

#include "ops/cuda/base/fp8.h"

namespace pipelora::cuda {

/// Whether the weight and where it goes suit: blocks of 64 columns or more, whole in each row, and rows in fours.
bool fp8_expands_four_bit(const HeldRows& weight, const Tensor& to, bool transposed);
/// As fp8_expand.
void fp8_expand_four_bit(const HeldRows& weight, DType compute, const QuantTables& tables, const float* scales, bool transposed, const Tensor& to,
                         cudaStream_t stream);

}  // namespace pipelora::cuda
