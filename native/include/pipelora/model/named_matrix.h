// Matrices that learn. Files, checkpoints, the optimizer and sums over replicas go by this list; a kind of adapter is what it puts there.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora {

enum class MatrixPart { weight, grad, exp_avg, exp_avg_sq };
inline constexpr std::size_t kMatrixParts = 4;

/// How a matrix is called, its shape as the caller has it, and how it is held.
struct MatrixForm {
  std::string name;  // as peft's files call it, without "base_model.model."
  std::int64_t rows = 0, cols = 0;
  bool transposed = false;
  /// Held transposed: columns of so many experts stand in turn (peft's target_parameters); the held rows are expert by expert.
  std::int64_t experts = 1;
};

/// Rows of tokens that a module (the embedding, or a head with its weight) trains, in the tokens' order. Throws PL_TENSOR_MISMATCH for ids that are
/// not distinct or not below `vocab`.
MatrixForm token_rows_form(const std::string& module, const std::vector<std::int32_t>& tokens, std::int64_t vocab, std::int64_t hidden);

/// A matrix that learns, in float32: values, gradient, AdamW's moments.
class NamedMatrix {
 public:
  NamedMatrix(MatrixForm form, std::array<Tensor, kMatrixParts> parts) : form_(std::move(form)), parts_(parts) {}

  const std::string& name() const { return form_.name; }
  /// As held: [rows, cols], or its transpose.
  const Tensor& part(MatrixPart part) const { return parts_[static_cast<std::size_t>(part)]; }
  /// Values in the caller's layout. Throws PL_TENSOR_MISMATCH for another count.
  void set(Ops& ops, MatrixPart part, const float* values, std::size_t count);
  std::vector<float> get(Ops& ops, MatrixPart part) const;
  AdamTarget adam_target() const;
  /// Once after each time that values were set or updated: what is made of them is made again.
  bool take_changed() { return std::exchange(changed_, false); }
  void changed() { changed_ = true; }

 private:
  /// The caller's position of each element as held.
  template <class Body>
  void each_transposed(Body&& body) const;

  MatrixForm form_;
  std::array<Tensor, kMatrixParts> parts_;
  bool changed_ = true;
};

/// Matrices in one piece of memory, part by part: their gradients are one run of floats.
class Learner {
 public:
  /// `what`: for PL_OUT_OF_MEMORY. All zero at first.
  Learner(Ops& ops, const char* what, const std::vector<MatrixForm>& forms);
  Learner(Learner&&) = default;
  Learner& operator=(Learner&&) = default;

  std::vector<NamedMatrix>& matrices() { return matrices_; }
  const std::vector<NamedMatrix>& matrices() const { return matrices_; }
  std::size_t bytes() const { return memory_->bytes(); }

 private:
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<NamedMatrix> matrices_;
};

}  // namespace pipelora
