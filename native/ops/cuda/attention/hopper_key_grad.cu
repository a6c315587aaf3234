// Gradients of the keys and values of long rows on Hopper: FlashAttention-2's loops (Dao 2023) in FlashAttention-3's roles
// (Shah et al. 2024). Warps that only load keep two warpgroups of 64 keys each in tiles of 64 queries; neither waits for the
// other, so one computes P while the other multiplies. Every sum is made in a fixed order.
#include "ops/cuda/attention/hopper_backward.cuh"
#include "ops/cuda/device/warp_roles.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kRows = 128;  // keys of a block
constexpr int kLoaders = 128, kThreads = kLoaders + 256, kStages = 3;

template <int E>
struct Layout {
  static constexpr int kTileBytes = kTile * E * 2, kOwnBytes = kRows * E * 2, kStageBytes = 2 * kTileBytes;
  // k, v, the stages of q and dout, two tiles of dS a warpgroup, the stages of lse and delta, the barriers
  static constexpr int kStagesAt = 2 * kOwnBytes, kScoreGrads = kStagesAt + kStages * kStageBytes, kLseDelta = kScoreGrads + 4 * ScoreGrads::kBytes,
                       kBarriers = kLseDelta + kStages * 2 * kTile * 4, kBytes = kBarriers + (2 * kStages + 1) * 8;
};

#ifdef PIPELORA_HOPPER

/// Addresses of the barriers: a stage is full (of what was loaded) or empty (both warpgroups are done with it).
struct Barriers {
  std::uint32_t first;
  __device__ std::uint32_t full(std::uint32_t stage) const { return first + stage * 8; }
  __device__ std::uint32_t empty(std::uint32_t stage) const { return first + (kStages + stage) * 8; }
  __device__ std::uint32_t own() const { return first + 2 * kStages * 8; }
};

using Work = KeyWork<kRows>;

/// kBytes from shared to global memory by the one thread that `sends`: what was written before fence_shared() and a barrier. No
/// branch: around one, products under way would be waited for.
template <int kBytes>
__device__ inline void send(bool sends, char* to, std::uint32_t from) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
      "@p cp.async.bulk.commit_group;\n}\n" ::"l"(to),
      "r"(from), "n"(kBytes), "r"(static_cast<int>(sends))
      : "memory");
}
/// Until all but the last kLeft that this thread has sent have been read.
template <int kLeft>
__device__ inline void wait_sent() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kLeft) : "memory");
}

template <class T, int E>
__device__ inline void load_all(const KeyInputs<T>& in, const Shape& shape, const Work& work, char* shared) {
  using L = Layout<E>;
  const std::uint32_t base = shared_address(shared);
  const Barriers barriers{base + L::kBarriers};
  const int thread = static_cast<int>(threadIdx.x);
  const auto loaded = [](std::uint32_t barrier) {
    commit_copies();
    wait_copies<0>();
    fence_shared();
    barrier_arrive(barrier);
  };
  load_rows<E, kRows, kLoaders>(base, in.k.head(work.first_key, work.kv_head, shape.width), in.k.stride, work.k0, work.keys, shape.width, thread);
  load_rows<E, kRows, kLoaders>(base + L::kOwnBytes, in.v.head(work.first_key, work.kv_head, shape.width), in.v.stride, work.k0, work.keys,
                                shape.width, thread);
  loaded(barriers.own());
  Ring<kStages> ring;
  for (int step = 0; step < work.steps; ++step) {
    const int head = work.head(shape, step), first = work.first(step);
    const std::uint32_t to = base + L::kStagesAt + ring.stage * L::kStageBytes;
    barrier_wait(barriers.empty(ring.stage), ring.parity ^ 1);
    load_rows<E, kTile, kLoaders>(to, in.q.head(work.first_query, head, shape.width), in.q.stride, first, work.queries, shape.width, thread);
    load_rows<E, kTile, kLoaders>(to + L::kTileBytes, in.dout.head(work.first_query, head, shape.width), in.dout.stride, first, work.queries,
                                  shape.width, thread);
    if (thread < kTile) {
      float* lse_delta = reinterpret_cast<float*>(shared + L::kLseDelta) + ring.stage * 2 * kTile;
      const bool valid = first + thread < work.queries;
      const std::int64_t row = work.first_query + first + thread;
      lse_delta[thread] = valid ? in.lse[head * in.lse_stride + row] * kLog2E : INFINITY;
      lse_delta[kTile + thread] = valid ? in.delta[head * in.delta_stride + row] : 0.0f;
    }
    loaded(barriers.full(ring.stage));
    ring.step();
  }
}

