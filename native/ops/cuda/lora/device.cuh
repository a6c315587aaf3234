// What LoRA's kernels share: f32 operands in two 16-bit numbers, dropout on 16-bit operands, and sums that several warps or
// blocks share.
#pragma once

#include "ops/cuda/device/common.cuh"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

/// Two f32 as sums of two 16-bit numbers: what they round to, and what the rounding leaves over.
template <class T>
__device__ inline void split2(float a, float b, std::uint32_t& high, std::uint32_t& low) {
  high = pack2(T{}, a, b);
  const float2 h = unpack2(T{}, high);
  low = pack2(T{}, a - h.x, b - h.y);
}

__device__ inline uint4 both(const uint4& a, const uint4& b) { return make_uint4(a.x & b.x, a.y & b.y, a.z & b.z, a.w & b.w); }

/// The sum that the warps of a block left at [row][column].
template <int kWarps, int kRows, int kColumns>
__device__ inline float sum_of_warps(const float (&sums)[kWarps][kRows][kColumns], int row, int column) {
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][row][column];
  return total;
}

// Blocks of one blockIdx.x share an output: each leaves its `size` partial sums (its split is blockIdx.y), and the block that
// finishes last adds them in the splits' order.

__device__ inline float* part_of(float* partial, unsigned split, std::int64_t size) {
  return partial + (static_cast<std::int64_t>(split) * gridDim.x + blockIdx.x) * size;
}

/// Called by all threads, once a kernel, after the block's part is written: whether all parts are, and then they can be read.
/// The output's counter is zero before and after.
__device__ inline bool comes_last(std::uint32_t* counters) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&counters[blockIdx.x], 1u) == gridDim.y - 1;
    if (last) counters[blockIdx.x] = 0;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  return true;
}

__device__ inline float sum_of_splits(float* partial, std::int64_t size, int item) {
  float total = 0;
  for (unsigned s = 0; s < gridDim.y; ++s) total += __ldcg(part_of(partial, s, size) + item);
  return total;
}

inline Mask mask_of(const DropoutKey* dropout, const Sequences* sequences, std::int64_t in) {
  Mask mask;
  if (dropout == nullptr) return mask;
  mask.key = *dropout;
  mask.row = sequences->row.device.as<std::int32_t>();
  mask.position = sequences->position.device.as<std::int32_t>();
  mask.in = in;
  return mask;
}

}  // namespace pipelora::cuda
