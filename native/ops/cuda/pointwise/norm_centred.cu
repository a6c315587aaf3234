// LayerNorm without a bias: y = r w (x - m), with m the mean and r = 1 / sqrt(mean((x - m)²) + eps). One block a row.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

/// m and r of a row.
template <class T>
__device__ inline float2 row_statistics(const T* x, float eps, std::int64_t cols, float* shared) {
  const float n = static_cast<float>(cols);
  float total = 0, squares = 0;
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) total += widen(x[c]);
  const float mean = block_sum(total, shared) / n;
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) squares += (widen(x[c]) - mean) * (widen(x[c]) - mean);
  return make_float2(mean, rsqrtf(block_sum(squares, shared) / n + eps));
}

template <class T>
__global__ void forward_kernel(const T* x, std::int64_t x_stride, const float* weight, float eps, T* y, std::int64_t y_stride, std::int64_t cols) {
  __shared__ float shared[32];
  const T* in = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  T* out = y + static_cast<std::int64_t>(blockIdx.x) * y_stride;
  const float2 row = row_statistics(in, eps, cols, shared);
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) out[c] = narrow<T>((widen(in[c]) - row.x) * row.y * weight[c]);
}

// dx = r (w dy - mean(w dy)) - (x - m) r³ mean(w dy (x - m)) + residual.
template <class T>
__global__ void backward_kernel(const T* x, std::int64_t x_stride, const float* weight, const T* dy, std::int64_t dy_stride, const T* residual,
                                std::int64_t residual_stride, T* dx, std::int64_t dx_stride, T* y, std::int64_t y_stride, float eps,
                                std::int64_t cols) {
  __shared__ float shared[32];
  const std::int64_t at = blockIdx.x;
  const T *in = x + at * x_stride, *gradient = dy + at * dy_stride;
  const float2 row = row_statistics(in, eps, cols, shared);
  float level = 0, dot = 0;
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
    const float g = weight[c] * widen(gradient[c]);
    level += g;
    dot += g * (widen(in[c]) - row.x);
  }
  const float n = static_cast<float>(cols);
  const float lift = block_sum(level, shared) / n, pull = row.y * row.y * row.y * block_sum(dot, shared) / n;
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) {
    const float centred = widen(in[c]) - row.x;
    float out = row.y * (weight[c] * widen(gradient[c]) - lift) - centred * pull;
    if (residual != nullptr) out += widen(residual[at * residual_stride + c]);
    if (y != nullptr) y[at * y_stride + c] = narrow<T>(centred * row.y * weight[c]);
    dx[at * dx_stride + c] = narrow<T>(out);
  }
}

}  // namespace

void centred_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, cudaStream_t stream) {
  with_float(x.dtype, [&]<class T>(T) {
    forward_kernel<T><<<static_cast<unsigned>(x.rows), kThreads, 0, stream>>>(x.as<T>(), x.stride, weight.as<float>(), eps, y.as<T>(), y.stride,
                                                                             x.cols);
  });
  check_launch("centred_norm_forward");
}

void centred_norm_backward(const RmsNormBackward& call, cudaStream_t stream) {
  with_float(call.x.dtype, [&]<class T>(T) {
    backward_kernel<T><<<static_cast<unsigned>(call.x.rows), kThreads, 0, stream>>>(
        call.x.as<T>(), call.x.stride, call.weight.as<float>(), call.dy.as<T>(), call.dy.stride, call.residual.as<T>(), call.residual.stride,
        call.dx.as<T>(), call.dx.stride, call.y.as<T>(), call.y.stride, call.rule.eps, call.x.cols);
  });
  check_launch("centred_norm_backward");
}

}  // namespace pipelora::cuda
