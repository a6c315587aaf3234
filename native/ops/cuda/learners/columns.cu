// Sums over tokens, and DoRA's norms and gains, a column of a product each.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/learners/learners.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 128;
/// Threads of a column that share its rows; their sums are added in a fixed order.
constexpr int kShares = 8;

unsigned blocks_of(std::int64_t n, int threads) { return static_cast<unsigned>((n + threads - 1) / threads); }

/// Block [32 columns, kShares]: each thread adds up every kShares-th row of its column. Gives the column's sum to the first share.
template <class Value>
__device__ float column_sum(std::int64_t rows, Value&& value) {
  __shared__ float shared[kShares][32];
  float sum = 0;
  for (std::int64_t t = threadIdx.y; t < rows; t += kShares) sum += value(t);
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return 0;
  float total = 0;
  for (int i = 0; i < kShares; ++i) total += shared[i][threadIdx.x];
  return total;
}

template <class T>
__global__ void column_sums_kernel(const T* dy, std::int64_t stride, std::int64_t rows, std::int64_t cols, float factor, float* grad) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x;
  const float sum = column_sum(rows, [&](std::int64_t t) { return c < cols ? widen(dy[t * stride + c]) : 0.0f; });
  if (threadIdx.y == 0 && c < cols) grad[c] += factor * sum;
}

__global__ void squares_kernel(const float* y, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* squares) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x;
  const float sum = column_sum(rows, [&](std::int64_t t) {
    const float v = c < cols ? y[t * stride + c] : 0.0f;
    return v * v;
  });
  if (threadIdx.y == 0 && c < cols) squares[c] += sum;
}

__global__ void gram_kernel(const float* a, std::int64_t stride, std::int64_t in, float* gram, std::int64_t gram_stride) {
  __shared__ double shared[32];
  const std::int64_t i = blockIdx.x, j = blockIdx.y;
  double sum = 0;
  for (std::int64_t k = threadIdx.x; k < in; k += kThreads) sum += static_cast<double>(a[i * stride + k]) * static_cast<double>(a[j * stride + k]);
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) gram[i * gram_stride + j] = static_cast<float>(sum);
}

struct NormArgs {
  const float *squares, *product, *bt, *magnitude, *gram;
  std::int64_t product_stride, bt_stride, gram_stride, ranks, cols;
  double scale;
  float *norms, *gains;
};

__global__ void norms_kernel(NormArgs call) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= call.cols) return;
  double cross = 0, own = 0;
  for (std::int64_t i = 0; i < call.ranks; ++i) {
    const double b = call.bt[i * call.bt_stride + c];
    cross += static_cast<double>(call.product[i * call.product_stride + c]) * b;
    double row = 0;
    for (std::int64_t j = 0; j < call.ranks; ++j) row += static_cast<double>(call.gram[i * call.gram_stride + j]) * static_cast<double>(call.bt[j * call.bt_stride + c]);
    own += b * row;
  }
  const double square = static_cast<double>(call.squares[c]) + 2 * call.scale * cross + call.scale * call.scale * own;
  const auto norm = static_cast<float>(sqrt(square > 0 ? square : 0.0));
  call.norms[c] = norm;
  call.gains[c] = call.magnitude[c] / norm;
}

template <class Z, class T>
__global__ void gains_kernel(const Z* z, std::int64_t z_stride, const float* gains, const float* offsets, const T* residual, std::int64_t residual_stride, T* y,
                             std::int64_t y_stride, std::int64_t rows, std::int64_t cols, bool change) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= cols) return;
  const float gain = change ? gains[c] - 1.0f : gains[c], offset = offsets[c], back = change ? 0.0f : offset;
  for (std::int64_t t = blockIdx.y; t < rows; t += gridDim.y) {
    float v = gain * (widen(z[t * z_stride + c]) - offset) + back;
    if (residual != nullptr) v += widen(residual[t * residual_stride + c]);
    y[t * y_stride + c] = narrow<T>(v);
  }
}

