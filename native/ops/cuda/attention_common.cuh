// What a block of an attention kernel must know of its sequences.
#pragma once

#include <initializer_list>

#include "ops/cuda/common.cuh"
#include "pipelora/ops.h"

namespace pipelora::cuda {

struct SequenceTable {
  const std::int32_t* cu_queries;
  const std::int32_t* key_start;
  const std::int32_t* key_length;
  int count;
};

inline SequenceTable table_of(const Sequences& sequences) {
  return {sequences.cu_queries.device.as<std::int32_t>(), sequences.key_start.device.as<std::int32_t>(),
          sequences.key_length.device.as<std::int32_t>(), static_cast<int>(sequences.count())};
}

/// How many tiles of `rows` the queries (or keys) of all sequences make.
inline std::int64_t query_tiles(const Sequences& sequences, std::int64_t rows) {
  std::int64_t tiles = 0;
  const auto& cu = sequences.cu_queries.host;
  for (std::size_t s = 0; s + 1 < cu.size(); ++s) tiles += (cu[s + 1] - cu[s] + rows - 1) / rows;
  return tiles;
}
inline std::int64_t key_tiles(const Sequences& sequences, std::int64_t rows) {
  std::int64_t tiles = 0;
  for (const std::int32_t length : sequences.key_length.host) tiles += (length + rows - 1) / rows;
  return tiles;
}

struct Place {
  int sequence, tile, tiles;  // tiles of this sequence
};

/// Sequence of the `tile`-th tile over all sequences, and its number there. Called by whole warps.
template <bool kKeys>
__device__ inline Place locate(const SequenceTable& table, int tile, int rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = 0; base < table.count; base += 32) {
    const int s = base + lane;
    int own = 0;
    if (s < table.count) {
      const int length = kKeys ? table.key_length[s] : table.cu_queries[s + 1] - table.cu_queries[s];
      own = (length + rows - 1) / rows;
    }
    int sum = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int before = __shfl_up_sync(0xFFFFFFFFu, sum, d);
      if (lane >= d) sum += before;
    }
    const unsigned reached = __ballot_sync(0xFFFFFFFFu, sum > tile);
    if (reached != 0) {
      const int found = __ffs(static_cast<int>(reached)) - 1;
      const int end = __shfl_sync(0xFFFFFFFFu, sum, found), tiles = __shfl_sync(0xFFFFFFFFu, own, found);
      return {base + found, tile - (end - tiles), tiles};
    }
    tile -= __shfl_sync(0xFFFFFFFFu, sum, 31);
  }
  return {-1, 0, 0};
}

// What the kernels on tensor cores share.

inline constexpr int kTile = 64;  // rows of a tile that passes through shared memory
inline constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// q, k, v, … : rows of heads.
template <class T>
struct Side {
  T* data;
  std::int64_t stride;
  __device__ T* head(std::int64_t row, int head, int width) const {
    return data + row * stride + static_cast<std::int64_t>(head) * width;
  }
};
template <class T>
Side<T> side(const Tensor& tensor) {
  return {tensor.as<T>(), tensor.stride};
}

struct Shape {
  SequenceTable table;
  int width, group, window;
  float scale;
};
template <class Call>
Shape shape_of(const Call& call) {
  return {table_of(*call.sequences), static_cast<int>(call.head_dim), static_cast<int>(call.q.cols / call.k.cols),
          static_cast<int>(call.window), call.scale};
}

inline bool suits_tiles(std::int64_t head_dim, std::initializer_list<Tensor> tensors) {
  bool good = head_dim % 8 == 0 && head_dim <= 128;
  for (const Tensor& tensor : tensors) good = good && tensor.dtype != DType::f32 && eights(tensor);
  return good;
}

template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of an attention kernel");
}

template <class F>
void with_half(DType dtype, F&& f) {
  if (dtype == DType::bf16)
    f(bf16{});
  else
    f(f16{});
}

}  // namespace pipelora::cuda
