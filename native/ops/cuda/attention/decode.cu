// Attention of a few queries a sequence over many keys, as when tokens are generated one after the other: the keys are split
// over blocks (Flash-Decoding, Dao et al. 2023) and the query heads that share a kv head are packed as the columns of one
// product, so that keys and values are read once. Scores are k qᵀ and sums vᵀ pᵀ: eight columns are the least of a tensor core's
// product, so few rows of queries are wasted. Operands come from global memory straight into registers, 16 bytes a load:
// the order of the inner dimension is free, and each thread takes the columns that it has loaded.
//
// decode_merge.cu adds the splits up.
#include <algorithm>
#include <type_traits>

#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/decode.cuh"
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kStep = 16;  // keys of a warp's step
constexpr int kWarps = 4, kThreads = kWarps * 32;

__device__ inline uint4 load16(const void* from) { return __ldcg(static_cast<const uint4*>(from)); }
/// An 8 x 8 matrix of 16-bit numbers, transposed over a warp.
__device__ inline std::uint32_t transposed(std::uint32_t matrix) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(matrix));
  return out;
}
__device__ inline std::uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
/// A reduction over the eight lanes with the same lane % 4, which hold a column's rows.
template <class F>
__device__ inline float over_column(float x, F&& f) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) x = f(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
  return x;
}

/// One block: a sequence's split for up to 8 kColumns rows of a kv head. Each warp takes every fourth 16 keys of the split.
/// Where a kv head has more rows, the blocks of the others are its neighbours, and read what the L2 cache holds. kWhole: heads are
/// E wide, else narrower.
template <class T, int E, int kColumns, bool kWhole>
__global__ void __launch_bounds__(kThreads, E == 256 || kColumns == 2 ? 2 : 4)
    split_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<T> out, Shape shape, Partials partials, int row_tiles) {
  constexpr int kRows = 8 * kColumns, kPadded = E + 4;
  __shared__ __align__(16) uint4 queries_shared[kColumns * (E / 32) * 32];
  __shared__ __align__(16) float sums_shared[kWarps][kRows][kPadded];
  __shared__ float2 stats_shared[kWarps][kRows];
  let_next_start();
  wait_for_previous();

  const int s = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.x) / row_tiles;
  const int kv_heads = static_cast<int>(gridDim.x) / row_tiles, row0 = static_cast<int>(blockIdx.x) % row_tiles * kRows;
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries, rows = queries * shape.group;
  const Splits splits = splits_of(queries, keys, shape.window);
  if (row0 >= rows || static_cast<int>(blockIdx.y) >= splits.count) return;
  const int split = splits.first + static_cast<int>(blockIdx.y);
  const int begin = max(split * kSplit, splits.low / kStep * kStep), end = min(keys, (split + 1) * kSplit);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, quad = lane % 4;
  const int width = kWhole ? E : shape.width;

  // A operands. Of keys: rows g and g + 8, columns quad * 8 … + 7 of each 32. Of values, transposed: keys 2 quad, + 1, + 8 and
  // + 9, columns g * 8 … + 7 of each 64. Past the end the last key is read again, which no row sees there (a weight of 0 would
  // not hide what memory without keys may hold), and past the width the last columns: queries have zeros there, sums are not kept.
  uint4 key_parts[2][E / 32], value_parts[4][E / 64];
  const int first_key = shape.table.key_start[s];
  const T* k_rows = k.head(first_key, kv_head, width);
  const T* v_rows = v.head(first_key, kv_head, width);
  const auto within = [&](int column) { return kWhole ? column : min(column, width - 8); };
  const auto load_keys = [&](int key) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* from = k_rows + min(key + g + half * 8, end - 1) * k.stride;
#pragma unroll
      for (int c = 0; c < E / 32; ++c) key_parts[half][c] = load16(from + within(c * 32 + quad * 8));
    }
  };
  const auto load_values = [&](int key) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* from = v_rows + min(key + quad * 2 + i % 2 + i / 2 * 8, end - 1) * v.stride;
