// Products of a mixture's experts on Hopper's tensor cores, all experts in one launch, in 16 bits or e4m3.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// Rows [starts[first + e], starts[first + e + 1]) of a and d are those of expert e of `experts`:
/// d = a b_eᵀ (or a b_e) + a2 b2_e + bias_e. In e4m3 the first product's sums are multiplied by the scales of a's row and of b's before anything
/// is added.
struct GroupedProduct {
  Tensor a;                  // [P, K] in 16 bits or e4m3
  Tensor b;                  // [experts * N, K] in a's dtype if b_transposed, else [experts * K, N]; e4m3: the former
  bool b_transposed = true;
  Tensor a2 = {}, b2 = {};   // [P, R] and [experts * R, N] in 16 bits (d's dtype where a is e4m3), or empty
  const std::int32_t* starts = nullptr;  // on the device
  std::int64_t first = 0, experts = 0;
  const void* bias = nullptr;  // [experts * N] in d's dtype, or null
  Tensor d;  // [P, N] in 16 bits, a's dtype where that is one; or f32 where a is not e4m3
  float factor = 1;  // f32: on what is written
  const float *a_scales = nullptr, *b_scales = nullptr;  // e4m3: [P] and [experts * N], the latter on eight bytes
};

/// Operands whose base and rows begin on 16 bytes; d in 16 bits is written eight numbers at a time: N is a multiple of 8 then, and it begins
/// as they do. Hopper.
void grouped_product(const GroupedProduct& call, cudaStream_t stream);

/// grads_e += factor * leftᵀ right over the rows of expert e.
struct GroupedGrads {
  Tensor left;   // [P, R] in 16 bits
  Tensor right;  // [P, N], likewise
  const std::int32_t* starts = nullptr;  // on the device
  std::int64_t experts = 0;
  float factor = 1;
  Tensor grads;  // [experts * R, N] f32
};
void grouped_grads(const GroupedGrads& call, cudaStream_t stream);

}  // namespace pipelora::cuda
