// The gradient of LoRA's A, and that of B where lora_output_grad.cu does not suit.
//
// A warp keeps eight ranks of a strip's columns of the gradient in registers while it walks over tokens.
#include <algorithm>

#include "ops/cuda/lora.h"
#include "ops/cuda/lora_device.cuh"
#include "ops/cuda/mma.cuh"

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
        if (job.mask_in != 0) keep = keep_bits(own, t, c, job.module, job.threshold);
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

// On tensor cores: rows 0-7 of the left operand are the ranks of a left matrix rounded to 16 bits, rows 8-15 what the
// rounding left over; 16 tokens are the inner dimension. A lane holds eight neighbouring columns of four tokens (the eight
// elements of one call of dropout's generator), so product j of eight covers columns j, 8 + j, 16 + j, …
constexpr int kTileColumns = 64;

template <class T>
__global__ void __launch_bounds__(kGradWarps * 32) weight_grad_tiles_kernel(GradJobs jobs, std::int64_t tokens,
                                                                            std::int64_t tokens_per_split, Mask mask,
                                                                            float* partial, std::uint32_t* counters) {
  __shared__ __align__(16) float sums[kGradWarps][8][kTileColumns + 4];
  const int strip = static_cast<int>(blockIdx.x);
  const GradJob& job = jobs.job[job_of(jobs, strip)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip_column = static_cast<std::int64_t>(strip - job.first_strip) * kTileColumns;
  const std::int64_t c = strip_column + g * 8;
  const bool in = c < job.columns;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  const T* right = static_cast<const T*>(job.right) + c;
  Mask own = mask;
  own.in = job.mask_in;
  const bool has_rank = g < job.rank;

  float acc[8][4] = {};
  const uint4 none = make_uint4(0, 0, 0, 0);
  const auto token = [&](std::int64_t t, int i) { return t + 2 * q + (i & 1) + (i >> 1) * 8; };
  const auto read = [&](std::int64_t t, uint4 (&x)[4], float (&l)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = token(t, i);
      x[i] = in && at < end ? *reinterpret_cast<const uint4*>(right + at * job.right_stride) : none;
      l[i] = has_rank && at < end ? __ldg(job.left + at * job.left_stride + g) : 0.0f;
    }
  };
  uint4 next[4];
  float next_left[4];
  read(begin + warp * 16, next, next_left);
  for (std::int64_t t = begin + warp * 16; t < end; t += kGradWarps * 16) {
    uint4 x[4];
    float left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = next[i];
      left[i] = next_left[i];
    }
    read(t + kGradWarps * 16, next, next_left);
    if (job.mask_in != 0 && in) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = token(t, i);
        if (at < end) x[i] = masked<T>(x[i], keep_bits(own, at, c, job.module, job.threshold));
      }
    }
    std::uint32_t a0, a1, a2, a3;
    split2<T>(left[0], left[1], a0, a1);
    split2<T>(left[2], left[3], a2, a3);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const auto word = [&](int i) { return j / 2 == 0 ? x[i].x : j / 2 == 1 ? x[i].y : j / 2 == 2 ? x[i].z : x[i].w; };
      constexpr std::uint32_t kLow = 0x5410, kHigh = 0x7632;
      const std::uint32_t b0 = __byte_perm(word(0), word(1), j % 2 == 0 ? kLow : kHigh);
      const std::uint32_t b1 = __byte_perm(word(2), word(3), j % 2 == 0 ? kLow : kHigh);
      mma(T{}, acc[j], a0, a1, a2, a3, b0, b1);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    sums[warp][g][2 * q * 8 + j] = acc[j][0] + acc[j][2];
    sums[warp][g][(2 * q + 1) * 8 + j] = acc[j][1] + acc[j][3];
  }
  __syncthreads();
  constexpr int kItems = 8 * kTileColumns;
  float* mine = part_of(partial, blockIdx.y, kItems);
  const bool splits = gridDim.y > 1;
  const auto of_warps = [&](int item) { return sum_of_warps(sums, item / kTileColumns, item % kTileColumns); };
  if (splits) {
    for (int item = static_cast<int>(threadIdx.x); item < kItems; item += kGradWarps * 32) mine[item] = of_warps(item);
    if (!comes_last(counters)) return;
  }
  for (int item = static_cast<int>(threadIdx.x); item < kItems; item += kGradWarps * 32) {
    const int r = item / kTileColumns;
    const std::int64_t column = strip_column + item % kTileColumns;
    if (r >= job.rank || column >= job.columns) continue;
    const float total = splits ? sum_of_splits(partial, kItems, item) : of_warps(item);
    job.grad[r * job.grad_stride + column] += total * job.factor;
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

/// Columns of a strip: of the kernel on tensor cores, or of the plain one.
std::int64_t strip_columns(bool tiles) { return tiles ? kTileColumns : kStripColumns; }

bool on_tiles(DType dtype, const std::vector<GradJob>& jobs) {
  return dtype != DType::f32 && std::all_of(jobs.begin(), jobs.end(), [](const GradJob& job) { return job.wide; });
}

/// Splits of the tokens: enough blocks for the chip, at least 128 tokens each. Depends on shapes alone.
std::int64_t splits_of(std::int64_t strips, std::int64_t tokens) {
  const std::int64_t wanted = (800 + strips - 1) / strips;
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, tokens / 128));
}

