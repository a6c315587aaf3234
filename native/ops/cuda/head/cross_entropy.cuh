// What the kernels for softmax cross entropy share: where the largest logit is, and sums of exponentials relative to it.
#pragma once

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/kernel_choice.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

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

/// Of a warp's lanes, in their order.
__device__ inline Statistics merge_lanes(Statistics own) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    Statistics other;
    other.top = __shfl_xor_sync(0xFFFFFFFFu, own.top, d);
    other.at = __shfl_xor_sync(0xFFFFFFFFu, own.at, d);
    other.total = __shfl_xor_sync(0xFFFFFFFFu, own.total, d);
    own = threadIdx.x & d ? merge(other, own) : merge(own, other);
  }
  return own;
}

/// Of a block's warps, in their order, as each left its own.
template <int kWarps>
__device__ inline Statistics merge_warps(const Statistics (&of_warp)[kWarps]) {
  Statistics all = of_warp[0];
  for (int w = 1; w < kWarps; ++w) all = merge(all, of_warp[w]);
  return all;
}

/// What a block's thread needs of a row.
template <class T>
struct CrossEntropyRows {
  const float* logits;
  std::int64_t logits_stride;
  T* dlogits;  // or null
  std::int64_t dlogits_stride;
  const std::int32_t* targets;
  const float* weights;
  float* loss;
  std::int32_t* correct;
  std::int64_t vocab;
  float factor, cap;  // how the logits were shaped
  float smoothing;
  __device__ float target_weight(float weight) const { return weight * (1.0f - smoothing); }
  /// What smoothing takes from every logit's gradient.
  __device__ float shared_weight(float weight) const { return weight * (smoothing / static_cast<float>(vocab)); }
  /// `sum`: of all logits, used where there is smoothing.
  __device__ float loss_of(const Statistics& all, float at_target, float sum) const {
    return smoothing == 0 ? logf(all.total) + all.top - at_target
                          : logf(all.total) - (1.0f - smoothing) * (at_target - all.top) - smoothing * (sum / static_cast<float>(vocab) - all.top);
  }
  /// What the gradient of a logit that was shaped to z is multiplied by.
  __device__ float slope(float z) const { return cap > 0 ? factor * (1.0f - (z / cap) * (z / cap)) : factor; }
};

template <class T>
CrossEntropyRows<T> cross_entropy_rows(const CrossEntropy& call) {
  return {call.logits.as<float>(), call.logits.stride,           call.dlogits.as<T>(),  call.dlogits.stride,             call.targets.as<std::int32_t>(),
          call.weights.as<float>(), call.loss.as<float>(), call.correct.as<std::int32_t>(), call.logits.cols, call.factor, call.cap, call.smoothing};
}

/// Clusters of blocks that read a row of logits once, on Hopper.
void cross_entropy_by_clusters(const CrossEntropy& call, cudaStream_t stream);

}  // namespace pipelora::cuda
