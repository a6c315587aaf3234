// What the kernels of 4-bit weights share: codes, scales, and the rounding on the way to the compute dtype.
#pragma once

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/base/quant.h"

namespace pipelora::cuda {

struct Codes {
  float value[16];
};
inline Codes codes_of(quant::FourBit type) {
  Codes codes;
  for (int i = 0; i < 16; ++i) codes.value[i] = quant::codebook4(type).values[static_cast<std::size_t>(i)];
  return codes;
}

__device__ inline float rounded_to(float x, float) { return x; }
__device__ inline float rounded_to(float x, bf16) { return __bfloat162float(__float2bfloat16_rn(x)); }
__device__ inline float rounded_to(float x, f16) { return __half2float(__float2half_rn(x)); }

__device__ inline float scale_of(const Packed4& w, const float* map, float offset, std::int64_t block) {
  if (w.absmax != nullptr) return __ldg(w.absmax + block);
  return __fadd_rn(__fmul_rn(map[__ldg(w.codes + block)], __ldg(w.nested + (block >> 8))), offset);
}

}  // namespace pipelora::cuda
