// Attention's gradients on tensor cores, blocked as in FlashAttention-2 (Dao, 2023): 16-bit inputs, f32 sums, heads of up to
// 256 columns. Each warp owns 16 queries (dq) or 16 keys (dk, dv) and keeps its sums in registers; tiles of the other side pass
// through shared memory, two deep where a block may have that much. dq and dk/dv are made by two kernels, each in a fixed order: no
// atomics. Sums of 256 columns fill a thread's registers, so dk and dv are made one after the other there.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/tiles.cuh"

namespace pipelora::cuda {

namespace {

// dq, and delta = rowsum(dout * out) for the kernel below.
template <class T, int E, int kWarps, int kStages, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32)
    query_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout,
                      const float* lse, std::int64_t lse_stride, float* delta, std::int64_t delta_stride, Side<T> dq, Shape shape) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kRows = kWarps * 16, kThreads = kWarps * 32;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2;
  const std::uint32_t base = shared_address(shared);
  const std::uint32_t q_tile = base, dout_tile = base + kOwnBytes, kv_tiles = base + 2 * kOwnBytes;

  const Place place = locate<false>(shape.table, static_cast<int>(blockIdx.y), kRows);
  const int s = place.sequence, head = static_cast<int>(blockIdx.x);
  const int first_query = shape.table.cu_queries[s], queries = shape.table.cu_queries[s + 1] - first_query;
  const int keys = shape.table.key_length[s], offset = keys - queries;
  const int q0 = (place.tiles - 1 - place.tile) * kRows;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;

  const T* k_rows = k.head(shape.table.key_start[s], head / shape.group, shape.width);
  const T* v_rows = v.head(shape.table.key_start[s], head / shape.group, shape.width);
  const int key_end = min(keys, offset + q0 + kRows);
  const int key_begin = shape.window > 0 ? max(0, offset + q0 - shape.window + 1) / kTile * kTile : 0;

  load_tile<E, kThreads>(q_tile, q.head(first_query, head, shape.width), q.stride, q0, kRows, queries, shape);
  load_tile<E, kThreads>(dout_tile, dout.head(first_query, head, shape.width), dout.stride, q0, kRows, queries, shape);
  const auto fetch = [&](int key, int stage) {
    load_tile<E, kThreads>(kv_tiles + stage * 2 * kTileBytes, k_rows, k.stride, key, kTile, keys, shape);
    load_tile<E, kThreads>(kv_tiles + stage * 2 * kTileBytes + kTileBytes, v_rows, v.stride, key, kTile, keys, shape);
    commit_copies();
  };
  if (kStages == 2) fetch(key_begin, 0);

  // delta of the warp's rows: two lanes a row.
  float deltas[2], lse2[2];
  {
    const int row = q0 + warp * 16 + lane / 2;
    float sum = 0;
    if (row < queries) {
      const T* a = out.head(first_query, head, shape.width) + row * out.stride;
      const T* b = dout.head(first_query, head, shape.width) + row * dout.stride;
      if (shape.aligned) {
#pragma unroll 4
        for (int c = lane % 2 * 8; c < shape.width; c += 16) {
          const Floats<8> x = load<8>(a + c), y = load<8>(b + c);
#pragma unroll
          for (int i = 0; i < 8; ++i) sum += x.v[i] * y.v[i];
        }
      } else {
        for (int c = lane % 2; c < shape.width; c += 2) sum += widen(a[c]) * widen(b[c]);
      }
    }
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
    if (lane % 2 == 0 && row < queries) delta[head * delta_stride + first_query + row] = sum;
    deltas[0] = __shfl_sync(0xFFFFFFFFu, sum, 2 * g);
    deltas[1] = __shfl_sync(0xFFFFFFFFu, sum, 2 * (g + 8));
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = q0 + warp * 16 + g + half * 8;
    lse2[half] = row < queries ? lse[head * lse_stride + first_query + row] * kLog2E : INFINITY;
  }

  const float scale = shape.scale * kLog2E;
  float sums[E / 8][4] = {};
  const int position0 = offset + q0 + warp * 16 + g;
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
    float p[8][4] = {}, dp[8][4] = {};
    product_transposed<E, T>(p, q_tile, warp * 16, k_tile);
    if constexpr (kCapped) cap_scores(p, shape.cap);
    product_transposed<E, T>(dp, dout_tile, warp * 16, v_tile);
    const bool whole = key + kTile - 1 <= offset + q0 + warp * 16 && shape.window == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float weight = exp2_fast(fmaf(p[n][i], scale, -lse2[i / 2]));
        if (!whole) {
          const int j = key + n * 8 + quad * 2 + i % 2, position = position0 + i / 2 * 8;
          if (j > position || (shape.window > 0 && position - j >= shape.window)) weight = 0;
        }
        const float derivative = kCapped ? cap_derivative(p[n][i], shape.cap) : 1.0f;
        p[n][i] = weight * (dp[n][i] - deltas[i / 2]) * derivative;
      }
    }
    product_rows<E, T>(sums, p, k_tile);
    __syncthreads();
  }
  write_rows<E, T>(shared, q_tile, warp * 16, sums, shape.scale, shape.scale, dq.head(first_query, head, shape.width), dq.stride,
                   q0 + warp * 16, queries, shape);
}

