// The second kernel of attention_decode(): a row's splits become its output, in an order that depends on their number alone.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/decode.cuh"
#include "ops/cuda/device/dependent.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;

/// One block: a row's splits, in a fixed order. Each warp takes every fourth. A row of one split is written already.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(Side<T> out, Shape shape, Partials partials) {
  __shared__ __align__(16) float sums_shared[kWarps][kMaxHeadDim];
  __shared__ float totals_shared[kWarps];
  let_next_start();
  wait_for_previous();
  const int s = static_cast<int>(blockIdx.y), kv_head = static_cast<int>(blockIdx.x) / partials.rows;
  const int kv_heads = static_cast<int>(gridDim.x) / partials.rows, row = static_cast<int>(blockIdx.x) % partials.rows;
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int count = splits_of(queries, shape.table.key_length[s], shape.window).count;
  if (row >= queries * shape.group || count == 1) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::int64_t first = partials.slot(s, 0, kv_heads, kv_head, row), step = static_cast<std::int64_t>(kv_heads) * partials.rows;

  float top = -INFINITY;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, __ldcg(&partials.stats[first + i * step]).x);
  const float level = level_of(warp_max(top));
  float total = 0;
  float4 sum[kMaxHeadDim / 128] = {};
#pragma unroll 4
  for (int i = warp; i < count; i += kWarps) {
    const std::int64_t slot = first + i * step;
    const float2 stats = __ldcg(&partials.stats[slot]);
    const float factor = exp2_fast(stats.x - level);
    total += factor * stats.y;
#pragma unroll
    for (int p = 0; p < kMaxHeadDim / 128; ++p) {
      const int column = p * 128 + lane * 4;
      if (column >= shape.width) continue;
      const float4 part = __ldcg(reinterpret_cast<const float4*>(partials.sums + slot * shape.width + column));
      sum[p].x += factor * part.x;
      sum[p].y += factor * part.y;
      sum[p].z += factor * part.z;
      sum[p].w += factor * part.w;
    }
  }
  if (lane == 0) totals_shared[warp] = total;
#pragma unroll
  for (int p = 0; p < kMaxHeadDim / 128; ++p) *reinterpret_cast<float4*>(&sums_shared[warp][p * 128 + lane * 4]) = sum[p];
  __syncthreads();
  const int column = thread * 8;
  if (column >= shape.width) return;
  float whole = 0;
  Floats<8> all{};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    whole += totals_shared[w];
#pragma unroll
    for (int e = 0; e < 8; ++e) all.v[e] += sums_shared[w][column + e];
  }
  const float share = 1.0f / whole;
#pragma unroll
  for (int e = 0; e < 8; ++e) all.v[e] *= share;
  store(out.head(first_query + row / shape.group, kv_head * shape.group + row % shape.group, shape.width) + column, all);
}

}  // namespace

void merge_splits(const AttentionForward& call, const Partials& partials, cudaStream_t stream) {
  const std::int64_t kv_heads = call.k.cols / call.head_dim;
  const dim3 grid(static_cast<unsigned>(kv_heads * partials.rows), static_cast<unsigned>(call.sequences->count()));
  with_half(call.q.dtype, [&]<class T>(T) {
    launch_dependent(merge_kernel<T>, grid, kThreads, 0, stream, side<T>(call.out), shape_of(call), partials);
  });
}

}  // namespace pipelora::cuda
