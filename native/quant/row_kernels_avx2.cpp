// AVX2, FMA and F16C.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "quant/row_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

#include "quant/convert_avx2.h"

namespace pipelora::quant {
namespace {

template <Float kFormat>
void widen_from(const void* source, Float as, std::int64_t count, float* values) {
  const auto* from = static_cast<const std::byte*>(source);
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(values + i, round_to(load8<kFormat>(from + i * bytes_of(kFormat)), as));
  }
  for (; i < count; ++i) values[i] = rounded(load_float(source, kFormat, i), as);
}

void widen(const void* source, Float format, Float as, std::int64_t count, float* values) {
  switch (format) {
    case Float::bf16: return widen_from<Float::bf16>(source, as, count, values);
    case Float::f16: return widen_from<Float::f16>(source, as, count, values);
    default: return widen_from<Float::f32>(source, as, count, values);
  }
}

void store8(std::byte* target, Float format, std::int64_t index, __m256 values) {
  if (format == Float::f32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(target + index * 4), values);
  } else {
    const __m128i halves = format == Float::bf16 ? to_bf16(values) : to_f16(values);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + index * 2), halves);
  }
}

void narrow(const float* values, std::int64_t count, Float format, void* target) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) store8(static_cast<std::byte*>(target), format, i, _mm256_loadu_ps(values + i));
  for (; i < count; ++i) store_float(target, format, i, values[i]);
}

void dequantise(const std::int8_t* codes, std::int64_t count, float scale, Float format, void* target) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
    const __m256 values = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_set1_ps(scale));
    store8(static_cast<std::byte*>(target), format, i, values);
  }
  for (; i < count; ++i) store_float(target, format, i, static_cast<float>(codes[i]) * scale);
}

void epilogue(const std::int32_t* sums, std::int64_t count, float row_scale, const float* column_scale,
              const float* bias, float* y) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i));
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(eight), _mm256_set1_ps(row_scale));
    const __m256 added = bias ? _mm256_loadu_ps(bias + i) : _mm256_setzero_ps();
    const __m256 exact = _mm256_fmadd_ps(scaled, _mm256_loadu_ps(column_scale + i), added);
    _mm256_storeu_ps(y + i, round_to(exact, Float::f16));
  }
  for (; i < count; ++i) {
    const float scaled = static_cast<float>(sums[i]) * row_scale;
    y[i] = rounded(std::fma(scaled, column_scale[i], bias ? bias[i] : 0.0f), Float::f16);
  }
}

std::uint32_t absmax_bits(const float* values, std::int64_t count, float threshold) {
  const __m256 limit = _mm256_set1_ps(threshold);
  const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256i largest = _mm256_setzero_si256();
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 magnitude = _mm256_and_ps(_mm256_loadu_ps(values + i), no_sign);
    const __m256 out = _mm256_cmp_ps(magnitude, limit, _CMP_GE_OQ);
    largest = _mm256_max_epu32(largest, _mm256_castps_si256(_mm256_andnot_ps(out, magnitude)));
  }
  std::uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), largest);
  std::uint32_t all = *std::max_element(lanes, lanes + 8);
  for (; i < count; ++i) {
    const float magnitude = std::fabs(values[i]);
    all = std::max(all, std::bit_cast<std::uint32_t>(magnitude >= threshold ? 0.0f : magnitude));
  }
  return all;
}

#include "quant/row_kernels.inl"

}  // namespace

const RowKernels kRowsAvx2{widen,  narrow, absmax_bits, quantise,  dequantise,
                           search, mark,   epilogue,    add_scaled};

}  // namespace pipelora::quant

#pragma GCC pop_options
