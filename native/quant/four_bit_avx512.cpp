// AVX-512 F, BW, VL, DQ.
#include <immintrin.h>

#include <bit>
#include <cstddef>

#include "quant/four_bit_kernels.h"
#include "quant/reciprocal.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")

#include "quant/convert_avx512.h"

namespace pipelora::quant {
namespace {

struct BucketTables {
  __m512 threshold_low, threshold_high;
  __m512i rank_low, rank_high, codes;
};

__m512i codes_of(__m512 y, const BucketTables& tables) {
  y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-1.0f)), _mm512_set1_ps(0x1.fffffep-1f));
  const __m512i bucket = _mm512_cvt_roundps_epi32(_mm512_mul_ps(y, _mm512_set1_ps(16.0f)),
                                                  _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 threshold = _mm512_permutex2var_ps(tables.threshold_low, bucket, tables.threshold_high);
  __m512i rank = _mm512_permutex2var_epi32(tables.rank_low, bucket, tables.rank_high);
  const __mmask16 above = _mm512_cmp_ps_mask(y, threshold, _CMP_GT_OQ);
  rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(1));
  return _mm512_permutexvar_epi32(rank, tables.codes);
}

template <Float kFormat, Float kAs>
std::int64_t quantise_as(const void* source, std::int64_t blocks, std::int64_t blocksize, const Codebook4& book,
                         std::uint8_t* packed, float* absmax) {
  const BucketTables tables{
      _mm512_load_ps(book.bucket_threshold.data()), _mm512_load_ps(book.bucket_threshold.data() + 16),
      _mm512_load_si512(book.bucket_rank.data()), _mm512_load_si512(book.bucket_rank.data() + 16),
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book.code_of_rank.data())))};
  constexpr std::int64_t kBytes = kFormat == Float::f32 ? 4 : 2;
  const auto* from = static_cast<const std::byte*>(source);
  for (std::int64_t block = 0; block < blocks; ++block) {
    __m512i largest = _mm512_setzero_si512();
    for (std::int64_t i = 0; i < blocksize; i += 16) {
      const __m512i bits = _mm512_castps_si512(round_to<kAs>(load16<kFormat>(from + i * kBytes)));
      largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const std::uint32_t top = _mm512_reduce_max_epu32(largest);
    absmax[block] = std::bit_cast<float>(top);
    if (top >= 0x7f800000u) return block;
    if (has_reciprocal(absmax[block])) {
      const __m512 inverse = _mm512_set1_ps(fast_reciprocal(absmax[block]));
      for (std::int64_t i = 0; i < blocksize; i += 16) {
        const __m512 y = _mm512_mul_ps(round_to<kAs>(load16<kFormat>(from + i * kBytes)), inverse);
        const __m512i codes = codes_of(y, tables);
        // Each 64-bit lane holds an even code (low half) and the odd one after it.
        const __m512i pairs = _mm512_or_si512(_mm512_slli_epi64(codes, 4), _mm512_srli_epi64(codes, 32));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2), _mm512_cvtepi64_epi8(pairs));
      }
    } else {
      const auto zeros = static_cast<char>(book.zero << 4 | book.zero);
      for (std::int64_t i = 0; i < blocksize; i += 32) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + i / 2), _mm_set1_epi8(zeros));
      }
    }
    from += blocksize * kBytes;
    packed += blocksize / 2;
  }
  return blocks;
}

template <Float kFormat>
std::int64_t quantise_from(const void* source, Float as, std::int64_t blocks, std::int64_t blocksize,
                           const Codebook4& book, std::uint8_t* packed, float* absmax) {
  if (as == kFormat || as == Float::f32) {
    return quantise_as<kFormat, Float::f32>(source, blocks, blocksize, book, packed, absmax);
  }
  if (as == Float::bf16) return quantise_as<kFormat, Float::bf16>(source, blocks, blocksize, book, packed, absmax);
  return quantise_as<kFormat, Float::f16>(source, blocks, blocksize, book, packed, absmax);
}

std::int64_t quantise(const void* source, Float format, Float as, std::int64_t blocks, std::int64_t blocksize,
                      const Codebook4& book, std::uint8_t* packed, float* absmax) {
  switch (format) {
    case Float::bf16: return quantise_from<Float::bf16>(source, as, blocks, blocksize, book, packed, absmax);
    case Float::f16: return quantise_from<Float::f16>(source, as, blocks, blocksize, book, packed, absmax);
    default: return quantise_from<Float::f32>(source, as, blocks, blocksize, book, packed, absmax);
  }
}

/// 16 packed bytes as 32 codes in element order, one a byte.
__m256i unpack32(const std::uint8_t* packed) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
  const __m128i nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  const __m128i odd = _mm_and_si128(bytes, nibble);
  return _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
}

// A block has only sixteen values: they are computed and rounded once, then looked up.
template <Float kVia, Float kTarget>
void dequantise_to(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                   const Codebook4& book, void* target) {
  const __m512 codebook = _mm512_load_ps(book.values.data());
  auto* out = static_cast<std::byte*>(target);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const __m512 values = round_to<kVia>(_mm512_mul_ps(codebook, _mm512_set1_ps(absmax[block])));
    if constexpr (kTarget == Float::f32) {
      for (std::int64_t i = 0; i < blocksize; i += 32) {
        const __m256i codes = unpack32(packed + i / 2);
        const __m512i low = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes));
        const __m512i high = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(codes, 1));
        _mm512_storeu_ps(out + i * 4, _mm512_permutexvar_ps(low, values));
        _mm512_storeu_ps(out + i * 4 + 64, _mm512_permutexvar_ps(high, values));
      }
      out += blocksize * 4;
    } else {
      const __m256i halves = kTarget == Float::bf16 ? to_bf16(values) : to_f16(values);
      const __m512i table = _mm512_broadcast_i64x4(halves);
      for (std::int64_t i = 0; i < blocksize; i += 32) {
        const __m512i codes = _mm512_cvtepu8_epi16(unpack32(packed + i / 2));
        _mm512_storeu_si512(out + i * 2, _mm512_permutexvar_epi16(codes, table));
      }
      out += blocksize * 2;
    }
    packed += blocksize / 2;
  }
}

template <Float kVia>
void dequantise_via(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                    const Codebook4& book, void* target, Float target_format) {
  switch (target_format) {
    case Float::bf16: return dequantise_to<kVia, Float::bf16>(packed, absmax, blocks, blocksize, book, target);
    case Float::f16: return dequantise_to<kVia, Float::f16>(packed, absmax, blocks, blocksize, book, target);
    default: return dequantise_to<kVia, Float::f32>(packed, absmax, blocks, blocksize, book, target);
  }
}

void dequantise(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                const Codebook4& book, Float via, void* target, Float target_format) {
  switch (via) {
    case Float::bf16:
      return dequantise_via<Float::bf16>(packed, absmax, blocks, blocksize, book, target, target_format);
    case Float::f16:
      return dequantise_via<Float::f16>(packed, absmax, blocks, blocksize, book, target, target_format);
    default: return dequantise_via<Float::f32>(packed, absmax, blocks, blocksize, book, target, target_format);
  }
}

}  // namespace

const FourBitKernels kFourBitAvx512{quantise, dequantise};

}  // namespace pipelora::quant

#pragma GCC pop_options
