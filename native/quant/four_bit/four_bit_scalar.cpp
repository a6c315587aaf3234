#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "quant/four_bit/four_bit_kernels.h"
#include "quant/reciprocal.h"

namespace pipelora::quant {
namespace {

std::uint8_t code_of(float y, const Codebook4& book) {
  std::size_t rank = 0;
  for (const float threshold : book.thresholds) rank += y > threshold ? 1 : 0;
  return book.code_of_rank[rank];
}

std::int64_t quantise(const void* source, Float format, Float as, std::int64_t blocks, std::int64_t blocksize,
                      const Codebook4& book, std::uint8_t* packed, float* absmax) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    if (!quantise_block(source, format, as, block * blocksize, blocksize, book, packed, absmax[block])) return block;
  }
  return blocks;
}

void dequantise(const std::uint8_t* packed, const float* absmax, std::int64_t blocks, std::int64_t blocksize,
                const Codebook4& book, Float via, void* target, Float target_format) {
  auto* bytes = static_cast<std::byte*>(target);
  for (std::int64_t block = 0; block < blocks; ++block) {
    dequantise_run(packed, block * blocksize, blocksize, absmax[block], book, via,
                   bytes + block * blocksize * bytes_of(target_format), target_format);
  }
}

}  // namespace

const FourBitKernels kFourBitScalar{quantise, dequantise};

bool quantise_block(const void* source, Float format, Float as, std::int64_t begin, std::int64_t count,
                    const Codebook4& book, std::uint8_t* packed, float& absmax) {
  std::uint32_t largest = 0;  // magnitudes compare as integers, and NaN compares above infinity
  for (std::int64_t i = begin; i < begin + count; ++i) {
    const float value = rounded(load_float(source, format, i), as);
    largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7fffffffu);
  }
  absmax = std::bit_cast<float>(largest);
  if (largest >= 0x7f800000u) return false;
  const bool zeros = !has_reciprocal(absmax);
  const float inverse = zeros ? 0.0f : fast_reciprocal(absmax);
  const auto code_at = [&](std::int64_t i) {
    if (zeros || i >= begin + count) return book.zero;
    return code_of(rounded(load_float(source, format, i), as) * inverse, book);
  };
  for (std::int64_t i = begin; i < begin + count; i += 2) {
    packed[i / 2] = static_cast<std::uint8_t>(code_at(i) << 4 | code_at(i + 1));
  }
  return true;
}

void dequantise_run(const std::uint8_t* packed, std::int64_t begin, std::int64_t count, float absmax,
                    const Codebook4& book, Float via, void* target, Float target_format) {
  float values[16];
  for (std::size_t code = 0; code < 16; ++code) values[code] = rounded(book.values[code] * absmax, via);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t element = begin + i;
    const std::uint8_t byte = packed[element / 2];
    store_float(target, target_format, i, values[element % 2 == 0 ? byte >> 4 : byte & 15]);
  }
}

}  // namespace pipelora::quant
