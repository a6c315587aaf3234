#include "pipelora/ops/batch.h"

#include <algorithm>
#include <cmath>

#include "pipelora/core/error.h"

namespace pipelora {

double qwen_ntk_alpha(std::int64_t length, std::int64_t seq_length) {
  const double context = std::log2(static_cast<double>(length) / static_cast<double>(seq_length)) + 1.0;
  return std::max(std::pow(2.0, std::ceil(context)) - 1.0, 1.0);
}

void RopeTables::fill_row(const RotarySpec& rotary, std::int64_t position, const RowRotary& own, float* row) {
  const auto half = static_cast<std::int64_t>(rotary.inv_freq.size());
  const double e = static_cast<double>(2 * half);
  const double base = rotary.base * std::pow(own.ntk_alpha, e / (e - 2.0));
  const std::vector<double>& frequencies = own.extended && !rotary.long_inv_freq.empty() ? rotary.long_inv_freq : rotary.inv_freq;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        own.ntk_alpha == 1.0 ? frequencies[static_cast<std::size_t>(i)] : std::pow(base, -2.0 * static_cast<double>(i) / e);
    const float angle = static_cast<float>(position) * static_cast<float>(frequency);
    row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * rotary.attention_scaling);
    row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * rotary.attention_scaling);
  }
}

const std::vector<RopeTables::Table>& RopeTables::at_least(std::int64_t positions) {
  if (tables_.size() == arch_.rotary.size() && (tables_.empty() || tables_.front().values.rows >= positions)) return tables_;
  std::int64_t rows = std::max<std::int64_t>(256, tables_.empty() ? 0 : tables_.front().values.rows);
  while (rows < positions) rows *= 2;
  std::vector<Table> grown;
  for (const RotarySpec& rotary : arch_.rotary) {
    const auto columns = static_cast<std::int64_t>(2 * rotary.inv_freq.size());
    std::vector<float> values(static_cast<std::size_t>(rows * columns));
    for (std::int64_t p = 0; p < rows; ++p) fill_row(rotary, p, RowRotary{}, values.data() + p * columns);
    Table table;
    table.memory = ops_.allocate("rotary tables", values.size() * sizeof(float), false);
    table.values = Tensor(table.memory->data(), DType::f32, rows, columns);
    ops_.upload(table.values, values.data());
    grown.push_back(std::move(table));
  }
  tables_ = std::move(grown);
  return tables_;
}

namespace {

void check_cu_seqlens(const std::vector<std::int32_t>& cu) {
  bool good = cu.size() >= 2 && cu.front() == 0;
  for (std::size_t i = 0; good && i + 1 < cu.size(); ++i) good = cu[i] < cu[i + 1];
  if (!good) throw Error(kTensorMismatch, "cuSeqlens: expected 0 followed by rising ends of at least one sequence");
}

/// A sequence that starts with `length` tokens.
RowRotary own_rotary(const Arch& arch, std::int64_t length, bool training) {
  RowRotary own;
  if (!training && arch.qwen_dynamic_ntk && arch.qwen_long_seq_length > 0)
    own.ntk_alpha = qwen_ntk_alpha(length, arch.qwen_long_seq_length);
  for (const RotarySpec& rotary : arch.rotary) {
    if (length <= rotary.long_from) continue;
    own.extended = own.extended || !rotary.long_inv_freq.empty();
    if (rotary.dynamic_factor > 0)
      own.ntk_alpha = rotary.dynamic_factor * static_cast<double>(length) / static_cast<double>(rotary.long_from) - (rotary.dynamic_factor - 1);
  }
  return own;
}

/// What rows of a given past need: positions, rotary rows, and the queries' factors.
struct Plan {
  const std::vector<std::int32_t>& cu;
  const std::vector<std::int32_t>& past;     // tokens before the new ones, a sequence each
  const std::vector<RowRotary>& own;         // a sequence each
};

/// The queries' factors, where any is not 1: Qwen's log-n outside training, Llama 4's everywhere.
std::vector<float> query_factors(const Arch& arch, const Sequences& s, const Plan& plan, bool training) {
  const std::int64_t limit = training || !arch.qwen_logn ? 0 : arch.qwen_long_seq_length;
  std::vector<float> factors(static_cast<std::size_t>(s.tokens), 1.0f);
  bool any = false;
  for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
    for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t) {
      const std::int64_t place = s.position.host[static_cast<std::size_t>(t)] + 1;
      float& factor = factors[static_cast<std::size_t>(t)];
      if (limit > 0 && s.key_length.host[i] > limit && place > limit)
        factor = static_cast<float>(std::log(static_cast<double>(place)) / std::log(static_cast<double>(limit)));
      if (arch.query_scale_beta != 0)
        factor *= static_cast<float>(1.0 + arch.query_scale_beta * std::log(1.0 + static_cast<double>((place - 1 + arch.query_scale_first) / arch.query_scale_length)));
      any = any || factor != 1.0f;
    }
  return any ? factors : std::vector<float>();
}

