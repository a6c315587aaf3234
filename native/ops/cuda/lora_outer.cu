// Gradients of LoRA's A and B on tensor cores: sums over tokens of outer products, left[t, :] right[t, :]. For B, right is the
// gradient of a product's output, and the same reading of it gives the gradient of the inner vectors (right Bᵀ).
//
// A warp takes 64 columns of `right` and walks over tokens, 16 at a time; rows come through its own stages of shared memory.
// f32 operands are split into two 16-bit numbers: for the gradient in rows 0-7 and 8-15 of the left side, for the inner vectors
// in two products. Every block leaves partial sums, a second kernel adds them in a fixed order.
#include <algorithm>

#include "ops/cuda/lora.h"
#include "ops/cuda/lora_device.cuh"
#include "ops/cuda/mma.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpColumns = 64;
constexpr int kBlockColumns = kWarps * kWarpColumns;
constexpr int kStepTokens = 16;
constexpr int kStages = 4;
constexpr int kRowBytes = kWarpColumns * 2 + 16;  // a gap keeps the eight rows of a matrix in different banks
constexpr int kStageBytes = kStepTokens * kRowBytes;
constexpr int kMostTokens = 256;  // of a split
constexpr int kMaxJobs = 8;

/// Up to 8 NT ranks of one pair.
struct OuterJob {
  const void* right;
  std::int64_t right_stride, columns;
  const float* left;  // [tokens, rank]
  std::int64_t left_stride;
  float* grad;  // [rank, columns]
  std::int64_t grad_stride;
  float factor;
  int rank;
  int first_block, blocks;  // of kBlockColumns columns
  // A: dropout of `right`.
  std::uint32_t module, threshold;
  bool masked;
  // B: its rows, and where the inner vectors' gradient goes.
  const float* rows;
  std::int64_t rows_stride;
  float* inner_grad;
  std::int64_t inner_grad_stride;
};
struct OuterJobs {
  OuterJob job[kMaxJobs];
  int count, blocks;
};

struct Cut {
  std::int64_t splits, tokens_per_split;
};

struct Partial {
  float* grads;  // [splits, blocks, 8 NT, kBlockColumns]
  float* inner;  // [blocks, tokens, 8 NT]
};

