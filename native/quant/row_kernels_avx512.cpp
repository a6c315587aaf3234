// AVX-512 F, BW, VL, DQ.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "quant/row_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")

#include "quant/convert_avx512.h"

namespace pipelora::quant {
namespace {

__mmask16 lanes_from(std::int64_t left) {
  return left >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << left) - 1u);
}

template <Float kFormat, Float kAs>
void widen_as(const void* source, std::int64_t count, float* values) {
  constexpr std::int64_t kBytes = kFormat == Float::f32 ? 4 : 2;
  const auto* from = static_cast<const std::byte*>(source);
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) _mm512_storeu_ps(values + i, round_to<kAs>(load16<kFormat>(from + i * kBytes)));
  for (; i < count; ++i) values[i] = rounded(load_float(source, kFormat, i), kAs);
}

template <Float kFormat>
void widen_from(const void* source, Float as, std::int64_t count, float* values) {
  if (as == kFormat || as == Float::f32) return widen_as<kFormat, Float::f32>(source, count, values);
  if (as == Float::bf16) return widen_as<kFormat, Float::bf16>(source, count, values);
  return widen_as<kFormat, Float::f16>(source, count, values);
}

void widen(const void* source, Float format, Float as, std::int64_t count, float* values) {
  switch (format) {
    case Float::bf16: return widen_from<Float::bf16>(source, as, count, values);
    case Float::f16: return widen_from<Float::f16>(source, as, count, values);
    default: return widen_from<Float::f32>(source, as, count, values);
  }
}

void store16(std::byte* target, Float format, std::int64_t index, __m512 values) {
  if (format == Float::f32) {
    _mm512_storeu_ps(target + index * 4, values);
  } else {
    const __m256i halves = format == Float::bf16 ? to_bf16(values) : to_f16(values);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + index * 2), halves);
  }
}

void narrow(const float* values, std::int64_t count, Float format, void* target) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) store16(static_cast<std::byte*>(target), format, i, _mm512_loadu_ps(values + i));
  for (; i < count; ++i) store_float(target, format, i, values[i]);
}

void dequantise(const std::int8_t* codes, std::int64_t count, float scale, Float format, void* target) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
    const __m512 values = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), _mm512_set1_ps(scale));
    store16(static_cast<std::byte*>(target), format, i, values);
  }
  for (; i < count; ++i) store_float(target, format, i, static_cast<float>(codes[i]) * scale);
}

void epilogue(const std::int32_t* sums, std::int64_t count, float row_scale, const float* column_scale,
              const float* bias, float* y) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 scaled =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i)), _mm512_set1_ps(row_scale));
    const __m512 added = bias ? _mm512_loadu_ps(bias + i) : _mm512_setzero_ps();
    const __m512 exact = _mm512_fmadd_ps(scaled, _mm512_loadu_ps(column_scale + i), added);
    _mm512_storeu_ps(y + i, round_to<Float::f16>(exact));
  }
  for (; i < count; ++i) {
    const float scaled = static_cast<float>(sums[i]) * row_scale;
    y[i] = rounded(std::fma(scaled, column_scale[i], bias ? bias[i] : 0.0f), Float::f16);
  }
}

std::uint32_t absmax_bits(const float* values, std::int64_t count, float threshold) {
  const __m512 limit = _mm512_set1_ps(threshold);
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < count; i += 16) {
    const __mmask16 inside = lanes_from(count - i);
    const __m512 magnitude = _mm512_abs_ps(_mm512_maskz_loadu_ps(inside, values + i));
    const __mmask16 out = _mm512_cmp_ps_mask(magnitude, limit, _CMP_GE_OQ);
    largest = _mm512_mask_max_epu32(largest, static_cast<__mmask16>(~out), largest, _mm512_castps_si512(magnitude));
  }
  return _mm512_reduce_max_epu32(largest);
}

#include "quant/row_kernels.inl"

}  // namespace

const RowKernels kRowsAvx512{widen,  narrow, absmax_bits, quantise,  dequantise,
                             search, mark,   epilogue,    add_scaled};

}  // namespace pipelora::quant

#pragma GCC pop_options
