#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "ops/cpu/kernels/kernels.h"
#include "pipelora/core/half.h"
#include "pipelora/core/host_math.h"
#include "pipelora/core/rng.h"
#include "tests/support/reference.h"

using namespace pipelora;

TEST_CASE("Philox gives the published answers") {
  const auto check = [](Philox got, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    CHECK(got.v[0] == a);
    CHECK(got.v[1] == b);
    CHECK(got.v[2] == c);
    CHECK(got.v[3] == d);
  };
  check(philox4x32<10>(0, 0, 0, 0, 0, 0), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u);
  check(philox4x32<10>(~0u, ~0u, ~0u, ~0u, ~0u, ~0u), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu);
  check(philox4x32<10>(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u), 0xd16cfe09u, 0x94fdccebu,
        0x5001e420u, 0x24126ea1u);
  check(philox4x32<7>(0, 0, 0, 0, 0, 0), 0x5f6fb709u, 0x0d893f64u, 0x4f121f81u, 0x4f730a48u);
  check(philox4x32<7>(~0u, ~0u, ~0u, ~0u, ~0u, ~0u), 0x5207ddc2u, 0x45165e59u, 0x4d8ee751u, 0x8c52f662u);
  check(philox4x32<7>(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u), 0x4dfccabau, 0x190a87f0u,
        0xc47362bau, 0xb6b5242au);
}

TEST_CASE("dropout masks follow their definition wherever a piece begins") {
  constexpr float p = 0.3f;
  for (const std::int64_t in : {64, 45, 1031}) {
    const std::vector<std::int32_t> row{5, 5, 9}, position{0, 17, 3};
    const MaskRows rows{{0x1234567890ull, 77}, 12, dropout_threshold(p), in, row.data(), position.data()};
    for (const std::int64_t first : {0, 8, 13})
      for (const std::int64_t count : {1, 16, 31}) {
        const std::int64_t stride = 8;
        std::vector<std::uint8_t> bits(static_cast<std::size_t>(3 * stride));
        kernels().dropout_mask(rows, 0, 3, first, count, bits.data(), stride);
        for (std::int64_t t = 0; t < 3; ++t)
          for (std::int64_t c = 0; c < stride * 8; ++c) {
            const auto at = static_cast<std::size_t>(t);
            const bool bit = (bits[static_cast<std::size_t>(t * stride + c / 8)] >> (c % 8)) & 1;
            const auto element = static_cast<std::uint64_t>(position[at] * in + first + c);
            const bool expected = c < count && reference::kept(rows.key, static_cast<std::uint32_t>(row[at]), rows.module, element, p);
            REQUIRE(bit == expected);
          }
      }
  }
}

TEST_CASE("dropout keeps its share, and rows, modules and steps differ") {
  constexpr std::int64_t n = 1 << 16;
  const std::int32_t row = 1, position = 0, other_row = 2;
  const auto bits_of = [&](std::uint32_t step, std::uint32_t module, const std::int32_t* r) {
    std::vector<std::uint8_t> bits(n / 8);
    kernels().dropout_mask({{42, step}, module, dropout_threshold(0.1f), n, r, &position}, 0, 1, 0, n, bits.data(), n / 8);
    return bits;
  };
  const auto base = bits_of(0, 0, &row);
  int kept = 0;
  for (const std::uint8_t byte : base) kept += std::popcount(byte);
  CHECK(kept == doctest::Approx(0.9 * n).epsilon(0.01));
  CHECK(base != bits_of(1, 0, &row));
  CHECK(base != bits_of(0, 1, &row));
  CHECK(base != bits_of(0, 0, &other_row));
}

TEST_CASE("normal numbers have their moments, and an element depends on its index alone") {
  constexpr std::int64_t n = 1 << 18;
  std::vector<float> a(n), b(1000);
  fill_normal(a.data(), DType::f32, n, 3, 9, 0, 0.5f, 2);
  double sum = 0, squares = 0, fourth = 0;
  for (const float x : a) {
    sum += x;
    squares += static_cast<double>(x) * x;
    fourth += std::pow(static_cast<double>(x), 4);
  }
  CHECK(std::abs(sum / n) < 0.004);
  CHECK(std::sqrt(squares / n) == doctest::Approx(0.5).epsilon(0.01));
  CHECK(fourth / n / std::pow(squares / n, 2) == doctest::Approx(3.0).epsilon(0.03));
  for (const std::uint64_t offset : {1ull, 4ull, 1037ull}) {
    fill_normal(b.data(), DType::f32, 1000, 3, 9, offset, 0.5f, 1);
    bool same = true;
    for (std::size_t i = 0; i < b.size(); ++i) same = same && b[i] == a[i + offset];
    CHECK(same);
  }
  // Against Box and Muller in float64.
  for (std::uint64_t g = 0; g < 64; ++g) {
    const Philox bits = stream_bits(3, 9, g);
    for (std::size_t pair = 0; pair < 2; ++pair) {
      const double u = (static_cast<double>(bits.v[2 * pair] >> 8) + 0.5) / 16777216.0, v = static_cast<double>(bits.v[2 * pair + 1] >> 8) / 16777216.0;
      const double r = 0.5 * std::sqrt(-2.0 * std::log(u)), angle = 2.0 * 3.14159265358979323846 * v;
      CHECK(std::abs(a[4 * g + 2 * pair] - r * std::cos(angle)) < 2e-6);
      CHECK(std::abs(a[4 * g + 2 * pair + 1] - r * std::sin(angle)) < 2e-6);
    }
  }
}

