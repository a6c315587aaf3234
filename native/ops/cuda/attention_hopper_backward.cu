// Attention backward for long rows on Hopper: one pass that makes dk and dv of a tile of keys and its share of dq (the five
// products of FlashAttention-2, Dao 2023), in blocks where warps that only load feed two warpgroups of 64 keys each. Shares of
// dq are added in f32 in the order of their tiles of keys, the last keys first: each tile of queries has gates that say how
// many shares it holds, and a share waits for its turn. Blocks take tiles of keys in the same order from a counter, so what a
// share waits for was begun before it, and the wait ends; where tiles of keys run side by side, the later is ahead of the
// earlier at every tile of queries, and hardly any share waits.
#include "ops/cuda/attention.h"
#include "ops/cuda/attention_hopper.cuh"
#include "ops/cuda/attention_items.cuh"
#include "ops/cuda/warp_roles.cuh"

namespace pipelora::cuda {

namespace {

constexpr int E = 128;
constexpr int kKeys = 128, kQueries = kTile;  // rows of an item's tile of keys, and of the tiles of queries that pass
constexpr int kLoaders = 128, kThreads = kLoaders + 256, kStages = 3;
constexpr int kWarps = 8;  // that compute: the gates of a tile of queries in one head
constexpr int kPart = kQueries * E;  // floats of a tile's dq in one head

// k, v, the stages of q and dout, two tiles of slopes, the stages of lse and delta, the items, the barriers
constexpr int kKeyBytes = kKeys * E * 2, kQueryBytes = kQueries * E * 2, kSlopeBytes = kKeys * kQueries * 2;
constexpr int kStageAt = 2 * kKeyBytes, kSlopesAt = kStageAt + kStages * 2 * kQueryBytes, kLevelsAt = kSlopesAt + 2 * kSlopeBytes,
              kItemsAt = kLevelsAt + kStages * 2 * kQueries * 4, kBarriersAt = kItemsAt + 2 * static_cast<int>(sizeof(Item)),
              kBytes = kBarriersAt + (2 * kStages + 2) * 8;

__device__ inline std::uint32_t stage_full(std::uint32_t barriers, std::uint32_t stage) { return barriers + stage * 8; }
__device__ inline std::uint32_t stage_empty(std::uint32_t barriers, std::uint32_t stage) { return barriers + (kStages + stage) * 8; }
__device__ inline std::uint32_t keys_full(std::uint32_t barriers) { return barriers + 2 * kStages * 8; }
__device__ inline std::uint32_t keys_empty(std::uint32_t barriers) { return keys_full(barriers) + 8; }

// Named barriers: of the warps that load, and of those that compute.
constexpr int kLoadersMeet = 1, kComputersMeet = 2;

/// Where shares of dq are added up, in the order of a warpgroup's registers, and the gates: of each warp that adds to a tile
/// of queries in a head, the shares it has added.
struct Parts {
  float* dq;
  std::uint32_t* gates;
  int heads;
  /// Number of tile `tile` of an item's sequence in `head`; no two are the same.
  __device__ std::int64_t number(const Item& item, int tile, int head) const {
    return static_cast<std::int64_t>(item.first_query / kQueries + item.sequence + tile) * heads + head;
  }
};
std::int64_t parts_of(const AttentionBackward& call) {
  return (call.q.rows / kQueries + call.sequences->count()) * (call.q.cols / call.head_dim);
}

/// Tiles of queries that see an item's keys.
struct Range {
  int begin, end;
};
__device__ inline Range tiles_seeing(const Item& item, int window) {
  const int offset = item.keys - item.queries;
  const int end = window > 0 ? min(item.queries, item.row + kKeys - 1 + window - offset) : item.queries;
  return {max(0, item.row - offset) / kQueries, (max(0, end) + kQueries - 1) / kQueries};
}

/// Which of the shares of a tile of queries an item's is.
struct Turn {
  int rank;
  bool last;
};
__device__ inline Turn turn_of(const Item& item, int tile, int window) {
  const int first = item.keys - item.queries + tile * kQueries;  // position of its first row
  const int own = item.row / kKeys, most = min(first + kQueries, item.keys) - 1, least = window > 0 ? max(0, first - window + 1) : 0;
  return {most / kKeys - own, own == least / kKeys};
}

__device__ inline std::uint32_t read_gate(const std::uint32_t* gate) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(gate) : "memory");
  return value;
}
/// Until the warp's shares before this one have been added.
__device__ inline void wait_gate(const std::uint32_t* gate, std::uint32_t rank) {
  if (threadIdx.x % 32 == 0) {
    while (read_gate(gate) != rank) __nanosleep(20);
  }
  __syncwarp();
}
/// What the warp added is seen by who finds the gate so.
__device__ inline void open_gate(std::uint32_t* gate, std::uint32_t shares) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;\n" ::"l"(gate), "r"(shares) : "memory");
}
__device__ inline void put_share(float* to, const float (&share)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(share[0]), "f"(share[1]), "f"(share[2]), "f"(share[3]) : "memory");
}
/// In its turn only, so the order of the sum is fixed.
__device__ inline void add_share(float* to, const float (&share)[4]) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(share[0]), "f"(share[1]), "f"(share[2]), "f"(share[3])
               : "memory");
}

