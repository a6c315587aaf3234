// Attention's gradients with Hopper's warpgroup products: the algorithm of attention_tiles_backward.cu (FlashAttention-2, Dao
// 2023), tiles of 64 read by the tensor cores from shared memory. A warpgroup owns 64 queries (dq) or 64 keys (dk, dv); every
// sum is made in a fixed order. Where warpgroups work alone (short rows), one that has all keys of a row makes dq as well.
#include <algorithm>

#include "ops/cuda/attention.h"
#include "ops/cuda/attention_hopper.cuh"

namespace pipelora::cuda {

namespace {

/// Tiles of keys and values in shared memory at once: warpgroups that work alone share a multiprocessor by threes instead.
template <int kGroups>
constexpr int query_stages = kGroups == 1 ? 1 : 2;

/// One warpgroup a block has all keys of the row: key_grad_kernel makes dq too.
template <int kGroups>
__host__ __device__ inline bool whole_row(int keys) {
  return kGroups == 1 && keys <= kTile;
}

/// Shared memory for dS of a whole row, in which dq's product reads it across.
template <int kGroups>
constexpr int slope_bytes = kGroups == 1 ? kTile * kTile * 2 : 0;

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

// dq, and delta = rowsum(dout * out) for the kernel below.
template <class T, int E, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, kGroups == 1 ? 3 : 1)
    query_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout, const float* lse,
                      std::int64_t lse_stride, float* delta, std::int64_t delta_stride, Side<T> dq, Shape shape) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 128;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStages = query_stages<kGroups>;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t q_tile = shared_address(shared), dout_tile = q_tile + kOwnBytes, stages = dout_tile + kOwnBytes;

  const Place where = locate<false>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = where.sequence, head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries;
  if (whole_row<kGroups>(keys)) return;
  const int q0 = (where.tiles - 1 - where.tile) * kRows;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  const int group = static_cast<int>(threadIdx.x) / 128, own = static_cast<int>(threadIdx.x) / 32 * 16;

  const int first_key = shape.table.key_start[s], kv_head = head / shape.group;
  const int key_end = min(keys, offset + q0 + kRows);
  const int key_begin = shape.window > 0 ? max(0, offset + q0 - shape.window + 1) / kTile * kTile : 0;

  load_rows<E, kRows, kThreads>(q_tile, q.head(first_query, head, shape.width), q.stride, q0, queries, shape.width, thread);
  load_rows<E, kRows, kThreads>(dout_tile, dout.head(first_query, head, shape.width), dout.stride, q0, queries, shape.width, thread);
  const auto fetch = [&](int key, int stage) {
    const std::uint32_t to = stages + stage * 2 * kTileBytes;
    load_rows<E, kTile, kThreads>(to, k.head(first_key, kv_head, shape.width), k.stride, key, keys, shape.width, thread);
    load_rows<E, kTile, kThreads>(to + kTileBytes, v.head(first_key, kv_head, shape.width), v.stride, key, keys, shape.width, thread);
    commit_copies();
  };
  fetch(key_begin, 0);

  float pull[2], level[2];
  {
    const int row = q0 + own + lane / 2;
    const float sum = row_delta(out.head(first_query, head, shape.width) + row * out.stride,
                                dout.head(first_query, head, shape.width) + row * dout.stride, row < queries ? shape.width : 0);
    if (lane % 2 == 0 && row < queries) delta[head * delta_stride + first_query + row] = sum;
    pull[0] = __shfl_sync(0xFFFFFFFFu, sum, 2 * g);
    pull[1] = __shfl_sync(0xFFFFFFFFu, sum, 2 * (g + 8));
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = q0 + own + g + half * 8;
    level[half] = row < queries ? lse[head * lse_stride + first_query + row] * kLog2E : INFINITY;
  }

  const float scale = shape.scale * kLog2E;
  float sums[E / 8][4] = {};
  const int behind = offset + q0 + own + g - quad * 2;  // of key 0, before the thread's first row
  int stage = 0;
  for (int key = key_begin; key < key_end; key += kTile, stage = (stage + 1) % kStages) {
    wait_copies<0>();
    fence_shared();
    __syncthreads();
    if (kStages == 2 && key + kTile < key_end) fetch(key + kTile, stage ^ 1);
    if (key > offset + q0 + group * 64 + 63) continue;
    const std::uint32_t k_tile = stages + stage * 2 * kTileBytes, v_tile = k_tile + kTileBytes;
    float p[8][4], dp[8][4];
    wgmma_hold(p);
    wgmma_hold(dp);
    wgmma_fence();
    product_transposed<E, kRows, kTile, T>(p, q_tile, group * 64, k_tile);
    wgmma_commit();
    product_transposed<E, kRows, kTile, T>(dp, dout_tile, group * 64, v_tile);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(p);
    const bool whole = key + kTile - 1 <= offset + q0 + group * 64 && shape.window == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = exp2_fast(fmaf(p[n][i], scale, -level[i / 2]));
        if (!whole && hidden(behind - key + i / 2 * 8 - (n * 8 + i % 2), shape.window)) p[n][i] = 0;
      }
    }
    wgmma_wait<0>();
    wgmma_hold(dp);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - pull[i / 2];
    }
    std::uint32_t slopes[4][4];
    pack_fragments<T>(slopes, p);
    wgmma_hold(slopes);
    wgmma_hold(sums);
    wgmma_fence();
    product_rows<E, T>(sums, slopes, k_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (kStages == 1 && key + kTile < key_end) {
      __syncthreads();
      fetch(key + kTile, 0);
    }
  }
  __syncthreads();  // q's rows have been read by the whole warpgroup
  write_rows<E, kRows, T>(shared, own, sums, shape.scale, shape.scale, dq.head(first_query, head, shape.width), dq.stride, q0 + own,
                          queries, shape.width);