template <class T, int NT, bool kInner, bool kMasked>
__global__ void __launch_bounds__(kThreads, 3) outer_kernel(OuterJobs jobs, std::int64_t tokens, std::int64_t tokens_per_split, Mask mask,
                                                            Partial partial) {
  constexpr int kRanks = 8 * NT;
  extern __shared__ __align__(16) char shared[];  // the warps' stages; with kInner [kWarps][tokens_per_split][kRanks] sums
  const int block = static_cast<int>(blockIdx.x);
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_block <= block) ++which;
  const OuterJob& job = jobs.job[which];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip = static_cast<std::int64_t>(block - job.first_block) * kBlockColumns + warp * kWarpColumns;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  float* sums = reinterpret_cast<float*>(shared + kWarps * kStages * kStageBytes);
  char* stages = shared + warp * kStages * kStageBytes;
  const std::uint32_t stages_at = shared_address(stages);

  // A lane copies (and masks) pieces of eight columns: piece lane % 8 of rows lane / 8, + 4, + 8, + 12.
  const std::int64_t own_column = strip + lane % 8 * 8;
  const T* right = static_cast<const T*>(job.right) + own_column;
  const auto fetch = [&](std::int64_t t, int stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 8 + 4 * i;
      const bool valid = own_column < job.columns && t + row < end;
      copy_async(stages_at + stage * kStageBytes + row * kRowBytes + lane % 8 * 16, valid ? right + (t + row) * job.right_stride : job.right, valid);
    }
    commit_copies();
  };

  std::uint32_t high[kInner ? NT : 1][4][2], low[kInner ? NT : 1][4][2];  // of the rows of B: 16 columns a product
  if constexpr (kInner) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::int64_t c = strip + k * 16 + half * 8 + 2 * q;
          float2 b = make_float2(0, 0);
          if (n * 8 + g < job.rank && c < job.columns) b = *reinterpret_cast<const float2*>(job.rows + (n * 8 + g) * job.rows_stride + c);
          split2<T>(b.x, b.y, high[n][k][half], low[n][k][half]);
        }
      }
    }
  }

  for (int i = 0; i < kStages - 1; ++i) fetch(begin + i * kStepTokens, i);
  float acc[NT][8][4] = {};
  int stage = 0;
  for (std::int64_t t = begin; t < end; t += kStepTokens, stage = stage + 1 == kStages ? 0 : stage + 1) {
    std::uint32_t left[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float l[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = t + 2 * q + (i & 1) + (i >> 1) * 8;
        l[i] = n * 8 + g < job.rank && at < end ? __ldg(job.left + at * job.left_stride + n * 8 + g) : 0.0f;
      }
      split2<T>(l[0], l[1], left[n][0], left[n][1]);
      split2<T>(l[2], l[3], left[n][2], left[n][3]);
    }
    std::uint32_t keep[4];
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = t + lane / 8 + 4 * i;
        keep[i] = job.masked && own_column < job.columns && at < end ? keep_bits(mask, at, own_column, job.module, job.threshold) : 0xFFu;
      }
    }
    wait_copies<kStages - 2>();
    __syncwarp();
    char* rows = stages + stage * kStageBytes;
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint4* piece = reinterpret_cast<uint4*>(rows + (lane / 8 + 4 * i) * kRowBytes + lane % 8 * 16);
        *piece = masked<T>(*piece, keep[i]);
      }
      __syncwarp();
    }
    fetch(t + (kStages - 1) * kStepTokens, stage == 0 ? kStages - 1 : stage - 1);

    const std::uint32_t rows_at = stages_at + stage * kStageBytes;
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 16 columns
      // Tokens are the inner dimension: the tile is read transposed.
      std::uint32_t b[4];
      load_matrices_transposed(b, rows_at + lane % 16 * kRowBytes + k * 32 + lane / 16 * 16);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        mma(T{}, acc[n][2 * k], left[n][0], left[n][1], left[n][2], left[n][3], b[0], b[1]);
        mma(T{}, acc[n][2 * k + 1], left[n][0], left[n][1], left[n][2], left[n][3], b[2], b[3]);
      }
    }
    if constexpr (kInner) {
      float z[NT][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // columns are
        std::uint32_t a[4];
        load_matrices(a, rows_at + lane % 16 * kRowBytes + k * 32 + lane / 16 * 16);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          mma(T{}, z[n], a[0], a[1], a[2], a[3], high[n][k][0], high[n][k][1]);
          mma(T{}, z[n], a[0], a[1], a[2], a[3], low[n][k][0], low[n][k][1]);
        }
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float* to = sums + (warp * tokens_per_split + t - begin + g) * kRanks + n * 8 + 2 * q;
        *reinterpret_cast<float2*>(to) = make_float2(z[n][0], z[n][1]);
        *reinterpret_cast<float2*>(to + 8 * kRanks) = make_float2(z[n][2], z[n][3]);
      }
    }
    __syncwarp();  // all have read this stage before it is filled again
  }
  wait_copies<0>();

  float* out = partial.grads + (static_cast<std::int64_t>(blockIdx.y) * jobs.blocks + block) * kRanks * kBlockColumns + warp * kWarpColumns + 2 * q;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<float2*>(out + (n * 8 + g) * kBlockColumns + j * 8) = make_float2(acc[n][j][0] + acc[n][j][2], acc[n][j][1] + acc[n][j][3]);
  }
  if constexpr (kInner) {
    __syncthreads();
    float* to = partial.inner + (static_cast<std::int64_t>(block) * tokens + begin) * kRanks;
    const int size = static_cast<int>(tokens_per_split) * kRanks;
    for (int item = static_cast<int>(threadIdx.x); item < static_cast<int>(end - begin) * kRanks; item += kThreads)
      to[item] = sums[item] + sums[size + item] + sums[2 * size + item] + sums[3 * size + item];
  }
}

