#include "pipelora/model/lora.h"

#include "pipelora/core/error.h"
#include "pipelora/core/half.h"

namespace pipelora {

namespace {

std::vector<MatrixForm> forms(const std::string& module, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts, bool crossed) {
  if (spec.r <= 0 || spec.dropout < 0 || spec.dropout >= 1)
    throw Error(kTensorMismatch, "LoRA of " + module + ": expected a rank above 0 and dropout in [0, 1), got " + std::to_string(spec.r) + " and " +
                                     std::to_string(spec.dropout));
  if (experts < 1 || spec.r % experts != 0)
    throw Error(kTensorMismatch, "LoRA of " + module + ": expected a rank that is a multiple of its " + std::to_string(experts) + " experts, got " +
                                     std::to_string(spec.r));
  const std::string a = module + ".lora_A.weight", b = module + ".lora_B.weight";
  // Both are held [N r, …], expert by expert, whichever peft transposes.
  std::vector<MatrixForm> all = crossed ? std::vector<MatrixForm>{{b, in, spec.r, true, experts}, {a, spec.r, out}}
                                        : std::vector<MatrixForm>{{a, spec.r, in}, {b, out, spec.r, true, experts}};
  if (spec.dora) all.push_back({module + ".lora_magnitude_vector", 1, out});
  return all;
}

}  // namespace

LoraPair::LoraPair(Ops& ops, const std::string& module, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts, bool crossed)
    : experts_(experts), spec_(spec), learner_(ops, "LoRA matrices and their optimizer state", forms(module, in, out, spec, experts, crossed)) {}

LoraView LoraPair::view(std::int64_t first_column, std::int64_t first_inner, std::int64_t expert) const {
  const std::int64_t rows = spec_.r / experts_;
  const auto own = [&](std::size_t matrix, MatrixPart part) { return learner_.matrices()[matrix].part(part).row_range(expert * rows, rows); };
  LoraView view;
  view.a = own(0, MatrixPart::weight);
  view.bt = own(1, MatrixPart::weight);
  view.grad_a = own(0, MatrixPart::grad);
  view.grad_bt = own(1, MatrixPart::grad);
  view.scale = spec_.scale;
  view.dropout = spec_.dropout;
  view.module_id = spec_.module_id;
  view.first_column = first_column;
  view.first_inner = first_inner;
  return view;
}

namespace {

BaseProduct& product_of(const std::vector<LinearSpec>& linears, BaseWeights& base) {
  std::vector<std::int64_t> rows;
  bool bias = false;
  std::int64_t inner_cols = 0;
  for (const LinearSpec& linear : linears) {
    rows.push_back(linear.out);
    bias = bias || linear.bias;
    if (linear.lora) inner_cols += linear.lora->r;
  }
  return base.product(linears.front().in, rows, bias, inner_cols);
}

}  // namespace

LinearGroup::LinearGroup(Ops& ops, Arena& arena, const std::vector<LinearSpec>& linears, BaseWeights& base)
    : ops_(ops), arena_(arena), linears_(linears), product_(product_of(linears, base)) {
  std::vector<DoraPart> gains;
  std::int64_t column = 0;
  for (std::size_t i = 0; i < linears_.size(); ++i) {
    const LinearSpec& linear = linears_[i];
    if (linear.lora) {
      pairs_.push_back(std::make_unique<LoraPair>(ops, linear.name, linear.in, linear.out, *linear.lora));
      views_.push_back(pairs_.back()->view(column, inner_cols_));
      inner_cols_ += linear.lora->r;
      if (linear.lora->dora) gains.push_back({&pairs_.back()->learner(), column, linear.out, linear.lora->r, linear.lora->scale, i, pairs_.size() - 1});
      dropout_ = dropout_ || linear.lora->dropout > 0;
    }
    if (!linear.trained_bias.empty()) {
      if (!linear.bias) throw Error(kTensorMismatch, linear.name + " has no bias to train");
      biases_.push_back({Learner(ops, "biases and their optimizer state", {{linear.trained_bias, 1, linear.out}}), column, linear.out});
    }
    column += linear.out;
  }
  product_.bias_learns = product_.bias_learns || !biases_.empty();
  if (!gains.empty()) dora_ = std::make_unique<Dora>(ops, arena, weight(), std::move(gains));
}

std::vector<Learner*> LinearGroup::learners() {
  std::vector<Learner*> found;
  for (const auto& pair : pairs_) found.push_back(&pair->learner());
  for (Bias& bias : biases_) found.push_back(&bias.learner);
  return found;
}

void LinearGroup::copy_input(const Tensor& x) const {
  if (watched_ == nullptr) return;
  watched_->cols = x.cols;
  const std::size_t had = watched_->values.size(), count = static_cast<std::size_t>(x.size());
  watched_->values.resize(had + count);
  float* to = watched_->values.data() + had;
  if (x.dtype == DType::f32) return ops_.download(x, to);
  std::vector<std::uint16_t> bits(count);
  ops_.download(x, bits.data());
  for (std::size_t i = 0; i < count; ++i) to[i] = x.dtype == DType::bf16 ? to_float(bf16{bits[i]}) : to_float(f16{bits[i]});
}

Tensor LinearGroup::base_bias() const {
  const Tensor held = weight().bias_values();
  return product_.own_bias ? Tensor(product_.own_bias->data(), held.dtype, held.rows, held.cols) : held;
}

bool LinearGroup::take_bias() {
  if (!product_.bias_learns || product_.bias_of == this) return false;
  const Tensor held = weight().bias_values();
  if (product_.own_bias) {
    ops_.copy(base_bias(), held);
  } else {
    product_.own_bias = ops_.allocate("a bias of the base", held.bytes(), true);
    ops_.copy(held, base_bias());
  }
  product_.bias_of = this;
  return true;
}

void LinearGroup::follow() {
  const bool taken = take_bias();
  bool changed = taken;
  for (Bias& bias : biases_) {
    NamedMatrix& matrix = bias.learner.matrices()[0];
    if (!matrix.take_changed() && !taken) continue;
    weight().refresh_bias(bias.first, matrix.part(MatrixPart::weight));
    changed = true;
  }
  if (dora_) dora_->follow(changed);
}

void LinearGroup::first_values() {
  for (Bias& bias : biases_) ops_.copy(base_bias().columns(bias.first, bias.count), bias.learner.matrices()[0].part(MatrixPart::weight));
  if (dora_) dora_->first_values();
}

Buffer LinearGroup::product_grad(const Tensor& dy, const Tensor& before, const DropoutKey* dropout, float factor) const {
  for (const Bias& bias : biases_)
    ops_.column_sums(dy.columns(bias.first, bias.count), factor, bias.learner.matrices()[0].part(MatrixPart::grad));
  if (!dora_ || drops(dropout)) return Buffer();
  Buffer dz = arena_.workspace("gradient of a product before its gains", dy.dtype, dy.rows, dy.cols);
  dora_->backward(dy, before, factor, dz);
  return dz;
}

void LinearGroup::input_grad(const LinearInputGrad& call, const Tensor& before, float factor) const {
  ops_.linear_input_grad(call);
  if (drops(call.lora.dropout)) dora_->backward_dropped(call, before, factor);
}

void LinearGroup::input_grad_norm(const LinearInputGrad& call, const Tensor& before, const RmsNormBackward& norm) const {
  if (!drops(call.lora.dropout)) return ops_.linear_input_grad_norm(call, norm);
  input_grad(call, before);
  ops_.rmsnorm_backward(norm);
}

void LinearGroup::input_grad_swiglu(const LinearInputGrad& call, const Tensor& before, const Tensor& gate, const Tensor& up, Activation activation) const {
  if (!drops(call.lora.dropout)) return ops_.swiglu_linear_input_grad(call, gate, up, gate, up, activation);
  input_grad(call, before);
  ops_.swiglu_backward(gate, up, call.dx, gate, up, call.dx, activation);
  ops_.lora_a_grad({call.dx, call.inner_grad, call.lora, call.sequences});
}

}  // namespace pipelora