/// The same tokens, each row's keys and queries cut where chunks of `length` positions end. A chunk's queries are its last keys, so attention
/// within chunks is attention over these sequences.
Sequences cut_in_chunks(const Sequences& s, std::int64_t length) {
  Sequences cut;
  if (length <= 0 || *std::max_element(s.key_length.host.begin(), s.key_length.host.end()) <= length) return cut;
  cut.tokens = s.tokens;
  cut.cu_queries.host.push_back(0);
  for (std::size_t i = 0; i + 1 < s.cu_queries.host.size(); ++i) {
    const std::int32_t end = s.cu_queries.host[i + 1];
    for (std::int32_t t = s.cu_queries.host[i]; t < end;) {
      const std::int64_t position = s.position.host[static_cast<std::size_t>(t)], first = position / length * length;
      const std::int64_t count = std::min<std::int64_t>(first + length - position, end - t);
      cut.key_start.host.push_back(static_cast<std::int32_t>(s.key_start.host[i] + first));
      cut.key_length.host.push_back(static_cast<std::int32_t>(position + count - first));
      t += static_cast<std::int32_t>(count);
      cut.cu_queries.host.push_back(t);
    }
  }
  return cut;
}

void prepare(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const Plan& plan, Batch& batch) {
  Sequences& s = batch.sequences;
  s.tokens = plan.cu.back();
  s.cu_queries.host = plan.cu;
  std::int64_t longest = 0;
  bool own_tables = false;
  for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i) {
    const std::int64_t length = plan.past[i] + plan.cu[i + 1] - plan.cu[i];
    s.key_length.host.push_back(static_cast<std::int32_t>(length));
    longest = std::max(longest, length);
    own_tables = own_tables || !plan.own[i].plain();
  }
  for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
    for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t) s.position.host.push_back(plan.past[i] + t - plan.cu[i]);

  batch.chunks = cut_in_chunks(s, arch.attention_chunk);

  if (own_tables) {
    for (std::int64_t t = 0; t < s.tokens; ++t) batch.rope_row.host.push_back(static_cast<std::int32_t>(t));
    for (const RotarySpec& rotary : arch.rotary) {
      const auto columns = static_cast<std::int64_t>(2 * rotary.inv_freq.size());
      std::vector<float> values(static_cast<std::size_t>(s.tokens * columns));
      for (std::size_t i = 0; i + 1 < plan.cu.size(); ++i)
        for (std::int32_t t = plan.cu[i]; t < plan.cu[i + 1]; ++t)
          RopeTables::fill_row(rotary, s.position.host[static_cast<std::size_t>(t)], plan.own[i], values.data() + t * columns);
      batch.rope_storage.push_back(arena.tensor("rotary tables of long sequences", DType::f32, s.tokens, columns));
      ops.upload(batch.rope_storage.back(), values.data());
      batch.rope.push_back({batch.rope_storage.back(), nullptr});
    }
  } else {
    batch.rope = rope.at_least(longest);
    batch.rope_row.host = s.position.host;
  }
  const std::vector<float> factors = query_factors(arch, s, plan, batch.training);
  if (!factors.empty()) {
    batch.q_scale = arena.tensor("queries' factors", DType::f32, 1, s.tokens);
    ops.upload(batch.q_scale, factors.data());
  }
  for (Indices* indices : {&s.cu_queries, &s.key_start, &s.key_length, &s.position, &s.row, &batch.rope_row, &batch.cache_row, &batch.chunks.cu_queries,
                           &batch.chunks.key_start, &batch.chunks.key_length})
    upload_indices(ops, *indices, [&](std::int64_t count) { return arena.tensor("indices of a micro-batch", DType::i32, 1, count); });
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
  batch->loss_scale = micro.loss_scale;
  batch->key = {micro.seed, micro.step};
  Sequences& s = batch->sequences;
  std::vector<RowRotary> own;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t length = micro.cu_seqlens[i + 1] - micro.cu_seqlens[i];
    s.key_start.host.push_back(micro.cu_seqlens[i]);
    s.row.host.insert(s.row.host.end(), static_cast<std::size_t>(length), micro.row_ids[i]);
    own.push_back(own_rotary(arch, length, micro.training));
  }
  prepare(ops, arena, rope, arch, {micro.cu_seqlens, std::vector<std::int32_t>(count, 0), own}, *batch);
  return batch;
}

std::unique_ptr<Batch> make_cached_batch(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const CachedSequences& of, std::int64_t rows) {
  check_cu_seqlens(of.cu_seqlens);
  const std::size_t count = of.cu_seqlens.size() - 1;
  for (const auto* values : {&of.slots, &of.starts, &of.past, &of.lengths})
    if (values->size() != count)
      throw Error(kTensorMismatch, "slots, starts, past and lengths: expected " + std::to_string(count) + " values each, got " + std::to_string(values->size()));
  auto batch = std::make_unique<Batch>();
  Sequences& s = batch->sequences;
  std::vector<RowRotary> own;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t added = of.cu_seqlens[i + 1] - of.cu_seqlens[i], start = of.starts[i], past = of.past[i];
    if (start < 0 || past < 0 || of.lengths[i] < 1 || start + past + added > rows)
      throw Error(kTensorMismatch, "sequence " + std::to_string(i) + ": " + std::to_string(past) + " + " + std::to_string(added) + " tokens from row " +
                                       std::to_string(start) + " on don't fit a cache of " + std::to_string(rows) + " rows");
    s.key_start.host.push_back(of.starts[i]);
    s.row.host.insert(s.row.host.end(), static_cast<std::size_t>(added), static_cast<std::int32_t>(i));
    for (std::int64_t t = 0; t < added; ++t) batch->cache_row.host.push_back(static_cast<std::int32_t>(start + past + t));
    own.push_back(own_rotary(arch, of.lengths[i], false));
  }
  prepare(ops, arena, rope, arch, {of.cu_seqlens, of.past, own}, *batch);
  return batch;
}

}  // namespace pipelora
