// AdamW and sums of squares over many tensors in one launch: a block takes one chunk of one tensor.
#include <cmath>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

struct AdamFactors {
  float scale, rest1, beta2, rest2, decay, step_size, root, eps;
};

__global__ void adamw_kernel(const AdamChunk* chunks, AdamFactors f) {
  const AdamChunk chunk = chunks[blockIdx.x];
  for (std::int64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    const float g = chunk.grad[i] * f.scale;
    const float m0 = chunk.exp_avg[i];
    const float m = m0 + (g - m0) * f.rest1;
    const float v = chunk.exp_avg_sq[i] * f.beta2 + g * g * f.rest2;
    chunk.exp_avg[i] = m;
    chunk.exp_avg_sq[i] = v;
    chunk.weight[i] = chunk.weight[i] * f.decay - f.step_size * m / (sqrtf(v) / f.root + f.eps);
    chunk.grad[i] = 0;
  }
}

__global__ void sum_squares_kernel(const NormChunk* chunks, double* partial) {
  __shared__ double shared[32];
  const NormChunk chunk = chunks[blockIdx.x];
  double total = 0;
  for (std::int64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    const double v = chunk.values[i];
    total += v * v;
  }
  total = block_sum(total, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void sum_partials_kernel(const double* partial, const std::int32_t* first, std::int64_t tensors, double* sums) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= tensors) return;
  double total = 0;
  for (std::int32_t c = first[i]; c < first[i + 1]; ++c) total += partial[c];
  sums[i] = total;
}

}  // namespace

void adamw(const AdamChunk* chunks, std::int64_t count, const AdamSettings& s, cudaStream_t stream) {
  if (count == 0) return;
  AdamFactors f;
  f.scale = static_cast<float>(s.grad_scale);
  f.rest1 = static_cast<float>(1.0 - s.beta1);
  f.beta2 = static_cast<float>(s.beta2);
  f.rest2 = static_cast<float>(1.0 - s.beta2);
  f.decay = static_cast<float>(1.0 - s.learning_rate * s.weight_decay);
  f.step_size = static_cast<float>(s.learning_rate / (1.0 - std::pow(s.beta1, static_cast<double>(s.step))));
  f.root = static_cast<float>(std::sqrt(1.0 - std::pow(s.beta2, static_cast<double>(s.step))));
  f.eps = static_cast<float>(s.epsilon);
  adamw_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(chunks, f);
  check_launch("adamw");
}

void sum_squares(const NormChunk* chunks, std::int64_t chunk_count, double* partial, const std::int32_t* first,
                 std::int64_t tensors, double* sums, cudaStream_t stream) {
  if (tensors == 0) return;
  if (chunk_count > 0) sum_squares_kernel<<<static_cast<unsigned>(chunk_count), kThreads, 0, stream>>>(chunks, partial);
  check_launch("sum_squares");
  sum_partials_kernel<<<blocks_for(tensors, kThreads), kThreads, 0, stream>>>(partial, first, tensors, sums);
  check_launch("sum_partials");
}

}  // namespace pipelora::cuda