// Four neighbouring sums a thread: the inner vectors' of all jobs first, then the gradients'.
template <int kRanks, bool kInner>
__global__ void __launch_bounds__(128) outer_sum_kernel(OuterJobs jobs, std::int64_t tokens, std::int64_t splits, Partial partial) {
  std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * 128 + threadIdx.x) * 4;
  const auto add = [&](const float* parts, std::int64_t count, std::int64_t distance) {
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (std::int64_t p = 0; p < count; ++p) {
      const float4 part = __ldcg(reinterpret_cast<const float4*>(parts + p * distance));
      total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
    }
    return total;
  };
  if constexpr (kInner) {
    const std::int64_t of_job = tokens * kRanks;
    if (item < jobs.count * of_job) {
      const OuterJob& job = jobs.job[item / of_job];
      item %= of_job;
      const float4 total = add(partial.inner + job.first_block * of_job + item, job.blocks, of_job);
      const float values[4] = {total.x, total.y, total.z, total.w};
      const int r = static_cast<int>(item % kRanks);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (r + i < job.rank) job.inner_grad[item / kRanks * job.inner_grad_stride + r + i] = values[i] * job.factor;
      return;
    }
    item -= jobs.count * of_job;
  }
  constexpr std::int64_t kOfBlock = kRanks * kBlockColumns;
  const std::int64_t block = item / kOfBlock;
  if (block >= jobs.blocks) return;
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_block <= block) ++which;
  const OuterJob& job = jobs.job[which];
  const int r = static_cast<int>(item % kOfBlock / kBlockColumns);
  const std::int64_t column = (block - job.first_block) * kBlockColumns + item % kBlockColumns;
  if (r >= job.rank || column >= job.columns) return;
  const float4 total = add(partial.grads + item, splits, jobs.blocks * kOfBlock);
  float4* to = reinterpret_cast<float4*>(job.grad + r * job.grad_stride + column);
  const float4 old = *to;
  *to = make_float4(old.x + total.x * job.factor, old.y + total.y * job.factor, old.z + total.z * job.factor, old.w + total.w * job.factor);
}

/// What a call asks of a pair, before it is cut into jobs.
struct Outer {
  Tensor right, left, grad;
  float factor = 1;
  const LoraView* pair = nullptr;
  bool masked = false;
  Tensor inner_grad;  // B alone
};

std::vector<Outer> outers_of(const LoraAGrad& call) {
  std::vector<Outer> outers;
  for (const LoraView& pair : call.lora.pairs) {
    const bool drops = call.lora.dropout != nullptr && pair.dropout > 0;
    outers.push_back({call.x, call.inner_grad.columns(pair.first_inner, pair.a.rows), pair.grad_a, drops ? 1.0f / (1.0f - pair.dropout) : 1.0f,
                      &pair, drops, Tensor()});
  }
  return outers;
}
std::vector<Outer> outers_of(const LoraBGrad& call) {
  std::vector<Outer> outers;
  for (const LoraView& pair : call.lora.pairs) {
    const auto inner = [&](const Tensor& all) { return all.columns(pair.first_inner, pair.bt.rows); };
    outers.push_back({call.dy.columns(pair.first_column, pair.bt.cols), inner(call.inner), pair.grad_bt, pair.scale, &pair, false,
                      inner(call.inner_grad)});
  }
  return outers;
}

/// Ranks of a job: 8 where no pair has more, else 16.
int ranks_of(const std::vector<Outer>& outers) {
  return std::any_of(outers.begin(), outers.end(), [](const Outer& outer) { return outer.grad.rows > 8; }) ? 16 : 8;
}

bool suits(const std::vector<Outer>& outers) {
  const auto fours = [](const Tensor& tensor) { return tensor.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0; };
  return std::all_of(outers.begin(), outers.end(), [&](const Outer& outer) {
    return outer.right.dtype != DType::f32 && eights(outer.right) && outer.right.rows > 0 && fours(outer.grad) && fours(outer.pair->bt);
  });
}

