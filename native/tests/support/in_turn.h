// Calls of inference for all sequences of a cache, each with rows of its own: sequence s from row s * capacity on.
#pragma once

#include <vector>

#include "pipelora/ops/batch.h"

namespace pipelora {

class InTurn {
 public:
  InTurn(std::size_t sequences, std::int64_t capacity) : capacity_(capacity), past_(sequences, 0), lengths_(sequences, 0) {}

  /// The next call's; the one before went well.
  CachedSequences next(const std::vector<std::int32_t>& cu_seqlens) {
    CachedSequences call;
    call.cu_seqlens = cu_seqlens;
    for (std::size_t s = 0; s < past_.size(); ++s) {
      const std::int32_t added = s + 1 < cu_seqlens.size() ? cu_seqlens[s + 1] - cu_seqlens[s] : 0;
      if (past_[s] == 0) lengths_[s] = added;
      call.slots.push_back(static_cast<std::int32_t>(s));
      call.starts.push_back(static_cast<std::int32_t>(static_cast<std::int64_t>(s) * capacity_));
      call.past.push_back(past_[s]);
      call.lengths.push_back(lengths_[s]);
      past_[s] += added;
    }
    return call;
  }

 private:
  std::int64_t capacity_;
  std::vector<std::int32_t> past_, lengths_;
};

}  // namespace pipelora
