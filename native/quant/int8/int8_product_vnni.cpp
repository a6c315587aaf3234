// AVX-512 VNNI. vpdpbusd multiplies unsigned by signed bytes: a is shifted by 128 on the way into the register, and 128
// times the sum of each row of b taken off the result.
#include <immintrin.h>

#include <algorithm>

#include "quant/int8/int8_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

namespace pipelora::quant {
namespace {

constexpr std::int64_t kLanes = 64;
constexpr int kRowsOfA = 6;
constexpr int kRowsOfB = 4;

// One row of a against four of b. Named members, not arrays: GCC keeps these in registers.
struct Sums {
  __m512i s0, s1, s2, s3;

  Sums() : s0(_mm512_setzero_si512()), s1(s0), s2(s0), s3(s0) {}

  [[gnu::always_inline]] void add(__m512i a, __m512i b0, __m512i b1, __m512i b2, __m512i b3) {
    // The constraint "+v" accumulates in place; GCC 12 copies every sum in and out of the intrinsic.
    asm("vpdpbusd %2, %1, %0" : "+v"(s0) : "v"(a), "v"(b0));
    asm("vpdpbusd %2, %1, %0" : "+v"(s1) : "v"(a), "v"(b1));
    asm("vpdpbusd %2, %1, %0" : "+v"(s2) : "v"(a), "v"(b2));
    asm("vpdpbusd %2, %1, %0" : "+v"(s3) : "v"(a), "v"(b3));
  }

  __m128i total() const {
    const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
    const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
};

/// kA (1 or 6) rows of a by the first `rows` (at most four) of b; shift[j] = 128 * sum(b[j]).
template <int kA>
[[gnu::noinline]] void tile(const std::int8_t* a, std::int64_t lda, const std::int8_t* b, std::int64_t ldb,
                            std::int64_t rows, std::int64_t k, const std::int32_t* shift, std::int32_t* c,
                            std::int64_t ldc) {
  // Rows that are not there repeat the last one, and their sums are not stored.
  const std::int8_t* b0 = b;
  const std::int8_t* b1 = b + std::min<std::int64_t>(1, rows - 1) * ldb;
  const std::int8_t* b2 = b + std::min<std::int64_t>(2, rows - 1) * ldb;
  const std::int8_t* b3 = b + std::min<std::int64_t>(3, rows - 1) * ldb;
  Sums r0, r1, r2, r3, r4, r5;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for (std::int64_t l = 0; l < k; l += kLanes) {
    const __mmask64 mask = k - l < kLanes ? (__mmask64{1} << (k - l)) - 1 : ~__mmask64{0};
    const __m512i w0 = _mm512_maskz_loadu_epi8(mask, b0 + l);
    const __m512i w1 = _mm512_maskz_loadu_epi8(mask, b1 + l);
    const __m512i w2 = _mm512_maskz_loadu_epi8(mask, b2 + l);
    const __m512i w3 = _mm512_maskz_loadu_epi8(mask, b3 + l);
    const auto shifted = [&](std::int64_t row) __attribute__((always_inline)) {
      return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, a + row * lda + l), flip);
    };
    r0.add(shifted(0), w0, w1, w2, w3);
    if constexpr (kA == kRowsOfA) {
      r1.add(shifted(1), w0, w1, w2, w3);
      r2.add(shifted(2), w0, w1, w2, w3);
      r3.add(shifted(3), w0, w1, w2, w3);
      r4.add(shifted(4), w0, w1, w2, w3);
      r5.add(shifted(5), w0, w1, w2, w3);
    }
  }
  const auto stored = static_cast<__mmask8>((1 << rows) - 1);
  const __m128i shifts = _mm_maskz_loadu_epi32(stored, shift);
  const auto store = [&](std::int64_t row, const Sums& sums) __attribute__((always_inline)) {
    _mm_mask_storeu_epi32(c + row * ldc, stored, _mm_sub_epi32(sums.total(), shifts));
  };
  store(0, r0);
  if constexpr (kA == kRowsOfA) {
    store(1, r1);
    store(2, r2);
    store(3, r3);
    store(4, r4);
    store(5, r5);
  }
}

std::int32_t shifted_sum(const std::int8_t* row, std::int64_t k) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (std::int64_t l = 0; l < k; l += kLanes) {
    const __mmask64 mask = k - l < kLanes ? (__mmask64{1} << (k - l)) - 1 : ~__mmask64{0};
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, row + l));
  }
  return 128 * _mm512_reduce_add_epi32(sum);
}

}  // namespace

void int8_product_vnni(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b, std::int64_t ldb,
                       std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc) {
  constexpr std::int64_t kPanel = 64;
  std::int32_t shift[kPanel];
  for (std::int64_t first = 0; first < n; first += kPanel) {
    const std::int64_t panel = std::min(kPanel, n - first);
    for (std::int64_t j = 0; j < panel; ++j) shift[j] = shifted_sum(b + (first + j) * ldb, k);
    const auto strip = [&](auto run, std::int64_t i) {
      for (std::int64_t j = 0; j < panel; j += kRowsOfB) {
        const std::int64_t rows = std::min<std::int64_t>(kRowsOfB, panel - j);
        run(a + i * lda, lda, b + (first + j) * ldb, ldb, rows, k, shift + j, c + i * ldc + first + j, ldc);
      }
    };
    std::int64_t i = 0;
    for (; i + kRowsOfA <= m; i += kRowsOfA) strip(tile<kRowsOfA>, i);
    for (; i < m; ++i) strip(tile<1>, i);
  }
}

}  // namespace pipelora::quant

#pragma GCC pop_options
