// Attention forward for long rows on Hopper (FlashAttention-3, Shah et al. 2024): warps that only load keep two warpgroups of
// 64 queries each in tiles of 128 keys. A warpgroup's softmax runs while the tensor cores make its last tile's sum and the
// other warpgroup's scores. Blocks stay and take one tile of queries after the other.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/hopper.cuh"
#include "ops/cuda/attention/items.cuh"
#include "ops/cuda/device/warp_roles.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kRows = 128;  // queries of a block, and keys of a tile
constexpr int kLoaders = 128, kThreads = kLoaders + 256;

template <int E>
struct Layout {
  static constexpr int kStages = E == 64 ? 3 : 2;
  static constexpr int kTileBytes = kRows * E * 2;
  // q, out, the stages of k, the stages of v, the items, the barriers
  static constexpr int kKeys = 2 * kTileBytes, kValues = kKeys + kStages * kTileBytes, kItems = kValues + kStages * kTileBytes,
                       kBarriers = kItems + 2 * static_cast<int>(sizeof(Item)), kBytes = kBarriers + (4 * kStages + 2) * 8;
};

#ifdef PIPELORA_HOPPER

/// Addresses of the barriers: a buffer is full (of what was loaded) or empty (its readers are done).
template <int E>
struct Barriers {
  static constexpr int kStages = Layout<E>::kStages;
  std::uint32_t first;
  __device__ std::uint32_t keys_full(std::uint32_t stage) const { return first + stage * 8; }
  __device__ std::uint32_t keys_empty(std::uint32_t stage) const { return first + (kStages + stage) * 8; }
  __device__ std::uint32_t values_full(std::uint32_t stage) const { return first + (2 * kStages + stage) * 8; }
  __device__ std::uint32_t values_empty(std::uint32_t stage) const { return first + (3 * kStages + stage) * 8; }
  __device__ std::uint32_t queries_full() const { return first + 4 * kStages * 8; }
  __device__ std::uint32_t queries_empty() const { return queries_full() + 8; }
};

// Named barriers.
constexpr int kLoadersMeet = 1, kTurn = 2;  // kTurn + warpgroup: it may give the tensor cores work

/// Tiles of keys that an item's queries see: all but `begin` … `end - 1` are masked.
struct Range {
  int begin, end;
};
__device__ inline Range tiles_seen(const Item& item, int window) {
  const int first = item.keys - item.queries + item.row, end = min(item.keys, first + kRows);
  return {window > 0 ? max(0, first - window + 1) / kRows : 0, (end + kRows - 1) / kRows};
}

template <class T, int E>
__device__ inline void load_all(Side<const T> q, Side<const T> k, Side<const T> v, const Shape& shape, const Items& items,
                                std::uint32_t* counter, char* shared) {
  using L = Layout<E>;
  const std::uint32_t base = shared_address(shared);
  const Barriers<E> barriers{base + L::kBarriers};
  Item* slots = reinterpret_cast<Item*>(shared + L::kItems);
  const int thread = static_cast<int>(threadIdx.x), half = thread % 64;
  const bool loads_keys = thread < 64;
  int number = thread == 0 ? items.next(counter) : 0;
  Ring<L::kStages> ring;
  for (std::uint32_t turn = 0;; ++turn) {
    named_wait(kLoadersMeet, kLoaders);  // the item before is loaded, so the one before that has been read
    if (thread < 32) {
      const Item found = items.find(shape.table, __shfl_sync(0xFFFFFFFFu, number, 0), kRows, shape.group);
      if (thread == 0) slots[turn & 1] = found;
    }
    named_wait(kLoadersMeet, kLoaders);
    const Item item = slots[turn & 1];
    if (thread == 0 && item.head >= 0) number = items.next(counter);
    if (!loads_keys) {
      barrier_wait(barriers.queries_empty(), (turn & 1) ^ 1);
      if (item.head >= 0) {
        load_rows<E, kRows, 64>(base, q.head(item.first_query, item.head, shape.width), q.stride, item.row, item.queries, shape.width, half);
      }
      commit_copies();
      wait_copies<0>();
      fence_shared();
      barrier_arrive(barriers.queries_full());
    }
    if (item.head < 0) return;
    const Range range = tiles_seen(item, shape.window);
    const Side<const T> side = loads_keys ? k : v;
    const T* from = side.head(item.first_key, item.head / shape.group, shape.width);
    const std::uint32_t to = base + (loads_keys ? L::kKeys : L::kValues);
    for (int tile = range.end - 1; tile >= range.begin; --tile) {
      barrier_wait(loads_keys ? barriers.keys_empty(ring.stage) : barriers.values_empty(ring.stage), ring.parity ^ 1);
      load_rows<E, kRows, 64>(to + ring.stage * L::kTileBytes, from, side.stride, tile * kRows, item.keys, shape.width, half);
      commit_copies();
      wait_copies<0>();
      fence_shared();
      barrier_arrive(loads_keys ? barriers.keys_full(ring.stage) : barriers.values_full(ring.stage));
      ring.step();
    }
  }
}