/// delta = rowsum(dout * out), 16 lanes a row of a head; and closed gates.
template <class T>
__global__ void __launch_bounds__(256)
    delta_kernel(Side<const T> out, Side<const T> dout, float* delta, std::int64_t delta_stride, std::int64_t rows, int heads, int width,
                 std::uint32_t* gates, std::int64_t gate_count) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (thread < gate_count) gates[thread] = 0;
  const std::int64_t row = thread / 16 / heads;
  const int head = static_cast<int>(thread / 16 % heads), c = static_cast<int>(thread % 16) * 8;
  float sum = 0;
  if (row < rows && c < width) {
    const Floats<8> x = load<8>(out.head(row, head, width) + c), y = load<8>(dout.head(row, head, width) + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += x.v[i] * y.v[i];
  }
#pragma unroll
  for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
  if (row < rows && c == 0) delta[head * delta_stride + row] = sum;
}

template <class T>
struct Inputs {
  Side<const T> q, k, v, dout;
  const float* lse;
  std::int64_t lse_stride;
  const float* delta;
  std::int64_t delta_stride;
};

/// Half of the loaders bring k, q and lse, the others v, dout and delta.
template <class T>
__device__ inline void load_all(const Inputs<T>& in, const Shape& shape, const Items& items, std::uint32_t* counter, char* shared) {
  const std::uint32_t base = shared_address(shared), barriers = base + kBarriersAt;
  Item* slots = reinterpret_cast<Item*>(shared + kItemsAt);
  const int thread = static_cast<int>(threadIdx.x), half = thread % 64, second = thread / 64;
  const Side<const T> over_keys = second ? in.v : in.k, over_queries = second ? in.dout : in.q;
  int number = thread == 0 ? items.next(counter) : 0;
  Ring<kStages> ring;
  for (std::uint32_t turn = 0;; ++turn) {
    named_wait(kLoadersMeet, kLoaders);  // the item before is loaded, so the one before that has been read
    if (thread < 32) {
      const Item found = items.find_keys(shape.table, __shfl_sync(0xFFFFFFFFu, number, 0), kKeys);
      if (thread == 0) slots[turn & 1] = found;
    }
    named_wait(kLoadersMeet, kLoaders);
    const Item item = slots[turn & 1];
    if (thread == 0 && item.head >= 0) number = items.next(counter);
    barrier_wait(keys_empty(barriers), (turn & 1) ^ 1);
    if (item.head < 0) {
      barrier_arrive(keys_full(barriers));
      return;
    }
    load_rows<E, kKeys, 64>(base + second * kKeyBytes, over_keys.head(item.first_key, item.head, shape.width), over_keys.stride, item.row,
                            item.keys, shape.width, half);
    bool keys_loading = true;
    const auto arrived = [&] {
      commit_copies();
      wait_copies<0>();
      fence_shared();
      if (keys_loading) barrier_arrive(keys_full(barriers));
      keys_loading = false;
    };
    const Range range = tiles_seeing(item, shape.window);
    for (int head = item.head * shape.group; head < (item.head + 1) * shape.group; ++head) {
      const T* from = over_queries.head(item.first_query, head, shape.width);
      const float* levels = second ? in.delta + head * in.delta_stride : in.lse + head * in.lse_stride;
      for (int tile = range.begin; tile < range.end; ++tile) {
        barrier_wait(stage_empty(barriers, ring.stage), ring.parity ^ 1);
        load_rows<E, kQueries, 64>(base + kStageAt + (ring.stage * 2 + second) * kQueryBytes, from, over_queries.stride, tile * kQueries,
                                   item.queries, shape.width, half);
        const int row = tile * kQueries + half;
        float level = second ? 0.0f : INFINITY;
        if (row < item.queries) level = levels[item.first_query + row] * (second ? 1.0f : kLog2E);
        reinterpret_cast<float*>(shared + kLevelsAt)[(ring.stage * 2 + second) * kQueries + half] = level;
        arrived();
        barrier_arrive(stage_full(barriers, ring.stage));
        ring.step();
      }
    }
    if (keys_loading) arrived();  // no query sees them
  }
}

