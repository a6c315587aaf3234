#include "pipelora/kv_cache.h"

#include <limits>

#include "pipelora/error.h"

namespace pipelora {

KvCache::KvCache(Ops& ops, const Arch& arch, std::int64_t sequences, std::int64_t capacity, std::size_t segments,
                 std::size_t blocks)
    : sequences_(sequences), capacity_(capacity) {
  if (sequences <= 0 || capacity <= 0 || sequences > std::numeric_limits<std::int32_t>::max() / capacity)
    throw Error(kTensorMismatch, "a cache needs at least one sequence and one token a sequence, and fewer than 2^31 rows; got " +
                                     std::to_string(sequences) + " x " + std::to_string(capacity));
  const std::int64_t rows = sequences * capacity, width = arch.kv_heads * arch.head_dim;
  const DType dtype = ops.compute_dtype();
  const std::size_t one = static_cast<std::size_t>(rows * width) * dtype_bytes(dtype);
  memory_ = ops.allocate("a key/value cache", 2 * blocks * one, false);
  char* at = static_cast<char*>(memory_->data());
  for (std::size_t b = 0; b < blocks; ++b) {
    layers_.emplace_back(at, dtype, rows, 2 * width);
    at += 2 * one;
  }
  const auto count = static_cast<std::size_t>(sequences);
  progress_.assign(segments, {std::vector<std::int32_t>(count, 0), std::vector<RowRotary>(count)});
}

}  // namespace pipelora
