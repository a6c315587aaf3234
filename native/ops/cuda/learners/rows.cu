// Rows that share an index, added up; products of rank R with vectors a token.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/learners/learners.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

/// A block row takes one id, its threads columns.
template <class T>
__global__ void sum_rows_kernel(const T* from, std::int64_t from_stride, const std::int32_t* order, const std::int32_t* starts, const std::int32_t* ids,
                                std::int64_t count, float factor, float* to, std::int64_t to_stride, std::int64_t cols) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= cols) return;
  for (std::int64_t i = blockIdx.y; i < count; i += gridDim.y) {
    float sum = to[ids[i] * to_stride + c];
    for (std::int32_t k = starts[i]; k < starts[i + 1]; ++k) sum += factor * widen(from[order[k] * from_stride + c]);
    to[ids[i] * to_stride + c] = sum;
  }
}

template <class T>
__global__ void low_rank_kernel(const float* inner, std::int64_t inner_stride, const float* bt, std::int64_t bt_stride, std::int64_t ranks, float scale, T* y,
                                std::int64_t y_stride, std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= cols) return;
  for (std::int64_t t = blockIdx.y; t < rows; t += gridDim.y) {
    float sum = widen(y[t * y_stride + c]);
    for (std::int64_t r = 0; r < ranks; ++r) sum += scale * inner[t * inner_stride + r] * bt[r * bt_stride + c];
    y[t * y_stride + c] = narrow<T>(sum);
  }
}

/// A block takes one token and one rank.
template <class T>
__global__ void inner_grad_kernel(const T* dy, std::int64_t dy_stride, const float* bt, std::int64_t bt_stride, float scale, float* inner_grad,
                                  std::int64_t stride, std::int64_t cols) {
  __shared__ float shared[32];
  const std::int64_t t = blockIdx.x, r = blockIdx.y;
  float sum = 0;
  for (std::int64_t c = threadIdx.x; c < cols; c += kThreads) sum += widen(dy[t * dy_stride + c]) * bt[r * bt_stride + c];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) inner_grad[t * stride + r] = scale * sum;
}

/// A thread takes one column of one rank and all tokens, in order.
template <class T>
__global__ void bt_grad_kernel(const T* dy, std::int64_t dy_stride, const float* inner, std::int64_t inner_stride, float scale, float* grad,
                               std::int64_t grad_stride, std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, r = blockIdx.y;
  if (c >= cols) return;
  float sum = 0;
  for (std::int64_t t = 0; t < rows; ++t) sum += inner[t * inner_stride + r] * widen(dy[t * dy_stride + c]);
  grad[r * grad_stride + c] += scale * sum;
}

constexpr std::int64_t kMostBlocks = 65535;
dim3 grid_of(std::int64_t cols, std::int64_t rows) {
  return dim3(static_cast<unsigned>((cols + kThreads - 1) / kThreads), static_cast<unsigned>(rows < kMostBlocks ? rows : kMostBlocks));
}

}  // namespace

void sum_rows(const RowSums& call, cudaStream_t stream) {
  const std::int64_t count = call.ids->size();
  if (count == 0) return;
  with_float(call.from.dtype, [&]<class T>(T) {
    sum_rows_kernel<T><<<grid_of(call.to.cols, count), kThreads, 0, stream>>>(
        call.from.as<T>(), call.from.stride, call.order->device.as<std::int32_t>(), call.starts->device.as<std::int32_t>(),
        call.ids->device.as<std::int32_t>(), count, call.factor, call.to.as<float>(), call.to.stride, call.to.cols);
  });
  check_launch("sum_rows");
}

void low_rank_forward(const LowRank& call, cudaStream_t stream) {
  if (call.y.rows == 0) return;
  with_float(call.y.dtype, [&]<class T>(T) {
    low_rank_kernel<T><<<grid_of(call.y.cols, call.y.rows), kThreads, 0, stream>>>(call.inner.as<float>(), call.inner.stride, call.bt.as<float>(),
                                                                                 call.bt.stride, call.bt.rows, call.scale, call.y.as<T>(), call.y.stride,
                                                                                 call.y.rows, call.y.cols);
  });
  check_launch("low_rank_forward");
}

void low_rank_backward(const LowRankBackward& call, cudaStream_t stream) {
  if (call.dy.rows == 0) return;
  const auto ranks = static_cast<unsigned>(call.bt.rows);
  with_float(call.dy.dtype, [&]<class T>(T) {
    inner_grad_kernel<T><<<dim3(static_cast<unsigned>(call.dy.rows), ranks), kThreads, 0, stream>>>(
        call.dy.as<T>(), call.dy.stride, call.bt.as<float>(), call.bt.stride, call.scale, call.inner_grad.as<float>(), call.inner_grad.stride, call.dy.cols);
    check_launch("low_rank_backward inner");
    bt_grad_kernel<T><<<dim3(static_cast<unsigned>((call.dy.cols + kThreads - 1) / kThreads), ranks), kThreads, 0, stream>>>(
        call.dy.as<T>(), call.dy.stride, call.inner.as<float>(), call.inner.stride, call.scale, call.grad_bt.as<float>(), call.grad_bt.stride, call.dy.rows,
        call.dy.cols);
  });
  check_launch("low_rank_backward B");
}

}  // namespace pipelora::cuda
