// AdamW and gradient norms over LoRA pairs.
#pragma once

#include <span>
#include <vector>

#include "pipelora/lora.h"

namespace pipelora {

void adamw_step(Ops& ops, std::span<LoraPair* const> pairs, const AdamSettings& settings);
/// Two entries a pair: A, then B.
std::vector<double> grad_squares(Ops& ops, std::span<LoraPair* const> pairs);
void zero_grad(Ops& ops, std::span<LoraPair* const> pairs);

}  // namespace pipelora
