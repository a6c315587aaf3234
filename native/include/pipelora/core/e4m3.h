// Numbers in e4m3 (torch's float8_e4m3fn) on the host: four bits of exponent (bias 7), three of fraction, no infinities.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "pipelora/core/tensor.h"

namespace pipelora {

inline constexpr float kE4m3Largest = 448.0f;

inline float from_e4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7Fu, sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  // The fields of a float32 whose exponent is 120 too small, subnormal where the code is.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(sign | (magnitude == 0x7Fu ? 0x7FC00000u : std::bit_cast<std::uint32_t>(value)));
}

/// Rounded to nearest, ties to even; beyond 448 the largest; NaN stays NaN.
inline std::uint8_t to_e4m3(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 24 & 0x80u;
  const std::uint32_t rounded = (magnitude + 0x7FFFFu + (magnitude >> 20 & 1u) - 0x3C000000u) >> 20;
  const std::uint32_t subnormal = static_cast<std::uint32_t>((std::bit_cast<float>(magnitude) * 512.0f + 0x1p23f) - 0x1p23f);
  const std::uint32_t code = magnitude > 0x7F800000u ? 0x7Fu : magnitude >= 0x43E00000u ? 0x7Eu : magnitude < 0x3C800000u ? subnormal : rounded;
  return static_cast<std::uint8_t>(sign | code);
}

/// Columns behind a row's codes, where its float32 scale lies (Ops::encode_rows).
inline constexpr std::int64_t kScaleColumns = 4;

/// The largest number of a floating dtype.
inline float largest_of(DType dtype) { return dtype == DType::f16 ? 65504.0f : dtype == DType::bf16 ? 0x1.FEp127f : FLT_MAX; }

/// One row of Ops::encode_rows: codes [cols + kScaleColumns].
inline void encode_row(const float* x, std::int64_t cols, std::uint8_t* codes) {
  float largest = 0;
  for (std::int64_t c = 0; c < cols; ++c) {
    const float magnitude = std::fabs(x[c]);
    largest = std::isfinite(magnitude) ? std::max(largest, magnitude) : largest;
  }
  // A smaller scale has no reciprocal.
  const float scale = std::max(largest / kE4m3Largest, FLT_MIN), inverse = 1.0f / scale;
  for (std::int64_t c = 0; c < cols; ++c) codes[c] = to_e4m3(std::isfinite(x[c]) ? x[c] * inverse : NAN);
  std::memcpy(codes + cols, &scale, sizeof scale);
}

/// And back, cut to `largest`.
inline void decode_row(const std::uint8_t* codes, std::int64_t cols, float largest, float* x) {
  float scale;
  std::memcpy(&scale, codes + cols, sizeof scale);
  for (std::int64_t c = 0; c < cols; ++c) {
    const float value = from_e4m3(codes[c]) * scale;
    x[c] = value > largest ? largest : value < -largest ? -largest : value;  // NaN stays
  }
}

}  // namespace pipelora