#endif
}

// dk and dv of 64 keys a warpgroup, over all queries that see them and all heads that share them; dq of whole rows.
template <class T, int E, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, kGroups == 1 ? 2 : 1)
    key_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout, const float* lse,
                    std::int64_t lse_stride, const float* delta, std::int64_t delta_stride, Side<T> dq, Side<T> dk, Side<T> dv, Shape shape) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 128;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStageBytes = 2 * kTileBytes;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t k_tile = shared_address(shared), v_tile = k_tile + kOwnBytes, stages = v_tile + kOwnBytes;
  const int slopes_at = 2 * kOwnBytes + 2 * kStageBytes;  // of a whole row: [keys, queries]
  float* levels = reinterpret_cast<float*>(shared + slopes_at + slope_bytes<kGroups>);  // [2 stages][lse, delta][kTile]

  const Place where = locate<true>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = where.sequence, kv_head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries, first_key = shape.table.key_start[s];
  const bool whole = whole_row<kGroups>(keys);
  const int k0 = where.tile * kRows;  // the first keys are seen by most queries
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  const int group = static_cast<int>(threadIdx.x) / 128, own = static_cast<int>(threadIdx.x) / 32 * 16;

  load_rows<E, kRows, kThreads>(k_tile, k.head(first_key, kv_head, shape.width), k.stride, k0, keys, shape.width, thread);
  load_rows<E, kRows, kThreads>(v_tile, v.head(first_key, kv_head, shape.width), v.stride, k0, keys, shape.width, thread);

  const int query_begin = max(0, k0 - offset) / kTile * kTile;
  const int query_end = shape.window > 0 ? min(queries, k0 + kRows - 1 + shape.window - offset) : queries;
  const int per_head = query_end > query_begin ? (query_end - query_begin + kTile - 1) / kTile : 0;
  const int steps = per_head * shape.group;

  const auto fetch = [&](int step, int stage) {
    const int head = kv_head * shape.group + step / per_head, first = query_begin + step % per_head * kTile;
    load_rows<E, kTile, kThreads>(stages + stage * kStageBytes, q.head(first_query, head, shape.width), q.stride, first, queries, shape.width, thread);
    load_rows<E, kTile, kThreads>(stages + stage * kStageBytes + kTileBytes, dout.head(first_query, head, shape.width), dout.stride, first,
                                  queries, shape.width, thread);
    for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kThreads) {
      const bool valid = first + i < queries;
      const std::int64_t row = first_query + first + i;
      levels[(stage * 2) * kTile + i] = valid ? lse[head * lse_stride + row] * kLog2E : INFINITY;
      if (!whole) levels[(stage * 2 + 1) * kTile + i] = valid ? delta[head * delta_stride + row] : 0.0f;
    }
    if (whole) {
      const int row = own + lane / 2;
      const float sum = row_delta(out.head(first_query, head, shape.width) + row * out.stride,
                                  dout.head(first_query, head, shape.width) + row * dout.stride, row < queries ? shape.width : 0);
      if (lane % 2 == 0) levels[(stage * 2 + 1) * kTile + row] = sum;
    }
  };
  if (steps > 0) fetch(0, 0);
  commit_copies();

  const float scale = shape.scale * kLog2E;
  float dk_sums[E / 8][4] = {}, dv_sums[E / 8][4] = {};
  const int behind = offset + quad * 2 - (k0 + own + g);  // before query 0, the thread's first row
  int stage = 0;
  for (int step = 0; step < steps; ++step, stage ^= 1) {
    wait_copies<0>();
    fence_shared();
    __syncthreads();
    if (step + 1 < steps) {
      fetch(step + 1, stage ^ 1);
      commit_copies();
    }
    const int first = query_begin + step % per_head * kTile;
    if (offset + first + kTile - 1 < k0 + group * 64) continue;
    const std::uint32_t q_tile = stages + stage * kStageBytes, dout_tile = q_tile + kTileBytes;
    const float* level = levels + stage * 2 * kTile;
    const float* pull = level + kTile;
    float p[8][4], dp[8][4];
    wgmma_hold(p);
    wgmma_hold(dp);
    wgmma_fence();
    product_transposed<E, kRows, kTile, T>(p, k_tile, group * 64, q_tile);
    wgmma_commit();
    product_transposed<E, kRows, kTile, T>(dp, v_tile, group * 64, dout_tile);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(p);
    const bool unmasked = offset + first >= k0 + group * 64 + 63 && shape.window == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 levels2 = *reinterpret_cast<const float2*>(level + n * 8 + quad * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = exp2_fast(fmaf(p[n][i], scale, i % 2 == 0 ? -levels2.x : -levels2.y));
        if (!unmasked && hidden(behind + first + n * 8 + i % 2 - i / 2 * 8, shape.window)) p[n][i] = 0;
      }
    }
    std::uint32_t fragments[4][4];
    pack_fragments<T>(fragments, p);
    wgmma_wait<0>();
    wgmma_hold(dp);
    wgmma_hold(fragments);
    wgmma_hold(dv_sums);
    wgmma_fence();
    product_rows<E, T>(dv_sums, fragments, dout_tile);
    wgmma_commit();
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 pulls = *reinterpret_cast<const float2*>(pull + n * 8 + quad * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - (i % 2 == 0 ? pulls.x : pulls.y);
    }
    std::uint32_t slopes[4][4];
    pack_fragments<T>(slopes, p);
    if (whole) {
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          *reinterpret_cast<std::uint32_t*>(shared + slopes_at + place<kTile>(own + g + i % 2 * 8, 2 * kk + i / 2) + quad * 4) = slopes[kk][i];
        }
      }
      fence_shared();
    }
    wgmma_hold(slopes);
    wgmma_hold(dk_sums);
    wgmma_fence();
    product_rows<E, T>(dk_sums, slopes, q_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(dk_sums);
    wgmma_hold(dv_sums);
    wgmma_hold(fragments);
    wgmma_hold(slopes);
    if (whole) {
      __syncthreads();  // all slopes are written, and q has been read
      const int head = kv_head * shape.group + step;
      float dq_sums[E / 8][4];
      wgmma_hold(dq_sums);
      wgmma_fence();
      product_of_rows<E, T>(dq_sums, k_tile + slopes_at, k_tile);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(dq_sums);
      write_rows<E, kTile, T>(shared + 2 * kOwnBytes + stage * kStageBytes, own, dq_sums, shape.scale, shape.scale,
                              dq.head(first_query, head, shape.width), dq.stride, own, queries, shape.width);
    }
  }
  wait_copies<0>();
  __syncthreads();
  write_rows<E, kRows, T>(shared, own, dk_sums, shape.scale, shape.scale, dk.head(first_key, kv_head, shape.width), dk.stride, k0 + own,
                          keys, shape.width);
  write_rows<E, kRows, T>(shared + kOwnBytes, own, dv_sums, 1.0f, 1.0f, dv.head(first_key, kv_head, shape.width), dv.stride, k0 + own,
                          keys, shape.width);
