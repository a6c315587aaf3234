#include "quant/four_bit/four_bit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "quant/four_bit/four_bit_kernels.h"
#include "quant/isa.h"

namespace pipelora::quant {
namespace {

// Elements of one task: a multiple of every block size, and small enough to spread a small tensor over the threads.
constexpr std::int64_t kChunk = 65536;

const FourBitKernels& kernels() {
  switch (current_isa()) {
    case Isa::scalar: return kFourBitScalar;
    case Isa::avx2: return kFourBitAvx2;
    default: return kFourBitAvx512;
  }
}

std::int64_t first_non_finite(const void* source, Float format, Float as, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    if (!std::isfinite(rounded(load_float(source, format, i), as))) return i;
  }
  return end;
}

}  // namespace

bool is_block_size(std::int64_t blocksize) {
  return blocksize >= 32 && blocksize <= 4096 && std::has_single_bit(static_cast<std::uint64_t>(blocksize));
}

std::int64_t quantise4(const void* source, Float format, Float as, std::int64_t count, std::int64_t blocksize,
                       FourBit type, std::uint8_t* packed, float* absmax, int threads) {
  const Codebook4& book = codebook4(type);
  const FourBitKernels& run = kernels();
  const std::int64_t chunks = blocks_of(count, kChunk);
  std::int64_t bad = count;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : bad) if (threads > 1 && chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t begin = chunk * kChunk;
    const std::int64_t end = std::min(begin + kChunk, count);
    const std::int64_t whole = (end - begin) / blocksize;
    const auto* at = static_cast<const std::byte*>(source) + begin * bytes_of(format);
    const std::int64_t reached =
        run.quantise(at, format, as, whole, blocksize, book, packed + begin / 2, absmax + begin / blocksize);
    std::int64_t tail = begin + reached * blocksize;
    bool finite = reached == whole;
    if (finite && tail < end) {
      finite = quantise_block(source, format, as, tail, end - tail, book, packed, absmax[tail / blocksize]);
    }
    if (!finite) bad = std::min(bad, first_non_finite(source, format, as, tail, end));
  }
  return bad == count ? -1 : bad;
}

void dequantise4_range(const std::uint8_t* packed, const float* absmax_first, std::int64_t begin, std::int64_t count,
                       std::int64_t blocksize, FourBit type, Float via, void* target, Float target_format) {
  const Codebook4& book = codebook4(type);
  const FourBitKernels& run = kernels();
  const int shift = std::countr_zero(static_cast<std::uint64_t>(blocksize));
  const std::int64_t end = begin + count;
  const auto absmax = [&](std::int64_t element) { return absmax_first + ((element >> shift) - (begin >> shift)); };
  auto* out = static_cast<std::byte*>(target);
  const auto at = [&](std::int64_t element) { return out + (element - begin) * bytes_of(target_format); };

  // Part of a block: an odd first element and what is left of 32 go one by one, the rest as a short block of its own.
  const auto part = [&](std::int64_t from, std::int64_t to) {
    const float scale = *absmax(from);
    if (from % 2 != 0) {
      dequantise_run(packed, from, 1, scale, book, via, at(from), target_format);
      ++from;
    }
    const std::int64_t vector = (to - from) & ~std::int64_t{31};
    if (vector > 0) run.dequantise(packed + from / 2, &scale, 1, vector, book, via, at(from), target_format);
    from += vector;
    if (from < to) dequantise_run(packed, from, to - from, scale, book, via, at(from), target_format);
  };

  const std::int64_t body = std::min(end, (begin + blocksize - 1) >> shift << shift);
  if (begin < body) part(begin, body);
  const std::int64_t whole = (end - body) >> shift;
  if (whole > 0) {
    run.dequantise(packed + body / 2, absmax(body), whole, blocksize, book, via, at(body), target_format);
  }
  const std::int64_t rest = body + (whole << shift);
  if (rest < end) part(rest, end);
}

}  // namespace pipelora::quant