TEST_CASE("uniform numbers stay in their range and have its mean and variance") {
  std::vector<float> u(100000), later(100);
  fill_uniform(u.data(), 100000, 1, 2, 0, 0.25f);
  double sum = 0, squares = 0;
  for (const float x : u) {
    REQUIRE(std::abs(x) <= 0.25f);
    sum += x;
    squares += static_cast<double>(x) * x;
  }
  CHECK(std::abs(sum / 100000) < 0.002);
  CHECK(squares / 100000 == doctest::Approx(0.0625 / 3).epsilon(0.02));
  fill_uniform(later.data(), 100, 1, 2, 777, 0.25f);
  for (std::size_t i = 0; i < 100; ++i) CHECK(later[i] == u[777 + i]);
}

TEST_CASE("16-bit floats survive a round trip, and rounding goes to the nearest even") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const f16 h{static_cast<std::uint16_t>(bits)};
    const bf16 b{static_cast<std::uint16_t>(bits)};
    if (!std::isnan(to_float(h))) REQUIRE(to_f16(to_float(h)).bits == h.bits);
    if (!std::isnan(to_float(b))) REQUIRE(to_bf16(to_float(b)).bits == b.bits);
  }
  CHECK(to_f16(1.0f + 0x1p-11f).bits == to_f16(1.0f).bits);
  CHECK(to_f16(1.0f + 3 * 0x1p-11f).bits == to_f16(1.0f + 0x1p-9f).bits);
  CHECK(to_f16(65520.0f).bits == 0x7C00);
  CHECK(to_f16(0x1p-25f).bits == 0);
  CHECK(to_f16(0x1.8p-25f).bits == 1);
  CHECK(to_bf16(1.0f + 0x1p-8f).bits == to_bf16(1.0f).bits);
  CHECK(std::isnan(to_float(to_bf16(NAN))));
  // The vector conversions agree with the scalar ones.
  std::vector<float> values(4096);
  fill_normal(values.data(), DType::f32, 4096, 1, 1, 0, 1.0f, 1);
  std::vector<bf16> as_bf16(4096);
  std::vector<f16> as_f16(4096);
  kernels().convert_row(values.data(), DType::f32, as_bf16.data(), DType::bf16, 1.0f, 4096);
  kernels().convert_row(values.data(), DType::f32, as_f16.data(), DType::f16, 1.0f, 4096);
  for (std::size_t i = 0; i < values.size(); ++i) {
    REQUIRE(as_bf16[i].bits == to_bf16(values[i]).bits);
    REQUIRE(as_f16[i].bits == to_f16(values[i]).bits);
  }
}

TEST_CASE("a low-rank update is added to a weight and rounded once") {
  const std::vector<float> a{1, 2, 3, -1, 0.5f, 4}, b{1, 10, -2, 3};  // r = 2, in = 3, out = 2
  std::vector<float> w{1, 1, 1, 2, 2, 2};
  std::vector<bf16> narrow;
  for (const float x : w) narrow.push_back(to_bf16(x));
  std::vector<float> expected(6);
  for (std::size_t o = 0; o < 2; ++o)
    for (std::size_t i = 0; i < 3; ++i) expected[o * 3 + i] = w[o * 3 + i] + 0.25f * (b[o * 2] * a[i] + b[o * 2 + 1] * a[3 + i]);
  add_low_rank(w.data(), DType::f32, 2, 3, a.data(), b.data(), 2, 0.25f);
  add_low_rank(narrow.data(), DType::bf16, 2, 3, a.data(), b.data(), 2, 0.25f);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(w[i] == doctest::Approx(expected[i]));
    CHECK(narrow[i].bits == to_bf16(w[i]).bits);
  }
}
