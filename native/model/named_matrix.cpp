#include "pipelora/model/named_matrix.h"

#include "pipelora/core/error.h"

namespace pipelora {

MatrixForm token_rows_form(const std::string& module, const std::vector<std::int32_t>& tokens, std::int64_t vocab, std::int64_t hidden) {
  std::vector<bool> seen(static_cast<std::size_t>(vocab), false);
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocab || seen[static_cast<std::size_t>(token)])
      throw Error(kTensorMismatch, "trained tokens: expected distinct ids below " + std::to_string(vocab) + ", got " + std::to_string(token));
    seen[static_cast<std::size_t>(token)] = true;
  }
  return {module + ".token_adapter.trainable_tokens_delta", static_cast<std::int64_t>(tokens.size()), hidden};
}

template <class Body>
void NamedMatrix::each_transposed(Body&& body) const {
  const std::int64_t share = form_.cols / form_.experts;
  for (std::int64_t held = 0; held < form_.cols; ++held) {
    const std::int64_t column = held % share * form_.experts + held / share;
    for (std::int64_t row = 0; row < form_.rows; ++row)
      body(static_cast<std::size_t>(held * form_.rows + row), static_cast<std::size_t>(row * form_.cols + column));
  }
}

void NamedMatrix::set(Ops& ops, MatrixPart which, const float* values, std::size_t count) {
  const Tensor& target = part(which);
  if (static_cast<std::int64_t>(count) != target.size())
    throw Error(kTensorMismatch, form_.name + ": expected " + std::to_string(target.size()) + " values, got " + std::to_string(count));
  if (which == MatrixPart::weight) changed();
  if (!form_.transposed) return ops.upload(target, values);
  std::vector<float> turned(count);
  each_transposed([&](std::size_t held, std::size_t given) { turned[held] = values[given]; });
  ops.upload(target, turned.data());
}

std::vector<float> NamedMatrix::get(Ops& ops, MatrixPart which) const {
  const Tensor& source = part(which);
  std::vector<float> values(static_cast<std::size_t>(source.size()));
  ops.download(source, values.data());
  if (!form_.transposed) return values;
  std::vector<float> turned(values.size());
  each_transposed([&](std::size_t held, std::size_t given) { turned[given] = values[held]; });
  return turned;
}

AdamTarget NamedMatrix::adam_target() const {
  return {part(MatrixPart::weight), part(MatrixPart::grad), part(MatrixPart::exp_avg), part(MatrixPart::exp_avg_sq)};
}

Learner::Learner(Ops& ops, const char* what, const std::vector<MatrixForm>& forms) {
  std::int64_t size = 0;
  for (const MatrixForm& form : forms) size += form.rows * form.cols;
  const std::int64_t total = size * static_cast<std::int64_t>(kMatrixParts);
  memory_ = ops.allocate(what, static_cast<std::size_t>(total) * sizeof(float), true);
  auto* base = static_cast<float*>(memory_->data());
  ops.zero(Tensor(base, DType::f32, 1, total));
  std::int64_t offset = 0;
  for (const MatrixForm& form : forms) {
    std::array<Tensor, kMatrixParts> parts;
    for (std::size_t part = 0; part < kMatrixParts; ++part) {
      float* at = base + static_cast<std::int64_t>(part) * size + offset;
      parts[part] = form.transposed ? Tensor(at, DType::f32, form.cols, form.rows) : Tensor(at, DType::f32, form.rows, form.cols);
    }
    offset += form.rows * form.cols;
    matrices_.emplace_back(form, parts);
  }
}

}  // namespace pipelora
