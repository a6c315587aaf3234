#include "pipelora/model/kv_cache.h"

#include <limits>

#include "pipelora/core/arena.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {
/// Rounded up to the arena's alignment, so that every block's part begins aligned.
std::size_t rounded(std::size_t bytes) { return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment; }
}  // namespace

KvCache::KvCache(Ops& ops, std::int64_t sequences, std::int64_t rows, const std::vector<CacheShape>& blocks) : sequences_(sequences), rows_(rows) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (sequences <= 0 || sequences > kMost || rows <= 0 || rows > kMost)
    throw Error(kTensorMismatch, "a cache needs at least one sequence and one row, and fewer than 2^31; got " + std::to_string(sequences) + " and " +
                                     std::to_string(rows));
  const DType dtype = ops.compute_dtype();
  const auto token_bytes = [&](const CacheShape& shape) { return rounded(static_cast<std::size_t>(rows * shape.token_cols) * dtype_bytes(dtype)); };
  const auto state_bytes = [&](const CacheShape& shape) { return rounded(static_cast<std::size_t>(sequences * shape.state_floats) * sizeof(float)); };
  std::size_t total = 0;
  for (const CacheShape& shape : blocks) total += token_bytes(shape) + state_bytes(shape);
  memory_ = ops.allocate("a key/value cache", total, false);
  char* at = static_cast<char*>(memory_->data());
  for (const CacheShape& shape : blocks) {
    BlockCache layer;
    if (shape.token_cols > 0) layer.tokens = Tensor(at, dtype, rows, shape.token_cols);
    at += token_bytes(shape);
    if (shape.state_floats > 0) layer.state = Tensor(at, DType::f32, sequences, shape.state_floats);
    at += state_bytes(shape);
    layers_.push_back(layer);
  }
}

void KvCache::check_slots(const std::vector<std::int32_t>& slots) const {
  std::vector<bool> taken(static_cast<std::size_t>(sequences_), false);
  for (const std::int32_t slot : slots) {
    if (slot < 0 || slot >= sequences_ || taken[static_cast<std::size_t>(slot)])
      throw Error(kTensorMismatch, "slots: expected different ones of " + std::to_string(sequences_) + ", got " + std::to_string(slot) +
                                       (slot >= 0 && slot < sequences_ ? " twice" : ""));
    taken[static_cast<std::size_t>(slot)] = true;
  }
}

}  // namespace pipelora
