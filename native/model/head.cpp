#include "pipelora/model/head.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "pipelora/core/error.h"

namespace pipelora {

Head::Head(Ops& ops, Arena& arena, const Arch& arch, const HeadSpec& spec, BaseWeights& base)
    : ops_(ops), arena_(arena), arch_(arch), spec_(spec), own_(ops) {
  LinearSpec linear;
  linear.name = spec.name;
  linear.in = arch.hidden;
  linear.out = arch.vocab;
  linear.lora = spec.lora;
  group_ = std::make_unique<LinearGroup>(ops, arena, std::vector<LinearSpec>{linear}, spec.trained.empty() ? base : own_);
  if (!spec_.trained.empty())
    table_.emplace(ops, "the output head and its optimizer state", std::vector<MatrixForm>{{spec_.trained, arch.vocab, arch.hidden}});
  if (spec_.token_rows.empty()) return;
  if (spec_.lora || table_) throw Error(kTensorMismatch, "rows of tokens of " + spec_.name + ": expected a head that trains nothing else");
  rows_.emplace(ops, "rows of tokens of the output head and their optimizer state",
                std::vector<MatrixForm>{token_rows_form(spec_.name, spec_.token_rows, arch.vocab, arch.hidden)});
  std::int64_t count = 0;
  for (const std::int32_t token : spec_.token_rows) {
    if (!runs_.empty() && runs_.back().token + runs_.back().count == token)
      ++runs_.back().count;
    else
      runs_.push_back({token, count, 1});
    ++count;
  }
  rows_weight_ = ops.create_linear(arch.hidden, {count}, false);
  const std::vector<float> zeros(static_cast<std::size_t>(count * arch.hidden), 0.0f);
  rows_weight_->load(0, HostTensor{zeros.data(), DType::f32, count, arch.hidden}, {.dtype = ops.compute_dtype()});
}

void Head::add_slot(WeightSlots& slots) {
  if (std::exchange(group_->product().slotted, true)) return;
  // No product's part: as with bitsandbytes the head is never quantised.
  slots.add(spec_.weight, arch_.vocab, arch_.hidden, [this](const HostTensor& data, const HoldSpec& hold) {
    group_->weight().load(0, data, hold);
    if (table_) ops_.load(data, table_->matrices()[0].part(MatrixPart::weight));
  });
}

std::vector<Learner*> Head::learners() {
  std::vector<Learner*> found = group_->learners();
  if (table_) found.push_back(&*table_);
  if (rows_) found.push_back(&*rows_);
  return found;
}

void Head::follow() {
  if (table_ && table_->matrices()[0].take_changed()) group_->weight().refresh(0, table_->matrices()[0].part(MatrixPart::weight));
  if (rows_ && rows_->matrices()[0].take_changed()) rows_weight_->refresh(0, rows_->matrices()[0].part(MatrixPart::weight));
  group_->follow();
}

void Head::product(const LinearForward& call, const Tensor& before) {
  group_->forward(call, before);
  if (!rows_) return;
  const std::int64_t count = rows_weight_->out;
  const Buffer own = arena_.workspace("logits of trained tokens", DType::f32, call.x.rows, (count + 7) / 8 * 8);
  ops_.linear_forward({call.x, rows_weight_.get(), {}, Tensor(), Tensor(), own.tensor().columns(0, count), call.sequences});
  for (const Run& run : runs_) ops_.copy(own.tensor().columns(run.row, run.count), call.y.columns(run.token, run.count));
}

void Head::rows_backward(const Tensor& x, const Tensor& dz, float factor, const Tensor& dx) {
  const std::int64_t count = rows_weight_->out;
  const Buffer storage = arena_.workspace("gradient of trained tokens' logits", dz.dtype, dz.rows, (count + 7) / 8 * 8);
  const Tensor own = storage.tensor().columns(0, count);
  for (const Run& run : runs_) {
    ops_.copy(dz.columns(run.token, run.count), own.columns(run.row, run.count));
    ops_.zero(dz.columns(run.token, run.count));
  }
  ops_.weight_grad({x, own, factor, rows_->matrices()[0].part(MatrixPart::grad)});
  ops_.linear_input_grad({own, rows_weight_.get(), {}, Tensor(), Tensor(), dx, nullptr});
}

namespace {

/// Sequences of the gathered rows: only positions and row numbers matter (dropout's keys).
void gather_keys(const Sequences& from, const std::vector<std::int32_t>& rows, std::size_t first, std::size_t count, Sequences& to) {
  to.tokens = static_cast<std::int64_t>(count);
  for (std::size_t i = first; i < first + count; ++i) {
    to.position.host.push_back(from.position.host[static_cast<std::size_t>(rows[i])]);
    to.row.host.push_back(from.row.host[static_cast<std::size_t>(rows[i])]);
  }
}

}  // namespace

HeadResult Head::forward(const Batch& batch, const MicroBatch& micro, const Tensor& hidden, bool keep) {
  const std::int64_t tokens = batch.sequences.tokens, d = arch_.hidden, v = arch_.vocab;
  const DType dtype = ops_.compute_dtype();
  if (static_cast<std::int64_t>(micro.targets.size()) != tokens || static_cast<std::int64_t>(micro.weights.size()) != tokens)
    throw Error(kTensorMismatch, "targets and weights: expected " + std::to_string(tokens) + " values each, got " +
                                     std::to_string(micro.targets.size()) + " and " + std::to_string(micro.weights.size()));
  auto saved = std::make_unique<HeadSaved>();
  saved->tokens = tokens;
  std::vector<std::int32_t>& rows = saved->label_rows.host;
  std::vector<std::int32_t> targets;
  std::vector<float> weights;
  float largest = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t target = micro.targets[static_cast<std::size_t>(t)];
    if (target == -100) continue;
    if (target < 0 || target >= v)
      throw Error(kTensorMismatch, "targets: " + std::to_string(target) + " is outside the vocabulary of " + std::to_string(v));
    rows.push_back(static_cast<std::int32_t>(t));
    targets.push_back(target);
    weights.push_back(micro.weights[static_cast<std::size_t>(t)]);
    largest = std::max(largest, std::abs(weights.back()));
  }
  const auto labels = static_cast<std::int64_t>(rows.size());
  HeadResult result;
  result.label_tokens = labels;
  saved->unit = largest > 0 ? static_cast<double>(largest) : 1.0;
  std::vector<float> relative(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) relative[i] = static_cast<float>(static_cast<double>(weights[i]) / saved->unit);
  upload_indices(ops_, saved->label_rows, [&](std::int64_t count) { return arena_.tensor("rows with a label", DType::i32, 1, count); });

