// From a tile's sums to outputs (quant4_few_hopper.cu): by one block, or by the last of those that share the tile.
#pragma once

#include "ops/cuda/base/quant4_few_shares.cuh"
#include "ops/cuda/device/warp_roles.cuh"

namespace pipelora::cuda::few {

__device__ inline void prefetch(const void* from) { asm volatile("prefetch.global.L1 [%0];\n" ::"l"(from)); }

/// What the warps that multiply do with a tile's sums, [tokens][kSumStride] in shared memory.
template <class T>
class Outputs {
 public:
  __device__ Outputs(const Call<T>& call, const Share& share, float* sums, bool* is_last, int thread)
      : call_(call), share_(share), sums_(sums), is_last_(is_last), thread_(thread) {}

  __device__ void start(int number) {
    number_ = number;
    tile_ = tile_at(call_.few, number);
    const FewCallPart<T>& part = call_.few.part[tile_.part];
    const int row = tile_.first + min(thread_ % kRows, tile_.rows - 1), t = thread_ / kRows;
    if (part.residual != nullptr && t < call_.few.tokens) prefetch(part.residual + t * call_.few.residual_stride + row);
    for (int k = t; k < part.rank; k += kMultiply / kRows) prefetch(part.bt + k * part.bt_stride + row);
  }
  __device__ void whole() {
    write([&](int t, int row) { return sums_[t * kSumStride + row]; });
  }
  /// Shared with other blocks: whose turn was last adds up.
  __device__ void shared() {
    float* own = slot(static_cast<int>(blockIdx.x), share_.begin / share_.steps == number_ ? 0 : 1);
    for (int i = thread_; i < call_.few.tokens * kRows; i += kMultiply) own[i] = sums_[i / kRows * kSumStride + i % kRows];
    __threadfence();
    named_wait(1, kMultiply);
    const int first = share_.block_of(number_ * share_.steps), last = share_.block_of(number_ * share_.steps + share_.steps - 1);
    if (thread_ == 0) {
      std::uint32_t* counter = call_.scratch.counters + number_;
      *is_last_ = atomicAdd(counter, 1u) == static_cast<unsigned>(last - first);
      if (*is_last_) *counter = 0;
    }
    named_wait(1, kMultiply);
    if (!*is_last_) return;
    __threadfence();
    write([&](int t, int row) {
      float total = __ldcg(slot(first, share_.begin_of(first) / share_.steps == number_ ? 0 : 1) + t * kRows + row);
      for (int block = first + 1; block <= last; ++block) total += __ldcg(slot(block, 0) + t * kRows + row);
      return total;
    });
  }

 private:
  __device__ float* slot(int block, int which) const { return call_.scratch.sums + (static_cast<std::int64_t>(block) * 2 + which) * kFewTokens * kRows; }
  template <class Sum>
  __device__ void write(const Sum& sum_of) const {
    const FewCallPart<T>& part = call_.few.part[tile_.part];
    const int row = thread_ % kRows;
    if (row >= tile_.rows) return;
    const FewAddend<T> addend = read_addend(part, tile_.first + row);
    for (int t = thread_ / kRows; t < call_.few.tokens; t += kMultiply / kRows)
      part.y[t * call_.few.y_stride + tile_.first + row] = narrow<T>(sum_of(t, row) + finished(call_.few, part, t, tile_.first + row, addend));
  }

  const Call<T>& call_;
  const Share& share_;
  float* sums_;
  bool* is_last_;
  int thread_, number_ = 0;
  Tile tile_{};
};

}  // namespace pipelora::cuda::few
