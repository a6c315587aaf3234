// What the blocks of one engine remember of earlier tokens: rows of keys and values, and states. Which rows and which state are a sequence's is the
// caller's to say, call by call (CachedSequences).
#pragma once

#include <memory>
#include <vector>

#include "pipelora/ops/ops.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// What one block remembers: columns of every token in the compute dtype (keys and values), and floats of every sequence (a recurrent state).
struct CacheShape {
  std::int64_t token_cols = 0, state_floats = 0;
};

/// One block's part of a cache; either may be empty.
struct BlockCache {
  Tensor tokens;  // [rows, token_cols] compute
  Tensor state;   // [sequences, state_floats] f32
};

class KvCache {
 public:
  /// `rows`: tokens of all sequences together. Throws PL_OUT_OF_MEMORY.
  KvCache(Ops& ops, std::int64_t sequences, std::int64_t rows, const std::vector<CacheShape>& blocks);

  std::int64_t sequences() const { return sequences_; }
  std::int64_t rows() const { return rows_; }
  std::size_t bytes() const { return memory_->bytes(); }
  const BlockCache& layer(std::size_t block) const { return layers_[block]; }

  /// Throws PL_TENSOR_MISMATCH unless slots are different ones of this cache.
  void check_slots(const std::vector<std::int32_t>& slots) const;

 private:
  std::int64_t sequences_, rows_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<BlockCache> layers_;
};

}  // namespace pipelora
