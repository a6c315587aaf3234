#include "pipelora/model/embedding.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "pipelora/core/error.h"

namespace pipelora {

namespace {

/// Rows of the table that are read at a time.
constexpr std::int64_t kPiece = 512;

}  // namespace

Embedding::Embedding(Ops& ops, Arena& arena, const Arch& arch, const EmbeddingSpec& spec, BaseWeights& base)
    : ops_(ops), arena_(arena), arch_(arch), spec_(spec), base_(base.table()) {
  constexpr const char* kWhat = "what the embedding learns, and its optimizer state";
  if (!spec_.trained.empty()) table_.emplace(ops, kWhat, std::vector<MatrixForm>{{spec_.trained, arch.vocab, arch.hidden}});
  if (spec_.lora) {
    std::vector<MatrixForm> forms{{spec_.name + ".lora_embedding_A", spec_.lora->r, arch.vocab, true},
                                  {spec_.name + ".lora_embedding_B", arch.hidden, spec_.lora->r, true}};
    if (spec_.lora->dora) forms.push_back({spec_.name + ".lora_magnitude_vector", 1, arch.hidden});
    pair_.emplace(ops, kWhat, forms);
    if (spec_.lora->dora) dora_ = ops.allocate("DoRA's norms", static_cast<std::size_t>(4 * arch.hidden) * sizeof(float), true);
  }
  if (spec_.token_rows.empty()) return;
  rows_.emplace(ops, kWhat, std::vector<MatrixForm>{token_rows_form(spec_.name, spec_.token_rows, arch.vocab, arch.hidden)});
  row_of_.assign(static_cast<std::size_t>(arch.vocab), -1);
  std::int32_t row = 0;
  for (const std::int32_t token : spec_.token_rows) row_of_[static_cast<std::size_t>(token)] = row++;
}

void Embedding::add_slot(WeightSlots& slots) {
  if (table_) {
    slots.add(spec_.weight, arch_.vocab, arch_.hidden,
              [this](const HostTensor& data, const HoldSpec&) { ops_.load(data, table_->matrices()[0].part(MatrixPart::weight)); });
  } else if (!std::exchange(base_.slotted, true)) {
    slots.add(spec_.weight, arch_.vocab, arch_.hidden, [this](const HostTensor& data, const HoldSpec& hold) {
      // A step reads a row a token: not worth the device's memory.
      base_.memory = ops_.allocate_on_host("the embedding", static_cast<std::size_t>(data.rows * data.cols) * dtype_bytes(hold.dtype));
      base_.weight = Tensor(base_.memory->data(), hold.dtype, data.rows, data.cols);
      ops_.load(data, base_.weight);
    });
  }
}

std::vector<Learner*> Embedding::learners() {
  std::vector<Learner*> found;
  for (std::optional<Learner>* learner : {&table_, &pair_, &rows_})
    if (*learner) found.push_back(&**learner);
  return found;
}

void Embedding::follow() {
  if (!dora_) return;
  bool changed = !measured_;
  for (NamedMatrix& matrix : pair_->matrices()) changed = matrix.take_changed() || changed;
  if (changed) norms();
}

// |W_d + s B_d A|², of a column d of the table, as of a row of a linear's weight (dora.cpp).
void Embedding::norms() {
  const std::int64_t vocab = arch_.vocab, r = spec_.lora->r, piece = std::min(kPiece, vocab);
  std::vector<NamedMatrix>& pair = pair_->matrices();
  const Tensor at = pair[0].part(MatrixPart::weight), bt = pair[1].part(MatrixPart::weight);
  const Buffer rows = arena_.workspace("rows of the table", DType::f32, piece, arch_.hidden);
  const Buffer product = arena_.workspace("A W", DType::f32, r, arch_.hidden);
  const Buffer gram = arena_.workspace("A Aᵀ", DType::f32, r, r);
  ops_.zero(product);
  ops_.zero(gram);
  if (!measured_) ops_.zero(squares());
  for (std::int64_t first = 0; first < vocab; first += piece) {
    const std::int64_t count = std::min(piece, vocab - first);
    const Tensor x = rows.tensor().row_range(0, count), a = at.row_range(first, count);
    ops_.copy(table().row_range(first, count), x);
    if (!measured_) ops_.add_column_squares(x, squares());
    ops_.weight_grad({x, a, 1, product});
    ops_.weight_grad({a, a, 1, gram});
  }
  measured_ = true;
  ops_.dora_norms({squares(), product, Tensor(), bt, spec_.lora->scale, pair[2].part(MatrixPart::weight), norms_of(), gains(), gram});
}

void Embedding::first_values() {
  if (dora_) {
    norms();
    NamedMatrix& magnitude = pair_->matrices()[2];
    ops_.copy(norms_of(), magnitude.part(MatrixPart::weight));
    magnitude.changed();
  }
  if (!rows_) return;
  Indices tokens;
  tokens.host = spec_.token_rows;
  upload_indices(ops_, tokens, [&](std::int64_t count) { return arena_.workspace("token ids", DType::i32, 1, count); });
  ops_.gather_rows(table(), tokens, rows_->matrices()[0].part(MatrixPart::weight));
}

Buffer Embedding::forward(const std::vector<std::int32_t>& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  const auto room = [&](std::int64_t n) { return arena_.workspace("token ids", DType::i32, 1, n); };
  Indices ids;
  ids.host = tokens;
  upload_indices(ops_, ids, room);
  Buffer x = arena_.tensor("the embedded tokens", ops_.compute_dtype(), count, arch_.hidden);
  Buffer inner;
  if (pair_) inner = arena_.workspace("LoRA's inner vectors", DType::f32, count, spec_.lora->r);
  look_up(ids, inner, x);
  inner.reset();
  if (dora_) ops_.column_gains({x, gains(), zeros(), Tensor(), x});
  if (rows_) {
    Indices places, rows;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const std::int32_t row = row_of_[static_cast<std::size_t>(tokens[t])];
      if (row < 0) continue;
      places.host.push_back(static_cast<std::int32_t>(t));
      rows.host.push_back(row);
    }
    if (places.size() > 0) {
      upload_indices(ops_, places, room);
      upload_indices(ops_, rows, room);
      const Buffer own = arena_.workspace("rows of trained tokens", DType::f32, places.size(), arch_.hidden);
      ops_.gather_rows(rows_->matrices()[0].part(MatrixPart::weight), rows, own);
      ops_.scatter_rows(own, places, 1, x);
    }
  }
  if (arch_.embedding_scale != 1) ops_.add(Tensor(), x, arch_.embedding_scale, x);
  return x;
}

