// The embedding: its table, and what it may learn: the table itself, a LoRA pair, or rows of single tokens.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "pipelora/model/base_weights.h"
#include "pipelora/ops/batch.h"
#include "pipelora/model/named_matrix.h"
#include "pipelora/model/weight_slots.h"

namespace pipelora {

class Embedding {
 public:
  Embedding(Ops& ops, Arena& arena, const Arch& arch, const EmbeddingSpec& spec, BaseWeights& base);

  /// Of a table of its own, and of the base's where no other adapter has added that.
  void add_slot(WeightSlots& slots);
  bool trainable() const { return table_ || pair_ || rows_; }
  bool trains_table() const { return table_.has_value(); }
  std::vector<Learner*> learners();
  /// Beside the table and what learns: DoRA's norms.
  std::size_t extra_bytes() const { return dora_ ? dora_->bytes() : 0; }
  /// Before a pass: norms and gains are those of the present values.
  void follow();
  /// Values that follow from the loaded table, and from A and B.
  void first_values();

  /// [T, D], the family's factor in it.
  Buffer forward(const std::vector<std::int32_t>& tokens);
  /// From the gradient of what forward() gave.
  void backward(const std::vector<std::int32_t>& tokens, const Tensor& dout);

 private:
  /// The positions of each token that occurs, by rising id; `of`: what counts as a token's row, or -1: none.
  struct Occurrences {
    Indices order, starts, ids;
  };
  template <class Of>
  Occurrences occurrences(const std::vector<std::int32_t>& tokens, Of&& of);
  /// The table's rows with what the pair adds, before gains and the family's factor. `inner` [T, R]: written where there is a pair.
  void look_up(const Indices& ids, const Tensor& inner, const Tensor& x);
  /// DoRA's norms of the columns of table + scale (B A)ᵀ, and their gains: the table is read through, a piece at a time.
  void norms();
  Tensor vector(int which) const { return Tensor(static_cast<float*>(dora_->data()) + which * arch_.hidden, DType::f32, 1, arch_.hidden); }
  Tensor squares() const { return vector(0); }
  Tensor norms_of() const { return vector(1); }
  Tensor gains() const { return vector(2); }
  Tensor zeros() const { return vector(3); }
  Tensor table() const { return table_ ? table_->matrices()[0].part(MatrixPart::weight) : base_.weight; }

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  EmbeddingSpec spec_;
  BaseTable& base_;
  std::optional<Learner> table_;  // [V, D]
  std::optional<Learner> pair_;   // A [R, V], B [D, R], both held transposed; with DoRA magnitudes [D]
  std::unique_ptr<DeviceMemory> dora_;
  bool measured_ = false;
  std::optional<Learner> rows_;   // [tokens, D]
  std::vector<std::int32_t> row_of_;  // of each token that has a row of its own, its number; else -1
};

}  // namespace pipelora
