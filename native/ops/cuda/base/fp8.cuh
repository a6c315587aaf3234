// How a kernel makes a row's e4m3 numbers.
#pragma once

#include <cuda_fp8.h>

#include "ops/cuda/base/fp8.h"
#include "ops/cuda/device/common.cuh"
#include "pipelora/core/e4m3.h"

namespace pipelora::cuda {

/// Rows below count as zeros: the reciprocal of their scale is no float32.
inline constexpr float kFp8Smallest = 1e-35f;

__device__ inline float scale_of_absmax(float absmax) { return absmax < kFp8Smallest ? 0.0f : absmax / kE4m3Largest; }
__device__ inline float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

__device__ inline std::uint32_t e4m3(float a, float b, float c, float d) {
  const std::uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const std::uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
__device__ inline uint2 e4m3_of(const Floats<8>& f, float inverse) {
  const float* v = f.v;
  return make_uint2(e4m3(v[0] * inverse, v[1] * inverse, v[2] * inverse, v[3] * inverse),
                    e4m3(v[4] * inverse, v[5] * inverse, v[6] * inverse, v[7] * inverse));
}

/// The largest magnitudes so far of a row in 16 bits, of its even and its odd columns. Magnitudes keep their order as integers, NaN above all.
struct Largest {
  std::uint32_t halves = 0;
  __device__ void take(std::uint32_t two) { halves = __vmaxu2(halves, two & 0x7FFF7FFFu); }
  __device__ void take(const uint4& eight) {
    take(eight.x);
    take(eight.y);
    take(eight.z);
    take(eight.w);
  }
  /// Of both.
  __device__ std::uint32_t bits() const { return max(halves & 0xFFFFu, halves >> 16); }
};
template <class T>
__device__ inline float magnitude_of(std::uint32_t bits) {
  return unpack2(T{}, bits).x;
}

}  // namespace pipelora::cuda
