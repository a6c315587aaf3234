// Attention on tensor cores, blocked as in FlashAttention-2 (Dao, 2023): 16-bit inputs, f32 sums, heads of up to 256 columns.
// Each warp owns 16 queries and keeps its sums in registers; tiles of keys and values pass through shared memory, two deep where a
// block may have that much.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/tiles.cuh"

namespace pipelora::cuda {

namespace {

template <class T, int E, int kWarps, int kStages, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32) forward_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<T> out,
                                                              float* lse, std::int64_t lse_stride, Shape shape) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kRows = kWarps * 16, kThreads = kWarps * 32;
  constexpr int kTileBytes = kTile * E * 2;
  const std::uint32_t base = shared_address(shared);
  const std::uint32_t q_tile = base, kv_tiles = base + kRows * E * 2;

  const Place place = locate<false>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = place.sequence, head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries;
  const int q0 = (place.tiles - 1 - place.tile) * kRows;  // the long ones first
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;

  const T* q_rows = q.head(first_query, head, shape.width);
  const T* k_rows = k.head(shape.table.key_start[s], head / shape.group, shape.width);
  const T* v_rows = v.head(shape.table.key_start[s], head / shape.group, shape.width);
  const int key_end = min(keys, offset + q0 + kRows);
  const int key_begin = shape.window > 0 ? max(0, offset + q0 - shape.window + 1) / kTile * kTile : 0;

  load_tile<E, kThreads>(q_tile, q_rows, q.stride, q0, kRows, queries, shape);
  const auto fetch = [&](int key, int stage) {
    load_tile<E, kThreads>(kv_tiles + stage * 2 * kTileBytes, k_rows, k.stride, key, kTile, keys, shape);
    load_tile<E, kThreads>(kv_tiles + stage * 2 * kTileBytes + kTileBytes, v_rows, v.stride, key, kTile, keys, shape);
    commit_copies();
  };
  if (kStages == 2) fetch(key_begin, 0);

  const float scale = shape.scale * kLog2E;
  float sums[E / 8][4] = {};
  SoftmaxRows rows;
  const int position0 = offset + q0 + warp * 16 + g;  // of this thread's first row; the second is 8 below

  int stage = 0;
  for (int key = key_begin; key < key_end; key += kTile, stage ^= kStages - 1) {
    if (kStages == 1) {
      fetch(key, 0);
      wait_copies<0>();
    } else if (key + kTile < key_end) {
      fetch(key + kTile, stage ^ 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    const std::uint32_t k_tile = kv_tiles + stage * 2 * kTileBytes, v_tile = k_tile + kTileBytes;
    float p[8][4] = {};
    product_transposed<E, T>(p, q_tile, warp * 16, k_tile);
    if constexpr (kCapped) cap_scores(p, shape.cap);
    const bool whole = key + kTile - 1 <= offset + q0 + warp * 16 && shape.window == 0;
    if (!whole) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = key + n * 8 + quad * 2 + i % 2, position = position0 + i / 2 * 8;
          if (j > position || (shape.window > 0 && position - j >= shape.window)) p[n][i] = -INFINITY;
        }
      }
    }
    float rescale[2];
    rows.add(p, scale, rescale);
    rescale_rows(sums, rescale);
    product_rows<E, T>(sums, p, v_tile);
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) rows.finish(half);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = q0 + warp * 16 + g + half * 8;
    if (lse != nullptr && quad == 0 && row < queries) lse[head * lse_stride + first_query + row] = rows.log_sum(half, shape.scale);
  }
  write_rows<E, T>(shared, q_tile, warp * 16, sums, 1.0f / rows.total[0], 1.0f / rows.total[1], out.head(first_query, head, shape.width),
                   out.stride, q0 + warp * 16, queries, shape);
}

template <class T, int E, int kWarps, int kStages>
void launch(const AttentionForward& call, cudaStream_t stream) {
  constexpr int kRows = kWarps * 16;
  const std::size_t bytes = (kRows + kStages * 2 * kTile) * E * 2;
  const auto kernel = call.cap > 0 ? forward_kernel<T, E, kWarps, kStages, true> : forward_kernel<T, E, kWarps, kStages, false>;
  allow_shared(kernel, bytes);
  const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim), static_cast<unsigned>(query_tiles(*call.sequences, kRows)));
  kernel<<<grid, kWarps * 32, bytes, stream>>>(side<const T>(call.q), side<const T>(call.k), side<const T>(call.v),
                                               side<T>(call.out), call.lse.as<float>(), call.lse.stride, shape_of(call));
}

}  // namespace

void attention_forward_tiles(const AttentionForward& call, const AttentionTiles& tiles, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    const auto with_warps = [&]<int E>() { tiles.warps == 8 ? launch<T, E, 8, 2>(call, stream) : launch<T, E, 4, 2>(call, stream); };
    switch (tiles.columns) {
      case 64: return with_warps.template operator()<64>();
      case 128: return with_warps.template operator()<128>();
      default: return tiles.stages == 2 ? launch<T, 256, 4, 2>(call, stream) : launch<T, 256, 4, 1>(call, stream);
    }
  });
  check_launch("attention_forward");
}

}  // namespace pipelora::cuda