#pragma unroll
      for (int c = 0; c < E / 64; ++c) value_parts[i][c] = load16(from + within(c * 64 + g * 8));
    }
  };
  int key = begin + warp * kStep;
  if (key < end) {
    load_keys(key);
    load_values(key);
  }

  // B operands of the scores, the same for all warps: row g, the columns that the keys' have.
  for (int i = warp; i < kColumns * (E / 32); i += kWarps) {
    const int row = row0 + i / (E / 32) * 8 + g, column = i % (E / 32) * 32 + quad * 8;
    queries_shared[i * 32 + lane] = row < rows && column < width
        ? load16(q.head(first_query + row / shape.group, kv_head * shape.group + row % shape.group, width) + column)
        : uint4{};
  }
  __syncthreads();
  const std::uint32_t queries_at = shared_address(queries_shared) + lane * 16;

  // A thread's scores are those of keys g and g + 8 with rows 2 quad and + 1 of each eight.
  const float scale = shape.scale * kLog2E;
  int position[kColumns][2];
  float top[kColumns][2], total[kColumns][2], sums[E / 16][kColumns][4] = {};
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      position[n][b] = offset + (row0 + n * 8 + quad * 2 + b) / shape.group;
      top[n][b] = -INFINITY;
      total[n][b] = 0;
    }
  }

#pragma unroll 1
  for (; key < end; key += kWarps * kStep) {
    const int next = key + kWarps * kStep;
    float scores[kColumns][4] = {};
#pragma unroll
    for (int c = 0; c < E / 32; ++c) {
      const uint4 &low = key_parts[0][c], &high = key_parts[1][c];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const uint4 own = load_shared(queries_at + (n * (E / 32) + c) * 512);
        mma(T{}, scores[n], low.x, high.x, low.y, high.y, own.x, own.y);
        mma(T{}, scores[n], low.z, high.z, low.w, high.w, own.z, own.w);
      }
    }
    if (next < end) load_keys(next);

    std::uint32_t weights[kColumns][2];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      float rescale[2];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const auto seen = [&](int j, float score) {
          const bool hidden = j > position[n][b] || (shape.window > 0 && position[n][b] - j >= shape.window);
          return hidden ? -INFINITY : score * scale;
        };
        float &low = scores[n][b], &high = scores[n][2 + b];
        low = seen(key + g, low);
        high = seen(key + g + 8, high);
        const float before = top[n][b];
        top[n][b] = fmaxf(before, over_column(fmaxf(low, high), [](float x, float y) { return fmaxf(x, y); }));
        const float level = level_of(top[n][b]);
        rescale[b] = exp2_fast(before - level);
        low = exp2_fast(low - level);
        high = exp2_fast(high - level);
        total[n][b] = total[n][b] * rescale[b] + (low + high);
      }
      weights[n][0] = transposed(pack2(T{}, scores[n][0], scores[n][1]));
      weights[n][1] = transposed(pack2(T{}, scores[n][2], scores[n][3]));
#pragma unroll
      for (int m = 0; m < E / 16; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] *= rescale[i % 2];
      }
    }

#pragma unroll
    for (int m = 0; m < E / 16; ++m) {  // two columns of each of a thread's eight, as rows g and g + 8
      std::uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = word(value_parts[i][m / 4], m % 4);
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        mma(T{}, sums[m][n], __byte_perm(w[0], w[1], 0x5410), __byte_perm(w[0], w[1], 0x7632), __byte_perm(w[2], w[3], 0x5410),
            __byte_perm(w[2], w[3], 0x7632), weights[n][0], weights[n][1]);
    }
    if (next < end) load_values(next);
  }

  // The warps' sums meet, in the order of their numbers.
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int row = n * 8 + quad * 2 + b;
      const float all = over_column(total[n][b], [](float x, float y) { return x + y; });
      if (g == 0) stats_shared[warp][row] = make_float2(top[n][b], all);
