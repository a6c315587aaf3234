// Gradients of queries on Hopper, from scores computed again (FlashAttention-2, Dao 2023) or from dS that were kept.
// A warpgroup owns 64 queries and goes through their keys in order.
#include <algorithm>

#include "ops/cuda/attention/hopper_backward.cuh"

namespace pipelora::cuda {

namespace {

/// Tiles of keys and values in shared memory at once: warpgroups that work alone share a multiprocessor by threes instead, and two of wide heads
/// leave no more room.
template <int E, int kGroups>
constexpr int query_stages = kGroups == 1 || E > 128 ? 1 : 2;

// dq, and delta.
template <class T, int E, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, kGroups == 1 ? 3 : 1)
    query_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout, const float* lse,
                      std::int64_t lse_stride, float* delta, std::int64_t delta_stride, Side<T> dq, Shape shape, Rotary rotary) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 128;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStages = query_stages<E, kGroups>;
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

  float deltas[2], lse2[2];
  {
    const int row = q0 + own + lane / 2;
    const float sum = row_delta(out.head(first_query, head, shape.width) + row * out.stride,
                                dout.head(first_query, head, shape.width) + row * dout.stride, row < queries ? shape.width : 0);
    if (lane % 2 == 0 && row < queries) delta[head * delta_stride + first_query + row] = sum;
    deltas[0] = __shfl_sync(0xFFFFFFFFu, sum, 2 * g);
    deltas[1] = __shfl_sync(0xFFFFFFFFu, sum, 2 * (g + 8));
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = q0 + own + g + half * 8;
    lse2[half] = row < queries ? lse[head * lse_stride + first_query + row] * kLog2E : INFINITY;
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
    if (key <= offset + q0 + group * 64 + 63) {
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
          p[n][i] = exp2_fast(fmaf(p[n][i], scale, -lse2[i / 2]));
          if (!whole && hidden(behind - key + i / 2 * 8 - (n * 8 + i % 2), shape.window)) p[n][i] = 0;
        }
      }
      wgmma_wait<0>();
      wgmma_hold(dp);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - deltas[i / 2];
      }
      std::uint32_t ds[4][4];
      pack_fragments<T>(ds, p);
      wgmma_hold(ds);
      wgmma_hold(sums);
      wgmma_fence();
      product_rows<E, T>(sums, ds, k_tile);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(sums);
    }
    if (kStages == 1 && key + kTile < key_end) {
      __syncthreads();
      fetch(key + kTile, 0);
    }
  }
  __syncthreads();  // q's rows have been read by the whole warpgroup
  inverse_rotary<E>(sums, rotary, first_query, q0 + own, queries);
  write_rows<E, kRows, T>(shared, own, sums, shape.scale, shape.scale, dq.head(first_query, head, shape.width), dq.stride, q0 + own,
                          queries, shape.width);
#endif
}

constexpr int kProductGroups = 2, kProductStages = 3;

// dq = dS k of 128 queries a block. Its dS come from memory once, its keys from the cache.
template <class T, int E>
__global__ void __launch_bounds__(kProductGroups * 128, 2)
    ds_product_kernel(ScoreGrads ds, Side<const T> k, Side<T> dq, Shape shape, Rotary rotary) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kProductGroups * 64, kThreads = kProductGroups * 128;
  constexpr int kKeyBytes = kTile * E * 2, kStageBytes = kKeyBytes + kProductGroups * ScoreGrads::kBytes;
  char* shared = aligned_shared();
  const std::uint32_t stages = shared_address(shared);
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, own = thread / 32 * 16;

  const Place where = locate<false>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = where.sequence, head = ds.first_head + static_cast<int>(blockIdx.x), kv_head = head / shape.group;
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int first_key = shape.table.key_start[s], tiles = (queries + kTile - 1) / kTile;
  const std::int64_t before = score_tiles_before(shape.table, s);
  const int q0 = (where.tiles - 1 - where.tile) * kRows;  // those that see most keys first
  const int last = min(q0 / kTile + kProductGroups, tiles) - 1, own_tile = q0 / kTile + group;

  const auto fetch = [&](int key) {
    if (key <= last) {
      const std::uint32_t to = stages + key % kProductStages * kStageBytes;
      load_rows<E, kTile, kThreads>(to, k.head(first_key, kv_head, shape.width), k.stride, key * kTile, queries, shape.width, thread);
      if (key <= own_tile && own_tile < tiles) {
        const char* from = ds.at(head, before, tiles, key, own_tile);
        const std::uint32_t here = to + kKeyBytes + group * ScoreGrads::kBytes;
#pragma unroll
        for (int at = thread % 128 * 16; at < ScoreGrads::kBytes; at += 128 * 16) copy_async(here + at, from + at, true);
      }
    }
    commit_copies();
  };
  for (int key = 0; key + 1 < kProductStages; ++key) fetch(key);
  float sums[E / 8][4] = {};
  for (int key = 0; key <= last; ++key) {
    wait_copies<kProductStages - 2>();
    fence_shared();
    __syncthreads();
    fetch(key + kProductStages - 1);
    if (key > own_tile || own_tile >= tiles) continue;
    const std::uint32_t k_tile = stages + key % kProductStages * kStageBytes;
    wgmma_hold(sums);
    wgmma_fence();
    product_of_rows<E, T>(sums, k_tile + kKeyBytes + group * ScoreGrads::kBytes, k_tile, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
  }
  wait_copies<0>();
  __syncthreads();
  inverse_rotary<E>(sums, rotary, first_query, q0 + own, queries);
  write_rows<E, kRows, T>(shared, own, sums, shape.scale, shape.scale, dq.head(first_query, head, shape.width), dq.stride, q0 + own,
                          queries, shape.width);
#endif
}

