// RMSNorm over whole rows. Rules that subtract the mean are in norm_centred.cu.
#include "ops/cuda/base/fp8.cuh"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

int threads_for(std::int64_t pieces) {
  int threads = 32;
  while (threads < 512 && threads < pieces) threads *= 2;
  return threads;
}

/// 1 / rms of a block's row. `shared` has 32 entries.
template <int V, class T>
__device__ inline float inverse_rms(const T* x, std::int64_t cols, float eps, float* shared) {
  float squares = 0;
  for (std::int64_t p = threadIdx.x; p < cols / V; p += blockDim.x) {
    const Floats<V> v = load<V>(x + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) squares += v.v[i] * v.v[i];
  }
  return rsqrtf(block_sum(squares, shared) / static_cast<float>(cols) + eps);
}

template <int V, class T>
__device__ inline Floats<V> normed(const T* x, const float* weight, float r) {
  Floats<V> v = load<V>(x);
  const Floats<V> w = load<V>(weight);
#pragma unroll
  for (int i = 0; i < V; ++i) v.v[i] = v.v[i] * r * w.v[i];
  return v;
}

// One block a row. The second read of x is served by the first-level cache. kAdds: y = residual + factor * the norm, rounded in between as it is
// where it is written.
template <int V, bool kAdds, class T>
__global__ void rmsnorm_forward_kernel(const T* x, std::int64_t x_stride, const float* weight, float eps, const T* residual, std::int64_t residual_stride,
                                       float factor, T* y, std::int64_t y_stride, std::int64_t cols) {
  __shared__ float shared[32];
  const T* in = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  T* out = y + static_cast<std::int64_t>(blockIdx.x) * y_stride;
  const float r = inverse_rms<V>(in, cols, eps, shared);
  for (std::int64_t p = threadIdx.x; p < cols / V; p += blockDim.x) {
    Floats<V> v = normed<V>(in + p * V, weight + p * V, r);
    if constexpr (kAdds) {
      const Floats<V> before = load<V>(residual + static_cast<std::int64_t>(blockIdx.x) * residual_stride + p * V);
#pragma unroll
      for (int i = 0; i < V; ++i) v.v[i] = before.v[i] + factor * widen(narrow<T>(v.v[i]));
    }
    store<V>(out + p * V, v);
  }
}

// The same numbers, of which only their codes are written.
template <class T>
__global__ void rmsnorm_rows_kernel(const T* x, std::int64_t x_stride, const float* weight, float eps, RowCodes to, std::int64_t cols) {
  __shared__ float shared[32];
  __shared__ std::uint32_t largest_of[32];
  const T* in = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  const float r = inverse_rms<8>(in, cols, eps, shared);
  const auto eight = [&](std::int64_t c) { return packed8<T>(normed<8>(in + c, weight + c, r)); };
  Largest largest;
  for (std::int64_t c = threadIdx.x * 8; c < cols; c += blockDim.x * 8) largest.take(eight(c));
  const float scale = scale_of_absmax(magnitude_of<T>(block_max(largest.bits(), largest_of))), inverse = inverse_of(scale);
  if (threadIdx.x == 0) to.scales[blockIdx.x] = scale;
  std::uint8_t* codes = to.codes + static_cast<std::int64_t>(blockIdx.x) * to.stride;
  for (std::int64_t c = threadIdx.x * 8; c < cols; c += blockDim.x * 8) *reinterpret_cast<uint2*>(codes + c) = e4m3_of(widen8<T>(eight(c)), inverse);
}