/// Weights of keys that a query does not see become 0: rows are keys, columns queries from position `first` on.
__device__ inline void hide(float (&p)[kQueries / 8][4], int key, int first, int window) {
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int behind = first + n * 8 + i % 2 - (key + i / 2 * 8);
      if (behind < 0 || (window > 0 && behind >= window)) p[n][i] = 0;
    }
  }
}

/// A warp's 16 rows of slopes (of 64 queries, as fragments) to where the product for dq reads them.
__device__ inline void write_slopes(std::uint32_t to, int row, const std::uint32_t (&slopes)[kQueries / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, quad = lane % 4;
  std::uint32_t at = to + static_cast<std::uint32_t>(place<kKeys>(row + g, 0) + quad * 4);
  asm volatile("" : "+r"(at));  // the compiler would keep every piece's address in registers
#pragma unroll
  for (int kk = 0; kk < kQueries / 16; ++kk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows g and g + 8 permute their pieces in the same way
      const std::uint32_t piece = at ^ static_cast<std::uint32_t>(kk * 2 + i / 2) << 4;
      asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(piece + i % 2 * 8 * kPanelRow), "r"(slopes[kk][i]) : "memory");
    }
  }
}

template <class T>
__device__ inline void compute_all(Side<T> dq, Side<T> dk, Side<T> dv, const Shape& shape, const Parts& parts, char* shared) {
  const std::uint32_t base = shared_address(shared), barriers = base + kBarriersAt;
  const int thread = static_cast<int>(threadIdx.x) - kLoaders, group = thread / 128, warp = thread / 32, lane = thread % 32, g = lane / 4,
            quad = lane % 4;
  const int own = warp * 16;  // of this warp's rows of keys
  const float scale = shape.scale * kLog2E;
  Ring<kStages> ring;
  std::uint32_t step = 0;
  for (std::uint32_t turn = 0;; ++turn) {
    barrier_wait(keys_full(barriers), turn & 1);
    const Item item = reinterpret_cast<const Item*>(shared + kItemsAt)[turn & 1];
    if (item.head < 0) return;
    const Range range = tiles_seeing(item, shape.window);
    const int offset = item.keys - item.queries, low = item.row + group * 64;  // the warpgroup's first key
    float dk_sums[E / 8][4] = {}, dv_sums[E / 8][4] = {};
    std::uint32_t* gate = nullptr;  // to be opened when the shares of the step before have been added
    std::uint32_t shares = 0;
    for (int head = item.head * shape.group; head < (item.head + 1) * shape.group; ++head) {
      for (int tile = range.begin; tile < range.end; ++tile, ++step) {
        const std::uint32_t q_tile = base + kStageAt + ring.stage * 2 * kQueryBytes, dout_tile = q_tile + kQueryBytes;
        const float* level = reinterpret_cast<const float*>(shared + kLevelsAt) + ring.stage * 2 * kQueries + quad * 2;
        const float* pull = level + kQueries;
        const int first = offset + tile * kQueries;  // the position of its first query
        float p[kQueries / 8][4], dp[kQueries / 8][4];
        barrier_wait(stage_full(barriers, ring.stage), ring.parity);
        wgmma_hold(p);
        wgmma_hold(dp);
        wgmma_fence();
        product_transposed<E, kKeys, kQueries, T>(p, base, group * 64, q_tile);
        wgmma_commit();
        product_transposed<E, kKeys, kQueries, T>(dp, base + kKeyBytes, group * 64, dout_tile);
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(p);
#pragma unroll
        for (int n = 0; n < kQueries / 8; ++n) {
          const float2 levels = *reinterpret_cast<const float2*>(level + n * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) p[n][i] = exp2_fast(fmaf(p[n][i], scale, i % 2 == 0 ? -levels.x : -levels.y));
        }
        const bool whole = first >= low + 63 && (shape.window == 0 || first + kQueries - 1 - low < shape.window);
        if (!whole) hide(p, item.row + own + g, first + quad * 2, shape.window);
        std::uint32_t weights[kQueries / 16][4], slopes[kQueries / 16][4];
        pack_fragments<T>(weights, p);
        wgmma_hold(weights);
        wgmma_hold(dv_sums);
        wgmma_fence();
        product_rows<E, T>(dv_sums, weights, dout_tile);
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(dp);
#pragma unroll
        for (int n = 0; n < kQueries / 8; ++n) {
          const float2 pulls = *reinterpret_cast<const float2*>(pull + n * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) p[n][i] *= dp[n][i] - (i % 2 == 0 ? pulls.x : pulls.y);
        }
        pack_fragments<T>(slopes, p);
        const std::uint32_t slopes_at = kSlopesAt + (step & 1) * kSlopeBytes;
        write_slopes(base + slopes_at, own, slopes);
        fence_shared();
        wgmma_hold(slopes);
        wgmma_hold(dk_sums);
        wgmma_fence();
        product_rows<E, T>(dk_sums, slopes, q_tile);
        wgmma_commit();

        // 64 of dq's columns a warpgroup, over all the item's keys. The other tile of slopes has been read: both warpgroups
        // waited for its product before they came here.
        named_wait(kComputersMeet, 256);
        float share[8][4];
        wgmma_hold(share);
        wgmma_fence();
        const SharedMatrix left(base + slopes_at, kKeys * kPanelRow), right(base + group * kKeys * kPanelRow, kKeys * kPanelRow);
#pragma unroll
        for (int kk = 0; kk < kKeys / 16; ++kk) {
          wgmma_shared<true, true>(T{}, share, left.at(kk * 16 * kPanelRow), right.at(kk * 16 * kPanelRow), kk > 0);
        }
        wgmma_commit();
        if (gate != nullptr) open_gate(gate, shares);  // while the products run: the shares have long arrived
        const Turn mine = turn_of(item, tile, shape.window);
        const std::int64_t part = parts.number(item, tile, head);
        float* sum = parts.dq + part * kPart + group * (kPart / 2) + thread % 128 * 4;
        gate = parts.gates + part * kWarps + warp;
        shares = static_cast<std::uint32_t>(mine.rank) + 1;
        if (mine.rank > 0) wait_gate(gate, static_cast<std::uint32_t>(mine.rank));
        const auto finish = [&] {
          wgmma_wait<1>();
          wgmma_hold(dk_sums);
          wgmma_hold(dv_sums);
          wgmma_hold(weights);
          wgmma_hold(slopes);
          if (lane == 0) barrier_arrive(stage_empty(barriers, ring.stage));
          ring.step();
          wgmma_wait<0>();
          wgmma_hold(share);
        };
        if (mine.last) {
          gate = nullptr;  // nobody waits for the last
          float4 before[8];
#pragma unroll
          for (int n = 0; n < 8; ++n) before[n] = mine.rank > 0 ? __ldcg(reinterpret_cast<const float4*>(sum + n * 512)) : float4{};
          finish();
          const int row = tile * kQueries + warp % 4 * 16 + g;
          T* to = dq.head(item.first_query + row, head, shape.width) + group * 64 + quad * 2;
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            if (group * 64 + n * 8 >= shape.width) continue;
            const float whole_sum[4] = {share[n][0] + before[n].x, share[n][1] + before[n].y, share[n][2] + before[n].z, share[n][3] + before[n].w};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              if (row + h * 8 < item.queries) {
                *reinterpret_cast<std::uint32_t*>(to + h * 8 * dq.stride + n * 8) =
                    pack2(T{}, whole_sum[2 * h] * shape.scale, whole_sum[2 * h + 1] * shape.scale);
              }
            }
          }
        } else {
          finish();
#pragma unroll
          for (int n = 0; n < 8; ++n) mine.rank == 0 ? put_share(sum + n * 512, share[n]) : add_share(sum + n * 512, share[n]);
        }
      }
    }
    if (gate != nullptr) open_gate(gate, shares);
    if (lane == 0) barrier_arrive(keys_empty(barriers));
    named_wait(kComputersMeet, 256);  // no warp reads slopes any more
    const int row = item.row + own;
    write_rows<E, kKeys, T>(shared + kSlopesAt, own, dk_sums, shape.scale, shape.scale, dk.head(item.first_key, item.head, shape.width),
                            dk.stride, row, item.keys, shape.width);
    write_rows<E, kKeys, T>(shared + kSlopesAt, own, dv_sums, 1.0f, 1.0f, dv.head(item.first_key, item.head, shape.width), dv.stride, row,
                            item.keys, shape.width);
    __syncwarp();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(Inputs<T> in, Side<T> dq, Side<T> dk, Side<T> dv, Shape shape, Parts parts, Items items, std::uint32_t* counter) {
#ifdef PIPELORA_HOPPER
  char* shared = aligned_shared();
  if (threadIdx.x == 0) {
    const std::uint32_t barriers = shared_address(shared) + kBarriersAt;
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(stage_full(barriers, stage), kLoaders);
      barrier_init(stage_empty(barriers, stage), kWarps);
    }
    barrier_init(keys_full(barriers), kLoaders);
    barrier_init(keys_empty(barriers), kWarps);
  }
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    give_registers<40>();
    load_all<T>(in, shape, items, counter, shared);
  } else {
    take_registers<232>();
    compute_all<T>(dq, dk, dv, shape, parts, shared);
  }
