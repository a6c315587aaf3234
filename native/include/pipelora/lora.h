// A LoRA pair with its gradients and AdamW state, and where pairs of one product are put side by side.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipelora/ops.h"
#include "pipelora/spec.h"

namespace pipelora {

enum class LoraMatrix { a, b };
enum class LoraPart { weight, grad, exp_avg, exp_avg_sq };

class LoraPair {
 public:
  /// `experts`: the pair is one of each of that many weights, as peft has it for a parameter [N, …]: A [N r, in], expert by expert, B
  /// [out, r N], the experts' columns of one rank beside each other.
  LoraPair(Ops& ops, std::string name, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts = 1);

  const std::string& name() const { return name_; }
  const LoraSpec& spec() const { return spec_; }
  std::size_t bytes() const { return memory_->bytes(); }
  /// A [R, in], B transposed [R, out], f32.
  Tensor part(LoraMatrix matrix, LoraPart part) const;
  /// Values in the caller's layout: A [R, in], B [out, R]. Throws PL_TENSOR_MISMATCH for another count.
  void set(Ops& ops, LoraMatrix matrix, LoraPart part, const float* values, std::size_t count);
  std::vector<float> get(Ops& ops, LoraMatrix matrix, LoraPart part) const;
  /// Both gradients as one run of floats: A [R, in], then B transposed [R, out].
  Tensor gradients() const;
  AdamTarget adam_target(LoraMatrix matrix) const;
  LoraView view(std::int64_t first_column, std::int64_t first_inner, std::int64_t expert = 0) const;

 private:
  /// The caller's column of B that row `row` of its transposed is.
  std::int64_t column_of(std::int64_t row) const { return row % (spec_.r / experts_) * experts_ + row / (spec_.r / experts_); }
  std::string name_;
  std::int64_t in_, out_, experts_;
  LoraSpec spec_;
  std::unique_ptr<DeviceMemory> memory_;
};

/// Linears that share an input: one product, their LoRA pairs next to each other.
class LinearGroup {
 public:
  LinearGroup(Ops& ops, const std::vector<LinearSpec>& linears);

  LinearWeight& weight() const { return *weight_; }
  const std::vector<LinearSpec>& linears() const { return linears_; }
  const std::vector<std::unique_ptr<LoraPair>>& pairs() const { return pairs_; }
  bool trainable() const { return !pairs_.empty(); }
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
