// Routing: a warp a token. Lane l has experts l, l + 32, … in registers.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/experts/experts.h"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 4;
constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ float exact_sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

/// is_sigmoid() for the device.
__device__ bool sigmoids(RouteScore score) { return score == RouteScore::sigmoid || score == RouteScore::sigmoid_of_chosen; }

/// The best of a warp: the larger value, of equal ones the lower number.
struct Best {
  float value;
  int number;
};
__device__ Best better(const Best& a, const Best& b) {
  return b.number >= 0 && (a.number < 0 || b.value > a.value || (b.value == a.value && b.number < a.number)) ? b : a;
}
__device__ Best warp_best(Best best) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const Best other{__shfl_xor_sync(kAll, best.value, d), __shfl_xor_sync(kAll, best.number, d)};
    best = better(best, other);
  }
  return best;
}

/// A token's logit of an expert, with its bias where there is one.
__device__ float logit_at(const float* logits, const Tensor& bias, int e) {
  return logits[e] + (bias.data == nullptr ? 0.0f : static_cast<const float*>(bias.data)[e]);
}

/// z of a token -> scores of all its `n` experts, as far as they are made before the choice.
template <int K>
__device__ void score(RouteScore kind, int n, int lane, float (&z)[K]) {
  if (kind == RouteScore::sigmoid) {
#pragma unroll
    for (int k = 0; k < K; ++k) z[k] = exact_sigmoid(z[k]);
  }
  if (kind != RouteScore::softmax) return;
  float top = -INFINITY;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (lane + 32 * k < n) top = fmaxf(top, z[k]);
  top = warp_max(top);
  float total = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    z[k] = lane + 32 * k < n ? expf(z[k] - top) : 0.0f;
    total += z[k];
  }
  total = warp_sum(total);
#pragma unroll
  for (int k = 0; k < K; ++k) z[k] /= total;
}

/// Experts outside the best groups stand at -infinity. `scores` has room for each group.
template <int K>
__device__ void keep_groups(const RouteRule& rule, int lane, float* scores, float (&values)[K]) {
  const int groups = static_cast<int>(rule.groups), size = static_cast<int>(rule.experts) / groups;
  for (int g = 0; g < groups; ++g) {
    Best best{-INFINITY, -1};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int e = lane + 32 * k;
      if (e / size == g && e < rule.experts) best = better(best, {values[k], e});
    }
    best = warp_best(best);
    float total = best.value;
    if (rule.group_score == GroupScore::two_best) {
      Best second{-INFINITY, -1};
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int e = lane + 32 * k;
        if (e / size == g && e < rule.experts && e != best.number) second = better(second, {values[k], e});
      }
      total += warp_best(second).value;
    }
    if (lane == 0) scores[g] = total;
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int own = (lane + 32 * k) / size;
    if (own >= groups) continue;
    int before = 0;
    for (int g = 0; g < groups; ++g) before += scores[g] > scores[own] || (scores[g] == scores[own] && g < own);
    if (before >= rule.chosen_groups) values[k] = -INFINITY;
  }
}

template <int K>
__global__ void __launch_bounds__(32 * kWarps) route_kernel(Route call) {
  __shared__ float groups[kWarps][kMostExperts];
  __shared__ float picked[kWarps][kMostChosen];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (t >= call.logits.rows) return;
  const RouteRule& rule = call.rule;
  const int n = static_cast<int>(rule.experts), chosen = static_cast<int>(rule.chosen);
  const float* logits = static_cast<const float*>(call.logits.data) + t * call.logits.stride;
  float scores[K], values[K];
  bool taken[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    scores[k] = lane + 32 * k < n ? logit_at(logits, call.bias, lane + 32 * k) : -INFINITY;
    taken[k] = lane + 32 * k >= n;
  }
  score(rule.score, n, lane, scores);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    values[k] = scores[k];
    if (call.correction.data != nullptr && !taken[k]) values[k] += static_cast<const float*>(call.correction.data)[lane + 32 * k];
  }
  if (rule.chosen_groups < rule.groups) keep_groups(rule, lane, groups[warp], values);
  auto* experts = static_cast<std::int32_t*>(call.routes.experts.data) + t * chosen;
  for (int c = 0; c < chosen; ++c) {
    Best best{-INFINITY, -1};
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (!taken[k]) best = better(best, {values[k], lane + 32 * k});
    best = warp_best(best);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (lane + 32 * k != best.number) continue;
      taken[k] = true;
      picked[warp][c] = scores[k];
    }
    if (lane == 0) experts[c] = best.number;
  }
  __syncwarp();
  float weight = lane < chosen ? picked[warp][lane] : 0.0f;
  if (rule.score == RouteScore::softmax_of_chosen) {
    const float top = warp_max(lane < chosen ? weight : -INFINITY);
    weight = lane < chosen ? expf(weight - top) : 0.0f;
    weight /= warp_sum(weight);
  }
  if (rule.score == RouteScore::sigmoid_of_chosen && lane < chosen) weight = exact_sigmoid(weight);
  if (rule.normalise) weight /= warp_sum(weight) + (sigmoids(rule.score) ? 1e-20f : 0.0f);
  if (lane < chosen) static_cast<float*>(call.routes.weights.data)[t * chosen + lane] = weight * rule.factor;
}

