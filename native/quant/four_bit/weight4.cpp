#include "quant/four_bit/weight4.h"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "quant/four_bit/double_quant.h"

namespace pipelora::quant {

void dequantise_range(const Weight4& weight, std::int64_t begin, std::int64_t count, void* target, Float format) {
  if (count <= 0) return;
  if (weight.absmax.plain) {
    dequantise4_range(weight.packed, weight.absmax.plain + begin / weight.blocksize, begin, count, weight.blocksize,
                      weight.type, weight.dtype, target, format);
    return;
  }
  constexpr std::int64_t kScales = 256;
  const int shift = std::countr_zero(static_cast<std::uint64_t>(weight.blocksize));
  float scales[kScales];
  const std::int64_t end = begin + count;
  for (std::int64_t from = begin; from < end;) {
    const std::int64_t block = from >> shift;
    const std::int64_t to = std::min(end, (block + kScales) << shift);
    dequantise_absmax(weight.absmax.codes, weight.absmax.nested, weight.absmax.offset, block,
                      ((to - 1) >> shift) + 1 - block, scales);
    dequantise4_range(weight.packed, scales, from, to - from, weight.blocksize, weight.type, weight.dtype,
                      static_cast<std::byte*>(target) + (from - begin) * bytes_of(format), format);
    from = to;
  }
}

void dequantise_tile(const Weight4& weight, std::int64_t row_begin, std::int64_t row_end, std::int64_t col_begin,
                     std::int64_t col_end, void* target, Float format, std::int64_t stride) {
  if (col_begin == 0 && col_end == weight.in && stride == weight.in) {
    dequantise_range(weight, row_begin * weight.in, (row_end - row_begin) * weight.in, target, format);
    return;
  }
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    dequantise_range(weight, row * weight.in + col_begin, col_end - col_begin,
                     static_cast<std::byte*>(target) + (row - row_begin) * stride * bytes_of(format), format);
  }
}

void dequantise(const Weight4& weight, void* target, Float format, int threads) {
  constexpr std::int64_t kChunk = 65536;
  const std::int64_t count = weight.out * weight.in;
  const std::int64_t chunks = blocks_of(count, kChunk);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t begin = chunk * kChunk;
    dequantise_range(weight, begin, std::min(kChunk, count - begin),
                     static_cast<std::byte*>(target) + begin * bytes_of(format), format);
  }
}

}  // namespace pipelora::quant
