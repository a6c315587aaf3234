// Keys and values of the blocks of one engine, for a fixed number of sequences of bounded length.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/batch.h"
#include "pipelora/ops.h"
#include "pipelora/spec.h"

namespace pipelora {

class KvCache {
 public:
  /// `segments` and `blocks` of the engine. Throws PL_OUT_OF_MEMORY.
  KvCache(Ops& ops, const Arch& arch, std::int64_t sequences, std::int64_t capacity, std::size_t segments,
          std::size_t blocks);

  std::int64_t sequences() const { return sequences_; }
  std::int64_t capacity() const { return capacity_; }
  std::size_t bytes() const { return memory_->bytes(); }
  /// [sequences * capacity, 2 * K * E] compute: a token's keys, then its values.
  Tensor layer(std::size_t block) const { return layers_[block]; }

  /// Per segment: tokens held of each sequence, and its frequencies, fixed when it was started.
  struct Progress {
    std::vector<std::int32_t> lengths;
    std::vector<RowRotary> rotary;
  };
  Progress& progress(std::size_t segment) { return progress_[segment]; }

 private:
  std::int64_t sequences_, capacity_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<Tensor> layers_;
  std::vector<Progress> progress_;
};

}  // namespace pipelora
