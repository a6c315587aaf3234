// What the kernels share: number types, eight elements at a time, reductions in a fixed order, dropout's mask.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ops/cuda/device/check.h"
#include "ops/cuda/device/alignment.h"
#include "pipelora/core/error.h"
#include "pipelora/core/rng.h"
#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline float widen(f16 x) { return __half2float(x); }
/// Rounded to float16, as LLM.int8() does with its inputs.
__device__ inline float half_of(float x) { return __half2float(__float2half_rn(x)); }
template <class T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 narrow<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline f16 narrow<f16>(float x) {
  return __float2half_rn(x);
}

__device__ inline std::uint32_t pack2(bf16, float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&v);
}
__device__ inline std::uint32_t pack2(f16, float a, float b) {
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&v);
}
__device__ inline float2 unpack2(bf16, std::uint32_t bits) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}
__device__ inline float2 unpack2(f16, std::uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

/// V consecutive elements as f32: V = 8 in vector accesses of 16 bytes (the address is a multiple of 16), V = 1 anywhere.
template <int V>
struct Floats {
  float v[V];
};

/// Eight elements of a 16-bit type.
template <class T>
__device__ inline Floats<8> widen8(const uint4& bits) {
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Floats<8> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack2(T{}, words[i]);
    out.v[2 * i] = pair.x;
    out.v[2 * i + 1] = pair.y;
  }
  return out;
}

template <class T>
__device__ inline uint4 packed8(const Floats<8>& f) {
  return make_uint4(pack2(T{}, f.v[0], f.v[1]), pack2(T{}, f.v[2], f.v[3]), pack2(T{}, f.v[4], f.v[5]), pack2(T{}, f.v[6], f.v[7]));
}

template <int V, class T>
__device__ inline Floats<V> load(const T* from) {
  Floats<V> out;
  if constexpr (V == 1) {
    out.v[0] = widen(*from);
  } else if constexpr (sizeof(T) == 4) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    out.v[0] = a.x, out.v[1] = a.y, out.v[2] = a.z, out.v[3] = a.w;
    out.v[4] = b.x, out.v[5] = b.y, out.v[6] = b.z, out.v[7] = b.w;
  } else {
    out = widen8<T>(*reinterpret_cast<const uint4*>(from));
  }
  return out;
}

template <int V, class T>
__device__ inline void store(T* to, const Floats<V>& values) {
  if constexpr (V == 1) {
    *to = narrow<T>(values.v[0]);
  } else if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(values.v[4], values.v[5], values.v[6], values.v[7]);
  } else {
    *reinterpret_cast<uint4*>(to) = packed8<T>(values);
  }
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
  return x;
}
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
  return x;
}

/// Sum over the block, given to all threads. `shared` has 32 entries and may be used again right away.
template <class F>
__device__ inline F block_sum(F x, F* shared) {
  x = warp_sum(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = (static_cast<int>(blockDim.x) + 31) / 32;
  if (warps == 1) return x;
  if (threadIdx.x % 32 == 0) shared[warp] = x;
  __syncthreads();
  F total = 0;
  for (int w = 0; w < warps; ++w) total += shared[w];
  __syncthreads();
  return total;
}

/// The largest over the block, likewise.
__device__ inline std::uint32_t block_max(std::uint32_t x, std::uint32_t* shared) {
  x = __reduce_max_sync(0xFFFFFFFFu, x);
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = (static_cast<int>(blockDim.x) + 31) / 32;
  if (warps == 1) return x;
  if (threadIdx.x % 32 == 0) shared[warp] = x;
  __syncthreads();
  std::uint32_t most = 0;
  for (int w = 0; w < warps; ++w) most = max(most, shared[w]);
  __syncthreads();
  return most;
}

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

/// What says which elements of LoRA's input are kept; `position` null: all.
struct Mask {
  DropoutKey key;
  const std::int32_t* row = nullptr;
  const std::int32_t* position = nullptr;
  std::int64_t in = 0;
};

/// Where a token stands.
struct TokenPlace {
  std::int32_t row, position;
};
__device__ inline TokenPlace token_place(const Mask& mask, std::int64_t token) { return {mask.row[token], mask.position[token]}; }

/// The generator's 16 bits for each of the eight elements that start at column `c` (a multiple of 8, `in` too).
__device__ inline Philox bits_of_eight(const Mask& mask, const TokenPlace& place, std::int64_t c, std::uint32_t module) {
  const std::uint64_t element =
      static_cast<std::uint64_t>(place.position) * static_cast<std::uint64_t>(mask.in) + static_cast<std::uint64_t>(c);
  return dropout_bits(mask.key, static_cast<std::uint32_t>(place.row), module, element / 8);
}

/// The top bit of each half: its element is kept. Thresholds are even, so 15 of the 16 bits decide; with the 16th set above
/// them, neither half borrows from the other.
__device__ inline std::uint32_t kept_halves(std::uint32_t bits, std::uint32_t threshold) {
  return ((bits >> 1) | 0x80008000u) - (threshold >> 1) * 0x00010001u;
}

/// Bit i: element i of the eight is kept.
__device__ inline std::uint32_t keep_bits(const Mask& mask, const TokenPlace& place, std::int64_t c, std::uint32_t module,
                                          std::uint32_t threshold) {
  const Philox bits = bits_of_eight(mask, place, c, module);
  std::uint32_t keep = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const std::uint32_t halves = kept_halves(bits.v[w], threshold) & 0x80008000u;
    keep |= halves >> (15 - 2 * w) | halves >> (30 - 2 * w);
  }
  return keep & 0xFFu;
}

/// For eight 16-bit numbers: all ones where the element is kept, else zeros.
__device__ inline uint4 keep_words(const Mask& mask, const TokenPlace& place, std::int64_t c, std::uint32_t module, std::uint32_t threshold) {
  const Philox bits = bits_of_eight(mask, place, c, module);
  std::uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w)  // each half's top bit, sixteen times
    asm("prmt.b32 %0, %1, 0, 0xBB99;\n" : "=r"(words[w]) : "r"(kept_halves(bits.v[w], threshold)));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// The same for any single column.
__device__ inline bool keep_one(const Mask& mask, std::int64_t token, std::int64_t c, std::uint32_t module,
                                std::uint32_t threshold) {
  const std::uint64_t element =
      static_cast<std::uint64_t>(mask.position[token]) * static_cast<std::uint64_t>(mask.in) + static_cast<std::uint64_t>(c);
  const Philox bits = dropout_bits(mask.key, static_cast<std::uint32_t>(mask.row[token]), module, element / 8);
  const std::uint32_t lane = static_cast<std::uint32_t>(element % 8);
  return ((bits.v[lane / 2] >> (16 * (lane % 2))) & 0xFFFFu) >= threshold;
}

/// Calls f(T{}) with the element type of a floating dtype.
template <class F>
void with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: throw Error(kTensorMismatch, std::string("expected a floating dtype, got ") + dtype_name(dtype));
  }
}

template <class F>
void with_half(DType dtype, F&& f) {
  if (dtype == DType::bf16)
    f(bf16{});
  else
    f(f16{});
}

inline unsigned blocks_for(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// Of kernels that pass over [rows, cols] in pieces of V columns: x counts pieces of a row, y rows (strided where there are more).
constexpr int kRowThreads = 256;
inline dim3 row_grid(std::int64_t rows, std::int64_t cols, int v) {
  return dim3(blocks_for(cols / v, kRowThreads), static_cast<unsigned>(rows < 65535 ? rows : 65535));
}

template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of a kernel");
}

}  // namespace pipelora::cuda
