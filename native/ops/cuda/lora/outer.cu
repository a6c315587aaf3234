// How sums of outer products are cut into launches, and the sum of the parts that their blocks leave.
#include "ops/cuda/lora/outer.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kSumThreads = 128;
constexpr int kShares = 4;  // threads that add up one sum's parts: a long chain of reads would be all that a small call waits for

/// Four neighbouring sums over `count` parts, given to all threads that share them: each adds every kShares-th part.
__device__ inline float4 sum_of_parts(const float* parts, std::int64_t count, std::int64_t distance) {
  float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (std::int64_t p = threadIdx.x % kShares; p < count; p += kShares) {
    const float4 part = __ldcg(reinterpret_cast<const float4*>(parts + p * distance));
    total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
  }
#pragma unroll
  for (int d = 1; d < kShares; d *= 2) {
    total.x += __shfl_xor_sync(0xFFFFFFFFu, total.x, d);
    total.y += __shfl_xor_sync(0xFFFFFFFFu, total.y, d);
    total.z += __shfl_xor_sync(0xFFFFFFFFu, total.z, d);
    total.w += __shfl_xor_sync(0xFFFFFFFFu, total.w, d);
  }
  return total;
}

// kShares threads for four neighbouring sums: the inner vectors' of all jobs first, then the gradients'.
template <int kRanks, bool kInner>
__global__ void __launch_bounds__(kSumThreads)
    outer_sum_kernel(const __grid_constant__ OuterJobs jobs, std::int64_t tokens, std::int64_t splits, OuterPartial partial) {
  std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) / kShares * 4;
  const bool first = threadIdx.x % kShares == 0;
  constexpr std::int64_t kOfBlock = kRanks * kOuterColumns;
  const float* parts = nullptr;
  std::int64_t count = 0, distance = 0;
  const OuterJob* job = nullptr;
  bool inner = false;
  if constexpr (kInner) {
    const std::int64_t of_job = tokens * kRanks;
    inner = item < jobs.count * of_job;
    if (inner) {
      job = &jobs.job[item / of_job];
      item %= of_job;
      parts = partial.inner + job->first_block * of_job + item;
      count = job->blocks;
      distance = of_job;
    } else {
      item -= jobs.count * of_job;
    }
  }
  const std::int64_t block = item / kOfBlock;
  if (!inner && block < jobs.blocks) {
    job = &job_of(jobs, static_cast<int>(block));
    parts = partial.grads + item;
    count = splits;
    distance = jobs.blocks * kOfBlock;
  }
  const float4 total = sum_of_parts(parts, count, distance);
  if (job == nullptr || !first) return;
  if (inner) {
    const float values[4] = {total.x, total.y, total.z, total.w};
    const int r = static_cast<int>(item % kRanks);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (r + i < job->rank) job->inner_grad[item / kRanks * job->inner_grad_stride + r + i] = values[i] * job->factor;
    return;
  }
  const int r = static_cast<int>(item % kOfBlock / kOuterColumns);
  const std::int64_t column = (block - job->first_block) * kOuterColumns + item % kOuterColumns;
  if (r >= job->rank || column >= job->columns) return;
  float4* to = reinterpret_cast<float4*>(job->grad + r * job->grad_stride + column);
  const float4 old = *to;
  *to = make_float4(old.x + total.x * job->factor, old.y + total.y * job->factor, old.z + total.z * job->factor, old.w + total.w * job->factor);
}

// A chip's worth of blocks that stream from beginning to end (132 multiprocessors, four each), so that none waits for its
// first rows behind others; several chips' worth where one would be badly filled. It depends on shapes alone.
OuterCut cut_of(std::int64_t blocks, std::int64_t tokens) {
  constexpr std::int64_t kAtOnce = 528;
  const std::int64_t target = 2 * blocks > kAtOnce ? 3 * kAtOnce : kAtOnce;
  const std::int64_t wanted = std::clamp<std::int64_t>(target / blocks, 1, std::max<std::int64_t>(1, tokens / 32));
  const std::int64_t per_split = ((tokens + wanted - 1) / wanted + 15) / 16 * 16;
  return {(tokens + per_split - 1) / per_split, per_split};
}

}  // namespace

int ranks_of(const std::vector<Outer>& outers) {
  return std::any_of(outers.begin(), outers.end(), [](const Outer& outer) { return outer.grad.rows > 8; }) ? 16 : 8;
}

std::vector<OuterLaunch> outer_launches(const std::vector<Outer>& outers) {
  const std::int64_t ranks = ranks_of(outers);
  std::vector<OuterLaunch> launches;
  for (const Outer& outer : outers) {
    for (std::int64_t r = 0; r < outer.grad.rows; r += ranks) {
      OuterJob job{};
      job.right = outer.right.data;
      job.right_stride = outer.right.stride;
      job.columns = outer.right.cols;
      job.left = outer.left.as<float>() + r;
      job.left_stride = outer.left.stride;
      job.grad = outer.grad.as<float>() + r * outer.grad.stride;
      job.grad_stride = outer.grad.stride;
      job.factor = outer.factor;
      job.rank = static_cast<int>(std::min(ranks, outer.grad.rows - r));
      job.blocks = static_cast<int>((job.columns + kOuterColumns - 1) / kOuterColumns);
      job.module = outer.pair->module_id;
      job.threshold = dropout_threshold(outer.pair->dropout);
      job.masked = outer.masked;
      if (outer.inner_grad) {
        job.rows = outer.pair->bt.as<float>() + r * outer.pair->bt.stride;
        job.rows_stride = outer.pair->bt.stride;
        job.inner_grad = outer.inner_grad.as<float>() + r;
        job.inner_grad_stride = outer.inner_grad.stride;
      }
      if (launches.empty() || launches.back().jobs.count == kMaxOuterJobs) launches.push_back({});
      OuterJobs& jobs = launches.back().jobs;
      job.first_block = jobs.blocks;
      jobs.blocks += job.blocks;
      jobs.job[jobs.count++] = job;
    }
  }
  for (OuterLaunch& launch : launches) launch.cut = cut_of(launch.jobs.blocks, outers.front().right.rows);
  return launches;
}

void add_outer_parts(const OuterLaunch& launch, std::int64_t tokens, int ranks, const OuterPartial& partial, cudaStream_t stream) {
  const bool inner = partial.inner != nullptr;
  const std::int64_t sums = launch.jobs.blocks * ranks * kOuterColumns + (inner ? launch.jobs.count * tokens * ranks : 0);
  const auto kernel = inner ? ranks == 8 ? outer_sum_kernel<8, true> : outer_sum_kernel<16, true>
                            : ranks == 8 ? outer_sum_kernel<8, false> : outer_sum_kernel<16, false>;
  kernel<<<blocks_for(sums * kShares, 4 * kSumThreads), kSumThreads, 0, stream>>>(launch.jobs, tokens, launch.cut.splits, partial);
  check_launch("LoRA's gradients");
}

}  // namespace pipelora::cuda
