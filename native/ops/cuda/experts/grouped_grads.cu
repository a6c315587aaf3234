// Gradients of every expert's LoRA matrix: blocks of 64 ranks x 128 columns, small enough that three share a multiprocessor: while one waits
// for its first rows or writes its sums, others read. Where a mixture has too few experts and columns to fill a GPU, the blocks of a cluster
// share an expert's rows, in equal runs of 64, and add their sums in the runs' order: no number depends on which block comes first.
#include <cooperative_groups.h>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/device/bulk_copy.cuh"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/tensor_map.h"
#include "ops/cuda/device/warp_roles.cuh"
#include "ops/cuda/device/wgmma.cuh"
#include "ops/cuda/experts/grouped.h"
#include "ops/cuda/kernel_choice.h"

namespace pipelora::cuda {

namespace {

constexpr int kStep = static_cast<int>(kPanelColumns), kColumns = static_cast<int>(kExpertGradColumns), kStages = 3;
constexpr int kMultiply = 128, kThreads = kMultiply + 32, kAtOnce = 3;  // threads that multiply, with the warp that asks for rows; blocks
constexpr int kPanelBytes = kStep * kStep * 2, kStageBytes = (1 + kColumns / kStep) * kPanelBytes;
constexpr int kBarriers = kStages * kStageBytes;
/// Where sums stand when all products are done: rows of 128 with four more, so that the rows of a fragment fall into other banks.
constexpr int kSumsWidth = kColumns + 4;
static_assert(kStep * kSumsWidth * 4 <= kBarriers);

struct GradsShape {
  const std::int32_t* starts;
  int rank, columns, shares;
  float factor;
  float* grads;
};

#ifdef PIPELORA_HOPPER

/// One thread's pieces of V columns of the block's sums: those of its share of the cluster.
template <int V>
class OwnPieces {
 public:
  static constexpr int kAcross = kColumns / V, kAhead = 16 / V;

  __device__ OwnPieces(const GradsShape& shape, int expert, int first_rank, int column, int share)
      : shape_(shape), first_(share * kMultiply + static_cast<int>(threadIdx.x)), step_(shape.shares * kMultiply),
        count_(min(kStep, shape.rank - first_rank) * kAcross), column_(column),
        to_(shape.grads + (static_cast<std::int64_t>(expert) * shape.rank + first_rank) * shape.columns) {}

  /// body(i, row of the sums, column of the sums, where the gradient is) of pieces [kAhead * round, kAhead * (round + 1)).
  template <class Body>
  __device__ void round(int number, Body&& body) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int piece = first_ + (number * kAhead + i) * step_, row = piece / kAcross, c = piece % kAcross * V;
      if (piece < count_ && column_ + c < shape_.columns) body(i, row, c, to_ + static_cast<std::int64_t>(row) * shape_.columns + column_ + c);
    }
  }
  __device__ int rounds() const { return (count_ + kAhead * step_ - 1) / (kAhead * step_); }

  __device__ static void read(const float* from, float (&to)[V]) {
    if constexpr (V == 4) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
      to[0] = *from;
    }
  }
  __device__ static void write(float* to, const float (&from)[V]) {
    if constexpr (V == 4)
      *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    else
      *to = from[0];
  }

 private:
  const GradsShape& shape_;
  int first_, step_, count_, column_;
  float* to_;
};

