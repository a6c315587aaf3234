// Rows in e4m3 with a scale each, as a link carries them: the same bits as CpuOps makes.
#include <cuda_fp8.h>

#include <cfloat>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/pointwise.h"
#include "pipelora/core/e4m3.h"

namespace pipelora::cuda {

namespace {

__device__ inline std::uint8_t code_of(float x, float inverse) {
  return static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(isfinite(x) ? x * inverse : NAN, __NV_SATFINITE, __NV_E4M3));
}

// One block a row. A row's codes begin anywhere: with V = 8 at a multiple of 4 bytes.

template <int V, class T>
__global__ void __launch_bounds__(kRowThreads) encode_kernel(const T* from, std::int64_t from_stride, std::uint8_t* to, std::int64_t to_stride, std::int64_t cols) {
  __shared__ std::uint32_t largest_of_warp[kRowThreads / 32];
  const T* x = from + static_cast<std::int64_t>(blockIdx.x) * from_stride;
  std::uint8_t* codes = to + static_cast<std::int64_t>(blockIdx.x) * to_stride;
  const int thread = static_cast<int>(threadIdx.x);
  float largest = 0;
  for (std::int64_t c = thread * V; c < cols; c += kRowThreads * V) {
    const Floats<V> v = load<V>(x + c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float magnitude = fabsf(v.v[i]);
      largest = isfinite(magnitude) ? fmaxf(largest, magnitude) : largest;
    }
  }
  largest = __uint_as_float(block_max(__float_as_uint(largest), largest_of_warp));  // magnitudes keep their order as integers
  const float scale = fmaxf(__fdiv_rn(largest, kE4m3Largest), FLT_MIN), inverse = __fdiv_rn(1.0f, scale);
  for (std::int64_t c = thread * V; c < cols; c += kRowThreads * V) {
    const Floats<V> v = load<V>(x + c);
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      std::uint32_t word = 0;
#pragma unroll
      for (int k = 0; k < 4 && i + k < V; ++k) word |= static_cast<std::uint32_t>(code_of(v.v[i + k], inverse)) << (8 * k);
      if constexpr (V == 1)
        codes[c] = static_cast<std::uint8_t>(word);
      else
        *reinterpret_cast<std::uint32_t*>(codes + c + i) = word;
    }
  }
  if (thread < kScaleColumns) codes[cols + thread] = static_cast<std::uint8_t>(__float_as_uint(scale) >> (8 * thread));
}

template <int V, class T>
__global__ void __launch_bounds__(kRowThreads) decode_kernel(const std::uint8_t* from, std::int64_t from_stride, T* to, std::int64_t to_stride, std::int64_t cols, float most) {
  const std::uint8_t* codes = from + static_cast<std::int64_t>(blockIdx.x) * from_stride;
  T* x = to + static_cast<std::int64_t>(blockIdx.x) * to_stride;
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kScaleColumns; ++i) bits |= static_cast<std::uint32_t>(codes[cols + i]) << (8 * i);
  const float scale = __uint_as_float(bits);
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * V; c < cols; c += kRowThreads * V) {
    Floats<V> v;
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const std::uint32_t word = V == 1 ? codes[c] : *reinterpret_cast<const std::uint32_t*>(codes + c + i);
#pragma unroll
      for (int k = 0; k < 4 && i + k < V; ++k) {
        const __half_raw half = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(word >> (8 * k)), __NV_E4M3);
        const float value = __half2float(__half(half)) * scale;
        v.v[i + k] = value > most ? most : value < -most ? -most : value;  // NaN stays
      }
    }
    store<V>(x + c, v);
  }
}

/// Whether rows of e4m3 can be read and written four bytes at a time.
bool in_words(const Tensor& codes) { return reinterpret_cast<std::uintptr_t>(codes.data) % 4 == 0 && codes.stride % 4 == 0; }

}  // namespace

void encode_rows(const Tensor& from, const Tensor& to, cudaStream_t stream) {
  if (from.rows == 0) return;
  const bool wide = eights(from) && in_words(to);
  with_float(from.dtype, [&]<class T>(T) {
    const auto kernel = wide ? encode_kernel<8, T> : encode_kernel<1, T>;
    kernel<<<static_cast<unsigned>(from.rows), kRowThreads, 0, stream>>>(from.as<T>(), from.stride, to.as<std::uint8_t>(), to.stride, from.cols);
  });
  check_launch("encode_rows");
}

void decode_rows(const Tensor& from, const Tensor& to, cudaStream_t stream) {
  if (to.rows == 0) return;
  const bool wide = eights(to) && in_words(from);
  with_float(to.dtype, [&]<class T>(T) {
    const auto kernel = wide ? decode_kernel<8, T> : decode_kernel<1, T>;
    kernel<<<static_cast<unsigned>(to.rows), kRowThreads, 0, stream>>>(from.as<std::uint8_t>(), from.stride, to.as<T>(), to.stride, to.cols, largest_of(to.dtype));
  });
  check_launch("decode_rows");
}

}  // namespace pipelora::cuda