#pragma unroll
      for (int m = 0; m < E / 16; m += 2) {
        *reinterpret_cast<float4*>(&sums_shared[warp][row][m / 4 * 64 + g * 8 + m % 4 * 2]) =
            make_float4(sums[m][n][b], sums[m][n][2 + b], sums[m + 1][n][b], sums[m + 1][n][2 + b]);
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < kRows * (E / 8); i += kThreads) {
    const int r = i / (E / 8), row = row0 + r, column = i % (E / 8) * 8;
    if (row >= rows || column >= width) continue;
    float highest = -INFINITY, whole = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, stats_shared[w][r].x);
    const float level = level_of(highest);
    Floats<8> sum{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 stats = stats_shared[w][r];
      const float factor = exp2_fast(stats.x - level);
      whole += factor * stats.y;
      const Floats<8> part = load<8>(&sums_shared[w][r][column]);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum.v[e] += factor * part.v[e];
    }
    if (splits.count == 1) {
      const float share = 1.0f / whole;
#pragma unroll
      for (int e = 0; e < 8; ++e) sum.v[e] *= share;
      store(out.head(first_query + row / shape.group, kv_head * shape.group + row % shape.group, width) + column, sum);
    } else {
      const std::int64_t slot = partials.slot(s, static_cast<int>(blockIdx.y), kv_heads, kv_head, row);
      store(partials.sums + slot * width + column, sum);
      if (column == 0) partials.stats[slot] = make_float2(highest, whole);
    }
  }
}

/// The most of any sequence.
struct Extent {
  int queries = 0, splits = 0;
};
Extent extent_of(const AttentionForward& call) {
  Extent most;
  const auto& cu = call.sequences->cu_queries.host;
  const auto& lengths = call.sequences->key_length.host;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    const int queries = cu[s + 1] - cu[s];
    most.queries = std::max(most.queries, queries);
    most.splits = std::max(most.splits, splits_of(queries, lengths[s], static_cast<int>(call.window)).count);
  }
  return most;
}
std::int64_t slots_of(const AttentionForward& call, const Extent& most) {
  return most.splits > 1 ? call.sequences->count() * most.splits * most.queries * (call.q.cols / call.head_dim) : 0;
}

template <class T, int E, int kColumns, bool kWhole>
void launch(const AttentionForward& call, const Extent& most, const Partials& partials, cudaStream_t stream) {
  const auto kv_heads = static_cast<unsigned>(call.k.cols / call.head_dim), count = static_cast<unsigned>(call.sequences->count());
  const unsigned row_tiles = blocks_for(partials.rows, 8 * kColumns);
  launch_dependent(split_kernel<T, E, kColumns, kWhole>, dim3(kv_heads * row_tiles, static_cast<unsigned>(most.splits), count), kThreads, 0, stream,
                   side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<T>(call.out), shape_of(call), partials,
                   static_cast<int>(row_tiles));
}
/// By the heads alone, never by the number of queries: a sequence's kernel is the same whatever stands beside it.
template <class T, int E>
void launch(const AttentionForward& call, const Extent& most, const Partials& partials, cudaStream_t stream) {
  const auto with_columns = [&]<int kColumns>(std::integral_constant<int, kColumns>) {
    call.head_dim == E ? launch<T, E, kColumns, true>(call, most, partials, stream) : launch<T, E, kColumns, false>(call, most, partials, stream);
  };
  if constexpr (E <= 128) {
    if (call.q.cols / call.k.cols > 8) return with_columns(std::integral_constant<int, 2>{});
  }
  with_columns(std::integral_constant<int, 1>{});
}

}  // namespace

std::int64_t decode_splits(const AttentionForward& call) { return extent_of(call).splits; }

std::size_t decode_room(const AttentionForward& call) {
  return static_cast<std::size_t>(slots_of(call, extent_of(call)) * (call.head_dim + 2)) * sizeof(float);
}

void attention_decode(const AttentionForward& call, const Tensor& room, cudaStream_t stream) {
  const Extent most = extent_of(call);
  const auto group = static_cast<int>(call.q.cols / call.k.cols);
  Partials partials{nullptr, nullptr, most.splits, most.queries * group};
  if (const std::int64_t slots = slots_of(call, most); slots > 0) {
    partials.sums = static_cast<float*>(room.data);  // rows of 32 bytes or a multiple, so what stands behind them is aligned
    partials.stats = reinterpret_cast<float2*>(partials.sums + slots * call.head_dim);
  }
  with_half(call.q.dtype, [&]<class T>(T) {
    if (call.head_dim <= 64) launch<T, 64>(call, most, partials, stream);
    else if (call.head_dim <= 128) launch<T, 128>(call, most, partials, stream);
    else launch<T, 256>(call, most, partials, stream);
  });
  if (most.splits > 1) merge_splits(call, partials, stream);
  check_launch("attention_decode");
}

}  // namespace pipelora::cuda
