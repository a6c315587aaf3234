// Plain loops over one row, compiled once for each instruction level (row_kernels.inl): conversions, 8-bit quantisation,
// the search in the dynamic map. All levels give the same bits.
#pragma once

#include <cstdint>

#include "quant/float_format.h"

namespace pipelora::quant {

struct RowKernels {
  /// source [count] in `format`, unaligned -> f32, each element rounded to `as` on the way.
  void (*widen)(const void* source, Float format, Float as, std::int64_t count, float* values);
  /// values [count] f32 -> target in `format`, rounded once.
  void (*narrow)(const float* values, std::int64_t count, Float format, void* target);
  /// The bits of the largest magnitude; a NaN counts as the largest. Magnitudes of at least `threshold` count as 0.
  std::uint32_t (*absmax_bits)(const float* values, std::int64_t count, float threshold);
  /// codes = rint(value * scale); magnitudes of at least `threshold` become 0.
  void (*quantise)(const float* values, std::int64_t count, float scale, float threshold, std::int8_t* codes);
  /// target = code * scale, rounded once to `format`
  void (*dequantise)(const std::int8_t* codes, std::int64_t count, float scale, Float format, void* target);
  /// codes[i] = how many of the 255 ascending thresholds lie strictly below values[i] * scale.
  void (*search)(const float* values, std::int64_t count, float scale, const float* thresholds, std::uint8_t* codes);
  /// found[i] |= |values[i]| >= threshold
  void (*mark)(const float* values, std::int64_t count, float threshold, std::uint8_t* found);
  /// y[i] = fma(float(sums[i]) * row_scale, column_scale[i], bias[i]) rounded to f16; bias may be null.
  void (*epilogue)(const std::int32_t* sums, std::int64_t count, float row_scale, const float* column_scale,
                   const float* bias, float* y);
  /// y[i] += factor * x[i], product and sum rounded once together
  void (*add_scaled)(const float* x, std::int64_t count, float factor, float* y);
};

extern const RowKernels kRowsScalar;
extern const RowKernels kRowsAvx2;
extern const RowKernels kRowsAvx512;

const RowKernels& row_kernels();

}  // namespace pipelora::quant
