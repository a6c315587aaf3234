// What a gate's activation is, and its slope, for the kernels that read gate and up.
#pragma once

#include "ops/cuda/device/common.cuh"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

struct Silu {
  __device__ static float value(float x) { return x * sigmoid(x); }
  __device__ static float with_slope(float x, float& slope) {
    const float s = sigmoid(x);
    slope = s * (1.0f + x * (1.0f - s));
    return x * s;
  }
};
/// x (1 + tanh(z)) / 2 with z = sqrt(2 / pi) (x + 0.044715 x³), which is x sigmoid(2 z): a third of tanhf's instructions.
struct GeluTanh {
  static constexpr float kRoot2 = 2.0f * 0.7978845608028654f, kCube = 0.044715f;  // 2 sqrt(2 / pi)
  __device__ static float value(float x) { return x * sigmoid(kRoot2 * (x + kCube * x * x * x)); }
  __device__ static float with_slope(float x, float& slope) {
    const float s = sigmoid(kRoot2 * (x + kCube * x * x * x));
    slope = s + x * s * (1.0f - s) * kRoot2 * (1.0f + 3.0f * kCube * x * x);
    return x * s;
  }
};
struct Gelu {
  __device__ static float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f)); }
  __device__ static float with_slope(float x, float& slope) {
    const float share = 0.5f * (1.0f + erff(x * 0.7071067811865476f));
    slope = share + x * expf(-0.5f * x * x) * 0.3989422804014327f;  // 1 / sqrt(2 pi)
    return x * share;
  }
};

template <class F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::gelu_tanh: return f(GeluTanh{});
    case Activation::gelu: return f(Gelu{});
    default: return f(Silu{});
  }
}

}  // namespace pipelora::cuda
