#include "pipelora/batch.h"

#include <algorithm>
#include <cmath>

#include "pipelora/error.h"

namespace pipelora {

double qwen_ntk_alpha(std::int64_t length, std::int64_t seq_length) {
  const double context = std::log2(static_cast<double>(length) / static_cast<double>(seq_length)) + 1.0;
  return std::max(std::pow(2.0, std::ceil(context)) - 1.0, 1.0);
}

void RopeTables::fill_row(std::int64_t position, double alpha, float* row) const {
  const std::int64_t half = arch_.head_dim / 2;
  const double e = static_cast<double>(arch_.head_dim);
  const double base = arch_.rope_base * std::pow(alpha, e / (e - 2.0));
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        alpha == 1.0 ? arch_.rope_inv_freq[static_cast<std::size_t>(i)] : std::pow(base, -2.0 * static_cast<double>(i) / e);
    const float angle = static_cast<float>(position) * static_cast<float>(frequency);
    row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * arch_.rope_attention_scaling);
    row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * arch_.rope_attention_scaling);
  }
}

const RopeTables::Table& RopeTables::at_least(std::int64_t positions) {
  if (table_.values.rows >= positions) return table_;
  std::int64_t rows = std::max<std::int64_t>(256, table_.values.rows);
  while (rows < positions) rows *= 2;
  std::vector<float> values(static_cast<std::size_t>(rows * arch_.head_dim));
  for (std::int64_t p = 0; p < rows; ++p) fill_row(p, 1.0, values.data() + p * arch_.head_dim);
  Table grown;
  grown.memory = ops_.allocate("rotary tables", values.size() * sizeof(float), false);
  grown.values = Tensor(grown.memory->data(), DType::f32, rows, arch_.head_dim);
  ops_.upload(grown.values, values.data());
  table_ = grown;
  return table_;
}

namespace {

void check_cu_seqlens(const std::vector<std::int32_t>& cu) {
  bool good = cu.size() >= 2 && cu.front() == 0;
  for (std::size_t i = 0; good && i + 1 < cu.size(); ++i) good = cu[i] < cu[i + 1];
  if (!good) throw Error(kTensorMismatch, "cuSeqlens: expected 0 followed by rising ends of at least one sequence");
}

/// What rows of a given past need: positions, rotary rows, and Qwen's long-sequence rules outside training.
struct Plan {
  const std::vector<std::int32_t>& cu;
  const std::vector<std::int32_t>& past;  // tokens before the new ones, a sequence each
  const std::vector<double>& alphas;      // NTK factor a sequence
};

void prepare(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const Plan& plan, Batch& batch) {
  Sequences& s = batch.sequences;
  s.tokens = plan.cu.back();
  s.cu_queries.host = plan.cu;
  std::int64_t longest = 0;
  const std::int64_t limit = batch.training ? 0 : arch.qwen_long_seq_length;
  bool own_tables = false, logn = false;
  for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i) {
    const std::int64_t length = plan.past[i] + plan.cu[i + 1] - plan.cu[i];
    s.key_length.host.push_back(static_cast<std::int32_t>(length));
    longest = std::max(longest, length);
    own_tables = own_tables || plan.alphas[i] != 1.0;
    logn = logn || (limit > 0 && arch.qwen_logn && length > limit);
  }
  for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
    for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t) s.position.host.push_back(plan.past[i] + t - plan.cu[i]);

  if (own_tables) {
    std::vector<float> values(static_cast<std::size_t>(s.tokens * arch.head_dim));
    for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
      for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t) {
        rope.fill_row(s.position.host[static_cast<std::size_t>(t)], plan.alphas[i], values.data() + t * arch.head_dim);
        batch.rope_row.host.push_back(t);
      }
    batch.rope_storage = arena.tensor("rotary tables of long sequences", DType::f32, s.tokens, arch.head_dim);
    ops.upload(batch.rope_storage, values.data());
    batch.rope.values = batch.rope_storage;
  } else {
    batch.rope = rope.at_least(longest);
    batch.rope_row.host = s.position.host;
  }
  if (logn) {
    std::vector<float> scale(static_cast<std::size_t>(s.tokens), 1.0f);
    for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
      for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t) {
        const std::int64_t place = s.position.host[static_cast<std::size_t>(t)] + 1;
        if (s.key_length.host[i] > limit && place > limit)
          scale[static_cast<std::size_t>(t)] =
              static_cast<float>(std::log(static_cast<double>(place)) / std::log(static_cast<double>(limit)));
      }
    batch.q_scale = arena.tensor("log-n factors", DType::f32, 1, s.tokens);
    ops.upload(batch.q_scale, scale.data());
  }
  for (Indices* indices : {&s.cu_queries, &s.key_start, &s.key_length, &s.position, &s.row, &batch.rope_row}) {
    if (ops.needs_device_indices()) indices->storage = arena.tensor("indices of a micro-batch", DType::i32, 1, indices->size());
    ops.upload(*indices);
  }
}

}  // namespace