/// Calls f(jobs of one launch, their cut), kMaxJobs jobs at a time. A cut gives enough blocks for the chip, and splits that fit
/// in shared memory; it depends on shapes alone.
template <class F>
void in_launches(const std::vector<Outer>& outers, F&& f) {
  const std::int64_t ranks = ranks_of(outers);
  std::vector<OuterJob> jobs;
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
      job.blocks = static_cast<int>((job.columns + kBlockColumns - 1) / kBlockColumns);
      job.module = outer.pair->module_id;
      job.threshold = dropout_threshold(outer.pair->dropout);
      job.masked = outer.masked;
      if (outer.inner_grad) {
        job.rows = outer.pair->bt.as<float>() + r * outer.pair->bt.stride;
        job.rows_stride = outer.pair->bt.stride;
        job.inner_grad = outer.inner_grad.as<float>() + r;
        job.inner_grad_stride = outer.inner_grad.stride;
      }
      jobs.push_back(job);
    }
  }
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    OuterJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      set.job[i].first_block = set.blocks;
      set.blocks += set.job[i].blocks;
    }
    const std::int64_t tokens = outers.front().right.rows;
    const std::int64_t wanted = std::clamp<std::int64_t>((800 + set.blocks - 1) / set.blocks, 1, std::max<std::int64_t>(1, tokens / 32));
    const std::int64_t per_split = std::min<std::int64_t>(kMostTokens, ((tokens + wanted - 1) / wanted + 15) / 16 * 16);
    f(set, Cut{(tokens + per_split - 1) / per_split, per_split});
  }
}

std::int64_t grads_size(const OuterJobs& set, const Cut& cut, int ranks) { return cut.splits * set.blocks * ranks * kBlockColumns; }

std::size_t bytes_of(const std::vector<Outer>& outers, bool inner) {
  std::int64_t most = 0;
  const int ranks = ranks_of(outers);
  in_launches(outers, [&](const OuterJobs& set, const Cut& cut) {
    most = std::max(most, grads_size(set, cut, ranks) + (inner ? set.blocks * outers.front().right.rows * ranks : 0));
  });
  return static_cast<std::size_t>(most) * sizeof(float);
}

template <bool kInner, bool kMasked>
void run(const std::vector<Outer>& outers, const Mask& mask, void* scratch, cudaStream_t stream) {
  const int ranks = ranks_of(outers);
  const std::int64_t tokens = outers.front().right.rows;
  in_launches(outers, [&](const OuterJobs& set, const Cut& cut) {
    Partial partial{static_cast<float*>(scratch), nullptr};
    partial.inner = partial.grads + grads_size(set, cut, ranks);
    const dim3 grid(static_cast<unsigned>(set.blocks), static_cast<unsigned>(cut.splits));
    std::size_t bytes = kWarps * kStages * kStageBytes;
    if (kInner) bytes += static_cast<std::size_t>(kWarps * cut.tokens_per_split * ranks) * sizeof(float);
    const std::int64_t sums = set.blocks * ranks * kBlockColumns + (kInner ? set.count * tokens * ranks : 0);
    with_float(outers.front().right.dtype, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        const auto launch = [&]<int NT>() {
          const auto kernel = outer_kernel<T, NT, kInner, kMasked>;
          check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of LoRA's gradients");
          kernel<<<grid, kThreads, bytes, stream>>>(set, tokens, cut.tokens_per_split, mask, partial);
          outer_sum_kernel<8 * NT, kInner><<<blocks_for(sums, 4 * 128), 128, 0, stream>>>(set, tokens, cut.splits, partial);
        };
        if (ranks == 8)
          launch.template operator()<1>();
        else
          launch.template operator()<2>();
      }
    });
    check_launch("LoRA's gradients");
  });
}

}  // namespace

bool lora_b_grad_suits(const LoraBGrad& call) { return suits(outers_of(call)); }
std::size_t lora_b_grad_bytes(const LoraBGrad& call) { return bytes_of(outers_of(call), true); }
void lora_b_grad(const LoraBGrad& call, void* scratch, cudaStream_t stream) { run<true, false>(outers_of(call), Mask(), scratch, stream); }

bool lora_a_grad_suits(const LoraAGrad& call) { return suits(outers_of(call)); }
std::size_t lora_a_grad_bytes(const LoraAGrad& call) { return bytes_of(outers_of(call), false); }
void lora_a_grad(const LoraAGrad& call, void* scratch, cudaStream_t stream) {
  const std::vector<Outer> outers = outers_of(call);
  if (std::any_of(outers.begin(), outers.end(), [](const Outer& outer) { return outer.masked; }))
    run<false, true>(outers, mask_of(call.lora.dropout, call.sequences, call.x.cols), scratch, stream);
  else
    run<false, false>(outers, Mask(), scratch, stream);
}

}  // namespace pipelora::cuda
