// The three floating-point formats of weights and activations, and their scalar conversions (round to nearest even, as IEEE 754).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pipelora::quant {

enum class Float : std::uint8_t { f32, bf16, f16 };

constexpr std::int64_t bytes_of(Float format) { return format == Float::f32 ? 4 : 2; }

inline float f32_from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

inline std::uint16_t bf16_from_f32(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // NaN stays NaN
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<std::uint16_t>(bits >> 16);
}

inline float f32_from_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Exact for normal and subnormal halves alike: place the fields, then multiply by 2^112 to mend the exponent's bias.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

inline std::uint16_t f16_from_f32(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (bits < 0x38800000u) {
    // Below 2^-14: adding 0.5 makes the unit in the last place 2^-24, that of subnormal halves.
    const float shifted = std::bit_cast<float>(bits) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

/// Value rounded to `format` and widened again.
inline float rounded(float value, Float format) {
  switch (format) {
    case Float::bf16: return f32_from_bf16(bf16_from_f32(value));
    case Float::f16: return f32_from_f16(f16_from_f32(value));
    default: return value;
  }
}

/// Element `index` of an array of `format`, which need not be aligned (tensors in a mapped file are not).
inline float load_float(const void* base, Float format, std::int64_t index) {
  const auto* bytes = static_cast<const std::byte*>(base) + index * bytes_of(format);
  if (format == Float::f32) {
    float value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, bytes, sizeof half);
  return format == Float::bf16 ? f32_from_bf16(half) : f32_from_f16(half);
}

inline void store_float(void* base, Float format, std::int64_t index, float value) {
  auto* bytes = static_cast<std::byte*>(base) + index * bytes_of(format);
  if (format == Float::f32) {
    std::memcpy(bytes, &value, sizeof value);
    return;
  }
  const std::uint16_t half = format == Float::bf16 ? bf16_from_f32(value) : f16_from_f32(value);
  std::memcpy(bytes, &half, sizeof half);
}

}  // namespace pipelora::quant
