// Softmax cross entropy, one block a row: one pass for the largest logit and the sum of exponentials, one for the gradient.
#include "ops/cuda/head/cross_entropy.cuh"

#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 1024;

/// kSmooth: with label smoothing, which needs the sum of a row's logits too.
template <int V, bool kSmooth, class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropyRows<T> call) {
  __shared__ Statistics shared[kThreads / 32];
  __shared__ float sums[kThreads / 32];
  const std::int64_t row = blockIdx.x;
  const float* z = call.logits + row * call.logits_stride;
  const std::int32_t target = call.targets[row];
  const float at_target = z[target];
  const std::int64_t whole = call.vocab / V, pieces = (call.vocab + V - 1) / V;
  // The last piece may end behind the vocabulary.
  const auto piece = [&](std::int64_t p) {
    if constexpr (V > 1) {
      if (p == whole) {
        Floats<V> v;
#pragma unroll
        for (int i = 0; i < V; ++i) v.v[i] = p * V + i < call.vocab ? z[p * V + i] : -INFINITY;
        return v;
      }
    }
    return load<V>(z + p * V);
  };

  Statistics own;
  float sum = 0;
  for (std::int64_t p = threadIdx.x; p < pieces; p += kThreads) {
    const Floats<V> v = piece(p);
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
    if constexpr (kSmooth) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum += V == 1 || p < whole || p * V + i < call.vocab ? v.v[i] : 0.0f;
    }
  }
  own = merge_lanes(own);
  if constexpr (kSmooth) sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x / 32] = own;
    if constexpr (kSmooth) sums[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  const Statistics all = merge_warps(shared);

  if (threadIdx.x == 0) {
    float whole_sum = 0;
    if constexpr (kSmooth) {
      for (const float part : sums) whole_sum += part;
    }
    call.loss[row] = call.loss_of(all, at_target, whole_sum);
    call.correct[row] = all.at == target ? 1 : 0;
  }
  if (call.dlogits == nullptr) return;
  const float weight = call.weights[row], factor = weight / all.total;
  const float on_target = kSmooth ? call.target_weight(weight) : weight, everywhere = kSmooth ? call.shared_weight(weight) : 0.0f;
  T* out = call.dlogits + row * call.dlogits_stride;
  // The gradient may take its logits' place: all have read their pieces before one writes.
  for (std::int64_t first = 0; first < pieces; first += kThreads) {
    const std::int64_t p = first + threadIdx.x;
    Floats<V> v;
    if (p < pieces) v = piece(p);
    __syncthreads();
    if (p >= pieces) break;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float slope = call.slope(v.v[i]);
      v.v[i] = __expf(v.v[i] - all.top) * factor - everywhere;
      if (p * V + i == target) v.v[i] -= on_target;
      v.v[i] *= slope;
    }
    if constexpr (V > 1) {
      if (p == whole) {
        for (std::int64_t i = 0; p * V + i < call.vocab; ++i) out[p * V + i] = narrow<T>(v.v[i]);
        continue;
      }
    }
    store<V>(out + p * V, v);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& call, const GpuKind& gpu, cudaStream_t stream) {
  if (call.logits.rows == 0) return;
  const auto padded = [](const Tensor& tensor) { return tensor.stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0; };
  const CrossEntropyKernel choice = cross_entropy_choice(call.logits.cols, padded(call.logits) && (!call.dlogits || padded(call.dlogits)), call.factor != 1 || call.cap > 0, gpu);
  if (choice == CrossEntropyKernel::clusters) return cross_entropy_by_clusters(call, stream);
  with_float(call.dlogits ? call.dlogits.dtype : DType::f32, [&]<class T>(T) {
    const bool wide = choice == CrossEntropyKernel::wide;
    const auto kernel = call.smoothing != 0 ? (wide ? cross_entropy_kernel<8, true, T> : cross_entropy_kernel<1, true, T>)
                                            : (wide ? cross_entropy_kernel<8, false, T> : cross_entropy_kernel<1, false, T>);
    kernel<<<static_cast<unsigned>(call.logits.rows), kThreads, 0, stream>>>(cross_entropy_rows<T>(call));
  });
  check_launch("cross_entropy");
}

}  // namespace pipelora::cuda
