// Attention forward on Hopper for short rows, and for heads of more than 128 columns: the algorithm of tiles_forward.cu (FlashAttention-2, Dao 2023) with
// warpgroup products, a warpgroup of 64 queries a block. Such a block mostly waits for memory: as much as it needs of shared
// memory and registers lets four live on a multiprocessor (two of wide heads), and it loads the next keys and values where the last have been read.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/hopper.cuh"
#include "ops/cuda/device/dependent.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 128;
template <int E>
constexpr int kBlocks = E > 128 ? 2 : 4;  // on a multiprocessor

template <class T, int E>
__global__ void __launch_bounds__(kThreads, kBlocks<E>)
    forward_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<T> out, float* lse, std::int64_t lse_stride, Shape shape) {
#ifdef PIPELORA_HOPPER
  let_next_start();
  wait_for_previous();
  constexpr int kTileBytes = kTile * E * 2;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t q_tile = shared_address(shared), k_tile = q_tile + kTileBytes, v_tile = k_tile + kTileBytes;

  const Place where = locate<false>(shape.table, static_cast<int>(blockIdx.y), kTile);
  const int s = where.sequence, head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries;
  const int q0 = (where.tiles - 1 - where.tile) * kTile;  // the long ones first
  const int lane = thread % 32, g = lane / 4, quad = lane % 4;
  const int own = thread / 32 * 16;  // of this warp's rows

  const int first_key = shape.table.key_start[s], kv_head = head / shape.group;
  const int key_end = min(keys, offset + q0 + kTile);
  const int key_begin = shape.window > 0 ? max(0, offset + q0 - shape.window + 1) / kTile * kTile : 0;

  const auto fetch = [&](std::uint32_t to, const Side<const T>& from, int key) {
    load_rows<E, kTile, kThreads>(to, from.head(first_key, kv_head, shape.width), from.stride, key, keys, shape.width, thread);
  };
  load_rows<E, kTile, kThreads>(q_tile, q.head(first_query, head, shape.width), q.stride, q0, queries, shape.width, thread);
  fetch(k_tile, k, key_begin);
  commit_copies();
  fetch(v_tile, v, key_begin);
  commit_copies();

  const float scale = shape.scale * kLog2E;
  float sums[E / 8][4] = {};
  SoftmaxRows rows;

  for (int key = key_begin; key < key_end; key += kTile) {
    const int next = key + kTile;
    wait_copies<1>();  // all but the values
    fence_shared();
    __syncthreads();
    float p[8][4];
    wgmma_hold(p);
    wgmma_fence();
    // q from shared memory: with its fragments in registers across the loop, ptxas (13.0) gave their registers to the weights,
    // and heads of 64 columns came out wrong from the second tile of keys on.
    product_transposed<E, kTile, kTile, T>(p, q_tile, 0, k_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(p);
    const bool whole = key + kTile - 1 <= offset + q0 && shape.window == 0;
    if (!whole) {
      int again;  // read anew: what is derived of it does not stay in registers, of which the loop has none to spare
      asm volatile("mov.u32 %0, %%tid.x;" : "=r"(again));
      hide(p, key + again % 4 * 2, offset + q0 + again / 32 * 16 + again % 32 / 4, shape.window);
    }
    float rescale[2];
    rows.add(p, scale, rescale);
    rescale_rows(sums, rescale);
    std::uint32_t weights[4][4];
    pack_fragments<T>(weights, p);
    wait_copies<0>();
    fence_shared();
    __syncthreads();  // the keys have been read, too
    if (next < key_end) fetch(k_tile, k, next);
    commit_copies();
    wgmma_hold(weights);
    wgmma_hold(sums);
    wgmma_fence();
    product_rows<E, T>(sums, weights, v_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
    if (next < key_end) {
      __syncthreads();
      fetch(v_tile, v, next);
    }
    commit_copies();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) rows.finish(half);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = q0 + own + g + half * 8;
    if (lse != nullptr && quad == 0 && row < queries) lse[head * lse_stride + first_query + row] = rows.log_sum(half, shape.scale);
  }
  // All warps had read q before they met for the last values.
  write_rows<E, kTile, T>(shared, own, sums, 1.0f / rows.total[0], 1.0f / rows.total[1], out.head(first_query, head, shape.width), out.stride,
                          q0 + own, queries, shape.width);
#endif
}

template <class T, int E>
void launch(const AttentionForward& call, cudaStream_t stream) {
  const std::size_t bytes = 3 * kTile * E * 2 + kAlignmentBytes;
  const auto kernel = forward_kernel<T, E>;
  allow_shared(kernel, bytes);
  const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim), static_cast<unsigned>(query_tiles(*call.sequences, kTile)));
  launch_dependent(kernel, grid, kThreads, bytes, stream, side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<T>(call.out),
                   call.lse.as<float>(), call.lse.stride, shape_of(call));
}

}  // namespace

void attention_forward_short(const AttentionForward& call, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    if (call.head_dim > 128) return launch<T, 256>(call, stream);
    call.head_dim <= 64 ? launch<T, 64>(call, stream) : launch<T, 128>(call, stream);
  });
  check_launch("attention_forward");
}

}  // namespace pipelora::cuda
