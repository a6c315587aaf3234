// Gradients of LoRA's A and B for any dtype and shape.
//
// A warp keeps eight ranks of a strip's columns of the gradient in registers while it walks over tokens.
#include <algorithm>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"

namespace pipelora::cuda {

namespace {

/// grad[r, c] += factor * sum_t left[t, r] * right[t, c], for up to eight ranks and a matrix's columns.
struct GradJob {
  const void* right;
  std::int64_t right_stride, columns;
  const float* left;
  std::int64_t left_stride;
  float* grad;
  std::int64_t grad_stride;
  int rank;
  float factor;
  std::uint32_t module, threshold;
  std::int64_t mask_in;  // 0: not masked
  int first_strip;
  bool wide;
};
constexpr int kMaxJobs = 8;
struct GradJobs {
  GradJob job[kMaxJobs];
  int count, strips;
};

__device__ inline int job_of(const GradJobs& jobs, int strip) {
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_strip <= strip) ++which;
  return which;
}

constexpr int kStripColumns = 256;
constexpr int kGradWarps = 8;

template <class T>
__global__ void __launch_bounds__(kGradWarps * 32) weight_grad_kernel(GradJobs jobs, std::int64_t tokens,
                                                                      std::int64_t tokens_per_split, Mask mask,
                                                                      float* partial, std::uint32_t* counters) {
  __shared__ __align__(16) float sums[kGradWarps][4][kStripColumns];
  const int strip = static_cast<int>(blockIdx.x);
  const GradJob& job = jobs.job[job_of(jobs, strip)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t strip_column = static_cast<std::int64_t>(strip - job.first_strip) * kStripColumns;
  const std::int64_t c = strip_column + lane * 8;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  const T* right = static_cast<const T*>(job.right);
  Mask own = mask;
  own.in = job.mask_in;

  float acc[8][8] = {};
  if (c < job.columns) {
#pragma unroll 2
    for (std::int64_t t = begin + warp; t < end; t += kGradWarps) {
      Floats<8> x;
      const T* at = right + t * job.right_stride + c;
      std::uint32_t keep = 0xFFu;
      if (job.wide) {
        x = load<8>(at);
        if (job.mask_in != 0) keep = keep_bits(own, token_place(own, t), c, job.module, job.threshold);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x.v[i] = c + i < job.columns ? widen(at[i]) : 0.0f;
          if (job.mask_in != 0 && c + i < job.columns && !keep_one(own, t, c + i, job.module, job.threshold)) keep &= ~(1u << i);
        }
      }
      const float* left = job.left + t * job.left_stride;
#pragma unroll
      for (int i = 0; i < 8; ++i) x.v[i] = keep >> i & 1u ? x.v[i] : 0.0f;
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const float l = r < job.rank ? left[r] : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[r][i] += l * x.v[i];
      }
    }
  }
  constexpr int kItems = 8 * kStripColumns;
  float* mine = part_of(partial, blockIdx.y, kItems);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        *reinterpret_cast<float4*>(&sums[warp][r][lane * 8 + i]) =
            make_float4(acc[half * 4 + r][i], acc[half * 4 + r][i + 1], acc[half * 4 + r][i + 2], acc[half * 4 + r][i + 3]);
      }
    }
    __syncthreads();
    for (int item = static_cast<int>(threadIdx.x); item < 4 * kStripColumns; item += kGradWarps * 32) {
      mine[half * 4 * kStripColumns + item] = sum_of_warps(sums, item / kStripColumns, item % kStripColumns);
    }
  }
  if (!comes_last(counters)) return;
  for (int item = static_cast<int>(threadIdx.x); item < kItems; item += kGradWarps * 32) {
    const int r = item / kStripColumns;
    const std::int64_t column = strip_column + item % kStripColumns;
    if (r >= job.rank || column >= job.columns) continue;
    job.grad[r * job.grad_stride + column] += sum_of_splits(partial, kItems, item) * job.factor;
  }
}

