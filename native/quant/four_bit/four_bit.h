// NF4 and FP4: blocks of a flattened row-major array share one fp32 absmax; every element becomes a 4-bit code of x / absmax.
// Source: QLoRA (Dettmers et al. 2023), bit layout and rounding of bitsandbytes 0.50.
#pragma once

#include <cstdint>

#include "quant/four_bit/codebook.h"
#include "quant/float_format.h"

namespace pipelora::quant {

/// Powers of two from 32 to 4096.
bool is_block_size(std::int64_t blocksize);

constexpr std::int64_t blocks_of(std::int64_t count, std::int64_t blocksize) {
  return (count + blocksize - 1) / blocksize;
}
constexpr std::int64_t packed_bytes(std::int64_t count) { return (count + 1) / 2; }

/// source [count] in `format` (unaligned allowed), each element first rounded to `as` (the dtype that the model is loaded
/// in) -> packed [(count + 1) / 2], the even element in the high nibble, and absmax [blocks_of(count, blocksize)] fp32.
/// y = x * (1 / absmax) in fp32, the reciprocal as in fast_reciprocal(); nearest code, ties to the lower one. A block whose
/// absmax is zero or below the smallest normal float gets the code of zero throughout.
/// Returns -1, or the index of the first element that is NaN or infinite after rounding to `as` (the output is then not
/// to be used). Runs on `threads` OpenMP threads; the result does not depend on them.
std::int64_t quantise4(const void* source, Float format, Float as, std::int64_t count, std::int64_t blocksize,
                       FourBit type, std::uint8_t* packed, float* absmax, int threads);

/// Elements [begin, begin + count) of an array quantised as above -> target [count] in `target_format`. `packed` is the whole
/// array's; absmax_first is the absmax of the block that holds `begin`. Value: fp32 code * absmax, rounded once to `via`
/// (the dtype the weight had when it was quantised), then to the target. One thread.
void dequantise4_range(const std::uint8_t* packed, const float* absmax_first, std::int64_t begin, std::int64_t count,
                       std::int64_t blocksize, FourBit type, Float via, void* target, Float target_format);

}  // namespace pipelora::quant
