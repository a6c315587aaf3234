// A causal convolution over a row's tokens with SiLU. One thread a token and channel; with a state one a row and channel.
#include "ops/cuda/delta/delta.h"
#include "ops/cuda/device/common.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kMostTaps = 16;

/// sum_j weight[j] x[t - (taps - 1) + j] over the tokens that the row has; `x` is the channel's element of token t.
template <class T>
__device__ inline float tap_sum(const T* x, std::int64_t stride, const float* weight, int taps, int position) {
  float sum = 0;
  for (int back = min(taps - 1, position); back >= 0; --back) sum += weight[taps - 1 - back] * widen(x[-back * stride]);
  return sum;
}

template <class T>
__global__ void forward_kernel(const T* x, std::int64_t x_stride, const float* weight, int taps, T* y, std::int64_t y_stride, std::int64_t channels,
                               const std::int32_t* position) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, t = blockIdx.y;
  if (c >= channels) return;
  const float sum = tap_sum(x + t * x_stride + c, x_stride, weight + c * taps, taps, position[t]);
  y[t * y_stride + c] = narrow<T>(sum / (1.0f + expf(-sum)));
}

// dx[t] = sum_d weight[taps - 1 - d] slope[t + d], slope = dy silu'(sum): made again from x for each of the taps.
template <class T>
__global__ void backward_kernel(const T* x, std::int64_t x_stride, const float* weight, int taps, const T* dy, std::int64_t dy_stride, T* dx, std::int64_t dx_stride,
                                std::int64_t channels, std::int64_t tokens, const std::int32_t* position) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, t = blockIdx.y;
  if (c >= channels) return;
  const float* own = weight + c * taps;
  const int at = position[t];
  float gradient = 0;
  for (int ahead = 0; ahead < taps && t + ahead < tokens; ++ahead) {
    if (position[t + ahead] != at + ahead) break;  // the next row
    const float sum = tap_sum(x + (t + ahead) * x_stride + c, x_stride, own, taps, at + ahead);
    const float share = 1.0f / (1.0f + expf(-sum));
    gradient += own[taps - 1 - ahead] * widen(dy[(t + ahead) * dy_stride + c]) * share * (1.0f + sum * (1.0f - share));
  }
  dx[t * dx_stride + c] = narrow<T>(gradient);
}

template <class T>
__global__ void stateful_kernel(const T* x, std::int64_t x_stride, const float* weight, int taps, T* y, std::int64_t y_stride, std::int64_t channels, float* state,
                                std::int64_t state_stride, const std::int32_t* cu, const std::int32_t* key_length) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int s = static_cast<int>(blockIdx.y), before = taps - 1;
  if (c >= channels) return;
  const std::int64_t begin = cu[s];
  const int tokens = cu[s + 1] - cu[s];
  const bool continued = key_length[s] > tokens;
  float* own_state = state + s * state_stride + c;
  const float* own = weight + c * taps;
  float last[kMostTaps];  // inputs before the next token, the earliest first
#pragma unroll
  for (int j = 0; j < kMostTaps - 1; ++j) last[j] = j < before && continued ? own_state[j * channels] : 0.0f;
  for (int t = 0; t < tokens; ++t) {
    const float now = widen(x[(begin + t) * x_stride + c]);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j)
      if (j < before) sum += own[j] * last[j];
    sum += own[before] * now;
    y[(begin + t) * y_stride + c] = narrow<T>(sum / (1.0f + expf(-sum)));
#pragma unroll
    for (int j = 0; j < kMostTaps - 1; ++j) last[j] = j + 1 < before ? last[j + 1] : j + 1 == before ? now : last[j];
  }
#pragma unroll
  for (int j = 0; j < kMostTaps - 1; ++j)
    if (j < before) own_state[j * channels] = last[j];
}

dim3 grid_of(std::int64_t channels, std::int64_t rows) { return dim3(static_cast<unsigned>((channels + kThreads - 1) / kThreads), static_cast<unsigned>(rows)); }

/// Rows of a grid: launches of more tokens are cut.
constexpr std::int64_t kMostRows = 65535;

}  // namespace

void short_conv_forward(const ShortConv& call, cudaStream_t stream) {
  const std::int64_t channels = call.x.cols;
  const int taps = static_cast<int>(call.weight.cols);
  const Sequences& s = *call.sequences;
  with_float(call.x.dtype, [&]<class T>(T) {
    if (call.state) {
      stateful_kernel<T><<<grid_of(channels, s.count()), kThreads, 0, stream>>>(
          call.x.as<T>(), call.x.stride, call.weight.as<float>(), taps, call.y.as<T>(), call.y.stride, channels, call.state.as<float>(), call.state.stride,
          s.cu_queries.device.as<std::int32_t>(), s.key_length.device.as<std::int32_t>());
      return;
    }
    for (std::int64_t first = 0; first < call.x.rows; first += kMostRows) {
      const std::int64_t rows = std::min(kMostRows, call.x.rows - first);
      forward_kernel<T><<<grid_of(channels, rows), kThreads, 0, stream>>>(call.x.as<T>() + first * call.x.stride, call.x.stride, call.weight.as<float>(), taps,
                                                                        call.y.as<T>() + first * call.y.stride, call.y.stride, channels,
                                                                        s.position.device.as<std::int32_t>() + first);
    }
  });
  check_launch("short_conv_forward");
}

void short_conv_backward(const ShortConvBackward& call, cudaStream_t stream) {
  const std::int64_t channels = call.x.cols;
  const int taps = static_cast<int>(call.weight.cols);
  with_float(call.x.dtype, [&]<class T>(T) {
    for (std::int64_t first = 0; first < call.x.rows; first += kMostRows) {
      const std::int64_t rows = std::min(kMostRows, call.x.rows - first);
      backward_kernel<T><<<grid_of(channels, rows), kThreads, 0, stream>>>(
          call.x.as<T>() + first * call.x.stride, call.x.stride, call.weight.as<float>(), taps, call.dy.as<T>() + first * call.dy.stride, call.dy.stride,
          call.dx.as<T>() + first * call.dx.stride, call.dx.stride, channels, call.x.rows - first, call.sequences->position.device.as<std::int32_t>() + first);
    }
  });
  check_launch("short_conv_backward");
}

}  // namespace pipelora::cuda