// dk and dv of 16 keys a warp, over all queries that see them and all heads that share them.
template <class T, int E, int kWarps, int kStages, bool kMakesK, bool kMakesV, bool kCapped>
__global__ void __launch_bounds__(kWarps * 32)
    key_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> dout, const float* lse,
                    std::int64_t lse_stride, const float* delta, std::int64_t delta_stride, Side<T> dk, Side<T> dv, Shape shape) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kRows = kWarps * 16, kThreads = kWarps * 32;
  constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStageBytes = 2 * kTileBytes;
  const std::uint32_t base = shared_address(shared);
  const std::uint32_t k_tile = base, v_tile = base + kOwnBytes, stages = base + 2 * kOwnBytes;
  float* lse_delta = reinterpret_cast<float*>(shared + 2 * kOwnBytes + kStages * kStageBytes);  // [stages][lse, delta][kTile]

  const KeyWork<kRows> work(shape, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
  const int kv_head = work.kv_head, first_query = work.first_query, queries = work.queries, first_key = work.first_key, keys = work.keys;
  const int k0 = work.k0, offset = work.offset();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;

  load_tile<E, kThreads>(k_tile, k.head(first_key, kv_head, shape.width), k.stride, k0, kRows, keys, shape);
  load_tile<E, kThreads>(v_tile, v.head(first_key, kv_head, shape.width), v.stride, k0, kRows, keys, shape);

  const auto fetch = [&](int step, int stage) {
    const int head = work.head(shape, step), first = work.first(step);
    load_tile<E, kThreads>(stages + stage * kStageBytes, q.head(first_query, head, shape.width), q.stride, first, kTile, queries, shape);
    load_tile<E, kThreads>(stages + stage * kStageBytes + kTileBytes, dout.head(first_query, head, shape.width), dout.stride,
                           first, kTile, queries, shape);
    commit_copies();
    for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kThreads) {
      const bool valid = first + i < queries;
      const std::int64_t row = first_query + first + i;
      lse_delta[(stage * 2) * kTile + i] = valid ? lse[head * lse_stride + row] * kLog2E : INFINITY;
      lse_delta[(stage * 2 + 1) * kTile + i] = valid ? delta[head * delta_stride + row] : 0.0f;
    }
  };
  if (kStages == 2 && work.steps > 0) fetch(0, 0);

  const float scale = shape.scale * kLog2E;
  float dk_sums[kMakesK ? E / 8 : 1][4] = {}, dv_sums[kMakesV ? E / 8 : 1][4] = {};
  const int key0 = k0 + warp * 16 + g;
  int stage = 0;
  for (int step = 0; step < work.steps; ++step, stage ^= kStages - 1) {
    if (kStages == 1) {
      fetch(step, 0);
      wait_copies<0>();
    } else if (step + 1 < work.steps) {
      fetch(step + 1, stage ^ 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    const int first = work.first(step);
    const std::uint32_t q_tile = stages + stage * kStageBytes, dout_tile = q_tile + kTileBytes;
    const float* lse2 = lse_delta + stage * 2 * kTile;
    const float* deltas = lse2 + kTile;
    float p[8][4] = {};
    product_transposed<E, T>(p, k_tile, warp * 16, q_tile);
    float derivatives[kMakesK && kCapped ? 8 : 1][4];
    if constexpr (kCapped) {
      cap_scores(p, shape.cap);
      if constexpr (kMakesK) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) derivatives[n][i] = cap_derivative(p[n][i], shape.cap);
        }
      }
    }
    const bool whole = offset + first >= k0 + warp * 16 + 15 && shape.window == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + quad * 2 + i % 2;
        float weight = exp2_fast(fmaf(p[n][i], scale, -lse2[column]));
        if (!whole) {
          const int position = offset + first + column, j = key0 + i / 2 * 8;
          if (j > position || (shape.window > 0 && position - j >= shape.window)) weight = 0;
        }
        p[n][i] = weight;
      }
    }
    if constexpr (kMakesV) product_rows<E, T>(dv_sums, p, dout_tile);
    if constexpr (kMakesK) {
      float dp[8][4] = {};
      product_transposed<E, T>(dp, v_tile, warp * 16, dout_tile);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - deltas[n * 8 + quad * 2 + i % 2];
      }
      if constexpr (kCapped) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) p[n][i] *= derivatives[n][i];
        }
      }
      product_rows<E, T>(dk_sums, p, q_tile);
    }
    __syncthreads();
  }
  if (work.steps == 0) {
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }
  if constexpr (kMakesK)
    write_rows<E, T>(shared, k_tile, warp * 16, dk_sums, shape.scale, shape.scale, dk.head(first_key, kv_head, shape.width), dk.stride,
                     k0 + warp * 16, keys, shape);
  if constexpr (kMakesV)
    write_rows<E, T>(shared + kOwnBytes, v_tile, warp * 16, dv_sums, 1.0f, 1.0f, dv.head(first_key, kv_head, shape.width), dv.stride,
                     k0 + warp * 16, keys, shape);
}

