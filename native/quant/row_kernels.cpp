#include "quant/row_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/isa.h"

namespace pipelora::quant {
namespace {

void widen(const void* source, Float format, Float as, std::int64_t count, float* values) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = rounded(load_float(source, format, i), as);
}

void narrow(const float* values, std::int64_t count, Float format, void* target) {
  for (std::int64_t i = 0; i < count; ++i) store_float(target, format, i, values[i]);
}

void dequantise(const std::int8_t* codes, std::int64_t count, float scale, Float format, void* target) {
  for (std::int64_t i = 0; i < count; ++i) store_float(target, format, i, static_cast<float>(codes[i]) * scale);
}

void epilogue(const std::int32_t* sums, std::int64_t count, float row_scale, const float* column_scale,
              const float* bias, float* y) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float scaled = static_cast<float>(sums[i]) * row_scale;
    y[i] = rounded(std::fma(scaled, column_scale[i], bias ? bias[i] : 0.0f), Float::f16);
  }
}

std::uint32_t absmax_bits(const float* values, std::int64_t count, float threshold) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(values[i]);
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude >= threshold ? 0.0f : magnitude);
    largest = std::max(largest, bits);
  }
  return largest;
}

#include "quant/row_kernels.inl"

}  // namespace

const RowKernels kRowsScalar{widen,  narrow, absmax_bits, quantise,  dequantise,
                             search, mark,   epilogue,    add_scaled};

const RowKernels& row_kernels() {
  switch (current_isa()) {
    case Isa::scalar: return kRowsScalar;
    case Isa::avx2: return kRowsAvx2;
    default: return kRowsAvx512;
  }
}

}  // namespace pipelora::quant