template <class T>
__global__ void row_delta_kernel(Side<const T> out, Side<const T> dout, float* delta, std::int64_t stride, std::int64_t tokens, int heads, int width) {
  const std::int64_t pair = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 2;
  const std::int64_t token = min(pair / heads, tokens - 1);
  const int head = static_cast<int>(pair % heads);
  const float sum = row_delta(out.head(token, head, width), dout.head(token, head, width), width);
  if (pair < tokens * heads && threadIdx.x % 2 == 0) delta[head * stride + token] = sum;
}

template <class T, int E, int kGroups>
void launch_query_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, cudaStream_t stream) {
  const std::size_t bytes = (2 * kGroups * 64 + 2 * query_stages<E, kGroups> * kTile) * E * 2 + kAlignmentBytes;
  const auto kernel = query_grad_kernel<T, E, kGroups>;
  allow_shared(kernel, bytes);
  const auto& lengths = call.sequences->key_length.host;
  if (std::all_of(lengths.begin(), lengths.end(), whole_row<kGroups>)) return;
  const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim), static_cast<unsigned>(query_tiles(*call.sequences, kGroups * 64)));
  kernel<<<grid, kGroups * 128, bytes, stream>>>(side<const T>(call.q), side<const T>(call.k), side<const T>(call.v),
                                                 side<const T>(call.out), side<const T>(call.dout), call.lse.as<float>(), call.lse.stride,
                                                 delta.as<float>(), delta.stride, side<T>(call.dq), shape, rotary_of(call));
}

template <class T, int E>
void launch_ds_product(const ScoreGrads& ds, const AttentionBackward& call, const Shape& shape, int heads, cudaStream_t stream) {
  const std::size_t bytes = kProductStages * (kTile * E * 2 + kProductGroups * ScoreGrads::kBytes) + kAlignmentBytes;
  const auto kernel = ds_product_kernel<T, E>;
  allow_shared(kernel, bytes);
  const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(query_tiles(*call.sequences, kProductGroups * 64)));
  kernel<<<grid, kProductGroups * 128, bytes, stream>>>(ds, side<const T>(call.k), side<T>(call.dq), shape, rotary_of(call));
}

}  // namespace

void query_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, bool together, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    if (call.head_dim > 128)
      launch_query_grad<T, 256, 2>(call, delta, shape, stream);
    else if (call.head_dim <= 64)
      together ? launch_query_grad<T, 64, 3>(call, delta, shape, stream) : launch_query_grad<T, 64, 1>(call, delta, shape, stream);
    else
      together ? launch_query_grad<T, 128, 3>(call, delta, shape, stream) : launch_query_grad<T, 128, 1>(call, delta, shape, stream);
  });
}

void row_deltas(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream) {
  const auto heads = static_cast<int>(call.q.cols / call.head_dim);
  with_half(call.q.dtype, [&]<class T>(T) {
    row_delta_kernel<T><<<blocks_for(2 * call.q.rows * heads, 256), 256, 0, stream>>>(
        side<const T>(call.out), side<const T>(call.dout), delta.as<float>(), delta.stride, call.q.rows, heads, static_cast<int>(call.head_dim));
  });
}

void query_grad_of(const ScoreGrads& ds, const AttentionBackward& call, const Shape& shape, int heads, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    call.head_dim <= 64 ? launch_ds_product<T, 64>(ds, call, shape, heads, stream)
                        : launch_ds_product<T, 128>(ds, call, shape, heads, stream);
  });
}

}  // namespace pipelora::cuda
