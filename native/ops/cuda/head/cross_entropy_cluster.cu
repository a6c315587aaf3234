// Softmax cross entropy that reads logits once (Hopper): the blocks of a cluster hold a row in their shared memory, and tell each
// other its statistics.
#include <cooperative_groups.h>

#include "ops/cuda/head/cross_entropy.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/warp_roles.cuh"
#include "ops/cuda/device/wgmma.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = kClusterBlocks;

#ifdef PIPELORA_HOPPER
#define PIPELORA_CLUSTER __cluster_dims__(kBlocks)

/// Bytes that arrive at the barrier, which counts one arrival beside them, as one asynchronous copy. Both ends are multiples of 16.
__device__ inline void fetch(std::uint32_t to, const void* from, std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
#else
#define PIPELORA_CLUSTER
#endif

/// kSmooth: with label smoothing, which needs the sum of a row's logits too.
template <bool kSmooth, class T>
__global__ void PIPELORA_CLUSTER __launch_bounds__(kThreads, 2) cluster_kernel(CrossEntropyRows<T> call, std::int64_t columns) {
#ifdef PIPELORA_HOPPER
  extern __shared__ float4 part[];  // of the row, four logits a piece, exponentials later
  __shared__ Statistics of_warp[kThreads / 32], of_block;
  __shared__ float sum_of_warp[kThreads / 32], sum_of_block;
  __shared__ std::uint64_t arrived;
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank()), thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x / kBlocks, first = rank * columns;
  const float* z = call.logits + row * call.logits_stride;
  const auto count = static_cast<int>(max(std::int64_t{0}, min(columns, call.vocab - first)));
  const int whole = count / 4, pieces = (count + 3) / 4;
  const std::uint32_t barrier = shared_address(&arrived);
  const std::int32_t target = call.targets[row];
  float at_target = 0;
  if (thread == 0) {
    at_target = z[target];
    barrier_init(barrier, 1);
    fence_shared();
    if (whole > 0) fetch(shared_address(part), z + first, static_cast<std::uint32_t>(whole) * sizeof(float4), barrier);
  }
  if (whole < pieces && thread < 4)  // the vocabulary's end, filled up
    reinterpret_cast<float*>(part + whole)[thread] = whole * 4 + thread < count ? z[first + whole * 4 + thread] : -INFINITY;
  __syncthreads();
  if (whole > 0) barrier_wait(barrier, 0);

  Statistics own;
  float sum = 0;
  for (int p = thread; p < pieces; p += kThreads) {
    const float4 v = part[p];
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (values[i] > own.top) {
        own.top = values[i];
        own.at = static_cast<std::int32_t>(first) + p * 4 + i;
      }
      if constexpr (kSmooth) sum += p * 4 + i < count ? values[i] : 0.0f;
    }
  }
  own = merge_lanes(own);
  if constexpr (kSmooth) sum = warp_sum(sum);
  if (thread % 32 == 0) {
    of_warp[thread / 32] = own;
    if constexpr (kSmooth) sum_of_warp[thread / 32] = sum;
  }
  __syncthreads();
  Statistics block = merge_warps(of_warp);

  float total = 0;
  for (int p = thread; p < pieces; p += kThreads) {
    float4 v = part[p];
    v = make_float4(__expf(v.x - block.top), __expf(v.y - block.top), __expf(v.z - block.top), __expf(v.w - block.top));
    total += v.x + v.y + (v.z + v.w);
    part[p] = v;
  }
  total = warp_sum(total);
  __syncthreads();  // all have read the warps' statistics
  if (thread % 32 == 0) of_warp[thread / 32].total = total;
  __syncthreads();
  if (thread == 0) {
    block.total = 0;
    for (int w = 0; w < kThreads / 32; ++w) block.total += of_warp[w].total;
    of_block = block;
    if constexpr (kSmooth) {
      sum_of_block = 0;
      for (const float part : sum_of_warp) sum_of_block += part;
    }
  }
  cluster.sync();  // and every part of the row has been read: its gradient may take its place
  Statistics all;
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) all = merge(all, *cluster.map_shared_rank(&of_block, r));
  sum = 0;
  if constexpr (kSmooth) {
#pragma unroll
    for (int r = 0; r < kBlocks; ++r) sum += *cluster.map_shared_rank(&sum_of_block, r);
  }
  cluster.barrier_arrive();  // no block ends while others read its statistics

  if (rank == 0 && thread == 0) {
    call.loss[row] = call.loss_of(all, at_target, sum);
    call.correct[row] = all.at == target ? 1 : 0;
  }
  if (call.dlogits != nullptr) {
    const float weight = call.weights[row], factor = __expf(block.top - all.top) * (weight / all.total);
    const float on_target = kSmooth ? call.target_weight(weight) : weight, everywhere = kSmooth ? call.shared_weight(weight) : 0.0f;
    T* out = call.dlogits + row * call.dlogits_stride + first;
    const std::int64_t hit = target - first;
    for (int p = thread; p < pieces; p += kThreads) {
      const float4 v = part[p];
      float values[4] = {v.x * factor - everywhere, v.y * factor - everywhere, v.z * factor - everywhere, v.w * factor - everywhere};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (p * 4 + i == hit) values[i] -= on_target;
      if (p == whole)
        for (int i = 0; whole * 4 + i < count; ++i) out[p * 4 + i] = narrow<T>(values[i]);
      else if constexpr (sizeof(T) == 4)
        *reinterpret_cast<float4*>(out + p * 4) = make_float4(values[0], values[1], values[2], values[3]);
      else
        *reinterpret_cast<uint2*>(out + p * 4) = make_uint2(pack2(T{}, values[0], values[1]), pack2(T{}, values[2], values[3]));
    }
  }
  cluster.barrier_wait();
#endif
}

}  // namespace

void cross_entropy_by_clusters(const CrossEntropy& call, cudaStream_t stream) {
  const std::int64_t columns = cluster_columns(call.logits.cols);
  const std::size_t bytes = static_cast<std::size_t>(columns) * sizeof(float);
  with_float(call.dlogits ? call.dlogits.dtype : DType::f32, [&]<class T>(T) {
    const auto kernel = call.smoothing != 0 ? cluster_kernel<true, T> : cluster_kernel<false, T>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of cross entropy");
    kernel<<<static_cast<unsigned>(call.logits.rows * kBlocks), kThreads, bytes, stream>>>(cross_entropy_rows<T>(call), columns);
  });
  check_launch("cross_entropy");
}

}  // namespace pipelora::cuda
