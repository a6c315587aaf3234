// Gradients of LoRA's B on tensor cores, grad_bt += scale * innerᵀ dy, and from the same reading of dy the gradient of the inner
// vectors, scale * dy B.
//
// A warp takes 64 columns of dy and walks over tokens, 16 at a time; rows come through its own stages of shared memory. f32
// operands of up to eight ranks are split into two 16-bit numbers: for the gradient in rows 0-7 and 8-15 of the left side, for the
// inner vectors in two products. Those of sixteen are rounded.
#include "ops/cuda/lora/outer.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kStepTokens = 16;
constexpr int kStages = 4;
constexpr int kRowBytes = kOuterWarpColumns * 2 + 16;  // a gap keeps the eight rows of a matrix in different banks
constexpr int kStageBytes = kStepTokens * kRowBytes;
template <int NT>
constexpr int kChunk = 64 / NT;  // tokens whose sums the warps of a block exchange at a time

template <int NT>
constexpr std::size_t kSharedBytes = kOuterWarps * (kStages * kStageBytes + 2 * kChunk<NT> * 8 * NT * sizeof(float));

template <class T, int NT>
__global__ void __launch_bounds__(kOuterThreads, 4) b_grad_kernel(OuterJobs jobs, std::int64_t tokens, std::int64_t tokens_per_split, OuterPartial partial) {
  constexpr bool kSplits = NT == 1;
  constexpr int kRanks = 8 * NT, kChunkTokens = kChunk<NT>;
  constexpr int kOfChunk = kChunkTokens * kRanks;
  extern __shared__ __align__(16) char shared[];  // the warps' stages, then the sums of two chunks [2][kOuterWarps][kOfChunk]
  const int block = static_cast<int>(blockIdx.x);
  const OuterJob& job = job_of(jobs, block);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip = static_cast<std::int64_t>(block - job.first_block) * kOuterColumns + warp * kOuterWarpColumns;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  float* sums = reinterpret_cast<float*>(shared + kOuterWarps * kStages * kStageBytes);
  const std::uint32_t stages_at = shared_address(shared + warp * kStages * kStageBytes);

  // A lane copies pieces of eight columns: piece lane % 8 of rows lane / 8, + 4, + 8, + 12.
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
  for (int i = 0; i < kStages - 1; ++i) fetch(begin + i * kStepTokens, i);

  float left[4][NT];
  const auto read_left = [&](std::int64_t t) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = t + 2 * q + i % 2 + i / 2 * 8;
        left[i][n] = n * 8 + g < job.rank && at < end ? __ldg(job.left + at * job.left_stride + n * 8 + g) : 0.0f;
      }
    }
  };
  read_left(begin);

  std::uint32_t high[NT][4][2];  // of the rows of B: 16 columns a product
  [[maybe_unused]] std::uint32_t low[kSplits ? 4 : 1][2];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t c = strip + k * 16 + half * 8 + 2 * q;
        float2 b = make_float2(0, 0);
        if (n * 8 + g < job.rank && c < job.columns) b = __ldg(reinterpret_cast<const float2*>(job.rows + (n * 8 + g) * job.rows_stride + c));
        if constexpr (kSplits)
          split2<T>(b.x, b.y, high[n][k][half], low[k][half]);
        else
          high[n][k][half] = pack2(T{}, b.x, b.y);
      }
    }
  }

  float acc[8][4] = {};
  int stage = 0, chunk = 0;
  for (std::int64_t first = begin; first < end; first += kChunkTokens, chunk ^= 1) {
    float* sums_of_chunk = sums + chunk * kOuterWarps * kOfChunk;
    const std::int64_t last = min(end, first + kChunkTokens);
    for (std::int64_t t = first; t < last; t += kStepTokens, stage = stage + 1 == kStages ? 0 : stage + 1) {
      std::uint32_t l[2][2];
      left_side<T>(left[0], left[1], l[0]);
      left_side<T>(left[2], left[3], l[1]);
      read_left(t + kStepTokens);
      wait_copies<kStages - 2>();
      __syncwarp();  // and all have read the stage that is filled now
      fetch(t + (kStages - 1) * kStepTokens, stage == 0 ? kStages - 1 : stage - 1);

      const std::uint32_t rows_at = stages_at + stage * kStageBytes + lane % 16 * kRowBytes + lane / 16 * 16;
      float z[NT][kSplits ? 2 : 1][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // 16 columns
        std::uint32_t a[4], b[4];
        // For the gradient tokens are the inner dimension: the tile is read transposed.
        load_matrices_transposed(b, rows_at + k * 32);
        load_matrices(a, rows_at + k * 32);
        mma(T{}, acc[2 * k], l[0][0], l[0][1], l[1][0], l[1][1], b[0], b[1]);
        mma(T{}, acc[2 * k + 1], l[0][0], l[0][1], l[1][0], l[1][1], b[2], b[3]);
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(T{}, z[n][0], a[0], a[1], a[2], a[3], high[n][k][0], high[n][k][1]);
        if constexpr (kSplits) mma(T{}, z[0][1], a[0], a[1], a[2], a[3], low[k][0], low[k][1]);
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float* to = sums_of_chunk + warp * kOfChunk + (t - first + g) * kRanks + n * 8 + 2 * q;
        if constexpr (kSplits) {
#pragma unroll
          for (int i = 0; i < 4; ++i) z[n][0][i] += z[n][1][i];
        }
        *reinterpret_cast<float2*>(to) = make_float2(z[n][0][0], z[n][0][1]);
        *reinterpret_cast<float2*>(to + 8 * kRanks) = make_float2(z[n][0][2], z[n][0][3]);
      }
    }
    __syncthreads();  // the next chunk's sums go elsewhere: one barrier a chunk
    float* to = partial.inner + (static_cast<std::int64_t>(block) * tokens + first) * kRanks;
    for (int item = static_cast<int>(threadIdx.x) * 4; item < static_cast<int>(last - first) * kRanks; item += kOuterThreads * 4) {
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kOuterWarps; ++w) {
        const float4 part = *reinterpret_cast<const float4*>(sums_of_chunk + w * kOfChunk + item);
        total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
      }
      *reinterpret_cast<float4*>(to + item) = total;
    }
  }
  wait_copies<0>();

  float* out = partial.grads + (static_cast<std::int64_t>(blockIdx.y) * jobs.blocks + block) * kRanks * kOuterColumns + warp * kOuterWarpColumns + 2 * q;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<float2*>(out + (n * 8 + g) * kOuterColumns + j * 8) = make_float2(sum_of_rank<NT>(acc[j], n, 0), sum_of_rank<NT>(acc[j], n, 1));
  }
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

}  // namespace