/// Jobs are launched kMaxJobs at a time.
template <class F>
void in_launches(const std::vector<GradJob>& jobs, std::int64_t columns, std::int64_t tokens, F&& f) {
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    GradJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      set.job[i].first_strip = set.strips;
      set.strips += static_cast<int>((set.job[i].columns + columns - 1) / columns);
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

std::vector<GradJob> b_grad_jobs(const LoraSet& lora, const Tensor& dy, const Tensor& inner) {
  std::vector<GradJob> jobs;
  for (const LoraView& pair : lora.pairs)
    add_jobs(jobs, dy.columns(pair.first_column, pair.bt.cols), inner, pair, pair.grad_bt, pair.scale, false);
  return jobs;
}

std::size_t bytes_of(DType dtype, const std::vector<GradJob>& jobs, std::int64_t tokens) {
  std::size_t bytes = 0;
  const std::int64_t columns = strip_columns(on_tiles(dtype, jobs));
  in_launches(jobs, columns, tokens, [&](const GradJobs& set, std::int64_t splits) {
    bytes = std::max(bytes, static_cast<std::size_t>(splits * set.strips * 8 * columns) * sizeof(float));
  });
  return bytes;
}

void run(DType dtype, const std::vector<GradJob>& jobs, std::int64_t tokens, const Mask& mask, const LoraScratch& scratch,
                      cudaStream_t stream) {
  const bool tiles = on_tiles(dtype, jobs);
  in_launches(jobs, strip_columns(tiles), tokens, [&](const GradJobs& set, std::int64_t splits) {
    if (static_cast<std::size_t>(set.strips) > kLoraCounters) throw Error(kTensorMismatch, "a product of too many columns");
    const std::int64_t per_split = ((tokens + splits - 1) / splits + 15) / 16 * 16;
    const dim3 grid(static_cast<unsigned>(set.strips), blocks_for(tokens, per_split));
    with_float(dtype, [&]<class T>(T) {
      float* partial = static_cast<float*>(scratch.partial);
      if constexpr (sizeof(T) == 2) {
        if (tiles) {
          weight_grad_tiles_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, tokens, per_split, mask, partial, scratch.counters);
          return;
        }
      }
      weight_grad_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, tokens, per_split, mask, partial, scratch.counters);
    });
    check_launch("lora_weight_grad");
  });
}

}  // namespace

std::size_t lora_a_grad_bytes(const LoraAGrad& call) { return bytes_of(call.x.dtype, a_grad_jobs(call), call.x.rows); }
void lora_a_grad(const LoraAGrad& call, const LoraScratch& scratch, cudaStream_t stream) {
  if (call.x.rows == 0) return;
  run(call.x.dtype, a_grad_jobs(call), call.x.rows, mask_of(call.lora.dropout, call.sequences, call.x.cols), scratch, stream);
}

std::size_t lora_b_grad_bytes(const LoraSet& lora, const Tensor& dy, const Tensor& inner) {
  return bytes_of(dy.dtype, b_grad_jobs(lora, dy, inner), dy.rows);
}
void lora_b_grad(const LoraSet& lora, const Tensor& dy, const Tensor& inner, const LoraScratch& scratch, cudaStream_t stream) {
  run(dy.dtype, b_grad_jobs(lora, dy, inner), dy.rows, Mask(), scratch, stream);
}

}  // namespace pipelora::cuda
