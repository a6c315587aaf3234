// What products in e4m3 see of their operands, on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pipelora::test {

/// The nearest e4m3 number, ties to even.
inline double nearest_e4m3(double x) {
  const double magnitude = std::fabs(x);
  if (magnitude == 0) return 0;
  const int exponent = std::max(-6, std::ilogb(magnitude));
  const double step = std::ldexp(1.0, exponent - 3);
  return std::copysign(std::min(448.0, std::nearbyint(magnitude / step) * step), x);
}

/// What a product in e4m3 sees of `count` numbers that share a scale, `step` apart.
inline void in_e4m3(double* values, std::int64_t count, std::int64_t step) {
  float largest = 0;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<float>(std::fabs(values[i * step])));
  const float scale = largest / 448.0f, inverse = 1.0f / scale;
  for (std::int64_t i = 0; i < count; ++i)
    values[i * step] = largest == 0 ? 0 : nearest_e4m3(static_cast<double>(static_cast<float>(values[i * step]) * inverse)) * static_cast<double>(scale);
}

}  // namespace pipelora::test
