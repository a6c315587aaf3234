#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "comm/crc32c.h"

using pipelora::comm::crc32c;

namespace {

std::uint32_t bitwise(const std::vector<unsigned char>& bytes) {
  std::uint32_t crc = ~0u;
  for (const unsigned char byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
  }
  return ~crc;
}

}  // namespace

TEST_CASE("CRC-32C: the vectors of RFC 3720") {
  CHECK(crc32c("123456789", 9) == 0xe3069283);
  const std::vector<unsigned char> zeros(32, 0), ones(32, 0xff);
  CHECK(crc32c(zeros.data(), 32) == 0x8a9136aa);
  CHECK(crc32c(ones.data(), 32) == 0x62a8ab43);
  CHECK(crc32c(nullptr, 0) == 0);
}

TEST_CASE("CRC-32C: every path gives what the definition gives, also in parts") {
  for (const std::size_t size : {1u, 7u, 8u, 767u, 768u, 769u, 12287u, 12288u, 12289u, 40'001u}) {
    std::vector<unsigned char> bytes(size);
    std::uint32_t state = 12345;
    for (auto& byte : bytes) byte = static_cast<unsigned char>((state = state * 1664525 + 1013904223) >> 24);
    CHECK(crc32c(bytes.data(), size) == bitwise(bytes));
    const std::size_t cut = size / 3;
    CHECK(crc32c(bytes.data() + cut, size - cut, crc32c(bytes.data(), cut)) == bitwise(bytes));
  }
}