template <class T, int E>
__device__ inline void compute_all(Side<T> out, float* lse, std::int64_t lse_stride, const Shape& shape, char* shared) {
  using L = Layout<E>;
  const std::uint32_t base = shared_address(shared);
  const Barriers<E> barriers{base + L::kBarriers};
  const int thread = static_cast<int>(threadIdx.x) - kLoaders, group = thread / 128, lane = thread % 32, g = lane / 4, quad = lane % 4;
  const int own = thread / 32 * 16;  // of this warp's rows
  const float scale = shape.scale * kLog2E;
  // The warpgroups take turns in giving the tensor cores work, so that one's softmax meets the other's products.
  const auto wait_turn = [&] { named_wait(kTurn + group, 256); };
  const auto pass_turn = [&] { named_arrive(kTurn + (group ^ 1), 256); };
  const auto done_with = [&](std::uint32_t barrier) {
    if (lane == 0) barrier_arrive(barrier);
  };
  if (group == 1) pass_turn();

  Ring<L::kStages> keys, values;
  for (std::uint32_t turn = 0;; ++turn) {
    barrier_wait(barriers.queries_full(), turn & 1);
    const Item item = reinterpret_cast<const Item*>(shared + L::kItems)[turn & 1];
    if (item.head < 0) break;
    const Range range = tiles_seen(item, shape.window);
    const int offset = item.keys - item.queries, low = offset + item.row + group * 64;  // position of the warpgroup's first row
    const int position = offset + item.row + own + g;

    SoftmaxRows rows;
    float s[kRows / 8][4], sums[E / 8][4] = {}, rescale[2];
    std::uint32_t weights[kRows / 16][4];
    const auto whole = [&](int tile) {
      const int key = tile * kRows;
      return key + kRows - 1 <= low && (shape.window == 0 || low + 63 - key < shape.window);
    };

    int tile = range.end - 1;
    barrier_wait(barriers.keys_full(keys.stage), keys.parity);
    wait_turn();
    wgmma_hold(s);
    wgmma_fence();
    product_transposed<E, kRows, kRows, T>(s, base, group * 64, base + L::kKeys + keys.stage * L::kTileBytes);
    wgmma_commit();
    pass_turn();
    wgmma_wait<0>();
    wgmma_hold(s);
    done_with(barriers.keys_empty(keys.stage));
    keys.step();
    if (!whole(tile)) hide(s, tile * kRows + quad * 2, position, shape.window);
    rows.add(s, scale, rescale);
    pack_fragments<T>(weights, s);

    // The scores of a tile, and the sum with P of the tile before, which the softmax does not wait for.
    for (--tile; tile >= range.begin; --tile) {
      barrier_wait(barriers.keys_full(keys.stage), keys.parity);
      barrier_wait(barriers.values_full(values.stage), values.parity);
      wait_turn();
      wgmma_hold(s);
      wgmma_hold(sums);
      wgmma_hold(weights);
      wgmma_fence();
      product_transposed<E, kRows, kRows, T>(s, base, group * 64, base + L::kKeys + keys.stage * L::kTileBytes);
      wgmma_commit();
      product_rows<E, T>(sums, weights, base + L::kValues + values.stage * L::kTileBytes);
      wgmma_commit();
      pass_turn();
      wgmma_wait<1>();
      wgmma_hold(s);
      done_with(barriers.keys_empty(keys.stage));
      keys.step();
      if (!whole(tile)) hide(s, tile * kRows + quad * 2, position, shape.window);
      rows.add(s, scale, rescale);
      // Weights' sums are not below 0. The branch keeps ptxas (13.0) from waiting for the product before the softmax.
      asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p trap;\n}\n" ::"f"(rows.total[0] + rows.total[1]));
      wgmma_wait<0>();
      wgmma_hold(sums);
      wgmma_hold(weights);
      done_with(barriers.values_empty(values.stage));
      values.step();
      rescale_rows(sums, rescale);
      pack_fragments<T>(weights, s);
    }
    done_with(barriers.queries_empty());

    barrier_wait(barriers.values_full(values.stage), values.parity);
    wgmma_hold(sums);
    wgmma_hold(weights);
    wgmma_fence();
    product_rows<E, T>(sums, weights, base + L::kValues + values.stage * L::kTileBytes);
    wgmma_commit();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.finish(half);
      const int row = item.row + own + g + half * 8;
      if (lse != nullptr && quad == 0 && row < item.queries) lse[item.head * lse_stride + item.first_query + row] = rows.log_sum(half, shape.scale);
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(weights);
    done_with(barriers.values_empty(values.stage));
    values.step();
    write_rows<E, kRows, T>(shared + L::kTileBytes, own, sums, 1.0f / rows.total[0], 1.0f / rows.total[1],
                            out.head(item.first_query, item.head, shape.width), out.stride, item.row + own, item.queries, shape.width);
  }
  if (group == 0) wait_turn();  // the turn that the other passed last
}

