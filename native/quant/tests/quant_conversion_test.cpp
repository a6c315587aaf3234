#include <doctest/doctest.h>

#include <bit>
#include <cmath>

#include "quant/reciprocal.h"
#include "quant/row_kernels.h"
#include "vectors.h"

using namespace pipelora::quant;
using namespace pipelora::quant::test;

namespace {
const RowKernels& kernels_of(Isa level) {
  return level == Isa::scalar ? kRowsScalar : level == Isa::avx2 ? kRowsAvx2 : kRowsAvx512;
}
}  // namespace

TEST_CASE("every half survives the way to single precision and back") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = f32_from_f16(half);
    if (std::isnan(wide)) {
      CHECK((half & 0x7c00) == 0x7c00);
      CHECK(std::isnan(f32_from_f16(f16_from_f32(wide))));
    } else {
      REQUIRE(f16_from_f32(wide) == half);
    }
    const float brain = f32_from_bf16(half);
    if (!std::isnan(brain)) REQUIRE(bf16_from_f32(brain) == half);
  }
  CHECK(f32_from_f16(0x0001) == 0x1p-24f);
  CHECK(f32_from_f16(0x7bff) == 65504.0f);
  CHECK(f16_from_f32(65519.0f) == 0x7bff);
  CHECK(f16_from_f32(65520.0f) == 0x7c00);
  CHECK(f16_from_f32(0x1p-25f) == 0);       // a tie goes to even
  CHECK(f16_from_f32(0x1.8p-24f) == 2);
  CHECK(bf16_from_f32(std::bit_cast<float>(0x3f808000u)) == 0x3f80);
  CHECK(bf16_from_f32(std::bit_cast<float>(0x3f818000u)) == 0x3f82);
  CHECK(std::isnan(f32_from_bf16(bf16_from_f32(std::bit_cast<float>(0x7fffffffu)))));
}

TEST_CASE("vector conversions equal the scalar ones on all kinds of numbers") {
  std::vector<float> values = random_normal(3000, 1.0f, 1);
  std::mt19937 generator(2);
  for (int i = 0; i < 3000; ++i) values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(generator())));
  const auto count = static_cast<std::int64_t>(values.size()) - 5;
  for (const Float format : {Float::f32, Float::bf16, Float::f16}) {
    std::vector<std::uint8_t> expected(values.size() * 4);
    kRowsScalar.narrow(values.data(), count, format, expected.data());
    for (const Float as : {Float::f32, Float::bf16, Float::f16}) {
      std::vector<float> wide(values.size());
      kRowsScalar.widen(expected.data(), format, as, count, wide.data());
      for (const Isa level : levels()) {
        const RowKernels& run = kernels_of(level);
        std::vector<std::uint8_t> narrowed(expected.size());
        run.narrow(values.data(), count, format, narrowed.data());
        std::vector<float> widened(values.size());
        run.widen(expected.data(), format, as, count, widened.data());
        int different = 0;
        for (std::int64_t i = 0; i < count; ++i) {
          const float a = load_float(narrowed.data(), format, i);
          const float b = load_float(expected.data(), format, i);
          if (std::isnan(b)) {
            different += !std::isnan(a) || !std::isnan(widened[i]);
          } else {
            different += std::bit_cast<std::uint32_t>(a) != std::bit_cast<std::uint32_t>(b);
            different += std::bit_cast<std::uint32_t>(widened[i]) != std::bit_cast<std::uint32_t>(wide[i]);
          }
        }
        CHECK(different == 0);
      }
    }
  }
}

TEST_CASE("the reciprocal is within one unit in the last place, and exact for powers of two") {
  for (int exponent = -20; exponent <= 20; ++exponent) {
    CHECK(fast_reciprocal(std::ldexp(1.0f, exponent)) == std::ldexp(1.0f, -exponent));
    for (int m = 0; m < 1024; ++m) {
      const float value = std::ldexp(1.0f + static_cast<float>(m) / 1024.0f, exponent);
      const auto got = std::bit_cast<std::int32_t>(fast_reciprocal(value));
      const auto exact = std::bit_cast<std::int32_t>(1.0f / value);
      REQUIRE(std::abs(got - exact) <= 1);
    }
  }
  // Read off the device: 1 / 8.8125 comes out above, 1 / 9.375 below the rounded quotient.
  CHECK(fast_reciprocal(8.8125f) > 1.0f / 8.8125f);
  CHECK(fast_reciprocal(9.375f) < 1.0f / 9.375f);
}
