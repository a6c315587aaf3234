// Gradients of every expert's LoRA matrix: a block's warpgroup sums over the expert's rows, 64 at a time, in their order; another warp asks
// for them. What stands behind the expert's last row in the last 64 is another's, and is taken as zero.
#include "ops/cuda/device/bulk_copy.cuh"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/tensor_map.h"
#include "ops/cuda/device/warp_roles.cuh"
#include "ops/cuda/device/wgmma.cuh"
#include "ops/cuda/experts/grouped.h"

namespace pipelora::cuda {

namespace {

constexpr int kStep = static_cast<int>(kPanelColumns), kColumns = 256, kStages = 4, kThreads = 256;
constexpr int kPanelBytes = kStep * kStep * 2, kStageBytes = (1 + kColumns / kStep) * kPanelBytes;
constexpr int kBarriers = kStages * kStageBytes;

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_grads_kernel(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right, const std::int32_t* starts, int rank,
                         int columns, float factor, float* grads) {
#ifdef PIPELORA_HOPPER
  const int expert = static_cast<int>(blockIdx.y), column = static_cast<int>(blockIdx.x) * kColumns, first_rank = static_cast<int>(blockIdx.z) * kStep;
  const int first = starts[expert], rows = starts[expert + 1] - first, steps = (rows + kStep - 1) / kStep;
  if (rows == 0) return;
  char* shared = aligned_shared();
  const std::uint32_t base = shared_address(shared);
  const auto full = [&](std::uint32_t stage) { return base + kBarriers + stage * 8; };
  const auto empty = [&](std::uint32_t stage) { return base + kBarriers + (kStages + stage) * 8; };
  if (threadIdx.x == 0) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), 4);
    }
    fence_barriers();
  }
  __syncthreads();
  Ring<kStages> ring;
  if (threadIdx.x >= 128) {
    if (threadIdx.x >= 160) return;
    for (int i = 0; i < steps; ++i) {
      barrier_wait(empty(ring.stage), ring.parity ^ 1);
      if (threadIdx.x == 128) {
        const std::uint32_t to = base + ring.stage * kStageBytes;
        barrier_expect(full(ring.stage), kStageBytes);
        copy_tile(to, left, first + i * kStep, first_rank, full(ring.stage));
#pragma unroll
        for (int panel = 0; panel < kColumns / kStep; ++panel)
          copy_tile(to + (1 + panel) * kPanelBytes, right, first + i * kStep, column + panel * kStep, full(ring.stage));
      }
      ring.step();
    }
    return;
  }
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, quad = lane % 4;
  float sums[2][16][4];
  std::uint32_t last = kStages;
  const auto release = [&](std::uint32_t stage) {
    if (lane == 0) barrier_arrive(empty(stage));
  };
  for (int i = 0; i < steps; ++i) {
    barrier_wait(full(ring.stage), ring.parity);
    const std::uint32_t to = base + ring.stage * kStageBytes;
    const int there = rows - i * kStep;
    if (there < kStep) {
      char* own = shared + ring.stage * kStageBytes;
      for (int piece = there * 8 + thread; piece < kStep * 8; piece += 128) *reinterpret_cast<uint4*>(own + piece * 16) = make_uint4(0, 0, 0, 0);
      fence_shared();
      named_wait(1, 128);  // of the warpgroup
    }
    wgmma_hold(sums[0]);
    wgmma_hold(sums[1]);
    wgmma_fence();
    const SharedMatrix a(to, kPanelBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SharedMatrix b(to + kPanelBytes + half * 2 * kPanelBytes, kPanelBytes);
#pragma unroll
      for (int kk = 0; kk < kStep / 16; ++kk) wgmma_shared<true, true>(T{}, sums[half], a.at(kk * 16 * 128), b.at(kk * 16 * 128), i > 0 || kk > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (last < kStages) release(last);
    last = ring.stage;
    ring.step();
  }
  wgmma_wait<0>();
  wgmma_hold(sums[0]);
  wgmma_hold(sums[1]);
  const int row0 = first_rank + thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + h * 8;
      if (row >= rank) continue;
      float* to = grads + (static_cast<std::int64_t>(expert) * rank + row) * columns;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int c = column + half * 128 + j * 8 + quad * 2;
        if (c < columns) to[c] += factor * sums[half][j][2 * h];
        if (c + 1 < columns) to[c + 1] += factor * sums[half][j][2 * h + 1];
      }
    }
  }
#endif
}

}  // namespace

void grouped_grads(const GroupedGrads& call, cudaStream_t stream) {
  if (call.left.rows == 0) return;
  with_half(call.left.dtype, [&]<class T>(T) {
    const CUtensorMap left = tensor_map(call.left, kStep), right = tensor_map(call.right, kStep);
    const auto kernel = grouped_grads_kernel<T>;
    const std::size_t bytes = kBarriers + 2 * kStages * 8 + kAlignmentBytes;
    allow_shared(kernel, bytes);
    const dim3 grid(blocks_for(call.right.cols, kColumns), static_cast<unsigned>(call.experts), blocks_for(call.left.cols, kStep));
    kernel<<<grid, kThreads, bytes, stream>>>(left, right, call.starts, static_cast<int>(call.left.cols), static_cast<int>(call.right.cols), call.factor,
                                              call.grads.as<float>());
  });
  check_launch("grouped_grads");
}

}  // namespace pipelora::cuda
