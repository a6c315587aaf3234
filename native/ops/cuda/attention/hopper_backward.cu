// Attention's backward pass on Hopper: which kernels a call takes, and that of short rows, whose warpgroups work alone.
#include <algorithm>

#include "ops/cuda/attention/hopper_backward.cuh"

namespace pipelora::cuda {

namespace {

// dk and dv of 64 keys, over all queries that see them and all heads that share them; dq too of rows whose keys these are.
template <class T, int E>
__global__ void __launch_bounds__(128, 2)
    short_key_grad_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<const T> out, Side<const T> dout, const float* lse,
                    std::int64_t lse_stride, const float* delta, std::int64_t delta_stride, Side<T> dq, Side<T> dk, Side<T> dv, Shape shape,
                    Rotary rotary) {
#ifdef PIPELORA_HOPPER
  constexpr int kThreads = 128, kTileBytes = kTile * E * 2, kStageBytes = 2 * kTileBytes;
  char* shared = aligned_shared();
  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t k_tile = shared_address(shared), v_tile = k_tile + kTileBytes, stages = v_tile + kTileBytes;
  const int ds_at = 2 * kTileBytes + 2 * kStageBytes;  // of a whole row: [keys, queries]
  float* lse_delta = reinterpret_cast<float*>(shared + ds_at + ScoreGrads::kBytes);  // [2 stages][lse, delta][kTile]

  const KeyWork<kTile> work(shape, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
  const int kv_head = work.kv_head, first_query = work.first_query, queries = work.queries, first_key = work.first_key, keys = work.keys;
  const int k0 = work.k0, offset = work.offset();
  const bool whole = whole_row<1>(keys);
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  const int own = thread / 32 * 16;

  load_rows<E, kTile, kThreads>(k_tile, k.head(first_key, kv_head, shape.width), k.stride, k0, keys, shape.width, thread);
  load_rows<E, kTile, kThreads>(v_tile, v.head(first_key, kv_head, shape.width), v.stride, k0, keys, shape.width, thread);

  const auto fetch = [&](int step, int stage) {
    const int head = work.head(shape, step), first = work.first(step);
    load_rows<E, kTile, kThreads>(stages + stage * kStageBytes, q.head(first_query, head, shape.width), q.stride, first, queries, shape.width, thread);
    load_rows<E, kTile, kThreads>(stages + stage * kStageBytes + kTileBytes, dout.head(first_query, head, shape.width), dout.stride, first,
                                  queries, shape.width, thread);
    if (thread < kTile) {
      const bool valid = first + thread < queries;
      const std::int64_t row = first_query + first + thread;
      lse_delta[(stage * 2) * kTile + thread] = valid ? lse[head * lse_stride + row] * kLog2E : INFINITY;
      if (!whole) lse_delta[(stage * 2 + 1) * kTile + thread] = valid ? delta[head * delta_stride + row] : 0.0f;
    }
    if (whole) {
      const int row = own + lane / 2;
      const float sum = row_delta(out.head(first_query, head, shape.width) + row * out.stride,
                                  dout.head(first_query, head, shape.width) + row * dout.stride, row < queries ? shape.width : 0);
      if (lane % 2 == 0) lse_delta[(stage * 2 + 1) * kTile + row] = sum;
    }
  };
  if (work.steps > 0) fetch(0, 0);
  commit_copies();

  const float scale = shape.scale * kLog2E;
  float dk_sums[E / 8][4] = {}, dv_sums[E / 8][4] = {};
  const int behind = offset + quad * 2 - (k0 + own + g);  // before query 0, the thread's first row
  int stage = 0;
  for (int step = 0; step < work.steps; ++step, stage ^= 1) {
    wait_copies<0>();
    fence_shared();
    __syncthreads();
    if (step + 1 < work.steps) {
      fetch(step + 1, stage ^ 1);
      commit_copies();
    }
    const int first = work.first(step);
    if (offset + first + kTile - 1 < k0) continue;
    const std::uint32_t q_tile = stages + stage * kStageBytes, dout_tile = q_tile + kTileBytes;
    const float* lse2 = lse_delta + stage * 2 * kTile;
    const float* deltas = lse2 + kTile;
    float p[8][4], dp[8][4];
    wgmma_hold(p);
    wgmma_hold(dp);
    wgmma_fence();
    product_transposed<E, kTile, kTile, T>(p, k_tile, 0, q_tile);
    wgmma_commit();
    product_transposed<E, kTile, kTile, T>(dp, v_tile, 0, dout_tile);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(p);
    const bool unmasked = offset + first >= k0 + kTile - 1 && shape.window == 0;
    scores_to_p(p, lse2, scale, unmasked, behind + first, shape.window);
    std::uint32_t fragments[4][4];
    pack_fragments<T>(fragments, p);
    wgmma_wait<0>();
    wgmma_hold(dp);
    wgmma_hold(fragments);
    wgmma_hold(dv_sums);
    wgmma_fence();
    product_rows<E, T>(dv_sums, fragments, dout_tile);
    wgmma_commit();
    score_grad(p, dp, deltas);
    std::uint32_t ds[4][4];
    pack_fragments<T>(ds, p);
    if (whole) {
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          *reinterpret_cast<std::uint32_t*>(shared + ds_at + place<kTile>(own + g + i % 2 * 8, 2 * kk + i / 2) + quad * 4) = ds[kk][i];
        }
      }
      fence_shared();
    }
    wgmma_hold(ds);
    wgmma_hold(dk_sums);
    wgmma_fence();
    product_rows<E, T>(dk_sums, ds, q_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(dk_sums);
    wgmma_hold(dv_sums);
    wgmma_hold(fragments);
    wgmma_hold(ds);
    if (whole) {
      __syncthreads();  // all dS are written, and q has been read
      const int head = kv_head * shape.group + step;
      float dq_sums[E / 8][4];
      wgmma_hold(dq_sums);
      wgmma_fence();
      product_of_rows<E, T>(dq_sums, k_tile + ds_at, k_tile, false);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(dq_sums);
      inverse_rotary<E>(dq_sums, rotary, first_query, own, queries);
      write_rows<E, kTile, T>(shared + 2 * kTileBytes + stage * kStageBytes, own, dq_sums, shape.scale, shape.scale,
                              dq.head(first_query, head, shape.width), dq.stride, own, queries, shape.width);
    }
  }
  wait_copies<0>();
  __syncthreads();
  inverse_rotary<E>(dk_sums, rotary, first_key, k0 + own, keys);
  write_rows<E, kTile, T>(shared, own, dk_sums, shape.scale, shape.scale, dk.head(first_key, kv_head, shape.width), dk.stride, k0 + own,
                          keys, shape.width);
  write_rows<E, kTile, T>(shared + kTileBytes, own, dv_sums, 1.0f, 1.0f, dv.head(first_key, kv_head, shape.width), dv.stride, k0 + own,
                          keys, shape.width);
#endif
}

template <class T, int E>
void launch_short(const AttentionBackward& call, const Tensor& delta, const Shape& shape, cudaStream_t stream) {
  const std::size_t bytes = 6 * kTile * E * 2 + ScoreGrads::kBytes + 4 * kTile * sizeof(float) + kAlignmentBytes;
  const auto kernel = short_key_grad_kernel<T, E>;
  allow_shared(kernel, bytes);
  const dim3 grid(static_cast<unsigned>(call.k.cols / call.head_dim), static_cast<unsigned>(key_tiles(*call.sequences, kTile)));
  kernel<<<grid, 128, bytes, stream>>>(side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<const T>(call.out),
                                       side<const T>(call.dout), call.lse.as<float>(), call.lse.stride, delta.as<float>(), delta.stride,
                                       side<T>(call.dq), side<T>(call.dk), side<T>(call.dv), shape, rotary_of(call));
}

/// dk, dv and dq of as many of k's heads at a time as have their dS in `room`, turns as even as may be.
void backward_by_ds(const AttentionBackward& call, const Tensor& delta, const Tensor& room, const Shape& shape, int heads, cudaStream_t stream) {
  ScoreGrads ds{room.as<char>(), score_tiles(*call.sequences), 0};
  const std::int64_t each = ds.tiles * shape.group * ScoreGrads::kBytes;
  const int most = static_cast<int>(std::min<std::int64_t>(heads, static_cast<std::int64_t>(room.bytes()) / each));
  const int turns = (heads + most - 1) / most, together = (heads + turns - 1) / turns;
  row_deltas(call, delta, stream);
  for (int first = 0; first < heads; first += together) {
    const int count = std::min(together, heads - first);
    ds.first_head = first * shape.group;
    long_key_grad(call, delta, shape, ds, count, stream);
    query_grad_of(ds, call, shape, count * shape.group, stream);
  }
}

}  // namespace

