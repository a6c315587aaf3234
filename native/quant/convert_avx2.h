// Loads and roundings of eight floats. Include inside a translation unit's AVX2 target region, after <immintrin.h>.
// Everything has internal linkage, so that no other unit can pick up code made for this target.

namespace pipelora::quant {
namespace {

inline __m128i to_bf16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i words = _mm256_blendv_epi8(nearest, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline __m128i to_f16(__m256 values) { return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT); }

inline __m256 widen_bf16(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <Float kFormat>
inline __m256 load8(const std::byte* source) {
  if constexpr (kFormat == Float::f32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(source));
  } else {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    if constexpr (kFormat == Float::f16) return _mm256_cvtph_ps(halves);
    return widen_bf16(halves);
  }
}

inline __m256 round_to(__m256 values, Float format) {
  switch (format) {
    case Float::bf16: return widen_bf16(to_bf16(values));
    case Float::f16: return _mm256_cvtph_ps(to_f16(values));
    default: return values;
  }
}

}  // namespace
}  // namespace pipelora::quant