  std::vector<LoraView> views = group_->views();
  if (keep) {
    saved->hidden_grad = arena_.tensor("gradient of the hidden states with a label", dtype, labels, d);
    if (group_->has_pairs()) {
      saved->grad_a = arena_.tensor("gradient of the head's A", DType::f32, views[0].a.rows, d);
      saved->grad_bt = arena_.tensor("gradient of the head's B", DType::f32, views[0].bt.rows, v);
      ops_.zero(saved->grad_a);
      ops_.zero(saved->grad_bt);
      views[0].grad_a = saved->grad_a;
      views[0].grad_bt = saved->grad_bt;
    }
  }
  const LoraSet lora{views, group_->inner_cols(), batch.dropout()};

  Buffer target, weight, loss, correct;
  if (labels > 0) {
    target = arena_.workspace("targets", DType::i32, 1, labels);
    weight = arena_.workspace("weights", DType::f32, 1, labels);
    loss = arena_.workspace("losses", DType::f32, 1, labels);
    correct = arena_.workspace("hits", DType::i32, 1, labels);
    ops_.upload(target, targets.data());
    ops_.upload(weight, relative.data());
  }
  const std::int64_t fitting = std::max<std::int64_t>(1, kLogitsBytes / (4 * v));
  const std::int64_t filled = fitting < kChunkTile ? fitting : (fitting + kChunkTile - 1) / kChunkTile * kChunkTile;
  const std::int64_t chunk = std::min(filled, std::max<std::int64_t>(1, labels));
  for (std::int64_t first = 0; first < labels; first += chunk) {
    const std::int64_t n = std::min(chunk, labels - first);
    Sequences keys;
    gather_keys(batch.sequences, rows, static_cast<std::size_t>(first), static_cast<std::size_t>(n), keys);
    Indices picked;
    picked.host.assign(rows.begin() + first, rows.begin() + first + n);
    for (Indices* indices : {&picked, &keys.position, &keys.row})
      upload_indices(ops_, *indices, [&](std::int64_t count) { return arena_.workspace("indices of label rows", DType::i32, 1, count); });
    Buffer x = arena_.workspace("hidden states with a label", dtype, n, d);
    ops_.gather_rows(hidden, picked, x);
    Buffer inner, inner_grad;
    if (group_->has_pairs()) {
      inner = arena_.workspace("LoRA's inner vectors", DType::f32, n, group_->inner_cols());
      if (keep) inner_grad = arena_.workspace("gradient of LoRA's inner vectors", DType::f32, n, group_->inner_cols());
    }
    // Rows are padded to a multiple of eight columns, whatever the vocabulary: products and cross entropy are slow on unaligned rows.
    const Buffer padded = arena_.workspace("a chunk of logits", DType::f32, n, (v + 7) / 8 * 8);
    const Tensor logits = padded.tensor().columns(0, v);
    Buffer before;
    if (keep && group_->has_gains()) before = arena_.workspace("logits before their gains", DType::f32, n, v);
    product({x, &group_->weight(), lora, inner, Tensor(), logits, &keys}, before);
    shape(logits);

    // The gradient takes the logits' place, whatever its dtype.
    const auto of_chunk = [&](const Buffer& all) { return all.tensor().columns(first, n); };
    const auto stride = logits.stride * static_cast<std::int64_t>(dtype_bytes(DType::f32) / dtype_bytes(dtype));
    const Tensor dz = keep ? Tensor(logits.data, dtype, n, v, stride) : Tensor();
    ops_.cross_entropy({logits, dz, of_chunk(target), of_chunk(weight), of_chunk(loss), of_chunk(correct), arch_.logit_scale, arch_.logit_cap, micro.label_smoothing});

    if (keep) {
      const auto factor = static_cast<float>(micro.loss_scale * saved->unit);
      const Tensor dx = saved->hidden_grad.tensor().row_range(first, n);
      const Buffer plain = group_->product_grad(dz, before, batch.dropout(), factor);
      const Tensor dproduct = plain ? plain.tensor() : dz;
      Buffer of_rows;
      if (rows_) {
        of_rows = arena_.workspace("a gradient of hidden states by trained tokens", dtype, n, d);
        rows_backward(x, dz, factor, of_rows);
      }
      group_->input_grad({dproduct, &group_->weight(), lora, inner, inner_grad, dx, &keys}, before, factor);
      if (rows_) ops_.add(dx, of_rows, 1, dx);
      if (group_->has_pairs()) ops_.lora_a_grad({x, inner_grad, lora, &keys});
      if (table_) ops_.weight_grad({x, dproduct, factor, table_->matrices()[0].part(MatrixPart::grad)});
    }
  }
  if (labels > 0) {
    std::vector<float> losses(static_cast<std::size_t>(labels));
    std::vector<std::int32_t> hits(static_cast<std::size_t>(labels));
    ops_.download(loss, losses.data());
    ops_.download(correct, hits.data());
    for (std::size_t i = 0; i < losses.size(); ++i) {
      result.loss_sum += static_cast<double>(weights[i]) * static_cast<double>(losses[i]);
      result.correct_tokens += hits[i];
      if (result.first_not_finite < 0 && !std::isfinite(losses[i])) result.first_not_finite = rows[i];
    }
  }
  if (keep) result.saved = std::move(saved);
  return result;
}

