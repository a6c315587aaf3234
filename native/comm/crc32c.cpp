#include "comm/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace pipelora::comm {

namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // reflected

/// A linear map on 32 bits: column i is the image of bit i.
using Matrix = std::array<std::uint32_t, 32>;

std::uint32_t apply(const Matrix& matrix, std::uint32_t vector) {
  std::uint32_t sum = 0;
  for (int i = 0; vector != 0; vector >>= 1, ++i)
    if (vector & 1) sum ^= matrix[static_cast<std::size_t>(i)];
  return sum;
}

Matrix square(const Matrix& matrix) {
  Matrix result;
  for (std::size_t i = 0; i < 32; ++i) result[i] = apply(matrix, matrix[i]);
  return result;
}

/// What a run of `bytes` zero bytes (a power of two) does to a checksum, as a table a byte of it.
class ZeroRun {
 public:
  explicit ZeroRun(std::size_t bytes) {
    Matrix step;  // one zero bit
    step[0] = kPolynomial;
    for (std::size_t i = 1; i < 32; ++i) step[i] = 1u << (i - 1);
    for (std::size_t bits = 1; bits < 8 * bytes; bits *= 2) step = square(step);
    for (std::uint32_t byte = 0; byte < 256; ++byte)
      for (std::size_t place = 0; place < 4; ++place) table_[place][byte] = apply(step, byte << (8 * place));
  }
  std::uint32_t operator()(std::uint32_t crc) const {
    return table_[0][crc & 255] ^ table_[1][(crc >> 8) & 255] ^ table_[2][(crc >> 16) & 255] ^ table_[3][crc >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> table_;
};

std::uint64_t word(const unsigned char* at) {
  std::uint64_t value;
  std::memcpy(&value, at, 8);
  return value;
}

/// The instruction has a latency of three cycles: three neighbouring blocks are run at once and joined.
template <std::size_t kBlock>
void three_blocks(const unsigned char*& at, std::size_t& left, std::uint64_t& crc, const ZeroRun& shift) {
  while (left >= 3 * kBlock) {
    std::uint64_t second = 0, third = 0;
    for (std::size_t i = 0; i < kBlock; i += 8) {
      crc = _mm_crc32_u64(crc, word(at + i));
      second = _mm_crc32_u64(second, word(at + kBlock + i));
      third = _mm_crc32_u64(third, word(at + 2 * kBlock + i));
    }
    crc = shift(static_cast<std::uint32_t>(crc)) ^ second;
    crc = shift(static_cast<std::uint32_t>(crc)) ^ third;
    at += 3 * kBlock;
    left -= 3 * kBlock;
  }
}

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t before) {
  static const ZeroRun long_run(4096), short_run(256);
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint64_t crc = ~before;
  three_blocks<4096>(at, bytes, crc, long_run);
  three_blocks<256>(at, bytes, crc, short_run);
  for (; bytes >= 8; at += 8, bytes -= 8) crc = _mm_crc32_u64(crc, word(at));
  for (; bytes > 0; ++at, --bytes) crc = _mm_crc32_u8(static_cast<std::uint32_t>(crc), *at);
  return ~static_cast<std::uint32_t>(crc);
}

}  // namespace pipelora::comm
