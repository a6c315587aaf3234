// The scales of a row of 4-bit codes, made ahead of the products that they multiply (quant4_few_hopper.cu).
#pragma once

#include "ops/cuda/base/quant4_few_shares.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda::few {

/// Four bytes from global to shared memory.
__device__ inline void copy_word(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(to), "l"(from));
}

/// One row's scales: first what they are made of is copied, then they are made. What lies behind the last row is made of that row, and
/// multiplies nothing.
template <class T>
class RowScales {
 public:
  __device__ RowScales(const FewCall<T>& call, int thread) : call_(call), thread_(thread) {}

  __device__ void start(const Tile& tile) {
    const Packed4& w = call_.part[tile.part].w;
    const auto in_blocks = static_cast<int>(w.in / 64);
    nested_ = w.absmax == nullptr;
    log_ = w.block_shift - 6;
    block_ = (tile.first + min(thread_, tile.rows - 1)) * in_blocks;
    most_ = static_cast<int>(w.rows * in_blocks - 1) >> log_;
    codes_ = reinterpret_cast<const std::uint32_t*>(w.codes);
    scales_ = nested_ ? w.nested : w.absmax;
    offset_ = nested_ ? *w.offset : 0.0f;
  }
  /// 16 bytes: the two words that have the codes of four neighbouring scales, and the two scales of those; or four scales.
  __device__ void copy(int step, std::uint32_t to) const {
    const int first = (block_ + step * kBlocks) >> log_;
    if (nested_) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        copy_word(to + i * 4, codes_ + min((first >> 2) + i, most_ >> 2));
        copy_word(to + 8 + i * 4, scales_ + min((first >> 8) + i, most_ >> 8));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) copy_word(to + i * 4, scales_ + min((block_ + step * kBlocks + i) >> log_, most_));
    }
  }
  __device__ uint4 made(int step, const uint4& raw, const float* map) const {
    if (!nested_) return raw;
    const int block = block_ + step * kBlocks, first = block >> log_, line = first >> 8;
    std::uint32_t scales[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int own = (block + i) >> log_;
      const std::uint32_t code = __byte_perm(raw.x, raw.y, static_cast<unsigned>(own - (first & ~3))) & 255u;
      scales[i] = __float_as_uint(__fadd_rn(__fmul_rn(map[code], __uint_as_float((own >> 8) == line ? raw.z : raw.w)), offset_));
    }
    return make_uint4(scales[0], scales[1], scales[2], scales[3]);
  }

 private:
  const FewCall<T>& call_;
  int thread_, block_ = 0, log_ = 0, most_ = 0;
  bool nested_ = false;
  const std::uint32_t* codes_ = nullptr;
  const float* scales_ = nullptr;
  float offset_ = 0;
};

}  // namespace pipelora::cuda::few