template <int K, class T>
__global__ void __launch_bounds__(32 * kWarps) route_backward_kernel(RouteBackward call) {
  __shared__ float slopes[kWarps][kMostExperts];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (t >= call.logits.rows) return;
  const RouteRule& rule = call.rule;
  const int n = static_cast<int>(rule.experts), chosen = static_cast<int>(rule.chosen);
  const auto* experts = static_cast<const std::int32_t*>(call.routes.experts.data) + t * chosen;
  const float* logits = static_cast<const float*>(call.logits.data) + t * call.logits.stride;
  const int own = lane < chosen ? experts[lane] : -1;
  float grad = lane < chosen ? static_cast<const float*>(call.weight_grads.data)[t * chosen + lane] : 0.0f;
  if (call.out_bias.data != nullptr) {
    const T* dout = static_cast<const T*>(call.dout.data) + t * call.dout.stride;
    for (int c = 0; c < chosen; ++c) {
      const float* bias = static_cast<const float*>(call.out_bias.data) + experts[c] * call.out_bias.stride;
      float dot = 0;
      for (std::int64_t i = lane; i < call.dout.cols; i += 32) dot += widen(dout[i]) * bias[i];
      dot = warp_sum(dot);
      if (lane == c) grad += dot;
    }
  }
  grad *= rule.factor;
  float scores[K];
#pragma unroll
  for (int k = 0; k < K; ++k) scores[k] = lane + 32 * k < n ? logit_at(logits, call.bias, lane + 32 * k) : -INFINITY;
  for (int e = lane; e < n; e += 32) slopes[warp][e] = 0;
  __syncwarp();
  T* dlogits = static_cast<T*>(call.dlogits.data) + t * call.dlogits.stride;
  if (rule.score == RouteScore::softmax_of_chosen) {
    const float z = own >= 0 ? logit_at(logits, call.bias, own) : -INFINITY, top = warp_max(z);
    float share = own >= 0 ? expf(z - top) : 0.0f;
    share /= warp_sum(share);
    const float mean = warp_sum(share * grad);
    if (own >= 0) slopes[warp][own] = share * (grad - mean);
    __syncwarp();
    for (int e = lane; e < n; e += 32) dlogits[e] = narrow<T>(slopes[warp][e]);
    return;
  }
  score(sigmoids(rule.score) ? RouteScore::sigmoid : rule.score, n, lane, scores);
  float mine = 0;  // the score of this lane's choice
  for (int c = 0; c < chosen; ++c) {
    const int e = __shfl_sync(kAll, own, c);
    float there = 0;
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (e / 32 == k) there = scores[k];
    there = __shfl_sync(kAll, there, e % 32);
    if (lane == c) mine = there;
  }
  if (rule.normalise) {
    const float total = warp_sum(mine) + (sigmoids(rule.score) ? 1e-20f : 0.0f);
    const float mean = warp_sum(grad * mine) / total;
    grad = own >= 0 ? (grad - mean) / total : 0.0f;
  }
  const float mean = warp_sum(grad * mine);
  if (own >= 0) slopes[warp][own] = sigmoids(rule.score) ? grad * mine * (1.0f - mine) : grad;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int e = lane + 32 * k;
    if (e >= n) continue;
    const float slope = slopes[warp][e];
    dlogits[e] = narrow<T>(sigmoids(rule.score) ? slope : scores[k] * (slope - mean));
  }
}

/// f with the experts that a lane has.
template <class F>
void with_lanes(std::int64_t experts, F&& f) {
  if (experts <= 64) return f.template operator()<2>();
  if (experts <= 128) return f.template operator()<4>();
  if (experts <= 256) return f.template operator()<8>();
  if (experts <= 512) return f.template operator()<16>();
  f.template operator()<32>();
}

}  // namespace

void route_tokens(const Route& call, cudaStream_t stream) {
  with_lanes(call.rule.experts, [&]<int K>() { route_kernel<K><<<blocks_for(call.logits.rows, kWarps), 32 * kWarps, 0, stream>>>(call); });
  check_launch("route");
}

void route_backward(const RouteBackward& call, cudaStream_t stream) {
  with_lanes(call.rule.experts, [&]<int K>() {
    with_float(call.dlogits.dtype, [&]<class T>(T) {
      route_backward_kernel<K, T><<<blocks_for(call.logits.rows, kWarps), 32 * kWarps, 0, stream>>>(call);
    });
  });
  check_launch("route_backward");
}

}  // namespace pipelora::cuda