#endif

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kAtOnce)
    grouped_grads_kernel(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right, const __grid_constant__ GradsShape shape) {
#ifdef PIPELORA_HOPPER
  const int shares = shape.shares, share = static_cast<int>(blockIdx.x) % shares, expert = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(blockIdx.x) / shares * kColumns, first_rank = static_cast<int>(blockIdx.z) * kStep;
  const int begin = shape.starts[expert], end = shape.starts[expert + 1], all_steps = (end - begin + kStep - 1) / kStep;
  if (all_steps == 0) return;  // for all of a cluster
  const int run = (all_steps + shares - 1) / shares, with_rows = (all_steps + run - 1) / run;
  const int first = begin + share * run * kStep, steps = max(0, min(run, all_steps - share * run));
  char* shared = aligned_shared();
  const std::uint32_t base = shared_address(shared);
  const auto full = [&](std::uint32_t stage) { return base + kBarriers + stage * 8; };
  const auto empty = [&](std::uint32_t stage) { return base + kBarriers + (kStages + stage) * 8; };
  if (threadIdx.x == 0) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), kMultiply / 32);
    }
    fence_barriers();
  }
  __syncthreads();
  const auto cluster = cooperative_groups::this_cluster();
  Ring<kStages> ring;
  if (threadIdx.x >= kMultiply) {
    if (threadIdx.x == kMultiply) {
      fetch_map(left);
      fetch_map(right);
    }
    for (int i = 0; i < steps; ++i) {
      barrier_wait(empty(ring.stage), ring.parity ^ 1);
      if (threadIdx.x == kMultiply) {
        const std::uint32_t to = base + ring.stage * kStageBytes;
        barrier_expect(full(ring.stage), kStageBytes);
        copy_tile(to, left, first + i * kStep, first_rank, full(ring.stage));
#pragma unroll
        for (int panel = 0; panel < kColumns / kStep; ++panel)
          copy_tile(to + (1 + panel) * kPanelBytes, right, first + i * kStep, column + panel * kStep, full(ring.stage));
      }
      ring.step();
    }
    if (shares > 1) {
      cluster.sync();
      cluster.sync();
    }
    return;
  }

  // What the gradients are so far is asked for before the products that are added to it.
  const OwnPieces<V> own(shape, expert, first_rank, column, share);
  float before[OwnPieces<V>::kAhead][V];
  const auto read_round = [&](int number) {
    own.round(number, [&](int i, int, int, const float* from) { OwnPieces<V>::read(from, before[i]); });
  };
  read_round(0);

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, quad = lane % 4;
  float sums[16][4];
  std::uint32_t last = kStages;
  const auto release = [&](std::uint32_t stage) {
    if (lane == 0) barrier_arrive(empty(stage));
  };
  for (int i = 0; i < steps; ++i) {
    barrier_wait(full(ring.stage), ring.parity);
    const std::uint32_t to = base + ring.stage * kStageBytes;
    const int there = end - first - i * kStep;
    if (there < kStep) {  // behind the expert's last row stand another's: none of this one's ranks
      char* rows = shared + ring.stage * kStageBytes;
      for (int piece = there * 8 + thread; piece < kStep * 8; piece += kMultiply) *reinterpret_cast<uint4*>(rows + piece * 16) = make_uint4(0, 0, 0, 0);
      fence_shared();
      named_wait(1, kMultiply);
    }
    wgmma_hold(sums);
    wgmma_fence();
    const SharedMatrix a(to, kPanelBytes), b(to + kPanelBytes, kPanelBytes);
#pragma unroll
    for (int kk = 0; kk < kStep / 16; ++kk) wgmma_shared<true, true>(T{}, sums, a.at(kk * 16 * 128), b.at(kk * 16 * 128), i > 0 || kk > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (last < kStages) release(last);
    last = ring.stage;
    ring.step();
  }
  wgmma_wait<0>();
  wgmma_hold(sums);
  named_wait(1, kMultiply);  // all products have read what the sums take the place of

  auto* kept = reinterpret_cast<float*>(shared);
  const int row = thread / 32 * 16 + lane / 4;
  if (steps > 0) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first_rank + row + h * 8 >= shape.rank) continue;
#pragma unroll
      for (int j = 0; j < 16; ++j)
        *reinterpret_cast<float2*>(kept + (row + h * 8) * kSumsWidth + j * 8 + quad * 2) = make_float2(sums[j][2 * h], sums[j][2 * h + 1]);
    }
  }
  if (shares > 1)
    cluster.sync();
  else
    named_wait(1, kMultiply);

  const auto sums_of = [&](int block) { return shares > 1 ? cluster.map_shared_rank(kept, static_cast<unsigned>(block)) : kept; };
  for (int number = 0; number < own.rounds(); ++number) {
    if (number > 0) read_round(number);
    own.round(number, [&](int i, int r, int c, float* to) {
      float total[V], part[V];
      OwnPieces<V>::read(sums_of(0) + r * kSumsWidth + c, total);
      for (int s = 1; s < with_rows; ++s) {
        OwnPieces<V>::read(sums_of(s) + r * kSumsWidth + c, part);
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] += part[v];
      }
#pragma unroll
      for (int v = 0; v < V; ++v) total[v] = before[i][v] + shape.factor * total[v];
      OwnPieces<V>::write(to, total);
    });
  }
  if (shares > 1) cluster.sync();  // no block ends while others read its sums
#endif
}

template <class T, int V>
void launch(const GroupedGrads& call, cudaStream_t stream) {
  const CUtensorMap left = tensor_map(call.left, kStep), right = tensor_map(call.right, kStep);
  const auto kernel = grouped_grads_kernel<T, V>;
  GradsShape shape{};
  shape.starts = call.starts;
  shape.rank = static_cast<int>(call.left.cols);
  shape.columns = static_cast<int>(call.right.cols);
  shape.shares = expert_grad_shares(call.experts, call.right.cols, call.left.cols);
  shape.factor = call.factor;
  shape.grads = call.grads.as<float>();
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.shares), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks_for(call.right.cols, kColumns) * static_cast<unsigned>(shape.shares), static_cast<unsigned>(call.experts),
                        blocks_for(call.left.cols, kStep));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBarriers + 2 * kStages * 8 + kAlignmentBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  allow_shared(kernel, config.dynamicSmemBytes);
  check(cudaLaunchKernelEx(&config, kernel, left, right, shape), "grouped_grads");
}

}  // namespace

void grouped_grads(const GroupedGrads& call, cudaStream_t stream) {
  if (call.left.rows == 0) return;
  with_half(call.left.dtype, [&]<class T>(T) {
    if (fours(call.grads) && call.right.cols % 4 == 0)
      launch<T, 4>(call, stream);
    else
      launch<T, 1>(call, stream);
  });
  check_launch("grouped_grads");
}

}  // namespace pipelora::cuda
