#include "pipelora/model/optimizer.h"

#include <algorithm>

#include "pipelora/core/error.h"

namespace pipelora {

void adamw_step(Ops& ops, std::span<NamedMatrix* const> matrices, const AdamSettings& settings, std::span<const MatrixRate> rates) {
  if (!rates.empty() && rates.size() != matrices.size())
    throw Error(kTensorMismatch, "rates: expected " + std::to_string(matrices.size()) + ", one a matrix, got " + std::to_string(rates.size()));
  struct Group {
    MatrixRate rate;
    std::vector<AdamTarget> targets;
  };
  std::vector<Group> groups;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const MatrixRate rate = rates.empty() ? MatrixRate{settings.learning_rate, settings.weight_decay} : rates[i];
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& known) { return known.rate == rate; });
    if (group == groups.end()) group = groups.insert(groups.end(), {rate, {}});
    group->targets.push_back(matrices[i]->adam_target());
    matrices[i]->changed();
  }
  for (const Group& group : groups) {
    AdamSettings own = settings;
    own.learning_rate = group.rate.learning_rate;
    own.weight_decay = group.rate.weight_decay;
    ops.adamw(group.targets, own);
  }
}

std::vector<double> grad_squares(Ops& ops, std::span<NamedMatrix* const> matrices) {
  std::vector<Tensor> grads;
  for (const NamedMatrix* matrix : matrices) grads.push_back(matrix->part(MatrixPart::grad));
  return ops.squared_norms(grads);
}

void zero_grad(Ops& ops, std::span<NamedMatrix* const> matrices) {
  for (const NamedMatrix* matrix : matrices) ops.zero(matrix->part(MatrixPart::grad));
}

}  // namespace pipelora