std::size_t lora_b_grad_bytes(const LoraBGrad& call) {
  const std::vector<Outer> outers = outers_of(call);
  const int ranks = ranks_of(outers);
  std::int64_t most = 0;
  for (const OuterLaunch& launch : outer_launches(outers))
    most = std::max(most, grads_size(launch, ranks) + launch.jobs.blocks * call.dy.rows * ranks);
  return static_cast<std::size_t>(most) * sizeof(float);
}

void lora_b_grad(const LoraBGrad& call, void* scratch, cudaStream_t stream) {
  const std::vector<Outer> outers = outers_of(call);
  const int ranks = ranks_of(outers);
  const std::int64_t tokens = call.dy.rows;
  for (const OuterLaunch& launch : outer_launches(outers)) {
    OuterPartial partial{static_cast<float*>(scratch), nullptr};
    partial.inner = partial.grads + grads_size(launch, ranks);
    with_float(call.dy.dtype, [&]<class T>(T) {
      if constexpr (sizeof(T) == 2) {
        const auto run = [&]<int NT>() {
          const auto kernel = b_grad_kernel<T, NT>;
          constexpr auto kBytes = kSharedBytes<NT>;
          check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)), "shared memory of LoRA's gradients");
          const dim3 grid(static_cast<unsigned>(launch.jobs.blocks), static_cast<unsigned>(launch.cut.splits));
          kernel<<<grid, kOuterThreads, kBytes, stream>>>(launch.jobs, tokens, launch.cut.tokens_per_split, partial);
        };
        if (ranks == 8)
          run.template operator()<1>();
        else
          run.template operator()<2>();
      }
    });
    check_launch("LoRA's gradients of B");
    add_outer_parts(launch, tokens, ranks, partial, stream);
  }
}

}  // namespace pipelora::cuda