void add_jobs(std::vector<GradJob>& jobs, const Tensor& right, const Tensor& left, const LoraView& pair, const Tensor& grad, float factor,
              bool masked) {
  for (std::int64_t r = 0; r < grad.rows; r += 8) {
    GradJob job{};
    job.right = right.data;
    job.right_stride = right.stride;
    job.columns = right.cols;
    job.left = left.as<float>() + pair.first_inner + r;
    job.left_stride = left.stride;
    job.grad = grad.as<float>() + r * grad.stride;
    job.grad_stride = grad.stride;
    job.rank = static_cast<int>(std::min<std::int64_t>(8, grad.rows - r));
    job.factor = factor;
    job.module = pair.module_id;
    job.threshold = dropout_threshold(pair.dropout);
    job.mask_in = masked ? right.cols : 0;
    job.wide = eights(right);
    jobs.push_back(job);
  }
}

/// Splits of the tokens: enough blocks for the chip, at least 128 tokens each. Depends on shapes alone.
std::int64_t splits_of(std::int64_t strips, std::int64_t tokens) {
  const std::int64_t wanted = (800 + strips - 1) / strips;
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, tokens / 128));
}

/// Jobs are launched kMaxJobs at a time.
template <class F>
void in_launches(const std::vector<GradJob>& jobs, std::int64_t tokens, F&& f) {
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    GradJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      set.job[i].first_strip = set.strips;
      set.strips += static_cast<int>((set.job[i].columns + kStripColumns - 1) / kStripColumns);
    }
    f(set, splits_of(set.strips, tokens));
  }
}

std::vector<GradJob> a_grad_jobs(const LoraAGrad& call) {
  std::vector<GradJob> jobs;
  for (const LoraView& pair : call.lora.pairs) {
    const bool drops = call.lora.dropout != nullptr && pair.dropout > 0;
    add_jobs(jobs, call.x, call.inner_grad, pair, pair.grad_a, drops ? 1.0f / (1.0f - pair.dropout) : 1.0f, drops);
  }
  return jobs;
}

std::vector<GradJob> b_grad_jobs(const LoraBGrad& call) {
  std::vector<GradJob> jobs;
  for (const LoraView& pair : call.lora.pairs)
    add_jobs(jobs, call.dy.columns(pair.first_column, pair.bt.cols), call.inner, pair, pair.grad_bt, pair.scale, false);
  return jobs;
}

std::size_t bytes_of(const std::vector<GradJob>& jobs, std::int64_t tokens) {
  std::size_t bytes = 0;
  in_launches(jobs, tokens, [&](const GradJobs& set, std::int64_t splits) {
    bytes = std::max(bytes, static_cast<std::size_t>(splits * set.strips * 8 * kStripColumns) * sizeof(float));
  });
  return bytes;
}

void run(DType dtype, const std::vector<GradJob>& jobs, std::int64_t tokens, const Mask& mask, const LoraScratch& scratch, cudaStream_t stream) {
  in_launches(jobs, tokens, [&](const GradJobs& set, std::int64_t splits) {
    if (static_cast<std::size_t>(set.strips) > kLoraCounters) throw Error(kTensorMismatch, "a product of too many columns");
    const std::int64_t per_split = ((tokens + splits - 1) / splits + 15) / 16 * 16;
    const dim3 grid(static_cast<unsigned>(set.strips), blocks_for(tokens, per_split));
    with_float(dtype, [&]<class T>(T) {
      weight_grad_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, tokens, per_split, mask, static_cast<float*>(scratch.partial), scratch.counters);
    });
    check_launch("LoRA's gradients");
  });
}

}  // namespace

std::size_t lora_a_grad_plain_bytes(const LoraAGrad& call) { return bytes_of(a_grad_jobs(call), call.x.rows); }
void lora_a_grad_plain(const LoraAGrad& call, const LoraScratch& scratch, cudaStream_t stream) {
  run(call.x.dtype, a_grad_jobs(call), call.x.rows, mask_of(call.lora.dropout, call.sequences, call.x.cols), scratch, stream);
}

std::size_t lora_b_grad_plain_bytes(const LoraBGrad& call) { return bytes_of(b_grad_jobs(call), call.dy.rows); }
void lora_b_grad_plain(const LoraBGrad& call, const LoraScratch& scratch, cudaStream_t stream) {
  run(call.dy.dtype, b_grad_jobs(call), call.dy.rows, Mask(), scratch, stream);
}

}  // namespace pipelora::cuda
