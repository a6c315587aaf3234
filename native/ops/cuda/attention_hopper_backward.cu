// Attention's gradients with Hopper's warpgroup products: the algorithm of attention_tiles_backward.cu (FlashAttention-2, Dao
// 2023), tiles of 64 read by the tensor cores from shared memory. A warpgroup owns 64 queries (dq) or 64 keys (dk, dv); every
// sum is made in a fixed order.
#include "ops/cuda/attention.h"
#include "ops/cuda/attention_hopper.cuh"

namespace pipelora::cuda {

namespace {

// dq, and delta = rowsum(dout * out) for the kernel below.
template <class T, int E, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, 1)
    query_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout, const float* lse,
                      std::int64_t lse_stride, float* delta, std::int64_t delta_stride, Side<T> dq, Shape shape) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 128;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t q_tile = shared_address(shared), dout_tile = q_tile + kOwnBytes, stages = dout_tile + kOwnBytes;

  const Place where = locate<false>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = where.sequence, head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries;
  const int q0 = (where.tiles - 1 - where.tile) * kRows;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  const int group = static_cast<int>(threadIdx.x) / 128, own = static_cast<int>(threadIdx.x) / 32 * 16;

  const T* k_rows = k.head(shape.table.key_start[s], head / shape.group, shape.width);
  const T* v_rows = v.head(shape.table.key_start[s], head / shape.group, shape.width);
  const int key_end = min(keys, offset + q0 + kRows);
  const int key_begin = shape.window > 0 ? max(0, offset + q0 - shape.window + 1) / kTile * kTile : 0;

  load_rows<E, kRows, kThreads>(q_tile, q.head(first_query, head, shape.width), q.stride, q0, queries, shape.width, thread);
  load_rows<E, kRows, kThreads>(dout_tile, dout.head(first_query, head, shape.width), dout.stride, q0, queries, shape.width, thread);
  const auto fetch = [&](int key, int stage) {
    load_rows<E, kTile, kThreads>(stages + stage * 2 * kTileBytes, k_rows, k.stride, key, keys, shape.width, thread);
    load_rows<E, kTile, kThreads>(stages + stage * 2 * kTileBytes + kTileBytes, v_rows, v.stride, key, keys, shape.width, thread);
    commit_copies();
  };
  fetch(key_begin, 0);

  // delta of the warp's rows: two lanes a row.
  float pull[2], level[2];
  {
    const int row = q0 + own + lane / 2;
    float sum = 0;
    if (row < queries) {
      const T* a = out.head(first_query, head, shape.width) + row * out.stride;
      const T* b = dout.head(first_query, head, shape.width) + row * dout.stride;
#pragma unroll 4
      for (int c = lane % 2 * 8; c < shape.width; c += 16) {
        const Floats<8> x = load<8>(a + c), y = load<8>(b + c);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += x.v[i] * y.v[i];
      }
    }
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
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
  const int position0 = offset + q0 + own + g;
  int stage = 0;
  for (int key = key_begin; key < key_end; key += kTile, stage ^= 1) {
    wait_copies<0>();
    fence_shared();
    __syncthreads();
    if (key + kTile < key_end) fetch(key + kTile, stage ^ 1);
    if (key > offset + q0 + group * 64 + 63) continue;
    const std::uint32_t k_tile = stages + stage * 2 * kTileBytes, v_tile = k_tile + kTileBytes;
    float p[8][4] = {}, dp[8][4] = {};
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
        if (!whole) {
          const int j = key + n * 8 + quad * 2 + i % 2, position = position0 + i / 2 * 8;
          if (j > position || (shape.window > 0 && position - j >= shape.window)) p[n][i] = 0;
        }
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
  }
  __syncthreads();  // q's rows have been read by the whole warpgroup
  write_rows<E, kRows, T>(shared, own, sums, shape.scale, shape.scale, dq.head(first_query, head, shape.width), dq.stride, q0 + own,
                          queries, shape.width);
#endif
}

// dk and dv of 64 keys a warpgroup, over all queries that see them and all heads that share them.
template <class T, int E, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, 1)
    key_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> dout, const float* lse, std::int64_t lse_stride,
                    const float* delta, std::int64_t delta_stride, Side<T> dk, Side<T> dv, Shape shape) {
#ifdef PIPELORA_HOPPER
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 128;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStageBytes = 2 * kTileBytes;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t k_tile = shared_address(shared), v_tile = k_tile + kOwnBytes, stages = v_tile + kOwnBytes;
  float* levels = reinterpret_cast<float*>(shared + 2 * kOwnBytes + 2 * kStageBytes);  // [2 stages][lse, delta][kTile]

  const Place where = locate<true>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = where.sequence, kv_head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries, first_key = shape.table.key_start[s];
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
      levels[(stage * 2 + 1) * kTile + i] = valid ? delta[head * delta_stride + row] : 0.0f;
    }
  };
  if (steps > 0) fetch(0, 0);
  commit_copies();

  const float scale = shape.scale * kLog2E;
  float dk_sums[E / 8][4] = {}, dv_sums[E / 8][4] = {};
  const int key0 = k0 + own + g;
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
    float p[8][4] = {}, dp[8][4] = {};
    wgmma_hold(p);
    wgmma_hold(dp);
    wgmma_fence();
    product_transposed<E, kRows, kTile, T>(p, k_tile, group * 64, q_tile);
    wgmma_commit();
    product_transposed<E, kRows, kTile, T>(dp, v_tile, group * 64, dout_tile);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(p);
    const bool whole = offset + first >= k0 + group * 64 + 63 && shape.window == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 levels2 = *reinterpret_cast<const float2*>(level + n * 8 + quad * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = exp2_fast(fmaf(p[n][i], scale, i % 2 == 0 ? -levels2.x : -levels2.y));
        if (!whole) {
          const int position = offset + first + n * 8 + quad * 2 + i % 2, j = key0 + i / 2 * 8;
          if (j > position || (shape.window > 0 && position - j >= shape.window)) p[n][i] = 0;
        }
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
  const std::size_t query_bytes = (2 * kQueryGroups * 64 + 4 * kTile) * E * 2 + kAlignmentBytes;
  const std::size_t key_bytes = (2 * kKeyGroups * 64 + 4 * kTile) * E * 2 + 4 * kTile * sizeof(float) + kAlignmentBytes;
  const auto query_grad = query_grad_kernel<T, E, kQueryGroups>;
  const auto key_grad = key_grad_kernel<T, E, kKeyGroups>;
  allow_shared(query_grad, query_bytes);
  allow_shared(key_grad, key_bytes);
  const auto q = side<const T>(call.q), k = side<const T>(call.k), v = side<const T>(call.v), out = side<const T>(call.out),
             dout = side<const T>(call.dout);
  const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim),
                  static_cast<unsigned>(query_tiles(*call.sequences, kQueryGroups * 64)));
  query_grad<<<grid, kQueryGroups * 128, query_bytes, stream>>>(q, k, v, out, dout, call.lse.as<float>(), call.lse.stride,
                                                                delta.as<float>(), delta.stride, side<T>(call.dq), shape);
  const dim3 key_grid(static_cast<unsigned>(call.k.cols / call.head_dim),
                      static_cast<unsigned>(key_tiles(*call.sequences, kKeyGroups * 64)));
  key_grad<<<key_grid, kKeyGroups * 128, key_bytes, stream>>>(q, k, v, dout, call.lse.as<float>(), call.lse.stride, delta.as<float>(),
                                                              delta.stride, side<T>(call.dk), side<T>(call.dv), shape);
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
