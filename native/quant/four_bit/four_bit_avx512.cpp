// AVX-512 F, BW, VL, DQ.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstddef>

#include "quant/four_bit/four_bit_kernels.h"
#include "quant/reciprocal.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")

#include "quant/convert_avx512.h"

namespace pipelora::quant {
namespace {

struct BucketTables {
  __m512 threshold_low, threshold_high;
  __m512i rank_low, rank_high;
};

/// Ranks of sixteen values, one a 32-bit lane.
__m512i ranks_of(__m512 y, const BucketTables& tables) {
  // A little less than 16 keeps y = 1 and its neighbours inside the outer buckets; no threshold lies that near an edge.
  const __m512i bucket = _mm512_cvt_roundps_epi32(_mm512_mul_ps(y, _mm512_set1_ps(15.99999f)),
                                                  _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 threshold = _mm512_permutex2var_ps(tables.threshold_low, bucket, tables.threshold_high);
  const __m512i rank = _mm512_permutex2var_epi32(tables.rank_low, bucket, tables.rank_high);
  const __mmask16 above = _mm512_cmp_ps_mask(y, threshold, _CMP_GT_OQ);
  return _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(1));
}

template <Float kFormat, Float kAs>
float block_absmax(const std::byte* from, std::int64_t blocksize) {
  constexpr std::int64_t kBytes = kFormat == Float::f32 ? 4 : 2;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i even = _mm512_setzero_si512();
  __m512i odd = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < blocksize; i += 32) {
    const __m512i first = _mm512_castps_si512(round_to<kAs>(load16<kFormat>(from + i * kBytes)));
    const __m512i second = _mm512_castps_si512(round_to<kAs>(load16<kFormat>(from + (i + 16) * kBytes)));
    even = _mm512_max_epu32(even, _mm512_and_si512(first, magnitude));
    odd = _mm512_max_epu32(odd, _mm512_and_si512(second, magnitude));
  }
  return std::bit_cast<float>(_mm512_reduce_max_epu32(_mm512_max_epu32(even, odd)));
}

template <Float kFormat, Float kAs>
std::int64_t quantise_as(const void* source, std::int64_t blocks, std::int64_t blocksize, const Codebook4& book,
                         std::uint8_t* packed, float* absmax) {
  const BucketTables tables{
      _mm512_load_ps(book.bucket_threshold.data()), _mm512_load_ps(book.bucket_threshold.data() + 16),
      _mm512_load_si512(book.bucket_rank.data()), _mm512_load_si512(book.bucket_rank.data() + 16)};
  const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book.code_of_rank.data())));
  // Undoes the interleaving of the two packing steps.
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  constexpr std::int64_t kBytes = kFormat == Float::f32 ? 4 : 2;
  // The scales of several blocks are found before the first is quantised: their latencies overlap.
  constexpr std::int64_t kGroup = 16;
  const int shift = std::countr_zero(static_cast<std::uint64_t>(blocksize));
  const auto* from = static_cast<const std::byte*>(source);
  for (std::int64_t first = 0; first < blocks; first += kGroup) {
    const std::int64_t group = std::min(kGroup, blocks - first);
    float inverse[kGroup];
    for (std::int64_t block = 0; block < group; ++block) {
      const float largest = block_absmax<kFormat, kAs>(from + block * blocksize * kBytes, blocksize);
      absmax[first + block] = largest;
      if (std::bit_cast<std::uint32_t>(largest) >= 0x7f800000u) return first + block;
      inverse[block] = has_reciprocal(largest) ? fast_reciprocal(largest) : 0.0f;  // 0: every element ranks as zero does
    }
    const std::int64_t count = group * blocksize;
    for (std::int64_t i = 0; i + 64 <= count; i += 64) {
      const __m512 low = _mm512_set1_ps(inverse[i >> shift]);
      const __m512 high = _mm512_set1_ps(inverse[(i + 32) >> shift]);
      const auto ranks_at = [&](std::int64_t at, __m512 scale) __attribute__((always_inline)) {
        return ranks_of(_mm512_mul_ps(round_to<kAs>(load16<kFormat>(from + at * kBytes)), scale), tables);
      };
      const __m512i words_low = _mm512_packus_epi32(ranks_at(i, low), ranks_at(i + 16, low));
      const __m512i words_high = _mm512_packus_epi32(ranks_at(i + 32, high), ranks_at(i + 48, high));
      const __m512i ranks = _mm512_permutexvar_epi32(in_order, _mm512_packus_epi16(words_low, words_high));
      // even code * 16 + odd code, a 16-bit word each pair
      const __m512i pairs = _mm512_maddubs_epi16(_mm512_shuffle_epi8(codes, ranks), _mm512_set1_epi16(0x0110));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + i / 2), _mm512_cvtepi16_epi8(pairs));
    }
    if (count % 64 != 0) {
      quantise_block(from, kFormat, kAs, count - 32, 32, book, packed, absmax[first + group - 1]);
    }
    from += count * kBytes;
    packed += count / 2;
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
