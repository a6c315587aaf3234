// AdamW and gradient norms over matrices that learn.
#pragma once

#include <span>
#include <vector>

#include "pipelora/model/named_matrix.h"

namespace pipelora {

/// What the optimizer does to one matrix: torch's parameter group of it.
struct MatrixRate {
  double learning_rate = 0, weight_decay = 0;
  bool operator==(const MatrixRate&) const = default;
};

/// `rates`: one a matrix, or none: all as `settings` says.
void adamw_step(Ops& ops, std::span<NamedMatrix* const> matrices, const AdamSettings& settings, std::span<const MatrixRate> rates = {});
/// One entry a matrix.
std::vector<double> grad_squares(Ops& ops, std::span<NamedMatrix* const> matrices);
void zero_grad(Ops& ops, std::span<NamedMatrix* const> matrices);

}  // namespace pipelora