// A block of 128 keys goes through up to `longest` tiles of queries, half as many on average: heads enough at a time that the
// longest do not outlast the others.
AttentionRoom attention_room(const AttentionBackward& call) {
  const Sequences& sequences = *call.sequences;
  std::int64_t longest = 0;
  for (std::size_t s = 0; s < static_cast<std::size_t>(sequences.count()); ++s) {
    const std::int32_t keys = sequences.key_length.host[s];
    if (keys != sequences.cu_queries.host[s + 1] - sequences.cu_queries.host[s]) return {};
    longest = std::max<std::int64_t>(longest, (keys + kTile - 1) / kTile);
  }
  const std::int64_t tiles = score_tiles(sequences), heads = call.k.cols / call.head_dim, group = call.q.cols / call.k.cols;
  const std::int64_t wanted = longest * processors() * 3 / 2, each = std::max<std::int64_t>(1, tiles * group / 2);
  const std::int64_t least = std::min(heads, (wanted + each - 1) / each), bytes = tiles * group * ScoreGrads::kBytes;
  return {static_cast<std::size_t>(least * bytes), static_cast<std::size_t>(heads * bytes)};
}

void attention_backward_hopper(const AttentionBackward& call, bool long_rows, const Tensor& delta, const Tensor& room, cudaStream_t stream) {
  const Shape shape = shape_of(call);
  const auto heads = static_cast<int>(call.k.cols / call.head_dim);
  if (room) {
    backward_by_ds(call, delta, room, shape, heads, stream);
  } else {
    query_grad(call, delta, shape, long_rows, stream);
    if (call.head_dim > 128)
      wide_key_grad(call, delta, shape, stream);
    else if (long_rows)
      long_key_grad(call, delta, shape, ScoreGrads{}, heads, stream);
    else
      with_half(call.q.dtype, [&]<class T>(T) {
        call.head_dim <= 64 ? launch_short<T, 64>(call, delta, shape, stream) : launch_short<T, 128>(call, delta, shape, stream);
      });
  }
  check_launch("attention_backward");
}

}  // namespace pipelora::cuda
