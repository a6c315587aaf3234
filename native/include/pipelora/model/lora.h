// A LoRA pair, and where pairs of one product are put side by side.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipelora/model/base_weights.h"
#include "pipelora/model/dora.h"
#include "pipelora/model/named_matrix.h"
#include "pipelora/ops/ops.h"
#include "pipelora/model/spec.h"

namespace pipelora {

/// A LoRA pair: A [R, in], and B [out, R], which is held transposed.
class LoraPair {
 public:
  /// `experts`: the pair is one of each of that many weights, as peft has it for a parameter [N, …]: A [N r, in], expert by expert, B
  /// [out, r N], the experts' columns of one rank beside each other. `crossed`: peft takes a parameter [N, in, out] for [N, out, in] (its layer
  /// does not say is_transposed): what is B here is its A [N r, out], what is A here its B [in, r N].
  LoraPair(Ops& ops, const std::string& module, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts = 1, bool crossed = false);

  Learner& learner() { return learner_; }
  LoraView view(std::int64_t first_column, std::int64_t first_inner, std::int64_t expert = 0) const;

 private:
  std::int64_t experts_;
  LoraSpec spec_;
  Learner learner_;
};

/// What a product took, in float32, call after call.
struct InputRows {
  std::int64_t cols = 0;
  std::vector<float> values;
};

/// Linears that share an input: one product of the base's, and one adapter's LoRA pairs next to each other.
class LinearGroup {
 public:
  LinearGroup(Ops& ops, Arena& arena, const std::vector<LinearSpec>& linears, BaseWeights& base);

  LinearWeight& weight() const { return *product_.weights.front(); }
  BaseProduct& product() const { return product_; }
  const std::vector<LinearSpec>& linears() const { return linears_; }
  const std::vector<std::unique_ptr<LoraPair>>& pairs() const { return pairs_; }
  bool trainable() const { return has_pairs() || !biases_.empty(); }
  bool has_pairs() const { return !pairs_.empty(); }
  std::vector<Learner*> learners();
  /// Beside the weight and what learns: DoRA's norms.
  std::size_t extra_bytes() const { return dora_ ? dora_->bytes() : 0; }
  /// Where the rows that the product takes are copied to; null: nowhere. They are waited for: not for passes whose time counts.
  void watch(InputRows* rows) { watched_ = rows; }
  /// Then what stands before the product is made on its own: kernels for few tokens that do both leave no rows.
  bool watched() const { return watched_ != nullptr; }
  /// Before a pass: what is made of values that were set or updated, and the bias, which adapters that train it take turns with.
  void follow();
  /// Values that follow from the loaded weight, and from A and B.
  void first_values();

  /// Whether DoRA stands behind the product: the backward pass then needs the product as it was before, or those of dropped inputs.
  bool has_gains() const { return dora_ != nullptr; }
  /// The call's product, and what stands behind it. `before` [T, out], or empty, takes the product for the backward pass: where the call
  /// has no y, that alone is made. `product`: makes the call it is given; of one without y the input x, where it is made with the product.
  template <class Product>
  void forward(const LinearForward& call, const Tensor& before, Product&& product) const {
    if (!dora_ || !(call.y || before)) {
      product(call);
      return copy_input(call.x);
    }
    Buffer own;
    const auto kept = [&] {
      if (!before) own = arena_.workspace("a product before its gains", call.y.dtype, call.y.rows, call.y.cols);
      return before ? before : own.tensor();
    };
    if (drops(call.lora.dropout)) {
      LinearForward read = call;
      read.x_unread = false;
      product(read);
      copy_input(call.x);
      return dora_->forward_dropped(call, kept());
    }
    LinearForward plain = call;
    plain.y = kept();
    plain.residual = Tensor();
    product(plain);
    copy_input(call.x);
    if (call.y) dora_->forward(plain.y, call.residual, call.y);
  }
  void forward(const LinearForward& call, const Tensor& before = {}) const {
    forward(call, before, [this](const LinearForward& plain) { ops_.linear_forward(plain); });
  }
  /// The product's gradient from that of what forward() gave; empty: it is that itself. Biases learn, `factor` times, and magnitudes, but
  /// for those that input_grad() teaches.
  Buffer product_grad(const Tensor& dy, const Tensor& before, const DropoutKey* dropout, float factor = 1) const;
  /// Through the product, and through those of dropped inputs (`before`), where it has such: then magnitudes learn, `factor` times.
  void input_grad(const LinearInputGrad& call, const Tensor& before, float factor = 1) const;
  /// The same with the norm before the product, whose dy is call.dx.
  void input_grad_norm(const LinearInputGrad& call, const Tensor& before, const RmsNormBackward& norm) const;
  /// The same with SwiGLU before it, as Ops::swiglu_linear_input_grad: A's gradient is made too.
  void input_grad_swiglu(const LinearInputGrad& call, const Tensor& before, const Tensor& gate, const Tensor& up, Activation activation) const;
  std::int64_t inner_cols() const { return inner_cols_; }
  LoraSet lora(const DropoutKey* dropout) const { return {views_, inner_cols_, dropout}; }
  const std::vector<LoraView>& views() const { return views_; }

 private:
  /// Whether DoRA's gains apply to dropped inputs apart.
  bool drops(const DropoutKey* dropout) const { return dora_ != nullptr && dropout != nullptr && dropout_; }
  void copy_input(const Tensor& x) const;
  struct Bias {
    Learner learner;
    std::int64_t first = 0, count = 0;
  };
  /// The base's own bias, wherever it is meanwhile.
  Tensor base_bias() const;
  /// Whether the weight's bias was another adapter's: it is the base's now.
  bool take_bias();

  Ops& ops_;
  Arena& arena_;
  std::vector<LinearSpec> linears_;
  BaseProduct& product_;
  std::vector<std::unique_ptr<LoraPair>> pairs_;
  std::vector<LoraView> views_;
  std::vector<Bias> biases_;
  std::unique_ptr<Dora> dora_;
  std::int64_t inner_cols_ = 0;
  bool dropout_ = false;  // of some pair
  InputRows* watched_ = nullptr;
};

}  // namespace pipelora
