// The tables of codes: NF4 and FP4 (QLoRA, Dettmers et al. 2023; values as in bitsandbytes 0.50) and the 8-bit dynamic map
// (8-bit Optimizers via Block-wise Quantization, Dettmers et al. 2022).
#pragma once

#include <array>
#include <cstdint>

namespace pipelora::quant {

/// mxfp4: E2M1 of OCP's Microscaling Formats, which checkpoints hold; nothing is quantised to it here.
enum class FourBit : std::uint8_t { nf4, fp4, mxfp4 };

struct Codebook4 {
  /// Value of each code. Of mxfp4 these alone are filled.
  alignas(64) std::array<float, 16> values;
  /// Ascending; rank of y = how many of them lie strictly below y. A tie goes to the code of lower rank for NF4, to the
  /// smaller magnitude for FP4.
  std::array<float, 15> thresholds;
  /// Code of each rank (for NF4 the rank itself).
  std::array<std::uint8_t, 16> code_of_rank;
  /// The code of +0, written for every element of an all-zero block and for the unused half of a last byte.
  std::uint8_t zero;

  /// The same search in one step, for vector kernels: bucket b = floor(16 y) mod 32, y in [-1, 1), holds at most one
  /// threshold inside; rank = bucket_rank[b] + (y > bucket_threshold[b]).
  alignas(64) std::array<float, 32> bucket_threshold;
  alignas(64) std::array<std::int32_t, 32> bucket_rank;
};

const Codebook4& codebook4(FourBit type);

/// bitsandbytes' create_dynamic_map(): 256 values ascending, bit for bit.
const std::array<float, 256>& dynamic_map();

/// rank = how many of the 255 lie strictly below z = the code that bitsandbytes' search gives (nearest value; a tie between
/// two codes goes to the even one).
const std::array<float, 255>& dynamic_thresholds();

}  // namespace pipelora::quant
