// Rows by expert and back, sums of experts' outputs, and what attention's sinks leave.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/experts/experts.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

dim3 grid_of(std::int64_t rows, std::int64_t pieces) {
  return dim3(blocks_for(pieces, kThreads), static_cast<unsigned>(rows < 65535 ? rows : 65535));
}

template <int V, class From, class To>
__global__ void gather_kernel(const From* from, std::int64_t from_stride, const std::int32_t* order, std::int32_t chosen, To* to,
                              std::int64_t to_stride, std::int64_t rows, std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t p = blockIdx.y; p < rows; p += gridDim.y)
    store<V>(to + p * to_stride + c * V, load<V>(from + order[p] / chosen * from_stride + c * V));
}

template <class T>
struct CombineCall {
  const T *rows, *residual;
  const float *bias, *weights;
  const std::int32_t *place, *experts;
  T* out;
  std::int64_t rows_stride, residual_stride, bias_stride, out_stride, tokens, pieces;
  std::int32_t chosen;
};

template <int V, class T>
__global__ void combine_kernel(CombineCall<T> call) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= call.pieces) return;
  for (std::int64_t t = blockIdx.y; t < call.tokens; t += gridDim.y) {
    Floats<V> total;
    if (call.residual != nullptr) {
      total = load<V>(call.residual + t * call.residual_stride + c * V);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) total.v[i] = 0;
    }
    for (std::int32_t j = 0; j < call.chosen; ++j) {
      const std::int64_t choice = t * call.chosen + j;
      const Floats<V> row = load<V>(call.rows + static_cast<std::int64_t>(call.place[choice]) * call.rows_stride + c * V);
#pragma unroll
      for (int i = 0; i < V; ++i) total.v[i] += row.v[i];
      if (call.bias == nullptr) continue;
      const float weight = call.weights[choice];
      const float* bias = call.bias + call.experts[choice] * call.bias_stride + c * V;
#pragma unroll
      for (int i = 0; i < V; ++i) total.v[i] += weight * bias[i];
    }
    store<V>(call.out + t * call.out_stride + c * V, total);
  }
}

/// A warp a token and head.
template <class T>
__global__ void sinks_kernel(T* out, std::int64_t stride, float* lse, std::int64_t lse_stride, const float* sinks, std::int64_t tokens,
                             std::int64_t heads, std::int64_t e) {
  const std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (item >= tokens * heads) return;
  const std::int64_t t = item / heads, h = item % heads;
  float* at = lse + h * lse_stride + t;
  const float without = *at, sink = sinks[h], top = fmaxf(without, sink);
  const float all = top + logf(expf(without - top) + expf(sink - top));
  const float factor = expf(without - all);
  T* row = out + t * stride + h * e;
  for (std::int64_t c = lane; c < e; c += 32) row[c] = narrow<T>(widen(row[c]) * factor);
  __syncwarp();
  if (lane == 0) *at = all;
}

__global__ void sigmoid_kernel(float* x, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] = 1.0f / (1.0f + expf(-x[i]));
}

__global__ void sigmoid_backward_kernel(const float* shares, float* grads, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) grads[i] *= shares[i] * (1.0f - shares[i]);
}

}  // namespace

void gather_choices(const Tensor& from, const Routes& routes, const Tensor& to, cudaStream_t stream) {
  if (to.rows == 0) return;
  const bool wide = eights(from) && eights(to);
  const auto chosen = static_cast<std::int32_t>(routes.experts.cols);
  with_float(from.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      gather_kernel<V, T, T><<<grid_of(to.rows, to.cols / V), kThreads, 0, stream>>>(
          from.as<T>(), from.stride, routes.order.as<std::int32_t>(), chosen, to.as<T>(), to.stride, to.rows, to.cols / V);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("gather_choices");
}

void combine(const Combine& call, cudaStream_t stream) {
  if (call.out.rows == 0) return;
  const bool wide = eights(call.rows) && eights(call.out) && (!call.residual || eights(call.residual));
  with_float(call.out.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      const CombineCall<T> own{call.rows.as<T>(), call.residual.as<T>(), call.bias.as<float>(), call.routes.weights.as<float>(),
                               call.routes.place.as<std::int32_t>(), call.routes.experts.as<std::int32_t>(), call.out.as<T>(), call.rows.stride,
                               call.residual.stride, call.bias.stride, call.out.stride, call.out.rows, call.out.cols / V,
                               static_cast<std::int32_t>(call.routes.experts.cols)};
      combine_kernel<V, T><<<grid_of(own.tokens, own.pieces), kThreads, 0, stream>>>(own);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("combine");
}

void attention_sinks(const AttentionSinks& call, cudaStream_t stream) {
  if (call.out.rows == 0) return;
  const std::int64_t heads = call.lse.rows;
  with_float(call.out.dtype, [&]<class T>(T) {
    sinks_kernel<T><<<blocks_for(call.out.rows * heads * 32, kThreads), kThreads, 0, stream>>>(
        call.out.as<T>(), call.out.stride, call.lse.as<float>(), call.lse.stride, call.sinks.as<float>(), call.out.rows, heads, call.head_dim);
  });
  check_launch("attention_sinks");
}

void sigmoid(const Tensor& x, cudaStream_t stream) {
  if (x.size() == 0) return;
  sigmoid_kernel<<<blocks_for(x.size(), kThreads), kThreads, 0, stream>>>(x.as<float>(), x.size());
  check_launch("sigmoid");
}

void sigmoid_backward(const Tensor& shares, const Tensor& grads, cudaStream_t stream) {
  if (grads.size() == 0) return;
  sigmoid_backward_kernel<<<blocks_for(grads.size(), kThreads), kThreads, 0, stream>>>(shares.as<float>(), grads.as<float>(), grads.size());
  check_launch("sigmoid_backward");
}

}  // namespace pipelora::cuda
