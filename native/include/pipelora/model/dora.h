// DoRA (Liu et al., 2024) as peft computes it: outputs of W + s B A are scaled to a magnitude that is learnt, m / |W + s B A|, row by row of
// the weight. Norms count as constants in the backward pass, and are made once a step.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/model/named_matrix.h"
#include "pipelora/ops/ops.h"

namespace pipelora {

/// One pair of a product, with the magnitudes of its outputs as its third matrix.
struct DoraPart {
  Learner* learner = nullptr;
  std::int64_t first_column = 0, columns = 0, rank = 0;
  float scale = 0;
};

class Dora {
 public:
  /// Of a product [out, in] that has these parts.
  Dora(Ops& ops, Arena& arena, LinearWeight& weight, std::vector<DoraPart> parts);

  std::size_t bytes() const { return memory_->bytes(); }
  /// Before a pass: norms and gains are those of the present values. `bias_changed`: the product's was set.
  void follow(bool bias_changed);
  /// Magnitudes become the norms, so that gains are 1.
  void first_values();
  /// y = gains (z - bias) + bias + residual, of all columns.
  void forward(const Tensor& z, const Tensor& residual, const Tensor& y) const;
  /// dz from dy, and the magnitudes' gradients times `factor`.
  void backward(const Tensor& dy, const Tensor& z, float factor, const Tensor& dz) const;

 private:
  void measure();
  void renew();
  /// norms and gains of all parts.
  void norms();
  Tensor vector(int which) const { return Tensor(static_cast<float*>(memory_->data()) + which * weight_.out, DType::f32, 1, weight_.out); }
  Tensor squares() const { return vector(0); }
  Tensor norms_of() const { return vector(1); }
  Tensor gains() const { return vector(2); }
  /// The bias where there is a part, else 0: what gains leave out.
  Tensor offsets() const { return vector(3); }

  Ops& ops_;
  Arena& arena_;
  LinearWeight& weight_;
  std::vector<DoraPart> parts_;
  std::int64_t ranks_ = 0;
  bool measured_ = false;
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace pipelora
