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
  /// Values that follow from the loaded table.
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
  Tensor table() const { return table_ ? table_->matrices()[0].part(MatrixPart::weight) : base_.weight; }

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  EmbeddingSpec spec_;
  BaseTable& base_;
  std::optional<Learner> table_;  // [V, D]
  std::optional<Learner> pair_;   // A [R, V], B [D, R], both held transposed
  std::optional<Learner> rows_;   // [tokens, D]
  std::vector<std::int32_t> row_of_;  // of each token that has a row of its own, its number; else -1
};

}  // namespace pipelora
