// What the two kernels of attention_decode() share: how a sequence's keys are split, and what the splits leave.
#pragma once

#include "ops/cuda/attention/common.cuh"

namespace pipelora::cuda {

/// Keys of a split, counted from the sequence's first key whatever else the call holds: so a sequence's results are the same alone
/// and beside others.
inline constexpr int kSplit = 256;

/// The splits that a sequence's queries see: `count` of them from number `first` on.
struct Splits {
  int low, first, count;  // low: the first key that any query sees
};
__host__ __device__ inline Splits splits_of(int queries, int keys, int window) {
  const int oldest = window > 0 ? keys - queries - window + 1 : 0;
  const int low = oldest > 0 ? oldest : 0;
  return {low, low / kSplit, (keys + kSplit - 1) / kSplit - low / kSplit};
}

/// What the splits leave for the merge. A slot is a row (a query of a query head) of a split.
struct Partials {
  float* sums;    // [slots, width], of weights relative to `top`
  float2* stats;  // [slots]: top (a score in powers of 2), total
  int splits;     // most of any sequence
  int rows;       // most of a kv head: queries times heads that share it
  __device__ std::int64_t slot(int sequence, int split, int kv_heads, int kv_head, int row) const {
    return ((static_cast<std::int64_t>(sequence) * splits + split) * kv_heads + kv_head) * rows + row;
  }
};

/// exp2(x - level) is 0 for x of -inf, also where nothing was seen.
__device__ inline float level_of(float top) { return top == -INFINITY ? 0.0f : top; }

/// Merges the splits of all rows that have more than one into `call.out`.
void merge_splits(const AttentionForward& call, const Partials& partials, cudaStream_t stream);

}  // namespace pipelora::cuda