#endif

template <class T, int E>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(Side<const T> q, Side<const T> k, Side<const T> v, Side<T> out, float* lse, std::int64_t lse_stride, Shape shape,
                   Items items, std::uint32_t* counter) {
#ifdef PIPELORA_HOPPER
  using L = Layout<E>;
  char* shared = aligned_shared();
  if (threadIdx.x == 0) {
    const Barriers<E> barriers{shared_address(shared) + L::kBarriers};
    for (std::uint32_t stage = 0; stage < L::kStages; ++stage) {
      barrier_init(barriers.keys_full(stage), 64);
      barrier_init(barriers.values_full(stage), 64);
      barrier_init(barriers.keys_empty(stage), 8);
      barrier_init(barriers.values_empty(stage), 8);
    }
    barrier_init(barriers.queries_full(), 64);
    barrier_init(barriers.queries_empty(), 8);
  }
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    give_registers<56>();
    load_all<T, E>(q, k, v, shape, items, counter, shared);
  } else {
    take_registers<224>();
    compute_all<T, E>(out, lse, lse_stride, shape, shared);
  }
#endif
}

template <class T, int E>
void launch(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream) {
  const auto kernel = forward_kernel<T, E>;
  const std::size_t bytes = Layout<E>::kBytes + kAlignmentBytes;
  allow_shared(kernel, bytes);
  const Items items = items_of(call.q.cols / call.head_dim, query_tiles(*call.sequences, kRows), call.head_dim);
  const unsigned blocks = static_cast<unsigned>(std::min<std::int64_t>(items.count, processors()));
  kernel<<<blocks, kThreads, bytes, stream>>>(side<const T>(call.q), side<const T>(call.k), side<const T>(call.v), side<T>(call.out),
                                              call.lse.as<float>(), call.lse.stride, shape_of(call), items, counter);
}

}  // namespace

void attention_forward_long(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream) {
  with_half(call.q.dtype, [&]<class T>(T) {
    call.head_dim <= 64 ? launch<T, 64>(call, counter, stream) : launch<T, 128>(call, counter, stream);
  });
  check_launch("attention_forward");
}

}  // namespace pipelora::cuda
