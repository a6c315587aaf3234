#include "pipelora/lora_optimizer.h"

namespace pipelora {

void adamw_step(Ops& ops, std::span<LoraPair* const> pairs, const AdamSettings& settings) {
  std::vector<AdamTarget> targets;
  for (const LoraPair* pair : pairs)
    for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) targets.push_back(pair->adam_target(matrix));
  ops.adamw(targets, settings);
}

std::vector<double> grad_squares(Ops& ops, std::span<LoraPair* const> pairs) {
  std::vector<Tensor> grads;
  for (const LoraPair* pair : pairs)
    for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) grads.push_back(pair->part(matrix, LoraPart::grad));
  return ops.squared_norms(grads);
}

void zero_grad(Ops& ops, std::span<LoraPair* const> pairs) {
  for (const LoraPair* pair : pairs)
    for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) ops.zero(pair->part(matrix, LoraPart::grad));
}

}  // namespace pipelora
