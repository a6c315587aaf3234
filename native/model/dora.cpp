// |W + s B A|² = |W|² + 2 s B (A Wᵀ) + s² B (A Aᵀ) Bᵀ, row by row: |W|² is measured once, through products with rows of the identity, so
// that it is that of the values which products use, in whatever form they are held. A Wᵀ is a product of R rows with the same values, whose
// input is not rounded to 8 bits as others' are: it is no activation.
#include "pipelora/model/dora.h"

#include <algorithm>

namespace pipelora {

namespace {

constexpr std::int64_t kChunk = 128;

}  // namespace

Dora::Dora(Ops& ops, Arena& arena, LinearWeight& weight, std::vector<DoraPart> parts)
    : ops_(ops), arena_(arena), weight_(weight), parts_(std::move(parts)) {
  for (const DoraPart& part : parts_) ranks_ += part.rank;
  memory_ = ops.allocate("DoRA's norms", static_cast<std::size_t>(4 * weight.out) * sizeof(float), true);
  const std::vector<float> ones(static_cast<std::size_t>(weight.out), 1.0f);
  for (const Tensor& vector : {squares(), norms_of(), offsets()}) ops.zero(vector);
  ops.upload(gains(), ones.data());
}

void Dora::follow(bool bias_changed) {
  bool changed = bias_changed || !measured_;
  for (const DoraPart& part : parts_)
    for (NamedMatrix& matrix : part.learner->matrices()) changed = matrix.take_changed() || changed;
  if (changed) renew();
}

void Dora::product_of(const Tensor& x, const Tensor& y) const {
  LinearForward call{x, &weight_, {}, Tensor(), Tensor(), y};
  call.bare = true;
  ops_.linear_forward(call);
}

void Dora::measure() {
  const std::int64_t in = weight_.in, rows = std::min(kChunk, in);
  const DType dtype = ops_.compute_dtype();
  const Buffer x = arena_.workspace("rows of the identity", dtype, rows, in);
  const Buffer y = arena_.workspace("rows of a weight's transpose", DType::f32, rows, weight_.out);
  const Buffer identity = arena_.workspace("a piece of the identity", DType::f32, rows, rows);
  std::vector<float> ones(static_cast<std::size_t>(rows * rows));
  for (std::int64_t i = 0; i < rows; ++i) ones[static_cast<std::size_t>(i * rows + i)] = 1;
  ops_.upload(identity, ones.data());
  ops_.zero(squares());
  for (std::int64_t first = 0; first < in; first += rows) {
    const std::int64_t count = std::min(rows, in - first);
    ops_.zero(x);
    ops_.copy(identity.tensor().row_range(0, count).columns(0, count), x.tensor().row_range(0, count).columns(first, count));
    const Tensor own = y.tensor().row_range(0, count);
    product_of(x.tensor().row_range(0, count), own);
    ops_.add_column_squares(own, squares());
  }
  measured_ = true;
}

void Dora::norms() {
  if (!measured_) measure();
  const Buffer x = arena_.workspace("rows of A", ops_.compute_dtype(), ranks_, weight_.in);
  const Buffer product = arena_.workspace("A Wᵀ", DType::f32, ranks_, weight_.out);
  std::int64_t first = 0;
  for (const DoraPart& part : parts_) {
    ops_.copy(part.learner->matrices()[0].part(MatrixPart::weight), x.tensor().row_range(first, part.rank));
    first += part.rank;
  }
  product_of(x, product);
  first = 0;
  for (const DoraPart& part : parts_) {
    const auto own = [&](const Tensor& vector) { return vector.columns(part.first_column, part.columns); };
    const std::vector<NamedMatrix>& matrices = part.learner->matrices();
    ops_.dora_norms({own(squares()), own(product.tensor().row_range(first, part.rank)), matrices[0].part(MatrixPart::weight),
                     matrices[1].part(MatrixPart::weight), part.scale, matrices[2].part(MatrixPart::weight), own(norms_of()), own(gains())});
    first += part.rank;
  }
}

void Dora::renew() {
  norms();
  if (const Tensor bias = weight_.bias_values())
    for (const DoraPart& part : parts_) ops_.copy(bias.columns(part.first_column, part.columns), offsets().columns(part.first_column, part.columns));
}

void Dora::first_values() {
  norms();
  for (const DoraPart& part : parts_) {
    NamedMatrix& magnitude = part.learner->matrices()[2];
    ops_.copy(norms_of().columns(part.first_column, part.columns), magnitude.part(MatrixPart::weight));
    magnitude.changed();
  }
}

void Dora::forward(const Tensor& z, const Tensor& residual, const Tensor& y) const {
  ops_.column_gains({z, gains(), offsets(), residual, y});
}

void Dora::backward(const Tensor& dy, const Tensor& z, float factor, const Tensor& dz) const {
  std::int64_t at = 0;
  const auto plain = [&](std::int64_t until) {
    if (until > at) ops_.copy(dy.columns(at, until - at), dz.columns(at, until - at));
    at = until;
  };
  for (const DoraPart& part : parts_) {
    plain(part.first_column);
    const auto own = [&](const Tensor& t) { return t.columns(part.first_column, part.columns); };
    ops_.column_gains_backward({own(dy), own(z), own(gains()), own(offsets()), own(norms_of()), factor,
                                part.learner->matrices()[2].part(MatrixPart::grad), own(dz)});
    at = part.first_column + part.columns;
  }
  plain(dy.cols);
}

namespace {

/// A pair by itself, of a product that takes its own outputs alone and drops nothing.
LoraView alone(LoraView pair) {
  pair.dropout = 0;
  pair.first_column = pair.first_inner = 0;
  return pair;
}

}  // namespace

void Dora::forward_dropped(const LinearForward& call, const Tensor& dropped) const {
  const std::int64_t tokens = call.x.rows, in = weight_.in;
  for (const DoraPart& part : parts_) {
    const LoraView &pair = call.lora.pairs[part.pair], own = alone(pair);
    const auto outputs = [&](const Tensor& t) { return t.columns(part.first_column, part.columns); };
    const Buffer storage = arena_.workspace("a pair's input after dropout", call.x.dtype, tokens, in + ops_.room_for_lora(part.rank));
    const Tensor x = storage.tensor().columns(0, in);
    const Buffer inner = arena_.workspace("inner vectors of one pair", DType::f32, tokens, part.rank);
    ops_.lora_drop({call.x, {{&pair, 1}, part.rank, call.lora.dropout}, call.sequences, x});
    ops_.linear_forward({x, &weight_, {{&own, 1}, part.rank}, inner, Tensor(), outputs(dropped), call.sequences, true, false, {part.weight_part, 1}});
    if (call.y) ops_.column_gains({outputs(dropped), outputs(gains()), outputs(offsets()), outputs(call.y), outputs(call.y), true});
  }
}

void Dora::backward_dropped(const LinearInputGrad& call, const Tensor& dropped, float factor) const {
  const std::int64_t tokens = call.dy.rows;
  for (const DoraPart& part : parts_) {
    const LoraView &pair = call.lora.pairs[part.pair], own = alone(pair);
    const auto outputs = [&](const Tensor& t) { return t.columns(part.first_column, part.columns); };
    const auto ranks = [&](const Tensor& t) { return t.columns(pair.first_inner, part.rank); };
    const Buffer dy = arena_.workspace("gradient of a pair's product after dropout", call.dy.dtype, tokens, part.columns);
    ops_.column_gains_backward({outputs(call.dy), outputs(dropped), outputs(gains()), outputs(offsets()), outputs(norms_of()), factor,
                                part.learner->matrices()[2].part(MatrixPart::grad), dy, true});
    const Buffer inner = arena_.workspace("inner vectors of one pair", DType::f32, tokens, part.rank);
    const Buffer inner_grad = arena_.workspace("their gradient", DType::f32, tokens, part.rank);
    Buffer dx;
    if (call.dx) dx = arena_.workspace("gradient of a pair's input after dropout", call.dx.dtype, tokens, weight_.in);
    ops_.copy(ranks(call.inner), inner);
    ops_.linear_input_grad({dy, &weight_, {{&own, 1}, part.rank}, inner, inner_grad, dx, call.sequences, {part.weight_part, 1}});
    ops_.add_scaled(inner_grad, 1, ranks(call.inner_grad));
    if (dx) ops_.lora_drop_backward({dx, {{&pair, 1}, part.rank, call.lora.dropout}, call.sequences, call.dx});
  }
}

}  // namespace pipelora
