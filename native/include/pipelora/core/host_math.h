// Work on host memory that needs no engine.
#pragma once

#include <cstdint>

#include "pipelora/core/tensor.h"

namespace pipelora {

/// N(0, std) in float32, bfloat16 or float16. Element i depends only on (seed, stream, offset + i).
void fill_normal(void* out, DType dtype, std::int64_t count, std::uint64_t seed, std::uint64_t stream, std::uint64_t offset,
                 float std, int threads);
/// U(-bound, bound), the same generator.
void fill_uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t stream, std::uint64_t offset, float bound);
/// weight [out, in] += scale * b [out, r] a [r, in]; summed in float32, rounded once.
void add_low_rank(void* weight, DType dtype, std::int64_t out, std::int64_t in, const float* a, const float* b, std::int64_t r,
                  float scale);

}  // namespace pipelora
