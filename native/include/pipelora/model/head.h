// The output head: logits only for tokens that carry a label, in chunks of rows, and their gradient in the same pass.
#pragma once

#include <memory>
#include <optional>

#include "pipelora/ops/batch.h"
#include "pipelora/model/lora.h"
#include "pipelora/model/weight_slots.h"

namespace pipelora {

/// Chunks are as many rows as their float32 logits fit in this many bytes, and as many more as fill a product's tiles.
inline constexpr std::int64_t kLogitsBytes = std::int64_t{1} << 28, kChunkTile = 128;

struct HeadSaved {
  Indices label_rows;
  Buffer hidden_grad;  // [L, D] compute: gradient of the loss sum over `unit`
  Buffer grad_a, grad_bt;  // LoRA gradients, f32, over `unit`; empty without a pair
  double unit = 1;     // the largest weight: keeps gradients in a 16-bit range
  std::int64_t tokens = 0;
};

struct HeadResult {
  double loss_sum = 0;
  std::int64_t label_tokens = 0, correct_tokens = 0;
  /// The first token whose loss is NaN or infinite; -1: none.
  std::int64_t first_not_finite = -1;
  std::unique_ptr<HeadSaved> saved;
};

class Head {
 public:
  Head(Ops& ops, Arena& arena, const Arch& arch, const HeadSpec& spec, BaseWeights& base);

  /// Of a weight of its own, and of the base's where no other adapter has added that.
  void add_slot(WeightSlots& slots);
  /// Beside the base's weight and what learns: a weight of its own, DoRA's norms.
  std::size_t extra_bytes() const { return own_.bytes() + group_->extra_bytes() + (rows_weight_ ? rows_weight_->bytes() : 0); }
  bool trainable() const { return group_->trainable() || table_ || rows_; }
  bool trains_table() const { return table_.has_value(); }
  std::vector<Learner*> learners();
  /// Before a pass: makes again what is derived from weights that were set or updated.
  void follow();
  void first_values() { group_->first_values(); }

  /// hidden [T, D]. With `keep`, the gradient is made at once and kept, so that logits never return; what has a gradient as large as the
  /// weight learns at once.
  HeadResult forward(const Batch& batch, const MicroBatch& micro, const Tensor& hidden, bool keep);
  /// Gradient of hidden [T, D], zero where there is no label; nothing unless asked for.
  Buffer backward(const Batch& batch, const HeadSaved& saved, bool needs_input_grad);
  /// f32 [S, V] of each sequence's last token.
  Buffer last_logits(const Batch& batch, const Tensor& hidden);

 private:
  /// The product of x [n, D] with the head's weight, and with the tokens' own rows in their places.
  void product(const LinearForward& call, const Tensor& before);
  /// The part of dx [n, D] that comes through the tokens' own rows, which learn `factor` times; their columns of dz [n, V] become zero.
  void rows_backward(const Tensor& x, const Tensor& dz, float factor, const Tensor& dx);
  /// The family's factor and cap, in place.
  void shape(const Tensor& logits);

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  HeadSpec spec_;
  BaseWeights own_;  // of a head that is trained whole
  std::unique_ptr<LinearGroup> group_;
  std::optional<Learner> table_;  // [V, D] where the head is trained whole
  std::optional<Learner> rows_;   // [tokens, D]: rows of the weight in their places
  std::unique_ptr<LinearWeight> rows_weight_;  // the same as products take it
  /// Tokens that follow each other: their logits' columns are copied together.
  struct Run {
    std::int64_t token = 0, row = 0, count = 0;
  };
  std::vector<Run> runs_;
};

}  // namespace pipelora