template <class T, int E, int kWarps, int kStages, bool kCapped>
void launch_kind(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream) {
  constexpr int kRows = kWarps * 16;
  const Shape shape = shape_of(call);
  const std::size_t query_bytes = (2 * kRows + kStages * 2 * kTile) * E * 2;
  const std::size_t key_bytes = query_bytes + kStages * 2 * kTile * sizeof(float);
  const auto query_grad = query_grad_kernel<T, E, kWarps, kStages, kCapped>;
  allow_shared(query_grad, query_bytes);
  const auto q = side<const T>(call.q), k = side<const T>(call.k), v = side<const T>(call.v), out = side<const T>(call.out),
             dout = side<const T>(call.dout);
  const dim3 grid(static_cast<unsigned>(call.q.cols / call.head_dim), static_cast<unsigned>(query_tiles(*call.sequences, kRows)));
  query_grad<<<grid, kWarps * 32, query_bytes, stream>>>(q, k, v, out, dout, call.lse.as<float>(), call.lse.stride,
                                                         delta.as<float>(), delta.stride, side<T>(call.dq), shape);
  const dim3 key_grid(static_cast<unsigned>(call.k.cols / call.head_dim), static_cast<unsigned>(key_tiles(*call.sequences, kRows)));
  const auto key_grad = [&](auto* kernel) {
    allow_shared(kernel, key_bytes);
    kernel<<<key_grid, kWarps * 32, key_bytes, stream>>>(q, k, v, dout, call.lse.as<float>(), call.lse.stride,
                                                         delta.as<float>(), delta.stride, side<T>(call.dk), side<T>(call.dv), shape);
  };
  if constexpr (E <= 128) {
    key_grad(key_grad_kernel<T, E, kWarps, kStages, true, true, kCapped>);
  } else {
    key_grad(key_grad_kernel<T, E, kWarps, kStages, false, true, kCapped>);
    key_grad(key_grad_kernel<T, E, kWarps, kStages, true, false, kCapped>);
  }
}

template <class T, int E, int kWarps, int kStages>
void launch(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream) {
  if (call.cap > 0)
    launch_kind<T, E, kWarps, kStages, true>(call, delta, stream);
  else
    launch_kind<T, E, kWarps, kStages, false>(call, delta, stream);
}

}  // namespace

void attention_backward_tiles(const AttentionBackward& call, const AttentionTiles& tiles, const Tensor& delta, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    switch (tiles.columns) {
      case 64: return launch<T, 64, 4, 2>(call, delta, stream);
      case 128: return launch<T, 128, 4, 2>(call, delta, stream);
      default: return tiles.stages == 2 ? launch<T, 256, 4, 2>(call, delta, stream) : launch<T, 256, 2, 1>(call, delta, stream);
    }
  });
  check_launch("attention_backward");
}

}  // namespace pipelora::cuda