template <class T, int E, bool kKeep>
__device__ inline void compute_all(Side<T> dk, Side<T> dv, const Shape& shape, const Rotary& rotary, const Work& work, const ScoreGrads& kept,
                                   char* shared) {
  using L = Layout<E>;
  const std::uint32_t base = shared_address(shared);
  const Barriers barriers{base + L::kBarriers};
  const int thread = static_cast<int>(threadIdx.x) - kLoaders, group = thread / 128, lane = thread % 32, g = lane / 4, quad = lane % 4;
  const int own = thread / 32 * 16, k0 = work.k0, offset = work.offset();
  const auto meet = [&] { named_wait(1 + group, 128); };
  // Every lane for itself: one for its warp would be enough, but racecheck does not follow that, and it is no sooner.
  const auto done_with = [&](std::uint32_t stage) { barrier_arrive(barriers.empty(stage)); };
  const float scale = shape.scale * kLog2E;
  const std::uint32_t k_tile = base, v_tile = base + L::kOwnBytes;
  float dk_sums[E / 8][4] = {}, dv_sums[E / 8][4] = {};
  const int behind = offset + quad * 2 - (k0 + own + g);  // before query 0, the thread's first row
  std::uint32_t ds[4][4] = {};
  Ring<kStages> ring;
  [[maybe_unused]] int turn = 0;  // of the two tiles of dS; a step may make none
  int held = -1;  // the stage whose q the last product of dk may still read
  // Where the warp's dS of the step go: tile after tile, those that it does not make too, then to the next head's.
  const int rows = own % 64 * kPanelRow;
  [[maybe_unused]] char* to = nullptr;
  if constexpr (kKeep) {
    const std::int64_t before = score_tiles_before(shape.table, work.sequence);
    const int key = k0 / kTile;
    to = kept.at(work.kv_head * shape.group, before, (work.queries + kTile - 1) / kTile, key + group, key) + rows;
  }
  int first = work.query_begin;
  barrier_wait(barriers.own(), 0);
  const auto next = [&] {
    ring.step();
    first += kTile;
    if (kKeep) to += ScoreGrads::kBytes;
    if (first < work.query_begin + work.per_head * kTile) return;
    first = work.query_begin;
    if (kKeep) to += (kept.tiles - work.per_head) * ScoreGrads::kBytes;
  };
  for (int step = 0; step < work.steps; ++step, next()) {
    barrier_wait(barriers.full(ring.stage), ring.parity);
    if (offset + first + kTile - 1 < k0 + group * 64) {
      done_with(ring.stage);
      continue;
    }
    const std::uint32_t q_tile = base + L::kStagesAt + ring.stage * L::kStageBytes, dout_tile = q_tile + L::kTileBytes;
    const float* lse2 = reinterpret_cast<const float*>(shared + L::kLseDelta) + ring.stage * 2 * kTile;
    const float* deltas = lse2 + kTile;
    float p[8][4], dp[8][4];
    wgmma_hold(p);
    wgmma_hold(dp);
    wgmma_fence();
    product_transposed<E, kRows, kTile, T>(p, k_tile, group * 64, q_tile);
    wgmma_commit();
    product_transposed<E, kRows, kTile, T>(dp, v_tile, group * 64, dout_tile);
    wgmma_commit();
    wgmma_wait<1>();  // the last step's dk too
    wgmma_hold(p);
    wgmma_hold(dk_sums);
    wgmma_hold(ds);
    if (held >= 0) done_with(static_cast<std::uint32_t>(held));
    held = static_cast<int>(ring.stage);
    const bool unmasked = offset + first >= k0 + group * 64 + 63 && shape.window == 0;
    scores_to_p(p, lse2, scale, unmasked, behind + first, shape.window);
    std::uint32_t weights[4][4];
    pack_fragments<T>(weights, p);
    wgmma_wait<0>();
    wgmma_hold(dp);
    wgmma_hold(weights);
    wgmma_hold(dv_sums);
    wgmma_fence();
    product_rows<E, T>(dv_sums, weights, dout_tile);
    wgmma_commit();
    score_grad(p, dp, deltas);
    pack_fragments<T>(ds, p);
    wgmma_hold(ds);
    wgmma_hold(dk_sums);
    wgmma_fence();
    product_rows<E, T>(dk_sums, ds, q_tile);
    wgmma_commit();
    if constexpr (kKeep) {  // each warp its 16 rows
      const int at = L::kScoreGrads + (group * 2 + turn) * ScoreGrads::kBytes;
      turn ^= 1;
      wait_sent<1>();  // what was sent from here before has been read
      __syncwarp();
      // place() of row g; what moves a piece is one bit pattern, and rows 8 further lie 1024 bytes on.
      std::uint32_t piece0 = base + at + rows + g * kPanelRow + (g << 4) + quad * 4;
      asm volatile("" : "+r"(piece0));  // the compiler would keep the address of every piece in registers
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
        for (int i = 0; i < 4; ++i) store_shared((piece0 ^ (2 * kk + i / 2) << 4) + i % 2 * 8 * kPanelRow, ds[kk][i]);
      }
      fence_shared();
      __syncwarp();
      send<16 * kPanelRow>(lane == 0, to, base + at + rows);
    }
    wgmma_wait<1>();
    wgmma_hold(dv_sums);
    wgmma_hold(weights);
  }
  wgmma_wait<0>();
  wgmma_hold(dk_sums);
  wgmma_hold(ds);
  meet();  // k and v have been read
  inverse_rotary<E>(dk_sums, rotary, work.first_key, k0 + own, work.keys);
  write_rows<E, kRows, T>(shared, own, dk_sums, shape.scale, shape.scale, dk.head(work.first_key, work.kv_head, shape.width), dk.stride,
                          k0 + own, work.keys, shape.width);
  write_rows<E, kRows, T>(shared + L::kOwnBytes, own, dv_sums, 1.0f, 1.0f, dv.head(work.first_key, work.kv_head, shape.width), dv.stride,
                          k0 + own, work.keys, shape.width);
  if (kKeep) wait_sent<0>();
}