// y = r w x with r = 1 / rms(x): dx = r w dy - x r³ mean(w dy x) + residual.
template <int V, class T>
__global__ void rmsnorm_backward_kernel(const T* x, std::int64_t x_stride, const float* weight, const T* dy,
                                        std::int64_t dy_stride, const T* residual, std::int64_t residual_stride, T* dx,
                                        std::int64_t dx_stride, T* y, std::int64_t y_stride, float eps, std::int64_t cols) {
  __shared__ float shared[32];
  const std::int64_t row = blockIdx.x;
  const std::int64_t pieces = cols / V;
  float squares = 0, dot = 0;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(x + row * x_stride + p * V), g = load<V>(dy + row * dy_stride + p * V);
    const Floats<V> w = load<V>(weight + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      squares += v.v[i] * v.v[i];
      dot += w.v[i] * g.v[i] * v.v[i];
    }
  }
  squares = block_sum(squares, shared);
  dot = block_sum(dot, shared);
  const float n = static_cast<float>(cols);
  const float r = rsqrtf(squares / n + eps);
  const float pull = r * r * r * dot / n;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(x + row * x_stride + p * V), g = load<V>(dy + row * dy_stride + p * V);
    const Floats<V> w = load<V>(weight + p * V);
    Floats<V> out, again;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      out.v[i] = r * w.v[i] * g.v[i] - v.v[i] * pull;
      again.v[i] = v.v[i] * r * w.v[i];
    }
    if (residual != nullptr) {
      const Floats<V> add = load<V>(residual + row * residual_stride + p * V);
#pragma unroll
      for (int i = 0; i < V; ++i) out.v[i] += add.v[i];
    }
    store<V>(dx + row * dx_stride + p * V, out);
    if (y != nullptr) store<V>(y + row * y_stride + p * V, again);
  }
}

}  // namespace

void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y, cudaStream_t stream) {
  rmsnorm_add(x, weight, rule, Tensor(), 1, y, stream);
}

void rmsnorm_add(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& residual, float factor, const Tensor& y, cudaStream_t stream) {
  if (x.rows == 0) return;
  if (rule.centred) {
    centred_norm_forward(x, weight, rule.eps, y, stream);
    if (residual) add(residual, y, factor, y, stream);
    return;
  }
  const bool wide = eights(x) && eights(y) && (!residual || eights(residual));
  with_float(x.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      const auto kernel = residual ? rmsnorm_forward_kernel<V, true, T> : rmsnorm_forward_kernel<V, false, T>;
      kernel<<<static_cast<unsigned>(x.rows), threads_for(x.cols / V), 0, stream>>>(x.as<T>(), x.stride, weight.as<float>(), rule.eps, residual.as<T>(),
                                                                                   residual.stride, factor, y.as<T>(), y.stride, x.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("rmsnorm_forward");
}

void rmsnorm_rows(const Tensor& x, const Tensor& weight, float eps, const RowCodes& to, cudaStream_t stream) {
  if (x.rows == 0) return;
  with_half(x.dtype, [&]<class T>(T) {
    rmsnorm_rows_kernel<T><<<static_cast<unsigned>(x.rows), threads_for(x.cols / 8), 0, stream>>>(x.as<T>(), x.stride, weight.as<float>(), eps, to, x.cols);
  });
  check_launch("rmsnorm_rows");
}

void rmsnorm_backward(const RmsNormBackward& call, cudaStream_t stream) {
  if (call.x.rows == 0) return;
  if (call.rule.centred) return centred_norm_backward(call, stream);
  const bool wide = eights(call.x) && eights(call.dy) && eights(call.dx) && (!call.residual || eights(call.residual)) &&
                    (!call.y || eights(call.y));
  with_float(call.x.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      rmsnorm_backward_kernel<V, T><<<static_cast<unsigned>(call.x.rows), threads_for(call.x.cols / V), 0, stream>>>(
          call.x.as<T>(), call.x.stride, call.weight.as<float>(), call.dy.as<T>(), call.dy.stride, call.residual.as<T>(),
          call.residual.stride, call.dx.as<T>(), call.dx.stride, call.y.as<T>(), call.y.stride, call.rule.eps, call.x.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("rmsnorm_backward");
}

}  // namespace pipelora::cuda
