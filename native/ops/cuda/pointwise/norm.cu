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

// One block a row. Later reads of x are served by the first-level cache. y null: it is not written.
template <int V, class T, bool kCodes>
__global__ void rmsnorm_forward_kernel(const T* x, std::int64_t x_stride, const float* weight, float eps, T* y,
                                       std::int64_t y_stride, RowCodes to, std::int64_t cols) {
  __shared__ float shared[32];
  const T* in = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  T* out = y + static_cast<std::int64_t>(blockIdx.x) * y_stride;
  const std::int64_t pieces = cols / V;
  float squares = 0;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(in + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) squares += v.v[i] * v.v[i];
  }
  const float r = rsqrtf(block_sum(squares, shared) / static_cast<float>(cols) + eps);
  const auto normed = [&](std::int64_t p) {
    Floats<V> v = load<V>(in + p * V);
    const Floats<V> w = load<V>(weight + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) v.v[i] = v.v[i] * r * w.v[i];
    return v;
  };
  if constexpr (!kCodes) {
    for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) store<V>(out + p * V, normed(p));
  } else {
    Largest largest;
    for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
      const uint4 eight = packed8<T>(normed(p));
      if (y != nullptr) *reinterpret_cast<uint4*>(out + p * V) = eight;
      largest.take(eight);
    }
    const float scale = scale_of_absmax(magnitude_of<T>(block_max(largest.bits(), reinterpret_cast<std::uint32_t*>(shared)))), inverse = inverse_of(scale);
    if (threadIdx.x == 0) to.scales[blockIdx.x] = scale;
    std::uint8_t* codes = to.codes + static_cast<std::int64_t>(blockIdx.x) * to.stride;
    for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x)
      *reinterpret_cast<uint2*>(codes + p * V) = e4m3_of(widen8<T>(packed8<T>(normed(p))), inverse);
  }
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
  if (x.rows == 0) return;
  if (rule.centred) return centred_norm_forward(x, weight, rule.eps, y, stream);
  const bool wide = eights(x) && eights(y);
  with_float(x.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      rmsnorm_forward_kernel<V, T, false><<<static_cast<unsigned>(x.rows), threads_for(x.cols / V), 0, stream>>>(
          x.as<T>(), x.stride, weight.as<float>(), rule.eps, y.as<T>(), y.stride, RowCodes(), x.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("rmsnorm_forward");
}

void rmsnorm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, const RowCodes& to, cudaStream_t stream) {
  if (x.rows == 0) return;
  with_half(x.dtype, [&]<class T>(T) {
    rmsnorm_forward_kernel<8, T, true><<<static_cast<unsigned>(x.rows), threads_for(x.cols / 8), 0, stream>>>(
        x.as<T>(), x.stride, weight.as<float>(), eps, y.as<T>(), y.stride, to, x.cols);
  });
  check_launch("rmsnorm_forward in e4m3");
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
