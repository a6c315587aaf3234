// A 4-bit weight [out, in] as it is held, and the part of it that a product needs at a time.
//
// A product never sees the whole weight in floating point. It dequantises a panel that stays in the L2 cache and multiplies
// it at once: forward Y[:, r0:r1] = X W[r0:r1, :]ᵀ, input gradient dX += dY[:, r0:r1] W[r0:r1, :] (or a column panel,
// dX[:, c0:c1] = dY W[:, c0:c1]). The caller owns the panel and gives each thread its own.
#pragma once

#include <cstdint>

#include "quant/four_bit/four_bit.h"

namespace pipelora::quant {

/// The scales of the blocks: plain fp32, or doubly quantised (then `plain` is null).
struct Absmax {
  const float* plain = nullptr;
  const std::uint8_t* codes = nullptr;
  const float* nested = nullptr;
  float offset = 0;
};

struct Weight4 {
  const std::uint8_t* packed = nullptr;  // [packed_bytes(out * in)], row-major, even element in the high nibble
  Absmax absmax;                         // [blocks_of(out * in, blocksize)]
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::int64_t blocksize = 64;
  FourBit type = FourBit::nf4;
  Float dtype = Float::f32;  // dtype of the weight that was quantised: values are rounded to it first
};

/// Elements [begin, begin + count) of the flattened weight -> target [count]. One thread.
void dequantise_range(const Weight4& weight, std::int64_t begin, std::int64_t count, void* target, Float format);

/// W[row_begin:row_end, col_begin:col_end] -> target, row r of the tile at element (r - row_begin) * stride. One thread.
void dequantise_tile(const Weight4& weight, std::int64_t row_begin, std::int64_t row_end, std::int64_t col_begin,
                     std::int64_t col_end, void* target, Float format, std::int64_t stride);

/// The whole weight -> target [out, in], on `threads` threads.
void dequantise(const Weight4& weight, void* target, Float format, int threads);

}  // namespace pipelora::quant