Buffer Head::backward(const Batch& batch, const HeadSaved& saved, bool needs_input_grad) {
  const auto factor = static_cast<float>(batch.loss_scale * saved.unit);
  if (group_->has_pairs()) {
    ops_.add_scaled(saved.grad_a, factor, group_->views()[0].grad_a);
    ops_.add_scaled(saved.grad_bt, factor, group_->views()[0].grad_bt);
  }
  if (!needs_input_grad) return Buffer();
  Buffer gradient = arena_.tensor("gradient of the hidden states", ops_.compute_dtype(), saved.tokens, arch_.hidden);
  ops_.zero(gradient);
  if (saved.label_rows.size() > 0) ops_.scatter_rows(saved.hidden_grad, saved.label_rows, factor, gradient);
  return gradient;
}

Buffer Head::last_logits(const Batch& batch, const Tensor& hidden) {
  const std::int64_t count = batch.sequences.count();
  Indices last;
  for (std::int64_t s = 0; s < count; ++s) last.host.push_back(batch.sequences.cu_queries.host[static_cast<std::size_t>(s) + 1] - 1);
  upload_indices(ops_, last, [&](std::int64_t rows) { return arena_.workspace("rows of last tokens", DType::i32, 1, rows); });
  Buffer x = arena_.workspace("hidden states of last tokens", ops_.compute_dtype(), count, arch_.hidden);
  ops_.gather_rows(hidden, last, x);
  Buffer inner;
  if (group_->has_pairs()) inner = arena_.workspace("LoRA's inner vectors", DType::f32, count, group_->inner_cols());
  Buffer logits = arena_.tensor("logits", DType::f32, count, arch_.vocab);
  product({x, &group_->weight(), group_->lora(nullptr), inner, Tensor(), logits, nullptr}, Tensor());
  shape(logits);
  return logits;
}

void Head::shape(const Tensor& logits) {
  if (arch_.logit_scale != 1 || arch_.logit_cap != 0) ops_.shape_logits(logits, arch_.logit_scale, arch_.logit_cap);
}

}  // namespace pipelora
