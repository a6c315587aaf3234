// What the blocks of one engine remember of earlier tokens, for a fixed number of sequences of bounded length.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/batch.h"
#include "pipelora/ops.h"
#include "pipelora/spec.h"

namespace pipelora {

/// What one block remembers: columns of every token in the compute dtype (keys and values), and floats of every sequence (a recurrent state).
struct CacheShape {
  std::int64_t token_cols = 0, state_floats = 0;
};

/// One block's part of a cache; either may be empty.
struct BlockCache {
  Tensor tokens;  // [sequences * capacity, token_cols] compute
  Tensor state;   // [sequences, state_floats] f32
};

class KvCache {
 public:
  /// `segments` of the engine, `blocks`: of each block. Throws PL_OUT_OF_MEMORY.
  KvCache(Ops& ops, std::int64_t sequences, std::int64_t capacity, std::size_t segments, const std::vector<CacheShape>& blocks);

  std::int64_t sequences() const { return sequences_; }
  std::int64_t capacity() const { return capacity_; }
  std::size_t bytes() const { return memory_->bytes(); }
  const BlockCache& layer(std::size_t block) const { return layers_[block]; }

  /// Per segment: tokens held of each sequence, and its frequencies, fixed when it was started.
  struct Progress {
    std::vector<std::int32_t> lengths;
    std::vector<RowRotary> rotary;
    bool broken = false;  // a call ended half-way: states are of no token's
  };
  Progress& progress(std::size_t segment) { return progress_[segment]; }

 private:
  std::int64_t sequences_, capacity_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<BlockCache> layers_;
  std::vector<Progress> progress_;
};

}  // namespace pipelora