#endif

template <class T, int E, bool kKeep>
__global__ void __launch_bounds__(kThreads, 1)
    long_key_grad_kernel(KeyInputs<T> in, Side<T> dk, Side<T> dv, Shape shape, Rotary rotary, ScoreGrads kept) {
#ifdef PIPELORA_HOPPER
  using L = Layout<E>;
  char* shared = aligned_shared();
  if (threadIdx.x == 0) {
    const Barriers barriers{shared_address(shared) + L::kBarriers};
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(barriers.full(stage), kLoaders);
      barrier_init(barriers.empty(stage), kThreads - kLoaders);
    }
    barrier_init(barriers.own(), kLoaders);
  }
  __syncthreads();
  const int first_head = kKeep ? kept.first_head / shape.group : 0;
  const Work work(shape, static_cast<int>(blockIdx.y), first_head + static_cast<int>(blockIdx.x));
  if (threadIdx.x < kLoaders) {
    give_registers<24>();
    load_all<T, E>(in, shape, work, shared);
  } else {
    take_registers<240>();
    compute_all<T, E, kKeep>(dk, dv, shape, rotary, work, kept, shared);
  }
#endif
}

template <class T, int E, bool kKeep>
void launch(const AttentionBackward& call, const Tensor& delta, const Shape& shape, const ScoreGrads& kept, int heads, cudaStream_t stream) {
  const auto kernel = long_key_grad_kernel<T, E, kKeep>;
  const std::size_t bytes = Layout<E>::kBytes + kAlignmentBytes;
  allow_shared(kernel, bytes);
  const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(key_tiles(*call.sequences, kRows)));
  const KeyInputs<T> in = key_inputs<T>(call, delta);
  kernel<<<grid, kThreads, bytes, stream>>>(in, side<T>(call.dk), side<T>(call.dv), shape, rotary_of(call), kept);
}

}  // namespace

void long_key_grad(const AttentionBackward& call, const Tensor& delta, const Shape& shape, const ScoreGrads& kept, int heads, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    const auto of_width = [&]<int E>() {
      kept.data != nullptr ? launch<T, E, true>(call, delta, shape, kept, heads, stream)
                           : launch<T, E, false>(call, delta, shape, kept, heads, stream);
    };
    call.head_dim <= 64 ? of_width.template operator()<64>() : of_width.template operator()<128>();
  });
}

}  // namespace pipelora::cuda
