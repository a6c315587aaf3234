// What the kernels of attention's backward pass on Hopper share. Where rows are long and there is room, the pass over keys
// writes the gradients dS it computes to memory, and dq is a product of them; else another pass computes them again. Both ways
// make the same sums in the same order.
#pragma once

#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/hopper.cuh"

namespace pipelora::cuda {

/// One warpgroup a block has all keys of the row: the kernel over keys makes dq too.
template <int kGroups>
__host__ __device__ inline bool whole_row(int keys) {
  return kGroups == 1 && keys <= kTile;
}

/// rowsum(dout * out), by two lanes a row; both get it. Called by whole warps.
template <class T>
__device__ inline float row_delta(const T* out, const T* dout, int width) {
  float sum = 0;
#pragma unroll 4
  for (int c = static_cast<int>(threadIdx.x) % 2 * 8; c < width; c += 16) {
    const Floats<8> x = load<8>(out + c), y = load<8>(dout + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += x.v[i] * y.v[i];
  }
  return sum + __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
}

/// S of 64 keys by 64 queries to P; `lse2`: the queries' LSE in shared memory, in powers of two, `behind` how far the first
/// query lies behind the thread's first key.
__device__ inline void scores_to_p(float (&p)[8][4], const float* lse2, float scale, bool unmasked, int behind, int window) {
  const int quad = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 lse_pair = *reinterpret_cast<const float2*>(lse2 + n * 8 + quad * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[n][i] = exp2_fast(fmaf(p[n][i], scale, i % 2 == 0 ? -lse_pair.x : -lse_pair.y));
      if (!unmasked && hidden(behind + n * 8 + i % 2 - i / 2 * 8, window)) p[n][i] = 0;
    }
  }
}

/// P to dS, by dP and the queries' delta (`deltas`, in shared memory).
__device__ inline void score_grad(float (&p)[8][4], const float (&dp)[8][4], const float* deltas) {
  const int quad = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 delta_pair = *reinterpret_cast<const float2*>(deltas + n * 8 + quad * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - (i % 2 == 0 ? delta_pair.x : delta_pair.y);
  }
}

/// Rotary to take back from gradients; `table` null: none.
struct Rotary {
  const float* table;  // a row: the cosines of a head's pairs, then the sines
  std::int64_t stride;
  const std::int32_t* row;  // of each token
};
inline Rotary rotary_of(const AttentionBackward& call) {
  if (!call.rope) return {};
  return {call.rope.as<float>(), call.rope.stride, call.rope_row->device.as<std::int32_t>()};
}

/// A warp's 16 rows of sums, heads of E columns, to those before rotary: a thread has both columns of a pair. Rows as
/// write_rows() counts them, row 0 is that of `token`. Explicit fma: all kernels round alike.
template <int E>
__device__ inline void inverse_rotary(float (&sums)[E / 8][4], const Rotary& rotary, int token, int first, int limit) {
  if (rotary.table == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  const auto turn = [](float& a, float& b, float cosine, float sine) {
    const float turned = fmaf(a, cosine, b * sine);
    b = fmaf(b, cosine, -a * sine);
    a = turned;
  };
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = min(first + g + h * 8, limit - 1);  // rows from `limit` on are not written
    const float* table = rotary.table + rotary.row[token + row] * rotary.stride + quad * 2;
#pragma unroll
    for (int n = 0; n < E / 16; ++n) {
      const float2 cosine = *reinterpret_cast<const float2*>(table + n * 8);
      const float2 sine = *reinterpret_cast<const float2*>(table + E / 2 + n * 8);
      turn(sums[n][2 * h], sums[n + E / 16][2 * h], cosine.x, sine.x);
      turn(sums[n][2 * h + 1], sums[n + E / 16][2 * h + 1], cosine.y, sine.y);
    }
  }
}

/// dS of some heads: tiles of 64 keys by 64 queries as they lie in shared memory, key tile after key tile those of the queries
/// from the diagonal on; sequence after sequence, `tiles` of them a head.
struct ScoreGrads {
  char* data;  // null: they are not kept
  std::int64_t tiles;
  int first_head;  // of q

  static constexpr int kBytes = kTile * kTile * 2;
  /// Of a sequence of `count` tiles whose first one is number `before`.
  __device__ char* at(int head, std::int64_t before, int count, int key, int query) const {
    const std::int64_t row = static_cast<std::int64_t>(key) * count - static_cast<std::int64_t>(key) * (key - 1) / 2;
    return data + ((head - first_head) * tiles + before + row + query - key) * kBytes;
  }
};

__host__ __device__ inline std::int64_t score_tiles(std::int64_t rows) {
  const std::int64_t count = (rows + kTile - 1) / kTile;
  return count * (count + 1) / 2;
}

inline std::int64_t score_tiles(const Sequences& sequences) {
  std::int64_t tiles = 0;
  for (const std::int32_t length : sequences.key_length.host) tiles += score_tiles(length);
  return tiles;
}

/// Of all sequences before `sequence`. Called by whole warps; every lane gets it.
__device__ inline std::int64_t score_tiles_before(const SequenceTable& table, int sequence) {
  int sum = 0;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < sequence; s += 32)
    sum += static_cast<int>(score_tiles(table.cu_queries[s + 1] - table.cu_queries[s]));
  return __reduce_add_sync(0xFFFFFFFFu, sum);
}

/// What the gradients of keys and values are made of.
template <class T>
struct KeyInputs {
  Side<const T> q, k, v, dout;
  const float *lse, *delta;
  std::int64_t lse_stride, delta_stride;
};
template <class T>
KeyInputs<T> key_inputs(const AttentionBackward& call, const Tensor& delta) {
  return {side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<const T>(call.dout), call.lse.as<float>(), delta.as<float>(),
          call.lse.stride, delta.stride};
}

/// dk and dv of `heads` of k's heads where rows are long, from the first one's whose dS are kept (if they are: then there is
/// no window and a row has as many keys as queries).
void long_key_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, const ScoreGrads& kept, int heads, cudaStream_t stream);
/// dk and dv of heads of more than 128 columns, whatever the rows' length.
void wide_key_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, cudaStream_t stream);
/// dq, and delta = rowsum(dout * out) for the pass over keys, from the scores computed again. `together`: several warpgroups share a tile; of wide heads they always do.
void query_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, bool together, cudaStream_t stream);
/// delta alone.
void row_deltas(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream);
/// dq of `heads` heads from their dS.
void query_grad_of(const ScoreGrads& ds, const AttentionBackward& call, const Shape& shape, int heads, cudaStream_t stream);

}  // namespace pipelora::cuda
