// A LoRA pair, and where pairs of one product are put side by side.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipelora/named_matrix.h"
#include "pipelora/ops.h"
#include "pipelora/spec.h"

namespace pipelora {

/// A LoRA pair: A [R, in], and B [out, R], which is held transposed.
class LoraPair {
 public:
  /// `experts`: the pair is one of each of that many weights, as peft has it for a parameter [N, …]: A [N r, in], expert by expert, B
  /// [out, r N], the experts' columns of one rank beside each other.
  LoraPair(Ops& ops, const std::string& module, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts = 1);

  Learner& learner() { return learner_; }
  LoraView view(std::int64_t first_column, std::int64_t first_inner, std::int64_t expert = 0) const;

 private:
  std::int64_t experts_;
  LoraSpec spec_;
  Learner learner_;
};

/// Linears that share an input: one product, their LoRA pairs next to each other.
class LinearGroup {
 public:
  LinearGroup(Ops& ops, const std::vector<LinearSpec>& linears);

  LinearWeight& weight() const { return *weight_; }
  const std::vector<LinearSpec>& linears() const { return linears_; }
  const std::vector<std::unique_ptr<LoraPair>>& pairs() const { return pairs_; }
  bool trainable() const { return !pairs_.empty(); }
  std::vector<Learner*> learners() const;
  std::int64_t inner_cols() const { return inner_cols_; }
  LoraSet lora(const DropoutKey* dropout) const { return {views_, inner_cols_, dropout}; }
  const std::vector<LoraView>& views() const { return views_; }

 private:
  std::vector<LinearSpec> linears_;
  std::unique_ptr<LinearWeight> weight_;
  std::vector<std::unique_ptr<LoraPair>> pairs_;
  std::vector<LoraView> views_;
  std::int64_t inner_cols_ = 0;
};

}  // namespace pipelora