void Embedding::look_up(const Indices& ids, const Tensor& inner, const Tensor& x) {
  ops_.gather_rows(table(), ids, x);
  if (!pair_) return;
  ops_.gather_rows(pair_->matrices()[0].part(MatrixPart::weight), ids, inner);
  ops_.low_rank_forward({inner, pair_->matrices()[1].part(MatrixPart::weight), spec_.lora->scale, x});
}

template <class Of>
Embedding::Occurrences Embedding::occurrences(const std::vector<std::int32_t>& tokens, Of&& of) {
  Occurrences found;
  for (std::size_t t = 0; t < tokens.size(); ++t)
    if (of(tokens[t]) >= 0) found.order.host.push_back(static_cast<std::int32_t>(t));
  std::stable_sort(found.order.host.begin(), found.order.host.end(), [&](std::int32_t a, std::int32_t b) {
    return of(tokens[static_cast<std::size_t>(a)]) < of(tokens[static_cast<std::size_t>(b)]);
  });
  for (std::size_t i = 0; i < found.order.host.size(); ++i) {
    const std::int32_t id = of(tokens[static_cast<std::size_t>(found.order.host[i])]);
    if (!found.ids.host.empty() && found.ids.host.back() == id) continue;
    found.ids.host.push_back(id);
    found.starts.host.push_back(static_cast<std::int32_t>(i));
  }
  found.starts.host.push_back(static_cast<std::int32_t>(found.order.host.size()));
  for (Indices* indices : {&found.order, &found.starts, &found.ids})
    upload_indices(ops_, *indices, [&](std::int64_t n) { return arena_.workspace("places of tokens", DType::i32, 1, n); });
  return found;
}

void Embedding::backward(const std::vector<std::int32_t>& tokens, const Tensor& dout) {
  const float factor = arch_.embedding_scale;
  const auto add = [&](const Occurrences& at, const Tensor& from, float by, const Tensor& to) {
    if (at.ids.size() > 0) ops_.sum_rows({from, &at.order, &at.starts, &at.ids, by, to});
  };
  const auto has_row = [&](std::int32_t token) { return token == spec_.padding ? -1 : row_of_[static_cast<std::size_t>(token)]; };
  if (rows_) add(occurrences(tokens, has_row), dout, factor, rows_->matrices()[0].part(MatrixPart::grad));
  if (!table_ && !pair_) return;
  const Occurrences all = occurrences(tokens, [this](std::int32_t token) { return token == spec_.padding ? -1 : token; });
  if (table_) add(all, dout, factor, table_->matrices()[0].part(MatrixPart::grad));
  if (!pair_) return;
  std::vector<NamedMatrix>& pair = pair_->matrices();
  Indices ids;
  ids.host = tokens;
  upload_indices(ops_, ids, [&](std::int64_t n) { return arena_.workspace("token ids", DType::i32, 1, n); });
  const Buffer inner = arena_.workspace("LoRA's inner vectors", DType::f32, dout.rows, spec_.lora->r);
  const Buffer inner_grad = arena_.workspace("gradient of LoRA's inner vectors", DType::f32, dout.rows, spec_.lora->r);
  Tensor dz = dout;
  Buffer scaled;
  if (dora_) {
    const Buffer z = arena_.workspace("the embedded tokens before their gains", dout.dtype, dout.rows, dout.cols);
    look_up(ids, inner, z);
    scaled = arena_.workspace("their gradient", dout.dtype, dout.rows, dout.cols);
    dz = scaled;
    ops_.column_gains_backward({dout, z, gains(), zeros(), norms_of(), factor, pair[2].part(MatrixPart::grad), dz});
  } else {
    ops_.gather_rows(pair[0].part(MatrixPart::weight), ids, inner);
  }
  ops_.low_rank_backward({dz, inner, pair[1].part(MatrixPart::weight), factor * spec_.lora->scale, inner_grad, pair[1].part(MatrixPart::grad)});
  add(all, inner_grad, 1, pair[0].part(MatrixPart::grad));
}

}  // namespace pipelora
