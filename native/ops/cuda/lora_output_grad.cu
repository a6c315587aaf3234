// What LoRA needs of the gradient of a product's output, in one reading of it: the gradient of the inner vectors
// (scale * dy B) and the gradient of B (scale * innerᵀ dy).
//
// A warp takes 64 columns and walks over tokens, 16 at a time. A lane holds eight neighbouring columns of four tokens; product
// j of eight covers columns j, 8 + j, 16 + j, … B's gradient contracts tokens: the pieces are right as they lie. The inner
// gradient contracts columns: for it the warp transposes them. f32 operands are split into two 16-bit numbers, in rows 0-7
// and 8-15 of the left side.
#include <algorithm>

#include "ops/cuda/lora.h"
#include "ops/cuda/lora_device.cuh"
#include "ops/cuda/mma.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kWarpColumns = 64;
constexpr int kBlockColumns = kWarps * kWarpColumns;
constexpr int kMostTokens = 256;  // of a split
constexpr int kMaxJobs = 8;

/// Up to 8 NT ranks of one pair.
struct OutputJob {
  const float* bt;  // [rank, columns]
  float* grad_bt;   // the same shape
  std::int64_t bt_stride, grad_stride, first_column, columns;
  int rank, inner_column;
  float scale;
  int first_block, blocks;  // of kBlockColumns columns
};
struct OutputJobs {
  OutputJob job[kMaxJobs];
  int count, blocks;
};

template <class T>
struct OutputCall {
  const T* dy;
  std::int64_t dy_stride, tokens, tokens_per_split;
  const float* inner;
  std::int64_t inner_stride;
  float* inner_grad;
  std::int64_t inner_grad_stride;
  float* b_partial;  // [splits, blocks, 8 NT, kBlockColumns]
  float* z_partial;  // [blocks, tokens, 8 NT]
  std::uint32_t* counters;
};