template <class Z, class T>
__global__ void gains_backward_kernel(const T* dy, std::int64_t dy_stride, const Z* z, std::int64_t z_stride, const float* gains, const float* offsets,
                                      const float* norms, float factor, float* grad, T* dz, std::int64_t dz_stride, std::int64_t rows, std::int64_t cols, float less) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x;
  const float sum = column_sum(rows, [&](std::int64_t t) {
    if (c >= cols) return 0.0f;
    const float gradient = widen(dy[t * dy_stride + c]);
    const float part = gradient * (widen(z[t * z_stride + c]) - offsets[c]);
    dz[t * dz_stride + c] = narrow<T>((gains[c] - less) * gradient);
    return part;
  });
  if (threadIdx.y == 0 && c < cols) grad[c] += factor * sum / norms[c];
}

}  // namespace

void column_sums(const Tensor& dy, float factor, const Tensor& grad, cudaStream_t stream) {
  if (dy.rows == 0) return;
  with_float(dy.dtype, [&]<class T>(T) {
    column_sums_kernel<T><<<blocks_of(dy.cols, 32), dim3(32, kShares), 0, stream>>>(dy.as<T>(), dy.stride, dy.rows, dy.cols, factor, grad.as<float>());
  });
  check_launch("column_sums");
}

void add_column_squares(const Tensor& y, const Tensor& squares, cudaStream_t stream) {
  squares_kernel<<<blocks_of(y.cols, 32), dim3(32, kShares), 0, stream>>>(y.as<float>(), y.stride, y.rows, y.cols, squares.as<float>());
  check_launch("add_column_squares");
}

void dora_norms(const DoraNorms& call, const Tensor& gram, cudaStream_t stream) {
  const auto ranks = static_cast<unsigned>(call.bt.rows);
  if (!call.gram) {
    gram_kernel<<<dim3(ranks, ranks), kThreads, 0, stream>>>(call.a.as<float>(), call.a.stride, call.a.cols, gram.as<float>(), gram.stride);
    check_launch("dora_norms A Aᵀ");
  }
  norms_kernel<<<blocks_of(call.bt.cols, kThreads), kThreads, 0, stream>>>({call.squares.as<float>(), call.product.as<float>(), call.bt.as<float>(),
                                                                          call.magnitude.as<float>(), gram.as<float>(), call.product.stride, call.bt.stride,
                                                                          gram.stride, call.bt.rows, call.bt.cols, static_cast<double>(call.scale),
                                                                          call.norms.as<float>(), call.gains.as<float>()});
  check_launch("dora_norms");
}

void column_gains(const ColumnGains& call, cudaStream_t stream) {
  if (call.y.rows == 0) return;
  const dim3 grid(blocks_of(call.y.cols, kThreads), static_cast<unsigned>(call.y.rows < 1024 ? call.y.rows : 1024));
  with_float(call.z.dtype, [&]<class Z>(Z) {
    with_float(call.y.dtype, [&]<class T>(T) {
      gains_kernel<Z, T><<<grid, kThreads, 0, stream>>>(call.z.as<Z>(), call.z.stride, call.gains.as<float>(), call.offsets.as<float>(), call.residual.as<T>(),
                                                        call.residual.stride, call.y.as<T>(), call.y.stride, call.y.rows, call.y.cols, call.change);
    });
  });
  check_launch("column_gains");
}

void column_gains_backward(const ColumnGainsBackward& call, cudaStream_t stream) {
  if (call.dy.rows == 0) return;
  with_float(call.z.dtype, [&]<class Z>(Z) {
    with_float(call.dy.dtype, [&]<class T>(T) {
      gains_backward_kernel<Z, T><<<blocks_of(call.dy.cols, 32), dim3(32, kShares), 0, stream>>>(
          call.dy.as<T>(), call.dy.stride, call.z.as<Z>(), call.z.stride, call.gains.as<float>(), call.offsets.as<float>(), call.norms.as<float>(), call.factor,
          call.grad.as<float>(), call.dz.as<T>(), call.dz.stride, call.dy.rows, call.dy.cols, call.change ? 1.0f : 0.0f);
    });
  });
  check_launch("column_gains_backward");
}

}  // namespace pipelora::cuda