#endif
}

template <class T, int E, int kQueryGroups, int kKeyGroups>
void launch_backward(const AttentionBackward& call, const Tensor& delta, const Shape& shape, cudaStream_t stream) {
  static_assert((kQueryGroups == 1) == (kKeyGroups == 1));  // the kernels agree on whole rows
  const std::size_t query_bytes = (2 * kQueryGroups * 64 + 2 * query_stages<kQueryGroups> * kTile) * E * 2 + kAlignmentBytes;
  const std::size_t key_bytes = (2 * kKeyGroups * 64 + 4 * kTile) * E * 2 + slope_bytes<kKeyGroups> + 4 * kTile * sizeof(float) + kAlignmentBytes;
  const auto query_grad = query_grad_kernel<T, E, kQueryGroups>;
  const auto key_grad = key_grad_kernel<T, E, kKeyGroups>;
  allow_shared(query_grad, query_bytes);
  allow_shared(key_grad, key_bytes);
  const auto q = side<const T>(call.q), k = side<const T>(call.k), v = side<const T>(call.v), out = side<const T>(call.out),
             dout = side<const T>(call.dout);
  const auto& lengths = call.sequences->key_length.host;
  if (!std::all_of(lengths.begin(), lengths.end(), whole_row<kQueryGroups>)) {
    const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim),
                    static_cast<unsigned>(query_tiles(*call.sequences, kQueryGroups * 64)));
    query_grad<<<grid, kQueryGroups * 128, query_bytes, stream>>>(q, k, v, out, dout, call.lse.as<float>(), call.lse.stride,
                                                                  delta.as<float>(), delta.stride, side<T>(call.dq), shape);
  }
  const dim3 key_grid(static_cast<unsigned>(call.k.cols / call.head_dim),
                      static_cast<unsigned>(key_tiles(*call.sequences, kKeyGroups * 64)));
  key_grad<<<key_grid, kKeyGroups * 128, key_bytes, stream>>>(q, k, v, out, dout, call.lse.as<float>(), call.lse.stride,
                                                              delta.as<float>(), delta.stride, side<T>(call.dq), side<T>(call.dk),
                                                              side<T>(call.dv), shape);
}

}  // namespace

bool attention_backward_hopper(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream) {
  if (!on_hopper()) return false;
  const Shape shape = shape_of(call);
  const bool wide = long_rows(*call.sequences);
  with_half(call.q.dtype, [&]<class T>(T) {
    if (call.head_dim <= 64)
      wide ? launch_backward<T, 64, 3, 2>(call, delta, shape, stream) : launch_backward<T, 64, 1, 1>(call, delta, shape, stream);
    else
      wide ? launch_backward<T, 128, 3, 2>(call, delta, shape, stream) : launch_backward<T, 128, 1, 1>(call, delta, shape, stream);
  });
  check_launch("attention_backward");
  return true;
}

}  // namespace pipelora::cuda
