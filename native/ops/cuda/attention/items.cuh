// The work of attention kernels whose blocks stay: items of one tile of rows and one head, taken from a counter.
#pragma once

#include <algorithm>

#include "ops/cuda/attention/common.cuh"

namespace pipelora::cuda {

struct alignas(16) Item {
  int head, row;  // head -1: there is none left; the tile's first row within the sequence
  int first_query, queries, first_key, keys;
};

/// Keys and values of the heads at work together should stay in the L2 cache.
inline constexpr int kCacheBytes = 32 << 20;

struct Items {
  std::int64_t count;
  int heads, key_bytes;  // of a key and its value in one head

  /// Item `number`: sequence after sequence, in it as many heads at a time as the cache holds, in those the tiles that see
  /// most keys first. Called by a whole warp.
  __device__ Item find(const SequenceTable& table, int number, int rows, int group) const {
    if (number >= count) return {-1, 0, 0, 0, 0, 0};
    const Place place = locate<false>(table, number / heads, rows);
    const int s = place.sequence, keys = table.key_length[s], first_query = table.cu_queries[s];
    const int local = place.tile * heads + number % heads;
    const int together = group * max(1, kCacheBytes / key_bytes / keys), section = local / (place.tiles * together);
    const int in_section = local - section * place.tiles * together, here = min(together, heads - section * together);
    return {section * together + in_section % here, (place.tiles - 1 - in_section / here) * rows,
            first_query, table.cu_queries[s + 1] - first_query, table.key_start[s], keys};
  }

  /// The next number, given to one block alone. `counter` is 0 before the kernel, and again after it: every block asks once in vain.
  __device__ int next(std::uint32_t* counter) const {
    return static_cast<int>(atomicInc(counter, static_cast<unsigned>(count) + gridDim.x - 1));
  }
};

inline Items items_of(std::int64_t heads, std::int64_t tiles, std::int64_t head_dim) {
  return {heads * tiles, static_cast<int>(heads), static_cast<int>(head_dim * 4)};
}

}  // namespace pipelora::cuda
