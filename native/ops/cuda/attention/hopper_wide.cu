// Gradients of the keys and values of heads of 129 to 256 columns on Hopper. A thread's registers hold the sums of one of the two: of a block's two
// warpgroups, one makes dv and the other dk of the same 64 keys, each from scores that it computes itself. Tiles of queries and their gradients
// pass through shared memory, two deep. Every sum is made in a fixed order.
#include "ops/cuda/attention/hopper_backward.cuh"
#include "ops/cuda/device/warp_roles.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256, kStages = 2;
constexpr int kColumns = 256;  // of a tile; heads that are narrower are padded with zeros
constexpr int kTileBytes = kTile * kColumns * 2;
// k, v, the stages of q and dout, the stages of lse and delta
constexpr int kStagesAt = 2 * kTileBytes, kLseDelta = kStagesAt + kStages * 2 * kTileBytes, kBytes = kLseDelta + kStages * 2 * kTile * 4;

#ifdef PIPELORA_HOPPER

/// One warpgroup's part: dk or dv.
template <bool kMakesK, class T>
__device__ inline void make_grad(const KeyInputs<T>& in, const Side<T>& to, const Shape& shape, const Rotary& rotary, char* shared) {
  const KeyWork<kTile> work(shape, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, quad = lane % 4, own = thread % 128 / 32 * 16;
  const int k0 = work.k0, offset = work.offset();
  const std::uint32_t k_tile = shared_address(shared), v_tile = k_tile + kTileBytes, stages = k_tile + kStagesAt;
  const auto meet = [] { named_wait(1, kThreads); };

  load_rows<kColumns, kTile, kThreads>(k_tile, in.k.head(work.first_key, work.kv_head, shape.width), in.k.stride, k0, work.keys, shape.width, thread);
  load_rows<kColumns, kTile, kThreads>(v_tile, in.v.head(work.first_key, work.kv_head, shape.width), in.v.stride, k0, work.keys, shape.width, thread);
  const auto fetch = [&](int step, int stage) {
    const int head = work.head(shape, step), first = work.first(step);
    const std::uint32_t at = stages + stage * 2 * kTileBytes;
    load_rows<kColumns, kTile, kThreads>(at, in.q.head(work.first_query, head, shape.width), in.q.stride, first, work.queries, shape.width, thread);
    load_rows<kColumns, kTile, kThreads>(at + kTileBytes, in.dout.head(work.first_query, head, shape.width), in.dout.stride, first, work.queries,
                                         shape.width, thread);
    if (thread < kTile) {
      float* lse_delta = reinterpret_cast<float*>(shared + kLseDelta) + stage * 2 * kTile;
      const bool valid = first + thread < work.queries;
      const std::int64_t row = work.first_query + first + thread;
      lse_delta[thread] = valid ? in.lse[head * in.lse_stride + row] * kLog2E : INFINITY;
      lse_delta[kTile + thread] = valid ? in.delta[head * in.delta_stride + row] : 0.0f;
    }
  };
  if (work.steps > 0) fetch(0, 0);
  commit_copies();

  const float scale = shape.scale * kLog2E;
  const int behind = offset + quad * 2 - (k0 + own + g);  // before query 0, the thread's first row
  float sums[kColumns / 8][4] = {};
  int stage = 0;
  for (int step = 0; step < work.steps; ++step, stage ^= 1) {
    wait_copies<0>();
    fence_shared();
    meet();  // and the stage that is filled now has been read
    if (step + 1 < work.steps) fetch(step + 1, stage ^ 1);
    commit_copies();
    const int first = work.first(step);
    if (offset + first + kTile - 1 < k0) continue;
    const std::uint32_t q_tile = stages + stage * 2 * kTileBytes, dout_tile = q_tile + kTileBytes;
    const float* lse2 = reinterpret_cast<const float*>(shared + kLseDelta) + stage * 2 * kTile;
    float p[8][4];
    [[maybe_unused]] float dp[kMakesK ? 8 : 1][4];
    wgmma_hold(p);
    if constexpr (kMakesK) wgmma_hold(dp);
    wgmma_fence();
    product_transposed<kColumns, kTile, kTile, T>(p, k_tile, 0, q_tile);
    wgmma_commit();
    if constexpr (kMakesK) {
      product_transposed<kColumns, kTile, kTile, T>(dp, v_tile, 0, dout_tile);
      wgmma_commit();
    }
    wgmma_wait<kMakesK ? 1 : 0>();
    wgmma_hold(p);
    const bool unmasked = offset + first >= k0 + kTile - 1 && shape.window == 0;
    scores_to_p(p, lse2, scale, unmasked, behind + first, shape.window);
    if constexpr (kMakesK) {
      wgmma_wait<0>();
      wgmma_hold(dp);
      score_grad(p, dp, lse2 + kTile);
    }
    std::uint32_t weights[4][4];
    pack_fragments<T>(weights, p);
    wgmma_hold(weights);
    wgmma_hold(sums);
    wgmma_fence();
    product_rows<kColumns, T>(sums, weights, kMakesK ? q_tile : dout_tile);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(weights);
  }
  wait_copies<0>();
  meet();  // k and v have been read
  if constexpr (kMakesK) inverse_rotary<kColumns>(sums, rotary, work.first_key, k0 + own, work.keys);
  const float factor = kMakesK ? shape.scale : 1.0f;
  write_rows<kColumns, kTile, T>(shared + (kMakesK ? 0 : kTileBytes), own, sums, factor, factor, to.head(work.first_key, work.kv_head, shape.width), to.stride,
                                 k0 + own, work.keys, shape.width);
}

#endif

template <class T>
__global__ void __launch_bounds__(kThreads, 1) wide_key_grad_kernel(KeyInputs<T> in, Side<T> dk, Side<T> dv, Shape shape, Rotary rotary) {
#ifdef PIPELORA_HOPPER
  char* shared = aligned_shared();
  if (threadIdx.x < 128)
    make_grad<false>(in, dv, shape, rotary, shared);
  else
    make_grad<true>(in, dk, shape, rotary, shared);
#endif
}

}  // namespace

void wide_key_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    const auto kernel = wide_key_grad_kernel<T>;
    const std::size_t bytes = kBytes + kAlignmentBytes;
    allow_shared(kernel, bytes);
    const dim3 grid(static_cast<unsigned>(call.k.cols / call.head_dim), static_cast<unsigned>(key_tiles(*call.sequences, kTile)));
    const KeyInputs<T> in = key_inputs<T>(call, delta);
    kernel<<<grid, kThreads, bytes, stream>>>(in, side<T>(call.dk), side<T>(call.dv), shape, rotary_of(call));
  });
}

}  // namespace pipelora::cuda
