// What a block of an attention kernel must know of its sequences.
#pragma once

#include "ops/cuda/attention/attention.h"
#include "ops/cuda/device/common.cuh"
#include "pipelora/ops/ops.h"

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

/// tanh to about 1e-7: scores under a cap are no finer than their products' sums.
__device__ inline float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(2.0f * kLog2E * x) + 1.0f); }

/// Scores before the scale become those under their cap.
template <int J>
__device__ inline void cap_scores(float (&s)[J][4], float cap) {
#pragma unroll
  for (int n = 0; n < J; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = cap * tanh_fast(__fdividef(s[n][i], cap));
  }
}
/// The derivative of a capped score.
__device__ inline float cap_derivative(float score, float cap) { return 1.0f - __fdividef(score, cap) * __fdividef(score, cap); }

/// The running softmax (Milakov & Gimelshein 2018) of a thread's two rows, whose scores four threads share.
struct SoftmaxRows {
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  /// S to P; `rescale`: what sums made before are to be multiplied by.
  template <int J>
  __device__ void add(float (&s)[J][4], float scale, float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = top[half];
#pragma unroll
      for (int n = 0; n < J; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
      const float level = largest == -INFINITY ? 0.0f : largest * scale;
      rescale[half] = exp2_fast(top[half] * scale - level);
      top[half] = largest;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < J; ++n) {
        s[n][2 * half] = exp2_fast(fmaf(s[n][2 * half], scale, -level));
        s[n][2 * half + 1] = exp2_fast(fmaf(s[n][2 * half + 1], scale, -level));
        sum += s[n][2 * half] + s[n][2 * half + 1];
      }
      total[half] = total[half] * rescale[half] + sum;
    }
  }
  /// A row's total over its four threads, behind the last scores.
  __device__ void finish(int half) {
    total[half] += __shfl_xor_sync(0xFFFFFFFFu, total[half], 1);
    total[half] += __shfl_xor_sync(0xFFFFFFFFu, total[half], 2);
  }
  __device__ float log_sum(int half, float scale) const { return top[half] * scale + logf(total[half]); }
};

/// Sums of earlier scores, rescaled to the largest score so far.
template <int J>
__device__ inline void rescale_rows(float (&sums)[J][4], const float (&rescale)[2]) {
#pragma unroll
  for (int n = 0; n < J; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] *= rescale[i / 2];
  }
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
  float scale, cap;  // cap: as a score before the scale; 0: none
  bool aligned;  // every head's row can be read 16 bytes at a time
};
template <class Call>
Shape shape_of(const Call& call) {
  return {table_of(*call.sequences), static_cast<int>(call.head_dim), static_cast<int>(call.q.cols / call.k.cols),
          static_cast<int>(call.window), call.scale, call.cap / call.scale, aligned(call)};
}

/// A block's kRows keys in a backward pass, and the steps it makes: over tiles of queries that see them, for each head that shares them.
template <int kRows>
struct KeyWork {
  int sequence, kv_head, k0, first_query, queries, first_key, keys, query_begin, per_head, steps;

  __device__ KeyWork(const Shape& shape, int tile, int head) : kv_head(head) {
    const Place where = locate<true>(shape.table, tile, kRows);
    sequence = where.sequence;
    k0 = where.tile * kRows;  // the first keys are seen by most queries
    first_query = shape.table.cu_queries[sequence];
    queries = shape.table.cu_queries[sequence + 1] - first_query;
    first_key = shape.table.key_start[sequence];
    keys = shape.table.key_length[sequence];
    query_begin = max(0, k0 - offset()) / kTile * kTile;
    const int query_end = shape.window > 0 ? min(queries, k0 + kRows - 1 + shape.window - offset()) : queries;
    per_head = query_end > query_begin ? (query_end - query_begin + kTile - 1) / kTile : 0;
    steps = per_head * shape.group;
  }
  __device__ int offset() const { return keys - queries; }
  __device__ int head(const Shape& shape, int step) const { return kv_head * shape.group + step / per_head; }
  __device__ int first(int step) const { return query_begin + step % per_head * kTile; }
};

}  // namespace pipelora::cuda
