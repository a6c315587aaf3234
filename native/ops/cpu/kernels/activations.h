// Activations of an MLP's gate.
#pragma once

#include <cmath>

#include "ops/cpu/kernels/simd.h"
#include "pipelora/ops/ops.h"

namespace pipelora::PIPELORA_ISA {

// An activation is x times a share of x; `rest` is what the slope has beside the share: f'(x) = share + rest.
struct Silu {
  vf share, rest;
  explicit Silu(vf x) : share(sigmoid(x)) { rest = x * share * (1.0f - share); }
};
struct GeluTanh {
  vf share, rest;
  explicit GeluTanh(vf x) {
    constexpr float kRoot = 0.7978845608028654f, kCube = 0.044715f;  // sqrt(2 / pi)
    const vf t = tanh(kRoot * (x + kCube * (x * x * x)));
    share = 0.5f * (1.0f + t);
    rest = 0.5f * x * (1.0f - t * t) * (kRoot * (1.0f + 3.0f * kCube * (x * x)));
  }
};
struct Gelu {
  vf share, rest;
  explicit Gelu(vf x) {
    constexpr float kHalfRoot = 0.7071067811865476f, kDensity = 0.3989422804014327f;  // 1 / sqrt(2), 1 / sqrt(2 pi)
    for (int i = 0; i < kLanes; ++i) share[i] = 0.5f * (1.0f + std::erf(x[i] * kHalfRoot));
    rest = x * exp(-0.5f * (x * x)) * kDensity;
  }
};

template <class F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::gelu_tanh: return f.template operator()<GeluTanh>();
    case Activation::gelu: return f.template operator()<Gelu>();
    default: return f.template operator()<Silu>();
  }
}

}  // namespace pipelora::PIPELORA_ISA
