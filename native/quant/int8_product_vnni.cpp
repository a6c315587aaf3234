// AVX-512 VNNI. vpdpbusd multiplies unsigned by signed bytes: a is shifted by 128 on the way into the register, and 128
// times the sum of each row of b taken off the result.
#include <immintrin.h>

#include <algorithm>

#include "quant/int8_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

namespace pipelora::quant {
namespace {

constexpr std::int64_t kLanes = 64;
constexpr int kRowsOfA = 6;
constexpr int kRowsOfB = 4;

__m128i sum4(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/// sum += a (unsigned) * b (signed), four neighbours at a time. GCC 12 copies every accumulator in and out of the intrinsic,
/// which costs two thirds of the speed; the constraint "+v" does not.
void multiply_add(__m512i& sum, __m512i a, __m512i b) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

/// kA rows of a by kB rows of b; shift[j] = 128 * sum(b[j]).
template <int kA, int kB>
void tile(const std::int8_t* a, std::int64_t lda, const std::int8_t* b, std::int64_t ldb, std::int64_t k,
          const std::int32_t* shift, std::int32_t* c, std::int64_t ldc) {
  __m512i sums[kA][kRowsOfB];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_si512();
  }
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  // The rows of b stay in registers and those of a pass through one: with the sums that is all the registers there are.
  std::int64_t l = 0;
  for (; l + kLanes <= k; l += kLanes) {
    __m512i from_b[kB];
    for (int j = 0; j < kB; ++j) from_b[j] = _mm512_loadu_si512(b + j * ldb + l);
    for (int i = 0; i < kA; ++i) {
      const __m512i from_a = _mm512_xor_si512(_mm512_loadu_si512(a + i * lda + l), flip);
      for (int j = 0; j < kB; ++j) multiply_add(sums[i][j], from_a, from_b[j]);
    }
  }
  if (l < k) {
    const __mmask64 mask = (__mmask64{1} << (k - l)) - 1;
    for (int j = 0; j < kB; ++j) {
      const __m512i from_b = _mm512_maskz_loadu_epi8(mask, b + j * ldb + l);
      for (int i = 0; i < kA; ++i) {
        const __m512i from_a = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, a + i * lda + l), flip);
        multiply_add(sums[i][j], from_a, from_b);
      }
    }
  }
  for (int i = 0; i < kA; ++i) {
    const __m128i four = sum4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    if constexpr (kB == kRowsOfB) {
      const __m128i shifts = _mm_loadu_si128(reinterpret_cast<const __m128i*>(shift));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(c + i * ldc), _mm_sub_epi32(four, shifts));
    } else {
      c[i * ldc] = _mm_cvtsi128_si32(four) - shift[0];
    }
  }
}

std::int32_t shifted_sum(const std::int8_t* row, std::int64_t k) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  std::int64_t l = 0;
  for (; l + kLanes <= k; l += kLanes) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(row + l));
  if (l < k) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8((__mmask64{1} << (k - l)) - 1, row + l));
  return 128 * _mm512_reduce_add_epi32(sum);
}

}  // namespace

void int8_product_vnni(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b, std::int64_t ldb,
                       std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc) {
  constexpr std::int64_t kPanel = 64;
  std::int32_t shift[kPanel];
  for (std::int64_t first = 0; first < n; first += kPanel) {
    const std::int64_t rows = std::min(kPanel, n - first);
    for (std::int64_t j = 0; j < rows; ++j) shift[j] = shifted_sum(b + (first + j) * ldb, k);
    const auto strip = [&]<int kA>(std::int64_t i) {
      std::int64_t j = 0;
      for (; j + kRowsOfB <= rows; j += kRowsOfB) {
        tile<kA, kRowsOfB>(a + i * lda, lda, b + (first + j) * ldb, ldb, k, shift + j, c + i * ldc + first + j, ldc);
      }
      for (; j < rows; ++j) {
        tile<kA, 1>(a + i * lda, lda, b + (first + j) * ldb, ldb, k, shift + j, c + i * ldc + first + j, ldc);
      }
    };
    std::int64_t i = 0;
    for (; i + kRowsOfA <= m; i += kRowsOfA) strip.template operator()<kRowsOfA>(i);
    for (; i < m; ++i) strip.template operator()<1>(i);
  }
}

}  // namespace pipelora::quant

#pragma GCC pop_options
