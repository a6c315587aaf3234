// How a norm divides.
#pragma once

namespace pipelora {

/// y = x / sqrt(mean(x²) + eps) * weight; centred: of x - mean(x), as LayerNorm has it.
struct NormRule {
  float eps = 0;
  bool centred = false;
  NormRule() = default;
  NormRule(float epsilon, bool centred_too = false) : eps(epsilon), centred(centred_too) {}
};

}  // namespace pipelora
