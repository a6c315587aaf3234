// DoRA (Liu et al., 2024) as peft computes it: outputs of W + s B A are scaled to a magnitude that is learnt, m / |W + s B A|, row by row of
// the weight. Norms count as constants in the backward pass, and are made once a step.
//
// In training with dropout the base sees the whole input, and gains change what W + s B A makes of the dropped one, each pair of its own:
// y = W x + b + s B A drop(x) + (gain - 1) (W + s B A) drop(x).
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
  /// Of the product's weight, and of its pairs.
  std::size_t weight_part = 0, pair = 0;
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

  /// With dropout. `dropped` [T, out] takes each pair's product of its dropped input; call.y, if there is one, has the plain product with its
  /// LoRA, to which what the gains change is added.
  void forward_dropped(const LinearForward& call, const Tensor& dropped) const;
  /// After the plain product's input gradient: adds to call.inner_grad, call.dx and the pairs' gradients what comes through the dropped
  /// products.
  void backward_dropped(const LinearInputGrad& call, const Tensor& dropped, float factor) const;

 private:
  /// y [n, out] f32 = x Wᵀ, of the values that the weight stands for.
  void product_of(const Tensor& x, const Tensor& y) const;
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
