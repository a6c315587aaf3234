// Double quantisation of the scales of 4-bit blocks: absmax - mean(absmax) in 8 bits, blocks of 256, dynamic map.
// Source: QLoRA (Dettmers et al. 2023), section 3; bitsandbytes 0.50 (quantize_4bit with compress_statistics).
#pragma once

#include <cstdint>

namespace pipelora::quant {

inline constexpr std::int64_t kNestedBlock = 256;

constexpr std::int64_t nested_blocks_of(std::int64_t count) { return (count + kNestedBlock - 1) / kNestedBlock; }

/// fp32 mean of absmax [count]; summed in fp64 in a fixed order, so it is within one unit in the last place of any fp32 sum.
float absmax_offset(const float* absmax, std::int64_t count);

/// absmax [count] fp32 -> codes [count] and nested_absmax [nested_blocks_of(count)].
void quantise_absmax(const float* absmax, std::int64_t count, float offset, std::uint8_t* codes, float* nested_absmax,
                     int threads);

/// Elements [begin, begin + count): map[code] * nested_absmax, rounded, plus offset, rounded. One thread.
void dequantise_absmax(const std::uint8_t* codes, const float* nested_absmax, float offset, std::int64_t begin,
                       std::int64_t count, float* absmax);

}  // namespace pipelora::quant