template <class T, int NT>
__global__ void __launch_bounds__(kWarps * 32) output_grad_kernel(OutputCall<T> call, OutputJobs jobs) {
  constexpr int kRanks = 8 * NT;
  extern __shared__ float z_shared[];  // [kWarps][tokens_per_split][kRanks]
  __shared__ __align__(16) float b_shared[kWarps][8][kWarpColumns + 4];
  const int block = static_cast<int>(blockIdx.x);
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_block <= block) ++which;
  const OutputJob& job = jobs.job[which];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip = static_cast<std::int64_t>(block - job.first_block) * kBlockColumns + warp * kWarpColumns;
  const bool in = strip + g * 8 < job.columns;
  const std::int64_t begin = blockIdx.y * call.tokens_per_split, end = min(call.tokens, begin + call.tokens_per_split);
  const T* right = call.dy + job.first_column + strip + g * 8;

  // Columns 16 q + j and 16 q + 8 + j of this lane's rank.
  std::uint32_t high[NT][8], low[NT][8];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    Floats<8> a{}, b{};
    const float* row = job.bt + (n * 8 + g) * job.bt_stride + strip + q * 16;
    if (n * 8 + g < job.rank) {
      if (strip + q * 16 < job.columns) a = load<8>(row);
      if (strip + q * 16 + 8 < job.columns) b = load<8>(row + 8);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) split2<T>(a.v[j], b.v[j], high[n][j], low[n][j]);
  }

  float acc[NT][8][4] = {};
  const uint4 none = make_uint4(0, 0, 0, 0);
  const auto read = [&](std::int64_t t, uint4 (&x)[4], float (&l)[NT][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = t + 2 * q + (i & 1) + (i >> 1) * 8;
      x[i] = in && at < end ? *reinterpret_cast<const uint4*>(right + at * call.dy_stride) : none;
#pragma unroll
      for (int n = 0; n < NT; ++n)
        l[n][i] = n * 8 + g < job.rank && at < end ? __ldg(call.inner + at * call.inner_stride + job.inner_column + n * 8 + g) : 0.0f;
    }
  };
  uint4 next[4];
  float next_left[NT][4];
  read(begin, next, next_left);
  for (std::int64_t t = begin; t < end; t += 16) {
    uint4 x[4];
    std::uint32_t left[NT][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = next[i];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      split2<T>(next_left[n][0], next_left[n][1], left[n][0], left[n][1]);
      split2<T>(next_left[n][2], next_left[n][3], left[n][2], left[n][3]);
    }
    read(t + 16, next, next_left);
    float z[NT][2][4] = {};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      std::uint32_t flipped[2][2];  // [first eight tokens, the others][column]
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const auto word = [&](int i) { return pair == 0 ? x[i].x : pair == 1 ? x[i].y : pair == 2 ? x[i].z : x[i].w; };
        constexpr std::uint32_t kLow = 0x5410, kHigh = 0x7632;
        const std::uint32_t b0 = __byte_perm(word(0), word(1), odd == 0 ? kLow : kHigh);
        const std::uint32_t b1 = __byte_perm(word(2), word(3), odd == 0 ? kLow : kHigh);
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(T{}, acc[n][2 * pair + odd], left[n][0], left[n][1], left[n][2], left[n][3], b0, b1);
        flipped[0][odd] = transposed(b0);
        flipped[1][odd] = transposed(b1);
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          mma(T{}, z[n][half], high[n][2 * pair], low[n][2 * pair], high[n][2 * pair + 1], low[n][2 * pair + 1], flipped[half][0],
              flipped[half][1]);
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* to = z_shared + ((warp * call.tokens_per_split + t - begin + half * 8 + 2 * q) * NT + n) * 8 + g;
        to[0] = z[n][half][0] + z[n][half][2];
        to[kRanks] = z[n][half][1] + z[n][half][3];
      }
    }
  }

  float* b_out = call.b_partial + (static_cast<std::int64_t>(blockIdx.y) * jobs.blocks + block) * kRanks * kBlockColumns;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      b_shared[warp][g][2 * q * 8 + j] = acc[n][j][0] + acc[n][j][2];
      b_shared[warp][g][(2 * q + 1) * 8 + j] = acc[n][j][1] + acc[n][j][3];
    }
    __syncwarp();
    for (int item = lane; item < 8 * kWarpColumns; item += 32) {
      const int r = item / kWarpColumns, column = item % kWarpColumns;
      b_out[(n * 8 + r) * kBlockColumns + warp * kWarpColumns + column] = b_shared[warp][r][column];
    }
  }
  __syncthreads();
  const int items = static_cast<int>(end - begin) * kRanks;
  float* z_out = call.z_partial + (static_cast<std::int64_t>(block) * call.tokens + begin) * kRanks;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kWarps * 32) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += z_shared[w * call.tokens_per_split * kRanks + item];
    z_out[item] = total;
  }

  if (arrives_last(&call.counters[jobs.blocks + which * gridDim.y + blockIdx.y], static_cast<unsigned>(job.blocks))) {
    const float* parts = call.z_partial + (static_cast<std::int64_t>(job.first_block) * call.tokens + begin) * kRanks;
    for (int item = static_cast<int>(threadIdx.x); item < items; item += kWarps * 32) {
      if (item % kRanks >= job.rank) continue;
      float total = 0;
#pragma unroll 8
      for (int b = 0; b < job.blocks; ++b) total += __ldcg(parts + b * call.tokens * kRanks + item);
      call.inner_grad[(begin + item / kRanks) * call.inner_grad_stride + job.inner_column + item % kRanks] = total * job.scale;
    }
  }
  if (arrives_last(&call.counters[block], gridDim.y)) {
    const float* parts = call.b_partial + static_cast<std::int64_t>(block) * kRanks * kBlockColumns;
    const std::int64_t first = static_cast<std::int64_t>(block - job.first_block) * kBlockColumns;
    for (int item = static_cast<int>(threadIdx.x); item < job.rank * kBlockColumns; item += kWarps * 32) {
      const std::int64_t column = first + item % kBlockColumns;
      if (column >= job.columns) continue;
      float total = 0;
#pragma unroll 8
      for (unsigned s = 0; s < gridDim.y; ++s)
        total += __ldcg(parts + static_cast<std::int64_t>(s) * jobs.blocks * kRanks * kBlockColumns + item);
      job.grad_bt[item / kBlockColumns * job.grad_stride + column] += total * job.scale;
    }
  }
}

/// Ranks of a job: 8 where no pair has more, else 16.
int ranks_of(const LoraSet& lora) {
  return std::any_of(lora.pairs.begin(), lora.pairs.end(), [](const LoraView& pair) { return pair.bt.rows > 8; }) ? 16 : 8;
}

std::vector<OutputJob> output_jobs(const LoraSet& lora) {
  const std::int64_t ranks = ranks_of(lora);
  std::vector<OutputJob> jobs;
  for (const LoraView& pair : lora.pairs) {
    for (std::int64_t r = 0; r < pair.bt.rows; r += ranks) {
      OutputJob job{};
      job.bt = pair.bt.as<float>() + r * pair.bt.stride;
      job.bt_stride = pair.bt.stride;
      job.grad_bt = pair.grad_bt.as<float>() + r * pair.grad_bt.stride;
      job.grad_stride = pair.grad_bt.stride;
      job.first_column = pair.first_column;
      job.columns = pair.bt.cols;
      job.rank = static_cast<int>(std::min(ranks, pair.bt.rows - r));
      job.inner_column = static_cast<int>(pair.first_inner + r);
      job.scale = pair.scale;
      jobs.push_back(job);
    }
  }
  return jobs;
}

