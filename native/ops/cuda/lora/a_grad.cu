// Gradients of LoRA's A on tensor cores, grad_a += inner_gradᵀ drop(x).
//
// A warp takes 64 columns of x and walks over tokens, 16 at a time, whose rows come through its own stages of shared memory. Lane
// (g, q) takes columns 8 g … 8 g + 7 of tokens 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 from there, masks them (eight elements are one
// call of dropout's generator), and has the products' right side in its registers.
#include "ops/cuda/lora/outer.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kStepTokens = 16;
constexpr int kStages = 4;
constexpr int kPieces = 4;  // of a lane
constexpr int kStageBytes = kStepTokens * kOuterWarpColumns * 2;

template <class T, int NT, bool kMasked>
__global__ void __launch_bounds__(kOuterThreads, 4) a_grad_kernel(OuterJobs jobs, std::int64_t tokens, std::int64_t tokens_per_split, Mask mask,
                                                                  float* partial) {
  __shared__ __align__(128) char stages[kOuterWarps][kStages][kStageBytes];
  const int block = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const OuterJob& job = job_of(jobs, block);
  const std::int64_t strip = static_cast<std::int64_t>(block - job.first_block) * kOuterColumns + warp * kOuterWarpColumns, c = strip + g * 8;
  const std::int64_t begin = blockIdx.y * tokens_per_split;
  const int count = static_cast<int>(min(tokens - begin, tokens_per_split));  // tokens are counted from `begin`
  const std::uint32_t stages_at = shared_address(stages[warp]);

  const std::int64_t copied_column = strip + lane % 8 * 8;
  const int copied_rows = copied_column < job.columns ? count : 0;
  const T* right = static_cast<const T*>(job.right) + (begin + lane / 8) * job.right_stride + copied_column;
  const std::int64_t right_step = 4 * job.right_stride;
  const auto fetch = [&](int t, int stage) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = lane / 8 + 4 * i;
      const bool valid = t + row < copied_rows;
      copy_async(stages_at + stage * kStageBytes + piece_at(row, lane % 8), valid ? right : job.right, valid);
      right += right_step;
    }
    commit_copies();
  };
  float left[kPieces][NT];
  TokenPlace place[kPieces];
  const int left_stride = static_cast<int>(job.left_stride);
  const float* left_at = job.left + (begin + 2 * q) * job.left_stride + g;
  const auto read_ahead = [&](int t) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = i % 2 + i / 2 * 8, at = t + 2 * q + row;
      if constexpr (kMasked) place[i] = at < count ? token_place(mask, begin + at) : TokenPlace{};
#pragma unroll
      for (int n = 0; n < NT; ++n) left[i][n] = n * 8 + g < job.rank && at < count ? __ldg(left_at + row * left_stride + n * 8) : 0.0f;
    }
    left_at += kStepTokens * left_stride;
  };

  for (int i = 0; i < kStages - 1; ++i) fetch(i * kStepTokens, i);
  read_ahead(0);
  float acc[8][4] = {};
  int stage = 0;
  for (int t = 0; t < count; t += kStepTokens, stage = stage + 1 == kStages ? 0 : stage + 1) {
    uint4 keep[kPieces];
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) keep[i] = keep_words(mask, place[i], c, job.module, job.masked ? job.threshold : 0);
    }
    std::uint32_t rows[2][2];
    left_side<T>(left[0], left[1], rows[0]);
    left_side<T>(left[2], left[3], rows[1]);
    read_ahead(t + kStepTokens);
    wait_copies<kStages - 2>();
    __syncwarp();  // and all have read the stage that is filled now
    fetch(t + (kStages - 1) * kStepTokens, stage == 0 ? kStages - 1 : stage - 1);
    uint4 x[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      x[i] = load_shared(stages_at + stage * kStageBytes + piece_at(2 * q + i % 2 + i / 2 * 8, g));
      if constexpr (kMasked) x[i] = both(x[i], keep[i]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      mma(T{}, acc[j], rows[0][0], rows[0][1], rows[1][0], rows[1][1], column_of(x[0], x[1], j), column_of(x[2], x[3], j));
    }
  }
  wait_copies<0>();

  float* out = partial + (static_cast<std::int64_t>(blockIdx.y) * jobs.blocks + block) * 8 * NT * kOuterColumns + warp * kOuterWarpColumns;
  store_outer<NT>(acc, out + g * kOuterColumns);
}

}  // namespace

std::vector<Outer> outers_of(const LoraAGrad& call) {
  std::vector<Outer> outers;
  for (const LoraView& pair : call.lora.pairs) {
    const bool drops = call.lora.dropout != nullptr && pair.dropout > 0;
    outers.push_back({call.x, call.inner_grad.columns(pair.first_inner, pair.a.rows), pair.grad_a, drops ? 1.0f / (1.0f - pair.dropout) : 1.0f,
                      &pair, drops, Tensor()});
  }
  return outers;
}

std::size_t lora_a_grad_bytes(const LoraAGrad& call) {
  const std::vector<Outer> outers = outers_of(call);
  std::int64_t most = 0;
  for (const OuterLaunch& launch : outer_launches(outers)) most = std::max(most, grads_size(launch, ranks_of(outers)));
  return static_cast<std::size_t>(most) * sizeof(float);
}

void lora_a_grad(const LoraAGrad& call, void* scratch, cudaStream_t stream) {
  const std::vector<Outer> outers = outers_of(call);
  const bool masked = std::any_of(outers.begin(), outers.end(), [](const Outer& outer) { return outer.masked; });
  const int ranks = ranks_of(outers);
  const std::int64_t tokens = call.x.rows;
  const Mask mask = mask_of(call.lora.dropout, call.sequences, call.x.cols);
  const OuterPartial partial{static_cast<float*>(scratch), nullptr};
  for (const OuterLaunch& launch : outer_launches(outers)) {
    with_float(call.x.dtype, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        const auto kernel = masked ? ranks == 8 ? a_grad_kernel<T, 1, true> : a_grad_kernel<T, 2, true>
                                   : ranks == 8 ? a_grad_kernel<T, 1, false> : a_grad_kernel<T, 2, false>;
        const dim3 grid(static_cast<unsigned>(launch.jobs.blocks), static_cast<unsigned>(launch.cut.splits));
        kernel<<<grid, kOuterThreads, 0, stream>>>(launch.jobs, tokens, launch.cut.tokens_per_split, mask, partial.grads);
      }
    });
    check_launch("LoRA's gradients of A");
    add_outer_parts(launch, tokens, ranks, partial, stream);
  }
}

}  // namespace pipelora::cuda
