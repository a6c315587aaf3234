// Loads and roundings of sixteen floats. Include inside a translation unit's AVX-512 target region, after <immintrin.h>.
// Everything has internal linkage, so that no other unit can pick up code made for this target.

namespace pipelora::quant {
namespace {

template <Float kFormat>
inline __m512 load16(const std::byte* source) {
  if constexpr (kFormat == Float::f32) {
    return _mm512_loadu_ps(source);
  } else {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    if constexpr (kFormat == Float::f16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
}

inline __m256i to_bf16(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i nearest =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(nearest, nan, quiet));
}

inline __m256i to_f16(__m512 values) {
  return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <Float kFormat>
inline __m512 round_to(__m512 values) {
  if constexpr (kFormat == Float::bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(values)), 16));
  } else if constexpr (kFormat == Float::f16) {
    return _mm512_cvtph_ps(to_f16(values));
  } else {
    return values;
  }
}

}  // namespace
}  // namespace pipelora::quant
