// Softmax cross entropy, one block a row: one pass for the largest logit and the sum of exponentials, one for the gradient.
#include "ops/cuda/common.cuh"
#include "ops/cuda/kernels.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 1024;

/// Largest value, its first place, and the sum of exp(z - largest).
struct Statistics {
  float top = -INFINITY;
  std::int32_t at = 0x7FFFFFFF;
  float total = 0;
};

__device__ inline Statistics merge(const Statistics& a, const Statistics& b) {
  Statistics out;
  out.top = fmaxf(a.top, b.top);
  out.at = a.top > b.top ? a.at : b.top > a.top ? b.at : min(a.at, b.at);
  const float left = a.top == -INFINITY ? 0.0f : a.total * __expf(a.top - out.top);
  const float right = b.top == -INFINITY ? 0.0f : b.total * __expf(b.top - out.top);
  out.total = left + right;
  return out;
}

template <int V, class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const float* logits, std::int64_t logits_stride, T* dlogits,
                                                                 std::int64_t dlogits_stride, const std::int32_t* targets,
                                                                 const float* weights, float* loss, std::int32_t* correct,
                                                                 std::int64_t vocab) {
  __shared__ Statistics shared[kThreads / 32];
  const std::int64_t row = blockIdx.x;
  const float* z = logits + row * logits_stride;
  const std::int32_t target = targets[row];
  const float at_target = z[target];
  const std::int64_t pieces = vocab / V;

  Statistics own;
  for (std::int64_t p = threadIdx.x; p < pieces; p += kThreads) {
    const Floats<V> v = load<V>(z + p * V);
    float top = v.v[0];
    int at = 0;
#pragma unroll
    for (int i = 1; i < V; ++i) {
      if (v.v[i] > top) {
        top = v.v[i];
        at = i;
      }
    }
    if (top > own.top) {
      own.total *= own.top == -INFINITY ? 0.0f : __expf(own.top - top);
      own.top = top;
      own.at = static_cast<std::int32_t>(p * V + at);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) own.total += __expf(v.v[i] - own.top);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    Statistics other;
    other.top = __shfl_xor_sync(0xFFFFFFFFu, own.top, d);
    other.at = __shfl_xor_sync(0xFFFFFFFFu, own.at, d);
    other.total = __shfl_xor_sync(0xFFFFFFFFu, own.total, d);
    own = threadIdx.x & d ? merge(other, own) : merge(own, other);
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = own;
  __syncthreads();
  Statistics all = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) all = merge(all, shared[w]);

  if (threadIdx.x == 0) {
    loss[row] = logf(all.total) + all.top - at_target;
    correct[row] = all.at == target ? 1 : 0;
  }
  if (dlogits == nullptr) return;
  const float weight = weights[row], factor = weight / all.total;
  T* out = dlogits + row * dlogits_stride;
  // The gradient may take its logits' place: all have read their pieces before one writes.
  for (std::int64_t first = 0; first < pieces; first += kThreads) {
    const std::int64_t p = first + threadIdx.x;
    Floats<V> v;
    if (p < pieces) v = load<V>(z + p * V);
    __syncthreads();
    if (p >= pieces) break;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      v.v[i] = __expf(v.v[i] - all.top) * factor;
      if (p * V + i == target) v.v[i] -= weight;
    }
    store<V>(out + p * V, v);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& call, cudaStream_t stream) {
  if (call.logits.rows == 0) return;
  const bool wide = eights(call.logits) && (!call.dlogits || eights(call.dlogits));
  with_float(call.dlogits ? call.dlogits.dtype : DType::f32, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      cross_entropy_kernel<V, T><<<static_cast<unsigned>(call.logits.rows), kThreads, 0, stream>>>(
          call.logits.as<float>(), call.logits.stride, call.dlogits.as<T>(), call.dlogits.stride,
          call.targets.as<std::int32_t>(), call.weights.as<float>(), call.loss.as<float>(), call.correct.as<std::int32_t>(),
          call.logits.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("cross_entropy");
}

}  // namespace pipelora::cuda
