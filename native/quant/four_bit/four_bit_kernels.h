// The inner loops of four_bit.cpp, one set for each instruction level. All give the same bits.
#pragma once

#include <cstdint>

#include "quant/four_bit/codebook.h"
#include "quant/float_format.h"

namespace pipelora::quant {

struct FourBitKernels {
  /// Whole blocks only, blocksize a power of two from 32. Returns the number of the first block with a NaN or an infinity, or
  /// `blocks`.
  std::int64_t (*quantise)(const void* source, Float format, Float as, std::int64_t blocks, std::int64_t blocksize,
                           const Codebook4& book, std::uint8_t* packed, float* absmax);
  /// Whole blocks only, of any multiple of 32 elements; packed starts at an even element.
  void (*dequantise)(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                     const Codebook4& book, Float via, void* target, Float target_format);
};

extern const FourBitKernels kFourBitScalar;
extern const FourBitKernels kFourBitAvx2;
extern const FourBitKernels kFourBitAvx512;

/// One block of any length, `begin` elements into source and packed (begin even). False if it holds a NaN or an infinity.
bool quantise_block(const void* source, Float format, Float as, std::int64_t begin, std::int64_t count,
                    const Codebook4& book, std::uint8_t* packed, float& absmax);
/// A run of elements under one absmax, of any length and parity; `begin` counts from packed's first element.
void dequantise_run(const std::uint8_t* packed, std::int64_t begin, std::int64_t count, float absmax,
                    const Codebook4& book, Float via, void* target, Float target_format);

/// False where absmax is so small that its reciprocal overflows: the block is stored as zeros.
inline bool has_reciprocal(float absmax) { return absmax >= 0x1p-126f; }

}  // namespace pipelora::quant