struct Cut {
  std::int64_t splits, tokens_per_split;
};

/// Enough blocks for the chip, and splits that fit in shared memory. Depends on shapes alone.
Cut cut_of(int blocks, std::int64_t tokens) {
  const std::int64_t wanted = std::clamp<std::int64_t>((660 + blocks - 1) / blocks, 1, std::max<std::int64_t>(1, tokens / 32));
  const std::int64_t per_split = std::min<std::int64_t>(kMostTokens, ((tokens + wanted - 1) / wanted + 15) / 16 * 16);
  return {(tokens + per_split - 1) / per_split, per_split};
}

/// Calls f(jobs of one launch, their cut), kMaxJobs jobs at a time.
template <class F>
void in_launches(const LoraSet& lora, std::int64_t tokens, F&& f) {
  const std::vector<OutputJob> jobs = output_jobs(lora);
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    OutputJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      OutputJob& job = set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      job.first_block = set.blocks;
      job.blocks = static_cast<int>((job.columns + kBlockColumns - 1) / kBlockColumns);
      set.blocks += job.blocks;
    }
    f(set, cut_of(set.blocks, tokens));
  }
}

std::int64_t b_partial_size(const OutputJobs& set, const Cut& cut, int ranks) { return cut.splits * set.blocks * ranks * kBlockColumns; }
std::int64_t z_partial_size(const OutputJobs& set, std::int64_t tokens, int ranks) { return set.blocks * tokens * ranks; }

}  // namespace

std::size_t lora_output_grad_bytes(const LoraSet& lora, const Tensor& dy) {
  std::int64_t most = 0;
  const int ranks = ranks_of(lora);
  in_launches(lora, dy.rows, [&](const OutputJobs& set, const Cut& cut) {
    most = std::max(most, b_partial_size(set, cut, ranks) + z_partial_size(set, dy.rows, ranks));
  });
  return static_cast<std::size_t>(most) * sizeof(float);
}

bool lora_output_grad_suits(const LoraSet& lora, const Tensor& dy) {
  bool suits = dy.dtype != DType::f32 && eights(dy) && dy.rows > 0;
  for (const LoraView& pair : lora.pairs)
    suits = suits && pair.first_column % 8 == 0 && pair.bt.cols % 8 == 0 && pair.bt.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(pair.bt.data) % 16 == 0;
  in_launches(lora, dy.rows, [&](const OutputJobs& set, const Cut& cut) {
    suits = suits && static_cast<std::size_t>(set.blocks + set.count * cut.splits) <= kLoraCounters;
  });
  return suits;
}

void lora_output_grad(const LoraSet& lora, const Tensor& dy, const Tensor& inner, const Tensor& inner_grad, const LoraScratch& scratch,
                      cudaStream_t stream) {
  const int ranks = ranks_of(lora);
  in_launches(lora, dy.rows, [&](const OutputJobs& set, const Cut& cut) {
    const dim3 grid(static_cast<unsigned>(set.blocks), static_cast<unsigned>(cut.splits));
    const auto bytes = static_cast<std::size_t>(kWarps * cut.tokens_per_split * ranks) * sizeof(float);
    with_float(dy.dtype, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        OutputCall<T> call{};
        call.dy = dy.as<T>();
        call.dy_stride = dy.stride;
        call.tokens = dy.rows;
        call.tokens_per_split = cut.tokens_per_split;
        call.inner = inner.as<float>();
        call.inner_stride = inner.stride;
        call.inner_grad = inner_grad.as<float>();
        call.inner_grad_stride = inner_grad.stride;
        call.b_partial = static_cast<float*>(scratch.partial);
        call.z_partial = call.b_partial + b_partial_size(set, cut, ranks);
        call.counters = scratch.counters;
        const auto launch = [&]<int NT>() {
          const auto kernel = output_grad_kernel<T, NT>;
          check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of lora_output_grad");
          kernel<<<grid, kWarps * 32, bytes, stream>>>(call, set);
        };
        if (ranks == 8)
          launch.template operator()<1>();
        else
          launch.template operator()<2>();
      }
    });
    check_launch("lora_output_grad");
  });
}

}  // namespace pipelora::cuda
