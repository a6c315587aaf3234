#include "quant/reciprocal.h"

#include <bit>
#include <cstdint>

namespace pipelora::quant {
namespace {

// Bit m of the 1024: the result for the significand 1 + m / 1024 lies one unit above (below) the rounded quotient.
constexpr std::uint64_t kUp[16] = {0x0001000000160800, 0x0002030608000000, 0x0000000002180400, 0x1000000600021800,
                                   0x0003050000000010, 0x0008000004000000, 0x0080020203081804, 0x0a04010200080462,
                                   0x0018000880090380, 0x0008000000000000, 0x3000801808000d80, 0x0000000001100000,
                                   0x008020a0002e0000, 0x2000550000000000, 0x0001000109000000, 0x0000002018000100};
constexpr std::uint64_t kDown[16] = {0x4000400100004040, 0xc000000001c02040, 0x0009000100000080, 0x0000000028400000,
                                     0x0000000080040000, 0x0000000020000020, 0x2800000080020000, 0x0000000006000000,
                                     0x0000400000000000, 0x0000004000000000, 0x0000000000000000, 0x0000800000000000,
                                     0x0000000000008000, 0x0000000000000000, 0x3440000000000000, 0x0104000000000020};

}  // namespace

float fast_reciprocal(float value) {
  const float quotient = 1.0f / value;
  const std::uint32_t significand = std::bit_cast<std::uint32_t>(value) & 0x7fffffu;
  const auto bits = std::bit_cast<std::uint32_t>(quotient);
  if ((significand & 0x1fffu) != 0 || (bits & 0x7f800000u) == 0x7f800000u) return quotient;
  const std::uint32_t index = significand >> 13;
  const auto up = static_cast<std::uint32_t>(kUp[index / 64] >> (index % 64)) & 1u;
  const auto down = static_cast<std::uint32_t>(kDown[index / 64] >> (index % 64)) & 1u;
  return std::bit_cast<float>(bits + up - down);
}

}  // namespace pipelora::quant