#endif
}

}  // namespace

std::int64_t attention_backward_long_floats(const AttentionBackward& call) { return parts_of(call) * (kPart + kWarps); }

void attention_backward_long(const AttentionBackward& call, const BackwardScratch& scratch, cudaStream_t stream) {
  const std::int64_t parts = parts_of(call), rows = call.q.rows, gates = parts * kWarps;
  const int heads = static_cast<int>(call.q.cols / call.head_dim);
  float* sums = scratch.sums.as<float>();
  const Parts places{sums, reinterpret_cast<std::uint32_t*>(sums + parts * kPart), heads};
  const Shape shape = shape_of(call);
  const std::size_t bytes = kBytes + kAlignmentBytes;
  const Items items = items_of(call.k.cols / call.head_dim, key_tiles(*call.sequences, kKeys), call.head_dim);
  with_half(call.q.dtype, [&]<class T>(T) {
    delta_kernel<T><<<blocks_for(std::max(rows * heads * 16, gates), 256), 256, 0, stream>>>(
        side<const T>(call.out), side<const T>(call.dout), scratch.delta.as<float>(), scratch.delta.stride, rows, heads, shape.width,
        places.gates, gates);
    check_launch("attention_backward's row sums");
    const auto kernel = backward_kernel<T>;
    allow_shared(kernel, bytes);
    const Inputs<T> in{side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<const T>(call.dout),
                       call.lse.as<float>(), call.lse.stride, scratch.delta.as<float>(), scratch.delta.stride};
    kernel<<<static_cast<unsigned>(std::min<std::int64_t>(items.count, processors())), kThreads, bytes, stream>>>(
        in, side<T>(call.dq), side<T>(call.dk), side<T>(call.dv), shape, places, items, scratch.counter);
  });
  check_launch("attention_backward");
}

}  // namespace pipelora::cuda
