#include "pipelora/lora.h"

#include "pipelora/error.h"

namespace pipelora {

namespace {
constexpr std::int64_t kParts = 4;
}  // namespace

LoraPair::LoraPair(Ops& ops, std::string name, std::int64_t in, std::int64_t out, const LoraSpec& spec, std::int64_t experts)
    : name_(std::move(name)), in_(in), out_(out), experts_(experts), spec_(spec) {
  if (spec.r <= 0 || spec.dropout < 0 || spec.dropout >= 1)
    throw Error(kTensorMismatch, "LoRA of " + name_ + ": expected a rank above 0 and dropout in [0, 1), got " +
                                     std::to_string(spec.r) + " and " + std::to_string(spec.dropout));
  if (experts < 1 || spec.r % experts != 0)
    throw Error(kTensorMismatch, "LoRA of " + name_ + ": expected a rank that is a multiple of its " + std::to_string(experts) + " experts, got " +
                                     std::to_string(spec.r));
  const auto bytes = static_cast<std::size_t>(kParts * spec.r * (in + out)) * sizeof(float);
  memory_ = ops.allocate("LoRA matrices and their optimizer state", bytes, true);
  ops.zero(Tensor(memory_->data(), DType::f32, 1, static_cast<std::int64_t>(bytes / sizeof(float))));
}

Tensor LoraPair::part(LoraMatrix matrix, LoraPart part) const {
  const std::int64_t size_a = spec_.r * in_, size_b = spec_.r * out_;
  float* base = static_cast<float*>(memory_->data()) + static_cast<std::int64_t>(part) * (size_a + size_b);
  return matrix == LoraMatrix::a ? Tensor(base, DType::f32, spec_.r, in_) : Tensor(base + size_a, DType::f32, spec_.r, out_);
}

Tensor LoraPair::gradients() const {
  return Tensor(part(LoraMatrix::a, LoraPart::grad).data, DType::f32, 1, spec_.r * (in_ + out_));
}

void LoraPair::set(Ops& ops, LoraMatrix matrix, LoraPart which, const float* values, std::size_t count) {
  const Tensor target = part(matrix, which);
  if (static_cast<std::int64_t>(count) != target.size())
    throw Error(kTensorMismatch, name_ + (matrix == LoraMatrix::a ? ".lora_A" : ".lora_B") + ": expected " +
                                     std::to_string(target.size()) + " values, got " + std::to_string(count));
  if (matrix == LoraMatrix::a) return ops.upload(target, values);
  std::vector<float> transposed(count);
  for (std::int64_t r = 0; r < spec_.r; ++r)
    for (std::int64_t o = 0; o < out_; ++o) transposed[static_cast<std::size_t>(r * out_ + o)] = values[o * spec_.r + column_of(r)];
  ops.upload(target, transposed.data());
}

std::vector<float> LoraPair::get(Ops& ops, LoraMatrix matrix, LoraPart which) const {
  const Tensor source = part(matrix, which);
  std::vector<float> values(static_cast<std::size_t>(source.size()));
  ops.download(source, values.data());
  if (matrix == LoraMatrix::a) return values;
  std::vector<float> transposed(values.size());
  for (std::int64_t r = 0; r < spec_.r; ++r)
    for (std::int64_t o = 0; o < out_; ++o) transposed[static_cast<std::size_t>(o * spec_.r + column_of(r))] = values[static_cast<std::size_t>(r * out_ + o)];
  return transposed;
}

AdamTarget LoraPair::adam_target(LoraMatrix matrix) const {
  return {part(matrix, LoraPart::weight), part(matrix, LoraPart::grad), part(matrix, LoraPart::exp_avg),
          part(matrix, LoraPart::exp_avg_sq)};
}

LoraView LoraPair::view(std::int64_t first_column, std::int64_t first_inner, std::int64_t expert) const {
  const std::int64_t rows = spec_.r / experts_;
  const auto own = [&](LoraMatrix matrix, LoraPart which) { return part(matrix, which).row_range(expert * rows, rows); };
  LoraView view;
  view.a = own(LoraMatrix::a, LoraPart::weight);
  view.bt = own(LoraMatrix::b, LoraPart::weight);
  view.grad_a = own(LoraMatrix::a, LoraPart::grad);
  view.grad_bt = own(LoraMatrix::b, LoraPart::grad);
  view.scale = spec_.scale;
  view.dropout = spec_.dropout;
  view.module_id = spec_.module_id;
  view.first_column = first_column;
  view.first_inner = first_inner;
  return view;
}

LinearGroup::LinearGroup(Ops& ops, const std::vector<LinearSpec>& linears) : linears_(linears) {
  std::vector<std::int64_t> rows;
  bool bias = false;
  std::int64_t column = 0;
  for (const LinearSpec& linear : linears_) {
    rows.push_back(linear.out);
    bias = bias || linear.bias;
    if (linear.lora) {
      pairs_.push_back(std::make_unique<LoraPair>(ops, linear.name, linear.in, linear.out, *linear.lora));
      views_.push_back(pairs_.back()->view(column, inner_cols_));
      inner_cols_ += linear.lora->r;
    }
    column += linear.out;
  }
  weight_ = ops.create_linear(linears_.front().in, std::move(rows), bias);
  weight_->expect_lora(inner_cols_);
}

}  // namespace pipelora
