// Rows of tokens as operations see them.
#pragma once

#include <cstdint>
#include <vector>

#include "pipelora/core/arena.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// int32 values that both sides need: the host to partition work, the device to index.
struct Indices {
  std::vector<std::int32_t> host;
  Tensor device;  // [1, n], set by Ops::upload
  Buffer storage;

  std::int64_t size() const { return static_cast<std::int64_t>(host.size()); }
};

/// The rows of one call. Queries are flat; keys of sequence s are rows key_start[s] … + key_length[s] of the k and v given
/// (the same flat tensor in training, a cache in inference). The last query of a sequence stands at its last key.
struct Sequences {
  std::int64_t tokens = 0;
  Indices cu_queries;  // [S + 1]
  Indices key_start;   // [S]
  Indices key_length;  // [S]
  Indices position;    // [T] position in its row
  Indices row;         // [T] row number within the step: dropout's key

  std::int64_t count() const { return key_start.size(); }
};

}  // namespace pipelora
