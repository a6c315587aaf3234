// AVX2 and F16C.
#include <immintrin.h>

#include <bit>
#include <cstddef>

#include "quant/four_bit/four_bit_kernels.h"
#include "quant/reciprocal.h"

#pragma GCC push_options
#pragma GCC target("avx2,f16c")

#include "quant/convert_avx2.h"

namespace pipelora::quant {
namespace {

__m256i rank8(__m256 y, const Codebook4& book) {
  __m256i rank = _mm256_setzero_si256();
  for (const float threshold : book.thresholds) {
    const __m256 above = _mm256_cmp_ps(y, _mm256_set1_ps(threshold), _CMP_GT_OQ);
    rank = _mm256_sub_epi32(rank, _mm256_castps_si256(above));
  }
  return rank;
}

template <Float kFormat>
std::int64_t quantise_from(const void* source, Float as, std::int64_t blocks, std::int64_t blocksize,
                           const Codebook4& book, std::uint8_t* packed, float* absmax) {
  constexpr std::int64_t kBytes = kFormat == Float::f32 ? 4 : 2;
  const __m256i codes = _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(book.code_of_rank.data())));
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto* from = static_cast<const std::byte*>(source);
  for (std::int64_t block = 0; block < blocks; ++block) {
    __m256i largest = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < blocksize; i += 8) {
      const __m256i bits = _mm256_castps_si256(round_to(load8<kFormat>(from + i * kBytes), as));
      largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    const auto top = static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
    absmax[block] = std::bit_cast<float>(top);
    if (top >= 0x7f800000u) return block;
    if (has_reciprocal(absmax[block])) {
      const __m256 inverse = _mm256_set1_ps(fast_reciprocal(absmax[block]));
      const auto rank_at = [&](std::int64_t i) {
        return rank8(_mm256_mul_ps(round_to(load8<kFormat>(from + i * kBytes), as), inverse), book);
      };
      for (std::int64_t i = 0; i < blocksize; i += 32) {
        const __m256i low = _mm256_packs_epi32(rank_at(i), rank_at(i + 8));
        const __m256i high = _mm256_packs_epi32(rank_at(i + 16), rank_at(i + 24));
        const __m256i ranks = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), in_order);
        // even code * 16 + odd code, a 16-bit word each pair
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_shuffle_epi8(codes, ranks), _mm256_set1_epi16(0x0110));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + i / 2), bytes);
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

std::int64_t quantise(const void* source, Float format, Float as, std::int64_t blocks, std::int64_t blocksize,
                      const Codebook4& book, std::uint8_t* packed, float* absmax) {
  switch (format) {
    case Float::bf16: return quantise_from<Float::bf16>(source, as, blocks, blocksize, book, packed, absmax);
    case Float::f16: return quantise_from<Float::f16>(source, as, blocks, blocksize, book, packed, absmax);
    default: return quantise_from<Float::f32>(source, as, blocks, blocksize, book, packed, absmax);
  }
}

void dequantise(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                const Codebook4& book, Float via, void* target, Float target_format) {
  const __m128i nibble = _mm_set1_epi8(15);
  const std::int64_t stride = bytes_of(target_format);
  auto* out = static_cast<std::byte*>(target);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const __m256 scale = _mm256_set1_ps(absmax[block]);
    const __m256 first = round_to(_mm256_mul_ps(_mm256_load_ps(book.values.data()), scale), via);
    const __m256 second = round_to(_mm256_mul_ps(_mm256_load_ps(book.values.data() + 8), scale), via);
    if (target_format == Float::f32) {
      for (std::int64_t i = 0; i < blocksize; i += 16) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2));
        const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble),
                                                _mm_and_si128(bytes, nibble));
        const auto look_up = [&](__m128i eight) {
          const __m256i index = _mm256_cvtepu8_epi32(eight);
          const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 of the code as the sign
          return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, index), _mm256_permutevar8x32_ps(second, index),
                                  upper);
        };
        auto* to = reinterpret_cast<float*>(out + i * 4);
        _mm256_storeu_ps(to, look_up(codes));
        _mm256_storeu_ps(to + 8, look_up(_mm_srli_si128(codes, 8)));
      }
    } else {
      // The sixteen halves as two byte tables.
      const bool bf16 = target_format == Float::bf16;
      const __m128i low_half = bf16 ? to_bf16(first) : to_f16(first);
      const __m128i high_half = bf16 ? to_bf16(second) : to_f16(second);
      const __m128i byte_mask = _mm_set1_epi16(0xff);
      const __m128i low_bytes =
          _mm_packus_epi16(_mm_and_si128(low_half, byte_mask), _mm_and_si128(high_half, byte_mask));
      const __m128i high_bytes = _mm_packus_epi16(_mm_srli_epi16(low_half, 8), _mm_srli_epi16(high_half, 8));
      for (std::int64_t i = 0; i < blocksize; i += 16) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2));
        const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble),
                                                _mm_and_si128(bytes, nibble));
        const __m128i low = _mm_shuffle_epi8(low_bytes, codes);
        const __m128i high = _mm_shuffle_epi8(high_bytes, codes);
        auto* to = reinterpret_cast<__m128i*>(out + i * 2);
        _mm_storeu_si128(to, _mm_unpacklo_epi8(low, high));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(low, high));
      }
    }
    out += blocksize * stride;
    packed += blocksize / 2;
  }
}

}  // namespace

const FourBitKernels kFourBitAvx2{quantise, dequantise};

}  // namespace pipelora::quant

#pragma GCC pop_options