std::unique_ptr<Batch> make_batch(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const MicroBatch& micro) {
  check_cu_seqlens(micro.cu_seqlens);
  const std::size_t count = micro.cu_seqlens.size() - 1;
  if (micro.row_ids.size() != count)
    throw Error(kTensorMismatch, "rowIds: expected " + std::to_string(count) + " values, got " + std::to_string(micro.row_ids.size()));
  auto batch = std::make_unique<Batch>();
  batch->index = micro.index;
  batch->training = micro.training;
  batch->key = {micro.seed, micro.step};
  Sequences& s = batch->sequences;
  std::vector<double> alphas(count, 1.0);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t length = micro.cu_seqlens[i + 1] - micro.cu_seqlens[i];
    s.key_start.host.push_back(micro.cu_seqlens[i]);
    s.row.host.insert(s.row.host.end(), static_cast<std::size_t>(length), micro.row_ids[i]);
    if (!micro.training && arch.qwen_dynamic_ntk && arch.qwen_long_seq_length > 0)
      alphas[i] = qwen_ntk_alpha(length, arch.qwen_long_seq_length);
  }
  prepare(ops, arena, rope, arch, {micro.cu_seqlens, std::vector<std::int32_t>(count, 0), alphas}, *batch);
  return batch;
}

std::unique_ptr<Batch> make_cached_batch(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch,
                                         const std::vector<std::int32_t>& cu_seqlens,
                                         const std::vector<std::int32_t>& cached, std::int64_t capacity,
                                         std::vector<double>& alphas) {
  check_cu_seqlens(cu_seqlens);
  const std::size_t count = cu_seqlens.size() - 1;
  if (count != cached.size())
    throw Error(kTensorMismatch, "cuSeqlens: the cache holds " + std::to_string(cached.size()) + " sequences, the call has " +
                                     std::to_string(count));
  auto batch = std::make_unique<Batch>();
  Sequences& s = batch->sequences;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t added = cu_seqlens[i + 1] - cu_seqlens[i];
    if (cached[i] + added > capacity)
      throw Error(kTensorMismatch, "sequence " + std::to_string(i) + " would hold " + std::to_string(cached[i] + added) +
                                       " tokens, the cache has room for " + std::to_string(capacity));
    s.key_start.host.push_back(static_cast<std::int32_t>(static_cast<std::int64_t>(i) * capacity));
    s.row.host.insert(s.row.host.end(), static_cast<std::size_t>(added), static_cast<std::int32_t>(i));
    if (cached[i] == 0)
      alphas[i] = arch.qwen_dynamic_ntk && arch.qwen_long_seq_length > 0 ? qwen_ntk_alpha(added, arch.qwen_long_seq_length) : 1.0;
  }
  prepare(ops, arena, rope, arch, {cu_seqlens, cached, alphas}, *batch);
  return batch;
}

}  // namespace pipelora
