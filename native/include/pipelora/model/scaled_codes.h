// Weights that a checkpoint stores in e4m3 with scales beside them.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "pipelora/core/half.h"
#include "pipelora/core/mapped_file.h"
#include "pipelora/model/spec.h"

namespace pipelora {

/// What the codes of e4m3 stand for: four bits of exponent (bias 7), three of fraction, no infinities.
inline float from_e4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7Fu, sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  // The fields of a float32 whose exponent is 120 too small, subnormal where the code is.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(sign | (magnitude == 0x7Fu ? 0x7FC00000u : std::bit_cast<std::uint32_t>(value)));
}

/// The matrix that `source`, whose codes are in `file`, stands for: code times scale, rounded once. Throws PL_CHECKPOINT_INVALID where a file
/// is too short, PL_QUANTIZATION_INVALID where the scales are not as many as there are blocks; both name `name`.
std::vector<bf16> expand_codes(const std::string& name, const MappedFile& file, const TensorSource& source);

}  // namespace pipelora
