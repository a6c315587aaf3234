// AVX2: bytes widened to 16 bits, so that no pair of products saturates.
#include <immintrin.h>

#include "quant/int8/int8_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2")

namespace pipelora::quant {
namespace {

__m256i widen(const std::int8_t* bytes) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

std::int32_t sum8(__m256i sums) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

template <int kA, int kB>
void tile(const std::int8_t* a, std::int64_t lda, const std::int8_t* b, std::int64_t ldb, std::int64_t k,
          std::int32_t* c, std::int64_t ldc) {
  __m256i sums[kA][kB];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm256_setzero_si256();
  }
  std::int64_t l = 0;
  for (; l + 16 <= k; l += 16) {
    __m256i from_b[kB];
    for (int j = 0; j < kB; ++j) from_b[j] = widen(b + j * ldb + l);
    for (int i = 0; i < kA; ++i) {
      const __m256i from_a = widen(a + i * lda + l);
      for (int j = 0; j < kB; ++j) {
        sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(from_a, from_b[j]));
      }
    }
  }
  for (int i = 0; i < kA; ++i) {
    for (int j = 0; j < kB; ++j) {
      std::int32_t sum = sum8(sums[i][j]);
      for (std::int64_t rest = l; rest < k; ++rest) {
        sum += static_cast<std::int32_t>(a[i * lda + rest]) * static_cast<std::int32_t>(b[j * ldb + rest]);
      }
      c[i * ldc + j] = sum;
    }
  }
}

}  // namespace

void int8_product_avx2(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b, std::int64_t ldb,
                       std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc) {
  constexpr int kA = 2;
  constexpr int kB = 4;
  std::int64_t i = 0;
  for (; i + kA <= m; i += kA) {
    std::int64_t j = 0;
    for (; j + kB <= n; j += kB) tile<kA, kB>(a + i * lda, lda, b + j * ldb, ldb, k, c + i * ldc + j, ldc);
    for (; j < n; ++j) tile<kA, 1>(a + i * lda, lda, b + j * ldb, ldb, k, c + i * ldc + j, ldc);
  }
  for (; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) tile<1, 1>(a + i * lda, lda, b + j * ldb, ldb, k, c + i * ldc + j, ldc);
  }
}

}  // namespace pipelora::quant

#pragma GCC pop_options
